"""A run's samples from a real vLLM, through the socket."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from students import logprobs_of, run_spec, sampled_logprobs, with_adapter, writer_of

from opsd.daemon.adapters.files import content_digest, model_fingerprint
from opsd.daemon.adapters.intake import ServedModel
from opsd.daemon.adapters.residency import Residency
from opsd.daemon.adapters.routing import Router
from opsd.daemon.app.interceptors import ErrorInterceptor
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
from opsd.trainer.errors import SamplerMismatchError
from opsd.trainer.mismatch import LogprobGap
from opsd.trainer.rollout import Rollout
from opsd.trainer.samplers.engine import EngineSampler
from opsd.v1 import support_pb2 as pb
from opsd.v1 import support_pb2_grpc as pb_grpc

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

MakeAdapter = Callable[[int], AdapterHandle]
RUN_ID = "0a1b2c3d-0000-4000-8000-000000000000"


class OneRun:
    def __init__(self, run_dir: Path) -> None:
        self.run = Run(
            RUN_ID,
            RunState.TRAINING,
            TriggerKind.OPERATOR,
            "me",
            "",
            0.0,
            0.0,
            run_dir=str(run_dir),
        )

    def get_run(self, run_id: str) -> Run:
        return self.run


@dataclass
class Supported:
    """A run's directory, and the daemon's support for it on a real engine."""

    run_dir: Path
    engine: VllmEngine
    residency: Residency
    service: RunSupportService
    address: str
    stub: pb_grpc.RunSupportServiceAsyncStub
    make_adapter: MakeAdapter

    async def load(self, seed: int) -> str:
        """Loads the random adapter of this seed as the run's student."""
        target = self.run_dir / "students" / str(seed)
        shutil.copytree(self.make_adapter(seed).path, target, dirs_exist_ok=True)
        answer = await self.stub.LoadStudent(
            pb.LoadStudentRequest(
                run_id=RUN_ID, version=seed, path=str(target), sha256=content_digest(target)
            )
        )
        return answer.adapter

    async def sample(self, adapter: str, **changes: object) -> list[pb.SampledAttempt]:
        """In the order of the prompts."""
        found = [attempt async for attempt in self.stub.SampleAttempts(request(adapter, **changes))]
        return sorted(found, key=lambda attempt: attempt.index)


def request(adapter: str, **changes: object) -> pb.SampleAttemptsRequest:
    fields = {
        "run_id": RUN_ID,
        "adapter": adapter,
        "prompts": [pb.AttemptPrompt(token_ids=ids, seed=seed) for ids, seed in PROMPTS],
        "max_new_tokens": 40,
        "temperature": 1.0,
        "top_p": 1.0,
    }
    return pb.SampleAttemptsRequest(**(fields | changes))  # type: ignore[arg-type]


PROMPTS = [([5, 6, 7], 1), ([9], 2), ([1, 2, 3, 4, 5, 6, 7, 8], (1 << 64) - 1), ([5, 6, 7], 4)]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def supported(
    engine: VllmEngine,
    make_adapter: MakeAdapter,
    micro_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Supported]:
    """One for all: the engine remembers what a name stood for, so its files may not move."""
    tmp_path = tmp_path_factory.mktemp("support")
    run_dir = tmp_path / "runs" / RUN_ID
    run_dir.mkdir(parents=True)
    availability = Availability()
    availability.set(ServingState.READY)
    residency = Residency(engine, Router())
    admission = Admission(YieldController(YieldPolicy(max_samples=64)))
    service = RunSupportService(
        runs=OneRun(run_dir),
        verifiers=VerifierPool(1, 1.0),
        engine=engine,
        readiness=availability,
        students=Students(
            residency,
            ServedModel(micro_model, model_fingerprint(micro_model), 8),
            tmp_path / "students",
        ),
        admission=admission,
    )
    residency.set_interrupt(service.interrupt)
    server = SupportServer(socket_path(tmp_path), service, [ErrorInterceptor()])
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = pb_grpc.RunSupportServiceStub(channel)
        yield Supported(
            *(run_dir, engine, residency, service, server.address),
            *(stub, make_adapter),  # type: ignore[arg-type]
        )
        await stub.ReleaseStudent(pb.ReleaseStudentRequest(run_id=RUN_ID))
    await server.stop()
    assert not residency.residents()


async def test_samples_repeat_and_name_their_adapter(supported: Supported) -> None:
    name = await supported.load(1)
    assert name.startswith("opsd-run-0a1b2c3d-")
    first = await supported.sample(name)
    again = await supported.sample(name)
    assert [list(a.token_ids) for a in first] == [list(a.token_ids) for a in again]
    assert {a.adapter for a in first} == {name}
    # Two of the prompts are the same: their seeds tell them apart.
    assert list(first[0].token_ids) != list(first[3].token_ids)
    base = await supported.sample("base")
    assert [list(a.token_ids) for a in base] != [list(a.token_ids) for a in first]


