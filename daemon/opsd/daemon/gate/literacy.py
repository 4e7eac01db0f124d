"""The teacher's message for a held-out item: can the adapter still read a key?"""

from __future__ import annotations

import re
from collections.abc import Mapping

from opsd.daemon.config.training import PromptTraining
from opsd.daemon.types.engine import ChatMessage
from opsd.daemon.types.pairs import SuiteItem

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


class KeyPrompt:
    """Words an item as the trainer words a problem for its teacher, with the item's solution.

    Of the configured contexts, those that only an attempt can fill are left out; where none is
    left, the solution is told. An item without a solution of its own tells its reference. The
    teacher's reasoning before its answer (``reason_first_tokens``) is left out.
    """

    def __init__(self, prompt: PromptTraining) -> None:
        self._prompt = prompt
        self._kinds = [kind for kind in prompt.contexts if kind in ("solution", "answer")]
        if not self._kinds:
            self._kinds = ["solution"]
        self._sections = {"solution": prompt.solution_section, "answer": prompt.answer_section}

    @property
    def enable_thinking(self) -> bool:
        return self._prompt.teacher_thinking

    def conditions(self) -> tuple[object, ...]:
        """All that the message depends on beside the item."""
        prompt = self._prompt
        sections = [self._sections[kind] for kind in self._kinds]
        return (prompt.system, prompt.teacher_template, prompt.teacher_thinking, *sections)

    def messages(self, item: SuiteItem) -> tuple[ChatMessage, ...]:
        values = {"solution": item.solution or item.reference, "answer": item.reference}
        sections = [_fill(self._sections[kind], values) for kind in self._kinds]
        values |= {"problem": item.prompt, "context": "\n".join(sections)}
        asked = ChatMessage("user", _fill(self._prompt.teacher_template, values))
        if not self._prompt.system:
            return (asked,)
        return (ChatMessage("system", self._prompt.system), asked)


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Replaces the named placeholders in one pass: braces in a value, and others, stay."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)
