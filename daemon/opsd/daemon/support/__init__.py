"""What a training run may ask of the daemon: verdicts, and samples from the engine that serves."""
