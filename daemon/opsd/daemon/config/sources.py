"""Pairs that the model makes itself: tables below ``collect``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from opsd.daemon.config.section import Fraction, PositiveInt, PositiveSeconds, Section


class OwnSamplesConfig(Section):
    """What every source that samples the incumbent is told."""

    enabled: bool = Field(default=False, description="Whether this source works.")
    max_tokens: PositiveInt = Field(default=1024, description="New tokens of one sample.")
    temperature: float = Field(default=1.0, gt=0.0, le=2.0, description="Of the samples.")
    top_p: float = Field(default=0.95, gt=0.0, le=1.0, description="Of the samples.")
    enable_thinking: bool = Field(default=False, description="The chat template's enable_thinking.")
    problems_at_once: PositiveInt = Field(
        default=4, description="Problems under way; users' load decides how many samples run."
    )
    sample_timeout_s: PositiveSeconds = Field(
        default=3600.0, description="A round of samples on one problem that takes longer is redone."
    )
    max_tries: PositiveInt = Field(
        default=2, description="Rounds without a pair after which a problem is given up."
    )
    retry_after_s: float = Field(
        default=3600.0, ge=0.0, description="Until the next round, doubled after each."
    )


class HarvestConfig(OwnSamplesConfig):
    samples: PositiveInt = Field(default=4, description="Attempts at a problem in one round.")
    keep: Literal["shortest", "first"] = Field(
        default="shortest", description="Which of the verified attempts becomes the solution."
    )
    daily_quota: PositiveInt = Field(default=10_000, description="Pairs in 24 hours, at most.")


class AgreementConfig(OwnSamplesConfig):
    """A majority among samples stands for the answer that nobody knows."""

    samples: int = Field(default=16, ge=3, le=1024, description="Samples of a problem in a round.")
    confidence: float = Field(
        default=0.95,
        gt=0.5,
        lt=1.0,
        description="That the majority is more frequent than the runner-up.",
    )
    margin: Fraction = Field(
        default=0.5,
        description="Lead of the majority over the runner-up, as a share of all samples, at least.",
    )


class SelfConsistencyConfig(AgreementConfig):
    daily_quota: PositiveInt = Field(default=500, description="Pairs in 24 hours, at most.")


DEFAULT_TEMPLATE = """\
Here is a problem:

{problem}

Write one new problem of the same kind and difficulty that has exactly one answer.
Change what it is about and its numbers.
Write only the problem, between <problem> and </problem>."""


class SelfPlayConfig(AgreementConfig):
    daily_quota: PositiveInt = Field(default=100, description="Pairs in 24 hours, at most.")
    max_tries: PositiveInt = Field(
        default=1, description="Rounds without a pair after which a problem is given up."
    )
    idle_after_s: PositiveSeconds = Field(
        default=60.0, description="It begins when no user has asked for so long."
    )
    proposals: PositiveInt = Field(
        default=2, description="Variants that are asked for of one solved problem."
    )
    template: str = Field(
        default=DEFAULT_TEMPLATE,
        description="What the model is asked for a variant; {problem} is the solved one.",
    )
    max_similarity: Fraction = Field(
        default=0.9,
        description="Share of words in common with the solved problem; more is refused as a copy.",
    )
    max_problem_chars: PositiveInt = Field(default=4000, description="Longest variant.")

    @field_validator("template")
    @classmethod
    def _has_a_place_for_the_problem(cls, template: str) -> str:
        if template.count("{problem}") != 1:
            raise ValueError("must hold {problem} exactly once")
        return template
