"""The teacher's own attempts, to see whether it can follow what it reads."""

from collections.abc import Callable, Sequence

from opsd.trainer.attempts import attempt_texts
from opsd.trainer.data import Pair
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

    def sample(self, prompts: Sequence[tuple[int, ...]], step: int) -> list[Rollout]:
        """One answer of the teacher to each of its prompts; random numbers go by the step."""
        rollouts: list[Rollout] = []
        for start in range(0, len(prompts), _BATCH):
            batch = prompts[start : start + _BATCH]
            with self._network.teacher_network() as network:
                rollouts += sample_rollouts(
                    network,
                    batch,
                    range(_STREAMS_APART + start, _STREAMS_APART + start + len(batch)),
                    self._spec.rollout,
                    seed=self._spec.seed,
                    step=step,
                    eos_ids=self._base.eos_ids,
                    pad_id=self._base.pad_id,
                    on_token=self._on_progress,
                )
        return rollouts

    def solves(self, pairs: Sequence[Pair], support: Support, step: int) -> list[tuple[Pair, bool]]:
        """Whether the teacher solves each problem with the pair's own context, once tried."""
        made = [(pair, self._maker.teacher_ids(pair)) for pair in pairs]
        usable = [(pair, ids) for pair, ids in made if ids is not None]
        rollouts = self.sample([ids for _, ids in usable], step)
        texts = attempt_texts(self._base.tokenizer, rollouts)
        verdicts = support.verify(
            [(p.verifier, p.reference, text) for (p, _), text in zip(usable, texts, strict=True)]
        )
        return [(pair, v.passed) for (pair, _), v in zip(usable, verdicts, strict=True)]
