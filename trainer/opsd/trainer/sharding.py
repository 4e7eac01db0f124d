"""A frozen base spread over the ranks (FSDP2, torch's fully_shard), whole where it is sampled from.

Each rank keeps its rows of every weight. In a forward or backward pass a layer's weights come
together as its turn comes, and go again; so all ranks must make the same passes. LoRA's weights are
not spread: they stay the flat vectors of `FlatLora`, the same on all ranks.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:  # a second to import, for nothing where nothing is sharded
    from torch.distributed.fsdp import FSDPModule

from opsd.trainer.errors import ModelError


class ShardedBase:
    """Spreads the model over the default process group; a collective call.

    Args:
        causal: with all its weights, or with parameters on the meta device, to be filled by
            `sharded_load`.
        device: of this rank.
    """

    def __init__(self, causal: Any, device: torch.device) -> None:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        self._causal = causal
        self._gathered = False
        self._head_is_whole = False
        group = dist.group.WORLD
        assert group is not None
        # By this name peft knows that a layer computes whole products though its weight is spread.
        self.mesh = DeviceMesh.from_group(group, device.type, mesh_dim_names=("fsdp",))
        decoder, embedding = causal.get_decoder(), causal.get_input_embeddings()
        head = causal.get_output_embeddings()
        self._is_tied = head.weight is embedding.weight
        parts = [*_layers(causal, decoder), embedding, *([] if self._is_tied else [head]), decoder]
        for part in parts:
            # The root too: its weights are not needed until the next pass either.
            fully_shard(part, mesh=self.mesh, reshard_after_forward=True)
        self._parts: list[FSDPModule] = parts
        self.retie()

    @property
    def is_gathered(self) -> bool:
        """Whether every rank has all weights now."""
        return self._gathered

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """All weights on every rank, so that no pass within needs another rank.

        Entering is a collective call, unless they are together already.
        """
        if self._gathered:
            yield
            return
        for part in self._parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        self.retie()
        self._gathered = True
        try:
            yield
        finally:
            self._gathered = False
            for part in self._parts:
                part.reshard()
                part.set_reshard_after_forward(True, recurse=False)
            self.retie()

    @property
    def has_whole_head(self) -> bool:
        """Whether every rank has all rows of the output head now."""
        return self._gathered or self._head_is_whole

    @contextlib.contextmanager
    def whole_head(self) -> Iterator[None]:
        """The output head alone on every rank; entering is a collective call."""
        if self.has_whole_head:
            yield
            return
        part: Any = (
            self._causal.get_input_embeddings()
            if self._is_tied
            else self._causal.get_output_embeddings()
        )
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
        self.retie()
        self._head_is_whole = True
        try:
            yield
        finally:
            self._head_is_whole = False
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)
            self.retie()

    def head_rows(self) -> Tensor:
        """This rank's rows of the output head, [V / ranks, D]; all of them while it is whole."""
        weight = self._causal.get_output_embeddings().weight
        rows: Tensor = weight if self.has_whole_head else weight.to_local()
        return rows.detach()

    def retie(self) -> None:
        """A tied head is no part of its own: it shows what the embedding shows now."""
        if self._is_tied:
            head = self._causal.get_output_embeddings()
            head.weight = self._causal.get_input_embeddings().weight


def _layers(causal: Any, decoder: Any) -> list[Any]:
    names = set(getattr(causal, "_no_split_modules", None) or ())
    layers = [module for module in decoder.modules() if type(module).__name__ in names]
    if not layers:
        raise ModelError(
            f"{type(causal).__name__}: does not say what its layers are, so it cannot be sharded; "
            "set parallel.sharding to SHARDING_NONE"
        )
    return layers
