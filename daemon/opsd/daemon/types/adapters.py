"""Adapters, the incumbent and the audit log."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from opsd.daemon.types.engine import BASE, AdapterHandle


class AdapterState(StrEnum):
    CANDIDATE = "candidate"  # under evaluation, or waiting for a person
    CANARY = "canary"
    INCUMBENT = "incumbent"
    PREVIOUS = "previous"  # one rollback away
    RETIRED = "retired"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's row; immutable but for its state."""

    name: str  # opsd-<first 16 hexadecimal digits of sha256>
    sha256: str
    lora_id: int  # positive, growing, never reused
    state: AdapterState
    run_id: str
    path: str
    rank: int
    alpha: float
    size_bytes: int
    model_fingerprint: str
    created_unix_s: float

    def handle(self) -> AdapterHandle:
        return AdapterHandle(
            name=self.name, lora_id=self.lora_id, path=self.path, sha256=self.sha256
        )


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The one row that says what serves. ``epoch`` grows by one at every change."""

    adapter: str = BASE
    previous: str = ""  # "": there is nothing to roll back to
    epoch: int = 0
    canary: str = ""
    canary_share: float = 0.0
    changed_unix_s: float = 0.0
    actor: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the audit log; ``opsd.daemon.types.audit`` says what its hash covers."""

    id: int
    time_unix_s: float
    actor: str
    action: str
    subject: str
    reason: str
    detail_json: str = "{}"
    prev_sha256: str = ""  # the entry's before
    entry_sha256: str = ""
