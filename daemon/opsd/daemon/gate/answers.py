"""One answer: asked of the engine, verified, measured."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from opsd.daemon.config.gate import BehaviourConfig
from opsd.daemon.errors import EngineError, InvalidInputError
from opsd.daemon.gate.answer_text import TextMeter
from opsd.daemon.gate.divergence import mean_entropy, mean_kl
from opsd.daemon.gate.ports import AnswerVerifier
from opsd.daemon.gate.questions import NUM_TOP, Question, Respondent
from opsd.daemon.types.engine import (
    AdapterHandle,
    AnswerScorer,
    Engine,
    EngineRequest,
    FinishReason,
    ScoreRequest,
    TokenScore,
)
from opsd.daemon.types.measured import AnswerRecord
from opsd.daemon.types.pairs import SuiteItem, Verdict, VerdictKind

log = logging.getLogger(__name__)

PRIORITY = 10
"""Below users, who are 0: the engine's scheduler serves lower numbers first."""


@dataclass(frozen=True, slots=True)
class Timing:
    """``recovery_s`` is how long a failed engine may take to come back."""

    answer_s: float = 600.0
    recovery_s: float = 300.0
    poll_s: float = 0.05


@dataclass(frozen=True, slots=True)
class _Completion:
    text: str
    token_ids: tuple[int, ...]
    num_tokens: int
    finish: FinishReason


@dataclass(frozen=True, slots=True)
class _Figures:
    """Nats a token."""

    entropy: float | None = None
    kl_to_base: float | None = None


def _pass_over(text: str, adapter: str) -> None:
    """Nobody looks for anything."""


class Answerer:
    """Gets answers; ``scorer`` None: entropy and KL are not measured. ``look_through`` is told each
    answer's text and who wrote it."""

    def __init__(
        self,
        engine: Engine,
        scorer: AnswerScorer | None,
        verifier: AnswerVerifier,
        config: BehaviourConfig,
        timing: Timing,
        look_through: Callable[[str, str], None] | None = None,
    ) -> None:
        self._engine = engine
        self._look_through = look_through or _pass_over
        self._scorer = scorer
        self._verifier = verifier
        self._config = config
        self._timing = timing
        self._meter = TextMeter(markers=config.markers, refusals=config.refusals)

    async def answer(self, run_id: str, question: Question, who: Respondent) -> AnswerRecord:
        """Tried twice; what then still fails has no outcome.

        Raises EngineError when the engine stays down.
        """
        reason = ""
        for _ in range(2):
            try:
                async with asyncio.timeout(self._timing.answer_s):
                    completion = await self._complete(run_id, question, who)
                    figures = await self._figures(run_id, question, who, completion)
            except TimeoutError:
                reason = f"no answer within {self._timing.answer_s:g} s"
                continue
            except InvalidInputError as error:
                reason = str(error)
                break
            except EngineError as error:
                reason = str(error)
                await self._until_healthy(error)
                continue
            self._look_through(completion.text, who.name)
            verdict = await self._verify(question, completion.text)
            if verdict.kind is VerdictKind.ERROR:
                self._warn(
                    run_id, question, who, f"verifier {verdict.verifier}: {verdict.evidence}"
                )
            return self._record(completion, verdict, figures)
        self._warn(run_id, question, who, reason)
        return AnswerRecord(None, 0)

    def _record(self, completion: _Completion, verdict: Verdict, figures: _Figures) -> AnswerRecord:
        text = self._meter.measure(completion.text)
        known = verdict.kind is not VerdictKind.ERROR
        return AnswerRecord(
            solved=verdict.kind is VerdictKind.PASS if known else None,
            tokens=completion.num_tokens,
            truncated=completion.finish is FinishReason.LENGTH,
            words=text.words,
            markers=text.markers,
            repetition=text.repetition,
            formatted=verdict.answered,
            refusal=text.refusal,
            entropy=figures.entropy,
            kl_to_base=figures.kl_to_base,
        )

    async def _complete(self, run_id: str, question: Question, who: Respondent) -> _Completion:
        request = EngineRequest(
            request_id=_request_id(run_id),
            sampling=question.sampling,
            messages=question.messages,
            enable_thinking=question.enable_thinking,
            adapter=who.handle,
            priority=PRIORITY,
        )
        pieces: list[str] = []
        token_ids: list[int] = []
        num_tokens = 0
        finish: FinishReason | None = None
        async for chunk in self._engine.generate(request):
            pieces.append(chunk.text)
            token_ids += chunk.token_ids
            num_tokens = chunk.num_completion_tokens
            finish = chunk.finish_reason or finish
        if finish is None:
            raise EngineError("the engine ended a completion without saying why")
        return _Completion("".join(pieces), tuple(token_ids), num_tokens, finish)

    async def _figures(
        self, run_id: str, question: Question, who: Respondent, completion: _Completion
    ) -> _Figures:
        if self._scorer is None or not question.is_scored or not completion.token_ids:
            return _Figures()
        ours = await self._score(self._scorer, run_id, question, completion, who.handle)
        if not ours:
            return _Figures()
        if who.handle is None:
            return _Figures(entropy=mean_entropy(ours))
        base = await self._score(self._scorer, run_id, question, completion, None)
        return _Figures(entropy=mean_entropy(ours), kl_to_base=mean_kl(ours, base))

    async def _score(
        self,
        scorer: AnswerScorer,
        run_id: str,
        question: Question,
        completion: _Completion,
        adapter: AdapterHandle | None,
    ) -> tuple[TokenScore, ...]:
        return await scorer.score(
            ScoreRequest(
                request_id=_request_id(run_id),
                messages=question.messages,
                answer_ids=completion.token_ids,
                num_top=NUM_TOP,
                max_tokens=self._config.max_scored_tokens,
                enable_thinking=question.enable_thinking,
                adapter=adapter,
                priority=PRIORITY,
            )
        )

    async def _verify(self, question: Question, text: str) -> Verdict:
        item, private = question.item, question.suite.sealed
        verdict = await self._ask_verifier(item, text, private)
        if verdict.kind is VerdictKind.ERROR:
            # A busy machine can cost a verifier its time limit: once more, before the item is lost.
            verdict = await self._ask_verifier(item, text, private)
        return verdict

    async def _ask_verifier(self, item: SuiteItem, text: str, private: bool) -> Verdict:
        return await self._verifier.verify(item.verifier, item.reference, text, private=private)

    async def _until_healthy(self, cause: EngineError) -> None:
        """Waits for an engine that is down: its absence says nothing about an item."""
        try:
            async with asyncio.timeout(self._timing.recovery_s):
                while not (await self._engine.health()).healthy:  # noqa: ASYNC110 - a port, no event
                    await asyncio.sleep(self._timing.poll_s)
        except TimeoutError:
            raise EngineError(
                f"held-out evaluation stopped: the engine stayed down for "
                f"{self._timing.recovery_s:g} s ({cause}); the answers so far are kept"
            ) from cause

    def _warn(self, run_id: str, question: Question, who: Respondent, reason: str) -> None:
        suite = question.suite
        if suite.sealed:
            # Evidence quotes references and answers.
            log.warning(
                "gate_item_error run=%s suite=%s adapter=%s sealed", run_id, suite.name, who.name
            )
            return
        log.warning(
            "gate_item_error run=%s suite=%s item=%s adapter=%s reason=%r",
            *(run_id, suite.name, question.item.id, who.name, reason),
        )


def _request_id(run_id: str) -> str:
    return f"gate-{run_id}-{uuid.uuid4().hex}"
