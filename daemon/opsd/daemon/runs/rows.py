"""A run's row: written off the event loop, and everybody who watches it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator

from opsd.daemon.runs.ports import RunsStore
from opsd.daemon.runs.states import is_final, is_legal
from opsd.daemon.types.runs import Run, RunState


async def wait_briefly(event: asyncio.Event, timeout_s: float) -> None:
    """Until the event or the time, whichever is first.

    Not ``asyncio.wait_for``: before Python 3.12 it loses a cancellation that meets the event.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


class Rows:
    """Every write of the runs package goes through here."""

    def __init__(self, store: RunsStore) -> None:
        self._store = store
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def get(self, run_id: str) -> Run:
        return await asyncio.to_thread(self._store.get_run, run_id)

    async def update(self, run: Run, **fields: object) -> Run:
        """Writes those fields that differ from ``run``'s."""
        changed = {name: value for name, value in fields.items() if getattr(run, name) != value}
        if not changed:
            return run
        updated = await asyncio.to_thread(self._store.update_run, run.id, **changed)
        self.notify(run.id)
        return updated

    async def move(self, run: Run, to: RunState, reason: str, **fields: object) -> Run:
        """One legal transition; raises ConcurrentChangeError when the row has moved meanwhile."""
        assert is_legal(run.state, to), f"run {run.id}: {run.state} → {to} is not a transition"
        moved = await asyncio.to_thread(
            self._store.transition_run,
            run.id,
            expected=run.state,
            to=to,
            reason=reason,
            **fields,
        )
        self.notify(run.id)
        return moved

    async def audit(self, *, action: str, run: Run, reason: str) -> None:
        """An entry of what the daemon itself did to the run."""
        await asyncio.to_thread(
            self._store.add_audit, actor="opsd", action=action, subject=run.id, reason=reason
        )

    def notify(self, run_id: str) -> None:
        """Tells the watchers to look at the row; to be called on the event loop."""
        for event in self._watchers.get(run_id, ()):
            event.set()

    async def watch(self, run_id: str, *, poll_s: float) -> AsyncIterator[Run]:
        """The row now, then whenever it has changed, until it waits for a person or is over.

        Changes that nobody told of are seen within ``poll_s``; changes in quick succession come as
        one.
        """
        shown: Run | None = None
        with self._watching(run_id) as changed:
            while True:
                changed.clear()
                run = await self.get(run_id)
                if run != shown:
                    shown = run
                    yield run
                if run.state is RunState.AWAITING_APPROVAL or is_final(run.state):
                    return
                await wait_briefly(changed, poll_s)

    @contextlib.contextmanager
    def _watching(self, run_id: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._watchers[run_id].add(event)
        try:
            yield event
        finally:
            self._watchers[run_id].discard(event)
            if not self._watchers[run_id]:
                del self._watchers[run_id]
