"""Processes that take too long or die are replaced, and only their own request suffers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from opsd.daemon.errors import NotReadyError, OverloadedError
from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.pool import MAX_TEXT_CHARS, VerifierPool

# sympy would work on this until long after everybody left.
ENDLESS = "\\boxed{\\prod_{n=1}^{99999999} \\sin(n x)}"
SAME_ENDLESS = "\\prod_{n=1}^{99999998} \\sin(n x)"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_dead(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
async def pool() -> AsyncIterator[VerifierPool]:
    made = VerifierPool(1, 20.0)
    await made.start()
    yield made
    await made.stop()


async def test_verdicts_come_from_another_process(pool: VerifierPool) -> None:
    verdict = await pool.verify("math", "1/2", "Answer: 0.5")
    assert (verdict.kind, verdict.verifier) == (VerdictKind.PASS, "math")
    assert verdict.duration_s > 0
    assert (await pool.verify("numeric", "2", "Answer: 3")).kind is VerdictKind.FAIL
    assert pool.pids
    assert os.getpid() not in pool.pids


@pytest.mark.parametrize("text", [None, "", "\0", "\ud800", "\\boxed{" * 5000, "(" * 5000])
async def test_no_text_raises_or_kills(pool: VerifierPool, text: str | None) -> None:
    before = pool.pids
    for verifier in ("math", "numeric", "exact"):
        verdict = await pool.verify(verifier, "2", text)
        assert verdict.kind in (VerdictKind.FAIL, VerdictKind.ERROR)
        assert verdict.evidence
    assert pool.pids == before


async def test_what_is_too_large_or_unknown_is_not_looked_at(pool: VerifierPool) -> None:
    verdict = await pool.verify("numeric", "2", "2" * (MAX_TEXT_CHARS + 1))
    assert verdict.kind is VerdictKind.ERROR
    verdict = await pool.verify("maths", "2", "2")
    assert verdict.kind is VerdictKind.ERROR
    assert "exact, json, math, numeric, python" in verdict.evidence


async def test_a_verification_that_takes_too_long_is_killed() -> None:
    pool = VerifierPool(1, 2.0)
    await pool.start()
    before = pool.pids
    (stuck,) = children(before[0])
    verdict = await pool.verify("math", SAME_ENDLESS, ENDLESS)
    assert verdict.kind is VerdictKind.ERROR
    assert "killed" in verdict.evidence
    assert (await pool.verify("exact", "2", "2")).kind is VerdictKind.PASS
    async with asyncio.timeout(10):
        while not is_dead(stuck):  # noqa: ASYNC110 - nobody announces a death to this test
            await asyncio.sleep(0.01)
    assert pool.pids == before  # the warm process forks another
    assert set(children(before[0])) - {stuck}
    await pool.stop()


async def test_a_check_that_dies_is_only_its_own_verdict(pool: VerifierPool) -> None:
    (parent,) = pool.pids
    (child,) = children(parent)
    os.kill(child, signal.SIGSTOP)
    request = asyncio.create_task(pool.verify("exact", "2", "2"))
    await asyncio.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    verdict = await request
    assert verdict.kind is VerdictKind.ERROR
    assert "signal 9" in verdict.evidence
    assert (await pool.verify("exact", "2", "2")).kind is VerdictKind.PASS
    assert pool.pids == [parent]


async def test_a_worker_that_sleeps_is_killed(pool: VerifierPool) -> None:
    """A stopped process burns no CPU time: only the daemon's own clock can end it."""
    (pid,) = pool.pids
    pool.timeout_s = 0.5
    os.kill(pid, signal.SIGSTOP)
    verdict = await pool.verify("exact", "2", "2")
    assert "killed" in verdict.evidence
    pool.timeout_s = 20.0
    assert (await pool.verify("exact", "2", "2")).kind is VerdictKind.PASS


async def test_a_worker_that_died_while_idle_costs_nobody_a_verdict(pool: VerifierPool) -> None:
    (pid,) = pool.pids
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        while pool.pids:  # noqa: ASYNC110 - nobody announces a death to this test
            await asyncio.sleep(0.01)
    assert (await pool.verify("exact", "2", "2")).kind is VerdictKind.PASS


