"""The compiled rows equal the reference, and torch's own checker accepts the operator."""

import importlib

import pytest
import torch
from torch import Tensor

from opsd.trainer.errors import LossArgumentError, NativeUnavailableError
from opsd.trainer.loss import clipped_kl, clipped_kl_from_logits, native, native_is_available

needs_native = pytest.mark.skipif(
    not native_is_available(), reason="opsd.trainer._C is not built; run make setup"
)
CLIPS = (("none", None), ("clamp", 0.05), ("scale", 0.05))


def pair(
    tokens: int = 9, vocab: int = 301, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * vocab)
    both = (torch.randn(2, tokens, vocab, generator=generator) * 3).to(dtype)
    return both[0].clone().requires_grad_(), both[1].clone()


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clipping", CLIPS)
@pytest.mark.parametrize("vocab", [1, 2, 301, 4099])
def test_equals_the_reference(
    vocab: int, clipping: tuple[str, float | None], dtype: torch.dtype
) -> None:
    student, teacher = pair(vocab=vocab, dtype=dtype)
    clip, c = clipping
    settings = {
        "clip": clip,
        "clip_value": c,
        "temperature": 1.1,
        "token_mask": torch.arange(9) % 4 != 1,
        "sampled_ids": torch.arange(9) % vocab,
        "chunk_size": 4,
    }
    results = {}
    for implementation in ("torch", "native"):
        out = clipped_kl_from_logits(
            student,
            teacher,
            implementation=implementation,
            **settings,  # type: ignore[arg-type]
        )
        results[implementation] = (out, torch.autograd.grad(out.loss, student)[0])
    (want, want_gradient), (got, gradient) = results["torch"], results["native"]
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=1e-6)
    for name in want.telemetry.__slots__:
        torch.testing.assert_close(
            getattr(got.telemetry, name), getattr(want.telemetry, name), rtol=1e-4, atol=1e-5
        )
    low = dtype == torch.bfloat16
    torch.testing.assert_close(
        gradient, want_gradient, rtol=1e-2 if low else 1e-4, atol=1e-4 if low else 1e-7
    )


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
            torch.tensor([True, False, True]),
            torch.tensor([1, 2, 3]),
            "scale",
            0.05,
            1.2,
        ),
    )
    torch.library.opcheck(
        torch.ops.opsd.clipped_kl_rows.default,
        (student.detach(), teacher, None, None, "none", float("inf"), 1.0),
    )


@needs_native
def test_the_operators_own_autograd_equals_the_reference() -> None:
    native.load()
    student, teacher = pair(tokens=4, vocab=33)
    loss_rows, telemetry, grad = torch.ops.opsd.clipped_kl_rows(
        student, teacher, None, None, "clamp", 0.05, 1.0
    )
    assert not telemetry.requires_grad
    assert not grad.requires_grad
    (gradient,) = torch.autograd.grad(loss_rows.mean(), student)
    want = clipped_kl_from_logits(student, teacher, clip="clamp", clip_value=0.05).loss
    torch.testing.assert_close(gradient, torch.autograd.grad(want, student)[0])


@needs_native
def test_what_native_cannot_do_is_said() -> None:
    student, teacher = pair()
    with pytest.raises(LossArgumentError, match="divergence = 'jsd'"):
        clipped_kl_from_logits(student, teacher, divergence="jsd", implementation="native")
    with pytest.raises(LossArgumentError, match=r"torch\.float64"):
        clipped_kl_from_logits(student.double(), teacher.double(), implementation="native")


@needs_native
def test_the_operator_refuses_ids_outside_the_vocabulary() -> None:
    native.load()
    student, teacher = pair(tokens=1, vocab=5)
    with pytest.raises(RuntimeError, match="sampled_ids"):
        torch.ops.opsd.clipped_kl_rows(
            student, teacher, None, torch.tensor([5]), "none", float("inf"), 1.0
        )


def test_asking_for_what_is_not_built_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_built(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", not_built)
    native.load.cache_clear()
    student, teacher = pair()
    try:
        with pytest.raises(NativeUnavailableError, match="make setup"):
            clipped_kl_from_logits(student, teacher, implementation="native")
    finally:
        native.load.cache_clear()
