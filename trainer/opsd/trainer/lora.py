"""Student and teacher in one network: the base with LoRA on, off, or with other LoRA weights."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opsd.trainer.errors import AdapterError, SpecError
from opsd.trainer.model import BaseModel
from opsd.v1 import training_pb2

STUDENT = "default"  # peft's own name for the first adapter
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
        self._peft = _with_student(base, spec)
        if self._teacher == training_pb2.TEACHER_INCUMBENT:
            path = Path(spec.objective.teacher_adapter_path)
            _check_adapter_dir(path, "objective.teacher_adapter_path")
            _load(self._peft, path, TEACHER)
        elif self._teacher == training_pb2.TEACHER_EMA:
            self._peft.add_adapter(TEACHER, self._peft.peft_config[STUDENT])
        self._peft.set_adapter(STUDENT)
        self._peft.eval()
        self._layers = _lora_layers(self._peft)
        self._dropouts = [layer.lora_dropout[STUDENT] for layer in self._layers]
        self._has_dropout = spec.lora.dropout > 0
        self.student = FlatLora(self._peft, STUDENT, trainable=True)
        self.ema: FlatLora | None = None
        if self._teacher == training_pb2.TEACHER_EMA:
            self.ema = FlatLora(self._peft, TEACHER, trainable=False)
            self.ema.weights_P.copy_(self.student.weights_P)
        self.causal = base.causal
        self._decoder = base.causal.get_decoder()
        self.head_weight_VD: Tensor = base.causal.get_output_embeddings().weight

    def student_hidden_BLD(self, ids_BL: Tensor) -> Tensor:
        """Last hidden states with gradient, LoRA's dropout on (the base's own stays off).

        Right padding only: no mask is given.
        """
        self._set_dropout(self._has_dropout)
        try:
            return self._hidden(ids_BL)
        finally:
            self._set_dropout(False)

    def teacher_hidden_BLD(self, ids_BL: Tensor) -> Tensor:
        """Last hidden states of the teacher, without gradient."""
        with torch.no_grad(), self._as_teacher():
            return self._hidden(ids_BL)

    def sampled_hidden_BLD(self, ids_BL: Tensor) -> Tensor:
        """Last hidden states of the student as it is sampled: no dropout, no gradient."""
        with torch.no_grad():
            return self._hidden(ids_BL)

    def base_hidden_BLD(self, ids_BL: Tensor) -> Tensor:
        """Last hidden states of the model without any adapter, without gradient."""
        with torch.no_grad(), self._without_lora():
            return self._hidden(ids_BL)

    @contextlib.contextmanager
    def teacher_network(self) -> Iterator[Any]:
        """The teacher for sampling, in eval mode."""
        with torch.no_grad(), self._as_teacher():
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
        """The student for sampling, in eval mode.

        In fp32 its LoRA is folded into copies of the base weights: fewer operations a token, and
        exact to rounding. In 16 bits the fold would round the update away, so LoRA stays apart.
        """
        if self.head_weight_VD.dtype != torch.float32:
            yield self.causal
            return
        with self._without_lora(), contextlib.ExitStack() as restore, torch.no_grad():
            for layer in self._layers:
                plain = layer.get_base_layer()
                weight = plain.weight
                restore.callback(setattr, weight, "data", weight.data)
                weight.data = weight.data + layer.get_delta_weight(STUDENT)
                # peft's wrapper has nothing left to do but cost time, once a layer and token.
                layer.forward = plain.forward
                restore.callback(delattr, layer, "forward")
            yield self.causal

    def _hidden(self, ids_BL: Tensor) -> Tensor:
        hidden: Tensor = self._decoder(input_ids=ids_BL, use_cache=False).last_hidden_state
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

    def _set_dropout(self, on: bool) -> None:
        for dropout in self._dropouts:
            dropout.train(on)


def _with_student(base: BaseModel, spec: training_pb2.RunSpec) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    _check_targets(base.causal, list(spec.lora.target_modules))
    if spec.initial_adapter_path:
        path = Path(spec.initial_adapter_path)
        _check_same_shape(path, spec.lora)
        try:
            return PeftModel.from_pretrained(
                base.causal, path, adapter_name=STUDENT, is_trainable=True
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise AdapterError(f"initial_adapter_path {path}: {error}") from error
    config = LoraConfig(
        r=spec.lora.rank,
        lora_alpha=spec.lora.alpha,
        lora_dropout=spec.lora.dropout,
        target_modules=sorted(spec.lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(spec.seed % 2**63)
    return get_peft_model(base.causal, config)


def _load(peft_model: Any, path: Path, name: str) -> None:
    try:
        peft_model.load_adapter(path, adapter_name=name, is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AdapterError(f"adapter {path}: {error}") from error


def _lora_layers(peft_model: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in peft_model.modules() if isinstance(module, LoraLayer)]


def _check_targets(causal: Any, names: list[str]) -> None:
    # peft is content with one match; a typo among seven would train six.
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in causal.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    for name in names:
        if name not in linear:
            raise SpecError(
                "lora.target_modules",
                name,
                f"the model has no such linear layer; it has {', '.join(sorted(linear))}",
            )


def _check_adapter_dir(path: Path, field: str) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (path / name).is_file():
            raise AdapterError(f"{field} {path}: no {name}")


def _check_same_shape(path: Path, lora: training_pb2.LoraSpec) -> None:
    _check_adapter_dir(path, "initial_adapter_path")
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        found = (config["r"], float(config["lora_alpha"]), sorted(config["target_modules"]))
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path}/adapter_config.json is malformed: {error!r}") from error
    wanted = (lora.rank, lora.alpha, sorted(lora.target_modules))
    if found != wanted:
        raise AdapterError(
            f"initial_adapter_path {path}: (rank, alpha, target_modules) are {found}, "
            f"the spec's lora says {wanted}"
        )
