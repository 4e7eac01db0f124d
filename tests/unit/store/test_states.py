"""Whatever operators do in whatever order, the rows agree with each other."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from opsd.daemon.errors import ConcurrentChangeError, StateError
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.engine import BASE

INDEX = st.integers(0, 3)


class Promotions(RuleBasedStateMachine):
    """Random operators on four adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.store = open_store(f"sqlite:///{self.directory / 'opsd.db'}")
        self.changes = 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    @initialize()
    def add(self) -> None:
        self.names = []
        for _ in range(4):
            digest = uuid4().hex * 2
            adapter = Adapter(
                f"opsd-{digest[:16]}",
                digest,
                0,
                AdapterState.CANDIDATE,
                "-",
                "/",
                8,
                8.0,
                1,
                "f",
                1.0,
            )
            self.names.append(self.store.add_adapter(adapter).name)

    @rule(index=INDEX, stale=st.booleans())
    def promote(self, index: int, stale: bool) -> None:
        epoch = self.store.get_incumbent().epoch - stale
        self._try(
            lambda: self.store.promote(
                self.names[index], expected_epoch=epoch, actor="a", reason="r"
            ),
            stale,
        )

    @rule(index=INDEX)
    def canary(self, index: int) -> None:
        epoch = self.store.get_incumbent().epoch
        self._try(
            lambda: self.store.start_canary(
                self.names[index], share=0.5, expected_epoch=epoch, actor="a", reason="r"
            )
        )

    @rule()
    def rollback(self) -> None:
        epoch = self.store.get_incumbent().epoch
        self._try(lambda: self.store.rollback(expected_epoch=epoch, actor="a", reason="r"))

    @rule(index=INDEX)
    def reject(self, index: int) -> None:
        with suppress(StateError):
            self.store.reject(self.names[index], actor="a", reason="r")

    def _try(self, call: object, stale: bool = False) -> None:
        try:
            call()  # type: ignore[operator]
        except (StateError, ConcurrentChangeError):
            return
        assert not stale
        self.changes += 1

    @invariant()
    def rows_agree(self) -> None:
        row = self.store.get_incumbent()
        assert row.epoch == self.changes
        states = {adapter.name: adapter.state for adapter in self.store.list_adapters()}
        for role, name in (
            (AdapterState.INCUMBENT, row.adapter),
            (AdapterState.PREVIOUS, row.previous),
            (AdapterState.CANARY, row.canary),
        ):
            expected = {name} - {BASE, ""}
            assert {key for key, state in states.items() if state is role} == expected
        actions = Counter(entry.action for entry in self.store.list_audit(limit=1000).items)
        assert sum(actions.values()) - actions["adapter.reject"] == self.changes


TestPromotions = Promotions.TestCase
TestPromotions.settings = settings(max_examples=10, stateful_step_count=20, deadline=None)
