"""Greedy held-out accuracy by transformers, with and without the reference in the prompt."""

import re
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from opsd.trainer.tiny.tokenizer import render_prompt

_ANSWER = re.compile(r"Answer: (-?\d+)\s*$")


@dataclass(frozen=True)
class Accuracy:
    """How many of ``num_problems`` were answered correctly."""

    num_correct: int
    num_problems: int

    @property
    def percent(self) -> float:
        return 100 * self.num_correct / self.num_problems


def parse_answer(text: str) -> str | None:
    """Return the number after the closing ``Answer:``, or None where there is none."""
    match = _ANSWER.search(text)
    return match.group(1) if match else None


@torch.inference_mode()
def complete(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    max_new_tokens: int,
) -> list[str]:
    """Complete each user message greedily, in one batch; special tokens are left out."""
    texts = [render_prompt(tokenizer, prompt) for prompt in prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    output_BT = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    responses_BT = output_BT[:, batch["input_ids"].shape[1] :]
    completions: list[str] = tokenizer.batch_decode(responses_BT, skip_special_tokens=True)
    return completions


def measure(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    references: list[str],
    max_new_tokens: int,
) -> Accuracy:
    """Return how many greedy completions end in the reference answer."""
    completions = complete(model, tokenizer, prompts, max_new_tokens)
    num_correct = sum(
        parse_answer(completion) == reference
        for completion, reference in zip(completions, references, strict=True)
    )
    return Accuracy(num_correct, len(prompts))
