"""Verifiers that compare in a worker, by the place of their code."""

from __future__ import annotations

import importlib
from typing import Any

from opsd.daemon.verify.protocol import Check

BUILTIN = {
    "choice": "opsd.daemon.verify.choices:CHOICE",
    "exact": "opsd.daemon.verify.checks:EXACT",
    "json": "opsd.daemon.verify.documents:JSON",
    "math": "opsd.daemon.verify.mathematics:MATH",
    "numeric": "opsd.daemon.verify.checks:NUMERIC",
    "regex": "opsd.daemon.verify.patterns:REGEX",
}
PYTHON_REFERENCE = {"python": "opsd.daemon.verify.code:PYTHON"}
"""Code runs in sandboxes, but what its tests look like a worker can tell."""


def load(target: str) -> Check:
    """The Check that ``module:attribute`` names. Raises whatever importing it raises, and TypeError
    for what is no Check."""
    module, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    if isinstance(found, type):
        found = found()
    for method in ("check", "check_reference"):
        if not callable(getattr(found, method, None)):
            raise TypeError(f"{target} has no method {method}")
    check: Check = found
    return check
