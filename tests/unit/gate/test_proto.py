"""A report survives the way to the client and back."""

import pytest

from opsd.daemon.gate.proto import report_from_proto, report_to_proto
from opsd.daemon.types.gate import (
    CheckKind,
    CheckReport,
    GateReport,
    GateVerdict,
    StratumReport,
    SuiteReport,
    SuiteRole,
)
from opsd.v1 import admin_pb2


def report() -> GateReport:
    suites = tuple(
        SuiteReport(
            name=f"suite-{role}",
            role=role,
            n=300,
            incumbent_accuracy=0.5,
            candidate_accuracy=0.75,
            only_incumbent=1,
            only_candidate=76,
            difference=0.25,
            ci_low=0.2,
            ci_high=0.3,
            confidence=0.95,
            p_value=0.001,
            margin=0.02,
            verdict=verdict,
            explanation="50 % → 75 %",
            incumbent_tokens_mean=30.5,
            candidate_tokens_mean=20.25,
            strata=(
                StratumReport("hard", 100, 0.1, 0.8, 0.1, 0.01, 0.5, GateVerdict.PASS),
                StratumReport("easy", 100, 0.1, 0.8),
            ),
            num_errors=2,
            suite_sha256="c" * 64,
            version="2",
            sealed=True,
            alpha=0.03,
            gate_number=4,
            method="cluster",
            num_clusters=30,
            num_samples=8,
            incumbent_pass_at_k=0.9,
            candidate_pass_at_k=0.95,
        )
        for role, verdict in zip(SuiteRole, GateVerdict, strict=False)
    )
    numbers = (300, 0.5, 0.4, 0.8, 0.7, 0.9)
    checks = tuple(
        CheckReport("length", kind, "base", *numbers, low, high, verdict, "so it is")
        for kind, low, high, verdict in (
            (CheckKind.RATIO, 0.5, 2.0, GateVerdict.PASS),
            (CheckKind.DIFFERENCE, None, 0.0, GateVerdict.FAIL),
            (CheckKind.LEVEL, None, None, None),
        )
    )
    return GateReport(
        *("run", "opsd-1", "base", GateVerdict.INCONCLUSIVE, "why", suites, 1.5, 2.5),
        checks=checks,
        gate_inputs_sha256="d" * 64,
        rules_version=2,
    )


def test_round_trip_through_bytes() -> None:
    message = admin_pb2.GateReport.FromString(report_to_proto(report()).SerializeToString())
    assert report_from_proto(message) == report()


def test_every_field_of_the_message_is_filled() -> None:
    message = report_to_proto(report())
    filled = {field.name for field, _ in message.ListFields()}
    assert filled == {field.name for field in message.DESCRIPTOR.fields}
    suite = message.suites[0]
    assert {f.name for f, _ in suite.ListFields()} == {f.name for f in suite.DESCRIPTOR.fields}
    for part in (suite.strata[0], message.checks[0]):
        assert {f.name for f, _ in part.ListFields()} == {f.name for f in part.DESCRIPTOR.fields}


def test_a_report_without_verdict_is_refused() -> None:
    message = report_to_proto(report())
    message.verdict = admin_pb2.GATE_VERDICT_UNSPECIFIED
    with pytest.raises(ValueError, match="no verdict"):
        report_from_proto(message)
    message = report_to_proto(report())
    message.suites[0].role = admin_pb2.SUITE_ROLE_UNSPECIFIED
    with pytest.raises(ValueError, match="no role"):
        report_from_proto(message)
