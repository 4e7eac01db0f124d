import random
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from opsd.trainer.tiny.model import make_model
from opsd.trainer.tiny.pretrain import (
    Example,
    draw_texts,
    lay_out,
    lr_share,
    pretrain,
    response_loss,
)
from opsd.trainer.tiny.recipe import PretrainConfig
from opsd.trainer.tiny.tokenizer import make_tokenizer

SHORT = PretrainConfig(num_steps=3, batch_size=8, warmup_steps=1)


def trained_weights(seed: int) -> torch.Tensor:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)
    pretrain(model, tokenizer, seed, SHORT, lambda step, loss: None)
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def test_a_seed_decides_the_weights() -> None:
    assert torch.equal(trained_weights(0), trained_weights(0))
    assert not torch.equal(trained_weights(0), trained_weights(1))


def test_the_model_has_the_stated_size() -> None:
    assert make_model(make_tokenizer(), 0).num_parameters() == 332_640


def test_pretraining_lowers_the_loss() -> None:
    tokenizer = make_tokenizer()
    losses: list[float] = []
    config = replace(SHORT, num_steps=25)
    model = make_model(tokenizer, 0)
    pretrain(model, tokenizer, 0, config, lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0] / 2


def test_loss_and_gradient_are_those_of_transformers() -> None:
    model = make_model(make_tokenizer(), 0)
    examples = [
        Example([5, 6, 7], [8, 9]),
        Example([5], [10, 11, 12, 13]),
        Example([14, 15, 16, 17, 18], [19, 20, 21]),
    ]
    num_targets = sum(len(example.response_ids) for example in examples)
    expected = torch.zeros(())
    for example in examples:
        ids = torch.tensor([example.prompt_ids + example.response_ids])
        logits = model(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1]
        targets = torch.tensor(example.response_ids)
        expected = expected + cross_entropy(logits, targets, reduction="sum") / num_targets
    weights = list(model.parameters())
    expected_grads = torch.autograd.grad(expected, weights)
    for num_blocks in (1, 2, 3):
        loss = response_loss(model, lay_out(examples, num_blocks))
        torch.testing.assert_close(loss, expected)
        for grad, expected_grad in zip(
            torch.autograd.grad(loss, weights), expected_grads, strict=True
        ):
            torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-4)


def test_a_layout_pads_each_block_to_its_own_longest() -> None:
    examples = [Example([1] * n, [2] * n) for n in (4, 1, 2, 4)]
    layout = lay_out(examples, num_blocks=2)
    assert layout.block_shapes == [(2, 4), (2, 8)]
    assert len(layout.ids_P) == len(layout.targets_P) == 24
    assert int((layout.targets_P == 2).sum()) == 11


def test_the_curriculum_adds_operations() -> None:
    rng = random.Random(0)
    config = PretrainConfig(hard_share=0.0)
    for progress, most in ((0.0, 1), (0.13, 2), (0.3, 3), (0.5, 4)):
        prompts = [draw_texts(rng, progress, config)[0] for _ in range(300)]
        aided = [prompt for prompt in prompts if "Reference" in prompt]
        operations = [prompt.split("Reference solution: ")[1].count(",") + 1 for prompt in aided]
        assert max(operations) == most
        assert 100 < len(aided) < 200


def test_learning_rate_warms_up_stays_and_decays() -> None:
    config = PretrainConfig()
    shares = [lr_share(step, config) for step in range(config.num_steps)]
    assert shares[0] == pytest.approx(1 / 40)
    assert shares[40] == shares[int(0.4 * config.num_steps)] == 1
    assert shares[-1] == pytest.approx(0.02, abs=0.005)
