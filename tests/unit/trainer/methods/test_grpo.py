"""Advantages and the clipped ratio, against plain autograd."""

import pytest
import torch
from tests.unit.trainer.methods.test_distil import network_of

from opsd.trainer.epistemic import EpistemicTokens
from opsd.trainer.methods import Answer, StepSums
from opsd.trainer.methods.grpo import GroupRelativePolicy, clipped_ratio, group_advantage
from opsd.v1 import training_pb2


def test_advantages_are_normalised_within_the_group() -> None:
    group = [True, False, False, False]
    values = [group_advantage(passed, group) for passed in group]
    assert sum(values) == pytest.approx(0)
    assert values[0] == pytest.approx(0.75 / (0.1875**0.5 + 1e-4))
    assert group_advantage(True, [True, True]) == 0
    assert group_advantage(False, [False]) == 0


def test_the_clipped_surrogate_and_its_slope_are_autograds() -> None:
    generator = torch.Generator().manual_seed(0)
    logp = torch.randn(200, generator=generator, dtype=torch.float64, requires_grad=True)
    old = torch.randn(200, generator=generator, dtype=torch.float64)
    advantage = torch.randn(200, generator=generator, dtype=torch.float64)
    ratio = (logp - old).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage)
    surrogate.sum().backward()  # type: ignore[no-untyped-call]
    slope, value = clipped_ratio(logp.detach(), old, advantage, 0.2, 0.3)
    torch.testing.assert_close(value, surrogate.detach())
    torch.testing.assert_close(slope, logp.grad)
    assert (slope == 0).any()


@pytest.mark.parametrize("stale", [False, True])
def test_the_gradient_is_autograds(make_run: object, stale: bool) -> None:
    network, spec, base = network_of(make_run())  # type: ignore[operator]
    spec.rollout.temperature = 1.3
    spec.rollout.rollouts_per_problem = 4
    spec.rollout.max_staleness_steps = int(stale)
    method = GroupRelativePolicy(network, spec, EpistemicTokens(base.tokenizer, ()))
    old = (-3.0, -6.0, -2.0) if stale else ()
    answers = [
        Answer((1, 2, 3), (), (10, 11, 12), False, advantage=1.5, old_logprobs=old),
        Answer((4,), (), (20, 21), False, advantage=-0.5),
    ]
    sums = StepSums()
    loss = method.loss(answers, 3, sums)
    assert network.student.grad_P is not None
    network.student.grad_P.zero_()
    loss.backward()  # type: ignore[no-untyped-call]
    got = network.student.grad_P.clone()

    network.student.grad_P.zero_()
    total = torch.zeros(())
    for answer in answers:
        ids = torch.tensor([[*answer.student_prompt, *answer.response]])
        logits = base.causal(input_ids=ids).logits[0, len(answer.student_prompt) - 1 : -1] / 1.3
        response = torch.tensor(answer.response)
        logp = logits.log_softmax(-1).gather(-1, response.unsqueeze(-1)).squeeze(-1)
        before = torch.tensor(answer.old_logprobs) if answer.old_logprobs else logp.detach()
        ratio = (logp - before).exp()
        a = answer.advantage
        surrogate = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        total = total - surrogate.mean() / 3
    total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(got, network.student.grad_P, rtol=1e-4, atol=1e-6)
    assert got.norm() > 0
    assert sums.tokens == 5
    assert spec.objective.method == training_pb2.METHOD_OPSD
