"""Random adapters, and one real engine that all engine tests share."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path

# Read once, when torch is imported; more threads than cores make the engine crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import pytest_asyncio
from random_adapters import write_random_adapter

from opsd.daemon.config.schema import EngineConfig, ModelConfig
from opsd.daemon.serve.vllm_engine import VllmEngine
from opsd.daemon.types.engine import AdapterHandle

MakeAdapter = Callable[[int], AdapterHandle]


@pytest.fixture(scope="session")
def make_adapter(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    """Writes a random adapter, strong enough to change every greedy completion, for a seed."""
    made: dict[int, AdapterHandle] = {}

    def make(seed: int) -> AdapterHandle:
        if seed not in made:
            path = tmp_path_factory.mktemp(f"adapter-{seed}")
            write_random_adapter(micro_model, path, seed)
            digest = hashlib.sha256((path / "adapter_model.safetensors").read_bytes()).hexdigest()
            made[seed] = AdapterHandle(f"opsd-{digest[:16]}", 1000 + seed, str(path))
        return made[seed]

    return make


@pytest.fixture(scope="session")
def engine_configs(micro_model: Path) -> tuple[ModelConfig, EngineConfig]:
    """Of every engine in these tests: small, and quick to start."""
    return (
        ModelConfig(path=str(micro_model), dtype="float32"),
        EngineConfig(device="cpu", kv_cache_mib=64, max_num_seqs=64, max_lora_rank=8),
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(engine_configs: tuple[ModelConfig, EngineConfig]) -> AsyncIterator[VllmEngine]:
    """A started engine. Tests that use it run on the session's loop, leave no adapter loaded and no
    request running, and never kill it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own
        engine = VllmEngine(*engine_configs)
        await engine.start()
        yield engine
        await engine.stop()
