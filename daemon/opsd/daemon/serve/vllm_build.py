"""How a vLLM engine is configured and built, fast."""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsd.daemon.config.schema import EngineConfig, ModelConfig
from opsd.daemon.errors import ConfigError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)

_MIB = 1 << 20
_DEFAULT_CPU_KV_CACHE_MIB = 512
# The seven projections, and the two fused ones that vLLM makes of five of them: without the latter,
# batches that ask for prompt log-probabilities under LoRA kill the engine on a CPU.
_LORA_MODULES = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "qkv_proj",
    "gate_up_proj",
]
_ENVIRONMENT = {
    # The model is a directory on this machine: nothing is to be asked of any other.
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # The engine's process is forked from one that runs a gRPC server, and makes no calls itself;
    # gRPC's preparations for a fork would only get in the way of calls in flight.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    # The daemon's stdout is data.
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def prepare_environment(engine: EngineConfig) -> None:
    """Sets the variables that libraries read once, when they are imported.

    Call it before torch or vLLM is imported. What the user has set stays.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if engine.threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(engine.threads))


def check_model_dir(path: str) -> None:
    """Raises ConfigError unless the path is a directory with a readable config.json."""
    if not path:
        raise ConfigError(
            "model.path: is empty; set it to a model directory in Hugging Face format"
        )
    config = Path(path) / "config.json"
    if not Path(path).is_dir():
        raise ConfigError(f"model.path: there is no directory {path}; set it to a model directory")
    if not config.is_file():
        raise ConfigError(
            f"model.path: {path} has no config.json; a model directory in Hugging Face format is "
            "needed"
        )
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {config} cannot be read: {error}") from error


@contextmanager
def _kept_environment() -> Iterator[None]:
    """vLLM's CPU platform rewrites LD_PRELOAD and others; the trainer must not inherit that."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _settled(envs: Any) -> Iterator[None]:
    """vLLM looks its settings up anew for every token of every request, unless told that they stay.

    Its own server tells it; an engine built again (the last one died) starts with a fresh look.
    """
    envs.disable_envs_cache()
    yield
    envs.enable_envs_cache()


@functools.cache
def _part_children_from_us() -> None:
    """A forked child leaves alone what it inherited of the daemon, from its first moment on."""
    os.register_at_fork(after_in_child=_part_from_the_parent)


def _part_from_the_parent() -> None:
    # The daemon's cyclic garbage may hold gRPC calls and channels. vLLM collects garbage once the
    # model is loaded; in the child that would wait for ever on gRPC's threads, which a fork does
    # not copy. (vLLM collects once more when it shuts down, and is killed if that takes too long.)
    gc.freeze()
    # Python writes the number of every signal into this pipe, which the daemon's event loop reads:
    # the SIGTERM that ends the engine's process would drain the daemon.
    signal.set_wakeup_fd(-1)


def build_engine(model: ModelConfig, engine: EngineConfig) -> AsyncLLM:
    """Starts an EngineCore process and returns the client that drives it.

    Blocks for seconds to minutes. The process dies with the thread that calls this.
    """
    prepare_environment(engine)
    from vllm import envs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    on_cpu = bool(current_platform.is_cpu())
    _check_device(engine, on_cpu)
    with _kept_environment(), _settled(envs):
        # It would override kv_cache_memory_bytes; an empty one crashes vLLM.
        if os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None) is not None:
            log.warning("VLLM_CPU_KVCACHE_SPACE is ignored: engine.kv_cache_mib says it")
        config = _engine_args(model, engine, on_cpu).create_engine_config(
            UsageContext.ENGINE_CONTEXT
        )
        if on_cpu:
            threads = engine.threads or os.cpu_count() or 1
            os.environ["OPSD_ENGINE_THREADS"] = str(threads)
            # vLLM's CPU platform picks "mp" and "spawn", which start 15 seconds slower. A fork is
            # safe here: this process has no OpenMP threads of its own and no CUDA context.
            config.parallel_config.distributed_executor_backend = "uni"
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
            _part_children_from_us()
        return AsyncLLM(
            vllm_config=config,
            executor_class=_executor_class(config),
            log_stats=True,
            log_requests=False,
        )


def _check_device(engine: EngineConfig, on_cpu: bool) -> None:
    if engine.device == "cuda" and on_cpu:
        raise ConfigError(
            "engine.device: is cuda, but the installed vLLM is the CPU build or sees no GPU; "
            "install the cuda flavour (make setup FLAVOUR=cuda) or set engine.device to cpu"
        )
    if engine.device == "cpu" and not on_cpu:
        raise ConfigError(
            "engine.device: is cpu, but the installed vLLM is the CUDA build; install the cpu "
            "flavour (make setup FLAVOUR=cpu) or set engine.device to cuda"
        )
    if on_cpu and engine.tensor_parallel > 1:
        raise ConfigError(
            f"engine.tensor_parallel: is {engine.tensor_parallel}, but on a CPU it must be 1"
        )


def _engine_args(model: ModelConfig, engine: EngineConfig, on_cpu: bool) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs

    kv_cache_mib = engine.kv_cache_mib or (_DEFAULT_CPU_KV_CACHE_MIB if on_cpu else 0)
    return AsyncEngineArgs(
        model=model.path,
        dtype=model.dtype,
        max_model_len=model.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        kv_cache_memory_bytes=kv_cache_mib * _MIB if kv_cache_mib else None,
        gpu_memory_utilization=engine.gpu_memory_fraction,
        tensor_parallel_size=engine.tensor_parallel,
        # LoRA turns compilation off on a CPU in any case.
        enforce_eager=engine.enforce_eager or on_cpu,
        enable_lora=True,
        max_loras=engine.max_loras,
        max_cpu_loras=engine.max_loras,
        max_lora_rank=engine.max_lora_rank,
        lora_target_modules=_LORA_MODULES,
        scheduling_policy="priority",
        # A prompt that a step takes in part has its random generator rewound, if it has one of its
        # own; a CPU's cannot be, and the attempt kills the engine.
        enable_chunked_prefill=False if on_cpu else None,
        # Sampling defaults are the API's, not those of a file in the model's directory.
        generation_config="vllm",
        disable_log_stats=False,
    )


def _executor_class(config: Any) -> type:
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    from opsd.daemon.serve.engine_process import BoundMultiprocExecutor, BoundUniProcExecutor

    chosen: type = Executor.get_class(config)
    if chosen is UniProcExecutor:
        return BoundUniProcExecutor
    if chosen is MultiprocExecutor:
        return BoundMultiprocExecutor
    raise ConfigError(f"vLLM chose {chosen.__name__}, which cannot be tied to the daemon's life")
