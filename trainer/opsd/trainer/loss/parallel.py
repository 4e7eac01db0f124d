"""A vocabulary that is spread over ranks: only numbers per row cross the wire.

Every rank holds some rows of lm_head and the same hidden states. Greatest logit, normaliser and
sums of a row are exchanged, so that an entry is clipped by the value that it has in the whole
vocabulary; its logits and its gradient never leave the rank.

Shape suffixes: R rows of a chunk, N normaliser columns.
"""

from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from opsd.trainer.errors import LossArgumentError

# An operator of torch takes no process group, but its name.
_groups: WeakValueDictionary[str, dist.ProcessGroup] = WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class VocabShard:
    """This rank's place in the vocabulary.

    Attributes:
        group_name: of the process group over which the vocabulary is spread.
        start: first id of this rank.
        size: ids of this rank; rows of its lm_head.
        num_vocab: ids of all ranks.
        largest: ids of the rank that has most; all ranks make chunks for that.
    """

    group_name: str
    start: int
    size: int
    num_vocab: int
    largest: int

    @classmethod
    def over(cls, group: dist.ProcessGroup | None, size: int, device: torch.device) -> "VocabShard":
        """Asks the other ranks for their sizes (a collective call); ids follow the ranks' order.

        Args:
            group: the process group; None: the default one.
            size: rows of this rank's lm_head.
            device: where the group's tensors live.
        """
        if not dist.is_initialized():
            raise LossArgumentError("vocab_shard: torch.distributed is not initialised")
        group = group or dist.group.WORLD
        assert group is not None
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(group.size())]
        dist.all_gather(sizes, torch.tensor([size], device=device), group=group)
        counts = [int(count) for count in sizes]
        if min(counts) < 1:
            raise LossArgumentError(
                f"vocab_shard: rank {counts.index(min(counts))} of the group has no row of "
                "lm_head; leave it out of the group"
            )
        rank = group.rank()
        _groups[group.group_name] = group
        return cls(group.group_name, sum(counts[:rank]), size, sum(counts), max(counts))

    @property
    def group(self) -> dist.ProcessGroup:
        """The process group of this name."""
        group = _groups.get(self.group_name)
        if group is None:
            raise LossArgumentError(
                f"vocab_shard: no process group {self.group_name!r}: use VocabShard.over"
            )
        return group

    def sum_(self, values: Tensor) -> Tensor:
        """Adds up over the ranks, in place."""
        dist.all_reduce(values, group=self.group)
        return values

    def max_(self, values: Tensor) -> Tensor:
        """The greatest over the ranks, in place."""
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """[R, C] of every rank side by side: [R, ranks * C]."""
        parts = [torch.empty_like(values) for _ in range(self.group.size())]
        dist.all_gather(parts, values.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)

    def local(self, ids: Tensor) -> Tensor:
        """Global ids as this rank counts them; -1 for other ranks' ids."""
        inside = (ids >= self.start) & (ids < self.start + self.size)
        return torch.where(inside, ids - self.start, -1)


def combined(normalisers_RN: Tensor, temperature: float, shard: VocabShard | None) -> Tensor:
    """The normalisers of the whole vocabulary from those of the shards; see NORMALISER_COLUMNS.

    NaN on one rank is NaN on all of them.
    """
    if shard is None:
        return normalisers_RN
    top, total, weighted = normalisers_RN.view(-1, 2, 3).unbind(-1)
    # NaN travels in the sums: what a maximum makes of it differs between backends.
    highest = shard.max_(top.nan_to_num(nan=-torch.inf).contiguous())
    shift = torch.where(top == -torch.inf, 0.0, (top - highest) / temperature)
    factor = torch.where(top == -torch.inf, 0.0, shift.exp())
    sums = shard.sum_(torch.stack([total * factor, (weighted + shift * total) * factor], dim=-1))
    return torch.cat([highest.unsqueeze(-1), sums], dim=-1).view(-1, normalisers_RN.shape[-1])
