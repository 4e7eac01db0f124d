"""Sending a stream so that each request is acknowledged once, whatever the connection does."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.jsonl import Line
from opsd.daemon.cli.output import say
from opsd.daemon.cli.session import Client, Session

if TYPE_CHECKING:
    from opsd.v1.collection_pb2 import (
        AnswerResult,
        OutcomeResult,
        PairResult,
        ProblemResult,
        SubmitAnswerRequest,
        SubmitOutcomeRequest,
        SubmitPairsRequest,
        SubmitProblemsRequest,
    )

WINDOW = 256  # items sent and not acknowledged: bounds memory, and what a retry sends again
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0
_STALE_CHECK_S = 0.5

Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Call(Generic[Request, Result]):
    """A call that takes a stream of requests and answers each, in order."""

    method: Callable[[Client], Callable[..., Any]]
    request_id: Callable[[Request], str]
    result_id: Callable[[Result], str]


PAIRS: Call[SubmitPairsRequest, PairResult] = Call(
    lambda client: client.collection.SubmitPairsAcked,
    lambda request: request.pair.id,
    lambda result: result.id,
)
PROBLEMS: Call[SubmitProblemsRequest, ProblemResult] = Call(
    lambda client: client.sources.SubmitProblems,
    lambda request: request.problem.id,
    lambda result: result.id,
)
ANSWERS: Call[SubmitAnswerRequest, AnswerResult] = Call(
    lambda client: client.sources.SubmitAnswers,
    lambda request: request.attempt_id,
    lambda result: result.attempt_id,
)
OUTCOMES: Call[SubmitOutcomeRequest, OutcomeResult] = Call(
    lambda client: client.sources.SubmitOutcomes,
    lambda request: request.attempt_id,
    lambda result: result.attempt_id,
)


@dataclass
class Submitter(Generic[Request, Result]):
    """Sends the requests of ``lines`` and hands each result to ``on_result``.

    A request counts as done when the daemon acknowledged it. After a lost connection those that
    were not are sent again under the same ids, so nothing is stored twice.
    """

    session: Session
    lines: Iterator[Line[Request]]
    on_result: Callable[[Line[Request], Result], None]
    retries: int
    call: Call[Request, Result]
    _unacknowledged: OrderedDict[str, deque[Line[Request]]] = field(default_factory=OrderedDict)
    _num_unacknowledged: int = 0
    _exhausted: bool = False
    _failure: BaseException | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _reading: threading.Lock = field(default_factory=threading.Lock)
    _handed_back: deque[Line[Request]] = field(default_factory=deque)
    _generation: int = 0

    def run(self) -> None:
        """Raises CliError when the daemon stays away or refuses the stream."""
        failures = 0
        while not self._is_done():
            try:
                if self._attempt():
                    failures = 0
                lost = CliError("the daemon ended the stream with items unacknowledged")
            except _LostError as error:
                failures = 0 if error.progressed else failures
                lost = error.cause
            self._raise_failure()
            if self._is_done():
                return
            failures += 1
            if failures > self.retries:
                raise lost
            wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (failures - 1))
            waiting = self._num_unacknowledged
            say(f"opsd: {lost.message}; {waiting} unacknowledged, trying again in {wait_s:g} s")
            time.sleep(wait_s)

    def _is_done(self) -> bool:
        return self._exhausted and not self._handed_back and self._num_unacknowledged == 0

    def _attempt(self) -> bool:
        """One stream; whether anything was acknowledged. Raises _LostError or CliError."""
        progressed = False
        with self._changed:
            self._generation += 1
            generation = self._generation
        try:
            with self.session.connect() as client:
                call = self.call.method(client)(
                    self._requests(generation),
                    timeout=self.session.timeout_s,
                    metadata=self.session.metadata,
                )
                try:
                    for result in call:
                        self._acknowledge(result)
                        progressed = True
                finally:
                    self._retire(generation)
                    call.cancel()
        except CliError as error:
            if error.code is not Exit.UNREACHABLE:
                raise
            raise _LostError(error, progressed) from error
        return progressed

    def _requests(self, generation: int) -> Iterator[Request]:
        """Runs in gRPC's thread: what a lost stream left over, then new lines in the window."""
        with self._changed:
            again = [line for lines in self._unacknowledged.values() for line in lines]
        for line in again:
            if not self._is_current(generation):
                return
            yield _item(line)
        while (line_ := self._next_line(generation)) is not None:
            yield _item(line_)

    def _next_line(self, generation: int) -> Line[Request] | None:
        with self._changed:
            while self._num_unacknowledged >= WINDOW and self._generation == generation:
                self._changed.wait(_STALE_CHECK_S)
        # Reading may block for long (a slow stdin): acknowledgements must not wait for it.
        with self._reading:
            line = self._read(generation)
            with self._changed:
                if line is None:
                    return None
                if self._generation != generation:
                    # The stream was lost meanwhile; its successor waits for this line.
                    self._handed_back.append(line)
                    return None
                key = self.call.request_id(_item(line))
                self._unacknowledged.setdefault(key, deque()).append(line)
                self._num_unacknowledged += 1
                return line

    def _read(self, generation: int) -> Line[Request] | None:
        if self._handed_back:
            return self._handed_back.popleft()
        if self._generation != generation or self._exhausted:
            return None
        try:
            line = next(self.lines, None)
        except BaseException as error:
            # gRPC's thread would only log it; the main thread raises it.
            self._failure = error
            line = None
        if line is None:
            self._exhausted = True
        return line

    def _acknowledge(self, result: Result) -> None:
        key = self.call.result_id(result)
        with self._changed:
            waiting = self._unacknowledged.get(key)
            if not waiting:
                return  # a line that was sent again was answered for twice
            line = waiting.popleft()
            if not waiting:
                del self._unacknowledged[key]
            self._num_unacknowledged -= 1
            self._changed.notify_all()
        self.on_result(line, result)

    def _is_current(self, generation: int) -> bool:
        with self._changed:
            return self._generation == generation

    def _retire(self, generation: int) -> None:
        """Ends the request thread of a stream that is over."""
        with self._changed:
            if self._generation == generation:
                self._generation += 1
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _item(line: Line[Request]) -> Request:
    assert line.item is not None, "lines with errors are kept back by the caller"
    return line.item


class _LostError(Exception):
    """The connection was lost in the middle of a stream."""

    def __init__(self, cause: CliError, progressed: bool) -> None:
        super().__init__(cause.message)
        self.cause = cause
        self.progressed = progressed
