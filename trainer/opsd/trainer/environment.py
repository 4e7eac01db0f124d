"""What torchrun tells a process about itself; known without importing torch."""

import os


def rank() -> int:
    """This process's rank, 0 alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of ranks, 1 alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Rank on this machine: the index of the CUDA device."""
    return int(os.environ.get("LOCAL_RANK", "0"))
