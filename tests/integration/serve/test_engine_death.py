"""What a dead engine, and a dead daemon, leave behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from opsd.daemon.adapters.routing import RoutingSnapshot
from opsd.daemon.config.schema import EngineConfig, ModelConfig
from opsd.daemon.serve.state import ServingState
from opsd.daemon.serve.supervisor import RestartPolicy, Supervisor
from opsd.daemon.serve.vllm_engine import VllmEngine
from opsd.daemon.types.engine import AdapterHandle
from opsd.v1 import inference_pb2 as pb

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own, at every start
    pytest.mark.asyncio(loop_scope="session"),
]


async def test_stopping_the_engine_does_not_signal_the_daemon(
    engine_configs: tuple[ModelConfig, EngineConfig],
) -> None:
    """The engine's process is ended with SIGTERM, which the daemon handles as an order to drain."""
    received = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, received.set)
    try:
        engine = VllmEngine(*engine_configs)
        await engine.start()
        await engine.stop()
        # A signal of our own goes the same way, later: the other one would be there by then.
        await asyncio.sleep(0.5)
        assert not received.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(5):
            await received.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_killed_engine_comes_back_with_its_adapter(
    engine_configs: tuple[ModelConfig, EngineConfig],
    make_adapter: Callable[[int], AdapterHandle],
    door_to: Callable,
) -> None:
    engine = VllmEngine(*engine_configs)
    await engine.start()
    adapter = make_adapter(1)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.stop)
        door = await stack.enter_async_context(door_to(engine))
        policy = RestartPolicy(first_delay_s=0.01, poll_s=0.02)
        supervisor = Supervisor(engine, door.residency.reload_all, door.availability, policy)
        supervisor.watch()
        stack.push_async_callback(supervisor.stop)
        await door.residency.ensure(adapter, "incumbent")
        door.router.swap(RoutingSnapshot(adapter, epoch=1))
        sampling = pb.SamplingParams(max_tokens=480, temperature=0, ignore_eos=True)
        request = pb.GenerateRequest(prompt="61-40", sampling=sampling)
        before = await door.stub.Generate(request)
        assert before.adapter == adapter.name

        calls = [door.stub.GenerateStream(request) for _ in range(4)]
        for call in calls:
            await call.read()
        (pid,) = engine.engine_pids()
        os.kill(pid, signal.SIGKILL)
        for call in calls:
            assert await code_of(call) is grpc.StatusCode.UNAVAILABLE
        assert door.router.engine_errors(adapter.name) == 4
        async with asyncio.timeout(30):
            while door.availability.state is ServingState.READY:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.stub.Generate(request)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(60):
            while door.availability.state is not ServingState.READY:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        after = await door.stub.Generate(request)
        assert (after.adapter, after.text) == (before.adapter, before.text)
        assert engine.engine_pids() != [pid]
    assert engine.engine_pids() == []


async def code_of(call) -> grpc.StatusCode:
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return await call.code()


GARBAGE = """
    import asyncio, gc, os, signal, sys
    from opsd.daemon.config.schema import EngineConfig, ModelConfig
    from opsd.daemon.serve.vllm_engine import VllmEngine

    class Cycle:
        def __init__(self):
            self.itself, self.pid = self, os.getpid()

        def __del__(self):
            if os.getpid() != self.pid:
                os.write(1, b"finalised in the child")

    async def main():
        engine = VllmEngine(
            ModelConfig(path=sys.argv[1], dtype="float32"),
            EngineConfig(device="cpu", kv_cache_mib=64, max_lora_rank=8),
        )
        import vllm.v1.engine.async_llm
        gc.disable()
        Cycle()
        await engine.start()
        os.kill(engine.engine_pids()[0], signal.SIGKILL)
        await engine.stop()

    asyncio.run(main())
"""


def test_starting_engine_finalises_nothing_of_the_daemons(micro_model: Path) -> None:
    """A gRPC channel among the daemon's garbage would hang the engine's start."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GARBAGE), str(micro_model)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""


DAEMON = """
    import asyncio, sys
    from opsd.daemon.config.schema import EngineConfig, ModelConfig
    from opsd.daemon.serve.vllm_engine import VllmEngine

    async def main():
        engine = VllmEngine(
            ModelConfig(path=sys.argv[1], dtype="bfloat16"),
            EngineConfig(device="cpu", kv_cache_mib=64, max_lora_rank=8),
        )
        await engine.start()
        print(engine.engine_pids()[0], flush=True)
        await asyncio.sleep(600)

    asyncio.run(main())
"""


def test_engine_dies_with_a_killed_daemon(micro_model: Path) -> None:
    """Also: a small bf16 model starts, which without AMX permission is a SIGILL."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DAEMON), str(micro_model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as daemon:
        assert daemon.stdout is not None
        engine_pid = int(daemon.stdout.readline())
        assert Path(f"/proc/{engine_pid}").exists()
        daemon.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_alive(engine_pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(engine_pid)


def is_alive(pid: int) -> bool:
    """A zombie that nobody reaps is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"
