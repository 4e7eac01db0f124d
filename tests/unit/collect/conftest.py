"""The service over real gRPC, with errors mapped to statuses as the daemon does it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import grpc
import pytest

from opsd.daemon.collect.curation_service import CurationService
from opsd.daemon.collect.hygiene.contamination import HeldOutIndex
from opsd.daemon.collect.service import CollectionService
from opsd.daemon.config.schema import CollectConfig
from opsd.daemon.errors import OpsdError
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.pairs import Attempt, PairInput, SuiteItem, Verdict, VerdictKind
from opsd.daemon.verify.checks import EXACT, NUMERIC, check_exact, check_numeric
from opsd.v1 import collection_pb2 as pb
from opsd.v1 import collection_pb2_grpc as pb_grpc

Handler = Any


class Statuses(grpc.aio.ServerInterceptor):
    """The project's errors as statuses; anything else stays a bug."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(details)
        for kind in ("unary_unary", "stream_unary"):
            method = getattr(handler, kind)
            if method is not None:
                return handler._replace(**{kind: _mapped(method)})
        return handler


def _mapped(method: Any) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await method(request, context)
        except OpsdError as error:
            await context.abort(grpc.StatusCode[error.code], str(error))

    return call


class InlineVerifier:
    """The real checks, without a process."""

    def __init__(self) -> None:
        self.calls = 0
        self.is_down = False

    known_verifiers = ("exact", "numeric")

    async def check_reference(self, verifier: str, reference: str) -> str:
        check = NUMERIC if verifier == "numeric" else EXACT
        return check.check_reference(reference)

    async def verify(self, verifier: str, reference: str, text: str | None) -> Verdict:
        self.calls += 1
        if self.is_down:
            return Verdict(VerdictKind.ERROR, verifier, "no answer within 10 s")
        check = check_numeric if verifier == "numeric" else check_exact
        kind, evidence = check(reference, text or "")
        return Verdict(kind, verifier, evidence)


class LateRecorder:
    """Keeps attempts back until somebody asks for them."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self._waiting: list[Attempt] = []

    def offer(self, attempt: Attempt) -> None:
        self._waiting.append(attempt)

    async def flush(self) -> None:
        self._store.add_attempts(self._waiting)
        self._waiting.clear()


HELD_OUT_PROMPT = "Tom has 61 apples, loses 40. How many apples?"


@dataclass
class Running:
    """A service and a client of it."""

    stub: pb_grpc.CollectionServiceAsyncStub
    channel: grpc.aio.Channel
    store: SqlStore
    verifier: InlineVerifier
    recorder: LateRecorder
    curation: pb_grpc.CurationServiceAsyncStub


class Hygiene:
    """A screen and a sense for near-duplicates that do what a word in the prompt says."""

    def screen(self, pair: PairInput) -> SimpleNamespace:
        notes: tuple[str, ...] = ()
        if "<|im_end|>" in pair.prompt:
            pair = replace(pair, prompt=pair.prompt.replace("<|im_end|>", "< |im_end| >"))
            notes = ("prompt: a control token was made text",)
        return SimpleNamespace(
            pair=pair,
            refusal="prompt: no language that is taken" if "REFUSE" in pair.prompt else "",
            quarantine="looks personal" if "QUARANTINE" in pair.prompt else "",
            notes=notes,
        )

    def band_keys(self, prompt: str) -> tuple[int, ...]:
        return (len(prompt.split()),)

    def is_near_duplicate(self, a: str, b: str) -> bool:
        return a.casefold() == b.casefold()


@pytest.fixture
def collect_config() -> CollectConfig:
    return CollectConfig(max_prompt_kib=1, max_solution_kib=2)


@pytest.fixture
async def running(tmp_path: Path, collect_config: CollectConfig) -> AsyncIterator[Running]:
    store = open_store(sqlite_url(tmp_path))
    verifier = InlineVerifier()
    recorder = LateRecorder(store)
    held_out = HeldOutIndex({"hard": [SuiteItem("1", HELD_OUT_PROMPT, "numeric", "21")]})
    hygiene = Hygiene()
    service = CollectionService(
        store, verifier, held_out, collect_config, recorder, screen=hygiene, near=hygiene
    )
    curation = CurationService(store, verifier, collect_config, near=hygiene, held_out=held_out)
    server = grpc.aio.server(interceptors=[Statuses()])
    pb_grpc.add_CurationServiceServicer_to_server(curation, server)
    pb_grpc.add_CollectionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = pb_grpc.CollectionServiceStub(channel)
        curating: Any = pb_grpc.CurationServiceStub(channel)
        yield Running(stub, channel, store, verifier, recorder, curating)
    await server.stop(0)
    service.close()
    store.close()


@pytest.fixture
def make_pair() -> Callable[..., pb.PairInput]:
    def make(**fields: str) -> pb.PairInput:
        given = {
            "id": str(uuid4()),
            "prompt": f"What is 1 + 1? ({uuid4()})",
            "solution": "Answer: 2",
            "verifier": "numeric",
            "reference": "2",
        }
        return pb.PairInput(**(given | fields))

    return make
