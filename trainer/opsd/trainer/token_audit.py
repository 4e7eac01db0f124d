"""`token-audit.jsonl`: for a sample of attempts, what was compared at every token.

One `opsd.v1.AuditedAttempt` a line, in proto3 JSON with the proto's own names. Numbers have four
significant digits, and alternatives below `LEAST_PROBABILITY` are left out.

Shape suffixes: T response tokens of one attempt, R rows of a chunk, V vocabulary (of this rank),
D hidden size, K alternatives.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opsd.trainer.loss import TokenTelemetry, VocabShard
from opsd.trainer.loss.heads import Head
from opsd.trainer.token_text import TokenTexts
from opsd.v1 import training_pb2

FILE_NAME = "token-audit.jsonl"
LEAST_PROBABILITY = 1e-3
"""Of an alternative that is kept; the most likely one always is."""
_CHUNK_BYTES = 128 << 20
"""For the fp32 logits of a chunk, student's and teacher's."""
_STEP = re.compile(rb'\{"step":(\d+)[,}]')
# Sums of the same entries in another order differ by so much of their size.
_ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class AuditedSequence:
    """An attempt, apart from what was computed for it."""

    pair_id: str
    student_prompt: tuple[int, ...]
    teacher_prompt: tuple[int, ...]
    """Empty where the objective has no teacher."""
    response: tuple[int, ...]
    truncated: bool
    epistemic: tuple[bool, ...] = ()
    """For each token of the response whether it is of an epistemic word; empty: none is."""
    passed: bool | None = None
    """The verifier's verdict; None: there is none."""
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class TokenSignals:
    """What the objective made of each response token; every field is [T]."""

    divergence_T: Tensor
    """Nats, before clipping."""
    loss_T: Tensor
    """Nats, after clipping, before weighting."""
    clipped_T: Tensor
    """bool: clipping changed this position's value."""
    student_entropy_T: Tensor
    """Nats."""
    teacher_entropy_T: Tensor | None
    """Nats; None where the objective has no teacher."""
    weight_T: Tensor
    """Of the token in the loss, before the mean."""

    @classmethod
    def from_telemetry(
        cls, telemetry: TokenTelemetry, weight_T: Tensor, rows: slice = slice(None)
    ) -> "TokenSignals":
        """From what `clipped_kl` says of a batch.

        Args:
            telemetry: of the batch.
            weight_T: of the attempt's tokens, before the mean.
            rows: the attempt's tokens within the batch.
        """
        loss_T, divergence_T = telemetry.loss_T[rows], telemetry.divergence_T[rows]
        size_T = telemetry.positive_divergence_T[rows].abs() + divergence_T.abs()
        changed_T = (divergence_T - loss_T).abs() > _ROUNDING * size_T
        return cls(
            divergence_T,
            loss_T,
            (telemetry.clipped_mass_T[rows] > 0) | changed_T,
            telemetry.student_entropy_T[rows],
            telemetry.teacher_entropy_T[rows],
            weight_T,
        )


@dataclass(frozen=True, slots=True)
class _Look:
    """What one model thinks of the response."""

    logprob: list[float]  # of the sampled tokens, T of them
    top: list[list[tuple[int, float]]]  # T of (id, log-probability), most likely first


