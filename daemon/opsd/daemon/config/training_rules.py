"""What the trainer would refuse, found before a run is queued for it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from opsd.daemon.config.training import (
    ObjectiveTraining,
    PromptTraining,
    RolloutTraining,
    TrainingConfig,
)

Finding = tuple[str, str, str]
"""Key within the table ``training``, what is wrong with it, what to do."""

CONTEXT_PLACEHOLDERS = ("{context}", "{solution}", "{answer}")
MAX_ENGINE_TEMPERATURE = 2.0  # vLLM's
_GROUP_METHODS = ("sdpo", "grpo")


def findings(training: TrainingConfig) -> Iterator[Finding]:
    """Every pair of settings that do not go together."""
    optim = training.optim
    if optim.warmup_steps > optim.num_steps:
        yield (
            "optim.warmup_steps",
            f"{optim.warmup_steps} is more than optim.num_steps ({optim.num_steps})",
            "lower it",
        )
    for name, beta in (("adam_beta1", optim.adam_beta1), ("adam_beta2", optim.adam_beta2)):
        if beta == 0:
            yield f"optim.{name}", "is 0", "set it above 0, e.g. 0.9"
    yield from _objective(training.objective)
    yield from _method(training)
    yield from _rollout(training.rollout)
    yield from _prompt(training.prompt)


def pool_findings(training: TrainingConfig, num_devices: int) -> Iterator[Finding]:
    """What does not go with the pool."""
    sequences = training.optim.problems_per_step * training.rollout.rollouts_per_problem
    if sequences % num_devices:
        yield (
            "optim.problems_per_step",
            f"times rollout.rollouts_per_problem makes {sequences} sequences a step, which "
            f"pool.num_devices ({num_devices}) does not divide",
            f"make it a multiple of {num_devices}, or change pool.num_devices",
        )


def _objective(objective: ObjectiveTraining) -> Iterator[Finding]:
    if objective.divergence == "policy_gradient" and objective.top_k:
        yield (
            "objective.top_k",
            f"{objective.top_k} does not go with the policy gradient",
            "set it to 0: the policy gradient looks at the sampled token only",
        )
    for word in objective.epistemic_words:
        if word != word.strip() or not any(char.isalnum() for char in word):
            yield (
                "objective.epistemic_words",
                f"holds {word!r}",
                "name words or phrases, without space around them",
            )


def _method(training: TrainingConfig) -> Iterator[Finding]:
    method = training.objective.method
    each = training.rollout.rollouts_per_problem
    if method in _GROUP_METHODS and each < 2:
        yield (
            "rollout.rollouts_per_problem",
            f"{each} attempt leaves {method} nothing to compare it with",
            "set it to at least 2, e.g. 8",
        )
    contexts = training.prompt.contexts
    template = training.prompt.teacher_template
    if (method == "sdpo" or contexts) and "{context}" not in template:
        yield (
            "prompt.teacher_template",
            f"lacks {{context}}, where {'sdpo' if not contexts else 'prompt.contexts'} is told",
            "put it where the context belongs",
        )
    for context in ("own_trace", "feedback"):
        if context in contexts and method != "sdpo":
            yield (
                "prompt.contexts",
                f"{context} comes from verified attempts, which {method} has no use for",
                'set objective.method to "sdpo", or take it out',
            )


def _rollout(rollout: RolloutTraining) -> Iterator[Finding]:
    if rollout.sampler == "local" and rollout.max_staleness_steps:
        yield (
            "rollout.max_staleness_steps",
            f"{rollout.max_staleness_steps} does not go with the sampler local, which waits for "
            "the trainer",
            "set it to 0, or rollout.sampler to engine or pool",
        )
    if rollout.sampler != "local" and rollout.temperature > MAX_ENGINE_TEMPERATURE:
        yield (
            "rollout.temperature",
            f"{rollout.temperature:g} is hotter than an engine samples",
            f"set it to at most {MAX_ENGINE_TEMPERATURE:g}, or rollout.sampler to local",
        )


def _prompt(prompt: PromptTraining) -> Iterator[Finding]:
    for name, template in (
        ("student_template", prompt.student_template),
        ("teacher_template", prompt.teacher_template),
    ):
        if "{problem}" not in template:
            yield f"prompt.{name}", "lacks {problem}", "put it where the text belongs"
    if not any(holder in prompt.teacher_template for holder in CONTEXT_PLACEHOLDERS):
        yield (
            "prompt.teacher_template",
            f"has none of {', '.join(CONTEXT_PLACEHOLDERS)}",
            "put {context} where the solution belongs",
        )
    for holder in CONTEXT_PLACEHOLDERS:
        if holder in prompt.student_template:
            yield (
                "prompt.student_template",
                f"holds {holder}",
                "take it out: the student never sees it",
            )
    for context in ("solution", "answer", "own_trace", "feedback"):
        section = getattr(prompt, f"{context}_section")
        if f"{{{context}}}" not in section:
            yield (
                f"prompt.{context}_section",
                f"lacks {{{context}}}",
                "put it where the text belongs",
            )
    try:
        re.compile(prompt.own_trace_pattern)
    except re.error as error:
        yield (
            "prompt.own_trace_pattern",
            f"{prompt.own_trace_pattern!r} is no regular expression: {error}",
            "correct it, or leave it empty",
        )
    if len(set(prompt.contexts)) != len(prompt.contexts):
        yield "prompt.contexts", "names one twice", "name each at most once"
