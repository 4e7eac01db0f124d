"""A pool that is started, and the sandbox that is really there."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.sandbox import Limits, Sandbox
from opsd.daemon.verify.solutions import PythonRunner

Judge = Callable[[Mapping[str, object], str], Awaitable[tuple[VerdictKind, str]]]


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed: apt-get install bubblewrap")
    made = Sandbox(limits=Limits(memory_mib=256, tmp_mib=8, cpu_s=4))
    assert made.problem == ""
    return made


@pytest.fixture
async def judge(sandbox: Sandbox) -> AsyncIterator[Judge]:
    """Runs the verifier ``python`` on (reference, text)."""
    runner = PythonRunner(sandbox, timeout_s=20.0, output_bytes=16 << 10, concurrency=1)

    async def run(reference: Mapping[str, object], text: str) -> tuple[VerdictKind, str]:
        return await runner.run(json.dumps(reference), text)

    yield run
    await runner.close()
