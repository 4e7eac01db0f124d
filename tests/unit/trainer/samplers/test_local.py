"""The local sampler is `sample_rollouts`, with log-probabilities that are the network's own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from opsd.trainer.errors import SamplerError
from opsd.trainer.rollout import Rollout, sample_rollouts
from opsd.trainer.samplers.local import LocalSampler
from opsd.v1 import training_pb2

PROMPTS = [(5, 6, 7), (9,), (1, 2, 3, 4, 5, 6, 7, 8)]
SPEC = training_pb2.RunSpec(
    seed=3,
    rollout=training_pb2.RolloutSpec(max_new_tokens=12, temperature=0.8, top_p=0.9, top_k=20),
)


@pytest.fixture(scope="module")
def network(micro_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32).eval()


@pytest.fixture
def sampler(network: Any) -> LocalSampler:
    @contextlib.contextmanager
    def entered() -> Iterator[Any]:
        yield network

    sampler = LocalSampler(entered, SPEC, eos_ids=frozenset({258}), pad_id=0)
    sampler.sync(2, lambda path: pytest.fail("nothing is written"))
    return sampler


def test_it_is_sample_rollouts(sampler: LocalSampler, network: Any) -> None:
    rollouts = sampler.sample(PROMPTS, [4, 5, 6], step=2, version=2)
    plain = sample_rollouts(
        network,
        PROMPTS,
        [4, 5, 6],
        SPEC.rollout,
        seed=3,
        step=2,
        eos_ids=frozenset({258}),
        pad_id=0,
    )
    assert [Rollout(r.token_ids, r.truncated) for r in rollouts] == plain
    assert {rollout.version for rollout in rollouts} == {2}
    assert sampler.sample([], [], step=2, version=2) == []


def test_logprobs_are_the_networks_at_temperature_one(sampler: LocalSampler, network: Any) -> None:
    for prompt, rollout in zip(
        PROMPTS, sampler.sample(PROMPTS, [4, 5, 6], step=2, version=2), strict=True
    ):
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([[*prompt, *rollout.token_ids]])).logits[0]
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        want = logprobs.gather(-1, torch.tensor(rollout.token_ids).unsqueeze(-1)).squeeze(-1)
        assert list(rollout.logprobs) == pytest.approx(want.tolist(), abs=1e-4)


def test_there_is_no_other_version(sampler: LocalSampler) -> None:
    with pytest.raises(SamplerError, match="of version 2, not 1"):
        sampler.sample(PROMPTS, [0, 1, 2], step=2, version=1)
