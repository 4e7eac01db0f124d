"""What users notice of a run that samples from the engine that serves them.

For `serve.py --beside-run`. One engine; users in a process of their own call GenerateStream with
the incumbent adapter; a run in a third process asks RunSupportService for as many samples of its
student as it can get. Rounds of the same users' load with and without the run alternate (AB BA
AB …), so that a machine that drifts treats both alike; the first pair, in which the controller
learns, does not count.

A load is a number of users who each send the next request ``pause_s`` seconds (drawn from an
exponential distribution) after the last answer ended.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import REGISTRY

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from random_adapters import LORA_RANK, write_random_adapter

from beside_rounds import METRICS, Load, Seen, comparison, completions, rate
from opsd.daemon.adapters.files import content_digest, model_fingerprint
from opsd.daemon.adapters.intake import ServedModel
from opsd.daemon.adapters.residency import Residency
from opsd.daemon.adapters.routing import Router, RoutingSnapshot
from opsd.daemon.app.interceptors import ErrorInterceptor
from opsd.daemon.config.schema import EngineConfig, ModelConfig, ServerConfig
from opsd.daemon.serve.grpc_server import GrpcServer, Registration
from opsd.daemon.serve.load import UserLoad
from opsd.daemon.serve.service import InferenceService
from opsd.daemon.serve.state import Availability, ServingState
from opsd.daemon.serve.vllm_engine import VllmEngine
from opsd.daemon.support.admission import Admission
from opsd.daemon.support.server import SupportServer, socket_path
from opsd.daemon.support.service import RunSupportService
from opsd.daemon.support.students import Students
from opsd.daemon.support.yielding import YieldController, YieldPolicy
from opsd.daemon.types.engine import AdapterHandle
from opsd.daemon.types.runs import Run, RunState, TriggerKind
from opsd.daemon.verify.pool import VerifierPool
from opsd.v1 import inference_pb2, inference_pb2_grpc, support_pb2, support_pb2_grpc

RUN_ID = "00000000-0000-4000-8000-000000000000"
_NUM_PROMPTS = 64
_ATTEMPT_TOKENS = 128
_ANSWER_TOKENS = 64
_MAX_SEQS = 64
_LINE_LIMIT = 1 << 24  # bytes; a round's times are one line


# The users' process


async def be_users(address: str) -> None:
    """A load in JSON per line of stdin, what the users saw in JSON per line of stdout."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(asdict(await use(stub, Load(**json.loads(line))))), flush=True)


async def use(stub: Any, load: Load) -> Seen:
    firsts: list[float] = []
    intervals: list[float] = []
    began = time.perf_counter()
    end = began + load.seconds
    num_tokens = 0

    async def user(number: int) -> None:
        nonlocal num_tokens
        draw = random.Random(number)
        sampling = inference_pb2.SamplingParams(
            max_tokens=_ANSWER_TOKENS, temperature=0, ignore_eos=True
        )
        if load.pause_s:
            await asyncio.sleep(draw.uniform(0, load.pause_s))
        while time.perf_counter() < end:
            prompt = f"Tom has {draw.randrange(10, 99)} apples and eats {number}."
            last = time.perf_counter()
            waiting = True
            async for chunk in stub.GenerateStream(
                inference_pb2.GenerateRequest(prompt=prompt, sampling=sampling)
            ):
                now = time.perf_counter()
                if waiting:
                    firsts.append(now - last)
                elif chunk.num_tokens:
                    intervals.append((now - last) / chunk.num_tokens)
                waiting, last = False, now
                num_tokens += chunk.num_tokens
            if load.pause_s:
                await asyncio.sleep(draw.expovariate(1 / load.pause_s))

    await asyncio.gather(*(user(number) for number in range(load.users)))
    return Seen(firsts, intervals, num_tokens, time.perf_counter() - began)


# The run's process


async def be_run(address: str, adapter: str) -> None:
    """Samples without end from the line "go" to the line "stop" of stdin; answers each."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = support_pb2_grpc.RunSupportServiceStub(channel)
        sampling: asyncio.Task[None] | None = None
        while line := await asyncio.to_thread(sys.stdin.readline):
            if sampling is not None:
                sampling.cancel()
                with suppress(asyncio.CancelledError):
                    await sampling
                sampling = None
            if line.strip() == "go":
                sampling = asyncio.create_task(sample_without_end(stub, adapter))
            print("ok", flush=True)


async def sample_without_end(stub: Any, adapter: str) -> None:
    seed = 0
    while True:
        request = support_pb2.SampleAttemptsRequest(
            run_id=RUN_ID,
            adapter=adapter,
            prompts=[
                support_pb2.AttemptPrompt(token_ids=range(5, 45), seed=seed + number)
                for number in range(_NUM_PROMPTS)
            ],
            max_new_tokens=_ATTEMPT_TOKENS,
            temperature=1.0,
            top_p=1.0,
        )
        seed += _NUM_PROMPTS
        async for _ in stub.SampleAttempts(request):
            pass


class Other:
    """One of the other processes, spoken to line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, *arguments: str) -> Other:
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, str(Path(__file__).with_name("serve.py")), *arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_LIMIT,
            )
        )

    async def ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line.encode() + b"\n")
        answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError("another process of the benchmark died; its message is above")
        return answer.decode()

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


# The daemon's process


