"""Sampling takes the right tokens with the right probabilities, however it is batched.

Shape suffixes: B sequences, V vocabulary, S samples.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from opsd.trainer.rollout import Rollout, sample_rollouts, sample_tokens
from opsd.v1 import training_pb2

EVERYWHERE_S = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def frequencies(logits: list[float], temperature: float, top_p: float, top_k: int) -> list[float]:
    """Share of each token when the uniform numbers sweep [0, 1) evenly."""
    logits_BV = torch.tensor([logits]).expand(len(EVERYWHERE_S), -1)
    picked = sample_tokens(
        logits_BV, EVERYWHERE_S, temperature=temperature, top_p=top_p, top_k=top_k
    )
    return (picked.bincount(minlength=len(logits)) / len(EVERYWHERE_S)).tolist()


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "kept"),
    [
        (1.0, 1.0, 0, [0, 1, 2, 3]),
        (0.5, 1.0, 0, [0, 1, 2, 3]),
        (2.0, 1.0, 2, [1, 3]),
        (1.0, 0.5, 0, [1]),
        (1.0, 0.9, 0, [1, 3, 2]),
        (1.0, 0.01, 0, [1]),
        (1.0, 0.75, 3, [1, 3]),
        (1.0, 1.0, 99, [0, 1, 2, 3]),
    ],
)
def test_frequencies(temperature: float, top_p: float, top_k: int, kept: list[int]) -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0])  # p at T = 1: 0.032 0.644 0.087 0.237
    want = torch.zeros(4)
    want[kept] = (logits / temperature).softmax(0)[kept]
    want /= want.sum()
    got = frequencies(logits.tolist(), temperature, top_p, top_k)
    assert got == pytest.approx(want.tolist(), abs=2e-4)


def test_a_token_of_probability_zero_is_never_taken() -> None:
    logits_BV = torch.tensor([[-float("inf"), 0.0, -float("inf"), 0.0, -float("inf")]] * 2)
    for edge in (0.0, 1 - 1e-16):
        uniforms = torch.full((2,), edge, dtype=torch.float64)
        for top_p, top_k in ((1.0, 0), (0.9, 0), (1.0, 3)):
            picked = sample_tokens(logits_BV, uniforms, temperature=1.0, top_p=top_p, top_k=top_k)
            assert set(picked.tolist()) <= {1, 3}


@pytest.fixture(scope="module")
def network(micro_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32).eval()


PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8], [30, 31, 32]]


def rollouts(
    network: Any, which: list[int], eos: frozenset[int] = frozenset({258}), **changes: Any
) -> list[Rollout]:
    fields = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0}
    return sample_rollouts(
        network,
        [PROMPTS[index] for index in which],
        which,
        training_pb2.RolloutSpec(**(fields | changes)),
        seed=changes.get("seed", 3),
        step=0,
        eos_ids=eos,
        pad_id=0,
    )


def test_the_batch_an_answer_is_sampled_in_does_not_matter(network: Any) -> None:
    together = rollouts(network, [0, 1, 2, 3])
    assert rollouts(network, [2]) == together[2:3]
    assert rollouts(network, [1, 3]) == [together[1], together[3]]
    assert len({rollout.token_ids for rollout in together}) == 4


def test_the_answer_follows_the_models_own_probabilities(network: Any) -> None:
    """Near temperature 0 it must be the argmax of a forward pass over the whole sequence."""
    answers = rollouts(network, [0, 1, 2, 3], temperature=1e-4)
    for prompt, rollout in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([[*prompt, *rollout.token_ids]])
        with torch.no_grad():
            greedy = network(input_ids=ids).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert list(rollout.token_ids) == greedy.tolist()


def test_an_answer_ends_with_its_first_eos(network: Any) -> None:
    free = rollouts(network, [0, 1, 2, 3])
    assert all(rollout.truncated and len(rollout.token_ids) == 12 for rollout in free)
    stop = free[1].token_ids[4]
    cut = rollouts(network, [0, 1, 2, 3], eos=frozenset({stop}))
    for before, after in zip(free, cut, strict=True):
        if stop in before.token_ids:
            end = before.token_ids.index(stop) + 1
            assert after == Rollout(before.token_ids[:end], truncated=False)
        else:
            assert after == before
