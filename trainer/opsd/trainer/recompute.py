"""Gradient checkpointing of a model in eval mode: layers keep their inputs and compute again."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from opsd.trainer.errors import ModelError


class Recomputation:
    """Switches it on for forward passes that will have a backward pass.

    transformers checkpoints a layer only in training mode; here the layers alone are put in it, not
    what they contain, and only while such a pass is under way: sampling needs its cache.

    Args:
        causal: the model, LoRA in place.
        during: makes the context in which a layer is computed again, e.g. dropout on as it was.

    Raises:
        ModelError: the model has no layers that can be checkpointed.
    """

    def __init__(
        self, causal: Any, during: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        def contexts() -> tuple[
            contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]
        ]:
            return contextlib.nullcontext(), during()

        self._layers = [m for m in causal.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not self._layers:
            raise ModelError(
                f"{type(causal).__name__} has no layers for gradient checkpointing; set "
                "parallel.gradient_checkpointing to false"
            )
        causal.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """While this is open, layers keep only what comes in."""
        for layer in self._layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in self._layers:
                layer.training = False