class TokenAudit:
    """Writes down the first attempts of a step on this rank.

    Args:
        spec: how many attempts, how often, how many alternatives.
        tokenizer: of the model.
        path: of the file; made if missing. None: this rank writes nothing.
        temperature: of the loss.
        steps_done: by the checkpoint that the run goes on from. Lines of later steps, which will be
            done again, and a line that was not finished are dropped.
        shard: where lm_head is spread over ranks: this rank's place. All ranks of its group then
            add the same attempts, with and without a path.
    """

    def __init__(
        self,
        spec: training_pb2.TokenAuditSpec,
        tokenizer: Any,
        path: Path | None,
        *,
        temperature: float,
        steps_done: int,
        shard: VocabShard | None = None,
    ) -> None:
        self._spec = spec
        self._texts = TokenTexts(tokenizer)
        self._temperature = temperature
        self._shard = shard
        self._waiting: dict[int, dict[str, Any]] = {}
        self._path = path if spec.attempts_per_step else None
        if self._path is not None:
            _keep_steps(self._path, steps_done)

    def wanted(self, step: int) -> int:
        """How many attempts of the step of this number, from 0, are to be added."""
        if self._path is None and self._shard is None:
            return 0
        return 0 if step % max(self._spec.every_steps, 1) else self._spec.attempts_per_step

    @torch.no_grad()
    def add(
        self,
        place: int,
        sequence: AuditedSequence,
        signals: TokenSignals,
        student_TD: Tensor,
        teacher_TD: Tensor | None,
        head_weight_VD: Tensor,
    ) -> None:
        """Computes an attempt's line and keeps it for `write`.

        Logits are held for one chunk of rows at a time.

        Args:
            place: of the attempt within the step; lines are written in this order.
            sequence: the attempt.
            signals: what the objective made of it.
            student_TD: last hidden states where the response's tokens are predicted.
            teacher_TD: the teacher's; None where the objective has none.
            head_weight_VD: lm_head, of both.
        """
        looks = self._looks(sequence.response, student_TD, teacher_TD, head_weight_VD)
        if self._path is None:
            return
        self._waiting[place] = {
            "pair_id": sequence.pair_id,
            "prompt": self._texts.decode(list(sequence.student_prompt)),
            "teacher_prompt": self._texts.decode(list(sequence.teacher_prompt)),
            "tokens": list(self._tokens(sequence, signals, *looks)),
            "truncated": sequence.truncated,
            "passed": sequence.passed,
            "evidence": sequence.evidence,
        }

    def write(self, step: int) -> None:
        """Appends the attempts that were added, as those of the step of this number, from 0."""
        lines = []
        for _, attempt in sorted(self._waiting.items()):
            fields = {
                name: value
                for name, value in attempt.items()
                if value or (name == "passed" and value is not None)
            }
            line = {"step": step + 1, **fields}
            lines.append(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n")
        self._waiting.clear()
        if self._path is not None and lines:
            with self._path.open("ab") as file:
                file.write("".join(lines).encode())

    def _looks(
        self,
        response: tuple[int, ...],
        student_TD: Tensor,
        teacher_TD: Tensor | None,
        head_weight_VD: Tensor,
    ) -> tuple[_Look, _Look | None]:
        student, teacher = _Look([], []), _Look([], [])
        ids_T = torch.tensor(response, device=student_TD.device)
        num_vocab = head_weight_VD.shape[0] if self._shard is None else self._shard.largest
        # The ranks of a shard exchange numbers chunk by chunk, so all must make the same ones.
        rows = max(1, _CHUNK_BYTES // (2 * 4 * num_vocab))
        head = Head(head_weight_VD.detach(), None)
        for start in range(0, len(response), rows):
            part = slice(start, start + rows)
            teacher_RD = None if teacher_TD is None else teacher_TD[part]
            logits = head.logits(student_TD[part].detach(), teacher_RD)
            for look, logits_RV in zip((student, teacher), logits, strict=True):
                if logits_RV is not None:
                    self._look(look, logits_RV, ids_T[part])
        head.close()
        return student, None if teacher_TD is None else teacher

    def _look(self, look: _Look, logits_RV: Tensor, ids_R: Tensor) -> None:
        """Adds a chunk of rows; overwrites fp32 logits."""
        tempered_RV = logits_RV.float().div_(self._temperature)
        count = min(self._spec.alternatives, tempered_RV.shape[1])
        log_z_R1 = tempered_RV.logsumexp(-1, keepdim=True)
        top_RK, top_ids_RK = tempered_RV.topk(count, dim=-1)
        if self._shard is None:
            at_R1 = tempered_RV.gather(-1, ids_R.unsqueeze(-1))
        else:
            local_R1 = self._shard.local(ids_R).unsqueeze(-1)
            own_R1 = tempered_RV.gather(-1, local_R1.clamp(min=0))
            at_R1 = self._shard.max_(torch.where(local_R1 >= 0, own_R1, -torch.inf))
            log_z_R1 = self._shard.gather(log_z_R1).logsumexp(-1, keepdim=True)
            top_RK, top_ids_RK = self._merged_top(top_RK, top_ids_RK)
        look.logprob.extend((at_R1 - log_z_R1).squeeze(-1).tolist())
        for values, ids in zip((top_RK - log_z_R1).tolist(), top_ids_RK.tolist(), strict=True):
            look.top.append(list(zip(ids, values, strict=True)))

    def _merged_top(self, top_RK: Tensor, ids_RK: Tensor) -> tuple[Tensor, Tensor]:
        """The greatest of all ranks, whose ids this rank's count from its own start."""
        assert self._shard is not None
        missing = self._spec.alternatives - top_RK.shape[1]
        top_RK = torch.nn.functional.pad(top_RK, (0, missing), value=-torch.inf)
        ids_RK = torch.nn.functional.pad(ids_RK + self._shard.start, (0, missing))
        all_RK, all_ids_RK = self._shard.gather(top_RK), self._shard.gather(ids_RK)
        count = min(self._spec.alternatives, self._shard.num_vocab)
        top_RK, places_RK = all_RK.topk(count, dim=-1)
        return top_RK, all_ids_RK.gather(-1, places_RK)

    def _tokens(
        self,
        sequence: AuditedSequence,
        signals: TokenSignals,
        student: _Look,
        teacher: _Look | None,
    ) -> Iterator[dict[str, Any]]:
        columns: dict[str, list[Any]] = {
            "student_logprob": student.logprob,
            "divergence": signals.divergence_T.tolist(),
            "loss": signals.loss_T.tolist(),
            "clipped": signals.clipped_T.tolist(),
            "student_entropy": signals.student_entropy_T.tolist(),
            "weight": signals.weight_T.tolist(),
        }
        if teacher is not None:
            columns["teacher_logprob"] = teacher.logprob
        if signals.teacher_entropy_T is not None:
            columns["teacher_entropy"] = signals.teacher_entropy_T.tolist()
        if sequence.epistemic:
            columns["epistemic"] = list(sequence.epistemic)
        assert all(len(column) == len(sequence.response) for column in columns.values())
        texts = self._texts.sequence(sequence.response)
        for index, (text, pending) in enumerate(texts):
            token: dict[str, Any] = {"id": sequence.response[index], "text": text}
            for name, column in columns.items():
                value = column[index]
                token[name] = value if isinstance(value, bool) else _short(value)
            token["student_top"] = self._alternatives(student.top[index], pending)
            if teacher is not None:
                token["teacher_top"] = self._alternatives(teacher.top[index], pending)
            # Proto3 JSON leaves out what is at its default.
            yield {name: value for name, value in token.items() if value}

    def _alternatives(self, top: list[tuple[int, float]], pending: bytes) -> list[dict[str, Any]]:
        least = math.log(LEAST_PROBABILITY)
        return [
            {"id": id, "text": self._texts.next(id, pending)[0], "logprob": _short(logprob)}
            for rank, (id, logprob) in enumerate(top)
            if rank == 0 or logprob >= least
        ]


def _short(value: float) -> float | str:
    """With four significant digits; what is no number as proto3 JSON writes it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.4g}") + 0.0


def _keep_steps(path: Path, steps_done: int) -> None:
    """Cuts the file, made if missing, behind the last whole line of these steps."""
    kept_bytes = 0
    with path.open("a+b") as file:
        file.seek(0)
        for line in file:
            match = _STEP.match(line)
            if match is None or int(match[1]) > steps_done or not line.endswith(b"\n"):
                break
            kept_bytes += len(line)
        file.truncate(kept_bytes)
