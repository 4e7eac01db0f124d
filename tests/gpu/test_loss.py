"""The CUDA kernels against float64, and their use of memory. Skips where there is no GPU."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from opsd.trainer.loss import clipped_kl, clipped_kl_from_logits, in_use, native, reference
from opsd.trainer.loss.config import row_config
from opsd.trainer.loss.parallel import VocabShard

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
    pytest.mark.skipif(
        not native.is_available("cuda"), reason="opsd.trainer._C was built without CUDA"
    ),
]
DIVERGENCES = (("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1))
CLIPS = (("none", None), ("clamp", 0.02), ("scale", 0.02))
# One block, clusters of two to eight blocks, and rows that no cluster holds.
VOCABS = (1, 31, 1000, 32_000, 50_257, 151_936, 400_001)


def pair(rows: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocab)
    both = (torch.randn(2, rows, vocab, generator=generator) * 3).to(dtype).cuda()
    return both[0].clone(), both[1].clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", VOCABS)
def test_rows_equal_float64(vocab: int, dtype: torch.dtype) -> None:
    student, teacher = pair(5, vocab, dtype)
    ids = torch.arange(5, device="cuda") % vocab
    for (divergence, beta), (clip, c), cap in itertools.product(DIVERGENCES, CLIPS, (None, 8.0)):
        config = row_config(divergence, beta, clip, c, 1.1, cap)
        want = reference.clipped_kl_rows(student.double(), teacher.double(), ids, config)
        for overwrite in (False, True):
            got = native.clipped_kl_rows(student.clone(), teacher, ids, config, overwrite=overwrite)
            torch.testing.assert_close(got.loss_R.double(), want.loss_R, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(
                got.telemetry_RK.double(), want.telemetry_RK, rtol=2e-5, atol=5e-6
            )
            grad_RV = got.grad_student_logits_RV.double()
            error = (grad_RV - want.grad_student_logits_RV).norm()
            tolerance = 1e-5 if dtype == torch.float32 else 1e-2
            assert error <= tolerance * want.grad_student_logits_RV.norm() + 1e-7


class _Alone(VocabShard):
    """One rank with everything: the staged kernels without a process group."""

    def sum_(self, values: Tensor) -> Tensor:
        return values

    def max_(self, values: Tensor) -> Tensor:
        return values


@pytest.mark.parametrize("vocab", [31, 50_257, 151_936])
def test_stages_equal_the_fused_kernel(vocab: int) -> None:
    student, teacher = pair(4, vocab, torch.bfloat16)
    ids = torch.arange(4, device="cuda") % vocab
    for (divergence, beta), (clip, c) in itertools.product(DIVERGENCES, CLIPS):
        config = row_config(divergence, beta, clip, c, 0.9, None)
        want = native.clipped_kl_rows(student, teacher, ids, config)
        alone = _Alone("", 0, vocab, vocab, vocab)
        got = native.clipped_kl_rows(student, teacher, ids, config, alone)
        torch.testing.assert_close(got.loss_R, want.loss_R, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            got.grad_student_logits_RV, want.grad_student_logits_RV, rtol=1e-2, atol=1e-6
        )


@pytest.mark.parametrize("place", [0, 7, 150_000])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_poison_is_an_error_that_names_the_token(place: int, poison: float) -> None:
    student, teacher = pair(3, 151_936, torch.bfloat16)
    teacher[1, place] = poison
    with pytest.raises(ValueError, match=rf"teacher_logits\[1, {place}\]"):
        clipped_kl_from_logits(student, teacher, implementation="native")


@pytest.mark.parametrize(
    "settings",
    [
        {"clip": "clamp", "clip_value": 0.01},
        {"divergence": "policy_gradient"},
        {"divergence": "jsd", "top_k": 20},
    ],
    ids=["clamp", "policy gradient", "top k"],
)
def test_hidden_form_equals_float64_and_repeats(settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 300, 64, generator=generator).cuda()
    weight = (torch.randn(5003, 64, generator=generator) / 8).cuda()
    student.requires_grad_()
    ids = torch.arange(300, device="cuda") * 16
    given: dict[str, Any] = {"sampled_ids": ids, "chunk_size": 128} | settings
    outs = [clipped_kl(student, teacher, weight, implementation="native", **given) for _ in "ab"]
    gradients = [torch.autograd.grad(out.loss, student)[0] for out in outs]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(outs[0].telemetry.loss_T, outs[1].telemetry.loss_T)
    exact = student.detach().double().requires_grad_()
    want = clipped_kl(exact, teacher.double(), weight.double(), **given)
    torch.testing.assert_close(outs[0].loss.double(), want.loss, rtol=1e-4, atol=1e-6)
    (want_gradient,) = torch.autograd.grad(want.loss, exact)
    assert (gradients[0].double() - want_gradient).norm() <= 1e-4 * want_gradient.norm()


def test_memory_does_not_grow_with_the_tokens() -> None:
    weight = torch.randn(151_936, 64, device="cuda", dtype=torch.bfloat16) / 8

    def peak(tokens: int) -> int:
        student = torch.randn(tokens, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        teacher = torch.randn_like(student)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        clipped_kl(
            student, teacher, weight, chunk_size=256, implementation="native"
        ).loss.backward()  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() - before

    chunk = 2 * 256 * 151_936 * 2
    assert peak(4096) <= 1.5 * chunk
    assert peak(4096) - peak(512) <= 0.1 * chunk


def test_the_compiled_part_serves_the_gpu() -> None:
    assert in_use("cuda") == "native-cuda"
