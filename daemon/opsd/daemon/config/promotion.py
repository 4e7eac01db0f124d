"""``[promotion]``: who decides about a candidate, and how it comes to serve."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from opsd.daemon.config.section import Fraction, Section
from opsd.daemon.types.canary import CanaryPlan, Metric

MetricName = Literal["outcome", "engine_error", "truncated", "latency", "length"]


class CompareConfig(Section):
    alpha: float = Field(
        default=0.05,
        gt=0.0,
        lt=0.5,
        description="Chance at most that a canary which is no worse is withdrawn, over its whole "
        "life; and for each margin, that one which is worse by more is taken to be within it.",
    )
    outcome_margin: float = Field(
        default=0.05, gt=0.0, lt=1.0, description="Tolerated rise of verified failures (fraction)."
    )
    engine_error_margin: float = Field(
        default=0.02, gt=0.0, lt=1.0, description="Tolerated rise of engine errors (fraction)."
    )
    truncated_margin: float = Field(
        default=0.05, gt=0.0, lt=1.0, description="Tolerated rise of truncated replies (fraction)."
    )
    latency_margin: float = Field(
        default=0.1,
        gt=0.0,
        lt=0.5,
        description="0.1: a canary's reply may take longer than another in up to 60 % of pairs.",
    )
    latency_factor: float = Field(
        default=1.25,
        ge=1.0,
        description="A canary's latency is divided by this first: a LoRA adapter beside base is "
        "always a little slower, and where all replies are alike it would lose every pair.",
    )
    length_margin: float = Field(
        default=0.1,
        gt=0.0,
        lt=0.5,
        description="0.1: a canary's reply may be longer than another in up to 60 % of pairs.",
    )
    length_factor: float = Field(
        default=1.1, ge=1.0, description="A canary's number of tokens is divided by this first."
    )
    must_prove: tuple[MetricName, ...] = Field(
        default=("engine_error", "truncated", "latency", "length"),
        description="What must be shown to be within its margin before a step is taken by rule.",
    )


class PromotionConfig(Section):
    approvals_required: Literal[1, 2] = Field(
        default=1,
        description="People who must approve; of two, neither may be who triggered the run.",
    )
    auto_reject_fails: bool = Field(
        default=True, description="A candidate that the gate fails is rejected at once."
    )
    auto_promote_passes: bool = Field(
        default=False, description="A candidate that the gate passes is approved by opsd itself."
    )
    approval_expires_s: float = Field(
        default=604800.0,
        ge=0.0,
        description="A candidate that nobody decides on for so long is rejected; 0: never.",
    )
    steps: Annotated[tuple[Fraction, ...], Field(min_length=1)] = Field(
        default=(1.0,),
        description="Shares of traffic that an approved adapter gets one after the other; the last "
        "is 1, a first one of 0 only mirrors.",
    )
    mode: Literal["auto", "manual"] = Field(
        default="auto", description="manual: a person takes each step; harm still withdraws."
    )
    sticky_by: Literal["caller", "request"] = Field(
        default="caller",
        description="What keeps its adapter while the share grows: the caller (x-opsd-actor), or "
        "each request for itself, e.g. where one gateway is the only caller.",
    )
    shadow_share: Fraction = Field(
        default=0.0,
        description="Share of requests that a canary also answers unseen, behind the users.",
    )
    step_min_s: float = Field(default=600.0, ge=0.0, description="Shortest step, in seconds.")
    step_min_requests: int = Field(
        default=200,
        ge=0,
        description="Fewest requests of the canary in a step (mirrored, where it gets none).",
    )
    step_min_outcomes: int = Field(
        default=0,
        ge=0,
        description="Fewest verified outcomes of the canary in a step; above 0, failures must be "
        "shown to be within their margin too.",
    )
    canary_max_s: float = Field(
        default=86400.0,
        ge=0.0,
        description="A canary that has proven too little by then is withdrawn (auto only), in "
        "seconds; 0: no limit.",
    )
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="after")
    def _steps_lead_to_all(self) -> PromotionConfig:
        if self.steps[-1] != 1.0:
            raise ValueError(
                f"promotion.steps: ends with {self.steps[-1]:g}; the last step is 1, all traffic"
            )
        if any(
            later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)
        ):
            shown = ", ".join(f"{share:g}" for share in self.steps)
            raise ValueError(
                f"promotion.steps: [{shown}] does not grow; write e.g. [0.05, 0.25, 1]"
            )
        if self.steps[0] == 0.0 and self.shadow_share == 0.0:
            raise ValueError(
                "promotion.steps: begins with 0, where the canary is only mirrored, but "
                "promotion.shadow_share is 0: set it, or take the step out"
            )
        if self.auto_promote_passes and self.approvals_required > 1:
            raise ValueError(
                "promotion.auto_promote_passes: approves without people, but "
                "promotion.approvals_required asks for two: choose one of them"
            )
        return self

    @property
    def wants_canary(self) -> bool:
        return self.steps[0] < 1.0

    def plan(self) -> CanaryPlan:
        """What a canary that begins now goes by."""
        compare = self.compare
        proofs = [Metric(name) for name in compare.must_prove]
        if self.step_min_outcomes and Metric.OUTCOME not in proofs:
            proofs.append(Metric.OUTCOME)
        return CanaryPlan(
            steps=self.steps,
            mode=self.mode,
            sticky_by=self.sticky_by,
            shadow_share=self.shadow_share,
            step_min_s=self.step_min_s,
            step_min_requests=self.step_min_requests,
            step_min_outcomes=self.step_min_outcomes,
            max_s=self.canary_max_s,
            alpha=compare.alpha,
            margins={metric.value: getattr(compare, f"{metric.value}_margin") for metric in Metric},
            must_prove=tuple(metric.value for metric in proofs),
            factors={
                Metric.LATENCY.value: compare.latency_factor,
                Metric.LENGTH.value: compare.length_factor,
            },
        )
