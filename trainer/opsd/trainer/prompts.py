"""Token ids of what student and teacher read, up to where the answer begins."""

from typing import Any

from opsd.trainer.contexts import NO_MATERIAL, Contexts, Material, fill, kinds_of
from opsd.trainer.data import Pair
from opsd.trainer.errors import PromptError
from opsd.v1 import training_pb2


class PromptMaker:
    """Makes prompts through the tokenizer's chat template and keeps those that can come again.

    Args:
        tokenizer: of the model, with a chat template.
        spec: prompt, objective.method and rollout.max_new_tokens are read.
        context_tokens: of the model; a prompt that leaves no room in it for what follows is not
            made.
    """

    def __init__(self, tokenizer: Any, spec: training_pb2.RunSpec, context_tokens: int) -> None:
        if not tokenizer.chat_template:
            raise PromptError("the model's tokenizer has no chat template; add chat_template.jinja")
        self._tokenizer = tokenizer
        self._spec = spec.prompt
        self._contexts = Contexts(spec.prompt, kinds_of(spec))
        self._max_prompt_tokens = context_tokens - spec.rollout.max_new_tokens
        reasoning = spec.prompt.reason_first_tokens
        self._transition: tuple[int, ...] = ()
        if reasoning:
            self._transition = self.plain_ids(spec.prompt.reason_first_transition)
        self._max_teacher_tokens = self._max_prompt_tokens - reasoning - len(self._transition)
        if min(self._max_prompt_tokens, self._max_teacher_tokens) < 1:
            raise PromptError(
                f"rollout.max_new_tokens ({spec.rollout.max_new_tokens}) and "
                f"prompt.reason_first_tokens ({reasoning}) leave no room for a prompt in the "
                f"model's context of {context_tokens} tokens; lower them"
            )
        self._student: dict[str, tuple[int, ...] | None] = {}
        self._teacher: dict[str, tuple[int, ...] | None] = {}

    @property
    def num_skipped(self) -> int:
        """Distinct problems met so far whose own prompts are too long."""
        short = self._teacher
        return sum(
            ids is None or (pair_id in short and short[pair_id] is None)
            for pair_id, ids in self._student.items()
        )

    def student_ids(self, pair: Pair) -> tuple[int, ...] | None:
        """What the student reads; None where it is too long."""
        if pair.id not in self._student:
            text = fill(self._spec.student_template, {"problem": pair.prompt})
            ids = self._ids(text, self._spec.student_thinking)
            self._student[pair.id] = ids if len(ids) <= self._max_prompt_tokens else None
        return self._student[pair.id]

    def teacher_ids(
        self, pair: Pair, material: Material = NO_MATERIAL, source: Pair | None = None
    ) -> tuple[int, ...] | None:
        """What the teacher reads; None where it is too long, or there is nothing to tell.

        Args:
            pair: the problem.
            material: of the attempt.
            source: whose solution and answer are told, for controls; by default the pair's own.
        """
        if material is not NO_MATERIAL or source is not None:
            return self._make_teacher(pair, source or pair, material)
        if pair.id not in self._teacher:
            self._teacher[pair.id] = self._make_teacher(pair, pair, material)
        return self._teacher[pair.id]

    def join_reasoning(
        self, teacher: tuple[int, ...], reasoning: tuple[int, ...]
    ) -> tuple[int, ...]:
        """The teacher's prompt with what it wrote first, ready for the attempt."""
        return (*teacher, *reasoning, *self._transition)

    def plain_ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a text without special ones."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _make_teacher(self, pair: Pair, source: Pair, material: Material) -> tuple[int, ...] | None:
        text = self._contexts.message(pair, source, material)
        if text is None:
            return None
        if self._spec.reason_first_tokens:
            text = f"{text}\n\n{self._spec.reason_first_instruction}"
        ids = self._ids(text, self._spec.teacher_thinking)
        return ids if len(ids) <= self._max_teacher_tokens else None

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
