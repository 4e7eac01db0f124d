"""The loss against float64 autograd of the bare formula, the closed form and finite differences.

Shape suffixes: T tokens, V vocabulary, D hidden size.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from opsd.trainer.errors import LossArgumentError
from opsd.trainer.loss import clipped_kl, clipped_kl_from_logits

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
CLIPS = (("none", None), ("clamp", 0.05), ("scale", 0.05))
CASES = list(itertools.product(DIVERGENCES, CLIPS))


def plain_loss_T(
    student_TV: Tensor,
    teacher_TV: Tensor,
    divergence: str,
    clip: str,
    c: float | None,
    temperature: float = 1.0,
    beta: float = 0.5,
) -> Tensor:
    """The objective as design.md writes it, left to autograd."""
    p_S = (student_TV / temperature).softmax(-1)
    p_T = (teacher_TV.detach() / temperature).softmax(-1)
    if divergence == "forward_kl":
        e = p_T * (p_T.log() - p_S.log())
    elif divergence == "reverse_kl":
        e = p_S * (p_S.log() - p_T.log())
    else:
        m = beta * p_T + (1 - beta) * p_S
        e = beta * p_T * (p_T.log() - m.log()) + (1 - beta) * p_S * (p_S.log() - m.log())
    if clip == "clamp":
        assert c is not None
        e = torch.where(e > c, torch.full_like(e, c), e)
    elif clip == "scale":
        assert c is not None
        e = e * torch.where(e > c, c / e, 1.0).detach()
    return e.sum(-1)


def logits(seed: int, tokens: int = 5, vocab: int = 17) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, tokens, vocab, generator=generator, dtype=torch.float64) * 2
    return pair[0].clone().requires_grad_(), pair[1].clone()


@pytest.mark.parametrize(("divergence", "clipping"), CASES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_float64_autograd_of_the_formula(
    divergence: str, clipping: tuple[str, float | None], temperature: float
) -> None:
    student, teacher = logits(0)
    clip, c = clipping
    got = clipped_kl_from_logits(
        student,
        teacher,
        divergence=divergence,
        jsd_beta=0.3,
        clip=clip,
        clip_value=c,
        temperature=temperature,
        chunk_size=2,
    )
    (gradient,) = torch.autograd.grad(got.loss, student)
    want_T = plain_loss_T(student, teacher, divergence, clip, c, temperature, beta=0.3)
    (want_gradient,) = torch.autograd.grad(want_T.mean(), student)
    torch.testing.assert_close(got.telemetry.loss_T, want_T.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("divergence", "clipping"), CASES)
def test_lower_precision_input_is_computed_in_fp32(
    divergence: str, clipping: tuple[str, float | None], dtype: torch.dtype
) -> None:
    student, teacher = (tensor.detach().to(dtype) for tensor in logits(1))
    student.requires_grad_()
    clip, c = clipping
    got = clipped_kl_from_logits(student, teacher, divergence=divergence, clip=clip, clip_value=c)
    (gradient,) = torch.autograd.grad(got.loss, student)
    # The same rounded inputs in float64, so that only our own arithmetic differs.
    exact = student.detach().double().requires_grad_()
    want_T = plain_loss_T(exact, teacher.double(), divergence, clip, c)
    (want_gradient,) = torch.autograd.grad(want_T.mean(), exact)
    assert got.loss.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(got.telemetry.loss_T.double(), want_T.detach(), rtol=1e-5, atol=1e-6)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(
        gradient.double(), want_gradient, rtol=tolerance, atol=tolerance * 1e-1
    )


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_clamp_gradient_has_the_closed_form(temperature: float) -> None:
    """dL/dz_j = (M p_S(j) - 1[j not clipped] p_T(j)) / T with M the unclipped teacher mass."""
    student, teacher = logits(2)
    c = 0.05
    got = clipped_kl_from_logits(
        student,
        teacher,
        clip="clamp",
        clip_value=c,
        temperature=temperature,
        token_weight=torch.ones(len(student), dtype=torch.float64),
    )
    (gradient,) = torch.autograd.grad(got.loss, student)
    p_S, p_T = ((z.detach() / temperature).softmax(-1) for z in (student, teacher))
    clipped = p_T * (p_T / p_S).log() > c
    assert clipped.any()
    assert not clipped.all()
    unclipped_T = p_T.masked_fill(clipped, 0.0)
    want = (unclipped_T.sum(-1, keepdim=True) * p_S - unclipped_T) / temperature
    torch.testing.assert_close(gradient, want, rtol=1e-12, atol=1e-14)
    assert (gradient[clipped] > 0).all(), "a clipped entry is pushed down"


def test_scale_keeps_the_pull_of_a_clipped_entry_and_bounds_it() -> None:
    student, teacher = logits(3)
    c = 0.01
    got = clipped_kl_from_logits(
        student,
        teacher,
        clip="scale",
        clip_value=c,
        token_weight=torch.ones(len(student), dtype=torch.float64),
    )
    (gradient,) = torch.autograd.grad(got.loss, student)
    p_S, p_T = student.detach().softmax(-1), teacher.softmax(-1)
    e = p_T * (p_T / p_S).log()
    kept = p_T * torch.where(e > c, c / e, 1.0)
    torch.testing.assert_close(gradient, kept.sum(-1, keepdim=True) * p_S - kept)
    assert (got.telemetry.loss_T <= c * student.shape[1]).all()


@pytest.mark.parametrize(("divergence", "clipping"), CASES)
def test_finite_differences(divergence: str, clipping: tuple[str, float | None]) -> None:
    clip, c = clipping
    if clip == "scale":
        pytest.skip("the factor is held constant: the gradient is not the loss's derivative")
    student, teacher = logits(4, tokens=2, vocab=5)
    assert torch.autograd.gradcheck(
        lambda z: (
            clipped_kl_from_logits(z, teacher, divergence=divergence, clip=clip, clip_value=c).loss
        ),
        (student,),
    )


@pytest.mark.parametrize(("divergence", "clipping"), CASES)
def test_hidden_form_equals_logits_form(
    divergence: str, clipping: tuple[str, float | None]
) -> None:
    clip, c = clipping
    generator = torch.Generator().manual_seed(5)
    student = torch.randn(7, 6, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(7, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(11, 6, generator=generator, dtype=torch.float64).requires_grad_()
    settings = {"divergence": divergence, "clip": clip, "clip_value": c, "temperature": 1.3}
    got = clipped_kl(student, teacher, weight, chunk_size=3, **settings)  # type: ignore[arg-type]
    gradients = torch.autograd.grad(got.loss, (student, weight))
    want = clipped_kl_from_logits(
        student @ weight.T,
        (teacher @ weight.T).detach(),
        **settings,  # type: ignore[arg-type]
    )
    want_gradients = torch.autograd.grad(want.loss, (student, weight))
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(gradients, want_gradients)


def test_telemetry() -> None:
    student, teacher = logits(6)
    sampled = torch.tensor([0, 3, 5, 16, 2])
    got = clipped_kl_from_logits(
        student, teacher, clip="clamp", clip_value=0.05, sampled_ids=sampled
    ).telemetry
    s, t = student.detach().log_softmax(-1), teacher.log_softmax(-1)
    e = t.exp() * (t - s)
    over = e > 0.05
    torch.testing.assert_close(got.divergence_T, e.sum(-1))
    torch.testing.assert_close(got.clipped_mass_T, (t.exp() * over).sum(-1))
    torch.testing.assert_close(got.student_entropy_T, -(s.exp() * s).sum(-1))
    torch.testing.assert_close(got.teacher_entropy_T, -(t.exp() * t).sum(-1))
    torch.testing.assert_close(got.student_logprob_T, s[range(5), sampled])
    torch.testing.assert_close(got.teacher_logprob_T, t[range(5), sampled])
    want_share = ((e - 0.05) * over).sum(-1) / e.clamp(min=0).sum(-1)
    torch.testing.assert_close(got.clipped_share_T, want_share)
    assert ((got.clipped_share_T >= 0) & (got.clipped_share_T <= 1)).all()


def test_masked_tokens_count_for_nothing_even_when_they_are_nan() -> None:
    student, teacher = logits(7)
    mask = torch.tensor([True, False, True, True, False])
    spoiled = student.detach().clone()
    spoiled[~mask] = math.nan
    spoiled.requires_grad_()
    got = clipped_kl_from_logits(
        spoiled, teacher, token_mask=mask, sampled_ids=torch.tensor([1, -100, 2, 3, -100])
    )
    (gradient,) = torch.autograd.grad(got.loss, spoiled)
    want = clipped_kl_from_logits(student[mask], teacher[mask])
    torch.testing.assert_close(got.loss, want.loss)
    assert (gradient[~mask] == 0).all()
    assert (got.telemetry.divergence_T[~mask] == 0).all()


def test_all_masked_and_empty_batches_give_zero() -> None:
    student, teacher = logits(8)
    masked = clipped_kl_from_logits(
        student, teacher, token_mask=torch.zeros(len(student), dtype=torch.bool)
    )
    assert masked.loss.item() == 0
    assert (torch.autograd.grad(masked.loss, student)[0] == 0).all()
    empty = clipped_kl_from_logits(student[:0], teacher[:0])
    assert empty.loss.item() == 0


def test_equal_teacher_and_student_give_zero_loss_and_gradient() -> None:
    student, _ = logits(9)
    for divergence in DIVERGENCES:
        got = clipped_kl_from_logits(student, student.detach(), divergence=divergence)
        (gradient,) = torch.autograd.grad(got.loss, student)
        assert abs(got.loss.item()) < 1e-14
        assert gradient.abs().max() < 1e-14


def test_vocabulary_masked_to_minus_infinity_on_both_sides() -> None:
    student, teacher = logits(10)
    hidden = torch.arange(17) >= 12
    masked = student.detach().masked_fill(hidden, -math.inf).requires_grad_()
    for divergence, (clip, c) in CASES:
        got = clipped_kl_from_logits(
            masked,
            teacher.masked_fill(hidden, -math.inf),
            divergence=divergence,
            clip=clip,
            clip_value=c,
        )
        (gradient,) = torch.autograd.grad(got.loss, masked)
        want = clipped_kl_from_logits(
            student[:, :12], teacher[:, :12], divergence=divergence, clip=clip, clip_value=c
        )
        torch.testing.assert_close(got.loss, want.loss)
        assert (gradient[:, 12:] == 0).all()


def test_unclipped_forward_kl_is_torchs_kl_div() -> None:
    student, teacher = logits(11)
    want = torch.nn.functional.kl_div(
        student.detach().log_softmax(-1),
        teacher.log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    torch.testing.assert_close(clipped_kl_from_logits(student, teacher).loss.detach(), want)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"divergence": "kl"}, "divergence = 'kl'"),
        ({"clip": "hard"}, "clip = 'hard'"),
        ({"clip": "clamp"}, "clip_value"),
        ({"clip": "clamp", "clip_value": 0.0}, "clip_value"),
        ({"clip": "scale", "clip_value": -1.0}, "clip_value"),
        ({"clip": "scale", "clip_value": math.nan}, "clip_value"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"divergence": "jsd", "jsd_beta": -0.1}, "jsd_beta"),
        ({"divergence": "jsd", "jsd_beta": math.nan}, "jsd_beta"),
        ({"clip_value": -0.1}, "clip_value"),
        ({"softcap": 0.0}, "softcap"),
        ({"softcap": math.inf}, "softcap"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 3, "divergence": "policy_gradient"}, "top_k"),
        ({"divergence": "policy_gradient"}, "sampled_ids is None"),
        ({"teacher_topk_ids": torch.zeros(5, 2, dtype=torch.long)}, "teacher_topk"),
        ({"token_weight": torch.tensor([1.0, math.nan, 1, 1, 1])}, r"token_weight\[1\]"),
        ({"divergence": "jsd", "jsd_beta": 1.5}, "jsd_beta"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"implementation": "fast"}, "implementation"),
        ({"token_mask": torch.ones(4, dtype=torch.bool)}, "token_mask"),
        ({"token_mask": torch.ones(5)}, "token_mask"),
        ({"token_weight": torch.ones(5, 1)}, "token_weight"),
        ({"sampled_ids": torch.full((5,), 17)}, "sampled_ids"),
        ({"sampled_ids": torch.zeros(5)}, "sampled_ids"),
    ],
)
def test_a_wrong_argument_is_named(changes: dict[str, object], named: str) -> None:
    student, teacher = logits(12)
    with pytest.raises(LossArgumentError, match=named):
        clipped_kl_from_logits(student, teacher, **changes)  # type: ignore[arg-type]


def test_shapes_that_do_not_fit_are_named() -> None:
    student, teacher = logits(13)
    with pytest.raises(ValueError, match="teacher_logits"):
        clipped_kl_from_logits(student, teacher[:3])
    with pytest.raises(ValueError, match="student_logits"):
        clipped_kl_from_logits(student[0], teacher[0])
    with pytest.raises(ValueError, match="lm_head_weight"):
        clipped_kl(student, teacher, torch.zeros(9, 4, dtype=torch.float64))
