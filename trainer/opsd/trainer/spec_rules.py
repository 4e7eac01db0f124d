"""Which values of a spec go together."""

import re

from opsd.trainer.contexts import OF_ATTEMPTS
from opsd.trainer.spec_fields import above_zero, require, value
from opsd.v1 import training_pb2

TOLD = ("{context}", "{solution}", "{answer}")
"""Placeholders of what only the teacher reads."""
_GROUPS = (training_pb2.METHOD_SDPO, training_pb2.METHOD_GRPO)
_VERIFIED = (*_GROUPS, training_pb2.METHOD_STAR)
_TEACHERS = (training_pb2.METHOD_OPSD, training_pb2.METHOD_SDPO, training_pb2.METHOD_SDFT)


def check_objective(spec: training_pb2.RunSpec) -> None:
    """Divergence, clip, teacher, words of doubt."""
    objective = spec.objective
    for name, kind in (
        ("objective.divergence", training_pb2.Divergence),
        ("objective.clip_mode", training_pb2.ClipMode),
        ("objective.teacher", training_pb2.Teacher),
        ("objective.method", training_pb2.Method),
    ):
        require(spec, name, value(spec, name) in kind.values(), "is not a known value")
    require(
        spec,
        "objective.jsd_beta",
        objective.divergence != training_pb2.DIVERGENCE_JSD or 0 < objective.jsd_beta < 1,
        "must lie inside (0, 1) for DIVERGENCE_JSD",
    )
    require(
        spec,
        "objective.top_k",
        objective.divergence != training_pb2.DIVERGENCE_POLICY_GRADIENT or objective.top_k == 0,
        "must be 0 for DIVERGENCE_POLICY_GRADIENT, which looks at the sampled token only",
    )
    require(
        spec,
        "objective.epistemic_weight",
        0 <= objective.epistemic_weight <= 1,
        "must lie in [0, 1]; 1 treats these tokens as all others",
    )
    for word in objective.epistemic_words:
        require(
            spec,
            "objective.epistemic_words",
            bool(re.search(r"\w", word)) and word == word.strip(),
            f"must be words or phrases without space around them, not {word!r}",
        )
    require(
        spec,
        "objective.clip_value",
        objective.clip_mode == training_pb2.CLIP_MODE_NONE or objective.clip_value > 0,
        "must be above 0 nats, or set objective.clip_mode to CLIP_MODE_NONE",
    )
    require(
        spec,
        "objective.teacher_adapter_path",
        objective.teacher != training_pb2.TEACHER_INCUMBENT or bool(objective.teacher_adapter_path),
        "must be set for TEACHER_INCUMBENT",
    )
    require(
        spec,
        "objective.ema_decay",
        objective.teacher != training_pb2.TEACHER_EMA or 0 <= objective.ema_decay < 1,
        "must lie in [0, 1) for TEACHER_EMA",
    )
    require(
        spec,
        "objective.anchor_weight",
        objective.anchor_weight >= 0,
        "must not be negative; 0 is off",
    )
    require(
        spec,
        "objective.ratio_clip_low",
        objective.ratio_clip_low <= 1,
        "must lie in (0, 1]",
    )
    above_zero(spec, "objective.ratio_clip_low", "objective.ratio_clip_high")


def check_method(spec: training_pb2.RunSpec) -> None:
    """What each method asks of the rest of the spec."""
    method = spec.objective.method
    name = training_pb2.Method.Name(method)
    if method in _GROUPS:
        require(
            spec,
            "rollout.rollouts_per_problem",
            spec.rollout.rollouts_per_problem >= 2,
            f"must be at least 2 for {name}, which compares the attempts at one problem",
        )
    for kind in spec.prompt.contexts:
        require(
            spec,
            "prompt.contexts",
            kind in training_pb2.Context.values() and kind != training_pb2.CONTEXT_UNSPECIFIED,
            "names a context that is not known",
        )
        require(
            spec,
            "prompt.contexts",
            kind not in OF_ATTEMPTS or method == training_pb2.METHOD_SDPO,
            f"{training_pb2.Context.Name(kind)} comes from verified attempts, which {name} has no "
            "use for; set objective.method to METHOD_SDPO or take it out",
        )
    for purpose, needed in (
        (name, method in _VERIFIED),
        ("curriculum.enabled", spec.curriculum.enabled),
        ("teacher_check.num_problems", spec.teacher_check.num_problems and method in _TEACHERS),
    ):
        require(
            spec,
            "support.address",
            bool(spec.support.address) or not needed,
            f"must be set: {purpose} needs verdicts, which the daemon gives",
        )
    require(
        spec,
        "curriculum.enabled",
        not spec.curriculum.enabled or method != training_pb2.METHOD_SFT,
        "must be false for METHOD_SFT: nothing is attempted",
    )


