"""What a method is."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from opsd.trainer.attempts import Attempt, Outcomes
from opsd.trainer.data import Pair
from opsd.trainer.methods.answer import Answer, StepSums


class Method(Protocol):
    """From attempts and outcomes to sequences, and from sequences to a loss."""

    @property
    def samples(self) -> bool:
        """Whether the student attempts the problems."""
        ...

    @property
    def verifies(self) -> bool:
        """Whether attempts need verdicts."""
        ...

    @property
    def has_teacher(self) -> bool:
        """Whether answers have a teacher's prompt."""
        ...

    def answers(self, attempts: Sequence[Attempt], outcomes: Outcomes) -> list[Answer]:
        """The sequences that this rank's attempts give; those without a signal are left out."""
        ...

    def demonstrations(self, pairs: Sequence[Pair]) -> list[Answer]:
        """The same where nothing is sampled."""
        ...

    def loss(self, batch: Sequence[Answer], num_sequences: int, sums: StepSums) -> Tensor:
        """The batch's part of the step's loss, a scalar with gradient; adds to `sums`.

        Args:
            batch: answers of this rank.
            num_sequences: that the step trains on, over all ranks.
            sums: its token sums are added to.
        """
        ...
