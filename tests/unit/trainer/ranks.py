"""Runs of several ranks on this machine, each a process, as torchrun would start them."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from torch.multiprocessing.spawn import spawn


def run_on_ranks(world_size: int, run_jsons: Sequence[Path]) -> None:
    """One run after the other on the same processes; each writes its result as ever."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_rank, (world_size, port, [str(path) for path in run_jsons]), nprocs=world_size)


def _rank(rank: int, world_size: int, port: int, run_jsons: list[str]) -> None:
    from opsd.trainer.main import main

    for index, run_json in enumerate(run_jsons):
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port + index),
        }
        main([run_json])
