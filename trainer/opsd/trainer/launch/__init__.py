"""Starting the ranks of a run: on this machine with torchrun, on a cluster with Ray."""
