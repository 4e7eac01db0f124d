"""The process that verifies: reads requests on standard input, writes findings on standard output.

A message is four bytes of length (big endian) and so many bytes of JSON. Requests are
``{"verifier", "reference", "text"}``, answers ``{"kind", "evidence"}``; the first message out is
``{"ready": true}``. Started by ``opsd.daemon.verify.process`` as
``python -m opsd.daemon.verify.worker PARENT_PID MEMORY_MIB TIMEOUT_S``.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import BinaryIO

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.checks import EVIDENCE_CHARS, Finding, check_exact, check_numeric, short
from opsd.daemon.verify.mathematics import check_math, warm_up

CHECKS: dict[str, Callable[[str, str], Finding]] = {
    "math": check_math,
    "numeric": check_numeric,
    "exact": check_exact,
}
HEADER = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1


def check(verifier: str, reference: str, text: str) -> Finding:
    """Never raises: what goes wrong is the finding."""
    try:
        return CHECKS[verifier](reference, text)
    except MemoryError:
        return VerdictKind.ERROR, f"comparing with {short(reference)} took too much memory"
    except RecursionError:
        return VerdictKind.ERROR, "the text is nested too deeply"
    except Exception as error:  # whatever sympy thinks of a hostile text
        return VerdictKind.ERROR, f"could not be compared: {type(error).__name__}"


def main() -> None:
    parent, memory_mib, timeout_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    _die_with(parent)
    requests, answers = _take_over_pipes()
    warm_up()
    _confine(memory_mib)
    _send(answers, {"ready": True})
    while (request := _receive(requests)) is not None:
        _allow_cpu(timeout_s)
        kind, evidence = check(request["verifier"], request["reference"], request["text"])
        _send(answers, {"kind": kind.value, "evidence": evidence[:EVIDENCE_CHARS]})


def _die_with(parent: int) -> None:
    """A daemon killed with SIGKILL must not leave verifiers behind."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _take_over_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keeps the pipes to itself: a library that prints must not garble the answers."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    return requests, answers


def _confine(memory_mib: int) -> None:
    """No more memory than this, no files written, no processes started."""
    sys.dont_write_bytecode = True
    size_bytes = memory_mib << 20
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))


def _allow_cpu(timeout_s: float) -> None:
    """The daemon kills on wall time; this holds even when the daemon itself is stuck."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + timeout_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def _receive(pipe: BinaryIO) -> dict[str, str] | None:
    header = pipe.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    body = pipe.read(HEADER.unpack(header)[0])
    message: dict[str, str] = json.loads(body)
    return message


def _send(pipe: BinaryIO, message: dict[str, object]) -> None:
    body = json.dumps(message).encode()
    pipe.write(HEADER.pack(len(body)) + body)
    pipe.flush()


if __name__ == "__main__":
    main()
