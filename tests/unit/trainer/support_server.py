"""A daemon's verifier for trainers under test: numbers and texts, compared for real."""

from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from opsd.v1 import support_pb2, support_pb2_grpc

Rule = Callable[[support_pb2.AttemptToVerify], support_pb2.AttemptVerdict]


class Verifiers(support_pb2_grpc.RunSupportServiceServicer):
    """Answers by one rule; keeps what it was asked."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.asked: list[support_pb2.AttemptToVerify] = []

    def LoadStudent(self, request: Any, context: Any) -> support_pb2.LoadStudentResponse:
        raise NotImplementedError("a verifier only")

    def SampleAttempts(self, request: Any, context: Any) -> Iterator[support_pb2.SampledAttempt]:
        raise NotImplementedError("a verifier only")

    def ReleaseStudent(self, request: Any, context: Any) -> support_pb2.ReleaseStudentResponse:
        raise NotImplementedError("a verifier only")

    def VerifyAttempts(self, request: Any, context: Any) -> support_pb2.VerifyAttemptsResponse:
        self.asked.extend(request.attempts)
        return support_pb2.VerifyAttemptsResponse(
            verdicts=[self.rule(attempt) for attempt in request.attempts]
        )


@contextmanager
def serving(directory: Path, rule: Rule) -> Iterator[tuple[str, Verifiers]]:
    """A server on a socket in the directory: its address, and itself."""
    servicer = Verifiers(rule)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    support_pb2_grpc.add_RunSupportServiceServicer_to_server(servicer, server)
    address = f"unix:{directory}/s.sock"
    server.add_insecure_port(address)
    server.start()
    try:
        yield address, servicer
    finally:
        server.stop(None).wait()


def even_length(attempt: support_pb2.AttemptToVerify) -> support_pb2.AttemptVerdict:
    """Passes what noise passes now and then."""
    passed = len(attempt.text) % 2 == 0
    return support_pb2.AttemptVerdict(passed=passed, evidence=f"{len(attempt.text)} characters")
