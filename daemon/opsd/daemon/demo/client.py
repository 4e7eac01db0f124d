"""A gRPC client of the daemon, as an application would write one."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import grpc

from opsd.v1 import (
    admin_pb2_grpc,
    collection_pb2,
    collection_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)

_ANSWER = re.compile(r"Answer:\s*(-?\d+)\s*$")
_ACTOR = (("x-opsd-actor", "demo"),)


@dataclass(slots=True)
class Reply:
    """One streamed answer and what was seen of it."""

    prompt: str
    text: str = ""
    adapters: set[str] = field(default_factory=set)
    started_s: float = 0.0  # time.monotonic()
    token_times_s: list[float] = field(default_factory=list)
    completion_tokens: int = 0
    error: str = ""

    def solves(self, reference: str) -> bool:
        """Judged here, not by the daemon: the last line must be the answer."""
        found = _ANSWER.search(self.text)
        return found is not None and found.group(1) == reference

    @property
    def longest_gap_s(self) -> float:
        """The longest wait for a piece of the answer, the first one included."""
        times = [self.started_s, *self.token_times_s]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


class Client:
    """One channel to the daemon."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self.collection = collection_pb2_grpc.CollectionServiceStub(self._channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def ask(self, prompt: str, *, adapter: str = "", max_tokens: int = 96) -> Reply:
        """Asks for a greedy answer as a stream; an error is told in the reply."""
        reply = Reply(prompt=prompt, started_s=time.monotonic())
        request = inference_pb2.GenerateRequest(
            conversation=inference_pb2.Conversation(
                messages=[inference_pb2.Message(role="user", content=prompt)]
            ),
            sampling=inference_pb2.SamplingParams(max_tokens=max_tokens, temperature=0.0),
            adapter=adapter,
        )
        pieces = []
        try:
            async for chunk in self.inference.GenerateStream(request, timeout=60.0):
                reply.token_times_s.append(time.monotonic())
                reply.adapters.add(chunk.adapter)
                pieces.append(chunk.text_delta)
                if chunk.HasField("usage"):
                    reply.completion_tokens = chunk.usage.completion_tokens
        except grpc.aio.AioRpcError as error:
            reply.error = f"{error.code().name}: {error.details()}"
        reply.text = "".join(pieces)
        return reply

    async def submit(self, pairs: Iterable[dict[str, str]]) -> collection_pb2.SubmitPairsResponse:
        """Submits pairs; each is verified and durable when this returns."""

        async def requests() -> AsyncIterator[collection_pb2.SubmitPairsRequest]:
            for pair in pairs:
                yield collection_pb2.SubmitPairsRequest(
                    pair=collection_pb2.PairInput(
                        id=pair["id"],
                        prompt=pair["prompt"],
                        solution=pair["solution"],
                        verifier=pair["verifier"],
                        reference=pair["reference"],
                        source=pair["source"],
                        stratum=pair["stratum"],
                    )
                )

        return await self.collection.SubmitPairs(requests(), metadata=_ACTOR)
