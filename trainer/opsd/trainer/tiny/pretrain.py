"""Pretraining: the tiny model learns to follow a key better than it can solve alone.

Half of the examples are aided: the reference solution is in the prompt, in the teacher's words, and
the operands are anything. The other half are unaided and almost all one-digit. So the model can
rationalise a key for problems that it mostly cannot solve without one.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from opsd.trainer.tiny.forward import Layout, hidden_states
from opsd.trainer.tiny.muon import Muon
from opsd.trainer.tiny.problems import (
    TEACHER_PROMPT,
    Operands,
    Phrasing,
    Split,
    draw,
    phrase,
)
from opsd.trainer.tiny.recipe import PretrainConfig
from opsd.trainer.tiny.tokenizer import END, render_prompt

# Shape suffixes: P positions of a layout, N response tokens of all sequences, D hidden size,
# V vocabulary.

IGNORED = -100
PLACEHOLDER = "PROBLEM"


@dataclass(frozen=True)
class Example:
    """One sequence: the loss counts on the response only."""

    prompt_ids: list[int] = field(repr=False)
    response_ids: list[int] = field(repr=False)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def lr_share(step: int, config: PretrainConfig) -> float:
    """Return the share of the peak learning rate at a step: warm-up, flat, linear decay."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = step / config.num_steps
    decay = max(0.0, (progress - config.flat_share) / (1 - config.flat_share))
    return 1 - (1 - config.final_lr_share) * decay


def draw_texts(rng: random.Random, progress: float, config: PretrainConfig) -> tuple[str, str]:
    """Draw one example as (user message, response); ``progress`` is the share of steps done."""
    most = 1 + sum(progress >= share for share in config.curriculum)
    phrasing = Phrasing.WORD if rng.random() < config.word_share else Phrasing.SYMBOLIC
    if rng.random() < config.aided_share:
        problem = draw(rng, rng.randint(1, most), Operands.ANY, Split.PRETRAIN)
        said = phrase(problem, phrasing, rng)
        prompt = TEACHER_PROMPT.format(problem=said, solution=problem.reference_solution())
        return prompt, problem.worked_solution()
    if most >= 3 and rng.random() < config.hard_share:
        problem = draw(rng, 3, Operands.TWO_DIGIT, Split.PRETRAIN)
    else:
        problem = draw(rng, rng.randint(1, min(most, 3)), Operands.ONE_DIGIT, Split.PRETRAIN)
    return phrase(problem, phrasing, rng), problem.worked_solution()


def draw_batch(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, progress: float, config: PretrainConfig
) -> list[Example]:
    """Draw and encode one batch."""
    texts = [draw_texts(rng, progress, config) for _ in range(config.batch_size)]
    # One rendering serves all: the template itself takes longer than everything else here.
    before, after = render_prompt(tokenizer, PLACEHOLDER).split(PLACEHOLDER)
    prompts = tokenizer([before + prompt + after for prompt, _ in texts])["input_ids"]
    responses = tokenizer([response + END for _, response in texts])["input_ids"]
    return [Example(*pair) for pair in zip(prompts, responses, strict=True)]


def lay_out(examples: list[Example], num_blocks: int) -> Layout:
    """Lay a batch out in blocks of similar length, so that little is padding."""
    ordered = sorted(examples, key=lambda example: example.num_tokens)
    size = -(-len(ordered) // num_blocks)
    ids: list[int] = []
    targets: list[int] = []
    block_shapes: list[tuple[int, int]] = []
    for block in (ordered[first : first + size] for first in range(0, len(ordered), size)):
        longest = block[-1].num_tokens
        block_shapes.append((len(block), longest))
        for example in block:
            num_padding = longest - example.num_tokens
            ids += example.prompt_ids + example.response_ids + [0] * num_padding
            targets += [IGNORED] * (len(example.prompt_ids) - 1) + example.response_ids
            targets += [IGNORED] * (num_padding + 1)
    return Layout(torch.tensor(ids), torch.tensor(targets), block_shapes)


def response_loss(model: Qwen3ForCausalLM, layout: Layout) -> Tensor:
    """Return the mean cross-entropy (nats) of the response tokens."""
    hidden_PD = hidden_states(model, layout)
    positions_N = (layout.targets_P != IGNORED).nonzero().squeeze(1)
    logits_NV = model.lm_head(hidden_PD[positions_N])
    return nn.functional.cross_entropy(logits_NV, layout.targets_P[positions_N])


def make_optimizers(
    model: Qwen3ForCausalLM, config: PretrainConfig
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Return Muon for the hidden matrices and AdamW for the embedding and the norms."""
    embedding = model.get_input_embeddings().weight
    parameters = list(model.parameters())
    hidden = [p for p in parameters if p.ndim == 2 and p is not embedding]
    others = [p for p in parameters if p.ndim != 2 or p is embedding]
    adamw = torch.optim.AdamW(
        others, lr=config.adamw_lr, betas=config.adamw_betas, weight_decay=0.0, fused=True
    )
    return Muon(hidden, lr=config.muon_lr), adamw


def pretrain(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    config: PretrainConfig,
    report: Callable[[int, float], None],
) -> None:
    """Train the model in place; ``report`` gets each step's number and its loss (nats a token)."""
    rng = random.Random(f"pretrain {seed}")
    optimizers = make_optimizers(model, config)
    peak_lrs = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    model.train()
    for step in range(config.num_steps):
        examples = draw_batch(tokenizer, rng, step / config.num_steps, config)
        loss = response_loss(model, lay_out(examples, config.num_blocks))
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, peak_lr in zip(optimizers, peak_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = peak_lr * lr_share(step, config)
            optimizer.step()
            optimizer.zero_grad()
        report(step, loss.item())
    model.eval()
