"""Enum values of the contracts as words."""

from __future__ import annotations

from opsd.daemon.cli.output import enum_word
from opsd.v1 import admin_pb2 as admin
from opsd.v1 import collection_pb2 as collection
from opsd.v1 import gate_pb2 as gate
from opsd.v1 import inference_pb2 as inference


def run_state(value: admin.RunState.ValueType) -> str:
    return enum_word(admin.RunState.Name(value), "RUN_STATE_")


def adapter_state(value: admin.AdapterState.ValueType) -> str:
    return enum_word(admin.AdapterState.Name(value), "ADAPTER_STATE_")


def serving_state(value: admin.ServingState.ValueType) -> str:
    return enum_word(admin.ServingState.Name(value), "SERVING_STATE_") or "unknown"


def verdict(value: admin.GateVerdict.ValueType) -> str:
    return enum_word(admin.GateVerdict.Name(value), "GATE_VERDICT_")


def suite_role(value: admin.SuiteRole.ValueType) -> str:
    return enum_word(admin.SuiteRole.Name(value), "SUITE_ROLE_")


def suite_state(value: gate.SuiteState.ValueType) -> str:
    return enum_word(gate.SuiteState.Name(value), "SUITE_STATE_")


def pair_status(value: collection.PairStatus.ValueType) -> str:
    return enum_word(collection.PairStatus.Name(value), "PAIR_STATUS_")


def pair_verdict(value: collection.VerdictKind.ValueType) -> str:
    return enum_word(collection.VerdictKind.Name(value), "VERDICT_KIND_")


def finish_reason(value: inference.FinishReason.ValueType) -> str:
    return enum_word(inference.FinishReason.Name(value), "FINISH_REASON_")


def problem_state(value: collection.ProblemState.ValueType) -> str:
    return enum_word(collection.ProblemState.Name(value), "PROBLEM_STATE_")


def problem_result(value: collection.ProblemResultKind.ValueType) -> str:
    return enum_word(collection.ProblemResultKind.Name(value), "PROBLEM_RESULT_KIND_")


def attempt_outcome(value: collection.AttemptOutcomeKind.ValueType) -> str:
    return enum_word(collection.AttemptOutcomeKind.Name(value), "ATTEMPT_OUTCOME_KIND_")
