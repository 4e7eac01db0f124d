"""Which problems teach at the moment: solve rates, and what they mean for drawing.

A problem that the student always solves gives no gradient worth its tokens, and one that the
teacher cannot solve even with its context teaches errors. Both are set aside for some passes and
then looked at again with a clean slate. Between them the share of draws follows 4 p (1 - p) of the
solve rate p, which is greatest where attempts differ most, with a floor so that nothing is lost.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from opsd.trainer.data import Pair
from opsd.v1 import training_pb2

_FLOOR = 0.25
_PRIOR = 0.5  # pseudo-counts of a pass and of a fail: one attempt is no proof


@dataclass(slots=True)
class Record:
    """Counts for one problem since it was last set aside."""

    attempts: int = 0
    solved: int = 0
    teacher_attempts: int = 0
    teacher_solved: int = 0
    aside_until_epoch: int = 0

    @property
    def rate(self) -> float:
        """Smoothed solve rate, inside (0, 1)."""
        return (self.solved + _PRIOR) / (self.attempts + 2 * _PRIOR)


class Curriculum:
    """Solve rates of a run's problems, begun with those that earlier runs left.

    Every rank holds the same: it learns of all ranks' outcomes in the same order.

    Args:
        spec: defaults filled in.
        pairs: of the shard.
        seed: of the run.
    """

    def __init__(self, spec: training_pb2.CurriculumSpec, pairs: Iterable[Pair], seed: int) -> None:
        self._spec = spec
        self._seed = seed
        self._records = {p.id: Record(attempts=p.attempts, solved=p.solved) for p in pairs}
        self._new: dict[str, list[int]] = {}

    @property
    def enabled(self) -> bool:
        """Whether drawing follows it; counts are kept in any case."""
        return self._spec.enabled

    def accepts(self, pair_id: str, epoch: int) -> bool:
        """Whether the problem is drawn when its turn comes in this pass over the shard."""
        if not self._spec.enabled:
            return True
        record = self._records[pair_id]
        if epoch < record.aside_until_epoch:
            return False
        if record.attempts < self._spec.min_attempts:
            return True
        chance = max(4 * record.rate * (1 - record.rate), _FLOOR)
        return _uniform(f"{self._seed}:{epoch}:{pair_id}:accept") < chance

    def record(self, pair_id: str, solved: bool, epoch: int) -> None:
        """Counts an attempt of the student, made in this pass."""
        record = self._records[pair_id]
        record.attempts += 1
        record.solved += solved
        new = self._new.setdefault(pair_id, [0, 0])
        new[0] += 1
        new[1] += solved
        enough = record.attempts >= self._spec.min_attempts
        if enough and record.solved >= self._spec.too_easy * record.attempts:
            self._set_aside(pair_id, epoch)

    def needs_teacher(self, pair_id: str) -> bool:
        """Whether nobody has solved it yet, so that the teacher should show that it can."""
        record = self._records[pair_id]
        return (
            self._spec.enabled
            and record.solved == 0
            and record.attempts >= self._spec.min_attempts
            and record.teacher_attempts < self._spec.min_attempts
        )

    def record_teacher(self, pair_id: str, solved: bool, epoch: int) -> None:
        """Counts an attempt of the teacher with its context."""
        record = self._records[pair_id]
        record.teacher_attempts += 1
        record.teacher_solved += solved
        floor = self._spec.teacher_floor * record.teacher_attempts
        if record.teacher_attempts >= self._spec.min_attempts and record.teacher_solved < max(
            floor, 1
        ):
            self._set_aside(pair_id, epoch)

    def num_aside(self, epoch: int) -> int:
        """Problems that this pass does not draw."""
        return sum(epoch < record.aside_until_epoch for record in self._records.values())

    def new_counts(self) -> dict[str, tuple[int, int]]:
        """(attempts, solved) that this run added, for the problems it met."""
        return {pair_id: (counts[0], counts[1]) for pair_id, counts in sorted(self._new.items())}

    def state(self) -> dict[str, Any]:
        """For the checkpoint, JSON."""
        return {
            "records": {pair_id: asdict(record) for pair_id, record in self._records.items()},
            "new": self._new,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._records = {pair_id: Record(**record) for pair_id, record in state["records"].items()}
        self._new = {pair_id: list(counts) for pair_id, counts in state["new"].items()}

    def _set_aside(self, pair_id: str, epoch: int) -> None:
        self._records[pair_id] = Record(aside_until_epoch=epoch + 1 + self._spec.revisit_epochs)


def _uniform(key: str) -> float:
    """In [0, 1), from the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little") / 2**56
