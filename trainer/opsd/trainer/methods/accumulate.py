"""The gradient of one step's loss over this rank's sequences, a micro-batch at a time."""

import time
from collections.abc import Callable, Sequence

from opsd.trainer.methods.answer import IDLE, Answer, Durations, StepSums
from opsd.trainer.methods.base import Method


def accumulate(
    method: Method,
    answers: Sequence[Answer],
    num_sequences: int,
    *,
    micro_batch_size: int,
    durations: Durations,
    on_progress: Callable[[], None],
    lockstep: Callable[[int], int] = lambda num_passes: num_passes,
) -> StepSums:
    """Forward and backward; the gradient adds up in the network's parameters.

    Args:
        method: gives the loss.
        answers: of this rank.
        num_sequences: of the step over all ranks: the loss is their mean.
        micro_batch_size: sequences in one forward pass.
        durations: its forward and backward seconds are added to.
        on_progress: called after every micro-batch.
        lockstep: from this rank's number of micro-batches to what all ranks do, see
            `StudentTeacher.lockstep`; what is missing is done with `IDLE`.
    """
    sums = StepSums()
    # Where a model cannot take them packed, neighbours of equal length waste no padding.
    ordered = sorted(answers, key=lambda a: len(a.student_prompt) + len(a.response))
    batches = [
        ordered[start : start + micro_batch_size]
        for start in range(0, len(ordered), micro_batch_size)
    ]
    for index in range(lockstep(len(batches))):
        began = time.perf_counter()
        if index < len(batches):
            loss = method.loss(batches[index], num_sequences, sums)
        else:
            loss = method.loss([IDLE], num_sequences, StepSums())
        forwarded = time.perf_counter()
        loss.backward()  # type: ignore[no-untyped-call]
        durations.forward_s += forwarded - began
        durations.backward_s += time.perf_counter() - forwarded
        on_progress()
    return sums
