"""The process that verifies: reads requests on standard input, writes findings on standard output.

A message is four bytes of length (big endian) and so many bytes of JSON. Requests are
``{"verifier", "reference", "text"}``, answers ``{"kind", "evidence"}``; without a text only the
reference is looked at, and the answer is ``{"mistake"}``. A check that hung or killed its process
has the key ``lost``. The first message out is ``{"ready": true}``.

Started by ``opsd.daemon.verify.process`` as
``python -m opsd.daemon.verify.worker PARENT_PID MEMORY_MIB TIMEOUT_S PLUGINS``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Mapping
from typing import BinaryIO

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.catalogue import BUILTIN, PYTHON_REFERENCE, load
from opsd.daemon.verify.checks import short
from opsd.daemon.verify.protocol import EVIDENCE_CHARS, Check, Finding

CHECKS: dict[str, Check] = {}
"""Filled as they are asked for: most workers never see most verifiers."""
HEADER = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1


def check(verifier: str, reference: str, text: str) -> Finding:
    """Never raises: what goes wrong is the finding."""
    try:
        kind, evidence = _found(verifier).check(reference, text)
        return VerdictKind(kind), str(evidence)[:EVIDENCE_CHARS]
    except MemoryError:
        return VerdictKind.ERROR, f"comparing with {short(reference)} took too much memory"
    except RecursionError:
        return VerdictKind.ERROR, "the text is nested too deeply"
    except Exception as error:  # whatever sympy thinks of a hostile text
        return VerdictKind.ERROR, f"could not be compared: {type(error).__name__}"


def check_reference(verifier: str, reference: str) -> str:
    """What is wrong with a reference; never raises."""
    try:
        return str(_found(verifier).check_reference(reference))[:EVIDENCE_CHARS]
    except MemoryError:
        return f"reading {short(reference)} took too much memory; write a simpler one"
    except RecursionError:
        return f"{short(reference)} is nested too deeply; write a simpler one"
    except Exception as error:
        return f"{short(reference)} could not be read ({type(error).__name__}); write another"


def _found(verifier: str) -> Check:
    if verifier not in CHECKS:
        CHECKS[verifier] = load((BUILTIN | PYTHON_REFERENCE)[verifier])
    return CHECKS[verifier]


def main() -> None:
    parent, memory_mib, timeout_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    _die_with(parent)
    requests, answers = _take_over_pipes()
    for name, target in json.loads(sys.argv[4]).items():
        CHECKS[name] = load(target)
    _warm_up()
    gc.freeze()  # what every child shares stays shared
    child = Child(memory_mib, timeout_s, closing=(requests.fileno(), answers.fileno()))
    _send(answers, {"ready": True})
    while (request := _receive(requests)) is not None:
        _send(answers, child.ask(request))
        child.replace_if_lost()


class Child:
    """A fork of this warm process, which does the work and is replaced when it hangs or dies.

    What a text does to a process stays there: this one never looks at texts, and the next child
    costs milliseconds where importing sympy again costs a second.
    """

    _pid: int
    _requests: BinaryIO

    def __init__(self, memory_mib: int, timeout_s: float, *, closing: tuple[int, ...]) -> None:
        self._memory_mib = memory_mib
        self._timeout_s = timeout_s
        self._closing = closing
        self._pid = 0
        self._lost = False
        self._dying: list[int] = []
        self._requests: BinaryIO
        self._answers: int
        self._start()

    def ask(self, request: dict[str, str]) -> dict[str, object]:
        """The answer, or one of kind error whose ``lost`` says how the child ended."""
        ends = time.monotonic() + self._timeout_s
        try:
            _send(self._requests, request)
            header = self._read(HEADER.size, ends)
            answer: dict[str, object] = json.loads(self._read(HEADER.unpack(header)[0], ends))
            return answer
        except TimeoutError:
            # Gone for good once its gigabytes are freed, which nobody has to wait for.
            os.kill(self._pid, signal.SIGKILL)
            self._lost = True
            how = f"took longer than {self._timeout_s:g} s and was killed"
            return {"kind": "error", "evidence": how, "lost": "timeout"}
        except (EOFError, OSError, ValueError):
            # One that has ended by itself keeps its own status.
            os.kill(self._pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            self._pid, self._lost = 0, True
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            how = f"the verifier process died of it ({how})"
            return {"kind": "error", "evidence": how, "lost": "crash"}

    def _start(self) -> None:
        requests, mine = os.pipe()
        yours, answers = os.pipe()
        parent = os.getpid()
        self._lost = False
        self._pid = os.fork()
        if self._pid == 0:
            for fd in (*self._closing, mine, yours):
                os.close(fd)
            _die_with(parent)
            _confine(self._memory_mib)
            with os.fdopen(requests, "rb") as asked, os.fdopen(answers, "wb") as answering:
                _serve(asked, answering, self._timeout_s)
            os._exit(0)
        os.close(requests)
        os.close(answers)
        self._requests = os.fdopen(mine, "wb")
        self._answers = yours

    def replace_if_lost(self) -> None:
        """To be called when the answer is sent."""
        if not self._lost:
            return
        if self._pid:
            self._dying.append(self._pid)
        # The next text does not wait either.
        self._dying = [pid for pid in self._dying if os.waitpid(pid, os.WNOHANG)[0] == 0]
        os.close(self._answers)
        with contextlib.suppress(OSError):
            self._requests.close()
        self._start()

    def _read(self, size: int, ends: float) -> bytes:
        got = b""
        while len(got) < size:
            left = max(0.0, ends - time.monotonic())
            if not select.select([self._answers], [], [], left)[0]:
                raise TimeoutError
            chunk = os.read(self._answers, size - len(got))
            if not chunk:
                raise EOFError
            got += chunk
        return got


def _serve(requests: BinaryIO, answers: BinaryIO, timeout_s: float) -> None:
    while (request := _receive(requests)) is not None:
        _allow_cpu(timeout_s)
        verifier, reference = request["verifier"], request["reference"]
        if "text" in request:
            kind, evidence = check(verifier, reference, request["text"])
            _send(answers, {"kind": kind.value, "evidence": evidence})
        else:
            _send(answers, {"mistake": check_reference(verifier, reference)})


def _warm_up() -> None:
    """Before the first pair waits for it: sympy, and Math-Verify's grammars."""
    from opsd.daemon.verify.mathematics import warm_up

    warm_up()


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
    """Its parent kills on wall time; this holds even when that is stuck."""
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


def _send(pipe: BinaryIO, message: Mapping[str, object]) -> None:
    body = json.dumps(message).encode()
    pipe.write(HEADER.pack(len(body)) + body)
    pipe.flush()


if __name__ == "__main__":
    main()
