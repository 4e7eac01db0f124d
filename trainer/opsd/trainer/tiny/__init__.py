"""A tiny model made from scratch, and its problems, on which OPSD shows itself on one CPU core."""
