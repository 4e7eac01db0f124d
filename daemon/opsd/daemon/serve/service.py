"""InferenceService: one completion per call, from exactly one adapter."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, Self

import grpc

from opsd.daemon.adapters.routing import Route, Router
from opsd.daemon.config.schema import ServerConfig
from opsd.daemon.errors import DeadlineError, EngineError, OpsdError, OverloadedError
from opsd.daemon.serve import metrics
from opsd.daemon.serve.attempts import AttemptRecorder
from opsd.daemon.serve.caller import caller_of
from opsd.daemon.serve.load import UserLoad
from opsd.daemon.serve.mirror import Mirror
from opsd.daemon.serve.pacing import StreamPacer
from opsd.daemon.serve.ports import ReplyObserver, Unwatched
from opsd.daemon.serve.state import Availability
from opsd.daemon.serve.validate import CheckedRequest, Limits, check_request
from opsd.daemon.types.canary import Assignment, Reply
from opsd.daemon.types.engine import Engine, EngineChunk, FinishReason
from opsd.daemon.types.pairs import Attempt
from opsd.v1 import inference_pb2 as pb
from opsd.v1 import inference_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

_FINISH = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


class InferenceService(pb_grpc.InferenceServiceServicer):
    """Handlers raise the project's errors; the server's interceptor makes statuses of them."""

    def __init__(
        self,
        engine: Engine,
        router: Router,
        availability: Availability,
        config: ServerConfig,
        recorder: AttemptRecorder | None = None,
        load: UserLoad | None = None,
        observer: ReplyObserver | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        """``load`` is told of every completion, for those who share the engine with users;
        ``observer`` of how those ended whose adapter was drawn; ``mirror`` gets some of them."""
        self._engine = engine
        self._router = router
        self._availability = availability
        self._config = config
        self._recorder = recorder
        self._pacer = StreamPacer()
        self._load = load or UserLoad()
        self._observer = observer or Unwatched()
        self._mirror = mirror
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """Completions being made."""
        return self._in_flight

    async def drain(self, timeout_s: float) -> int:
        """Waits for the completions in flight; returns how many are left at the time-out.

        The caller has set DRAINING before, so that no new ones are taken.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        return self._in_flight

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        with _Observation(self, "Generate", context) as seen:
            checked = self._check(request)
            async with self._routed(request, checked, seen) as route:
                generation = self._engine.generate(checked.for_engine(route.adapter, stream=False))
                last: EngineChunk | None = None
                texts: list[str] = []
                async with aclosing(generation) as chunks:  # type: ignore[type-var]
                    async for last in chunks:
                        texts.append(last.text)
                chunk = _completed(last)
            seen.finished(chunk, chunk.first_token_s)
            text = "".join(texts)
            return pb.GenerateResponse(
                text=text,
                adapter=route.name,
                finish_reason=_finish(chunk),
                usage=_usage(chunk),
                request_id=checked.request_id,
                attempt_id=self._record(checked, route, text, chunk),
                first_token_s=chunk.first_token_s,
                total_s=seen.elapsed_s(),
            )

    async def GenerateStream(  # type: ignore[override]  # the reader-writer form is not in the stub
        self, request: pb.GenerateRequest, context: Context
    ) -> None:
        # Writing, instead of yielding, keeps the engine's generator in this frame: whatever ends
        # the call also closes the generator, at once, and with it the engine's work.
        with _Observation(self, "GenerateStream", context) as seen:
            checked = self._check(request)
            async with self._routed(request, checked, seen) as route:
                generation = self._engine.generate(
                    checked.for_engine(
                        route.adapter,
                        stream=True,
                        tokens_per_chunk=self._pacer.tokens_per_chunk(self._in_flight),
                    )
                )
                texts: list[str] = []
                num_unsent = 0
                first_token_s = 0.0
                last: EngineChunk | None = None
                async with aclosing(generation) as chunks:  # type: ignore[type-var]
                    async for last in chunks:
                        seen.tokens(len(last.token_ids))
                        first_token_s = first_token_s or seen.elapsed_s()
                        num_unsent += len(last.token_ids)
                        texts.append(last.text)
                        # A token that completes no character yet travels with the next one.
                        if last.text and last.finish_reason is None:
                            await context.write(
                                pb.GenerateChunk(
                                    text_delta=last.text,
                                    adapter=route.name,
                                    num_tokens=num_unsent,
                                )
                            )
                            num_unsent = 0
                chunk = _completed(last)
                self._pacer.finished(
                    chunk.num_completion_tokens - 1, seen.elapsed_s() - first_token_s
                )
                attempt_id = self._record(checked, route, "".join(texts), chunk)
                await context.write(
                    pb.GenerateChunk(
                        text_delta=chunk.text,
                        adapter=route.name,
                        num_tokens=num_unsent,
                        finish_reason=_finish(chunk),
                        usage=_usage(chunk),
                        request_id=checked.request_id,
                        attempt_id=attempt_id,
                    )
                )
            seen.finished(chunk, first_token_s)

    def _check(self, request: pb.GenerateRequest) -> CheckedRequest:
        info = self._engine.info
        limits = Limits(info.max_model_len, info.vocab_size, self._config.default_max_tokens)
        return check_request(request, limits)

    @asynccontextmanager
    async def _routed(
        self, request: pb.GenerateRequest, checked: CheckedRequest, seen: _Observation
    ) -> AsyncIterator[Route]:
        """The route for as long as the completion takes, within the caller's deadline."""
        remaining_s = seen.context.time_remaining()
        try:
            async with asyncio.timeout(remaining_s):
                caller = caller_of(seen.context)
                with self._router.route(checked.request_id, request.adapter, caller) as route:
                    seen.adapter = route.name
                    seen.asked = (checked, route.assignment)
                    yield route
        except TimeoutError:
            raise DeadlineError(
                f"the deadline of {remaining_s:.3f} s passed; the completion was stopped"
            ) from None

    def _record(self, checked: CheckedRequest, route: Route, text: str, last: EngineChunk) -> str:
        """The attempt's id, or nothing when it is not kept."""
        if self._recorder is None:
            return ""
        drawn = route.assignment
        attempt = Attempt(
            id=str(uuid.uuid4()),
            request_id=checked.request_id,
            adapter=route.name,
            prompt=checked.problem_text(),
            completion=text,
            completion_tokens=last.num_completion_tokens,
            created_unix_s=time.time(),
            canary_share=drawn.share if drawn is not None else None,
            caller=drawn.caller if drawn is not None else "",
        )
        offered = self._recorder.offer(attempt)
        return attempt.id if offered and self._config.record_attempts else ""

    def _ended(self, checked: CheckedRequest, drawn: Assignment, reply: Reply) -> None:
        try:
            self._observer.replied(drawn, reply)
        except Exception:
            # The user has the answer; what is counted beside it must not take it back.
            log.exception("reply not compared request=%s", checked.request_id)
        if self._mirror is not None:
            self._mirror.offer(checked, drawn, reply)

    def _admit(self) -> None:
        self._availability.require_ready()
        limit = self._config.max_concurrent_requests
        if self._in_flight >= limit:
            raise OverloadedError(
                f"{limit} completions are in flight, which is server.max_concurrent_requests; "
                "try again later"
            )
        self._in_flight += 1
        self._idle.clear()

    def _release(self) -> None:
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()


