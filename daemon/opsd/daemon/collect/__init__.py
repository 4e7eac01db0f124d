"""How problem-solution pairs, feedback and attempts come in."""
