"""The training job: objectives, rollouts, loop and loss."""
