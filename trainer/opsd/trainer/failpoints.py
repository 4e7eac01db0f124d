"""Test hooks: places where a fault test makes the trainer fail on purpose.

`OPSD_TRAINER_FAILPOINT=name[:step]` in the environment arms one of them (the step, steps done
before it, defaults to 0 and is read by the `-at-step` hooks only). Unset, nothing happens. Never
set it in production.

    crash-before-result  SIGKILL to itself when the adapter is saved and result.json is not
    hang-at-step         sleeps for ever at the start of the step, writing no events
    nan-at-step          the step's loss becomes NaN
    exit-at-step         exits at once with status 3 at the start of the step, writing no result
    garbage-result       result.json holds bytes that are not JSON
    corrupt-adapter      one byte of the saved weights is flipped after the digest was taken
"""

import os

VARIABLE = "OPSD_TRAINER_FAILPOINT"
NAMES = frozenset(
    {
        "crash-before-result",
        "hang-at-step",
        "nan-at-step",
        "exit-at-step",
        "garbage-result",
        "corrupt-adapter",
    }
)


def armed(name: str, step: int = 0) -> bool:
    """Whether the failpoint fires here; raises ValueError where the variable names none."""
    setting = os.environ.get(VARIABLE, "")
    if not setting:
        return False
    armed_name, _, armed_step = setting.partition(":")
    if armed_name not in NAMES:
        raise ValueError(f"{VARIABLE}={setting!r}: must be one of {', '.join(sorted(NAMES))}")
    if not name.endswith("-at-step"):
        return name == armed_name
    return name == armed_name and step == int(armed_step or 0)
