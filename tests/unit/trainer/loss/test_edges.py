"""Where arithmetic ends: underflow, infinities, fp16's range, and memory that is used again."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from opsd.trainer.errors import LossArgumentError
from opsd.trainer.loss import clipped_kl, clipped_kl_from_logits, heads, native

IMPLEMENTATIONS = ("torch", "native") if native.is_available() else ("torch",)
INF = math.inf


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, generator=generator)
    weight = torch.randn(17, 5, generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), weight.to(dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("clip", "c"), [("none", None), ("clamp", 0.05)])
def test_jsd_of_distributions_that_hardly_meet(
    clip: str, c: float | None, implementation: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 100, generator=generator) * 20
    student.requires_grad_()
    got = clipped_kl_from_logits(
        student, teacher, divergence="jsd", temperature=0.3, clip=clip, clip_value=c,
        implementation=implementation,  # type: ignore[arg-type]
    )  # fmt: skip
    s, t = ((x.detach().double() / 0.3).log_softmax(-1) for x in (student, teacher))
    m = torch.logaddexp(s, t) - math.log(2)
    e = (t.exp() * (t - m) + s.exp() * (s - m)) / 2
    want = (e if c is None else e.clamp(max=c)).sum(-1)
    torch.testing.assert_close(got.telemetry.loss_T.double(), want, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(got.loss, student)[0].isfinite().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("gap", [30.0, 90.0, 200.0, 700.0, 1e4])
def test_top_k_where_the_student_has_no_tail_to_speak_of(gap: float, implementation: str) -> None:
    student = torch.tensor([[gap, 0, 0, 0, 0.5, 0]], requires_grad=True)
    teacher = torch.tensor([[3.0, 2, 1, 1.5, 0, 0.2]])
    got = clipped_kl_from_logits(student, teacher, top_k=2, implementation=implementation)  # type: ignore[arg-type]
    exact = student.detach().double().requires_grad_()
    s, t = exact.log_softmax(-1), teacher.double().log_softmax(-1)
    s = torch.cat([s[:, :2], s[:, 2:].logsumexp(-1, keepdim=True)], dim=-1)
    t = torch.cat([t[:, :2], t[:, 2:].logsumexp(-1, keepdim=True)], dim=-1)
    want = (t.exp() * (t - s)).sum()
    torch.testing.assert_close(got.loss.double(), want, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, student)[0].double(),
        torch.autograd.grad(want, exact)[0],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_infinite_divergence(implementation: str) -> None:
    student = torch.tensor([[0.0, 1.0, -INF], [0.0, 1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, 2.0], [0.0, -INF, 2.0]])
    how: Any = {"implementation": implementation}
    # Forward KL at token 0: the gradient is finite, and a weight of 0 leaves it out.
    out = clipped_kl_from_logits(student, teacher, **how)
    assert out.loss == INF
    assert torch.autograd.grad(out.loss, student)[0][0].isfinite().all()
    weights = torch.tensor([0.0, 1.0])
    assert clipped_kl_from_logits(student, teacher, token_weight=weights, **how).loss.isfinite()
    shares = clipped_kl_from_logits(student, teacher, clip="clamp", clip_value=0.1, **how)
    assert shares.telemetry.clipped_share_T[0] == 1
    assert shares.telemetry.clipped_share_T.isfinite().all()
    # Reverse KL at token 1 has no gradient: an error, unless it is clipped or left out.
    for changes in ({"clip": "clamp", "clip_value": 0.1}, {"token_mask": weights == 0}):
        fine = clipped_kl_from_logits(student, teacher, divergence="reverse_kl", **how, **changes)
        assert torch.autograd.grad(fine.loss, student)[0].isfinite().all()
    with pytest.raises(LossArgumentError, match=r"teacher_logits\[1\]: the divergence is infinite"):
        clipped_kl_from_logits(student, teacher, divergence="reverse_kl", **how)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_sampled_token_of_probability_0_is_named(implementation: str) -> None:
    logits = torch.tensor([[0.0, 1.0, -INF]] * 2)
    with pytest.raises(LossArgumentError, match=r"sampled_ids\[1\]"):
        clipped_kl_from_logits(
            logits, logits, divergence="policy_gradient", sampled_ids=torch.tensor([0, 2]),
            implementation=implementation,  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.01},
        {"divergence": "policy_gradient", "sampled_ids": torch.tensor([2])},
        {"divergence": "reverse_kl"},
    ],
)
def test_fp16_logits_with_large_gradients(settings: dict[str, Any], implementation: str) -> None:
    student = torch.tensor([[1.0, 1.5, -300.0]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[1.0, -300.0, 1.0]], dtype=torch.float16)
    out = clipped_kl_from_logits(student, teacher, implementation=implementation, **settings)  # type: ignore[arg-type]
    exact = student.detach().double().requires_grad_()
    want = clipped_kl_from_logits(exact, teacher.double(), **settings)
    torch.testing.assert_close(
        torch.autograd.grad(out.loss, student)[0].double(),
        torch.autograd.grad(want.loss, exact)[0],
        rtol=2e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [65536.0, 1e-9])
def test_a_loss_scaler_keeps_the_gradient_of_fp16(scale: float, implementation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 500, 4, generator=generator).half()
    weight = torch.randn(4000, 4, generator=generator).half()
    student.requires_grad_()
    exact = student.detach().double().requires_grad_()
    many: Any = {"token_weight": torch.full((500,), 1e-7)}  # as among ten million tokens
    loss = clipped_kl(student, teacher, weight, implementation=implementation, **many).loss  # type: ignore[arg-type]
    want = clipped_kl(exact, teacher.double(), weight.double(), **many).loss
    (want_gradient,) = torch.autograd.grad(want * scale, exact)
    if scale < 1:
        student = student.float().detach().requires_grad_()
        loss = clipped_kl(student, teacher.float(), weight.float(), **many).loss
    (gradient,) = torch.autograd.grad(loss * scale, student)
    assert (gradient.double() - want_gradient).norm() <= 1e-2 * want_gradient.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_of_inference_mode_is_not_used_again(dtype: torch.dtype) -> None:
    student, teacher, weight = inputs(dtype)
    want = clipped_kl(student, teacher, weight).loss
    heads._spare.clear()
    with torch.inference_mode():
        clipped_kl(student.detach(), teacher, weight)
    again = clipped_kl(student, teacher, weight).loss
    assert again == want
    torch.autograd.grad(again, student)


def test_uncommonly_large_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, weight = inputs()
    heads._spare.clear()
    clipped_kl(student, teacher, weight)
    assert heads._spare["logits", torch.float32].numel() > 0
    heads._spare.clear()
    monkeypatch.setitem(heads.CHUNK_BYTES, "cpu", 100)
    clipped_kl(student, teacher, weight, chunk_size=6)
    assert ("logits", torch.float32) not in heads._spare


def test_a_temperature_that_changes_stays_in_the_full_graph() -> None:
    student, teacher, weight = inputs()

    def loss(hidden: Tensor, temperature: float) -> Tensor:
        return clipped_kl(hidden, teacher, weight, temperature=temperature).loss

    for dynamic in (None, True):
        torch._dynamo.reset()
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for temperature in (1.0, 1.1, 1.3):
            torch.testing.assert_close(compiled(student, temperature), loss(student, temperature))


@pytest.mark.skipif(not native.is_available(), reason="opsd.trainer._C is not built")
def test_an_unknown_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSD_CPU_KERNEL", "avx3")
    with pytest.raises(LossArgumentError, match="OPSD_CPU_KERNEL=avx3"):
        native.cpu_kernel()
