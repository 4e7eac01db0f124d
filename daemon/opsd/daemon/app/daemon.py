"""The daemon's life: start, READY, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from opsd.daemon.adapters.promotion import Rescue
from opsd.daemon.app.endpoints import remove_endpoints, write_endpoints
from opsd.daemon.app.parts import Parts
from opsd.daemon.errors import EngineError
from opsd.daemon.serve.state import ServingState

log = logging.getLogger(__name__)

_CALLS_GRACE_S = 2.0


class Daemon:
    """Starts the parts in an order in which each finds what it needs, stops them in reverse."""

    def __init__(self, parts: Parts, rescue: Rescue | None = None) -> None:
        self._parts = parts
        self._rescue = rescue
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; a second one cuts the drain short.

        Raises AdapterError when the incumbent's files are not what they were, EngineError when the
        engine cannot be started or was given up.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            started = asyncio.create_task(self._start(), name="start")
            await self._first_of(started, self._stop)
            if self._stop.is_set():
                started.cancel()
            else:
                await started
                await self._first_of(
                    asyncio.create_task(self._parts.supervisor.failed.wait()), self._stop
                )
        finally:
            await self._shut_down()
        if self._parts.supervisor.failed.is_set():
            raise EngineError(self._parts.availability.message)

    async def _first_of(self, task: asyncio.Task[object], event: asyncio.Event) -> None:
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if task.done() and not task.cancelled():
            task.result()

    async def _start(self) -> None:
        parts = self._parts
        began = time.monotonic()
        await parts.audit.start()
        await parts.grpc.start()
        await parts.support.start()
        server = parts.config.server
        write_endpoints(
            parts.config.state_dir,
            host=server.host,
            port=parts.grpc.port,
            metrics_port=parts.metrics.port,
        )
        log.info(
            "listening host=%s port=%d metrics_port=%d",
            server.host,
            parts.grpc.port,
            parts.metrics.port,
        )
        # The verifiers' imports and the engine's start take seconds each: side by side.
        await asyncio.gather(parts.engine.start(), parts.verifiers.start())
        await parts.promoter.restore(self._rescue)
        if parts.recorder is not None:
            parts.recorder.start()
        parts.mirror.start()
        parts.supervisor.watch()
        parts.availability.set(ServingState.READY)
        parts.retention.start()
        await parts.controller.start()
        await parts.scheduler.start()
        await parts.sources.start()
        log.info("ready after_s=%.1f", time.monotonic() - began)

    def _on_signal(self, number: int) -> None:
        if self._stop.is_set():
            log.warning("signal=%s: the drain is cut short", signal.Signals(number).name)
            self._hurry.set()
        else:
            log.info("signal=%s: draining", signal.Signals(number).name)
            self._stop.set()

    async def _shut_down(self) -> None:
        parts = self._parts
        if parts.availability.state is not ServingState.FAILED:
            parts.availability.set(ServingState.DRAINING, "the daemon is stopping")
        await parts.sources.stop()
        await parts.scheduler.stop()
        await parts.retention.stop()
        await parts.controller.stop()
        await parts.promoter.stop()
        await parts.mirror.stop()
        # Users that still drain need no company.
        await parts.support.stop()
        drained = asyncio.create_task(
            parts.inference.drain(parts.config.server.drain_timeout_s), name="drain"
        )
        await self._first_of(drained, self._hurry)
        drained.cancel()
        await parts.grpc.stop(0.0 if self._hurry.is_set() else _CALLS_GRACE_S)
        await parts.supervisor.stop()
        if parts.recorder is not None:
            await parts.recorder.stop()
        await parts.verifiers.stop()
        await parts.engine.stop()
        parts.metrics.stop()
        remove_endpoints(parts.config.state_dir)
        await parts.audit.stop()
        parts.store.close()
        log.info("stopped")
