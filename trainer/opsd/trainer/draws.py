"""The next problems of a run, and how far it came."""

from collections.abc import Callable, Iterator

from opsd.trainer.curriculum import Curriculum
from opsd.trainer.data import DrawOrder, Pair
from opsd.trainer.errors import PromptError


class Draws:
    """Takes the next usable problems of the order, remembering its place.

    Args:
        pairs: of the shard.
        seed: of the run.
        curriculum: may pass over a problem.
        usable: whether a problem's prompts fit the model.
    """

    def __init__(
        self,
        pairs: list[Pair],
        seed: int,
        curriculum: Curriculum,
        usable: Callable[[Pair], bool],
    ) -> None:
        self._num_pairs = len(pairs)
        self._order = DrawOrder(pairs, seed)
        self._curriculum = curriculum
        self._usable = usable
        self.position = 0
        self._upcoming: Iterator[Pair] = self._order.from_position(0)

    @property
    def epoch(self) -> int:
        """Which pass over the shard the next draw belongs to, from 0."""
        return self.position // self._num_pairs

    def seek(self, position: int) -> None:
        """Goes on from a position that an earlier process had reached."""
        self.position = position
        self._upcoming = self._order.from_position(position)

    def take(self, count: int) -> list[Pair]:
        """The next `count` problems; raises `PromptError` where none of the shard can be used."""
        taken: list[Pair] = []
        misfits = 0
        passed_over: list[Pair] = []
        while len(taken) < count:
            epoch = self.epoch
            pair = next(self._upcoming)
            self.position += 1
            if not self._usable(pair):
                misfits += 1
                # Two epochs' worth, since a run of draws may straddle two orders.
                if misfits >= 2 * self._num_pairs:
                    raise PromptError(
                        f"all {self._num_pairs} problems are too long for the model's context with "
                        "rollout.max_new_tokens, or have nothing for the teacher to read; lower "
                        "it, or shorten the prompts"
                    )
            elif self._curriculum.accepts(pair.id, epoch):
                taken.append(pair)
                misfits, passed_over = 0, []
            else:
                passed_over.append(pair)
                if len(passed_over) >= 2 * self._num_pairs:
                    # Everything is set aside: rather that than a run that stands still.
                    taken.append(passed_over[-1])
                    passed_over = []
        return taken
