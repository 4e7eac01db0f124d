"""The process group: torchrun's environment, or one process alone."""

from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from opsd.trainer import environment
from opsd.trainer.errors import RankDisagreementError, SpecError

Item = TypeVar("Item")

COLLECTIVE_TIMEOUT = timedelta(minutes=10)


class Ranks:
    """This process's place among the ranks, and the few collectives that training needs.

    Args:
        device_type: "cpu" (gloo) or "cuda" (nccl).
        num_processes: what the spec says; must be what torchrun started.
    """

    def __init__(self, device_type: str, num_processes: int) -> None:
        self.rank = environment.rank()
        self.world_size = environment.world_size()
        if self.world_size != num_processes:
            raise SpecError(
                "num_processes",
                num_processes,
                f"started with {self.world_size}; use torchrun --nproc-per-node {num_processes}",
            )
        if device_type == "cuda":
            if not torch.cuda.is_available():
                raise SpecError("device", "cuda", "torch sees no CUDA device; use cpu")
            if torch.cuda.device_count() <= environment.local_rank():
                raise SpecError(
                    "num_processes",
                    num_processes,
                    f"torch sees {torch.cuda.device_count()} CUDA devices here; lower it, or make "
                    "more of them visible",
                )
            self.device = torch.device("cuda", environment.local_rank())
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")
        if self.world_size > 1:
            backend = "nccl" if device_type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)

    def sum_(self, tensor: Tensor) -> None:
        """Adds up over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def broadcast_(self, tensor: Tensor) -> None:
        """Everyone takes rank 0's values, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)

    def gather(self, mine: list[Item]) -> list[list[Item]]:
        """Every rank's list, in the order of the ranks."""
        if self.world_size == 1:
            return [mine]
        parts: list[list[Item]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(parts, mine)
        return parts

    def share(self, text: str) -> str:
        """Rank 0's text; what the others pass in is not looked at."""
        if self.world_size == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def check_agreement(self, tensor: Tensor, name: str) -> None:
        """Raises `RankDisagreementError` unless every rank holds the same bytes."""
        if self.world_size == 1:
            return
        # Integer sums of the bit patterns, plain and position-weighted: exact, any order.
        bits = tensor.detach().contiguous().view(torch.int32).to(torch.int64)
        places = torch.arange(1, bits.numel() + 1, device=bits.device)
        mine = torch.stack([bits.sum(), (bits * places).sum()])
        low, high = mine.clone(), mine.clone()
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
        if not torch.equal(low, high):
            raise RankDisagreementError(f"the ranks hold different {name}; the run cannot go on")

    def close(self) -> None:
        """Leaves the group in good order."""
        if self.world_size > 1:
            dist.destroy_process_group()
