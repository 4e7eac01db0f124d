"""The products with lm_head: hidden states to logits, and their gradient back.

Shape suffixes: R rows of one chunk, S rows of student and teacher, V vocabulary (of this shard),
D hidden size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from opsd.trainer.loss import native

CHUNK_BYTES = {"cpu": 5 << 26, "cuda": 1 << 30}
"""Memory for the logits of a chunk, student's and teacher's, where nobody says how many rows."""
_WIDE_ROWS = 8192
"""Rows of lm_head that are widened at a time: fewer would multiply less efficiently."""
_spare: dict[tuple[str, torch.dtype], Tensor] = {}


class Head:
    """lm_head over chunks of rows; keeps the memory of a chunk's logits for the next one.

    On the CPU it is kept for the next call too: touching that much new memory costs as much time
    as the loss itself.

    The products run in the weight's dtype and so do the logits, with two exceptions. A processor
    that has no bf16 or fp16 arithmetic of its own multiplies several times faster in fp32, so there
    the weight is widened part by part, and the logits are fp32. And fp16 has too little range for
    gradients, so its logits are fp32 everywhere.

    Args:
        weight: [V, D].
        bias: [V] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self.widened = widens(weight.device, weight.dtype)
        self.dtype = logits_dtype(weight.dtype, weight.device)
        self._product_dtype = torch.float32 if self.widened else weight.dtype
        self._logits_S = self._take("logits")
        self._wide_S = self._take("weight")

    def logits(self, student_RD: Tensor, teacher_RD: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[R, V] of student and teacher, from one product; the next call overwrites them."""
        rows = len(student_RD)
        parts = [student_RD] if teacher_RD is None else [student_RD, teacher_RD]
        hidden_SD = torch.cat([part.to(self.weight.dtype) for part in parts])
        hidden_SD = hidden_SD.to(self._product_dtype)
        shape = (len(hidden_SD), self.weight.shape[0])
        if self._logits_S.numel() < shape[0] * shape[1]:
            self._logits_S = self._logits_S.new_empty(shape[0] * shape[1])
        logits_SV = self._logits_S[: shape[0] * shape[1]].view(shape)
        for part, weight_PD in self._parts():
            if self._product_dtype == self.dtype:
                torch.mm(hidden_SD, weight_PD.T, out=logits_SV[:, part])
            else:
                torch.mm(hidden_SD, weight_PD.T, out_dtype=self.dtype, out=logits_SV[:, part])
        if self.bias is not None:
            logits_SV += self.bias
        return logits_SV[:rows], None if teacher_RD is None else logits_SV[rows:]

    def hidden_gradient(self, grad_RV: Tensor) -> Tensor:
        """[R, D] from the gradient of the logits."""
        if self._product_dtype != self.dtype:
            # To where fp16 has most digits; a power of two changes none of them.
            room = torch.exp2(12 - torch.log2(grad_RV.abs().amax().clamp(min=1e-30)).ceil())
            return ((grad_RV * room).to(self._product_dtype) @ self.weight).float() / room
        if not self.widened:
            return grad_RV @ self.weight
        grad_RD = grad_RV.new_zeros((len(grad_RV), self.weight.shape[1]))
        for part, weight_PD in self._parts():
            grad_RD.addmm_(grad_RV[:, part], weight_PD)
        return grad_RD

    def _parts(self) -> Iterator[tuple[slice, Tensor]]:
        """The weight in the products' dtype, a slice of the vocabulary at a time."""
        if not self.widened:
            yield slice(None), self.weight
            return
        num_vocab, size = self.weight.shape
        rows = min(_WIDE_ROWS, num_vocab)
        if self._wide_S.numel() < rows * size:
            self._wide_S = self._wide_S.new_empty(rows * size)
        for start in range(0, num_vocab, rows):
            part = slice(start, min(start + rows, num_vocab))
            wide_S = self._wide_S[: (part.stop - start) * size]
            yield part, wide_S.view(-1, size).copy_(self.weight[part])

    def close(self) -> None:
        """Leaves the memory to the next head, if it is of an ordinary size; the logits are gone."""
        for what, memory_S in (("logits", self._logits_S), ("weight", self._wide_S)):
            # What inference mode made cannot be written to outside of it.
            ordinary = memory_S.nbytes <= CHUNK_BYTES["cpu"] and not memory_S.is_inference()
            if self.weight.device.type == "cpu" and ordinary:
                _spare[what, self.dtype] = memory_S

    def _take(self, what: str) -> Tensor:
        # Taken out, so that two heads at work never share it.
        spare = _spare.pop((what, self.dtype), None) if self.weight.device.type == "cpu" else None
        return self.weight.new_empty(0, dtype=self.dtype) if spare is None else spare


def logits_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Of logits that a weight of this dtype makes."""
    return torch.float32 if dtype == torch.float16 or widens(device, dtype) else dtype


def widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of this dtype run in fp32 on this device."""
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return dtype == torch.float16 or not native.cpu_has_bf16()
