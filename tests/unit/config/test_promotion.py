"""[promotion]: steps that lead somewhere, and rules that go together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from opsd.daemon.config.promotion import CompareConfig, PromotionConfig
from opsd.daemon.types.canary import Metric


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": (0.05, 0.25)}, "the last step is 1"),
        ({"steps": (0.25, 0.05, 1.0)}, "does not grow"),
        ({"steps": (0.0, 1.0)}, "shadow_share is 0"),
        ({"steps": ()}, "at least 1 item"),
        ({"steps": (0.5, 1.5)}, "less than or equal to 1"),
        ({"approvals_required": 3}, "1 or 2"),
        ({"approvals_required": 2, "auto_promote_passes": True}, "choose one"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PromotionConfig(**fields)


def test_without_steps_there_is_no_canary_and_nothing_is_automatic() -> None:
    config = PromotionConfig()
    assert not config.wants_canary
    assert config.auto_reject_fails
    assert not config.auto_promote_passes


def test_outcomes_that_are_waited_for_must_be_proven() -> None:
    plan = PromotionConfig(steps=(0.05, 1.0), step_min_outcomes=10).plan()
    assert Metric.OUTCOME.value in plan.must_prove
    assert plan.margins["latency"] == CompareConfig().latency_margin
    assert set(plan.margins) == {metric.value for metric in Metric}
