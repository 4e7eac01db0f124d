"""Compares the operators of a library with the reference; run by test_cuda_on_cpu.py."""

import itertools
import json
import sys

import torch
from torch import Tensor

from opsd.trainer.loss import reference
from opsd.trainer.loss.config import RowConfig, row_config
from opsd.trainer.loss.rows import Rows

ops = torch.ops.opsd
DIVERGENCES = (("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.3))
CLIPS = (("none", None), ("clamp", 0.02), ("scale", 0.02))


def pair(rows: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocab)
    both = torch.randn(2, rows, vocab, generator=generator) * 3
    both[:, 0, vocab // 3 : vocab // 2] = -torch.inf
    return both[0].to(dtype), both[1].to(dtype)


def check(got: Rows, want: Rows, dtype: torch.dtype) -> None:
    torch.testing.assert_close(got.loss_R.double(), want.loss_R, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(got.telemetry_RK.double(), want.telemetry_RK, rtol=5e-5, atol=1e-5)
    grad_RV = got.grad_student_logits_RV.double()
    error = (grad_RV - want.grad_student_logits_RV).norm()
    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    assert error <= tolerance * want.grad_student_logits_RV.norm() + 1e-6, error


def compare(vocab: int, dtype: torch.dtype, config: RowConfig) -> None:
    student, teacher = pair(3, vocab, dtype)
    ids = torch.tensor([0, vocab - 1, vocab // 5])
    want = reference.clipped_kl_rows(student.double(), teacher.double(), ids, config)
    settings = config.arguments()
    check(Rows(*ops.clipped_kl_rows(student, teacher, ids, *settings)), want, dtype)
    again = Rows(*ops.clipped_kl_rows(student, teacher, ids, *settings))
    assert torch.equal(again.loss_R, ops.clipped_kl_rows(student, teacher, ids, *settings)[0])
    owned = student.clone()
    loss_R, telemetry_RK = ops.clipped_kl_rows_(owned, teacher, ids, *settings)
    check(Rows(loss_R, telemetry_RK, owned), want, dtype)
    # In stages, as if this were one of several shards.
    norm = ops.kl_normalisers(student, teacher, config.temperature, config.softcap)
    want_norm = reference.normalisers(student, teacher, config)
    torch.testing.assert_close(norm, want_norm, rtol=1e-5, atol=1e-4)
    sums = ops.kl_sums(student, teacher, norm, torch.tensor([0, -1, vocab // 5]), *settings)
    torch.testing.assert_close(sums[:, 0], want.loss_R, rtol=2e-5, atol=2e-6)
    assert sums[1, 6] == 0
    assert sums[1, 7] == 0
    owned = student.clone()
    ops.kl_gradient_(owned, teacher, norm, sums, *settings)
    check(Rows(want.loss_R, want.telemetry_RK, owned), want, dtype)


def compare_softmax(vocab: int, dtype: torch.dtype) -> None:
    student, _ = pair(3, vocab, dtype)
    config = row_config("forward_kl", 0.5, "none", None, 1.3, 6.0)
    norm = ops.kl_normalisers(student, None, 1.3, 6.0)
    assert not norm[:, 3:].any()
    factors = torch.tensor([1.0, -2.0, 0.5])
    got, want = student.clone(), student.double()
    ops.softmax_gradient_(got, norm, factors, 1.3, 6.0)
    reference.softmax_gradient_(want, norm, factors.double(), config)
    assert (got.double() - want).norm() <= 1e-2 * want.norm()


def compare_poison(vocab: int) -> None:
    for place, poison in itertools.product((0, vocab - 1), (torch.nan, torch.inf)):
        for cap in (None, 5.0):
            student, teacher = pair(3, vocab, torch.float32)
            teacher[1, place] = poison
            config = row_config("forward_kl", 0.5, "none", None, 1.0, cap)
            loss, _, grad = ops.clipped_kl_rows(student, teacher, None, *config.arguments())
            assert loss.isnan().tolist() == [False, True, False]
            assert grad.isnan().any(-1).tolist() == [False, True, False]


def main() -> int:
    torch.ops.load_library(sys.argv[1])
    cases = 0
    # One block; a row that starts off 16 bytes; slices over several blocks.
    for vocab, dtype in (
        (1, torch.float32),
        (77, torch.bfloat16),
        (1000, torch.float32),
        (1003, torch.float16),
        (40_003, torch.float32),
        (60_000, torch.bfloat16),
        (130_000, torch.float32),
    ):
        compare_softmax(vocab, dtype)
        every = list(itertools.product(DIVERGENCES, CLIPS, (None, 7.0)))
        for (kind, beta), (clip, c), cap in every if vocab < 40_000 else every[::7]:
            compare(vocab, dtype, row_config(kind, beta, clip, c, 1.1, cap))
            cases += 1
    compare_poison(301)
    compare_poison(50_000)
    print(json.dumps({"cases": cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
