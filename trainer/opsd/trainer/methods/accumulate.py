"""The gradient of one step's loss over this rank's sequences, a micro-batch at a time."""

import time
from collections.abc import Callable, Sequence

from opsd.trainer.methods.answer import Answer, Durations, StepSums
from opsd.trainer.methods.base import Method


def accumulate(
    method: Method,
    answers: Sequence[Answer],
    num_sequences: int,
    *,
    micro_batch_size: int,
    durations: Durations,
    on_progress: Callable[[], None],
) -> StepSums:
    """Forward and backward; the gradient adds up in the network's parameters.

    Args:
        method: gives the loss.
        answers: of this rank.
        num_sequences: of the step over all ranks: the loss is their mean.
        micro_batch_size: sequences in one forward pass.
        durations: its forward and backward seconds are added to.
        on_progress: called after every micro-batch.
    """
    sums = StepSums()
    # Neighbours of equal length waste no padding.
    ordered = sorted(answers, key=lambda a: len(a.student_prompt) + len(a.response))
    for start in range(0, len(ordered), micro_batch_size):
        began = time.perf_counter()
        loss = method.loss(ordered[start : start + micro_batch_size], num_sequences, sums)
        forwarded = time.perf_counter()
        loss.backward()  # type: ignore[no-untyped-call]
        durations.forward_s += forwarded - began
        durations.backward_s += time.perf_counter() - forwarded
        on_progress()
    return sums