async def test_an_attempt_ends_with_its_stop_token(supported: Supported) -> None:
    free = await supported.sample("base")
    assert all(a.truncated and len(a.token_ids) == len(a.logprobs) == 40 for a in free)
    stop = free[1].token_ids[4]
    for before, after in zip(
        free, await supported.sample("base", stop_token_ids=[stop]), strict=True
    ):
        ids = list(before.token_ids)
        if stop in ids:
            assert list(after.token_ids) == ids[: ids.index(stop) + 1]
            assert not after.truncated
        else:
            assert list(after.token_ids) == ids


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.9, "top_k": 5}])
async def test_logprobs_are_the_models_own_at_temperature_one(
    supported: Supported, micro_model: Path, settings: dict[str, float]
) -> None:
    name = await supported.load(1)
    attempts = await supported.sample(name, **settings)
    network = with_adapter(micro_model, Path(supported.make_adapter(1).path))
    for (prompt, _), attempt in zip(PROMPTS, attempts, strict=True):
        rollout = Rollout(tuple(attempt.token_ids), True)
        assert logprobs_of(network, [prompt], [rollout]).tolist() == pytest.approx(
            list(attempt.logprobs), abs=1e-3
        )


async def test_an_interrupted_sample_goes_on_where_it_was(
    supported: Supported, micro_model: Path
) -> None:
    """A user arrives in the middle: every sample leaves, comes back, and is whole and true."""
    name = await supported.load(2)
    admission = supported.service._admission
    sampling = asyncio.create_task(supported.sample(name, max_new_tokens=200))
    interrupted = 0
    while not sampling.done() and interrupted < 3:
        await asyncio.sleep(0.2)
        interrupted += bool(admission._inside)
        for permit in list(admission._inside.values()):
            permit.revoke()
    await sampling
    assert interrupted
    network = with_adapter(micro_model, Path(supported.make_adapter(2).path))
    for (prompt, _), attempt in zip(PROMPTS, sampling.result(), strict=True):
        assert len(attempt.token_ids) == len(attempt.logprobs) == 200
        rollout = Rollout(tuple(attempt.token_ids), True)
        assert logprobs_of(network, [prompt], [rollout]).tolist() == pytest.approx(
            list(attempt.logprobs), abs=1e-3
        )


async def test_versions_replace_each_other(supported: Supported) -> None:
    one = await supported.load(1)
    two = await supported.load(2)
    assert one != two
    for _ in range(100):
        if [r.handle.name for r in supported.residency.residents()] == [two]:
            break
        await asyncio.sleep(0.02)
    assert [r.handle.name for r in supported.residency.residents()] == [two]
    with pytest.raises(grpc.aio.AioRpcError, match="call LoadStudent"):
        await supported.sample(one)
    # The same bytes once more: the engine has met the name, and takes it again.
    assert await supported.load(1) == one
    assert await supported.sample(one)


async def test_a_client_that_goes_away_stops_the_engines_work(supported: Supported) -> None:
    call = supported.stub.SampleAttempts(request("base", max_new_tokens=400))
    unfinished = supported.engine.num_unfinished_requests
    async with asyncio.timeout(20):
        while not unfinished():  # noqa: ASYNC110 - vLLM offers no event
            await asyncio.sleep(0.01)
        call.cancel()
        while unfinished():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_stale_student_is_noticed(
    supported: Supported, micro_model: Path, make_adapter: MakeAdapter
) -> None:
    """The trainer's own client, and the trainer's own check of what it was served."""
    spec = run_spec(micro_model, supported.run_dir)
    spec.support.address = supported.address
    paths = {seed: Path(make_adapter(seed).path) for seed in (3, 4)}
    networks = {seed: with_adapter(micro_model, path) for seed, path in paths.items()}
    prompts = [tuple(ids) for ids, _ in PROMPTS]
    sampler = EngineSampler(spec, eos_ids=frozenset({3}))
    try:
        for version, seed in ((0, 3), (1, 4)):
            await asyncio.to_thread(sampler.sync, version, writer_of(paths[seed], spec))
            rollouts = await asyncio.to_thread(
                sampler.sample, prompts, range(4), step=version, version=version
            )
            said = sampled_logprobs(rollouts)
            right = LogprobGap.of(said, logprobs_of(networks[seed], prompts, rollouts))
            right.check(1e-3, step=version)
            stale = LogprobGap.of(said, logprobs_of(networks[7 - seed], prompts, rollouts))
            with pytest.raises(SamplerMismatchError, match="a stale or foreign adapter"):
                stale.check(0.1, step=version)
    finally:
        sampler.close()


async def test_a_student_displaced_for_serving_comes_back(
    supported: Supported, micro_model: Path, make_adapter: MakeAdapter
) -> None:
    """The run's stream breaks off, its client loads the student again and has every answer."""
    spec = run_spec(micro_model, supported.run_dir, max_new_tokens=300)
    spec.support.address = supported.address
    sampler = EngineSampler(spec, eos_ids=frozenset())
    try:
        await asyncio.to_thread(sampler.sync, 0, writer_of(Path(make_adapter(5).path), spec))
        sampling = asyncio.create_task(
            asyncio.to_thread(sampler.sample, [(5, 6, 7), (9,)], [0, 1], step=0, version=0)
        )
        async with asyncio.timeout(20):
            while not supported.engine.num_unfinished_requests():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        [student] = [r.handle for r in supported.residency.residents() if r.role == "student"]
        await supported.service.interrupt(student.name)
        await supported.residency.retire(student.name)
        assert [len(rollout.token_ids) for rollout in await sampling] == [300, 300]
    finally:
        sampler.close()
