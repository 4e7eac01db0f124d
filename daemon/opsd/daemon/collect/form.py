"""Whether a pair is well formed, before anything is spent on it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from opsd.daemon.config.schema import CollectConfig
from opsd.daemon.types.pairs import PairInput

MAX_REFERENCE_BYTES = 64 << 10
MAX_LABEL_BYTES = 256
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Field:
    """Bounds of one text field."""

    name: str
    max_bytes: int
    is_required: bool


class Form:
    """Checks pairs against the configured limits."""

    def __init__(self, config: CollectConfig, known_verifiers: Sequence[str]) -> None:
        self._known_verifiers = known_verifiers
        self._fields = (
            Field("prompt", config.max_prompt_kib << 10, True),
            Field("solution", config.max_solution_kib << 10, True),
            Field("reference", MAX_REFERENCE_BYTES, True),
            Field("source", MAX_LABEL_BYTES, False),
            Field("stratum", MAX_LABEL_BYTES, False),
        )

    def mistakes(self, pair: PairInput) -> list[str]:
        """What is wrong, one sentence for each field; empty when nothing is."""
        found = [_id_mistake(pair.id), self._verifier_mistake(pair.verifier)]
        found += [_text_mistake(field, getattr(pair, field.name)) for field in self._fields]
        return [mistake for mistake in found if mistake]

    def _verifier_mistake(self, given: str) -> str:
        if given in self._known_verifiers:
            return ""
        known = ", ".join(self._known_verifiers)
        return f"verifier: {given[:64]!r} is not known; choose one of {known}"


def _id_mistake(given: str) -> str:
    try:
        canonical = str(uuid.UUID(given))
    except ValueError:
        canonical = ""
    if canonical == given and given:
        return ""
    hint = f"send {canonical}" if canonical else f"for example {uuid.uuid4()}"
    return f"id: {given[:64]!r} is not a UUID in canonical lower-case form; {hint}"


def _text_mistake(field: Field, text: str) -> str:
    unstorable = _UNSTORABLE.search(text)
    if unstorable is not None:
        return (
            f"{field.name}: character {unstorable.start()} is {unstorable[0]!r}, which is no text; "
            "remove it"
        )
    size_bytes = len(text.encode())
    if size_bytes > field.max_bytes:
        return f"{field.name}: {size_bytes} bytes, more than the {field.max_bytes} allowed"
    if field.is_required and not text.strip():
        return f"{field.name}: it is empty"
    return ""
