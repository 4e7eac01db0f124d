"""Student and teacher in one network: the base with LoRA on, off, or with other LoRA weights."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from opsd.trainer.attention import packed_arguments
from opsd.trainer.forward import unpacked
from opsd.trainer.head import OutputHead
from opsd.trainer.model import BaseModel
from opsd.trainer.peft_adapters import (
    STUDENT,
    check_adapter_dir,
    load_adapter,
    lora_layers,
    with_student,
)
from opsd.trainer.recompute import Recomputation
from opsd.v1 import training_pb2

TEACHER = "teacher"


class FlatLora:
    """One adapter's weights and gradients as two flat fp32 vectors that the parameters view.

    One vector makes the all-reduce, the norm, the check for NaN, the optimizer and the checkpoint
    one operation each.

    Shape suffix: P parameters of the adapter.
    """

    def __init__(self, network: torch.nn.Module, adapter: str, trainable: bool) -> None:
        named = {
            name: parameter
            for name, parameter in network.named_parameters()
            if f".{adapter}." in name and "lora_" in name
        }
        self.names = sorted(named)
        self._sizes = [named[name].numel() for name in self.names]
        parameters = [named[name] for name in self.names]
        self.weights_P = torch.cat([p.detach().float().reshape(-1) for p in parameters])
        self.grad_P = torch.zeros_like(self.weights_P) if trainable else None
        offset = 0
        for parameter, size in zip(parameters, self._sizes, strict=True):
            view = self.weights_P[offset : offset + size].view(parameter.shape)
            parameter.data = view
            if self.grad_P is not None:
                # autograd adds into an existing .grad in place, so the views stay.
                parameter.grad = self.grad_P[offset : offset + size].view(parameter.shape)
            offset += size

    def first_non_finite(self, values_P: Tensor) -> str | None:
        """Name of the first parameter whose part of the vector holds NaN or infinity."""
        for name, part in zip(self.names, torch.split(values_P, self._sizes), strict=True):
            if not bool(torch.isfinite(part).all()):
                return name
        return None


class StudentTeacher:
    """The network with its LoRA adapters; the student's trains, the teacher's never does.

    Shape suffixes: B sequences, L positions, D hidden size, V vocabulary.
    """

    def __init__(self, base: BaseModel, spec: training_pb2.RunSpec) -> None:
        self._teacher = spec.objective.teacher
        self._ema_decay = spec.objective.ema_decay
        self._peft = with_student(base, spec)
        if self._teacher == training_pb2.TEACHER_INCUMBENT:
            path = Path(spec.objective.teacher_adapter_path)
            check_adapter_dir(path, "objective.teacher_adapter_path")
            load_adapter(self._peft, path, TEACHER)
        elif self._teacher == training_pb2.TEACHER_EMA:
            self._peft.add_adapter(TEACHER, self._peft.peft_config[STUDENT])
        self._peft.set_adapter(STUDENT)
        self._peft.eval()
        self._layers = lora_layers(self._peft)
        self._dropouts = [layer.lora_dropout[STUDENT] for layer in self._layers]
        self._has_dropout = spec.lora.dropout > 0
        self.student = FlatLora(self._peft, STUDENT, trainable=True)
        self.ema: FlatLora | None = None
        if self._teacher == training_pb2.TEACHER_EMA:
            self.ema = FlatLora(self._peft, TEACHER, trainable=False)
            self.ema.weights_P.copy_(self.student.weights_P)
        self.causal = base.causal
        self.device = self.student.weights_P.device
        self.head = OutputHead(base.causal, base.sharded)
        self._decoder = base.causal.get_decoder()
        self._packs = base.packs
        self._sharded = base.sharded
        self._recomputation: Recomputation | None = None
        if spec.parallel.gradient_checkpointing:
            self._recomputation = Recomputation(base.causal, self._dropout)

    @property
    def head_weight_VD(self) -> Tensor:
        """The output head; an error where it is spread over the ranks, see `whole_head`."""
        return self.head.weight_VD

    def student_hidden_BLD(self, ids_BL: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Last hidden states with gradient, LoRA's dropout on (the base's own stays off).

        Args:
            ids_BL: padded on the right only, as no mask is given.
            lengths: of the sequences that are packed in one row, [1, L], without padding.
        """
        with contextlib.ExitStack() as during:
            during.enter_context(self._dropout())
            if self._recomputation is not None and torch.is_grad_enabled():
                during.enter_context(self._recomputation.on())
            return self._hidden(ids_BL, lengths)

    def teacher_hidden_BLD(self, ids_BL: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Last hidden states of the teacher, without gradient."""
        with torch.no_grad(), self._as_teacher():
            return self._hidden(ids_BL, lengths)

    def sampled_hidden_BLD(self, ids_BL: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Last hidden states of the student as it is sampled: no dropout, no gradient."""
        with torch.no_grad():
            return self._hidden(ids_BL, lengths)

    def base_hidden_BLD(self, ids_BL: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Last hidden states of the model without any adapter, without gradient."""
        with torch.no_grad(), self._without_lora():
            return self._hidden(ids_BL, lengths)

    def lockstep(self, num_passes: int) -> int:
        """How many passes this rank must make so that all make as many; collective if sharded.

        Args:
            num_passes: that this rank has work for.
        """
        if self._sharded is None or self._sharded.is_gathered:
            return num_passes
        most = torch.tensor([num_passes], device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return int(most)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """A sharded base is whole within, and ranks may make passes as they like.

        Entering and leaving is a collective call, unless it is whole already or not sharded.
        """
        with self._sharded.gathered() if self._sharded is not None else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def whole_head(self) -> Iterator[None]:
        """The head of a sharded base is whole within; the rest of it may stay spread.

        Entering is a collective call, unless it is whole already or not sharded.
        """
        with self._sharded.whole_head() if self._sharded is not None else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def teacher_network(self) -> Iterator[Any]:
        """The teacher for sampling, in eval mode; `gathered`."""
        with self.gathered(), torch.no_grad(), self._as_teacher():
            yield self.causal

    def update_ema(self) -> None:
        """Moves the averaged teacher by one step, where there is one."""
        if self.ema is not None:
            self.ema.weights_P.lerp_(self.student.weights_P, 1 - self._ema_decay)

    def adapter_state(self) -> dict[str, Tensor]:
        """The student's weights under peft's names for a saved adapter."""
        from peft import get_peft_model_state_dict

        state: dict[str, Tensor] = get_peft_model_state_dict(
            self._peft, adapter_name=STUDENT, save_embedding_layers=False
        )
        return state

    @contextlib.contextmanager
    def rollout_network(self) -> Iterator[Any]:
        """The student for sampling, in eval mode; `gathered`.

        In fp32 its LoRA is folded into copies of the base weights: fewer operations a token, and
        exact to rounding. In 16 bits the fold would round the update away, so LoRA stays apart.
        """
        with contextlib.ExitStack() as restore, torch.no_grad():
            restore.enter_context(self.gathered())
            if self.head_weight_VD.dtype != torch.float32:
                yield self.causal
                return
            restore.enter_context(self._without_lora())
            for layer in self._layers:
                plain = layer.get_base_layer()
                weight = plain.weight
                restore.callback(setattr, weight, "data", weight.data)
                weight.data = weight.data + layer.get_delta_weight(STUDENT)
                # peft's wrapper has nothing left to do but cost time, once a layer and token.
                layer.forward = plain.forward
                restore.callback(delattr, layer, "forward")
            yield self.causal

    def _hidden(self, ids_BL: Tensor, lengths: Sequence[int] | None) -> Tensor:
        if lengths is None:
            return self._decode(ids_BL)
        if self._packs:
            return self._decode(ids_BL, **packed_arguments(lengths, ids_BL.device))
        rows, places = unpacked(ids_BL, lengths)
        return self._decode(rows).flatten(0, 1)[places].unsqueeze(0)

    def _decode(self, ids_BL: Tensor, **arguments: Any) -> Tensor:
        out = self._decoder(input_ids=ids_BL, use_cache=False, **arguments)
        hidden: Tensor = out.last_hidden_state
        return hidden

    @contextlib.contextmanager
    def _as_teacher(self) -> Iterator[None]:
        if self._teacher == training_pb2.TEACHER_BASE:
            with self._without_lora():
                yield
            return
        self._peft.set_adapter(TEACHER)
        try:
            yield
        finally:
            self._peft.set_adapter(STUDENT)

    @contextlib.contextmanager
    def _without_lora(self) -> Iterator[None]:
        # peft's own disable_adapter first inspects every module of the model: at a small model
        # that takes a tenth of the step.
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)

    @contextlib.contextmanager
    def _dropout(self) -> Iterator[None]:
        for dropout in self._dropouts:
            dropout.train(self._has_dropout)
        try:
            yield
        finally:
            for dropout in self._dropouts:
                dropout.train(False)
