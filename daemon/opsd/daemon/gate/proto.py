"""A gate report as the message that clients and the store's readers see, and back."""

from __future__ import annotations

from collections.abc import Sequence

from opsd.daemon.errors import StateError
from opsd.daemon.gate.multiple import spent_alpha
from opsd.daemon.gate.replay import Replay
from opsd.daemon.gate.rules import VERSION
from opsd.daemon.types.gate import (
    CheckKind,
    CheckReport,
    GateReport,
    GateVerdict,
    StratumReport,
    SuiteReport,
    SuiteRole,
    SuiteUsed,
)
from opsd.v1 import admin_pb2

_VERDICTS = {
    GateVerdict.PASS: admin_pb2.GATE_VERDICT_PASS,
    GateVerdict.FAIL: admin_pb2.GATE_VERDICT_FAIL,
    GateVerdict.INCONCLUSIVE: admin_pb2.GATE_VERDICT_INCONCLUSIVE,
}
_VERDICTS_BACK = {number: verdict for verdict, number in _VERDICTS.items()}
_ROLES = {
    SuiteRole.TARGET: admin_pb2.SUITE_ROLE_TARGET,
    SuiteRole.GUARD: admin_pb2.SUITE_ROLE_GUARD,
}
_ROLES_BACK = {number: role for role, number in _ROLES.items()}
_KINDS = {
    CheckKind.RATIO: admin_pb2.CHECK_KIND_RATIO,
    CheckKind.DIFFERENCE: admin_pb2.CHECK_KIND_DIFFERENCE,
    CheckKind.LEVEL: admin_pb2.CHECK_KIND_LEVEL,
}
_KINDS_BACK = {number: kind for kind, number in _KINDS.items()}


def report_to_proto(report: GateReport) -> admin_pb2.GateReport:
    return admin_pb2.GateReport(
        run_id=report.run_id,
        candidate=report.candidate,
        incumbent=report.incumbent,
        verdict=_VERDICTS[report.verdict],
        explanation=report.explanation,
        suites=[_suite_to_proto(suite) for suite in report.suites],
        started_unix_s=report.started_unix_s,
        finished_unix_s=report.finished_unix_s,
        checks=[_check_to_proto(check) for check in report.checks],
        gate_inputs_sha256=report.gate_inputs_sha256,
        rules_version=report.rules_version,
    )


def replay_to_proto(found: Replay, *, with_inputs: bool) -> admin_pb2.ReplayGateResponse:
    """Raises StateError when the inputs are asked for and a suite of them is sealed."""
    replayed = found.replayed
    if with_inputs and (replayed is None or any(suite.sealed for suite in replayed.suites)):
        raise StateError(
            "the inputs hold answers to a sealed suite and are not given out: replay without them"
        )
    return admin_pb2.ReplayGateResponse(
        identical=found.identical,
        inputs_intact=found.inputs_intact,
        message=found.message,
        replayed=None if replayed is None else report_to_proto(replayed),
        rules_version=VERSION,
        inputs=found.inputs if with_inputs else b"",
    )


def ledger_to_proto(used: Sequence[SuiteUsed]) -> admin_pb2.Ledger:
    return admin_pb2.Ledger(
        lines=[
            admin_pb2.LedgerLine(
                run_id=line.run_id,
                suite=line.suite,
                suite_sha256=line.suite_sha256,
                role=_ROLES[line.role],
                gate_number=line.gate_number,
                alpha=spent_alpha(line.alpha, line.gate_number)
                if line.role is SuiteRole.TARGET
                else 0.0,
                alpha_total=line.alpha,
                time_unix_s=line.time_unix_s,
            )
            for line in used
        ]
    )


def report_from_proto(message: admin_pb2.GateReport) -> GateReport:
    """ValueError for a report without verdict or a suite without role."""
    return GateReport(
        run_id=message.run_id,
        candidate=message.candidate,
        incumbent=message.incumbent,
        verdict=_verdict_from_proto(message.verdict, "the report"),
        explanation=message.explanation,
        suites=tuple(_suite_from_proto(suite) for suite in message.suites),
        started_unix_s=message.started_unix_s,
        finished_unix_s=message.finished_unix_s,
        checks=tuple(_check_from_proto(check) for check in message.checks),
        gate_inputs_sha256=message.gate_inputs_sha256,
        rules_version=message.rules_version,
    )


def _verdict_from_proto(number: admin_pb2.GateVerdict.ValueType, of: str) -> GateVerdict:
    verdict = _VERDICTS_BACK.get(number)
    if verdict is None:
        raise ValueError(f"{of} carries no verdict (number {number})")
    return verdict


