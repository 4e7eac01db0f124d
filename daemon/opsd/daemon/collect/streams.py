"""Streams whose requests are worked on side by side and answered in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import DecodeError

from opsd.daemon.errors import InvalidInputError

Request = TypeVar("Request")
Result = TypeVar("Result")

WINDOW = 64
"""Requests of one stream under way at once."""


async def in_order(
    requests: AsyncIterator[Request], work: Callable[[Request], Awaitable[Result]], name: str
) -> AsyncIterator[Result]:
    """The result of each request, in order, as soon as it and those before it are known.

    A stream that breaks ends here; what was committed stays, and what is under way is dropped or
    done, which the client finds out by sending it again. Raises InvalidInputError for a message
    that is no ``name``, and whatever ``work`` raises.
    """
    under_way: asyncio.Queue[asyncio.Task[Result] | None] = asyncio.Queue(WINDOW)
    tasks: set[asyncio.Task[Result]] = set()

    async def one(request: Request) -> Result:
        return await work(request)

    async def read() -> None:
        try:
            async for request in requests:
                task = asyncio.create_task(one(request))
                tasks.add(task)
                await under_way.put(task)
        except DecodeError as error:
            raise InvalidInputError(
                f"the message after the last one answered for is no {name}: text must be UTF-8 "
                f"({error})"
            ) from error
        finally:
            await under_way.put(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await under_way.get()) is not None:
            result = await task
            tasks.discard(task)
            yield result
        await reader
    finally:
        for unfinished in (reader, *tasks):
            unfinished.cancel()
        # The reader's last word may wait for room in the queue.
        while not under_way.empty():
            under_way.get_nowait()
        await asyncio.gather(reader, *tasks, return_exceptions=True)
