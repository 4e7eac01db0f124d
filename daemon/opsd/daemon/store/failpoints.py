"""Places where a crash would hurt, by name, so that tests can crash exactly there.

``OPSD_FAILPOINT=NAME`` kills the process (SIGKILL, nothing is cleaned up) the first time it comes
by NAME, ``NAME:N`` the N-th time. Names: ``pair``, ``purge``, ``promote``, ``canary``,
``canary-advance``, ``canary-save``, ``rollback`` and ``reject``, each with ``-before-commit`` and
``-after-commit``.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

VARIABLE = "OPSD_FAILPOINT"

_lock = threading.Lock()
_visits: Counter[str] = Counter()


def hit(name: str) -> None:
    """Dies here when the environment says so."""
    wanted, _, count = os.environ.get(VARIABLE, "").partition(":")
    if wanted != name:
        return
    with _lock:
        _visits[name] += 1
        if _visits[name] >= int(count or "1"):
            os.kill(os.getpid(), signal.SIGKILL)
