"""Sums over audited attempts: which tokens took the divergence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opsd.v1.token_audit_pb2 import AuditedAttempt, AuditedToken


@dataclass(slots=True)
class Group:
    """The tokens of one text."""

    id: int
    count: int = 0
    divergence: float = 0.0  # nats, absolute values
    gap: float = 0.0  # nats, teacher's log-probability less the student's
    compared: int = 0  # tokens that had a teacher
    clipped: int = 0
    epistemic: int = 0


@dataclass(slots=True)
class Totals:
    """What attempts show together. Tokens whose divergence is not finite are counted apart."""

    attempts: int = 0
    judged: int = 0
    passed: int = 0
    tokens: int = 0
    not_finite: int = 0
    clipped: int = 0
    epistemic: int = 0
    shielded: int = 0  # of the epistemic ones
    steps: list[int] = field(default_factory=list)
    _divergence: float = 0.0
    _size: float = 0.0
    _loss: float = 0.0
    _taken: float = 0.0
    _epistemic_size: float = 0.0
    _groups: dict[tuple[str, int], Group] = field(default_factory=dict)

    def add(self, attempt: AuditedAttempt) -> None:
        self.attempts += 1
        self.judged += attempt.HasField("passed")
        self.passed += attempt.passed
        if attempt.step not in self.steps[-1:]:
            self.steps.append(attempt.step)
        for token in attempt.tokens:
            if math.isfinite(token.divergence) and math.isfinite(token.loss):
                self._add(token)
            else:
                self.not_finite += 1

    def _add(self, token: AuditedToken) -> None:
        size = abs(token.divergence)
        self.tokens += 1
        self._divergence += token.divergence
        self._loss += token.loss
        self._size += size
        self._taken += abs(token.divergence - token.loss) if token.clipped else 0.0
        self.clipped += token.clipped
        self.epistemic += token.epistemic
        self.shielded += token.epistemic and token.weight == 0
        self._epistemic_size += size if token.epistemic else 0.0
        # Ids without a text are no one token.
        group = self._groups.setdefault(
            (token.text, 0 if token.text else token.id), Group(token.id)
        )
        group.count += 1
        group.divergence += size
        group.clipped += token.clipped
        group.epistemic += token.epistemic
        gap = token.teacher_logprob - token.student_logprob
        if (token.teacher_top or token.teacher_logprob) and math.isfinite(gap):
            group.gap += gap
            group.compared += 1

    @property
    def mean_divergence(self) -> float:
        """Nats a token, before clipping."""
        return self._divergence / max(self.tokens, 1)

    @property
    def mean_loss(self) -> float:
        """Nats a token, after clipping, before weighting."""
        return self._loss / max(self.tokens, 1)

    @property
    def clipped_share(self) -> float:
        """Of the divergence, [0, 1]."""
        return min(self.part(self._taken), 1.0)

    @property
    def epistemic_share(self) -> float:
        """Of the divergence, [0, 1]."""
        return self.part(self._epistemic_size)

    def share(self, count: int) -> float:
        """Of the tokens."""
        return count / max(self.tokens, 1)

    def part(self, divergence: float) -> float:
        """Of the whole divergence."""
        return divergence / self._size if self._size else 0.0

    def greatest(self, count: int) -> list[tuple[str, Group]]:
        """The texts that took most, with what they took."""
        order = sorted(self._groups.items(), key=lambda item: -item[1].divergence)
        return [(text, group) for (text, _), group in order[:count]]
