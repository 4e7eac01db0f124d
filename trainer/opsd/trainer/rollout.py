"""On-policy sampling from the student.

Shape suffixes: B sequences, L prompt positions, V vocabulary, K candidate tokens.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opsd.v1 import training_pb2


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer; the eos token, where there is one, is its last token."""

    token_ids: tuple[int, ...]
    truncated: bool  # ended at max_new_tokens, not at an eos token
    # What its sampler says of each token: nats, at temperature 1, before top-p and top-k; empty
    # where it was not asked.
    logprobs: tuple[float, ...] = ()
    version: int = 0  # of the weights that sampled it: steps done


@torch.inference_mode()
def sample_rollouts(
    network: Any,
    prompts: Sequence[Sequence[int]],
    stream_ids: Sequence[int],
    spec: training_pb2.RolloutSpec,
    *,
    seed: int,
    step: int,
    eos_ids: frozenset[int],
    pad_id: int,
    on_token: Callable[[], None] = lambda: None,
    with_logprobs: bool = False,
) -> list[Rollout]:
    """Samples one answer to each prompt, all in one batch with a KV cache.

    The random numbers of an answer depend on (seed, step, its stream id) alone, so the split over
    ranks changes nothing but rounding.

    Args:
        network: causal language model in eval mode, e.g. from `StudentTeacher.rollout_network`.
        prompts: token ids.
        stream_ids: one a prompt, unique within the step over all ranks.
        spec: max_new_tokens, temperature, top_p, top_k.
        seed: of the run.
        step: of the run.
        eos_ids: tokens that end an answer.
        pad_id: fills the left; never attended to.
        on_token: called after every token of the batch.
        with_logprobs: fills in `Rollout.logprobs`, at the price of a softmax over the vocabulary.
    """
    device = network.device
    num_seqs = len(prompts)
    uniforms = np.stack(
        [_uniforms(seed, step, stream, spec.max_new_tokens) for stream in stream_ids]
    )
    uniforms_BN = torch.from_numpy(uniforms).to(device)
    inputs = _left_padded(prompts, pad_id, device, spec.max_new_tokens)
    eos = torch.tensor(sorted(eos_ids), device=device)
    alive_B = torch.ones(num_seqs, dtype=torch.bool, device=device)
    columns: list[Tensor] = []
    logprob_columns: list[Tensor] = []
    cache, ids = None, inputs.ids_BL
    for index in range(spec.max_new_tokens):
        out = network(
            input_ids=ids,
            attention_mask=inputs.mask_for(index),
            position_ids=inputs.positions_for(index),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        next_B = sample_tokens(
            out.logits[:, -1],
            uniforms_BN[:, index],
            temperature=spec.temperature,
            top_p=spec.top_p,
            top_k=spec.top_k,
        )
        # A finished sequence only fills its row: -1 marks what is not part of the answer.
        columns.append(torch.where(alive_B, next_B, -1))
        if with_logprobs:
            logprob_columns.append(_logprobs_of(out.logits[:, -1], next_B))
        alive_B &= ~torch.isin(next_B, eos)
        on_token()
        if not bool(alive_B.any()):
            break
        ids = next_B.unsqueeze(-1)
    rows = torch.stack(columns, dim=1).tolist()
    answers = [tuple(token for token in row if token >= 0) for row in rows]
    # An answer is a prefix of its row.
    logprobs = torch.stack(logprob_columns, dim=1).tolist() if with_logprobs else [()] * num_seqs
    return [
        Rollout(answer, cut, tuple(values[: len(answer)]))
        for answer, cut, values in zip(answers, alive_B.tolist(), logprobs, strict=True)
    ]


def sample_tokens(
    logits_BV: Tensor, uniforms_B: Tensor, *, temperature: float, top_p: float, top_k: int
) -> Tensor:
    """One token a row by inverting the cumulative distribution at a given uniform number.

    The temperature comes first, then top-k, then top-p over what top-k left (the order of vLLM and
    transformers); the most likely token always stays.

    Args:
        logits_BV: any floating dtype; computed in fp32, summed in fp64.
        uniforms_B: fp64 in [0, 1).
        temperature: above 0.
        top_p: in (0, 1]; 1 is off.
        top_k: 0 is off.

    Returns:
        [B] int64 token ids.
    """
    scaled_BV = logits_BV.float() / temperature
    candidates_BK: Tensor | None = None
    if 0 < top_k < scaled_BV.shape[-1]:
        scaled_BV, candidates_BK = scaled_BV.topk(top_k, dim=-1)
    elif top_p < 1:
        scaled_BV, candidates_BK = scaled_BV.sort(dim=-1, descending=True, stable=True)
    probs_BK = scaled_BV.softmax(-1).double()
    cumulative_BK = probs_BK.cumsum(-1)
    if top_p < 1:
        # What comes before a token must not already reach top_p.
        probs_BK = probs_BK.masked_fill(cumulative_BK - probs_BK >= top_p, 0.0)
        cumulative_BK = probs_BK.cumsum(-1)
    targets_B1 = (uniforms_B * cumulative_BK[:, -1]).unsqueeze(-1)
    # right=True: the first entry above the target, so that one of probability 0 is never taken.
    picked_B1 = torch.searchsorted(cumulative_BK, targets_B1, right=True)
    picked_B1 = picked_B1.clamp_(max=cumulative_BK.shape[-1] - 1)
    if candidates_BK is not None:
        picked_B1 = candidates_BK.gather(-1, picked_B1)
    return picked_B1.squeeze(-1)


def stream_key(seed: int, step: int, stream: int) -> bytes:
    """32 bytes from which all random numbers of one answer come, whoever samples it."""
    return hashlib.sha256(f"rollout:{seed}:{step}:{stream}".encode()).digest()


def _logprobs_of(logits_BV: Tensor, ids_B: Tensor) -> Tensor:
    """[B] fp32 nats at temperature 1."""
    logits_BV = logits_BV.float()
    picked_B = logits_BV.gather(-1, ids_B.unsqueeze(-1)).squeeze(-1)
    return picked_B - logits_BV.logsumexp(-1)


def _uniforms(seed: int, step: int, stream: int, count: int) -> "np.ndarray[Any, np.dtype[Any]]":
    key = stream_key(seed, step, stream)[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(count)


@dataclass(frozen=True, slots=True)
class _LeftPadded:
    ids_BL: Tensor
    mask_BL: Tensor | None  # with room for the answer; None where nothing is padded
    lengths_B: Tensor

    def mask_for(self, index: int) -> Tensor | None:
        if self.mask_BL is None:
            return None
        return self.mask_BL[:, : self.ids_BL.shape[1] + index]

    def positions_for(self, index: int) -> Tensor | None:
        if self.mask_BL is None:
            return None
        if index > 0:
            return (self.lengths_B + (index - 1)).unsqueeze(-1)
        width = self.ids_BL.shape[1]
        positions = torch.arange(width, device=self.ids_BL.device) - width
        return (positions + self.lengths_B.unsqueeze(-1)).clamp_(min=0)


def _left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device, room: int
) -> _LeftPadded:
    lengths = [len(prompt) for prompt in prompts]
    width = max(lengths)
    rows = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = None
    if min(lengths) < width:
        mask = torch.ones((len(prompts), width + room), dtype=torch.long)
        for row, length in enumerate(lengths):
            mask[row, : width - length] = 0
        mask = mask.to(device)
    return _LeftPadded(
        torch.tensor(rows, device=device), mask, torch.tensor(lengths, device=device)
    )
