"""SIGTERM and SIGINT as a request to stop."""

import signal
from types import FrameType

from opsd.trainer.errors import CancelledRun

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Cancellation:
    """Turns the first SIGTERM or SIGINT into `CancelledRun`, wherever the main thread is.

    The flag stays set, because an exception raised inside a callback of C code can be swallowed:
    points of progress ask it again.
    """

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        """Must run in the main thread."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def only_note_from_now_on(self) -> None:
        """``requested`` still tells of a signal, but nothing is interrupted any more."""
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def ignore_from_now_on(self) -> None:
        """The outcome is settled: a late signal must not tear its last write."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def raise_if_requested(self) -> None:
        """For points of progress."""
        if self.requested:
            raise CancelledRun("cancelled by a signal")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        # torchrun and a process-group signal both send one: the second must not hit the clean-up.
        self.ignore_from_now_on()
        raise CancelledRun(f"cancelled by {signal.Signals(number).name}")
