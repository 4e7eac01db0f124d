"""`python -m opsd.trainer.launch.ray_rank PARENT_PID RUN_DIR/run.json`: one rank of a group.

Started by a Ray worker; ends with it, however that one ends: two groups never write into one run.
"""

import ctypes
import os
import signal
import sys

from opsd.trainer.main import main

_PR_SET_PDEATHSIG = 1


def _end_with(parent_pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _end_with(int(sys.argv[1]))
    status = main(sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    # As in opsd.trainer.__main__: a lost peer can block the interpreter's teardown for ever.
    os._exit(status)
