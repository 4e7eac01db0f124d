"""The command line `opsd`: it talks gRPC to the daemon and imports nothing of it."""