class _Observation:
    """Admission and metrics of one call."""

    __slots__ = (
        "_last_token",
        "_reply",
        "_service",
        "_started",
        "_tag",
        "adapter",
        "asked",
        "context",
        "method",
    )

    def __init__(self, service: InferenceService, method: str, context: Context) -> None:
        self._service = service
        self._started = time.perf_counter()
        self._last_token = 0.0  # when it came; 0: none has
        self._tag: object = None
        self.method = method
        self.context = context
        self.adapter = ""  # none was chosen yet
        self.asked: tuple[CheckedRequest, Assignment | None] | None = None
        self._reply: Reply | None = None

    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    def tokens(self, num_tokens: int) -> None:
        """So many more came just now."""
        now = time.perf_counter()
        load = self._service._load
        if not num_tokens:
            return
        if self._last_token:
            load.tokens(num_tokens, now - self._last_token)
        else:
            load.first_token(self._tag, now - self._started)
        self._last_token = now

    def finished(self, last: EngineChunk, first_token_s: float) -> None:
        """The completion is whole."""
        rest_s = self.elapsed_s() - first_token_s
        if not self._last_token and rest_s > 0.0:  # it was not streamed
            self._service._load.tokens(last.num_completion_tokens - 1, rest_s)
        self._reply = Reply(
            engine_error=False,
            truncated=last.finish_reason is FinishReason.LENGTH,
            num_tokens=last.num_completion_tokens,
            latency_s=self.elapsed_s(),
        )
        metrics.FIRST_TOKEN_SECONDS.labels(self.method).observe(first_token_s)
        metrics.REQUEST_SECONDS.labels(self.method).observe(self.elapsed_s())
        metrics.PROMPT_TOKENS.labels(self.adapter).inc(last.num_prompt_tokens)
        metrics.COMPLETION_TOKENS.labels(self.adapter).inc(last.num_completion_tokens)

    def __enter__(self) -> Self:
        try:
            self._service._admit()
        except OpsdError as error:
            metrics.REQUESTS.labels(self.method, "", error.code).inc()
            raise
        metrics.IN_FLIGHT.inc()
        self._tag = self._service._load.arrived()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._service._release()
        self._service._load.left()
        metrics.IN_FLIGHT.dec()
        metrics.REQUESTS.labels(self.method, self.adapter, self._code(error)).inc()
        self._tell(error)

    def _tell(self, error: BaseException | None) -> None:
        """What was cancelled or refused is nobody's doing."""
        checked, drawn = self.asked or (None, None)
        if checked is None or drawn is None:
            return
        if isinstance(error, EngineError):
            self._service._ended(checked, drawn, Reply(engine_error=True))
        elif error is None and self._reply is not None:
            self._service._ended(checked, drawn, self._reply)

    def _code(self, error: BaseException | None) -> str:
        if error is None:
            return "OK"
        if isinstance(error, OpsdError):
            return error.code
        if isinstance(error, asyncio.CancelledError):
            # gRPC cancels the handler for a client that went away and for a passed deadline alike.
            remaining_s: float | None = self.context.time_remaining()
            passed = remaining_s is not None and remaining_s <= 0.0
            return "DEADLINE_EXCEEDED" if passed else "CANCELLED"
        return "INTERNAL"


def _completed(last: EngineChunk | None) -> EngineChunk:
    if last is None or last.finish_reason is None:
        raise EngineError("the engine ended the completion without a finish reason; send it again")
    return last


def _finish(chunk: EngineChunk) -> pb.FinishReason.ValueType:
    assert chunk.finish_reason is not None
    return _FINISH[chunk.finish_reason]


def _usage(chunk: EngineChunk) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=chunk.num_prompt_tokens, completion_tokens=chunk.num_completion_tokens
    )
