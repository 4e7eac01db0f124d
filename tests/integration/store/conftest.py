"""PostgreSQL, and what one puts into a store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from uuid import uuid4

import pytest

from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.pairs import Pair, PairInput, PairStatus, Verdict, VerdictKind


class Server(Protocol):
    def empty_database(self) -> str: ...


@pytest.fixture
def postgres_url(postgres: Server) -> str:
    return postgres.empty_database()


@pytest.fixture
def make_pair() -> Callable[[str], Pair]:
    def make(content: str) -> Pair:
        return Pair(
            PairInput(str(uuid4()), content, "Answer: 2", "numeric", "2"),
            PairStatus.VERIFIED,
            Verdict(VerdictKind.PASS, "numeric", ""),
            "ana",
            1.0,
            content,
            content,
        )

    return make


@pytest.fixture
def make_adapter() -> Callable[[], Adapter]:
    def make() -> Adapter:
        digest = uuid4().hex * 2
        state = AdapterState.CANDIDATE
        return Adapter(f"opsd-{digest[:16]}", digest, 0, state, "-", "/", 8, 8.0, 1, "f", 1.0)

    return make
