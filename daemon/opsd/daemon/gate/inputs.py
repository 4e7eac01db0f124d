"""The inputs of a decision, in one canonical form that can be stored, hashed and replayed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from opsd.daemon.gate.rules import BehaviourRules, GateRules
from opsd.daemon.types.gate import SuiteRole
from opsd.daemon.types.measured import AnswerRecord, Arm, ItemMeasured, SuiteMeasured

FORMAT = 1


@dataclass(frozen=True, slots=True)
class GateInputs:
    """Everything that the decision depends on, and nothing else."""

    run_id: str
    candidate: str
    incumbent: str
    rules: GateRules
    suites: tuple[SuiteMeasured, ...]
    started_unix_s: float
    finished_unix_s: float


def encode(inputs: GateInputs) -> bytes:
    """Canonical JSON: the same inputs always give the same bytes."""
    body = {
        "format": FORMAT,
        "run_id": inputs.run_id,
        "candidate": inputs.candidate,
        "incumbent": inputs.incumbent,
        "rules": asdict(inputs.rules),
        "suites": [_suite_out(suite) for suite in inputs.suites],
        "started_unix_s": inputs.started_unix_s,
        "finished_unix_s": inputs.finished_unix_s,
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode(data: bytes) -> GateInputs:
    """The inverse of ``encode``; raises ValueError for anything else."""
    try:
        body = json.loads(data)
        if body["format"] != FORMAT:
            raise ValueError(f"gate inputs of format {body['format']}, this version reads {FORMAT}")
        rules = dict(body["rules"])
        behaviour = BehaviourRules(**rules.pop("behaviour"))
        return GateInputs(
            run_id=body["run_id"],
            candidate=body["candidate"],
            incumbent=body["incumbent"],
            rules=GateRules(behaviour=behaviour, **rules),
            suites=tuple(_suite_in(suite) for suite in body["suites"]),
            started_unix_s=body["started_unix_s"],
            finished_unix_s=body["finished_unix_s"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"these are no gate inputs: {error!r}") from error


def digest(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


# Positional, in the order of the fields: an evaluation holds thousands of these.
_ANSWER_FIELDS = tuple(field.name for field in fields(AnswerRecord))


def _answer_out(answer: AnswerRecord) -> list[Any]:
    return [getattr(answer, name) for name in _ANSWER_FIELDS]


def _answer_in(values: list[Any]) -> AnswerRecord:
    return AnswerRecord(**dict(zip(_ANSWER_FIELDS, values, strict=True)))


def _arms_out(answers: Mapping[Arm, tuple[AnswerRecord, ...]]) -> dict[str, Any]:
    return {arm.value: [_answer_out(a) for a in given] for arm, given in answers.items()}


def _item_out(item: ItemMeasured) -> dict[str, Any]:
    return {
        "id": item.id,
        "stratum": item.stratum,
        "cluster": item.cluster,
        "answers": _arms_out(item.answers),
        "with_reference": {
            arm.value: _answer_out(answer) for arm, answer in item.with_reference.items()
        },
    }


def _item_in(body: Mapping[str, Any]) -> ItemMeasured:
    return ItemMeasured(
        id=body["id"],
        answers={
            Arm(arm): tuple(_answer_in(values) for values in given)
            for arm, given in body["answers"].items()
        },
        stratum=body["stratum"],
        cluster=body["cluster"],
        with_reference={
            Arm(arm): _answer_in(values) for arm, values in body["with_reference"].items()
        },
    )


_SUITE_PLAIN = tuple(
    field.name for field in fields(SuiteMeasured) if field.name not in ("role", "items")
)


def _suite_out(suite: SuiteMeasured) -> dict[str, Any]:
    return {name: getattr(suite, name) for name in _SUITE_PLAIN} | {
        "role": suite.role.value,
        "items": [_item_out(item) for item in suite.items],
    }


def _suite_in(body: Mapping[str, Any]) -> SuiteMeasured:
    return SuiteMeasured(
        role=SuiteRole(body["role"]),
        items=tuple(_item_in(item) for item in body["items"]),
        **{name: body[name] for name in _SUITE_PLAIN},
    )
