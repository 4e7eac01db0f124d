"""The engine's sampler against a daemon that answers, refuses, restarts."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from opsd.trainer.adapter_io import content_digest
from opsd.trainer.errors import AdapterError, SamplerError
from opsd.trainer.rollout import Rollout
from opsd.trainer.samplers import engine
from opsd.trainer.samplers.engine import EngineSampler, engine_seed
from opsd.v1 import support_pb2 as pb
from opsd.v1 import support_pb2_grpc as pb_grpc
from opsd.v1 import training_pb2

Code = grpc.StatusCode


class Daemon(pb_grpc.RunSupportServiceServicer):
    """Answers a prompt with its own tokens; ``failures`` come before the next answers."""

    def __init__(self) -> None:
        self.loads: list[pb.LoadStudentRequest] = []
        self.samples: list[pb.SampleAttemptsRequest] = []
        self.failures: list[tuple[str, grpc.StatusCode, str]] = []  # method, code, details
        self.after = 0  # so many answers come before the failure
        self.gate = threading.Event()
        self.gate.set()
        self.says: str = ""  # another adapter's name

    def _fail(self, method: str, context: Any) -> None:
        if self.failures and self.failures[0][0] == method:
            _, code, details = self.failures.pop(0)
            context.abort(code, details)

    def VerifyAttempts(self, request: Any, context: Any) -> pb.VerifyAttemptsResponse:
        raise NotImplementedError("it samples only")

    def ReleaseStudent(self, request: Any, context: Any) -> pb.ReleaseStudentResponse:
        raise NotImplementedError("it samples only")

    def LoadStudent(self, request: pb.LoadStudentRequest, context: Any) -> pb.LoadStudentResponse:
        assert content_digest(Path(request.path)) == request.sha256
        self.loads.append(request)
        self._fail("load", context)
        self.gate.wait(10)
        return pb.LoadStudentResponse(adapter=f"student-{request.sha256[:8]}")

    def SampleAttempts(
        self, request: pb.SampleAttemptsRequest, context: Any
    ) -> Iterator[pb.SampledAttempt]:
        self.samples.append(request)
        order = list(range(len(request.prompts)))[::-1]
        for number, index in enumerate(order):
            if number == self.after:
                self._fail("sample", context)
            while not self.gate.wait(0.05):
                if not context.is_active():
                    return
            tokens = [token + 1 for token in request.prompts[index].token_ids]
            yield pb.SampledAttempt(
                index=index,
                token_ids=tokens,
                logprobs=[-0.5] * len(tokens),
                truncated=index == 0,
                adapter=self.says or request.adapter,
            )


@pytest.fixture
def daemon() -> Iterator[tuple[Daemon, str]]:
    service = Daemon()  # type: ignore[abstract]  # what a sampler calls
    server = grpc.server(ThreadPoolExecutor(8))
    pb_grpc.add_RunSupportServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    service.gate.set()
    server.stop(None).wait()


@pytest.fixture
def make(
    daemon: tuple[Daemon, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., EngineSampler]]:
    monkeypatch.setattr(engine, "_POLL_S", 0.01)
    made: list[EngineSampler] = []

    def sampler(address: str | None = None, **changes: Any) -> EngineSampler:
        spec = training_pb2.RunSpec(
            run_id="r",
            seed=5,
            output_dir=str(tmp_path),
            rollout=training_pb2.RolloutSpec(max_new_tokens=7, temperature=0.5, top_p=0.9, top_k=3),
            support=training_pb2.SupportRef(address=daemon[1] if address is None else address),
        )
        options = {"eos_ids": frozenset({9, 4}), "patience_s": 5.0}
        made.append(EngineSampler(spec, **(options | changes)))  # type: ignore[arg-type]
        return made[-1]

    yield sampler
    for one in made:
        one.close()


def writes(text: str) -> Callable[[Path], str]:
    def write(target: Path) -> str:
        target.mkdir(exist_ok=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (target / name).write_text(text)
        return content_digest(target)

    return write


PROMPTS = [(1, 2), (5,), (7, 8, 9)]
STREAMS = [0, 3, 6]


def answers(version: int) -> list[Rollout]:
    return [
        Rollout((2, 3), True, (-0.5, -0.5), version),
        Rollout((6,), False, (-0.5,), version),
        Rollout((8, 9, 10), False, (-0.5,) * 3, version),
    ]


def test_answers_come_in_the_order_of_the_prompts(make: Any, daemon: Any) -> None:
    sampler = make()
    sampler.sync(4, writes("a"))
    assert sampler.sample(PROMPTS, STREAMS, step=4, version=4) == answers(4)
    [request] = daemon[0].samples
    assert (request.run_id, request.adapter) == ("r", f"student-{daemon[0].loads[0].sha256[:8]}")
    assert (request.max_new_tokens, request.temperature) == (7, 0.5)
    assert (request.top_p, request.top_k, list(request.stop_token_ids)) == (0.9, 3, [4, 9])
    assert [prompt.seed for prompt in request.prompts] == [engine_seed(5, 4, s) for s in STREAMS]
    assert sampler.sample([], [], step=4, version=4) == []


def test_seeds_depend_on_run_step_and_stream() -> None:
    seeds = {engine_seed(*key) for key in ((5, 4, 3), (6, 4, 3), (5, 5, 3), (5, 4, 4))}
    assert len(seeds) == 4
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_the_version_asked_for_is_the_one_that_samples(make: Any, daemon: Any) -> None:
    sampler = make()
    sampler.sync(0, writes("a"))
    sampler.sync(1, writes("b"))
    for version in (0, 1):
        assert sampler.sample(PROMPTS, STREAMS, step=1, version=version) == answers(version)
    names = [request.adapter for request in daemon[0].samples]
    assert names[0] != names[1]
    assert daemon[0].loads[0].version == 0
    sampler.sync(2, writes("c"))
    with pytest.raises(SamplerError, match="no student of version 0"):
        sampler.sample(PROMPTS, STREAMS, step=1, version=0)


def test_old_students_are_deleted(make: Any, tmp_path: Path) -> None:
    sampler = make()
    for version in range(4):
        sampler.sync(version, writes(str(version)))
    names = sorted(path.name for path in (tmp_path / "students").iterdir())
    assert names == ["step-00000002", "step-00000003"]


def test_an_answer_of_another_adapter_stops_the_run(make: Any, daemon: Any) -> None:
    sampler = make()
    sampler.sync(0, writes("a"))
    daemon[0].says = "opsd-incumbent"
    with pytest.raises(SamplerError, match="sampled with opsd-incumbent, not student-"):
        sampler.sample(PROMPTS, STREAMS, step=0, version=0)


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (Code.UNAVAILABLE, "restarting"),
        (Code.ABORTED, "unloaded for an adapter that serves: call LoadStudent again"),
        (Code.NOT_FOUND, "not a loaded student: call LoadStudent (again)"),
        (Code.RESOURCE_EXHAUSTED, "no slot"),
    ],
)
@pytest.mark.parametrize("after", [0, 1])
def test_what_passes_costs_time_only(
    make: Any, daemon: Any, code: grpc.StatusCode, details: str, after: int
) -> None:
    """The student is loaded again, and only what is missing is asked for again."""
    sampler = make()
    sampler.sync(0, writes("a"))
    loads = len(daemon[0].loads)
    daemon[0].after = after
    daemon[0].failures = [("sample", code, details), ("load", Code.UNAVAILABLE, "not yet")]
    assert sampler.sample(PROMPTS, STREAMS, step=0, version=0) == answers(0)
    assert len(daemon[0].loads) > loads
    assert len(daemon[0].samples[-1].prompts) == len(PROMPTS) - after


@pytest.mark.parametrize("code", [Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT, Code.INTERNAL])
@pytest.mark.parametrize("method", ["load", "sample"])
def test_what_is_refused_is_final(make: Any, daemon: Any, code: Any, method: str) -> None:
    sampler = make()
    sampler.sync(0, writes("a"))
    daemon[0].failures = [(method, code, "the run is cancelled")]
    ask = {
        "load": lambda: sampler.sync(1, writes("b")),
        "sample": lambda: sampler.sample(PROMPTS, STREAMS, step=0, version=0),
    }
    with pytest.raises(SamplerError, match="daemon refuses: the run is cancelled"):
        ask[method]()


def test_a_daemon_that_stays_away_ends_the_run(make: Any, tmp_path: Path) -> None:
    sampler = make(address=f"unix:{tmp_path}/none.sock", patience_s=0.1)
    with pytest.raises(SamplerError, match=r"gave no sample for 0\.1 s"):
        sampler.sync(0, writes("a"))


def test_progress_is_told_while_the_student_loads(make: Any, daemon: Any) -> None:
    told: list[float] = []
    sampler = make(on_progress=lambda: told.append(time.monotonic()))
    daemon[0].gate.clear()
    threading.Timer(0.2, daemon[0].gate.set).start()
    sampler.sync(0, writes("a"))
    assert told


def test_closing_ends_a_sample_under_way(make: Any, daemon: Any) -> None:
    sampler = make()
    sampler.sync(0, writes("a"))
    daemon[0].gate.clear()
    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(sampler.sample, PROMPTS, STREAMS, step=0, version=0)
        while not daemon[0].samples:
            time.sleep(0.01)
        sampler.close()
        with pytest.raises(SamplerError, match="was closed"):
            sampling.result(10)


def test_without_a_daemon_the_fix_is_named(make: Any) -> None:
    with pytest.raises(SamplerError, match=r"support\.address is empty.* local or pool"):
        make(address="")


def test_all_ranks_learn_what_rank_0_wrote(make: Any, daemon: Any) -> None:
    told: list[str] = []

    def from_rank_0(text: str) -> str:
        told.append(text)
        return text

    writer = make(share=from_rank_0)
    writer.sync(3, writes("a"))
    reader = make(rank=1, share=lambda text: told[0])
    reader.sync(3, lambda target: pytest.fail("only rank 0 writes"))
    assert reader.sample(PROMPTS, STREAMS, step=0, version=3) == answers(3)


def test_all_ranks_fail_with_rank_0(make: Any) -> None:
    told: list[str] = []

    def broken(target: Path) -> str:
        raise AdapterError("adapter not saved: x is not finite")

    def from_rank_0(text: str) -> str:
        told.append(text)
        return text

    with pytest.raises(AdapterError, match="not finite"):
        make(share=from_rank_0).sync(0, broken)
    with pytest.raises(SamplerError, match="rank 0: adapter not saved: x is not finite"):
        make(rank=1, share=lambda text: told[0]).sync(0, broken)
