"""Rows to protocol messages."""

from __future__ import annotations

from dataclasses import asdict

from google.protobuf import json_format

from opsd.daemon.types.adapters import Adapter, AdapterState, AuditEntry
from opsd.daemon.types.gate import GateVerdict
from opsd.daemon.types.runs import Run, RunState
from opsd.v1 import admin_pb2, training_pb2

_RUN_STATES = {state: admin_pb2.RunState.Value(f"RUN_STATE_{state.name}") for state in RunState}
_ADAPTER_STATES = {
    state: admin_pb2.AdapterState.Value(f"ADAPTER_STATE_{state.name}") for state in AdapterState
}
_VERDICTS = {
    verdict: admin_pb2.GateVerdict.Value(f"GATE_VERDICT_{verdict.name}") for verdict in GateVerdict
}


def verdict_to_proto(verdict: GateVerdict | None) -> admin_pb2.GateVerdict.ValueType:
    return admin_pb2.GATE_VERDICT_UNSPECIFIED if verdict is None else _VERDICTS[verdict]


def run_to_proto(
    run: Run, *, verdict: GateVerdict | None = None, details: bool = True
) -> admin_pb2.Run:
    """A run's message; spec, history, curve and log only with ``details``."""
    message = admin_pb2.Run(
        id=run.id,
        state=_RUN_STATES[run.state],
        trigger=run.trigger.value,
        actor=run.actor,
        reason=run.reason,
        created_unix_s=run.created_unix_s,
        updated_unix_s=run.updated_unix_s,
        num_pairs=run.num_pairs,
        step=run.step,
        num_steps=run.num_steps,
        eval_done=run.eval_done,
        eval_total=run.eval_total,
        candidate=run.candidate,
        incumbent_at_start=run.incumbent_at_start,
        error=run.error,
        gate_verdict=verdict_to_proto(verdict),
        generated_tokens=run.generated_tokens,
        run_dir=run.run_dir,
        measure_only=run.measure_only,
    )
    if run.metrics_json:
        json_format.Parse(run.metrics_json, message.metrics, ignore_unknown_fields=True)
    if run.teacher_check_json:
        json_format.Parse(run.teacher_check_json, message.teacher_check, ignore_unknown_fields=True)
    if details:
        if run.spec_json:
            spec = training_pb2.RunSpec()
            json_format.Parse(run.spec_json, spec, ignore_unknown_fields=True)
            message.spec.CopyFrom(spec)
        message.log_tail = run.log_tail
        for transition in run.history:
            message.history.add(
                state=_RUN_STATES[transition.state],
                time_unix_s=transition.time_unix_s,
                reason=transition.reason,
            )
        for point in run.curve:
            message.curve.add(**asdict(point))
    return message


def adapter_to_proto(adapter: Adapter, verdict: GateVerdict | None = None) -> admin_pb2.Adapter:
    return admin_pb2.Adapter(
        name=adapter.name,
        sha256=adapter.sha256,
        state=_ADAPTER_STATES[adapter.state],
        run_id=adapter.run_id,
        path=adapter.path,
        rank=adapter.rank,
        alpha=adapter.alpha,
        size_bytes=adapter.size_bytes,
        model_fingerprint=adapter.model_fingerprint,
        created_unix_s=adapter.created_unix_s,
        gate_verdict=verdict_to_proto(verdict),
    )


def audit_to_proto(entry: AuditEntry) -> admin_pb2.AuditEntry:
    return admin_pb2.AuditEntry(
        id=entry.id,
        time_unix_s=entry.time_unix_s,
        actor=entry.actor,
        action=entry.action,
        subject=entry.subject,
        reason=entry.reason,
        detail_json=entry.detail_json,
        prev_sha256=entry.prev_sha256,
        entry_sha256=entry.entry_sha256,
    )
