"""Work on several ranks of this machine, each a process, as torchrun would start them."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import start_processes

# Imported once, by the process that the ranks are forked from.
_PRELOAD = [
    "opsd.trainer.loop",
    "peft",
    "torch.distributed.fsdp",
    "transformers.models.qwen3.modeling_qwen3",
]


def on_ranks(world_size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Calls `work(*arguments)` on each rank with torchrun's environment; raises what one raises."""
    multiprocessing.set_forkserver_preload(_PRELOAD)
    start_processes(
        _rank,
        (world_size, _free_port(), work, arguments),
        nprocs=world_size,
        start_method="forkserver",
    )


def run_on_ranks(world_size: int, run_jsons: Sequence[Path]) -> None:
    """One run after the other on the same processes; each writes its result as ever."""
    on_ranks(world_size, _runs, [str(path) for path in run_jsons])


def _rank(
    rank: int, world_size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    work(*arguments)


def _runs(run_jsons: list[str]) -> None:
    from opsd.trainer.main import main

    port = int(os.environ["MASTER_PORT"])
    for index, run_json in enumerate(run_jsons):
        os.environ["MASTER_PORT"] = str(port + index)
        main([run_json])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
