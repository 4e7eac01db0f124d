"""A vocabulary spread over ranks gives what one rank with all of it gives.

Shape suffixes: T tokens, V vocabulary, D hidden size.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.unit.trainer.ranks import on_ranks
from torch import Tensor

from opsd.trainer.errors import LossArgumentError
from opsd.trainer.loss import VocabShard, clipped_kl, clipped_kl_from_logits, native
from opsd.trainer.loss.api import _rows_per_chunk

IMPLEMENTATIONS = ("torch", "native") if native.is_available() else ("torch",)
VOCAB = 37
CASES: list[dict[str, Any]] = [
    {"divergence": divergence, "jsd_beta": 0.3, "clip": clip, "clip_value": c, "softcap": cap}
    for divergence in ("forward_kl", "reverse_kl", "jsd")
    for clip, c, cap in (("none", None, None), ("clamp", 0.02, None), ("scale", 0.02, 6.0))
]
CASES += [
    {"divergence": "policy_gradient", "clip": "clamp", "clip_value": 0.5},
    {"divergence": "forward_kl", "top_k": 9, "clip": "clamp", "clip_value": 0.05},
    {"divergence": "jsd", "top_k": 30},
    {"divergence": "forward_kl", "support": True},
]


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 6, generator=generator)
    weight = torch.randn(VOCAB, 6, generator=generator)
    bias = torch.randn(VOCAB, generator=generator)
    bias[:5] = -math.inf  # a part of the vocabulary, and on three ranks a whole shard, is masked
    return student, teacher, weight, bias


def results(case: dict[str, Any], implementation: str, rows: slice, shard: Any) -> list[Tensor]:
    student, teacher, weight, bias = inputs()
    student.requires_grad_()
    weight.requires_grad_()
    arguments = dict(case, implementation=implementation, temperature=1.2, vocab_shard=shard)
    arguments["sampled_ids"] = torch.tensor([5, 17, 36, 9, 20])
    with_teacher: Tensor | None = teacher
    if arguments.pop("support", False):
        logits = ((teacher @ weight.T + bias) / 1.2).log_softmax(-1).detach()
        top = logits.topk(4, dim=-1)
        arguments |= {"teacher_topk_ids": top.indices, "teacher_topk_logprobs": top.values}
        with_teacher = None
    local = weight.detach()[rows].requires_grad_()
    out = clipped_kl(
        student, with_teacher, local, lm_head_bias=bias[rows], chunk_size=2, **arguments
    )
    gradients = torch.autograd.grad(out.loss, (student, local))
    found = [out.loss.detach(), gradients[0], gradients[1]]
    found += [getattr(out.telemetry, name) for name in out.telemetry.__slots__]
    if with_teacher is not None:
        logits = (student @ weight.T + bias).detach()[:, rows].requires_grad_()
        teacher_logits = (teacher @ weight.T + bias).detach()[:, rows]
        again = clipped_kl_from_logits(logits, teacher_logits, **arguments)
        found += [again.loss.detach(), torch.autograd.grad(again.loss, logits)[0].T]
    return found


def messages(shard: VocabShard, last: bool) -> dict[str, str]:
    """What is said where the last rank alone has something wrong."""
    spoiled = torch.zeros(shard.size, 6)
    spoiled[0, 0] = math.nan if last else 0.0
    ones = torch.ones(2, 6)
    calls: dict[str, dict[str, Any]] = {
        "weight": {"lm_head_weight": spoiled},
        "ids": {"sampled_ids": torch.tensor([0, VOCAB if last else 1])},
        "mask": {"token_mask": torch.tensor([True, not last])},
        "gradient": {"student_hidden": torch.ones(2, 6, requires_grad=last)},
        "support": {
            "teacher_hidden": None,
            "lm_head_weight": spoiled,
            "teacher_topk_ids": torch.tensor([[VOCAB - 1, 1], [2, VOCAB - 1]]),
            "teacher_topk_logprobs": torch.full((2, 2), -1.0),
        },
    }
    calls["support"]["lm_head_weight"] = spoiled.roll(-1, 0)  # its last row, which is named
    said = {}
    for name, changes in calls.items():
        given: dict[str, Any] = {
            "student_hidden": ones,
            "teacher_hidden": ones,
            "lm_head_weight": torch.zeros(shard.size, 6),
            "vocab_shard": shard,
        }
        try:
            clipped_kl(**(given | changes))
        except LossArgumentError as error:
            said[name] = str(error)
    return said


def worker(sizes: list[int], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    shard = VocabShard.over(None, sizes[rank], torch.device("cpu"))
    assert (shard.start, shard.num_vocab) == (sum(sizes[:rank]), VOCAB)
    rows = slice(shard.start, shard.start + shard.size)
    found = [
        [results(case, implementation, rows, shard) for case in CASES]
        for implementation in IMPLEMENTATIONS
    ]
    torch.save((found, messages(shard, last=rank == len(sizes) - 1)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [[20, 17], [3, 33, 1]], ids=["two ranks", "three ranks"])
def test_ranks_agree_with_one(sizes: list[int], tmp_path: Path) -> None:
    on_ranks(len(sizes), worker, sizes, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))]
    for which, implementation in enumerate(IMPLEMENTATIONS):
        for number, case in enumerate(CASES):
            want = results(case, implementation, slice(None), None)
            found = [rank[0][which][number] for rank in ranks]
            for place, whole in enumerate(want):
                parts = [rank[place] for rank in found]
                # Gradients of lm_head and of logits are each rank's own part; the rest is shared.
                if place in (2, len(want) - 1) and whole.shape[0] == VOCAB:
                    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-6)
                    continue
                for part in parts:
                    assert torch.equal(part, parts[0])
                    torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-6)


def test_a_nan_on_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    on_ranks(2, worker, [20, 17], str(tmp_path))
    first, last = (torch.load(tmp_path / f"{rank}.pt")[1] for rank in range(2))
    assert "lm_head_weight[0, 0]" in last["weight"]
    assert "lm_head_weight[16, 0]" in last["support"]
    assert "sampled_ids" in last["ids"]
    for name in ("weight", "support", "ids"):
        assert "another rank" in first[name]
    for said in (first, last):
        assert "token_mask: the ranks keep from 1 to 2" in said["mask"]
        assert "require a gradient on all ranks" in said["gradient"]


def test_all_ranks_make_the_same_chunks() -> None:
    weights = torch.zeros(20_000, 2), torch.zeros(400_000, 2)
    counts = {
        _rows_per_chunk(None, VocabShard("", 0, len(w), 420_000, 400_000), w, w.device)
        for w in weights
    }
    assert len(counts) == 1


def test_a_shard_that_does_not_fit_is_named() -> None:
    student, teacher, weight, _ = inputs()
    with pytest.raises(LossArgumentError, match="vocab_shard"):
        clipped_kl(student, teacher, weight, vocab_shard=VocabShard("0", 0, 20, VOCAB, 20))
    with pytest.raises(LossArgumentError, match=r"use VocabShard\.over"):
        clipped_kl(student, teacher, weight, vocab_shard=VocabShard("0", 0, VOCAB, VOCAB, VOCAB))
    with pytest.raises(LossArgumentError, match="not initialised"):
        VocabShard.over(None, 5, torch.device("cpu"))
