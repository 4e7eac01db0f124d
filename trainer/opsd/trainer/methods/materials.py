"""What verified attempts give the teacher to read."""

import re

from opsd.trainer.attempts import Attempt, Outcome, Outcomes, group_of
from opsd.trainer.contexts import NO_MATERIAL, OF_ATTEMPTS, Material, kinds_of
from opsd.v1 import training_pb2

WRONG = "its answer is not right"
"""Feedback in place of one that would tell the reference answer."""


class Materials:
    """Picks an attempt's own trace and feedback.

    The trace is the first correct attempt of its group that is not this very text. The feedback is
    what the verifier said of this attempt, where it failed; of a verifier that tells the reference
    answer only that the attempt is wrong is told: the method has to do without references.

    Args:
        spec: of the run, defaults filled in.
    """

    def __init__(self, spec: training_pb2.RunSpec) -> None:
        self.are_needed = any(kind in OF_ATTEMPTS for kind in kinds_of(spec))
        self._group_size = spec.rollout.rollouts_per_problem
        pattern = spec.prompt.own_trace_pattern
        self._pattern = re.compile(pattern) if pattern else None

    def of(self, attempt: Attempt, outcomes: Outcomes) -> Material:
        """What the teacher may read about this attempt."""
        if not self.are_needed:
            return NO_MATERIAL
        group = group_of(attempt.stream, self._group_size, outcomes)
        trace = next((self.readable(o.text) for o in group if _shows(o, attempt)), "")
        return Material(own_trace=trace, feedback=_feedback(attempt))

    def readable(self, text: str) -> str:
        """A trace in the form that the model reads."""
        spoken = text.rpartition("</think>")[2].strip()
        if self._pattern is None:
            return spoken
        found = self._pattern.finditer(spoken)
        return ", ".join(m[1] if m.re.groups else m[0] for m in found)


def _shows(outcome: Outcome, attempt: Attempt) -> bool:
    """Whether there is something in it that the attempt does not say itself."""
    return (
        outcome.verdict.passed
        and not outcome.truncated
        and outcome.text.strip() != attempt.text.strip()
    )


def _feedback(attempt: Attempt) -> str:
    verdict = attempt.verdict
    if verdict is None or verdict.passed or verdict.is_error:
        return ""
    reference = attempt.pair.reference.strip()
    # As a word of its own: the reference 2 is not told by 27.
    tells = reference and re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", verdict.evidence)
    return WRONG if tells or not verdict.evidence else verdict.evidence
