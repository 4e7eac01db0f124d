"""From what was measured to the decision, its inputs kept."""

from __future__ import annotations

from collections.abc import Callable

from opsd.daemon.config.gate import GateConfig
from opsd.daemon.gate.decision import decide
from opsd.daemon.gate.inputs import GateInputs, encode
from opsd.daemon.gate.ports import Decide
from opsd.daemon.gate.rules import BehaviourRules, GateRules
from opsd.daemon.types.evaluation import GateContext
from opsd.daemon.types.gate import GateReport
from opsd.daemon.types.measured import SuiteMeasured

SaveInputs = Callable[[str, bytes], object]
"""Told a run's id and the canonical inputs of its gate; blocks until they are durable."""


def rules_of(config: GateConfig, *, teacher: str) -> GateRules:
    """The configured rules. ``teacher`` is ``training.objective.teacher``: an adapter that is to
    teach must be able to read a solution."""
    limits = config.margins.model_dump()
    literacy = limits.pop("literacy")
    required = literacy == "require" or (literacy == "auto" and teacher != "base")
    return GateRules(
        confidence=config.confidence,
        max_error_fraction=config.max_error_fraction,
        max_tokens=config.max_tokens,
        behaviour=BehaviourRules(**limits, literacy_required=required),
    )


def judge_by(rules: GateRules, save_inputs: SaveInputs) -> Decide:
    """The decision under these rules; what it was decided from is saved before it is told."""

    def judge(context: GateContext, suites: tuple[SuiteMeasured, ...]) -> GateReport:
        inputs = GateInputs(
            run_id=context.run_id,
            candidate=context.candidate,
            incumbent=context.incumbent,
            rules=rules,
            suites=suites,
            started_unix_s=context.started_unix_s,
            finished_unix_s=context.finished_unix_s,
        )
        report = decide(inputs)
        save_inputs(context.run_id, encode(inputs))
        return report

    return judge
