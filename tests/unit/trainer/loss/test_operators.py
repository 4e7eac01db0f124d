"""The loss as operators of torch: opcheck, torch.compile, autocast, checkpointing, gradcheck."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from opsd.trainer.errors import NativeUnavailableError
from opsd.trainer.loss import choose, clipped_kl, clipped_kl_from_logits, native

IMPLEMENTATIONS = ("torch", "native") if native.is_available() else ("torch",)
SETTINGS = ("forward_kl", 0.5, "clamp", 0.02, 1.1, 0.0, 0)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, generator=generator)
    weight = torch.randn(17, 5, generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), weight.to(dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_opcheck_from_hidden(implementation: str) -> None:
    student, teacher, weight = inputs()
    mask = torch.tensor([True, True, False, True, True, True])
    ids = torch.arange(6)
    some = (mask, torch.ones(6), ids, None, None)
    for bias, tokens in ((None, (None,) * 5), (torch.ones(17), some)):
        torch.library.opcheck(
            torch.ops.opsd.clipped_kl_from_hidden.default,
            (
                student,
                teacher,
                weight,
                bias,
                *tokens,
                *SETTINGS,
                4,
                implementation,
                [],
                "",
                True,
                False,
                False,
            ),
        )
    head = weight.clone().requires_grad_()
    torch.library.opcheck(
        torch.ops.opsd.clipped_kl_from_hidden.default,
        (student, teacher, head, torch.ones(17, requires_grad=True), *(None,) * 5, *SETTINGS, 4,
         implementation, [], "", True, True, True),
    )  # fmt: skip


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_opcheck_from_logits(implementation: str) -> None:
    student, teacher, weight = inputs()
    torch.library.opcheck(
        torch.ops.opsd.clipped_kl_from_logits.default,
        (
            (student @ weight.T).detach().requires_grad_(), teacher @ weight.T, *(None,) * 5,
            *SETTINGS, 4, implementation, [], "", True,
        ),
    )  # fmt: skip


@pytest.mark.skipif(not native.is_available(), reason="opsd.trainer._C is not built")
def test_opcheck_of_the_stages() -> None:
    native.load()
    student, teacher = torch.randn(2, 3, 21, generator=torch.Generator().manual_seed(0))
    ops = torch.ops.opsd
    settings = ("jsd", 0.3, "scale", 0.05, 1.2, 0.0)
    torch.library.opcheck(ops.kl_normalisers.default, (student, teacher, 1.2, 0.0))
    norm = ops.kl_normalisers(student, teacher, 1.2, 0.0)
    ids = torch.tensor([1, -1, 20])
    torch.library.opcheck(ops.kl_sums.default, (student, teacher, norm, ids, *settings))
    sums = ops.kl_sums(student, teacher, norm, ids, *settings)
    torch.library.opcheck(
        ops.kl_gradient_.default, (student.clone(), teacher, norm, sums, *settings)
    )
    torch.library.opcheck(
        ops.softmax_gradient_.default, (student.clone(), norm, torch.ones(3), 1.2, 0.0)
    )
    torch.library.opcheck(ops.clipped_kl_rows_.default, (student.clone(), teacher, None, *settings))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_full_graph_of_torch_compile(implementation: str) -> None:
    def step(student: Tensor, teacher: Tensor, weight: Tensor, mask: Tensor) -> Any:
        out = clipped_kl(
            student * 2,
            teacher,
            weight,
            clip="scale",
            clip_value=0.02,
            token_mask=mask,
            implementation=implementation,  # type: ignore[arg-type]
        )
        logits = clipped_kl_from_logits(
            student @ weight.T,
            teacher @ weight.T,
            implementation=implementation,  # type: ignore[arg-type]
        )
        return out.loss + logits.loss, out.telemetry.divergence_T

    student, teacher, weight = inputs()
    mask = torch.arange(6) != 2
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    want, divergence = step(student, teacher, weight, mask)
    got, same = compiled(student, teacher, weight, mask)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(same, divergence)
    torch.testing.assert_close(
        torch.autograd.grad(got, student), torch.autograd.grad(want, student)
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast_decides_the_dtype_of_the_products(implementation: str) -> None:
    student, teacher, weight = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = clipped_kl(student, teacher, weight, implementation=implementation)  # type: ignore[arg-type]
    assert got.loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(got.loss, student)
    assert gradient.dtype == torch.float32
    rounded = student.detach().bfloat16().requires_grad_()
    want = clipped_kl(
        rounded, teacher.bfloat16(), weight.bfloat16(), implementation=implementation  # type: ignore[arg-type]
    )  # fmt: skip
    assert got.loss == want.loss
    torch.testing.assert_close(
        gradient, torch.autograd.grad(want.loss, rounded)[0].float(), rtol=1e-2, atol=1e-4
    )


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_activation_checkpointing(implementation: str, reentrant: bool) -> None:
    student, teacher, weight = inputs()

    def loss(hidden: Tensor) -> Tensor:
        return clipped_kl(
            torch.tanh(hidden), teacher, weight, implementation=implementation  # type: ignore[arg-type]
        ).loss  # fmt: skip

    (want,) = torch.autograd.grad(loss(student), student)
    out = checkpoint(loss, student, use_reentrant=reentrant)
    out.backward()
    assert student.grad is not None
    assert torch.equal(student.grad, want)


def test_gradcheck_in_both_forms() -> None:
    student, teacher, weight = (x.detach().double() for x in inputs())
    for divergence in ("forward_kl", "reverse_kl", "jsd"):
        for softcap in (None, 3.0):
            arguments: dict[str, Any] = {"divergence": divergence, "softcap": softcap}
            assert torch.autograd.gradcheck(
                lambda hidden, head, bias, given=arguments: (
                    clipped_kl(hidden, teacher, head, lm_head_bias=bias, **given).loss
                ),
                (student.clone().requires_grad_(), weight, torch.zeros(17).double()),
            )
            assert torch.autograd.gradcheck(
                lambda logits, given=arguments: (
                    clipped_kl_from_logits(logits, teacher @ weight.T, **given).loss
                ),
                ((student @ weight.T).requires_grad_(),),
            )


def test_gradients_scale_with_what_comes_from_above() -> None:
    student, teacher, weight = inputs()
    loss = clipped_kl(student, teacher, weight).loss
    (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
    (tripled,) = torch.autograd.grad(loss * 3, student)
    torch.testing.assert_close(tripled, gradient * 3)


def test_no_gradient_is_made_where_none_is_asked_for() -> None:
    student, teacher, weight = inputs()
    with torch.no_grad():
        out = clipped_kl(student, teacher, weight)
    assert not out.loss.requires_grad
    assert not clipped_kl(student.detach(), teacher, weight).loss.requires_grad
    assert not clipped_kl(student, teacher, weight).telemetry.loss_T.requires_grad


def test_plain_pytorch_serves_where_nothing_is_built_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def not_built() -> None:
        raise NativeUnavailableError("opsd.trainer._C does not load")

    monkeypatch.setattr(native, "load", not_built)
    choose._say_once.cache_clear()
    student, teacher, weight = inputs()
    with caplog.at_level(logging.WARNING):
        first = clipped_kl(student, teacher, weight).loss
        assert clipped_kl(student, teacher, weight).loss == first
    assert len(caplog.records) == 1
    assert "plain PyTorch on cpu" in caplog.text
    assert "does not load" in caplog.text
    assert choose.in_use("cpu") == "torch"
    choose._say_once.cache_clear()


@pytest.mark.skipif(not native.is_available(), reason="opsd.trainer._C is not built")
def test_the_compiled_part_is_the_default(caplog: pytest.LogCaptureFixture) -> None:
    assert choose.in_use("cpu") == f"native-{native.cpu_kernel()}"
    assert choose.chosen("auto", torch.device("cpu"), torch.bfloat16) is native
    assert choose.why_not_native("cpu") is None
    assert not caplog.records