async def test_a_worker_that_dies_at_work_is_replaced(pool: VerifierPool) -> None:
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    request = asyncio.create_task(pool.verify("exact", "2", "2"))
    await asyncio.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    verdict = await request
    assert verdict.kind is VerdictKind.ERROR
    assert "died" in verdict.evidence
    assert (await pool.verify("exact", "2", "2")).kind is VerdictKind.PASS


def test_a_worker_is_confined(tmp_path: Path) -> None:
    """No more memory than allowed, no file written; the checks go on after a MemoryError."""
    program = (
        "from opsd.daemon.verify import worker\n"
        "worker._confine(600)\n"
        "from opsd.daemon.verify.protocol import FunctionCheck\n"
        "greedy = lambda reference, text: bytearray(700 << 20)\n"
        "worker.CHECKS['greedy'] = FunctionCheck(greedy, lambda reference: '')\n"
        "assert 'memory' in worker.check('greedy', '2', '2')[1]\n"
        "assert worker.check('exact', '2', '2')[0] == 'pass'\n"
        "with open(__import__('sys').argv[1], 'w') as file: file.write('x')\n"
    )
    path = tmp_path / "file"
    ended = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "File too large" in ended.stderr
    assert path.read_bytes() == b""


async def test_a_caller_that_gives_up_does_not_mix_up_the_next(pool: VerifierPool) -> None:
    for _ in range(20):
        task = asyncio.create_task(pool.verify("exact", "1", "1"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await pool.verify("exact", "1", "2")).kind is VerdictKind.FAIL


async def test_many_at_once_keep_their_order(pool: VerifierPool) -> None:
    requests = [("numeric", str(n), f"Answer: {n + n % 2}") for n in range(200)]
    verdicts = await pool.verify_many(requests)
    assert [v.kind is VerdictKind.PASS for v in verdicts] == [n % 2 == 0 for n in range(200)]


async def test_a_full_queue_refuses() -> None:
    pool = VerifierPool(1, 5.0, max_waiting=2)
    await pool.start()
    os.kill(pool.pids[0], signal.SIGSTOP)
    tasks = [asyncio.create_task(pool.verify("exact", "2", "2")) for _ in range(3)]
    await asyncio.sleep(0.1)
    with pytest.raises(OverloadedError, match="more slowly"):
        await pool.verify("exact", "2", "2")
    os.kill(pool.pids[0], signal.SIGCONT)
    assert {v.kind for v in await asyncio.gather(*tasks)} == {VerdictKind.PASS}
    await pool.stop()


async def test_a_pool_that_is_not_running_says_so(pool: VerifierPool) -> None:
    with pytest.raises(NotReadyError):
        await VerifierPool(1, 1.0).verify("exact", "2", "2")
    os.kill(pool.pids[0], signal.SIGSTOP)
    request = asyncio.create_task(pool.verify("exact", "2", "2"))
    await asyncio.sleep(0.1)
    await pool.stop()
    with pytest.raises(NotReadyError):
        await request


async def test_a_process_that_cannot_start_names_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("opsd.daemon.verify.process.MODULE", "opsd.daemon.verify.nowhere")
    with pytest.raises(NotReadyError, match="No module named"):
        await VerifierPool(1, 1.0).start()


def test_workers_die_with_the_daemon() -> None:
    program = (
        "import asyncio, time\n"
        "from opsd.daemon.verify.pool import VerifierPool\n"
        "async def main():\n"
        "    pool = VerifierPool(1, 5.0)\n"
        "    await pool.start()\n"
        "    print(*pool.pids, flush=True)\n"
        "    time.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        worker = int(daemon.stdout.readline())
        # Stopped, it cannot notice by itself that its pipe was closed.
        os.kill(worker, signal.SIGSTOP)
        daemon.kill()
    path = Path(f"/proc/{worker}/stat")
    while path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z":
        pass
