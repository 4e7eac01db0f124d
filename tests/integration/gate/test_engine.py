"""Both adapters answer a suite through the real engine, and the report says what they did."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
import torch
from gate_bench import CORRECTNESS_ALONE
from transformers import AutoModelForCausalLM, AutoTokenizer

from opsd.daemon.adapters.files import base_shapes
from opsd.daemon.adapters.residency import Residency
from opsd.daemon.adapters.routing import Router
from opsd.daemon.config.gate import BehaviourConfig, GateConfig, SuiteConfig
from opsd.daemon.config.training import PromptTraining
from opsd.daemon.errors import StateError
from opsd.daemon.gate.divergence import mean_entropy, mean_kl
from opsd.daemon.gate.evaluate import GateEvaluator
from opsd.daemon.gate.judge import judge_by, rules_of
from opsd.daemon.gate.literacy import KeyPrompt
from opsd.daemon.gate.questions import NUM_TOP, ModelIdentity
from opsd.daemon.gate.registry import SuiteRegistry
from opsd.daemon.serve.vllm_engine import VllmEngine
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.engine import (
    AdapterHandle,
    ChatMessage,
    EngineRequest,
    Sampling,
    ScoreRequest,
    TokenScore,
)
from opsd.daemon.types.gate import GateVerdict
from opsd.daemon.types.measured import Arm
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
    async def verify(
        self, verifier: str, reference: str, text: str, *, private: bool = False
    ) -> Verdict:
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


async def answer_ids(engine: VllmEngine, prompt: str, adapter: AdapterHandle) -> tuple[int, ...]:
    request = EngineRequest(
        request_id=f"ids-{prompt}",
        sampling=Sampling(max_tokens=MAX_TOKENS, temperature=0.0),
        messages=(ChatMessage("user", prompt),),
        adapter=adapter,
    )
    return tuple([token async for chunk in engine.generate(request) for token in chunk.token_ids])


@dataclass
class Scene:
    """Two adapters in a real engine, and suites that the candidate solves."""

    engine: VllmEngine
    router: Router
    incumbent: AdapterHandle
    candidate: Adapter
    registry: SuiteRegistry
    store: SqlStore

    def evaluator(self) -> GateEvaluator:
        config = GateConfig(
            concurrency=8,
            max_tokens=MAX_TOKENS,
            margins=CORRECTNESS_ALONE,
            behaviour=BehaviourConfig(num_kl_items=6, num_literacy_items=4),
        )
        return GateEvaluator(
            self.engine,
            Equality(),
            self.store,
            self.registry.active,
            config,
            routes=self.router,
            decide=judge_by(rules_of(config, teacher="base"), self.store.save_gate_inputs),
            model=ModelIdentity("f" * 64, "float32"),
            key_prompt=KeyPrompt(PromptTraining()),
            scorer=self.engine,
        )


@pytest_asyncio.fixture(loop_scope="session")
async def scene(
    engine: VllmEngine,
    make_adapter: Callable[[int], AdapterHandle],
    micro_model: Path,
    tmp_path: Path,
) -> AsyncIterator[Scene]:
    assert "model.layers.0.self_attn.q_proj.weight" in base_shapes(micro_model)
    incumbent, handle = make_adapter(41), make_adapter(42)
    router = Router()
    residency = Residency(engine, router)
    await residency.ensure(incumbent, "incumbent")
    await residency.ensure(handle, "candidate")
    configs = []
    # References are the candidate's own answers, so it must solve all and the incumbent few.
    for name, offset in (("mimic", 10), ("secret", 50)):
        records = []
        for number in range(NUM_ITEMS):
            prompt = f"{number + offset}-{number}"
            reference = fingerprint(await complete(engine, prompt, handle))
            records.append(
                {"id": str(number), "prompt": prompt, "verifier": "exact", "reference": reference}
            )
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        settings = {"sealed": True, "budget": 1} if name == "secret" else {}
        configs.append(
            SuiteConfig.model_validate(
                {"name": name, "path": str(path), "role": "target", **settings}
            )
        )
    store = open_store(f"sqlite:///{tmp_path / 'opsd.db'}")
    registry = SuiteRegistry(store, state_dir=tmp_path, verifiers=["exact"])
    registry.load(configs)
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
    yield Scene(engine, router, incumbent, candidate, registry, store)
    store.close()
    await residency.retire(handle.name)
    await residency.retire(incumbent.name)


async def test_two_adapters_are_told_apart_beside_live_traffic(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    progress: list[tuple[int, int]] = []
    stop = asyncio.Event()

    async def user(number: int) -> int:
        done = 0
        while not stop.is_set():
            assert await complete(scene.engine, f"user {number}.{done}", scene.incumbent)
            done += 1
        return done

    # Scoring of prompts beside completions, with three adapters in the batches.
    users = [asyncio.create_task(user(number)) for number in range(4)]
    measured = await scene.evaluator().measure_candidate(
        RUN, scene.candidate, scene.incumbent, lambda done, total: progress.append((done, total))
    )
    stop.set()
    assert sum(await asyncio.gather(*users)) > 4
    assert progress[-1] == (6 * NUM_ITEMS + 12, 6 * NUM_ITEMS + 12)
    mimic, secret = measured
    scored = [item for item in mimic.items if item.answers[Arm.CANDIDATE][0].entropy is not None]
    assert len(scored) == 6
    for item in scored:
        for arm in Arm:
            (record,) = item.answers[arm]
            assert record.entropy is not None
            assert 0.0 < record.entropy < 6.0
        for arm in (Arm.INCUMBENT, Arm.CANDIDATE):
            kl = item.answers[arm][0].kl_to_base
            assert kl is not None
            assert 0.01 < kl < 20.0
    assert sum(bool(item.with_reference) for item in mimic.items) == 4
    assert all(item.answers[Arm.CANDIDATE][0].solved for item in (*mimic.items, *secret.items))
    assert scene.router.total_in_flight() == 0

    # Everything is known now: nothing is asked, and the verdict is the same whoever looks.
    caplog.set_level("DEBUG")
    again: list[tuple[int, int]] = []
    report = await scene.evaluator().evaluate(
        RUN, scene.candidate, scene.incumbent, lambda done, total: again.append((done, total))
    )
    assert again == [progress[-1]]
    assert report.verdict is GateVerdict.PASS, report.explanation
    shown, sealed = report.suites
    assert shown.candidate_accuracy == 1.0
    assert shown.only_candidate >= NUM_ITEMS - 2
    assert 0.0 < shown.candidate_tokens_mean <= MAX_TOKENS
    assert (sealed.n, sealed.candidate_accuracy, sealed.candidate_tokens_mean) == (0, 0.0, 0.0)
    (suite,) = [s for s in scene.registry.active().suites if s.name == "secret"]
    said = [repr(sealed), caplog.text, repr(scene.registry.versions(retired=True))]
    for secret_item in suite.items:
        shown_as = (secret_item.reference, f"'{secret_item.prompt}'")
        assert not any(secret in text for text in said for secret in shown_as)
    with pytest.raises(StateError, match="sealed"):
        scene.registry.items(scene.registry.get("secret"))


async def test_base_is_no_distance_from_itself(scene: Scene, micro_model: Path) -> None:
    """And the truncated figures stay below the exact ones, which the scores of all tokens give."""
    prompt = "12-3"
    ids = await answer_ids(scene.engine, prompt, scene.incumbent)

    async def score(adapter: AdapterHandle | None) -> tuple[TokenScore, ...]:
        return await scene.engine.score(
            ScoreRequest(
                request_id=f"score-{uuid4().hex}",
                messages=(ChatMessage("user", prompt),),
                answer_ids=ids,
                num_top=NUM_TOP,
                max_tokens=64,
                adapter=adapter,
            )
        )

    base, base_again, incumbent = await asyncio.gather(
        score(None), score(None), score(scene.incumbent)
    )
    assert [one.token_id for one in base] == list(ids)
    assert mean_kl(base, base_again) == pytest.approx(0.0, abs=1e-4)
    assert mean_kl(incumbent, base) > 0.01
    for scores in (base, incumbent):
        assert all(NUM_TOP <= len(one.logprobs) <= NUM_TOP + 1 for one in scores)
        assert all(one.token_id in one.logprobs for one in scores)
    exact = exact_logprobs(micro_model, prompt, ids)
    for one, row in zip(base, exact, strict=True):
        for token, logprob in one.logprobs.items():
            assert logprob == pytest.approx(float(row[token]), abs=2e-3)
    entropy = float(-(exact.exp() * exact).sum(-1).mean())
    assert 0.0 < mean_entropy(base) <= entropy + 1e-3


async def test_an_answer_is_scored_as_far_as_there_is_room(scene: Scene) -> None:
    request = ScoreRequest(
        request_id="room",
        messages=(ChatMessage("user", "1+1"),),
        answer_ids=tuple(range(20, 60)),
        num_top=3,
        max_tokens=24,
    )
    scores = await scene.engine.score(request)
    assert 0 < len(scores) < 24
    assert not await scene.engine.score(replace(request, request_id="none", max_tokens=2))


def exact_logprobs(model_dir: Path, prompt: str, ids: tuple[int, ...]) -> torch.Tensor:
    """[answer, vocabulary], float32, of the same model in another library."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    head = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_dict=False,
        enable_thinking=False,
    )
    with torch.no_grad():
        logits_TV = model(torch.tensor([[*head, *ids]])).logits[0]
    logprobs: torch.Tensor = logits_TV[len(head) - 1 : -1].log_softmax(-1)
    return logprobs
