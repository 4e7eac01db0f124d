"""How far a model's own samples can be trusted: traces that verify, and majorities that are right.

    python bench/own_samples.py --model DIR --problems FILE.jsonl [--problems …] [--samples 16]

FILE.jsonl has prompt, verifier and reference, as suites do. Every problem is sampled, every sample
is verified against the reference, and the majority is taken as if the reference were not known.
Prints, for each file: traces that verify, problems with at least one in 4; for each margin, how
many majorities are accepted and how many of these are right. Runs on a CPU with the demo's model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opsd.daemon.collect.sources.majority import AgreementRule, agree, answer_of, group
from opsd.daemon.config.schema import EngineConfig, ModelConfig
from opsd.daemon.serve.vllm_engine import VllmEngine
from opsd.daemon.types.engine import ChatMessage, EngineRequest, FinishReason, Sampling
from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.pool import VerifierPool

MARGINS = (0.0, 0.25, 0.5, 0.75, 0.9)
HARVESTED = 4  # samples of a round of harvest
AT_ONCE = 128


@dataclass(frozen=True)
class Measured:
    """One problem: which samples pass, and what each answers."""

    passed: tuple[bool, ...]
    answers: tuple[str | None, ...]
    verifier: str
    reference: str


async def sample(
    engine: VllmEngine, prompt: str, name: str, options: argparse.Namespace, seed: int
) -> tuple[str, bool]:
    """The text, and whether it was cut off."""
    request = EngineRequest(
        request_id=name,
        sampling=Sampling(
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=seed,
        ),
        messages=(ChatMessage("user", prompt),),
        stream=False,
    )
    text, cut_off = "", False
    async for chunk in engine.generate(request):
        text += chunk.text
        cut_off = chunk.finish_reason is FinishReason.LENGTH
    return text, cut_off


async def measure(
    engine: VllmEngine,
    verifiers: VerifierPool,
    problem: dict[str, str],
    number: int,
    options: argparse.Namespace,
) -> Measured:
    drawn = [
        await sample(engine, problem["prompt"], f"{number}-{index}", options, number * 1000 + index)
        for index in range(options.samples)
    ]
    verifier, reference = problem["verifier"], problem["reference"]
    passed, answers = [], []
    for text, cut_off in drawn:
        verdict = await verifiers.verify(verifier, reference, text)
        passed.append(verdict.kind is VerdictKind.PASS and not cut_off)
        answers.append(None if cut_off else answer_of(verifier, text))
    return Measured(tuple(passed), tuple(answers), verifier, reference)


async def measure_all(
    engine: VllmEngine,
    verifiers: VerifierPool,
    problems: Sequence[dict[str, str]],
    options: argparse.Namespace,
) -> list[Measured]:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, problem: dict[str, str]) -> Measured:
        async with room:
            return await measure(engine, verifiers, problem, number, options)

    return await asyncio.gather(*(one(n, p) for n, p in enumerate(problems)))


async def report(
    name: str, found: Sequence[Measured], verifiers: VerifierPool, options: argparse.Namespace
) -> None:
    samples = sum(len(problem.passed) for problem in found)
    verified = sum(sum(problem.passed) for problem in found)
    harvested = sum(any(problem.passed[:HARVESTED]) for problem in found)
    print(
        f"{name}: {len(found)} problems, {samples} samples: {verified / samples:.1%} verify, "
        f"{harvested / len(found):.1%} of problems have one in {HARVESTED}"
    )
    print(f"  {'margin':>6} {'accepted':>8} {'right':>6} {'of them':>8}")
    grouped = [await group(verifiers, problem.verifier, problem.answers) for problem in found]
    for margin in MARGINS:
        rule = AgreementRule(options.confidence, margin)
        accepted = right = 0
        for problem, groups in zip(found, grouped, strict=True):
            agreement = agree(len(problem.answers), groups, rule)
            if agreement.accepted and agreement.majority is not None:
                accepted += 1
                answer = f"\\boxed{{{agreement.majority.answer}}}"
                verdict = await verifiers.verify(problem.verifier, problem.reference, answer)
                right += verdict.kind is VerdictKind.PASS
        share = f"{right / accepted:.1%}" if accepted else "-"
        print(f"  {margin:>6.2f} {accepted:>8} {right:>6} {share:>8}")


async def run(options: argparse.Namespace) -> None:
    engine = VllmEngine(
        ModelConfig(path=str(options.model), dtype=options.dtype),
        EngineConfig(device=options.device, kv_cache_mib=256, max_num_seqs=AT_ONCE),
    )
    verifiers = VerifierPool(processes=1, timeout_s=10.0)
    await asyncio.gather(engine.start(), verifiers.start())
    try:
        for path in options.problems:
            lines = path.read_text().splitlines()[: options.limit]
            problems = [json.loads(line) for line in lines]
            found = await measure_all(engine, verifiers, problems, options)
            await report(path.name, found, verifiers, options)
    finally:
        await verifiers.stop()
        await engine.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--problems", type=Path, action="append", required=True)
    parser.add_argument("--limit", type=int, default=200, help="problems of each file")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
