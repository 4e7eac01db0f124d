"""Ids that follow from content, so that what is sent again is known again."""

from __future__ import annotations

import json
import uuid

_PAIRS = uuid.uuid5(uuid.NAMESPACE_URL, "https://opsd/pairs")
_PROBLEMS = uuid.uuid5(uuid.NAMESPACE_URL, "https://opsd/problems")


def pair_id(prompt: str, solution: str, verifier: str, reference: str) -> str:
    """A UUID in canonical form."""
    return _of(_PAIRS, prompt, solution, verifier, reference)


def problem_id(prompt: str, verifier: str, reference: str) -> str:
    """A UUID in canonical form."""
    return _of(_PROBLEMS, prompt, verifier, reference)


def _of(namespace: uuid.UUID, *texts: str) -> str:
    return str(uuid.uuid5(namespace, json.dumps(texts, ensure_ascii=False)))
