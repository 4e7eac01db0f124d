"""The compiled rows equal the reference, and torch's own checker accepts the operator."""

import importlib
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opsd.trainer.errors import LossArgumentError, NativeUnavailableError
from opsd.trainer.loss import clipped_kl, clipped_kl_from_logits, native
from opsd.trainer.loss.config import row_config

needs_native = pytest.mark.skipif(
    not native.is_available(), reason="opsd.trainer._C is not built; run make setup"
)
CLIPS = (("none", None), ("clamp", 0.05), ("scale", 0.05))


def pair(
    tokens: int = 9, vocab: int = 301, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * vocab)
    both = (torch.randn(2, tokens, vocab, generator=generator) * 3).to(dtype)
    return both[0].clone().requires_grad_(), both[1].clone()


@pytest.fixture(params=["avx512", "avx2", "generic"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kernel in turn; skips what this processor cannot run."""
    monkeypatch.setenv("OPSD_CPU_KERNEL", request.param)
    if native.cpu_kernel() != request.param:
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)


DIVERGENCES = (("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1))


@needs_native
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 301, 4099])
def test_equals_the_reference_in_float64(vocab: int, dtype: torch.dtype) -> None:
    student, teacher = pair(vocab=vocab, dtype=dtype)
    for (divergence, beta), (clip, c) in itertools.product(DIVERGENCES, CLIPS):
        settings = {
            "divergence": divergence,
            "jsd_beta": beta,
            "clip": clip,
            "clip_value": c,
            "temperature": 1.1,
            "token_mask": torch.arange(9) % 4 != 1,
            "sampled_ids": torch.arange(9) % vocab,
            "chunk_size": 4,
        }
        got = clipped_kl_from_logits(student, teacher, implementation="native", **settings)  # type: ignore[arg-type]
        exact = student.detach().double().requires_grad_()
        want = clipped_kl_from_logits(exact, teacher.double(), **settings)  # type: ignore[arg-type]
        torch.testing.assert_close(got.loss.double(), want.loss, rtol=1e-5, atol=1e-7)
        for name in want.telemetry.__slots__:
            torch.testing.assert_close(
                getattr(got.telemetry, name).double(),
                getattr(want.telemetry, name),
                rtol=1e-5,
                atol=2e-6,
            )
        (gradient,) = torch.autograd.grad(got.loss, student)
        (exact_gradient,) = torch.autograd.grad(want.loss, exact)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        error = (gradient.double() - exact_gradient).norm()
        assert error <= tolerance * exact_gradient.norm() + 1e-9, (divergence, clip)


@needs_native
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
def test_equal_rows_have_no_loss_and_no_gradient(divergence: str, beta: float) -> None:
    student, _ = pair(vocab=1003)
    out = clipped_kl_from_logits(
        student, student.detach(), divergence=divergence, jsd_beta=beta, implementation="native"
    )
    assert out.loss.item() == 0.0
    assert not torch.autograd.grad(out.loss, student)[0].any()


@needs_native
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
@pytest.mark.parametrize("clipping", CLIPS)
def test_close_rows_keep_their_digits(
    divergence: str, beta: float, clipping: tuple[str, float | None]
) -> None:
    student, _ = pair(vocab=1003)
    noise = torch.randn(9, 1003, generator=torch.Generator().manual_seed(1)) * 0.01
    teacher = student.detach() + noise
    settings = {"divergence": divergence, "jsd_beta": beta, "clip": clipping[0]}
    settings["clip_value"] = clipping[1]
    got = clipped_kl_from_logits(student, teacher, implementation="native", **settings)  # type: ignore[arg-type]
    exact = student.detach().double().requires_grad_()
    want = clipped_kl_from_logits(exact, teacher.double(), **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(got.loss.double(), want.loss, rtol=1e-3, atol=0)
    (gradient,) = torch.autograd.grad(got.loss, student)
    (exact_gradient,) = torch.autograd.grad(want.loss, exact)
    assert (gradient.double() - exact_gradient).norm() <= 1e-3 * exact_gradient.norm()


@needs_native
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
def test_rows_that_differ_by_a_constant_keep_their_digits(divergence: str, beta: float) -> None:
    student, teacher = pair(vocab=1003)
    shifted = (student.detach() + 16384.0).requires_grad_()  # rounds the logits to 1/512
    settings = {"divergence": divergence, "jsd_beta": beta}
    got = clipped_kl_from_logits(shifted, teacher, implementation="native", **settings)  # type: ignore[arg-type]
    exact = shifted.detach().double().requires_grad_()
    want = clipped_kl_from_logits(exact, teacher.double(), **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(got.loss.double(), want.loss, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(got.loss, shifted)
    (exact_gradient,) = torch.autograd.grad(want.loss, exact)
    assert (gradient.double() - exact_gradient).norm() <= 1e-5 * exact_gradient.norm()


@needs_native
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("divergence", "beta"), DIVERGENCES)
@pytest.mark.parametrize("clipping", CLIPS)
def test_extreme_logits_and_masked_vocabulary(
    divergence: str, beta: float, clipping: tuple[str, float | None]
) -> None:
    student, teacher = (logits.detach() * 3000 for logits in pair(vocab=67))
    for logits in (student, teacher):
        logits[:, ::5] = -float("inf")
    student.requires_grad_()
    settings = {"divergence": divergence, "jsd_beta": beta, "clip": clipping[0]}
    settings["clip_value"] = clipping[1]
    got = clipped_kl_from_logits(student, teacher, implementation="native", **settings)  # type: ignore[arg-type]
    want = clipped_kl_from_logits(student, teacher, **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, student)[0],
        torch.autograd.grad(want.loss, student)[0],
        rtol=1e-4,
        atol=1e-6,
    )


@needs_native
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 16, 66])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_poisoned_row_is_nan_and_the_others_are_not(
    poison: float, place: int, dtype: torch.dtype
) -> None:
    student, teacher = (logits.detach() for logits in pair(vocab=67, dtype=dtype))
    teacher[3, place] = poison
    config = row_config("forward_kl", 0.5, "none", None, 1.0)
    out = native.clipped_kl_rows(student, teacher, None, config)
    for found_R in (out.loss_R, *out.telemetry_RK[:, :5].T, *out.grad_student_logits_RV.T):
        assert torch.isfinite(found_R).tolist() == [row != 3 for row in range(9)]


@needs_native
@pytest.mark.usefixtures("kernel")
def test_a_large_vocabulary_in_bf16() -> None:
    student, teacher = pair(tokens=2, vocab=151_936, dtype=torch.bfloat16)
    got = clipped_kl_from_logits(
        student, teacher, clip="clamp", clip_value=1e-4, implementation="native"
    )
    exact = student.detach().double().requires_grad_()
    want = clipped_kl_from_logits(exact, teacher.double(), clip="clamp", clip_value=1e-4)
    torch.testing.assert_close(got.loss.double(), want.loss, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(got.loss, student)
    (exact_gradient,) = torch.autograd.grad(want.loss, exact)
    assert (gradient.double() - exact_gradient).norm() <= 1e-2 * exact_gradient.norm()


@needs_native
def test_the_best_kernel_is_chosen_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPSD_CPU_KERNEL", raising=False)
    flags = Path("/proc/cpuinfo").read_text()
    expected = "generic"
    if all(f" {flag}" in flags for flag in ("avx2", "fma")):
        expected = "avx2"
    if all(f" {flag}" in flags for flag in ("avx512f", "avx512bw", "avx512dq", "avx512vl")):
        expected = "avx512"
    assert native.cpu_kernel() == expected


@needs_native
def test_hidden_form_runs_natively() -> None:
    student, teacher = pair(vocab=16)
    weight = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    want = clipped_kl(student, teacher, weight, clip="scale", clip_value=0.1)
    got = clipped_kl(
        student, teacher, weight, clip="scale", clip_value=0.1, implementation="native"
    )
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, student),
        torch.autograd.grad(want.loss, student),
        rtol=1e-4,
        atol=1e-7,
    )


@needs_native
def test_opcheck_forward_and_backward() -> None:
    native.load()
    student, teacher = pair(tokens=3, vocab=13)
    torch.library.opcheck(
        torch.ops.opsd.clipped_kl_rows.default,
        (
            student,
            teacher,
            torch.tensor([1, 2, 3]),
            "jsd",
            0.3,
            "scale",
            0.05,
            1.2,
            0.0,
        ),
    )
    torch.library.opcheck(
        torch.ops.opsd.clipped_kl_rows.default,
        (student.detach(), teacher, None, "forward_kl", 0.5, "none", float("inf"), 1.0, 30.0),
    )


@needs_native
def test_the_operators_own_autograd_equals_the_reference() -> None:
    native.load()
    student, teacher = pair(tokens=4, vocab=33)
    loss_rows, telemetry, grad = torch.ops.opsd.clipped_kl_rows(
        student, teacher, None, "forward_kl", 0.5, "clamp", 0.05, 1.0, 0.0
    )
    assert not telemetry.requires_grad
    assert not grad.requires_grad
    (gradient,) = torch.autograd.grad(loss_rows.mean(), student)
    want = clipped_kl_from_logits(student, teacher, clip="clamp", clip_value=0.05).loss
    torch.testing.assert_close(gradient, torch.autograd.grad(want, student)[0])


@needs_native
def test_what_native_cannot_do_is_said() -> None:
    student, teacher = pair()
    with pytest.raises(LossArgumentError, match=r"torch\.float64"):
        clipped_kl_from_logits(student.double(), teacher.double(), implementation="native")


@needs_native
def test_the_operator_refuses_ids_outside_the_vocabulary() -> None:
    native.load()
    student, teacher = pair(tokens=1, vocab=5)
    with pytest.raises(RuntimeError, match="sampled_ids"):
        torch.ops.opsd.clipped_kl_rows(
            student, teacher, torch.tensor([5]), "forward_kl", 0.5, "none", float("inf"), 1.0, 0.0
        )


def test_asking_for_what_is_not_built_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_built(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", not_built)
    student, teacher = pair()
    with pytest.raises(NativeUnavailableError, match="make setup"):
        clipped_kl_from_logits(student, teacher, implementation="native")
