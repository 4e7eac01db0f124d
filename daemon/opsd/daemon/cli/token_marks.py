"""How strongly, and which way, a token was pulled: as a style, as marks, as a number."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opsd.v1.token_audit_pb2 import AuditedToken

LEGEND_LEVELS: Final = (0.02, 0.1, 0.5, 2.0)
"""Nats of divergence from which a token has one more sign, or a deeper colour."""
_LEAST_MARKED: Final = 2
# Black or white on a background of its own: readable on dark and light terminals alike.
_INKS: Final = {
    1: ("", *(f"black on color({number})" for number in (195, 153, 75)), "white on color(19)"),
    -1: ("", *(f"black on color({number})" for number in (224, 217, 209)), "white on color(124)"),
    0: ("", *(f"black on color({number})" for number in (230, 229, 221, 214))),
}


class Sort(StrEnum):
    DIVERGENCE = "divergence"  # before clipping
    LOSS = "loss"  # after clipping
    GAP = "gap"  # between the two log-probabilities
    ENTROPY = "entropy"  # the student's
    POSITION = "position"


@dataclass(frozen=True, slots=True)
class Pull:
    """What shows of a token."""

    sign: int  # 1: the teacher wants it more, -1: less, 0: there is no teacher
    level: int  # 0 to len(LEGEND_LEVELS)
    clipped: bool = False
    epistemic: bool = False
    shielded: bool = False

    @classmethod
    def of(cls, token: AuditedToken) -> Pull:
        """Of a token as the trainer wrote it."""
        sign = 0
        if token.teacher_top or token.teacher_logprob:
            sign = 1 if token.teacher_logprob >= token.student_logprob else -1
        level = bisect_right(LEGEND_LEVELS, sized(token, Sort.DIVERGENCE))
        return cls(sign, level, token.clipped, token.epistemic, token.weight == 0)

    def words(self) -> list[str]:
        """For a table's cell."""
        names = {"clipped": self.clipped, "doubt": self.epistemic, "shielded": self.shielded}
        direction = {1: ["more"], -1: ["less"], 0: []}[self.sign]
        return direction + [name for name, holds in names.items() if holds]


def sized(token: AuditedToken, sort: Sort) -> float:
    """What tokens are ordered by; below every number where it is none."""
    value = {
        Sort.DIVERGENCE: token.divergence,
        Sort.LOSS: token.loss,
        Sort.GAP: token.teacher_logprob - token.student_logprob,
        Sort.ENTROPY: token.student_entropy,
        Sort.POSITION: 0.0,
    }[sort]
    return -1.0 if math.isnan(value) else abs(value)


def styled(pull: Pull) -> str:
    """A rich style."""
    parts = [_INKS[pull.sign][pull.level]]
    parts += ["underline"] if pull.clipped else []
    parts += ["bold italic"] if pull.epistemic else []
    parts += ["strike"] if pull.shielded else []
    return " ".join(part for part in parts if part)


def marked(text: str, pull: Pull) -> str:
    """The same without colour: `[--_|token]`; what was pulled little stays as it is."""
    signs = {1: "+", -1: "-", 0: "~"}[pull.sign] * pull.level
    marks = signs if pull.level >= _LEAST_MARKED else ""
    marks += "_" if pull.clipped else ""
    marks += "?" if pull.epistemic else ""
    marks += "0" if pull.shielded else ""
    return f"[{marks}|{text}]" if marks else text


def quoted(text: str, id: int) -> str:
    """A token in a table: in quotes, white space escaped; without a text its id."""
    if not text:
        return f"#{id}"
    shown = (
        text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    )
    return f'"{shown}"'
