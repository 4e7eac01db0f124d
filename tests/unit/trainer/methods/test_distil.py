"""The step's gradient equals plain autograd of the objective on whole-model logits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from opsd.trainer.lora import FlatLora, StudentTeacher
from opsd.trainer.methods import Answer, Durations, Method, StepSums, make_method
from opsd.trainer.methods.accumulate import accumulate
from opsd.trainer.model import BaseModel, load_base
from opsd.trainer.prompts import PromptMaker
from opsd.trainer.spec import load_spec
from opsd.v1 import training_pb2

ANSWERS = [
    Answer((1, 2, 3), (1, 2, 3, 4, 5), (10, 11, 12, 13), False),
    Answer((7,), (7, 8), (20,), False),
    Answer((4, 4, 4, 4), (9, 9), (30, 31, 32, 33, 34, 35), True),
]


def network_of(run_json: Path) -> tuple[StudentTeacher, training_pb2.RunSpec, BaseModel]:
    spec = load_spec(run_json)
    base = load_base(spec.model, torch.device("cpu"))
    network = StudentTeacher(base, spec)
    generator = torch.Generator().manual_seed(0)
    # peft starts B at zero, where half of the gradient vanishes.
    network.student.weights_P.copy_(
        torch.randn(network.student.weights_P.shape, generator=generator) * 0.3
    )
    return network, spec, base


def objective(network: StudentTeacher, base: BaseModel, **fields: Any) -> Method:
    """The distillation of these settings, at the temperature 1.3."""
    settings = {
        "divergence": training_pb2.DIVERGENCE_FORWARD_KL,
        "clip_mode": training_pb2.CLIP_MODE_NONE,
        "jsd_beta": 0.5,
        "epistemic_weight": 1.0,
    } | fields
    spec = training_pb2.RunSpec(
        objective=training_pb2.ObjectiveSpec(**settings),
        rollout=training_pb2.RolloutSpec(temperature=1.3, rollouts_per_problem=1),
        prompt=training_pb2.PromptSpec(student_template="{problem}", teacher_template="{context}"),
    )
    return make_method(spec, network, base, PromptMaker(base.tokenizer, spec, 100))


def summed(method: Method, answers: Sequence[Answer], micro_batch_size: int = 8) -> StepSums:
    return accumulate(
        method,
        answers,
        len(answers),
        micro_batch_size=micro_batch_size,
        durations=Durations(),
        on_progress=lambda: None,
    )


def gradient(
    network: StudentTeacher,
    method: Method,
    answers: Sequence[Answer] = ANSWERS,
    micro_batch_size: int = 8,
) -> torch.Tensor:
    assert network.student.grad_P is not None
    network.student.grad_P.zero_()
    summed(method, answers, micro_batch_size)
    return network.student.grad_P.clone()


def test_equals_autograd_on_the_whole_models_logits(make_run: Any) -> None:
    network, _, base = network_of(make_run())
    got = gradient(network, objective(network, base), micro_batch_size=2)
    assert network.student.grad_P is not None
    network.student.grad_P.zero_()
    total = torch.zeros(())
    for answer in ANSWERS:
        logits = {}
        for role, prompt in (("s", answer.student_prompt), ("t", answer.teacher_prompt)):
            ids = torch.tensor([[*prompt, *answer.response]])
            if role == "t":
                with network._as_teacher(), torch.no_grad():
                    out = base.causal(input_ids=ids).logits
            else:
                out = base.causal(input_ids=ids).logits
            logits[role] = out[0, len(prompt) - 1 : -1] / 1.3
        s, t = logits["s"].log_softmax(-1), logits["t"].log_softmax(-1)
        per_token = (t.exp() * (t - s)).sum(-1)
        total = total + per_token.mean() / len(ANSWERS)
    total.backward()  # type: ignore[no-untyped-call]
    assert got.norm() > 0
    torch.testing.assert_close(got, network.student.grad_P, rtol=1e-4, atol=1e-6)


def test_micro_batches_change_nothing_but_rounding(make_run: Any) -> None:
    network, _, base = network_of(make_run())
    clip = {"clip_mode": training_pb2.CLIP_MODE_SCALE, "clip_value": 0.01}
    whole = gradient(network, objective(network, base, **clip))
    single = gradient(network, objective(network, base, **clip), micro_batch_size=1)
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-6)


def test_the_teacher_has_no_gradient_and_no_lora(make_run: Any) -> None:
    network, _, _ = network_of(make_run())
    ids = torch.tensor([[1, 2, 3]])
    teacher = network.teacher_hidden_BLD(ids)
    assert not teacher.requires_grad
    student = network.student_hidden_BLD(ids)
    assert student.requires_grad
    assert (student - teacher).abs().max() > 1e-3
    network.student.weights_P.zero_()
    torch.testing.assert_close(network.student_hidden_BLD(ids), teacher)


def test_the_folded_rollout_network_is_the_student_and_leaves_no_trace(make_run: Any) -> None:
    network, _, base = network_of(make_run())
    ids = torch.tensor([[1, 2, 3, 4]])
    before = {name: p.detach().clone() for name, p in base.causal.named_parameters()}
    with torch.no_grad():
        apart = base.causal(input_ids=ids).logits
        with network.rollout_network() as folded:
            together = folded(input_ids=ids).logits
        again = base.causal(input_ids=ids).logits
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert torch.equal(again, apart)
    for name, parameter in base.causal.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_the_base_never_trains(make_run: Any) -> None:
    network, _, base = network_of(make_run())
    gradient(network, objective(network, base))
    for name, parameter in base.causal.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        assert parameter.grad is None or "lora_" in name, name


def test_the_averaged_teacher_moves_by_its_decay(make_run: Any) -> None:
    ema = {"teacher": "TEACHER_EMA", "ema_decay": 0.75}
    spec = load_spec(make_run(objective=ema))
    network = StudentTeacher(load_base(spec.model, torch.device("cpu")), spec)
    assert isinstance(network.ema, FlatLora)
    start = network.ema.weights_P.clone()
    assert torch.equal(start, network.student.weights_P)
    network.student.weights_P.add_(1.0)
    network.update_ema()
    torch.testing.assert_close(network.ema.weights_P, start + 0.25)
    assert network.ema.grad_P is None


@pytest.mark.parametrize("change", ["bias", "scale"])
def test_a_model_whose_head_is_not_a_plain_product_is_refused(
    make_run: Any, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    from transformers import Qwen3ForCausalLM

    from opsd.trainer.errors import ModelError

    forward = torch.nn.Linear.forward
    spec = load_spec(make_run())

    def capped(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        out = forward(self, x)
        return out.tanh() if self.out_features > 200 else out

    original = Qwen3ForCausalLM.get_output_embeddings

    def with_bias(self: Any) -> Any:
        head = original(self)
        head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
        return head

    if change == "scale":
        monkeypatch.setattr(torch.nn.Linear, "forward", capped)
    else:
        monkeypatch.setattr(Qwen3ForCausalLM, "get_output_embeddings", with_bias)
    with pytest.raises(ModelError, match="output head"):
        load_base(spec.model, torch.device("cpu"))
