"""The audit where lm_head is spread over ranks says what it says on one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from google.protobuf import json_format
from tests.unit.trainer.ranks import on_ranks

from opsd.trainer.loss import VocabShard, clipped_kl
from opsd.trainer.token_audit import AuditedSequence, TokenAudit, TokenSignals
from opsd.v1 import token_audit_pb2, training_pb2

VOCAB = 37
SEQUENCE = AuditedSequence("p", (1, 2), (3,), (0, 36, 2, 17, 3), truncated=False)


class Tokenizer:
    """Light to import: every process makes one."""

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        return SimpleNamespace(input_ids=[1])

    def decode(self, ids: list[int], **options: bool) -> str:
        return "".join(chr(ord("A") + token) for token in ids)


def line(path: Path | None, rows: slice, shard: VocabShard | None) -> None:
    generator = torch.Generator().manual_seed(0)
    student_TD, teacher_TD = torch.randn(2, 5, 6, generator=generator)
    head_VD = torch.randn(VOCAB, 6, generator=generator)[rows]
    out = clipped_kl(student_TD, teacher_TD, head_VD, temperature=1.2, vocab_shard=shard)
    spec = training_pb2.TokenAuditSpec(attempts_per_step=1, every_steps=1, alternatives=5)
    audit = TokenAudit(spec, Tokenizer(), path, temperature=1.2, steps_done=0, shard=shard)
    assert audit.wanted(0) == 1
    signals = TokenSignals.from_telemetry(out.telemetry, torch.ones(5))
    audit.add(0, SEQUENCE, signals, student_TD, teacher_TD, head_VD)
    audit.write(0)


def worker(sizes: list[int], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    shard = VocabShard.over(None, sizes[rank], torch.device("cpu"))
    rows = slice(shard.start, shard.start + shard.size)
    line(Path(folder) / "sharded.jsonl" if rank == 1 else None, rows, shard)
    dist.destroy_process_group()


def test_ranks_say_what_one_says(tmp_path: Path) -> None:
    line(tmp_path / "whole.jsonl", slice(None), None)
    sizes = [3, 34]  # the first has fewer rows than alternatives are asked for
    on_ranks(len(sizes), worker, sizes, str(tmp_path))
    sharded, whole = (
        json_format.Parse((tmp_path / name).read_text(), token_audit_pb2.AuditedAttempt())
        for name in ("sharded.jsonl", "whole.jsonl")
    )
    assert len(whole.tokens) == 5
    for found, want in zip(sharded.tokens, whole.tokens, strict=True):
        for name in ("student_logprob", "teacher_logprob", "divergence"):
            assert getattr(found, name) == pytest.approx(getattr(want, name), rel=1e-3)
        for tops in ((found.student_top, want.student_top), (found.teacher_top, want.teacher_top)):
            assert len(tops[1]) > 3
            assert [entry.id for entry in tops[0]] == [entry.id for entry in tops[1]]
            assert [entry.text for entry in tops[0]] == [entry.text for entry in tops[1]]
            for one, other in zip(*tops, strict=True):
                assert one.logprob == pytest.approx(other.logprob, rel=1e-3)
