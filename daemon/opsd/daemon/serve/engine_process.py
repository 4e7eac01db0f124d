"""What happens inside the engine's own process, before vLLM builds the model there.

vLLM constructs the executor in the EngineCore process, forked or spawned, so that is where these
two classes do their work; they are at module level because a spawned process imports them by name.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal

import torch
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

ENGINE_THREADS = "OPSD_ENGINE_THREADS"
"""Environment variable that carries engine.threads to the engine's process."""

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Has the kernel kill this process when the thread that started it is gone, however it went."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the call above.
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)


def prepare_cpu() -> None:
    """Sets the thread count, asks for AMX tiles, and has nothing compiled while users wait.

    Without the permission, vLLM's bf16 attention kernel dies of SIGILL on a model too small for any
    oneDNN product to have asked for it before. vLLM compiles small parts of its sampler when the
    first request wants log-probabilities, or samples, and again when the batch first has another
    size: on a CPU that stops every stream for seconds, and what is won then is nothing.
    """
    threads = os.environ.get(ENGINE_THREADS)
    if threads is not None:
        torch.set_num_threads(int(threads))
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
    torch.compiler.set_stance("force_eager")


class BoundUniProcExecutor(UniProcExecutor):  # type: ignore[misc]
    """Runs the model in the EngineCore process, which dies with the daemon."""

    def _init_executor(self) -> None:
        die_with_parent()
        prepare_cpu()
        super()._init_executor()


class BoundMultiprocExecutor(MultiprocExecutor):  # type: ignore[misc]
    """Runs the model in worker processes, one a GPU; vLLM ends them when EngineCore dies."""

    def _init_executor(self) -> None:
        die_with_parent()
        super()._init_executor()
