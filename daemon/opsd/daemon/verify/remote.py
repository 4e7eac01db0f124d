"""The verifiers ``grpc:NAME``: a service elsewhere (verifier.proto)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from opsd.daemon.config.verify import RemoteConfig
from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.protocol import EVIDENCE_CHARS, Finding, Isolation
from opsd.v1 import verifier_pb2 as pb
from opsd.v1.verifier_pb2_grpc import VerifierServiceStub

FIRST_PAUSE_S = 0.1
RECONNECT_MS = 100
"""gRPC's own pauses grow to two minutes, in which a service that is back is not asked."""
MESSAGE_BYTES = 16 << 20

_KINDS = {
    pb.VERIFY_OUTCOME_PASS: VerdictKind.PASS,
    pb.VERIFY_OUTCOME_FAIL: VerdictKind.FAIL,
    pb.VERIFY_OUTCOME_ERROR: VerdictKind.ERROR,
}


@dataclass
class RemoteRunner:
    """Keeps one channel; it is opened with the first verdict."""

    name: str
    config: RemoteConfig
    isolation: Isolation = Isolation.REMOTE
    _channel: grpc.aio.Channel | None = field(default=None, init=False)

    @property
    def timeout_s(self) -> float:
        return self.config.timeout_s

    @property
    def concurrency(self) -> int:
        return self.config.concurrency

    @property
    def problem(self) -> str:
        files = [self.config.ca_file, self.config.cert_file, self.config.key_file]
        for path in filter(None, files):
            if not Path(path).is_file():
                return f"{path} is not a file: mend {self.name} in verify.remotes"
        return ""

    async def run(self, reference: str, text: str) -> Finding:
        ends = time.monotonic() + self.timeout_s
        request = pb.VerifyRequest(
            verifier=self.name.partition(":")[2],
            reference=_text(reference),
            text=_text(text),
        )
        for attempt in range(1, self.config.max_attempts + 1):
            try:
                stub: Any = VerifierServiceStub(self._open())
                answer = await stub.Verify(request, timeout=max(0.0, ends - time.monotonic()))
            except OSError as error:
                return VerdictKind.ERROR, f"{self.config.address}: {error}"
            except grpc.aio.AioRpcError as error:
                pause_s = FIRST_PAUSE_S * 2.0 ** (attempt - 1)
                again = attempt < self.config.max_attempts and time.monotonic() + pause_s < ends
                if error.code() is not grpc.StatusCode.UNAVAILABLE or not again:
                    return VerdictKind.ERROR, self._said(error, attempt)
                await asyncio.sleep(pause_s)
            else:
                return self._finding(answer)
        raise AssertionError("the last attempt returns")

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    def _finding(self, answer: pb.VerifyResponse) -> Finding:
        kind = _KINDS.get(answer.outcome)
        if kind is None:
            return VerdictKind.ERROR, f"{self.config.address} gave no outcome"
        return kind, answer.evidence[:EVIDENCE_CHARS]

    def _said(self, error: grpc.aio.AioRpcError, attempts: int) -> str:
        code = error.code().name
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{self.config.address} gave no verdict within {self.timeout_s:g} s"
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        return f"{self.config.address}: {code}{tries}: {(error.details() or '')[:200]}"

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            options = [
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
                ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
            ]
            if self.config.transport == "tls":
                credentials = grpc.ssl_channel_credentials(
                    _bytes(self.config.ca_file),
                    _bytes(self.config.key_file),
                    _bytes(self.config.cert_file),
                )
                self._channel = grpc.aio.secure_channel(self.config.address, credentials, options)
            else:
                self._channel = grpc.aio.insecure_channel(self.config.address, options)
        return self._channel


def _bytes(path: str) -> bytes | None:
    return Path(path).read_bytes() if path else None


def _text(text: str) -> str:
    """protobuf's text is UTF-8, which has no half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()
