"""Deciding again from what was stored."""

from __future__ import annotations

from dataclasses import dataclass

from opsd.daemon.errors import DamagedError, NotFoundError
from opsd.daemon.gate.decision import decide
from opsd.daemon.gate.inputs import decode, digest
from opsd.daemon.gate.rules import VERSION
from opsd.daemon.store.api import Store
from opsd.daemon.store.gate import report_text
from opsd.daemon.types.gate import GateReport


@dataclass(frozen=True, slots=True)
class Replay:
    """What came out; ``replayed`` is None where the inputs could not be read."""

    identical: bool
    inputs_intact: bool
    message: str
    replayed: GateReport | None
    inputs: bytes


def replay(store: Store, key: str) -> Replay:
    """Decides the newest gate of a run or adapter again from its stored inputs. Blocks.

    Raises NotFoundError where there is no report, or none that has inputs.
    """
    report = store.get_gate(key)
    stored_text = store.get_gate_text(key)
    if not report.gate_inputs_sha256:
        raise NotFoundError(
            f"the gate of run {report.run_id} was decided before inputs were kept: there is "
            "nothing to replay"
        )
    try:
        data = store.get_gate_inputs(report.gate_inputs_sha256)
    except DamagedError as error:
        return Replay(False, False, str(error), None, b"")
    if digest(data) != report.gate_inputs_sha256:
        message = (
            f"the stored inputs are not what the report was decided from: their SHA-256 is "
            f"{digest(data)}, the report names {report.gate_inputs_sha256}"
        )
        return Replay(False, False, message, None, data)
    replayed = decide(decode(data))
    if report_text(replayed) == stored_text:
        return Replay(True, True, "", replayed, data)
    return Replay(False, True, _difference(report, replayed), replayed, data)


def _difference(stored: GateReport, replayed: GateReport) -> str:
    if stored.rules_version != VERSION:
        return (
            f"the report was decided by rules of version {stored.rules_version}, this program has "
            f"version {VERSION}: it says {replayed.verdict}, the report says {stored.verdict}"
        )
    if stored.verdict is not replayed.verdict:
        return f"the inputs give {replayed.verdict}, the stored report says {stored.verdict}"
    return "the verdict is the same, the stored report's numbers or words are not"
