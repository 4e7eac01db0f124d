"""The learning rate of every step."""

from opsd.v1 import training_pb2


def learning_rate(spec: training_pb2.OptimSpec, step: int) -> float:
    """Rate of the step, from 0: linear warm-up, then linear decay towards the final fraction.

    The first step takes 1 / warmup_steps of the full rate, and the final fraction would be reached
    one step after the last: a step at a rate of 0 would be wasted.
    """
    peak = max(spec.warmup_steps, 1)
    if step < peak:
        return spec.learning_rate * (step + 1) / peak
    done = (step + 1 - peak) / (spec.num_steps + 1 - peak)
    return spec.learning_rate * (1 - (1 - spec.final_lr_fraction) * done)
