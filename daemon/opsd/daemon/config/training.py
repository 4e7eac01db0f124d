"""What a run is made with: the table ``training`` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opsd.daemon.config.section import Fraction, PositiveInt, PositiveSeconds, Section


class PromptTraining(Section):
    system: str = Field(
        default="", description="System message of student and teacher; empty: none."
    )
    student_template: str = Field(default="{problem}", description="What the student is asked.")
    teacher_template: str = Field(
        default="{problem}\n\n{context}\nNow solve it your own way.",
        description="What the teacher is asked.",
    )
    contexts: tuple[Literal["solution", "answer", "own_trace", "feedback"], ...] = Field(
        default=(),
        description="What {context} holds, in this order; empty: what the method reads.",
    )
    solution_section: str = Field(
        default="Reference solution: {solution}", description="Wording of the context solution."
    )
    answer_section: str = Field(
        default="The answer is: {answer}", description="Wording of the context answer."
    )
    own_trace_section: str = Field(
        default="A correct solution of yours: {own_trace}",
        description="Wording of the context own_trace.",
    )
    feedback_section: str = Field(
        default="An earlier attempt was wrong: {feedback}",
        description="Wording of the context feedback.",
    )
    own_trace_pattern: str = Field(
        default="",
        description="Regular expression whose matches make up {own_trace}; empty: all of it.",
    )
    reason_first_tokens: int = Field(
        default=0,
        ge=0,
        le=32768,
        description="Tokens that the teacher first writes about its context; 0: none.",
    )
    reason_first_instruction: str = Field(
        default="First explain to yourself why the reference is right.",
        description="Ends the teacher's message when it reasons first.",
    )
    reason_first_transition: str = Field(
        default="\n\n", description="Between the teacher's reasoning and the attempt."
    )
    student_thinking: bool = Field(
        default=False, description="The chat template's enable_thinking."
    )
    teacher_thinking: bool = Field(default=False, description="The same for the teacher.")


class RolloutTraining(Section):
    max_new_tokens: int = Field(
        default=1024, ge=1, le=32768, description="Tokens of one rollout at most."
    )
    rollouts_per_problem: PositiveInt = Field(
        default=1, description="Rollouts of one problem in one step."
    )
    temperature: float = Field(
        default=1.1, gt=0.0, le=10.0, description="Of sampling and of the loss."
    )
    top_p: float = Field(default=0.95, gt=0.0, le=1.0, description="1: off.")
    top_k: int = Field(default=20, ge=0, description="0: off.")
    sampler: Literal["local", "engine", "pool"] = Field(
        default="local",
        description="Who samples: the trainer, the serving engine, or an engine in the pool.",
    )
    max_staleness_steps: int = Field(
        default=0,
        ge=0,
        le=1,
        description="1: sample the next step while this one trains; not for local.",
    )
    max_logprob_gap: float = Field(
        default=0.1,
        gt=0.0,
        description="Mean |log p(sampler) - log p(trainer)| a token, in nats, that stops the run.",
    )
    importance_cap: float = Field(
        default=2.0, ge=1.0, description="Bound of the weight that corrects a stale sample."
    )
    pool_memory_fraction: float = Field(
        default=0.4,
        gt=0.0,
        le=1.0,
        description="pool: share of a GPU's memory that its engine takes.",
    )


class ObjectiveTraining(Section):
    method: Literal["opsd", "sdpo", "sdft", "sft", "star", "grpo"] = Field(
        default="opsd", description="How attempts and solutions become a gradient."
    )
    ratio_clip_low: float = Field(
        default=0.2, gt=0.0, le=1.0, description="grpo: the ratio is clipped to 1 - this …"
    )
    ratio_clip_high: float = Field(default=0.2, gt=0.0, description="… and 1 + this.")
    anchor_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="Of KL(base || student) on the teacher's prompt; 0: off.",
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "policy_gradient"] = Field(
        default="forward_kl", description="Between teacher and student, at every token."
    )
    jsd_beta: float = Field(
        default=0.5, gt=0.0, lt=1.0, description="Weight of the teacher in the mixture."
    )
    clip_mode: Literal["none", "clamp", "scale"] = Field(
        default="clamp",
        description="How an entry's share is bounded; at a tiny vocabulary: scale or none.",
    )
    clip_value: float = Field(
        default=0.05, gt=0.0, description="Bound of one entry's share, in nats."
    )
    teacher: Literal["base", "incumbent", "ema"] = Field(
        default="base", description="Who reads the solution."
    )
    ema_decay: float = Field(
        default=0.999, ge=0.0, lt=1.0, description="Per step; read for ema only."
    )
    top_k: int = Field(
        default=0,
        ge=0,
        description="Compare on the teacher's k greatest entries and the rest together; 0: on all.",
    )
    epistemic_words: tuple[str, ...] = Field(
        default=(
            "wait",
            "hmm",
            "maybe",
            "perhaps",
            "actually",
            "alternatively",
            "probably",
            "might",
            "not sure",
            "let me check",
        ),
        description="Words and phrases of doubt; their tokens are counted apart.",
    )
    epistemic_weight: float = Field(
        default=1.0, ge=0.0, le=1.0, description="Of those tokens in the loss; 0 shields them."
    )


class LoraTraining(Section):
    rank: int = Field(default=64, ge=1, le=256, description="Rank of the update.")
    alpha: float = Field(default=128.0, gt=0.0, description="Scale: alpha / rank.")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="Probability.")
    target_modules: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Modules that get an update.",
    )


class OptimTraining(Section):
    num_steps: PositiveInt = Field(default=100, description="Optimiser steps.")
    problems_per_step: PositiveInt = Field(
        default=32, description="Problems in a step, over all processes."
    )
    micro_batch_size: PositiveInt = Field(default=4, description="Sequences in one forward pass.")
    learning_rate: float = Field(default=5e-6, gt=0.0, description="Peak.")
    warmup_steps: int = Field(default=5, ge=0, description="Linear, from 0.")
    final_lr_fraction: Fraction = Field(
        default=0.1, description="Linear decay to this share of the peak."
    )
    adam_beta1: float = Field(default=0.9, ge=0.0, lt=1.0, description="AdamW.")
    adam_beta2: float = Field(default=0.999, ge=0.0, lt=1.0, description="AdamW.")
    adam_eps: float = Field(default=1e-8, gt=0.0, description="AdamW.")
    weight_decay: float = Field(default=0.0, ge=0.0, description="AdamW, decoupled.")
    max_grad_norm: float = Field(default=0.1, ge=0.0, description="0: off.")
    max_skipped_steps: int = Field(
        default=3, ge=0, description="Steps with NaN left out before the run fails."
    )


class TeacherCheckTraining(Section):
    num_problems: int = Field(
        default=64, ge=0, description="Problems looked at before the first step; 0: no check."
    )
    min_gain: Fraction = Field(
        default=0.02, description="Least accuracy that the context must add, as a fraction."
    )
    min_content_share: Fraction = Field(
        default=0.1,
        description="Least share of the signal that must depend on what the context says.",
    )


class CurriculumTraining(Section):
    enabled: bool = Field(
        default=False, description="Set aside problems that teach nothing at the moment."
    )
    min_attempts: PositiveInt = Field(default=4, description="Attempts before a problem is judged.")
    too_easy: float = Field(
        default=1.0, gt=0.0, le=1.0, description="Solve rate from which a problem is set aside."
    )
    teacher_floor: Fraction = Field(
        default=0.25, description="Solve rate that the teacher must reach with its context."
    )
    revisit_epochs: PositiveInt = Field(
        default=4, description="A problem set aside comes back after so many passes."
    )


class TokenAuditTraining(Section):
    attempts_per_step: int = Field(
        default=1, ge=0, le=64, description="Attempts written down token by token; 0: none."
    )
    every_steps: PositiveInt = Field(default=5, description="In every so many steps.")
    alternatives: int = Field(
        default=3, ge=0, le=20, description="Most likely tokens kept for each position."
    )


class ParallelTraining(Section):
    sharding: Literal["none", "fsdp"] = Field(
        default="none", description="fsdp: the frozen base is spread over the devices."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations: less memory, more time."
    )


class TrainingConfig(Section):
    """What a run is made with, unless its trigger overrides it."""

    prompt: PromptTraining = PromptTraining()
    rollout: RolloutTraining = RolloutTraining()
    objective: ObjectiveTraining = ObjectiveTraining()
    lora: LoraTraining = LoraTraining()
    optim: OptimTraining = OptimTraining()
    teacher_check: TeacherCheckTraining = TeacherCheckTraining()
    curriculum: CurriculumTraining = CurriculumTraining()
    token_audit: TokenAuditTraining = TokenAuditTraining()
    parallel: ParallelTraining = ParallelTraining()
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Of everything random in a run.")
    checkpoint_every_steps: int = Field(default=25, ge=0, description="0: none.")
    keep_checkpoints: PositiveInt = Field(default=2, description="The last so many are kept.")
    export_every_steps: int = Field(
        default=0, ge=0, description="Adapters for a learning curve; 0: none."
    )
    heartbeat_interval_s: PositiveSeconds = Field(
        default=5.0, description="Between a trainer's events."
    )
    continue_from_incumbent: bool = Field(
        default=False, description="Train the incumbent's weights on, instead of a fresh adapter."
    )