def _suite_to_proto(suite: SuiteReport) -> admin_pb2.SuiteReport:
    return admin_pb2.SuiteReport(
        name=suite.name,
        role=_ROLES[suite.role],
        n=suite.n,
        incumbent_accuracy=suite.incumbent_accuracy,
        candidate_accuracy=suite.candidate_accuracy,
        only_incumbent=suite.only_incumbent,
        only_candidate=suite.only_candidate,
        difference=suite.difference,
        ci_low=suite.ci_low,
        ci_high=suite.ci_high,
        confidence=suite.confidence,
        p_value=suite.p_value,
        margin=suite.margin,
        verdict=_VERDICTS[suite.verdict],
        explanation=suite.explanation,
        incumbent_tokens_mean=suite.incumbent_tokens_mean,
        candidate_tokens_mean=suite.candidate_tokens_mean,
        strata=[_stratum_to_proto(stratum) for stratum in suite.strata],
        num_errors=suite.num_errors,
        suite_sha256=suite.suite_sha256,
        version=suite.version,
        sealed=suite.sealed,
        alpha=suite.alpha,
        gate_number=suite.gate_number,
        method=suite.method,
        num_clusters=suite.num_clusters,
        num_samples=suite.num_samples,
        incumbent_pass_at_k=suite.incumbent_pass_at_k,
        candidate_pass_at_k=suite.candidate_pass_at_k,
    )


def _suite_from_proto(message: admin_pb2.SuiteReport) -> SuiteReport:
    role = _ROLES_BACK.get(message.role)
    if role is None:
        raise ValueError(f"suite {message.name!r} carries no role (number {message.role})")
    return SuiteReport(
        name=message.name,
        role=role,
        n=message.n,
        incumbent_accuracy=message.incumbent_accuracy,
        candidate_accuracy=message.candidate_accuracy,
        only_incumbent=message.only_incumbent,
        only_candidate=message.only_candidate,
        difference=message.difference,
        ci_low=message.ci_low,
        ci_high=message.ci_high,
        confidence=message.confidence,
        p_value=message.p_value,
        margin=message.margin,
        verdict=_verdict_from_proto(message.verdict, f"suite {message.name!r}"),
        explanation=message.explanation,
        incumbent_tokens_mean=message.incumbent_tokens_mean,
        candidate_tokens_mean=message.candidate_tokens_mean,
        strata=tuple(_stratum_from_proto(stratum) for stratum in message.strata),
        num_errors=message.num_errors,
        suite_sha256=message.suite_sha256,
        version=message.version,
        sealed=message.sealed,
        alpha=message.alpha,
        gate_number=message.gate_number,
        method=message.method,
        num_clusters=message.num_clusters,
        num_samples=message.num_samples,
        incumbent_pass_at_k=message.incumbent_pass_at_k,
        candidate_pass_at_k=message.candidate_pass_at_k,
    )


def _stratum_to_proto(stratum: StratumReport) -> admin_pb2.StratumReport:
    return admin_pb2.StratumReport(
        stratum=stratum.stratum,
        n=stratum.n,
        incumbent_accuracy=stratum.incumbent_accuracy,
        candidate_accuracy=stratum.candidate_accuracy,
        margin=stratum.margin,
        p_held=stratum.p_held,
        p_harmed=stratum.p_harmed,
        verdict=_judged_to_proto(stratum.verdict),
    )


def _stratum_from_proto(message: admin_pb2.StratumReport) -> StratumReport:
    return StratumReport(
        stratum=message.stratum,
        n=message.n,
        incumbent_accuracy=message.incumbent_accuracy,
        candidate_accuracy=message.candidate_accuracy,
        margin=message.margin,
        p_held=message.p_held,
        p_harmed=message.p_harmed,
        verdict=_VERDICTS_BACK.get(message.verdict),
    )


def _judged_to_proto(verdict: GateVerdict | None) -> admin_pb2.GateVerdict.ValueType:
    return admin_pb2.GATE_VERDICT_UNSPECIFIED if verdict is None else _VERDICTS[verdict]


def _check_to_proto(check: CheckReport) -> admin_pb2.CheckReport:
    return admin_pb2.CheckReport(
        name=check.name,
        kind=_KINDS[check.kind],
        against=check.against,
        n=check.n,
        reference=check.reference,
        candidate=check.candidate,
        estimate=check.estimate,
        ci_low=check.ci_low,
        ci_high=check.ci_high,
        low=check.low,
        high=check.high,
        verdict=_judged_to_proto(check.verdict),
        explanation=check.explanation,
    )


def _check_from_proto(message: admin_pb2.CheckReport) -> CheckReport:
    kind = _KINDS_BACK.get(message.kind)
    if kind is None:
        raise ValueError(f"check {message.name!r} carries no kind (number {message.kind})")
    return CheckReport(
        name=message.name,
        kind=kind,
        against=message.against,
        n=message.n,
        reference=message.reference,
        candidate=message.candidate,
        estimate=message.estimate,
        ci_low=message.ci_low,
        ci_high=message.ci_high,
        low=message.low if message.HasField("low") else None,
        high=message.high if message.HasField("high") else None,
        verdict=_VERDICTS_BACK.get(message.verdict),
        explanation=message.explanation,
    )
