"""Lets the canary answer, unseen, some of what users asked the incumbent."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Protocol

from opsd.daemon.adapters.routing import Router
from opsd.daemon.errors import EngineError, NotFoundError, OpsdError
from opsd.daemon.serve import metrics
from opsd.daemon.serve.load import UserLoad
from opsd.daemon.serve.ports import ReplyObserver
from opsd.daemon.serve.validate import CheckedRequest
from opsd.daemon.types.canary import Assignment, Reply
from opsd.daemon.types.engine import EngineChunk, EngineRequest, FinishReason

log = logging.getLogger(__name__)

PRIORITY = 20
"""Behind users, evaluations and the samples of runs."""

MAX_QUEUED = 64
_WORKERS = 2
_LONGEST_WAIT_S = 60.0
_LOOK_EVERY_S = 0.05


class GeneratingEngine(Protocol):
    def generate(self, request: EngineRequest) -> AsyncIterator[EngineChunk]: ...


@dataclass(frozen=True, slots=True)
class _Image:
    checked: CheckedRequest
    canary: str
    reply: Reply  # the incumbent's
    offered_s: float


class Mirror:
    """A short queue behind the users. What does not fit, or finds users about for too long, is
    dropped before it begins: whether an image is compared must not depend on how it turns out.

    Nothing of it is recorded as an attempt, and no user waits for it. For one event loop.
    """

    def __init__(
        self,
        engine: GeneratingEngine,
        router: Router,
        observer: ReplyObserver,
        load: UserLoad,
        *,
        busy_above: int,
        max_queued: int = MAX_QUEUED,
        longest_wait_s: float = _LONGEST_WAIT_S,
        look_through: Callable[[str, str], None] | None = None,
    ) -> None:
        """``busy_above``: with more users' completions under way, no image begins.
        ``look_through``: gets each answer and the name of the adapter that gave it."""
        self._engine = engine
        self._router = router
        self._observer = observer
        self._load = load
        self._busy_above = busy_above
        self._longest_wait_s = longest_wait_s
        self._look_through = look_through
        self._queue: asyncio.Queue[_Image] = asyncio.Queue(max_queued)
        self._workers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        assert not self._workers, "started twice"
        self._workers = [
            asyncio.create_task(self._work(), name=f"mirror-{n}") for n in range(_WORKERS)
        ]

    async def stop(self) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.cancel()
        for worker in workers:
            with suppress(asyncio.CancelledError):
                await worker

    def offer(self, checked: CheckedRequest, drawn: Assignment, reply: Reply) -> None:
        """A request that ended with the incumbent's ``reply``, whatever it was."""
        if drawn.in_canary or not drawn.mirrored or not self._workers:
            return
        try:
            self._queue.put_nowait(_Image(checked, drawn.canary, reply, time.monotonic()))
        except asyncio.QueueFull:
            metrics.MIRRORED.labels("queue_full").inc()

    async def _work(self) -> None:
        while True:
            image = await self._queue.get()
            try:
                outcome = await self._reflect(image)
            except OpsdError as error:
                # The request's own fault, and the incumbent's too: nothing to compare.
                log.info("mirror image refused canary=%s error=%s", image.canary, error)
                outcome = "refused"
            except Exception:
                log.exception("mirror image broke canary=%s", image.canary)
                outcome = "failed"
            metrics.MIRRORED.labels(outcome).inc()

    async def _reflect(self, image: _Image) -> str:
        while self._load.in_flight > self._busy_above:
            if time.monotonic() - image.offered_s > self._longest_wait_s:
                return "busy"
            await asyncio.sleep(_LOOK_EVERY_S)
        if not self._is_canary(image.canary):
            return "stale"
        try:
            mirror = await self._answer(image)
        except NotFoundError:
            return "stale"
        self._observer.mirrored(image.canary, image.reply, mirror)
        return "compared"

    def _is_canary(self, name: str) -> bool:
        canary = self._router.snapshot.canary
        return canary is not None and canary.name == name

    async def _answer(self, image: _Image) -> Reply:
        began = time.perf_counter()
        last: EngineChunk | None = None
        text = ""
        try:
            # A lease: the canary must not be unloaded meanwhile.
            with self._router.route(image.checked.request_id, image.canary) as route:
                request = replace(
                    image.checked.for_engine(route.adapter, stream=False),
                    request_id=f"mirror-{uuid.uuid4().hex}",
                    priority=PRIORITY,
                )
                generation = self._engine.generate(request)
                async with aclosing(generation) as chunks:  # type: ignore[type-var]
                    async for chunk in chunks:
                        last = chunk
                        text += chunk.text
                if last is None or last.finish_reason is None:
                    raise EngineError("the engine ended the mirror image without a finish reason")
        except EngineError:
            return Reply(engine_error=True)
        if self._look_through is not None:
            self._look_through(text, image.canary)
        return Reply(
            engine_error=False,
            truncated=last.finish_reason is FinishReason.LENGTH,
            num_tokens=last.num_completion_tokens,
            latency_s=time.perf_counter() - began,
        )
