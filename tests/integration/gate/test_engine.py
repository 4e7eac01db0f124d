"""Both adapters answer a suite through the real engine, and the report says what they did."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from opsd.daemon.adapters.files import base_shapes
from opsd.daemon.adapters.residency import Residency
from opsd.daemon.adapters.routing import Router
from opsd.daemon.config.schema import GateConfig, SuiteConfig
from opsd.daemon.gate.evaluate import GateEvaluator
from opsd.daemon.gate.suites import load_suites
from opsd.daemon.serve.vllm_engine import VllmEngine
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.engine import AdapterHandle, ChatMessage, EngineRequest, Sampling
from opsd.daemon.types.gate import GateVerdict
from opsd.daemon.types.pairs import Verdict, VerdictKind
from opsd.daemon.types.runs import Run, RunState, TriggerKind

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

NUM_ITEMS = 16
MAX_TOKENS = 12
RUN = Run("run-of-the-gate", RunState.EVALUATING, TriggerKind.OPERATOR, "me", "", 0.0, 0.0)


def fingerprint(text: str) -> str:
    """An untrained model writes anything, NUL included; a reference is a decent text."""
    return hashlib.sha256(text.encode()).hexdigest()


class Equality:
    async def verify(self, verifier: str, reference: str, text: str) -> Verdict:
        kind = VerdictKind.PASS if fingerprint(text) == reference else VerdictKind.FAIL
        return Verdict(kind, verifier, "")


async def complete(engine: VllmEngine, prompt: str, adapter: AdapterHandle) -> str:
    request = EngineRequest(
        request_id=fingerprint(prompt),
        sampling=Sampling(max_tokens=MAX_TOKENS, temperature=0.0),
        messages=(ChatMessage("user", prompt),),
        adapter=adapter,
    )
    return "".join([chunk.text async for chunk in engine.generate(request)])


async def test_the_report_tells_two_adapters_apart(
    engine: VllmEngine,
    make_adapter: Callable[[int], AdapterHandle],
    micro_model: Path,
    tmp_path: Path,
) -> None:
    assert "model.layers.0.self_attn.q_proj.weight" in base_shapes(micro_model)
    incumbent, handle = make_adapter(41), make_adapter(42)
    router = Router()
    residency = Residency(engine, router)
    await residency.ensure(incumbent, "incumbent")
    await residency.ensure(handle, "candidate")
    # References are the candidate's own answers, so it must solve all and the incumbent few.
    records = []
    for number in range(NUM_ITEMS):
        prompt = f"{number + 10}-{number}"
        reference = fingerprint(await complete(engine, prompt, handle))
        records.append(
            {"id": str(number), "prompt": prompt, "verifier": "exact", "reference": reference}
        )
    path = tmp_path / "s.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    suites = load_suites(
        [SuiteConfig(name="mimic", path=str(path), role="target")], verifiers=["exact"]
    )
    candidate = Adapter(
        name=handle.name,
        sha256="c" * 64,
        lora_id=handle.lora_id,
        state=AdapterState.CANDIDATE,
        run_id=RUN.id,
        path=handle.path,
        rank=8,
        alpha=8.0,
        size_bytes=1,
        model_fingerprint="f" * 64,
        created_unix_s=0.0,
    )
    store = open_store(f"sqlite:///{tmp_path / 'opsd.db'}")
    progress: list[tuple[int, int]] = []
    try:
        gate = GateEvaluator(
            engine,
            Equality(),
            store,
            suites,
            GateConfig(concurrency=8, max_tokens=MAX_TOKENS),
            routes=router,
        )
        report = await gate.evaluate(
            RUN, candidate, incumbent, lambda done, total: progress.append((done, total))
        )
    finally:
        store.close()
        await residency.retire(handle.name)
        await residency.retire(incumbent.name)
    (suite,) = report.suites
    assert suite.num_errors == 0
    assert suite.candidate_accuracy == 1.0
    assert suite.only_candidate >= NUM_ITEMS - 2
    assert report.verdict is GateVerdict.PASS, report.explanation
    assert progress[-1] == (2 * NUM_ITEMS, 2 * NUM_ITEMS)
    assert 0.0 < suite.candidate_tokens_mean <= MAX_TOKENS
    assert router.total_in_flight() == 0
