"""500 hostile texts: each gets a verdict within the limit, and the pool goes on."""

from __future__ import annotations

import pytest
from hostile import hostile_texts

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.pool import VerifierPool

LIMIT_S = 0.5


@pytest.mark.slow
async def test_no_hostile_text_hangs_or_crashes_the_pool() -> None:
    pool = VerifierPool(2, LIMIT_S)
    await pool.start()
    texts = hostile_texts(500)
    assert len(set(texts)) > 350
    verifiers = ("math", "numeric")
    requests = [(verifiers[n % 2], "31415926", text) for n, text in enumerate(texts)]
    requests += [("math", text, "31415926") for text in texts[:100] if text.strip()]
    verdicts = await pool.verify_many(requests)
    passed = [request for request, verdict in zip(requests, verdicts, strict=True)
              if verdict.kind is VerdictKind.PASS]  # fmt: skip
    assert passed == []
    for verdict in verdicts:
        assert verdict.evidence
        # Killing a process and noticing it takes a moment on a busy machine.
        assert verdict.duration_s < LIMIT_S + 5.0
    # Whoever comes next gets an answer.
    assert (await pool.verify("numeric", "2", "Answer: 2")).kind is VerdictKind.PASS
    await pool.stop()
