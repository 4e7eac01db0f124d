"""A pair's texts made fit to be learnt from, or refused: what needs no other pair to be judged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from opsd.daemon.collect.hygiene.control_tokens import ControlTokens
from opsd.daemon.collect.hygiene.language import check_languages, detect
from opsd.daemon.collect.hygiene.limits import (
    compressed_share,
    estimated_tokens,
    is_blank,
    longest_run,
)
from opsd.daemon.config.hygiene import HygieneConfig
from opsd.daemon.types.pairs import PairInput
from opsd.daemon.types.text import normalise_prompt

_TEXTS = ("prompt", "solution", "reference")
_SHOWN_TOKENS = 5


@dataclass(frozen=True, slots=True)
class Screened:
    """``refusal`` and ``quarantine`` say why in a sentence, or are empty; ``notes`` say what was
    changed. A refused pair is to be dropped, not stored."""

    pair: PairInput
    refusal: str = ""
    quarantine: str = ""
    notes: tuple[str, ...] = ()


class Screen:
    """Deterministic: a pair that is sent again is changed in the same way again."""

    def __init__(
        self,
        config: HygieneConfig,
        special_tokens: Collection[str],
        scrub: Callable[[str], str] | None,
        find_canaries: Callable[[str], Collection[str]] = lambda text: (),
    ) -> None:
        """``special_tokens`` are those of the served model (``read_control_tokens``),
        ``find_canaries`` names the leak canaries in a text. Raises ConfigError for a language that
        is not known."""
        self._config = config
        self._find_canaries = find_canaries
        self._tokens = ControlTokens(special_tokens)
        kept = {token.casefold() for token in config.solution_control_tokens}
        self._solution_tokens = ControlTokens(
            [token for token in special_tokens if token.casefold() not in kept]
        )
        self._scrub = scrub
        if config.languages:
            check_languages(config.languages)

    def screen(self, given: PairInput) -> Screened:
        refusal = "; ".join(self._mistakes(given))
        if refusal:
            return Screened(given, refusal=refusal)
        pair, notes = given, []
        reasons = []
        found = self._control_tokens(given)
        if found:
            what = f"chat-control tokens ({', '.join(found[:_SHOWN_TOKENS])})"
            if self._config.on_control_tokens == "refuse":
                return Screened(given, refusal=f"it holds {what}: write them in another way")
            pair = self._neutralised(pair)
            notes.append(f"{what} were made plain text")
            if self._config.on_control_tokens == "quarantine":
                reasons.append(f"it held {what}")
        if self._scrub is not None:
            try:
                scrubbed = _each_text(pair, self._scrub)
            except Exception as error:
                said = f"the scrubber failed with {type(error).__name__}: {error}"
                return Screened(given, refusal=f"{said}; nothing that is not scrubbed is kept")
            if scrubbed != pair:
                # What a scrubber writes is given text like any other.
                pair = self._neutralised(scrubbed)
                notes.append("personal data was removed")
            if is_blank(pair.prompt) or is_blank(pair.solution) or is_blank(pair.reference):
                return Screened(given, refusal="nothing is left once personal data is removed")
        strange = self._language(pair.prompt)
        if strange:
            if self._config.on_language == "refuse":
                return Screened(given, refusal=strange)
            reasons.append(strange)
        return Screened(pair, quarantine="; ".join(reasons), notes=tuple(notes))

    def _mistakes(self, given: PairInput) -> Iterator[str]:
        config = self._config
        if not normalise_prompt(given.prompt):
            yield "prompt: no word, digit or operator is left once spaces and signs are put aside"
        for name in _TEXTS:
            # Learnt from, it would be what the model says, and its leak no longer a sign.
            if self._find_canaries(getattr(given, name)):
                yield (
                    f"{name}: it holds a leak canary, which stands in training data only: look for "
                    "canary_leaked in the daemon's log, or for who copies shards"
                )
        for name in ("solution", "reference"):
            if is_blank(getattr(given, name)):
                yield f"{name}: nothing in it can be seen"
        limits = (
            ("prompt", config.max_prompt_chars, config.max_prompt_tokens),
            ("solution", config.max_solution_chars, config.max_solution_tokens),
        )
        for name, max_chars, max_tokens in limits:
            text = getattr(given, name)
            if 0 < max_chars < len(text):
                yield f"{name}: {len(text)} characters, more than the {max_chars} allowed"
            elif max_tokens and (tokens := estimated_tokens(text)) > max_tokens:
                yield f"{name}: about {tokens} tokens, more than the {max_tokens} allowed"
            character, times = longest_run(text) if config.max_char_run else ("", 0)
            if times > config.max_char_run:
                yield f"{name}: {character!r} is repeated {times} times in a row"
            elif compressed_share(text) < config.min_distinct_share:
                yield f"{name}: it says the same again and again"

    def _control_tokens(self, given: PairInput) -> list[str]:
        found = dict.fromkeys(self._tokens.find(given.prompt))
        found |= dict.fromkeys(self._solution_tokens.find(given.solution))
        found |= dict.fromkeys(self._tokens.find(given.reference))
        return list(found)

    def _neutralised(self, pair: PairInput) -> PairInput:
        return replace(
            pair,
            prompt=self._tokens.neutralise(pair.prompt),
            solution=self._solution_tokens.neutralise(pair.solution),
            reference=self._tokens.neutralise(pair.reference),
        )

    def _language(self, prompt: str) -> str:
        config = self._config
        if not config.languages:
            return ""
        found = detect(prompt, min_letters=config.language_min_letters)
        if (
            found is None
            or found.confidence < config.language_confidence
            or found.language in config.languages
        ):
            return ""
        return (
            f"the prompt is in {found.language!r} (probability {found.confidence:.2f}); "
            f"collect.hygiene.languages has {', '.join(config.languages)}"
        )


def _each_text(pair: PairInput, change: Callable[[str], str]) -> PairInput:
    return replace(pair, **{name: change(getattr(pair, name)) for name in _TEXTS})
