"""The loss from hidden states, in every implementation, against float64 autograd of the formula.

Shape suffixes: T tokens, V vocabulary, D hidden size, K named entries.
"""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from opsd.trainer.loss import ClippedKL, clipped_kl, clipped_kl_from_logits, native

IMPLEMENTATIONS = ("torch", "native") if native.is_available() else ("torch",)
DIVERGENCES = (("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1))
CLIPS = (("none", None), ("clamp", 0.02), ("scale", 0.02))
CASES = list(itertools.product(DIVERGENCES, CLIPS))


def inputs(
    tokens: int, vocab: int, size: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, tokens, size, generator=generator)
    weight = torch.randn(vocab, size, generator=generator) * 2 / math.sqrt(size)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), weight.to(dtype)


def entries(s: Tensor, t: Tensor, divergence: str, beta: float) -> Tensor:
    p, q = s.exp(), t.exp()
    if divergence == "forward_kl":
        return q * (t - s)
    if divergence == "reverse_kl":
        return p * (s - t)
    m = (beta * q + (1 - beta) * p).log()
    return beta * q * (t - m) + (1 - beta) * p * (s - m)


def clipped(e: Tensor, clip: str, c: float | None) -> Tensor:
    if clip == "clamp":
        assert c is not None
        return torch.where(e > c, torch.full_like(e, c), e)
    if clip == "scale":
        assert c is not None
        return e * torch.where(e > c, c / e, 1.0).detach()
    return e


def plain(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    clip: str = "none",
    c: float | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The mean over tokens, as the design writes it; float64, left to autograd."""

    def log_probs(hidden: Tensor) -> Tensor:
        logits = hidden @ weight.T
        if bias is not None:
            logits = logits + bias
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return (logits / temperature).log_softmax(-1)

    e = entries(log_probs(student), log_probs(teacher).detach(), divergence, beta)
    return clipped(e, clip, c).sum(-1).mean()


def exact_gradient(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


def gradient_of(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


def relative(got: Tensor, want: Tensor) -> float:
    error = (got.detach().double() - want.detach().double()).norm()
    return float(error / want.double().norm().clamp(min=1e-12))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    tokens=st.integers(1, 7),
    vocab=st.integers(1, 700),
    size=st.integers(1, 33),
    chunk_size=st.one_of(st.none(), st.integers(1, 8)),
    temperature=st.sampled_from([1.0, 0.7, 1.6]),
    case=st.sampled_from(CASES),
)
def test_equals_float64(
    implementation: str,
    dtype: torch.dtype,
    tokens: int,
    vocab: int,
    size: int,
    chunk_size: int | None,
    temperature: float,
    case: tuple[tuple[str, float], tuple[str, float | None]],
) -> None:
    (divergence, beta), (clip, c) = case
    student, teacher, weight = inputs(tokens, vocab, size, dtype, seed=vocab)
    got = clipped_kl(
        student,
        teacher,
        weight,
        divergence=divergence,
        jsd_beta=beta,
        clip=clip,
        clip_value=c,
        temperature=temperature,
        chunk_size=chunk_size,
        implementation=implementation,  # type: ignore[arg-type]
    )
    (gradient,) = torch.autograd.grad(got.loss, student)
    exact = student.detach().double().requires_grad_()
    arguments = (divergence, beta, clip, c, temperature)
    want = plain(exact, teacher.double(), weight.double(), *arguments)
    (want_gradient,) = exact_gradient(want, exact)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    # An entry within rounding of c may fall on either side of it: the loss does not jump there,
    # the gradient does.
    torch.testing.assert_close(got.loss.double(), want, rtol=tolerance, atol=tolerance * 1e-2)
    at_the_edge = clip != "none" and _nearest_to(c, exact, teacher, weight, arguments) < 1e-5
    if not at_the_edge:
        error = (gradient.double() - want_gradient).norm()
        assert error <= tolerance * want_gradient.norm() + tolerance * 1e-2


def _nearest_to(
    c: float | None, student: Tensor, teacher: Tensor, weight: Tensor, arguments: tuple[Any, ...]
) -> float:
    divergence, beta, _, _, temperature = arguments
    s, t = (
        ((hidden.detach().double() @ weight.double().T) / temperature).log_softmax(-1)
        for hidden in (student, teacher)
    )
    return float((entries(s, t, divergence, beta) - (c or 0.0)).abs().min())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("vocab", [151_936, 160_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vocabulary_of_today(vocab: int, dtype: torch.dtype, implementation: str) -> None:
    student, teacher, weight = inputs(3, vocab, 8, dtype)
    for clip, c in (("none", None), ("clamp", 1e-5), ("scale", 1e-5)):
        got = clipped_kl(
            student,
            teacher,
            weight,
            clip=clip,
            clip_value=c,
            implementation=implementation,  # type: ignore[arg-type]
        )
        exact = student.detach().double().requires_grad_()
        want = plain(exact, teacher.double(), weight.double(), clip=clip, c=c)
        # The gradient is a float32 product over the vocabulary: how a processor's BLAS adds it up
        # decides how much of sqrt(V) roundings is left of it.
        roundings = math.sqrt(vocab) * 2**-24
        tolerance, of_gradient = (1e-5, 2 * roundings) if dtype == torch.float32 else (1e-2, 1e-2)
        assert relative(got.loss, want.detach()) <= tolerance
        assert relative(gradient_of(got.loss, student), gradient_of(want, exact)) <= of_gradient


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("case", "clipping"), CASES)
def test_soft_cap_bias_and_the_heads_own_gradients(
    case: tuple[str, float], clipping: tuple[str, float | None], implementation: str
) -> None:
    student, teacher, weight = inputs(5, 43, 6)
    student = (student.detach() * 3).requires_grad_()
    weight.requires_grad_()
    bias = torch.randn(43, generator=torch.Generator().manual_seed(3)).requires_grad_()
    got = clipped_kl(
        student,
        teacher,
        weight,
        lm_head_bias=bias,
        divergence=case[0],
        jsd_beta=case[1],
        clip=clipping[0],
        clip_value=clipping[1],
        temperature=1.2,
        softcap=4.0,
        chunk_size=2,
        implementation=implementation,  # type: ignore[arg-type]
    )
    exact = [x.detach().double().requires_grad_() for x in (student, weight, bias)]
    want = plain(
        exact[0], teacher.double(), exact[1], *case, *clipping, temperature=1.2, softcap=4.0,
        bias=exact[2],
    )  # fmt: skip
    # The teacher shares the head, and is frozen: `plain` cuts its graph.
    torch.testing.assert_close(got.loss.double(), want, rtol=1e-5, atol=1e-7)
    gradients = torch.autograd.grad(got.loss, (student, weight, bias))
    for gradient, want_gradient in zip(gradients, exact_gradient(want, *exact), strict=True):
        assert relative(gradient, want_gradient) <= 1e-5


def test_a_frozen_head_gets_no_gradient() -> None:
    student, teacher, weight = inputs(3, 11, 4)
    clipped_kl(student, teacher, weight).loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_teacher_and_student_give_exactly_nothing(
    dtype: torch.dtype, implementation: str
) -> None:
    student, _, weight = inputs(6, 1009, 16, dtype)
    for divergence, beta in DIVERGENCES:
        out = clipped_kl(
            student,
            student.detach(),
            weight,
            divergence=divergence,
            jsd_beta=beta,
            implementation=implementation,  # type: ignore[arg-type]
        )
        (gradient,) = torch.autograd.grad(out.loss, student)
        if implementation == "native":
            assert out.loss.item() == 0.0
            assert not gradient.any()
        else:
            assert abs(out.loss.item()) < 1e-6
            assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_one_hot_teachers_and_students(implementation: str) -> None:
    student, teacher, weight = inputs(4, 301, 8)
    for scale_student, scale_teacher in ((1.0, 1e4), (1e4, 1.0), (1e4, 1e4)):
        scaled = (student.detach() * scale_student).requires_grad_()
        for divergence, beta in DIVERGENCES:
            got = clipped_kl(
                scaled,
                teacher * scale_teacher,
                weight,
                divergence=divergence,
                jsd_beta=beta,
                implementation=implementation,  # type: ignore[arg-type]
            )
            exact = scaled.detach().double().requires_grad_()
            s = (exact @ weight.double().T).log_softmax(-1)
            t = (teacher.double() * scale_teacher @ weight.double().T).log_softmax(-1)
            e = torch.nan_to_num(entries(s.detach(), t, divergence, beta), nan=0.0)
            torch.testing.assert_close(got.loss.double(), e.sum(-1).mean(), rtol=1e-5, atol=1e-5)
            assert torch.isfinite(torch.autograd.grad(got.loss, scaled)[0]).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_input_that_is_not_contiguous(implementation: str) -> None:
    student, teacher, weight = inputs(10, 57, 12)
    strided = student.detach()[::2, ::3].requires_grad_()
    got = clipped_kl(
        strided,
        teacher.T.contiguous().T[::2, ::3],
        weight.T.contiguous().T[:, ::3],
        clip="scale",
        clip_value=0.02,
        implementation=implementation,  # type: ignore[arg-type]
    )
    exact = student.detach()[::2, ::3].double().contiguous().requires_grad_()
    want = plain(exact, teacher[::2, ::3].double(), weight[:, ::3].double(), clip="scale", c=0.02)
    torch.testing.assert_close(got.loss.double(), want, rtol=1e-5, atol=1e-7)
    assert relative(gradient_of(got.loss, strided), gradient_of(want, exact)) < 1e-5
    wide = torch.randn(7, 40, generator=torch.Generator().manual_seed(1))
    sliced = wide[::2, 3:20].requires_grad_()
    out = clipped_kl_from_logits(sliced, wide[1::2, :17].repeat(2, 1)[:4])
    same = clipped_kl_from_logits(sliced.contiguous(), wide[1::2, :17].repeat(2, 1)[:4])
    assert out.loss == same.loss


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_masked_tokens_are_not_read(implementation: str) -> None:
    student, teacher, weight = inputs(6, 33, 8)
    mask = torch.tensor([True, False, True, True, False, True])
    spoiled, spoiled_teacher = student.detach().clone(), teacher.clone()
    spoiled[1], spoiled_teacher[4] = math.nan, math.inf
    spoiled.requires_grad_()
    ids = torch.tensor([1, -100, 2, 3, -100, 4])
    got = clipped_kl(
        spoiled,
        spoiled_teacher,
        weight,
        token_mask=mask,
        sampled_ids=ids,
        chunk_size=3,
        implementation=implementation,  # type: ignore[arg-type]
    )
    (gradient,) = torch.autograd.grad(got.loss, spoiled)
    want = clipped_kl(student[mask], teacher[mask], weight, sampled_ids=ids[mask])
    torch.testing.assert_close(got.loss, want.loss)
    assert not gradient[~mask].any()
    for name in got.telemetry.__slots__:
        found = getattr(got.telemetry, name)
        assert not found[~mask].any()
        torch.testing.assert_close(found[mask], getattr(want.telemetry, name))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_to_learn_from(implementation: str) -> None:
    student, teacher, weight = inputs(3, 9, 4)
    for arguments in ({"token_mask": torch.zeros(3, dtype=torch.bool)}, {}):
        rows = slice(None) if arguments else slice(0)
        some = student.detach()[rows].requires_grad_()
        out = clipped_kl(some, teacher[rows], weight, implementation=implementation, **arguments)  # type: ignore[arg-type]
        assert out.loss.item() == 0.0
        (gradient,) = torch.autograd.grad(out.loss, some)
        assert gradient.shape == some.shape
        assert not gradient.any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("clipping", CLIPS)
def test_policy_gradient_of_the_sampled_token(
    clipping: tuple[str, float | None], implementation: str
) -> None:
    student, teacher, weight = inputs(6, 29, 7)
    ids = torch.arange(6) * 4
    settings: dict[str, Any] = {"clip": clipping[0], "clip_value": clipping[1] and 0.3}
    got = clipped_kl(
        student,
        teacher,
        weight,
        divergence="policy_gradient",
        sampled_ids=ids,
        temperature=1.3,
        softcap=5.0,
        chunk_size=4,
        implementation=implementation,  # type: ignore[arg-type]
        **settings,
    )
    exact = student.detach().double().requires_grad_()

    def at(hidden: Tensor) -> Tensor:
        logits = 5.0 * torch.tanh(hidden @ weight.double().T / 5.0)
        return (logits / 1.3).log_softmax(-1)[range(6), ids]

    s_T, t_T = at(exact), at(teacher.double())
    advantage_T = (s_T - t_T).detach()
    if clipping[0] != "none":
        assert (advantage_T.abs() > 0.3).any()
        advantage_T = advantage_T.clamp(-0.3, 0.3)
    torch.testing.assert_close(got.telemetry.loss_T.double(), advantage_T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        got.telemetry.divergence_T.double(), (s_T - t_T).detach(), rtol=1e-5, atol=1e-6
    )
    (want_gradient,) = exact_gradient((advantage_T * s_T).mean(), exact)
    assert relative(gradient_of(got.loss, student), want_gradient) < 1e-5


def test_the_policy_gradients_weight_is_the_reverse_kl_on_average() -> None:
    student, teacher, weight = inputs(1, 12, 5)
    every = student.detach().expand(12, -1)
    out = clipped_kl(
        every, teacher.expand(12, -1), weight, divergence="policy_gradient",
        sampled_ids=torch.arange(12),
    )  # fmt: skip
    p = (student @ weight.T).softmax(-1).detach().squeeze(0)
    reverse = clipped_kl(student, teacher, weight, divergence="reverse_kl").loss.detach()
    torch.testing.assert_close((p * out.telemetry.loss_T).sum(), reverse)


def buckets(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the named entries and of all the others together, [T, K + 1]."""
    log_p = logits.log_softmax(-1)
    named = log_p.gather(-1, ids)
    rest = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([named, rest], dim=-1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("case", "clipping"), CASES)
@pytest.mark.parametrize("source", ["own", "given"])
def test_top_k_with_a_tail(
    case: tuple[str, float], clipping: tuple[str, float | None], source: str, implementation: str
) -> None:
    student, teacher, weight = inputs(5, 41, 6)
    temperature, k = 1.4, 4
    exact = student.detach().double().requires_grad_()
    teacher_logits = teacher.double() @ weight.double().T / temperature
    ids = teacher_logits.topk(k, dim=-1).indices
    common: dict[str, Any] = {
        "divergence": case[0],
        "jsd_beta": case[1],
        "clip": clipping[0],
        "clip_value": clipping[1],
        "temperature": temperature,
        "sampled_ids": ids[:, 1],
        "chunk_size": 2,
        "implementation": implementation,
    }
    if source == "own":
        got = clipped_kl(student, teacher, weight, top_k=k, **common)
    else:
        logprobs = teacher_logits.log_softmax(-1).gather(-1, ids)
        got = clipped_kl(
            student, None, weight, teacher_topk_ids=ids, teacher_topk_logprobs=logprobs, **common
        )
    s = buckets(exact @ weight.double().T / temperature, ids)
    t = buckets(teacher_logits, ids)
    want = clipped(entries(s, t, *case), *clipping).sum(-1).mean()
    torch.testing.assert_close(got.loss.double(), want, rtol=1e-5, atol=1e-6)
    assert relative(gradient_of(got.loss, student), gradient_of(want, exact)) < 1e-5
    torch.testing.assert_close(
        got.telemetry.teacher_logprob_T.double(), t[:, 1], rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        got.telemetry.student_logprob_T.double(), s[:, 1].detach(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("k", [41, 1000])
def test_top_k_of_everything_is_the_whole_divergence(k: int, implementation: str) -> None:
    student, teacher, weight = inputs(5, 41, 6)
    got = clipped_kl(student, teacher, weight, top_k=k, implementation=implementation)  # type: ignore[arg-type]
    want = clipped_kl(student, teacher, weight)
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, student)[0],
        torch.autograd.grad(want.loss, student)[0],
        rtol=1e-4,
        atol=1e-7,
    )


def generalised_jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """As knowledge-distillation libraries define it (arXiv 2306.13649), mean over tokens."""
    s, t = student.log_softmax(-1), teacher.log_softmax(-1)

    def kl(towards: Tensor, of: Tensor) -> Tensor:
        return torch.nn.functional.kl_div(towards, of, reduction="batchmean", log_target=True)

    if beta in (0, 1):
        return kl(s, t) if beta == 0 else kl(t, s)
    m = torch.logsumexp(torch.stack([s + math.log(1 - beta), t + math.log(beta)]), dim=0)
    return beta * kl(m, t) + (1 - beta) * kl(m, s)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_generalised_jsd_as_others_define_it(beta: float, implementation: str) -> None:
    student, teacher, weight = inputs(5, 97, 8)
    got = clipped_kl(
        student, teacher, weight, divergence="jsd", jsd_beta=beta, implementation=implementation  # type: ignore[arg-type]
    )  # fmt: skip
    want = generalised_jsd(student @ weight.T, teacher @ weight.T, beta)
    torch.testing.assert_close(got.loss, want)
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, student)[0],
        torch.autograd.grad(want, student)[0],
        rtol=1e-4,
        atol=1e-7,
    )


def bits(out: ClippedKL, of: Tensor) -> list[bytes]:
    (gradient,) = torch.autograd.grad(out.loss, of)
    return [x.detach().numpy().tobytes() for x in (out.loss, gradient, out.telemetry.loss_T)]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_same_input_gives_the_same_bits(implementation: str) -> None:
    student, teacher, weight = inputs(40, 3001, 32)
    runs = [
        bits(
            clipped_kl(
                student, teacher, weight, clip="clamp", clip_value=0.01, chunk_size=16,
                implementation=implementation,  # type: ignore[arg-type]
            ),
            student,
        )
        for _ in range(3)
    ]  # fmt: skip
    assert runs[0] == runs[1] == runs[2]
