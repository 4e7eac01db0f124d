"""What student and teacher read: the same problem, the teacher with the solution."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from opsd.trainer.data import DrawOrder, Pair
from opsd.trainer.errors import PromptError
from opsd.v1 import training_pb2

_PLACEHOLDER = re.compile(r"\{(problem|solution)\}")


@dataclass(frozen=True, slots=True)
class PromptPair:
    """Token ids of both prompts of one problem, up to where the answer begins."""

    pair_id: str
    student_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]


def fill(template: str, *, problem: str, solution: str = "") -> str:
    """Replaces `{problem}` and `{solution}` in one pass: braces in either text stay as they are."""
    values = {"problem": problem, "solution": solution}
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


class PromptMaker:
    """Makes both prompts through the tokenizer's chat template and keeps them.

    Args:
        tokenizer: of the model, with a chat template.
        spec: templates and thinking of both roles.
        max_prompt_tokens: a problem with a longer prompt, of either role, is skipped.
    """

    def __init__(
        self, tokenizer: Any, spec: training_pb2.PromptSpec, max_prompt_tokens: int
    ) -> None:
        if not tokenizer.chat_template:
            raise PromptError("the model's tokenizer has no chat template; add chat_template.jinja")
        if max_prompt_tokens < 1:
            raise PromptError(
                "rollout.max_new_tokens leaves no room for a prompt in the model's context"
            )
        self._tokenizer = tokenizer
        self._spec = spec
        self._max_prompt_tokens = max_prompt_tokens
        self._made: dict[str, PromptPair | None] = {}

    @property
    def num_skipped(self) -> int:
        """Distinct problems met so far whose prompt is too long."""
        return sum(made is None for made in self._made.values())

    def make(self, pair: Pair) -> PromptPair | None:
        """Both prompts, or None where one of them is too long."""
        if pair.id not in self._made:
            self._made[pair.id] = self._make(pair)
        return self._made[pair.id]

    def _make(self, pair: Pair) -> PromptPair | None:
        spec = self._spec
        student = self._ids(fill(spec.student_template, problem=pair.prompt), spec.student_thinking)
        teacher = self._ids(
            fill(spec.teacher_template, problem=pair.prompt, solution=pair.solution),
            spec.teacher_thinking,
        )
        if max(len(student), len(teacher)) > self._max_prompt_tokens:
            return None
        return PromptPair(pair.id, student, teacher)

    def _ids(self, text: str, thinking: bool) -> tuple[int, ...]:
        messages = [{"role": "user", "content": text}]
        if self._spec.system:
            messages.insert(0, {"role": "system", "content": self._spec.system})
        try:
            ids = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False, enable_thinking=thinking
            )
        except Exception as error:  # a template is a program of the model's author: any error
            raise PromptError(f"the chat template failed: {error}") from error
        if not ids:
            raise PromptError("the chat template made an empty prompt")
        return tuple(ids)


class Draws:
    """Takes the next usable problems of the order, remembering how far it came."""

    def __init__(self, pairs: list[Pair], seed: int, maker: PromptMaker) -> None:
        self._num_pairs = len(pairs)
        self._order = DrawOrder(pairs, seed)
        self._maker = maker
        self.position = 0
        self._upcoming: Iterator[Pair] = self._order.from_position(0)

    def seek(self, position: int) -> None:
        """Goes on from a position that an earlier process had reached."""
        self.position = position
        self._upcoming = self._order.from_position(position)

    def take(self, count: int) -> list[PromptPair]:
        """The next `count` problems that fit; raises `PromptError` where none of the shard does."""
        taken: list[PromptPair] = []
        misses = 0
        while len(taken) < count:
            prompts = self._maker.make(next(self._upcoming))
            self.position += 1
            if prompts is not None:
                taken.append(prompts)
                misses = 0
                continue
            misses += 1
            # Two epochs' worth, since a run of draws may straddle two orders.
            if misses >= 2 * self._num_pairs:
                raise PromptError(
                    f"all {self._num_pairs} problems are too long for the model's context with "
                    "rollout.max_new_tokens; lower it or shorten the prompts"
                )
        return taken
