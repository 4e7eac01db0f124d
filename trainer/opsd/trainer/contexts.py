"""What the teacher reads beside the problem, and in which words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opsd.trainer.data import Pair
from opsd.v1 import training_pb2

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


METHOD_CONTEXTS: Mapping[int, tuple["training_pb2.Context.ValueType", ...]] = {
    training_pb2.METHOD_OPSD: (training_pb2.CONTEXT_SOLUTION,),
    training_pb2.METHOD_SDFT: (training_pb2.CONTEXT_SOLUTION,),
    training_pb2.METHOD_SDPO: (training_pb2.CONTEXT_OWN_TRACE, training_pb2.CONTEXT_FEEDBACK),
}
"""What `{context}` holds where the spec names nothing."""
OF_ATTEMPTS = (training_pb2.CONTEXT_OWN_TRACE, training_pb2.CONTEXT_FEEDBACK)
"""Contexts that only verified attempts can fill."""


@dataclass(frozen=True, slots=True)
class Material:
    """What an attempt adds to the pair's own texts; empty: it has none."""

    own_trace: str = ""
    feedback: str = ""


NO_MATERIAL = Material()


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replaces the named placeholders in one pass: braces in a value, and others, stay."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


class Contexts:
    """Words the teacher's message.

    Args:
        spec: templates and sections, defaults filled in.
        kinds: of `{context}`, in this order.
    """

    def __init__(
        self, spec: training_pb2.PromptSpec, kinds: Sequence["training_pb2.Context.ValueType"]
    ) -> None:
        self._template = spec.teacher_template
        self._sections = {
            training_pb2.CONTEXT_SOLUTION: spec.solution_section,
            training_pb2.CONTEXT_ANSWER: spec.answer_section,
            training_pb2.CONTEXT_OWN_TRACE: spec.own_trace_section,
            training_pb2.CONTEXT_FEEDBACK: spec.feedback_section,
        }
        self._kinds = kinds
        self._has_context = "{context}" in spec.teacher_template

    def message(self, pair: Pair, source: Pair, material: Material) -> str | None:
        """The teacher's message about `pair`, told what belongs to `source` (the same pair, but
        for a control) and to the attempt; None where there is nothing to tell."""
        values = {
            "solution": source.solution,
            "answer": source.reference,
            "own_trace": material.own_trace,
            "feedback": material.feedback,
        }
        sections = [
            fill(self._sections[kind], values)
            for kind in self._kinds
            if values[_NAMES[kind]].strip()
        ]
        if self._has_context and not sections:
            return None
        values |= {"problem": pair.prompt, "context": "\n".join(sections)}
        return fill(self._template, values)


_NAMES = {
    training_pb2.CONTEXT_SOLUTION: "solution",
    training_pb2.CONTEXT_ANSWER: "answer",
    training_pb2.CONTEXT_OWN_TRACE: "own_trace",
    training_pb2.CONTEXT_FEEDBACK: "feedback",
}


def kinds_of(spec: training_pb2.RunSpec) -> tuple["training_pb2.Context.ValueType", ...]:
    """What `{context}` holds in this run."""
    return tuple(spec.prompt.contexts) or METHOD_CONTEXTS.get(spec.objective.method, ())
