"""Held-out suites and how they are asked: the table ``gate`` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from opsd.daemon.config.margins import MarginsConfig
from opsd.daemon.config.section import Fraction, PositiveInt, PositiveSeconds, Section
from opsd.daemon.config.training import ObjectiveTraining

SUITE_NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"

_EPISTEMIC_WORDS: tuple[str, ...] = ObjectiveTraining.model_fields["epistemic_words"].default


class SuiteConfig(Section):
    name: str = Field(pattern=SUITE_NAME, description="In reports and metrics.")
    path: str = Field(
        description="JSON lines: id, prompt, verifier, reference and, if wanted, stratum, cluster, "
        "solution."
    )
    role: Literal["target", "guard"] = Field(
        description="target must improve, guard must not regress."
    )
    margin: float = Field(
        default=0.02,
        ge=0.0,
        le=1.0,
        description="guard: the loss tolerated; target: the gain asked for (fractions).",
    )
    stratum_margin: Fraction = Field(
        default=0.0,
        description="guard: the loss tolerated in any one stratum; 0: strata are not judged.",
    )
    sealed: bool = Field(
        default=False, description="Only coarse answers, and only as many as the budget has."
    )
    budget: int = Field(
        default=0, ge=0, description="sealed: gates that may use it, until its items are fresh."
    )
    samples: int = Field(
        default=0, ge=0, le=256, description="Answers drawn for an item; 0: gate.samples."
    )
    renumbered: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Whether a problem with other numbers is the same problem; auto: unless the "
        "suite itself has several that differ only in them.",
    )

    @model_validator(mode="after")
    def _sealed_has_a_budget(self) -> SuiteConfig:
        if self.sealed and not self.budget:
            raise ValueError(
                f"suite {self.name!r} is sealed without a budget: set budget to the number of "
                "gates that may use it"
            )
        return self


class BehaviourConfig(Section):
    markers: tuple[str, ...] = Field(
        default=_EPISTEMIC_WORDS,
        description="Words and phrases of doubt, counted in every answer as whole words.",
    )
    refusals: tuple[str, ...] = Field(
        default=(
            "i can't",
            "i cannot",
            "i can not",
            "i won't",
            "i will not",
            "i'm unable to",
            "i am unable to",
            "i'm not able to",
            "i am not able to",
            "i'm sorry",
            "i am sorry",
            "sorry, but",
            "i must decline",
            "as an ai",
        ),
        description="Phrases that make an answer a refusal where they stand at its beginning.",
    )
    num_kl_items: int = Field(
        default=64,
        ge=0,
        description="Items of a suite whose answers are scored for entropy and KL to base; 0: off.",
    )
    max_scored_tokens: PositiveInt = Field(
        default=1024,
        description="Prompt and answer together; what is beyond is not scored. Scoring takes 8 "
        "bytes of the engine's memory for each token and vocabulary entry.",
    )
    num_literacy_items: int = Field(
        default=64,
        ge=0,
        description="Items of a target suite that are also asked with the reference; 0: off.",
    )


class GateConfig(Section):
    suites: tuple[SuiteConfig, ...] = Field(
        default=(), description="Held-out problems: [[gate.suites]]."
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1.0, description="Of the intervals; 1 - it is alpha."
    )
    max_tokens: PositiveInt = Field(default=1024, description="New tokens of one answer.")
    temperature: float = Field(default=0.0, ge=0.0, le=10.0, description="0 is greedy.")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="1: off; greedy needs none.")
    samples: int = Field(
        default=1, ge=1, le=256, description="Answers drawn for an item, each with its own seed."
    )
    greedy: bool = Field(
        default=False, description="A greedy answer before the samples; where temperature is not 0."
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Of the samples' draws.")
    enable_thinking: bool = Field(default=False, description="The chat template's enable_thinking.")
    measure_base: bool = Field(
        default=True, description="base answers too, so that drift since base can be seen."
    )
    concurrency: PositiveInt = Field(default=16, description="Items in the engine at once.")
    timeout_s: PositiveSeconds = Field(
        default=14400.0, description="An evaluation that takes longer fails."
    )
    max_error_fraction: Fraction = Field(
        default=0.02, description="More items without an outcome than this: inconclusive."
    )
    max_cached_answers: int = Field(
        default=1_000_000,
        ge=0,
        description="Answers kept for later gates; those unused for longest go first.",
    )
    max_cached_days: float = Field(
        default=90.0, gt=0.0, description="An answer unused for so many days is forgotten."
    )
    behaviour: BehaviourConfig = BehaviourConfig()
    margins: MarginsConfig = MarginsConfig()

    @model_validator(mode="after")
    def _samples_differ(self) -> GateConfig:
        if self.temperature > 0.0:
            return self
        for name, samples in (
            ("gate.samples:", self.samples),
            *((f"samples of suite {suite.name!r}", suite.samples) for suite in self.suites),
        ):
            if samples > 1:
                raise ValueError(
                    f"{name} is {samples}, but gate.temperature is 0: all of them would be the "
                    "greedy answer; raise the temperature"
                )
        return self
