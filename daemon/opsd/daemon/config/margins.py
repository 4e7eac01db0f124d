"""How far a candidate's answers may move: the table `[gate.margins]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opsd.daemon.config.section import Fraction, Section


class MarginsConfig(Section):
    markers_loss: Fraction = Field(
        default=0.25,
        description="Share of the epistemic markers a word that may be lost; 0: not judged.",
    )
    length_loss: Fraction = Field(
        default=0.5, description="Share of the tokens an answer that may be lost; 0: not judged."
    )
    length_growth: float = Field(
        default=1.0,
        ge=0.0,
        description="Share of the tokens an answer that may come on top; 0: not judged.",
    )
    truncated_gain: Fraction = Field(
        default=0.02, description="More answers cut off than this fraction; 0: not judged."
    )
    repetition_gain: Fraction = Field(
        default=0.02, description="More repeated word 4-grams than this fraction; 0: not judged."
    )
    unformatted_gain: Fraction = Field(
        default=0.02,
        description="More answers without an answer in them than this fraction; 0: not judged.",
    )
    refusal_gain: Fraction = Field(
        default=0.02, description="More refusals than this fraction; 0: not judged."
    )
    entropy_loss: Fraction = Field(
        default=0.5, description="Share of the entropy a token that may be lost; 0: not judged."
    )
    drift_markers_loss: Fraction = Field(
        default=0.5,
        description="The same as markers_loss, since base over all promotions; 0: not judged.",
    )
    drift_length_loss: Fraction = Field(
        default=0.75,
        description="The same as length_loss, since base over all promotions; 0: not judged.",
    )
    drift_entropy_loss: Fraction = Field(
        default=0.75,
        description="The same as entropy_loss, since base over all promotions; 0: not judged.",
    )
    drift_kl_nats: float = Field(
        default=0.5,
        ge=0.0,
        description="KL of the candidate to base, nats a token of its answers; 0: not judged.",
    )
    literacy_loss: Fraction = Field(
        default=0.1,
        description="Fewer problems solved with the solution in the prompt than this fraction; "
        "0: not measured.",
    )
    literacy: Literal["auto", "require", "report"] = Field(
        default="auto",
        description="Whether literacy_loss decides; auto: where training.teacher is not base.",
    )
