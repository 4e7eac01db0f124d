"""What a run asks of the daemon that started it (support.proto)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import grpc

from opsd.trainer.errors import SupportError
from opsd.v1 import support_pb2, support_pb2_grpc

VERIFY_TIMEOUT_S = 600.0
VERIFY_BATCH = 64
"""Attempts in one call: each may take the verifier's whole time-out."""
MAX_MESSAGE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier said of an attempt."""

    passed: bool
    is_error: bool = False  # neither pass nor fail
    evidence: str = ""


class Support:
    """A connection to the daemon.

    Args:
        address: gRPC target, e.g. unix:/run/opsd/support.sock.
        run_id: on whose behalf.
    """

    def __init__(self, address: str, run_id: str) -> None:
        self.address = address
        self.run_id = run_id
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        self._channel = grpc.insecure_channel(address, options=options)
        self.stub = support_pb2_grpc.RunSupportServiceStub(self._channel)

    def verify(self, attempts: Sequence[tuple[str, str, str]]) -> list[Verdict]:
        """Verdicts on (verifier, reference, text), in their order.

        Raises:
            SupportError: the daemon cannot be reached, or refuses.
        """
        verdicts: list[Verdict] = []
        for start in range(0, len(attempts), VERIFY_BATCH):
            batch = attempts[start : start + VERIFY_BATCH]
            request = support_pb2.VerifyAttemptsRequest(
                run_id=self.run_id,
                attempts=[
                    support_pb2.AttemptToVerify(verifier=verifier, reference=reference, text=text)
                    for verifier, reference, text in batch
                ],
            )
            try:
                reply = self.stub.VerifyAttempts(
                    request, timeout=VERIFY_TIMEOUT_S, wait_for_ready=True
                )
            except grpc.RpcError as error:
                raise self.failure("attempts could not be verified", error) from error
            if len(reply.verdicts) != len(batch):
                raise SupportError(
                    f"daemon at {self.address}: {len(reply.verdicts)} verdicts on {len(batch)} "
                    "attempts; daemon and trainer must be of one release"
                )
            verdicts.extend(
                Verdict(verdict.passed, verdict.failed_to_verify, verdict.evidence)
                for verdict in reply.verdicts
            )
        return verdicts

    def failure(self, what: str, error: grpc.RpcError) -> SupportError:
        """The error to raise for a failed call."""
        # What a call raises is always a Call too, which grpc's types do not tell.
        call = cast(grpc.Call, error)
        return SupportError(
            f"daemon at {self.address}: {what}: {call.code().name}: {call.details()}"
        )

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()
