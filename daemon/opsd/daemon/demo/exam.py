"""The held-out problems, asked over gRPC and judged here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from opsd.daemon.demo.client import Client
from opsd.daemon.demo.workspace import DemoError, Problem

CONCURRENCY = 48


@dataclass(frozen=True, slots=True)
class Answered:
    """One problem of a suite and what came back."""

    problem: Problem
    solved: bool
    adapter: str
    completion_tokens: int


Exam = dict[str, list[Answered]]
"""Suite name to its answers, in the suite's order."""


async def ask_suites(
    client: Client, suites: dict[str, list[Problem]], on_progress: Callable[[int, int], None]
) -> Exam:
    """Asks every problem of every suite once, greedily, of whatever serves."""
    total = sum(map(len, suites.values()))
    done = 0
    slots = asyncio.Semaphore(CONCURRENCY)

    async def ask(problem: Problem) -> Answered:
        nonlocal done
        async with slots:
            reply = await client.ask(problem.prompt)
        if reply.error:
            raise DemoError(f"a held-out problem was not answered: {reply.error}")
        done += 1
        on_progress(done, total)
        (adapter,) = reply.adapters
        return Answered(problem, reply.solves(problem.reference), adapter, reply.completion_tokens)

    return {
        name: list(await asyncio.gather(*(ask(problem) for problem in problems)))
        for name, problems in suites.items()
    }


def adapters_of(exam: Exam) -> set[str]:
    """Which adapters answered; one, when nothing was swapped meanwhile."""
    return {answer.adapter for answers in exam.values() for answer in answers}
