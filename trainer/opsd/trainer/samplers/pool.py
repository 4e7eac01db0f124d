"""Samples with a vLLM engine of the run's own, inside the training pool."""

import importlib.util
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from opsd.trainer.errors import SamplerError
from opsd.trainer.rollout import Rollout
from opsd.trainer.samplers.base import Prompt, WriteAdapter
from opsd.trainer.samplers.engine import engine_seed
from opsd.trainer.samplers.pool_child import CPU_KV_CACHE_BYTES, ChildSettings
from opsd.trainer.samplers.students import StudentFiles, alone
from opsd.v1 import training_pb2

_POLL_S = 0.5
_STOP_TIMEOUT_S = 10.0
# torchrun's place of the trainer must not become vLLM's, and vLLM's own settings are ours to make.
_NOT_THE_CHILDS = ("TORCHELASTIC_", "PET_", "VLLM_", "GROUP_", "ROLE_")
_NOT_THE_CHILD = frozenset(
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
)


class PoolSampler:
    """One engine a rank, in a child process, so that it is far from this one's process group.

    Make it in a thread that lives as long as it does, e.g. the main one: the kernel ends the child
    with the thread that started it. On a GPU that it shares with the trainer it sleeps while
    nothing is sampled (its weights in the machine's memory, its cache gone), unless the run samples
    ahead: then both stay.

    Args:
        spec: of the run.
        eos_ids: tokens that end an answer.
        context_tokens: longest prompt plus answer.
        rank: of this process; rank 0 writes the student.
        local_rank: which of the visible GPUs is this process's.
        share: see `StudentFiles`.
        on_progress: called about twice a second while `sync` and the constructor wait.

    Raises:
        SamplerError: vLLM is not installed, or its engine does not start.
    """

    def __init__(
        self,
        spec: training_pb2.RunSpec,
        *,
        eos_ids: frozenset[int],
        context_tokens: int,
        rank: int = 0,
        local_rank: int = 0,
        share: Callable[[str], str] = alone,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise SamplerError(
                "rollout.sampler is pool, but vLLM is not installed where the trainer runs: "
                "install the extra cpu or cuda there, or set rollout.sampler to engine or local"
            )
        self._spec = spec
        self._eos_ids = sorted(eos_ids)
        self._on_progress = on_progress
        self._files = StudentFiles(Path(spec.output_dir) / "students", rank, share)
        self._lock = threading.Lock()  # of the conversation
        self._closed = False
        self._child, self._pipe = _start(_settings(spec, context_tokens), spec, local_rank)
        try:
            self._wait(on_progress)
        except BaseException:
            self.close()
            raise

    def sync(self, version: int, write: WriteAdapter) -> None:
        student = self._files.write(version, write, lambda _: None)
        self._ask("load", asdict(student), self._on_progress)

    def sample(
        self, prompts: Sequence[Prompt], stream_ids: Sequence[int], *, step: int, version: int
    ) -> list[Rollout]:
        student = self._files.find(version)
        if not prompts:
            return []
        rollout = self._spec.rollout
        request = {
            "version": student.version,
            "prompts": [list(prompt) for prompt in prompts],
            "seeds": [engine_seed(self._spec.seed, step, stream) for stream in stream_ids],
            "sampling": {
                "max_tokens": rollout.max_new_tokens,
                "temperature": rollout.temperature,
                "top_p": rollout.top_p,
                "top_k": rollout.top_k,
                "stop_token_ids": self._eos_ids,
            },
        }
        answers = self._ask("sample", request, lambda: None)
        return [
            Rollout(tuple(tokens), truncated, tuple(logprobs), version)
            for tokens, truncated, logprobs in answers
        ]

    def close(self) -> None:
        """Kills the engine's process; a `sample` under way ends with `SamplerError`."""
        self._closed = True
        self._child.kill()
        self._child.wait(_STOP_TIMEOUT_S)
        with self._lock:
            self._pipe.close()

    def _ask(self, method: str, argument: Any, on_progress: Callable[[], None]) -> Any:
        with self._lock:
            try:
                self._pipe.send((method, argument))
            except OSError as error:
                raise self._lost() from error
            return self._wait(on_progress)

    def _wait(self, on_progress: Callable[[], None]) -> Any:
        try:
            while not self._pipe.poll(_POLL_S):
                on_progress()
            kind, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if kind == "error":
            raise SamplerError(f"the pool's engine: {answer}")
        return answer

    def _lost(self) -> SamplerError:
        if self._closed:
            return SamplerError("the sampler was closed")
        try:
            status = self._child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            status = None
        return SamplerError(
            f"the pool's engine died (status {status}): its last words are in the run's log; out "
            "of memory, perhaps: lower rollout.pool_memory_fraction, or set rollout.sampler to "
            "engine or local"
        )


def _settings(spec: training_pb2.RunSpec, context_tokens: int) -> ChildSettings:
    on_gpu = spec.device == "cuda"
    return ChildSettings(
        model=spec.model.path,
        dtype=spec.model.dtype,
        max_model_len=context_tokens,
        max_lora_rank=spec.lora.rank,
        threads=spec.threads_per_process or 1,
        on_gpu=on_gpu,
        memory_fraction=spec.rollout.pool_memory_fraction,
        kv_cache_bytes=0 if on_gpu else CPU_KV_CACHE_BYTES,
        sleeps=on_gpu and spec.rollout.max_staleness_steps == 0,
    )


def _start(
    settings: ChildSettings, spec: training_pb2.RunSpec, local_rank: int
) -> tuple["subprocess.Popen[bytes]", Connection]:
    ours, theirs = socket.socketpair()
    try:
        child = subprocess.Popen(
            [
                *(sys.executable, "-m", "opsd.trainer.samplers.pool_child"),
                *(str(theirs.fileno()), str(os.getpid()), settings.to_json()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            pass_fds=[theirs.fileno()],
            env=_environment(spec, settings, local_rank),
        )
    except OSError as error:
        ours.close()
        raise SamplerError(f"the pool's engine cannot be started: {error}") from error
    finally:
        theirs.close()
    return child, Connection(ours.detach())


def _environment(
    spec: training_pb2.RunSpec, settings: ChildSettings, local_rank: int
) -> dict[str, str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _NOT_THE_CHILD and not name.startswith(_NOT_THE_CHILDS)
    }
    environment |= {
        # The engine is in the child itself: one process to start, and one to kill.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(settings.threads),
    }
    if spec.device == "cuda":
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        environment["CUDA_VISIBLE_DEVICES"] = (
            visible[local_rank] if local_rank < len(visible) else str(local_rank)
        )
    return environment
