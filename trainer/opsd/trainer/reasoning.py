"""The teacher that first writes about its context, then judges the attempt."""

from collections.abc import Callable, Sequence

from opsd.trainer.lora import StudentTeacher
from opsd.trainer.model import BaseModel
from opsd.trainer.prompts import PromptMaker
from opsd.trainer.rollout import sample_rollouts
from opsd.v1 import training_pb2


class Reasoner:
    """Extends teachers' prompts by what the teacher writes to them, greedily.

    The reasoning is kept as the sampled token ids, without the end token, and the attempt follows
    in the same turn.

    Args:
        network: whose teacher writes.
        base: the loaded model.
        maker: joins prompt and reasoning.
        spec: of the run, defaults filled in.
        on_progress: called after every token.
    """

    def __init__(
        self,
        network: StudentTeacher,
        base: BaseModel,
        maker: PromptMaker,
        spec: training_pb2.RunSpec,
        on_progress: Callable[[], None],
    ) -> None:
        self._network = network
        self._base = base
        self._maker = maker
        self._greedy = training_pb2.RolloutSpec(
            max_new_tokens=spec.prompt.reason_first_tokens, temperature=1.0, top_p=1.0, top_k=1
        )
        self._batch = spec.optim.micro_batch_size * 4
        self._on_progress = on_progress
        # A moving teacher would write something else the next time.
        self._keeps = spec.objective.teacher != training_pb2.TEACHER_EMA
        self._made: dict[tuple[int, ...], tuple[int, ...]] = {}

    def extend(self, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Each prompt with its reasoning and the transition."""
        if not self._keeps:
            self._made.clear()
        missing = sorted({p for p in prompts if p not in self._made}, key=len)
        for start in range(0, len(missing), self._batch):
            self._write(missing[start : start + self._batch])
        return [self._maker.join_reasoning(prompt, self._made[prompt]) for prompt in prompts]

    def _write(self, prompts: Sequence[tuple[int, ...]]) -> None:
        with self._network.teacher_network() as network:
            rollouts = sample_rollouts(
                network,
                prompts,
                range(len(prompts)),
                self._greedy,
                seed=0,
                step=0,
                eos_ids=self._base.eos_ids,
                pad_id=self._base.pad_id,
                on_token=self._on_progress,
            )
        for prompt, rollout in zip(prompts, rollouts, strict=True):
            ids = rollout.token_ids if rollout.truncated else rollout.token_ids[:-1]
            self._made[prompt] = ids
