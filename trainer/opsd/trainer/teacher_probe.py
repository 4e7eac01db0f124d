"""The teacher's own attempts, to see whether it can follow what it reads."""

from collections.abc import Callable, Sequence

from opsd.trainer.attempts import attempt_texts
from opsd.trainer.data import Pair
from opsd.trainer.distributed import Ranks
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.model import BaseModel
from opsd.trainer.prompts import PromptMaker
from opsd.trainer.rollout import Rollout, sample_rollouts
from opsd.trainer.support import Support
from opsd.v1 import training_pb2

_STREAMS_APART = 1 << 40  # from the students' streams of the same step
_BATCH = 32


class TeacherProbe:
    """Samples from the teacher as the student is sampled.

    Args:
        network: whose teacher answers.
        base: the loaded model.
        spec: of the run, defaults filled in.
        maker: of the teacher's prompts.
        on_progress: called after every token.
    """

    def __init__(
        self,
        network: StudentTeacher,
        base: BaseModel,
        spec: training_pb2.RunSpec,
        maker: PromptMaker,
        on_progress: Callable[[], None],
    ) -> None:
        self._network = network
        self._base = base
        self._spec = spec
        self._maker = maker
        self._on_progress = on_progress

    def sample(
        self, prompts: Sequence[tuple[int, ...]], streams: Sequence[int], step: int
    ) -> list[Rollout]:
        """One answer of the teacher to each of its prompts; random numbers go by the prompt's
        stream and the step, not by the rank.
        """
        rollouts: list[Rollout] = []
        for start in range(0, len(prompts), _BATCH):
            batch = prompts[start : start + _BATCH]
            of_batch = [_STREAMS_APART + s for s in streams[start : start + _BATCH]]
            with self._network.teacher_network() as network:
                rollouts += sample_rollouts(
                    network,
                    batch,
                    of_batch,
                    self._spec.rollout,
                    seed=self._spec.seed,
                    step=step,
                    eos_ids=self._base.eos_ids,
                    pad_id=self._base.pad_id,
                    on_token=self._on_progress,
                )
        return rollouts

    def solves(
        self, pairs: Sequence[Pair], support: Support, step: int, ranks: Ranks
    ) -> list[tuple[str, bool]]:
        """The ids of the pairs whose context the teacher can read, and whether it then solves the
        problem, once tried. The ranks share the pairs, and all learn the same in the same order.
        """
        made = [(number, pair, self._maker.teacher_ids(pair)) for number, pair in enumerate(pairs)]
        usable = [(number, pair, ids) for number, pair, ids in made if ids is not None]
        mine = usable[ranks.rank :: ranks.world_size]
        rollouts = self.sample([ids for *_, ids in mine], [number for number, *_ in mine], step)
        texts = attempt_texts(self._base.tokenizer, rollouts)
        verdicts = support.verify(
            [(p.verifier, p.reference, text) for (_, p, _), text in zip(mine, texts, strict=True)]
        )
        solved = [
            (number, pair.id, verdict.passed)
            for (number, pair, _), verdict in zip(mine, verdicts, strict=True)
        ]
        everyones = sorted(one for part in ranks.gather(solved) for one in part)
        return [(pair_id, passed) for _, pair_id, passed in everyones]
