"""What comes in and what stays: the table ``collect`` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opsd.daemon.config.hygiene import HygieneConfig
from opsd.daemon.config.section import Fraction, PositiveInt, PositiveSeconds, Section
from opsd.daemon.config.sources import HarvestConfig, SelfConsistencyConfig, SelfPlayConfig


class QuotaConfig(Section):
    pairs_per_day: int = Field(
        default=0, ge=0, description="Pairs that one submitter may store in a day (UTC); 0: any."
    )
    mib_per_day: float = Field(
        default=0.0,
        ge=0.0,
        description="MiB of prompts, solutions and references, likewise; 0: any.",
    )
    pairs_stored: int = Field(
        default=0, ge=0, description="Pairs of one submitter in the store at a time; 0: any."
    )
    exempt: tuple[str, ...] = Field(
        default=(), description="Submitters without a quota, beside the daemon itself."
    )


class RetentionConfig(Section):
    verified_days: float = Field(
        default=0.0, ge=0.0, description="Verified pairs older than this are removed; 0: kept."
    )
    unverified_days: float = Field(
        default=0.0, ge=0.0, description="The same for pairs that failed verification."
    )
    quarantined_days: float = Field(
        default=0.0, ge=0.0, description="The same for pairs in quarantine."
    )
    attempts_days: float = Field(
        default=0.0, ge=0.0, description="The same for attempts and the feedback on them."
    )
    trained: Literal["keep", "erase"] = Field(
        default="keep",
        description="Pairs that a run was trained on: keep them, or erase their content.",
    )
    sweep_every_s: PositiveSeconds = Field(
        default=3600.0, description="How often what is too old is looked for, in seconds."
    )


class CollectConfig(Section):
    verifier_processes: PositiveInt = Field(default=1, description="Processes that verify pairs.")
    verifier_timeout_s: PositiveSeconds = Field(
        default=10.0,
        description="A verification that takes longer is killed; its verdict is error.",
    )
    max_prompt_kib: PositiveInt = Field(
        default=64, description="Longest prompt of a pair, in KiB of UTF-8."
    )
    max_solution_kib: PositiveInt = Field(
        default=256, description="Longest solution of a pair, in KiB of UTF-8."
    )
    near_duplicates: Literal["same_solution", "same_answer", "off"] = Field(
        default="same_solution",
        description="A pair with nearly the prompt of another is a duplicate when the answer and "
        "the solution are the same too, or when the answer is.",
    )
    max_submitter_share: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="Share of a run's pairs that may come from one submitter; 1: no cap.",
    )
    max_self_made_share: Fraction = Field(
        default=0.25,
        description="Share of a run's pairs whose answers the model voted for itself "
        "(self_consistency, self_play).",
    )
    hygiene: HygieneConfig = HygieneConfig()
    quota: QuotaConfig = QuotaConfig()
    harvest: HarvestConfig = HarvestConfig()
    self_consistency: SelfConsistencyConfig = SelfConsistencyConfig()
    self_play: SelfPlayConfig = SelfPlayConfig()
    retention: RetentionConfig = RetentionConfig()