def check_prompt(spec: training_pb2.RunSpec) -> None:
    """Templates, sections, and the form of an own trace."""
    prompt = spec.prompt
    for template in ("prompt.student_template", "prompt.teacher_template"):
        require(spec, template, "{problem}" in value(spec, template), "must contain {problem}")
    for holder in TOLD:
        require(
            spec,
            "prompt.student_template",
            holder not in prompt.student_template,
            f"must not contain {holder}: the student never sees it",
        )
    require(
        spec,
        "prompt.teacher_template",
        any(holder in prompt.teacher_template for holder in TOLD),
        f"must contain one of {', '.join(TOLD)}",
    )
    needs_context = prompt.contexts or spec.objective.method == training_pb2.METHOD_SDPO
    require(
        spec,
        "prompt.teacher_template",
        "{context}" in prompt.teacher_template or not needs_context,
        "must contain {context}, where prompt.contexts are told",
    )
    for name in ("solution", "answer", "own_trace", "feedback"):
        field = f"prompt.{name}_section"
        require(spec, field, f"{{{name}}}" in value(spec, field), f"must contain {{{name}}}")
    require(
        spec,
        "prompt.contexts",
        len(set(prompt.contexts)) == len(prompt.contexts),
        "names one twice",
    )
    try:
        re.compile(prompt.own_trace_pattern)
    except re.error as error:
        require(spec, "prompt.own_trace_pattern", False, f"is no regular expression: {error}")


def check_rollout(spec: training_pb2.RunSpec) -> None:
    """The sampler and what goes with it."""
    rollout = spec.rollout
    require(
        spec,
        "rollout.sampler",
        rollout.sampler in training_pb2.Sampler.values(),
        "is not a known value",
    )
    local = rollout.sampler == training_pb2.SAMPLER_LOCAL
    require(
        spec,
        "rollout.max_staleness_steps",
        rollout.max_staleness_steps <= (0 if local else 1),
        "must be 0 for SAMPLER_LOCAL, which waits for the trainer" if local else "must be 0 or 1",
    )
    require(
        spec,
        "support.address",
        bool(spec.support.address) or rollout.sampler != training_pb2.SAMPLER_ENGINE,
        "must be set: SAMPLER_ENGINE asks the daemon to sample",
    )
    above_zero(spec, "rollout.max_logprob_gap")
    require(spec, "rollout.importance_cap", rollout.importance_cap >= 1, "must be at least 1")


def check_parts(spec: training_pb2.RunSpec) -> None:
    """Processes, teacher check, curriculum, audit, sharding."""
    sequences = spec.optim.problems_per_step * spec.rollout.rollouts_per_problem
    require(
        spec,
        "num_processes",
        spec.num_processes >= 1 and sequences % spec.num_processes == 0,
        f"must divide the step's {sequences} sequences (optim.problems_per_step times "
        "rollout.rollouts_per_problem), or processes would wait for each other",
    )
    for name in ("teacher_check.min_gain", "teacher_check.min_content_share"):
        require(spec, name, 0 <= value(spec, name) <= 1, "must lie in [0, 1]")
    require(spec, "curriculum.too_easy", 0 < spec.curriculum.too_easy <= 1, "must lie in (0, 1]")
    require(
        spec,
        "curriculum.teacher_floor",
        0 <= spec.curriculum.teacher_floor <= 1,
        "must lie in [0, 1]",
    )
    require(
        spec,
        "parallel.sharding",
        spec.parallel.sharding in training_pb2.Sharding.values(),
        "is not a known value",
    )
