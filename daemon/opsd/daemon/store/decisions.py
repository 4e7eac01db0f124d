"""What an audit entry says beside who, what and why: the digests that a decision rests on.

One place adds them to every entry, from the rows that the decision's own transaction sees and from
what stays the same for as long as the daemon runs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from sqlalchemy import Connection, select

from opsd.daemon.errors import InvalidInputError
from opsd.daemon.store import tables
from opsd.daemon.types.adapters import Adapter, AuditEntry
from opsd.daemon.types.audit import AuditFacts, canonical_json, sha256_hex

FACTS: Final = "facts"
"""The key of an entry's detail under which they stand."""

SIGNED_BY: Final = "signed_by"
"""The key of an entry's detail that says whose manifest the decision has."""

_INFO: Final = "opsd"
_OF_ADAPTERS: Final = ("adapter.", "gate.")
_OF_RUNS: Final = "run."


@dataclass(frozen=True, slots=True)
class Promotion:
    """A change of what serves, in the transaction that makes it: what a manifest speaks of."""

    adapter: Adapter
    entry: AuditEntry  # its detail holds everything that is known about the decision
    canary: AuditEntry | None = None  # the entry that began the canary phase which ends here


class Witness(Protocol):
    """Who signs what is promoted."""

    @property
    def key_id(self) -> str: ...

    def attest(self, promotion: Promotion) -> None:
        """Makes the promotion's manifest durable; called before the commit.

        Whatever it raises undoes the promotion. A crash after it and before the commit leaves a
        manifest of an entry that does not exist, which nobody accepts.
        """
        ...


@dataclass(slots=True)
class Surroundings:
    """What the store is told about the daemon around it."""

    facts: AuditFacts = field(default_factory=AuditFacts)
    witness: Witness | None = None

    def attach(self, connection: Connection) -> None:
        connection.info[_INFO] = self


def surroundings(connection: Connection) -> Surroundings:
    """Of the database that the connection writes to."""
    found = connection.info.get(_INFO)
    return found if isinstance(found, Surroundings) else Surroundings()


def complete(connection: Connection, action: str, subject: str, detail_json: str) -> str:
    """The entry's detail with the facts added, as canonical JSON."""
    detail = json.loads(detail_json)
    if not isinstance(detail, dict) or FACTS in detail:
        raise InvalidInputError(f"an audit entry's detail is a JSON object without {FACTS!r}")
    known: dict[str, Any] = {
        name: value for name, value in asdict(surroundings(connection).facts).items() if value
    }
    if action.startswith(_OF_ADAPTERS):
        known |= _of_adapter(connection, subject)
        if action.startswith("adapter."):
            known |= _of_incumbent(connection)
    elif action.startswith(_OF_RUNS):
        known |= _of_run(connection, subject)
    return canonical_json({**detail, FACTS: known} if known else detail)


def _of_adapter(connection: Connection, name: str) -> dict[str, Any]:
    table = tables.adapters
    row = connection.execute(select(table).where(table.c.name == name)).mappings().one_or_none()
    if row is None:
        return {}
    facts = {"adapter_sha256": row["sha256"], "base_fingerprint": row["model_fingerprint"]}
    return facts | _of_run(connection, row["run_id"]) | _of_gate(connection, row["run_id"], name)


def _of_incumbent(connection: Connection) -> dict[str, Any]:
    """What serves once the decision is made; the entry's own detail names what served before."""
    table = tables.incumbent
    row = connection.execute(select(table.c.adapter, table.c.epoch)).mappings().one()
    return {"incumbent": row["adapter"], "epoch": row["epoch"]}


def _of_run(connection: Connection, run_id: str) -> dict[str, Any]:
    """The run, its training data and what it was made with."""
    table = tables.runs
    columns = (table.c.trigger, table.c.spec_json, table.c.same_data_as)
    row = connection.execute(select(*columns).where(table.c.id == run_id)).mappings().one_or_none()
    if row is None:
        return {}
    facts = {"run_id": run_id, "trigger": row["trigger"]}
    if row["same_data_as"]:
        facts["same_data_as"] = row["same_data_as"]
    if row["spec_json"]:
        facts["spec_sha256"] = sha256_hex(row["spec_json"])
        shard = json.loads(row["spec_json"]).get("shard", {}).get("sha256", "")
        if shard:
            facts["shard_sha256"] = shard
    return facts


def _of_gate(connection: Connection, run_id: str, candidate: str) -> dict[str, Any]:
    """The newest report about the adapter, and the digest of what the gate decided on."""
    table = tables.gate_reports
    row = (
        connection.execute(
            select(table.c.verdict, table.c.report_json)
            .where(table.c.run_id == run_id, table.c.candidate == candidate)
            .order_by(table.c.seq.desc())
            .limit(1)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        return {}
    facts = {
        "gate_verdict": row["verdict"],
        "gate_report_sha256": sha256_hex(row["report_json"]),
    }
    inputs = json.loads(row["report_json"]).get("gate_inputs_sha256", "")
    return facts | ({"gate_inputs_sha256": inputs} if inputs else {})
