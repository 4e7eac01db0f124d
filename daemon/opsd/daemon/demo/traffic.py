"""Users who keep asking while everything else happens."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from dataclasses import dataclass, field

from opsd.daemon.demo.client import Client, Reply


@dataclass(slots=True)
class TrafficLog:
    """Everything the users saw. Times are ``time.monotonic()`` seconds."""

    replies: list[Reply] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return len(self.replies)

    @property
    def failed(self) -> list[Reply]:
        return [reply for reply in self.replies if reply.error or not reply.text]

    @property
    def mixed(self) -> list[Reply]:
        """Answers whose pieces named more than one adapter."""
        return [reply for reply in self.replies if len(reply.adapters) > 1]

    def longest_stall_s(self, windows: list[tuple[float, float]]) -> float:
        """Longest wait between two pieces of one answer that touches one of the windows."""
        longest = 0.0
        for reply in self.replies:
            times = [reply.started_s, *reply.token_times_s]
            for earlier, later in itertools.pairwise(times):
                if any(earlier <= end and later >= start for start, end in windows):
                    longest = max(longest, later - earlier)
        return longest

    def overlapping(self, windows: list[tuple[float, float]]) -> int:
        """Requests that were open, at least in part, within one of the windows."""
        return sum(
            any(
                reply.started_s <= end and (reply.token_times_s or [reply.started_s])[-1] >= start
                for start, end in windows
            )
            for reply in self.replies
        )


class Traffic:
    """A crowd of users; each waits for the answer, thinks a little, and asks again."""

    def __init__(self, client: Client, prompts: list[str], *, seed: int) -> None:
        self.log = TrafficLog()
        self._client = client
        self._prompts = prompts
        self._random = random.Random(seed)
        self._users: list[asyncio.Task[None]] = []
        self._stopping = False
        self._answered = asyncio.Event()
        self._num_users = 0
        self._pause_s = 0.0

    def resize(self, num_users: int, *, pause_s: float) -> None:
        """Adds users, or lets some leave after their current answer."""
        self._pause_s = pause_s
        self._num_users = num_users
        while len(self._users) < num_users:
            self._users.append(asyncio.create_task(self._user(len(self._users))))

    async def finish(self) -> TrafficLog:
        """Every user gets the answer waited for, then all go home."""
        self._stopping = True
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._users)
        return self.log

    async def wait_for_more(self, num_requests: int, *, timeout_s: float = 60.0) -> None:
        """Until so many further requests were answered."""
        goal = self.log.sent + num_requests
        async with asyncio.timeout(timeout_s):
            while self.log.sent < goal:
                self._answered.clear()
                await self._answered.wait()

    async def _user(self, number: int) -> None:
        while not self._stopping:
            if number >= self._num_users:
                await asyncio.sleep(0.05)
                continue
            reply = await self._client.ask(self._random.choice(self._prompts))
            self.log.replies.append(reply)
            self._answered.set()
            if self._pause_s:
                await asyncio.sleep(self._random.uniform(0.5, 1.5) * self._pause_s)
            elif reply.error:
                # A daemon that is down answers at once; the log should not grow without bound.
                await asyncio.sleep(0.1)
