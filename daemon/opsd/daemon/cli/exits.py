"""Exit codes, and what each gRPC status becomes.

docs/reference/cli.md is made from these tables.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    ERROR = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    REFUSED = 5
    INVALID_INPUT = 6
    NEGATIVE_OUTCOME = 7
    TIMED_OUT = 8
    OVERLOADED = 9
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANING = {
    Exit.OK: "done",
    Exit.ERROR: "an error without a code of its own; declined at the prompt",
    Exit.USAGE: "the command line itself is wrong: see `--help`",
    Exit.UNREACHABLE: "the daemon does not answer, is starting, or its engine is down",
    Exit.NOT_FOUND: "no such pair, run, adapter, report or file",
    Exit.REFUSED: "the thing's state, or what this caller may do, does not allow it",
    Exit.INVALID_INPUT: "malformed input: configuration, JSON lines, prompt, parameters",
    Exit.NEGATIVE_OUTCOME: "it worked, but the outcome is negative: run failed, cancelled or "
    "rejected, gate not passed, pair refused or unverified, log or adapter not as signed",
    Exit.TIMED_OUT: "no answer within `--timeout`",
    Exit.OVERLOADED: "the daemon is overloaded, or the message is too large for it",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
    Exit.BROKEN_PIPE: "the reader of the output went away; said without a message",
}

BY_STATUS = {
    "CANCELLED": Exit.ERROR,
    "UNKNOWN": Exit.ERROR,
    "INVALID_ARGUMENT": Exit.INVALID_INPUT,
    "DEADLINE_EXCEEDED": Exit.TIMED_OUT,
    "NOT_FOUND": Exit.NOT_FOUND,
    "ALREADY_EXISTS": Exit.REFUSED,
    "PERMISSION_DENIED": Exit.REFUSED,
    "RESOURCE_EXHAUSTED": Exit.OVERLOADED,
    "FAILED_PRECONDITION": Exit.REFUSED,
    "ABORTED": Exit.REFUSED,
    "OUT_OF_RANGE": Exit.INVALID_INPUT,
    "UNIMPLEMENTED": Exit.ERROR,
    "INTERNAL": Exit.ERROR,
    "UNAVAILABLE": Exit.UNREACHABLE,
    "DATA_LOSS": Exit.ERROR,
    "UNAUTHENTICATED": Exit.REFUSED,
}


class CliError(Exception):
    """Ends the command with one line on stderr, a hint where there is one, and an exit code."""

    def __init__(self, message: str, *, hint: str = "", code: Exit = Exit.ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
