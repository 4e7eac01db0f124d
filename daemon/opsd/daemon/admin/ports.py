"""What the operators' door asks of the parts behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from opsd.daemon.types.runs import Run, TriggerKind
from opsd.v1 import admin_pb2, training_pb2


class RunControl(Protocol):
    """The runs' controller."""

    async def trigger(
        self,
        kind: TriggerKind,
        *,
        actor: str,
        reason: str,
        overrides_json: str = "{}",
        source: str = "",
        request_id: str = "",
        same_data_as: str = "",
        measure_only: bool = False,
    ) -> Run: ...

    async def plan(
        self, *, overrides_json: str = "{}", source: str = "", same_data_as: str = ""
    ) -> training_pb2.RunSpec: ...

    async def cancel(self, run_id: str, *, actor: str, reason: str) -> Run: ...

    def watch(self, run_id: str) -> AsyncIterator[Run]: ...


class StatusSource(Protocol):
    """Fills in what only the running process knows."""

    def fill(self, status: admin_pb2.Status) -> None:
        """serving, uptime, version, model, loaded adapters, requests in flight, message."""
