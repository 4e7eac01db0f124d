"""A run's support on fakes: an engine that writes numbers, a residency that takes what comes."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest
import torch
from safetensors.torch import save_file

from opsd.daemon.adapters.files import content_digest
from opsd.daemon.adapters.intake import ServedModel
from opsd.daemon.app.interceptors import ErrorInterceptor
from opsd.daemon.errors import EngineError, NotFoundError, StateError
from opsd.daemon.support.admission import Admission
from opsd.daemon.support.server import SupportServer, socket_path
from opsd.daemon.support.service import RunSupportService
from opsd.daemon.support.students import Students
from opsd.daemon.types.engine import (
    AdapterHandle,
    EngineChunk,
    EngineHealth,
    EngineInfo,
    EngineRequest,
    FinishReason,
)
from opsd.daemon.types.pairs import Verdict, VerdictKind
from opsd.daemon.types.runs import Run, RunState, TriggerKind
from opsd.v1 import support_pb2 as pb
from opsd.v1 import support_pb2_grpc as pb_grpc

RUN_ID = "0a1b2c3d-0000-4000-8000-000000000000"
FINGERPRINT = "f" * 64


@dataclass
class CountingEngine:
    """Token n of a completion is n (counted from the first token after the prompt's last), so that
    what goes on where it stopped can be told; ``gate`` holds every chunk back."""

    info: EngineInfo = field(default_factory=lambda: EngineInfo("fake", 128, 300, 6, 8))
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[EngineRequest] = field(default_factory=list)
    running: int = 0
    healthy: bool = True
    failures: int = 0  # so many requests die after their first chunk

    async def health(self) -> EngineHealth:
        return EngineHealth(self.healthy)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        self.requests.append(request)
        self.running += 1
        assert request.prompt_ids is not None
        total = request.sampling.max_tokens
        start = request.prompt_ids[-1] + 1
        try:
            for count in range(1, total + 1):
                token = start + count - 1
                end = FinishReason.LENGTH if count == total else None
                if token in request.sampling.stop_token_ids:
                    end = FinishReason.STOP
                yield EngineChunk("", (token,), 1, count, end, logprobs=(-float(token),))
                if end is not None:
                    return
                if self.failures:
                    self.failures -= 1
                    raise EngineError("the engine's process died")
                await self.gate.wait()
        finally:
            self.running -= 1


class Slots:
    """Residency with a number of slots for students; ``interrupt`` as serving would use it."""

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots
        self.held: list[AdapterHandle] = []
        self.most_held = 0

    async def ensure(self, handle: AdapterHandle, role: str) -> None:
        assert role == "student"
        assert (Path(handle.path) / "adapter_config.json").is_file()
        if handle in self.held:
            return
        if len(self.held) >= self.slots:
            raise StateError("no slot")
        self.held.append(handle)
        self.most_held = max(self.most_held, len(self.held))

    async def retire(self, name: str) -> None:
        await asyncio.sleep(0)
        self.held = [handle for handle in self.held if handle.name != name]


class Rows:
    def __init__(self, run: Run) -> None:
        self.run = run

    def get_run(self, run_id: str) -> Run:
        if not self.run.id.startswith(run_id):
            raise NotFoundError(f"run {run_id!r} is not known")
        return self.run

    def move(self, state: RunState) -> None:
        self.run = replace(self.run, state=state)


class Ready:
    is_ready = True

    def require_ready(self) -> None:
        """It is."""


class Verifiers:
    """Passes what equals the reference; "?" cannot be judged."""

    error: Exception | None = None
    known_verifiers = ("exact", "math", "numeric")

    async def verify_many(self, requests: list[tuple[str, str, str]]) -> list[Verdict]:
        if self.error is not None:
            raise ExceptionGroup("several", [self.error])
        kinds = [
            VerdictKind.ERROR if text == "?" else VerdictKind("pass" if text == ref else "fail")
            for _, ref, text in requests
        ]
        return [Verdict(kind, "exact", f"it is {kind.value}") for kind in kinds]


class Limit:
    """A controller that allows what it is told."""

    def __init__(self) -> None:
        self.limit = 64
        self.seen: list[tuple[str, object]] = []

    def allowed(self, now_s: float) -> int:
        return self.limit

    def running(self, now_s: float, num_samples: int) -> None: ...

    def arrived(self, now_s: float, users: int) -> str:
        self.seen.append(("arrived", users))
        return "tag"

    def left(self, now_s: float, users: int) -> None:
        self.seen.append(("left", users))

    def first_token(self, now_s: float, tag: object, seconds: float) -> None:
        self.seen.append(("first", tag))

    def tokens(self, now_s: float, num_tokens: int, seconds: float) -> None:
        self.seen.append(("tokens", num_tokens))


@dataclass
class Support:
    """A run, its directory, and the daemon's side and the run's side of its support."""

    run_dir: Path
    rows: Rows
    engine: CountingEngine
    slots: Slots
    verifiers: Verifiers
    limit: Limit
    admission: Admission
    students: Students
    service: RunSupportService
    server: SupportServer
    stub: pb_grpc.RunSupportServiceAsyncStub

    def write(self, seed: int, **changes: object) -> pb.LoadStudentRequest:
        """An adapter of this seed in the run's directory, and the request to load it."""
        return load_request(write_student(self.run_dir / "students" / f"s{seed}", seed), **changes)

    async def load(self, seed: int) -> str:
        answer = await self.stub.LoadStudent(self.write(seed))
        return answer.adapter

    async def sample(self, adapter: str = "base", **changes: object) -> list[pb.SampledAttempt]:
        """In the order in which they came."""
        return [a async for a in self.stub.SampleAttempts(sample_request(adapter, **changes))]


def sample_request(adapter: str = "base", **changes: object) -> pb.SampleAttemptsRequest:
    fields: dict[str, object] = {
        "run_id": RUN_ID,
        "adapter": adapter,
        "prompts": [pb.AttemptPrompt(token_ids=[10 * i], seed=i) for i in range(1, 5)],
        "max_new_tokens": 5,
        "temperature": 1.0,
        "top_p": 1.0,
    }
    return pb.SampleAttemptsRequest(**(fields | changes))  # type: ignore[arg-type]


def load_request(written: Path, **changes: object) -> pb.LoadStudentRequest:
    fields: dict[str, object] = {
        "run_id": RUN_ID,
        "version": 1,
        "path": str(written),
        "sha256": content_digest(written),
    }
    return pb.LoadStudentRequest(**(fields | changes))  # type: ignore[arg-type]


def write_student(path: Path, seed: int) -> Path:
    """A LoRA adapter of rank 2 for the one matrix of ``served_model``."""
    path.mkdir(parents=True, exist_ok=True)
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{key}.lora_A.weight": torch.full((2, 4), float(seed)),
        f"{key}.lora_B.weight": torch.ones(4, 2),
    }
    save_file(tensors, path / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": FINGERPRINT,
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def served_model(tmp_path: Path) -> ServedModel:
    path = tmp_path / "model"
    path.mkdir()
    save_file({"model.layers.0.self_attn.q_proj.weight": torch.zeros(4, 4)}, path / "m.safetensors")
    return ServedModel(path, FINGERPRINT, max_rank=8)


@pytest.fixture
async def support(tmp_path: Path, served_model: ServedModel) -> AsyncIterator[Support]:
    run_dir = tmp_path / "runs" / RUN_ID
    run_dir.mkdir(parents=True)
    rows = Rows(
        Run(
            *(RUN_ID, RunState.TRAINING, TriggerKind.OPERATOR, "me", "", 0.0, 0.0),
            run_dir=str(run_dir),
        )
    )
    engine, slots, verifiers, limit = CountingEngine(), Slots(), Verifiers(), Limit()
    engine.gate.set()
    ticks = itertools.count()
    admission = Admission(limit, clock=lambda: float(next(ticks)))  # type: ignore[arg-type]
    students = Students(slots, served_model, tmp_path / "students")
    service = RunSupportService(
        runs=rows,
        verifiers=verifiers,  # type: ignore[arg-type]
        engine=engine,  # type: ignore[arg-type]
        readiness=Ready(),
        students=students,
        admission=admission,
        over_poll_s=0.02,
    )
    server = SupportServer(socket_path(tmp_path), service, [ErrorInterceptor()])
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = pb_grpc.RunSupportServiceStub(channel)
        yield Support(
            *(run_dir, rows, engine, slots, verifiers, limit, admission, students, service),
            *(server, stub),  # type: ignore[arg-type]
        )
    engine.gate.set()
    await server.stop()
    assert engine.running == 0
