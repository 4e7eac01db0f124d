"""A gate report as the message that clients and the store's readers see, and back."""

from __future__ import annotations

from opsd.daemon.types.gate import (
    GateReport,
    GateVerdict,
    StratumReport,
    SuiteReport,
    SuiteRole,
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
        strata=[
            admin_pb2.StratumReport(
                stratum=stratum.stratum,
                n=stratum.n,
                incumbent_accuracy=stratum.incumbent_accuracy,
                candidate_accuracy=stratum.candidate_accuracy,
            )
            for stratum in suite.strata
        ],
        num_errors=suite.num_errors,
        suite_sha256=suite.suite_sha256,
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
        strata=tuple(
            StratumReport(
                stratum=stratum.stratum,
                n=stratum.n,
                incumbent_accuracy=stratum.incumbent_accuracy,
                candidate_accuracy=stratum.candidate_accuracy,
            )
            for stratum in message.strata
        ),
        num_errors=message.num_errors,
        suite_sha256=message.suite_sha256,
    )
