"""An open store on either database, and rows to put into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.pairs import Pair, PairInput, PairStatus, Verdict, VerdictKind
from opsd.daemon.types.runs import Run, RunState, TriggerKind

MakePair = Callable[..., Pair]
MakeRun = Callable[..., Run]
MakeAdapter = Callable[..., Adapter]


class Clock:
    """A clock that ticks once a look."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(store_url: str, clock: Clock) -> Iterator[SqlStore]:
    opened = open_store(store_url, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def make_pair() -> MakePair:
    def make(
        content: str = "",
        *,
        id: str = "",
        status: PairStatus = PairStatus.VERIFIED,
        source: str = "",
        prompt_key: str = "",
    ) -> Pair:
        content = content or uuid4().hex
        kind = VerdictKind.PASS if status is PairStatus.VERIFIED else VerdictKind.FAIL
        return Pair(
            input=PairInput(
                id=id or str(uuid4()),
                prompt=f"prompt {content}",
                solution="Answer: 2",
                verifier="numeric",
                reference="2",
                source=source,
            ),
            status=status,
            verdict=Verdict(kind, "numeric", "2 = 2", 0.25),
            submitter="ana",
            created_unix_s=1.5,
            content_sha256=content,
            prompt_key=prompt_key or f"key {content}",
        )

    return make


@pytest.fixture
def make_run() -> MakeRun:
    def make(request_id: str = "") -> Run:
        return Run(
            id=str(uuid4()),
            state=RunState.QUEUED,
            trigger=TriggerKind.OPERATOR,
            actor="ana",
            reason="because",
            created_unix_s=1.0,
            updated_unix_s=1.0,
            request_id=request_id,
        )

    return make


@pytest.fixture
def make_adapter() -> MakeAdapter:
    def make(run_id: str = "none") -> Adapter:
        sha256 = uuid4().hex * 2
        return Adapter(
            name=f"opsd-{sha256[:16]}",
            sha256=sha256,
            lora_id=0,
            state=AdapterState.CANDIDATE,
            run_id=run_id,
            path=f"/adapters/{sha256[:16]}",
            rank=16,
            alpha=32.0,
            size_bytes=1 << 33,
            model_fingerprint="f" * 64,
            created_unix_s=1.0,
        )

    return make
