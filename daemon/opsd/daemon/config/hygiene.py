"""What keeps collected text clean: the table ``collect.hygiene`` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opsd.daemon.config.section import Fraction, PositiveInt, Section


class HygieneConfig(Section):
    max_prompt_chars: int = Field(
        default=0, ge=0, description="Longest prompt, in characters; 0: max_prompt_kib alone."
    )
    max_solution_chars: int = Field(
        default=0, ge=0, description="Longest solution, in characters; 0: max_solution_kib alone."
    )
    max_prompt_tokens: int = Field(
        default=0, ge=0, description="Longest prompt, in estimated tokens; 0: no limit."
    )
    max_solution_tokens: int = Field(
        default=0, ge=0, description="Longest solution, in estimated tokens; 0: no limit."
    )
    max_char_run: int = Field(
        default=200,
        ge=0,
        description="A letter or sign that is repeated more often in a row is junk; 0: no limit.",
    )
    min_distinct_share: Fraction = Field(
        default=0.02,
        description="Text of 2,000 characters or more that compresses to a smaller share is junk.",
    )
    languages: tuple[str, ...] = Field(
        default=(), description="ISO 639-1 codes of the languages taken; empty: all."
    )
    language_confidence: float = Field(
        default=0.8,
        gt=0.0,
        le=1.0,
        description="A text is in another language only if it is so likely to be.",
    )
    language_min_letters: PositiveInt = Field(
        default=60, description="A text with fewer letters in words passes in every language."
    )
    on_language: Literal["refuse", "quarantine"] = Field(
        default="quarantine", description="What becomes of a pair in another language."
    )
    on_control_tokens: Literal["neutralise", "quarantine", "refuse"] = Field(
        default="neutralise",
        description="What becomes of a pair with chat-control tokens; neutralised they are in "
        "every case.",
    )
    solution_control_tokens: tuple[str, ...] = Field(
        default=(), description="Control tokens that may stay in a solution, e.g. <think>."
    )
    scrubber: str = Field(
        default="",
        description="Removes personal data: builtin, the name of an entry point in opsd.scrubbers, "
        "or module:function; empty: off.",
    )
    canary_fraction: Fraction = Field(
        default=0.0, description="Share of pairs whose solution carries a leak canary."
    )