class OneRun:
    def __init__(self, run_dir: Path) -> None:
        self._run = Run(
            *(RUN_ID, RunState.TRAINING, TriggerKind.OPERATOR, "bench", "", 0.0, 0.0),
            run_dir=str(run_dir),
        )

    def get_run(self, run_id: str) -> Run:
        return self._run


@dataclass(frozen=True, slots=True)
class Doors:
    port: int
    support_address: str
    run_dir: Path


@asynccontextmanager
async def daemon(model: str, scratch: Path) -> AsyncIterator[Doors]:
    """An engine that serves users with an adapter, and runs what they leave."""
    engine = VllmEngine(
        ModelConfig(path=model, dtype="float32"),
        EngineConfig(max_num_seqs=_MAX_SEQS, max_lora_rank=LORA_RANK, kv_cache_mib=256),
    )
    await engine.start()
    availability, router, load = Availability(), Router(), UserLoad()
    availability.set(ServingState.READY)
    residency = Residency(engine, router)
    incumbent = AdapterHandle("opsd-incumbent", 1, str(scratch / "incumbent"))
    random_adapter(Path(model), scratch / "incumbent", seed=1)
    await residency.ensure(incumbent, "incumbent")
    router.swap(RoutingSnapshot(incumbent))
    admission = Admission(YieldController(YieldPolicy(_MAX_SEQS)))
    load.observe(admission)
    run_dir = scratch / "run"
    run_dir.mkdir()
    support = SupportServer(
        socket_path(scratch),
        RunSupportService(
            runs=OneRun(run_dir),
            verifiers=VerifierPool(1, 1.0),
            engine=engine,
            readiness=availability,
            students=Students(
                residency,
                ServedModel(Path(model), model_fingerprint(Path(model)), LORA_RANK),
                scratch / "students",
            ),
            admission=admission,
        ),
        [ErrorInterceptor()],
    )
    config = ServerConfig(port=0)
    service = InferenceService(engine, router, availability, config, None, load)
    server = GrpcServer(
        config,
        [
            Registration(
                "opsd.v1.InferenceService",
                lambda s: inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, s),
            )
        ],
        availability,
    )
    await support.start()
    await server.start()
    try:
        yield Doors(server.port, support.address, run_dir)
    finally:
        await server.stop(0)
        await support.stop()
        await engine.stop()


async def measure(model: str, loads: list[Load], pairs: int) -> dict[str, Any]:
    """Rounds with and without a run; see the module."""
    with tempfile.TemporaryDirectory() as name:
        async with daemon(model, Path(name)) as doors:
            student = await load_student(doors, Path(model))
            users = await Other.start("--be-users", f"127.0.0.1:{doors.port}")
            run = await Other.start("--be-run", doors.support_address, "--adapter", student)
            try:
                alone = await run_alone(run)
                rows = [await compare(users, run, load, pairs) for load in loads]
            finally:
                await users.stop()
                await run.stop()
    return {"model": Path(model).name, "run_alone_tokens_per_s": alone, "loads": rows}


async def load_student(doors: Doors, model: Path) -> str:
    path = doors.run_dir / "student"
    random_adapter(model, path, seed=2)
    async with grpc.aio.insecure_channel(doors.support_address) as channel:
        stub: Any = support_pb2_grpc.RunSupportServiceStub(channel)
        request = support_pb2.LoadStudentRequest(
            run_id=RUN_ID, path=str(path), sha256=content_digest(path)
        )
        answer = await stub.LoadStudent(request)
        return str(answer.adapter)


async def run_alone(run: Other, seconds: float = 10.0) -> float:
    await run.ask("go")
    await asyncio.sleep(3.0)  # until as many samples run as may
    before = sampled_tokens()
    await asyncio.sleep(seconds)
    rate = (sampled_tokens() - before) / seconds
    await run.ask("stop")
    return rate


async def compare(users: Other, run: Other, load: Load, pairs: int) -> dict[str, Any]:
    alone: list[Seen] = []
    beside: list[Seen] = []
    tokens, seconds = 0.0, 0.0

    async def round_alone() -> None:
        alone.append(await one_round(users, load))

    async def round_beside() -> None:
        nonlocal tokens, seconds
        await run.ask("go")
        before, began = sampled_tokens(), time.perf_counter()
        beside.append(await one_round(users, load))
        tokens += sampled_tokens() - before
        seconds += time.perf_counter() - began
        await run.ask("stop")

    await round_alone()
    await round_beside()
    alone.clear()
    beside.clear()
    tokens = seconds = 0.0
    for pair in range(pairs):
        for one in (round_alone, round_beside) if pair % 2 else (round_beside, round_alone):
            await one()
    return {
        "load": asdict(load),
        "pairs": pairs,
        "completions": {"alone": completions(alone), "beside": completions(beside)},
        "run_tokens_per_s": tokens / seconds,
        "users_tokens_per_s": {"alone": rate(alone), "beside": rate(beside)},
        "metrics": {metric.name: comparison(metric, alone, beside) for metric in METRICS},
    }


async def one_round(users: Other, load: Load) -> Seen:
    return Seen(**json.loads(await users.ask(json.dumps(asdict(load)))))


def sampled_tokens() -> float:
    return REGISTRY.get_sample_value("opsd_run_sampler_tokens_total") or 0.0


def random_adapter(model: Path, path: Path, seed: int) -> None:
    path.mkdir()
    write_random_adapter(model, path, seed, std=0.1)
