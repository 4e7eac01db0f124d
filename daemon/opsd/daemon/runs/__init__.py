"""Training runs: their states, their trainer process, and the controller that moves them on."""
