"""What the gRPC door costs: tokens/s, latency and time to first token, against AsyncLLM itself.

One run, one engine, two ways to it, alternating round by round (ABAB…), so that a noisy machine
treats both alike:

  grpc    a load generator in a process of its own calls InferenceService.GenerateStream
  direct  tasks in the server's process iterate AsyncLLM.generate, vLLM's own API

Both are closed loops of N streams over the same prompts and sampling parameters (raw prompt,
greedy, a fixed number of tokens, deltas). The server and the load generator run on uvloop; during
direct rounds the load generator waits. So a grpc round also pays for its client: where client and
engine share too few cores, the ratio is an upper bound of what the door itself costs.

The ratio of a pair of neighbouring rounds is taken first, then the median over the pairs. Above 1
is more than direct: good for tokens/s, bad for times. Rounds before the first pair warm up.

    python bench/serve.py [--model DIR] [--streams 1,16,64] [--pairs 7] [--json FILE]

With --beside-run it measures instead what users notice of a training run that samples from the
engine that serves them (beside_run.py, beside_rounds.py), at loads USERS or USERS:PAUSE_S:

    python bench/serve.py --beside-run 1,8,4:2 [--seconds 20] [--pairs 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import grpc
import uvloop

import beside_rounds
import beside_run
from opsd.daemon.adapters.routing import Router
from opsd.daemon.config.schema import EngineConfig, ModelConfig, ServerConfig
from opsd.daemon.serve.grpc_server import GrpcServer, Registration
from opsd.daemon.serve.service import InferenceService
from opsd.daemon.serve.state import Availability, ServingState
from opsd.daemon.serve.vllm_engine import VllmEngine
from opsd.v1 import inference_pb2 as pb
from opsd.v1 import inference_pb2_grpc as pb_grpc

METRICS = (
    "tokens_per_s",
    "latency_p50_s",
    "latency_p99_s",
    "first_token_p50_s",
    "first_token_p99_s",
)
TARGET = 0.05

# Yields the number of tokens in each piece of the completion of a prompt.
Pieces = Callable[[str], AsyncIterator[int]]


@dataclass(frozen=True, slots=True)
class Load:
    """A round: ``num_streams`` tasks, ``per_stream`` requests each, ``num_tokens`` tokens a
    request.
    """

    num_streams: int
    per_stream: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Round:
    tokens_per_s: float
    latency_p50_s: float
    latency_p99_s: float
    first_token_p50_s: float
    first_token_p99_s: float


def quantile(values: list[float], fraction: float) -> float:
    """The smallest value that at least this fraction does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


async def run_round(load: Load, pieces: Pieces) -> Round:
    """Raises AssertionError when a completion has another length than asked for."""
    latencies_s: list[float] = []
    first_tokens_s: list[float] = []

    async def stream(number: int) -> None:
        for turn in range(load.per_stream):
            started = time.perf_counter()
            first_s = 0.0
            num_tokens = 0
            async for count in pieces(f"Tom has {10 + number} apples and eats {turn + 1}."):
                first_s = first_s or time.perf_counter() - started
                num_tokens += count
            assert num_tokens == load.num_tokens, f"{num_tokens} tokens, not {load.num_tokens}"
            latencies_s.append(time.perf_counter() - started)
            first_tokens_s.append(first_s)

    gc.collect()
    started = time.perf_counter()
    await asyncio.gather(*(stream(number) for number in range(load.num_streams)))
    wall_s = time.perf_counter() - started
    return Round(
        tokens_per_s=load.num_streams * load.per_stream * load.num_tokens / wall_s,
        latency_p50_s=quantile(latencies_s, 0.5),
        latency_p99_s=quantile(latencies_s, 0.99),
        first_token_p50_s=quantile(first_tokens_s, 0.5),
        first_token_p99_s=quantile(first_tokens_s, 0.99),
    )


async def generate_load(port: int) -> None:
    """The load generator: a load in JSON per line of stdin, a round in JSON per line of stdout."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        while line := await asyncio.to_thread(sys.stdin.readline):
            load = Load(**json.loads(line))
            sampling = pb.SamplingParams(max_tokens=load.num_tokens, temperature=0, ignore_eos=True)

            async def pieces(
                prompt: str, sampling: pb.SamplingParams = sampling
            ) -> AsyncIterator[int]:
                request = pb.GenerateRequest(prompt=prompt, sampling=sampling)
                async for chunk in stub.GenerateStream(request):
                    yield chunk.num_tokens

            print(json.dumps(asdict(await run_round(load, pieces))), flush=True)


async def direct_round(engine: VllmEngine, load: Load) -> Round:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    client = engine.client
    serial = iter(range(1 << 30))

    async def pieces(prompt: str) -> AsyncIterator[int]:
        params = SamplingParams(
            max_tokens=load.num_tokens,
            temperature=0.0,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        async for output in client.generate(prompt, params, f"direct-{next(serial)}"):
            yield len(output.outputs[0].token_ids)

    return await run_round(load, pieces)


class LoadGenerator:
    """The other process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def round(self, load: Load) -> Round:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(load)).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator died; its message is above")
        return Round(**json.loads(line))

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


async def measure(model: str, streams: list[int], pairs: int, num_tokens: int) -> dict[str, Any]:
    engine = VllmEngine(
        ModelConfig(path=model, dtype="float32"),
        EngineConfig(max_num_seqs=max(64, *streams), max_lora_rank=16, kv_cache_mib=256),
    )
    await engine.start()
    availability = Availability()
    availability.set(ServingState.READY)
    config = ServerConfig(port=0)
    service = InferenceService(engine, Router(), availability, config)
    server = GrpcServer(
        config,
        [
            Registration(
                "opsd.v1.InferenceService",
                lambda s: pb_grpc.add_InferenceServiceServicer_to_server(service, s),
            )
        ],
        availability,
    )
    await server.start()
    generator = LoadGenerator(
        await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            "--load-generator",
            str(server.port),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
    )
    gc.freeze()
    levels: dict[str, Any] = {}
    try:
        for num_streams in streams:
            load = Load(num_streams, max(8, 24 // num_streams), num_tokens)
            rounds: dict[str, list[Round]] = {"grpc": [], "direct": []}
            for pair in range(pairs + 1):
                through_grpc = await generator.round(load)
                directly = await direct_round(engine, load)
                if pair:
                    rounds["grpc"].append(through_grpc)
                    rounds["direct"].append(directly)
            levels[str(num_streams)] = summarise(rounds)
    finally:
        gc.unfreeze()
        await generator.stop()
        await server.stop(0)
        await engine.stop()
    return {"model": Path(model).name, "num_tokens": num_tokens, "pairs": pairs, "streams": levels}


def summarise(rounds: dict[str, list[Round]]) -> dict[str, Any]:
    """Medians over the rounds, and the median over the pairs of grpc / direct."""
    summary: dict[str, Any] = {}
    for metric in METRICS:
        grpc_values = [getattr(round_, metric) for round_ in rounds["grpc"]]
        direct_values = [getattr(round_, metric) for round_ in rounds["direct"]]
        ratios = [a / b for a, b in zip(grpc_values, direct_values, strict=True)]
        summary[metric] = {
            "grpc": statistics.median(grpc_values),
            "direct": statistics.median(direct_values),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return summary


def print_table(report: dict[str, Any]) -> None:
    print(f"{'streams':>7}  {'metric':<18}{'grpc':>10}{'direct':>10}{'ratio':>8}  range of ratios")
    for num_streams, summary in report["streams"].items():
        for metric in METRICS:
            row = summary[metric]
            is_time = metric.endswith("_s") and metric != "tokens_per_s"
            scale, unit = (1e3, "ms") if is_time else (1.0, "")
            print(
                f"{num_streams:>7}  {metric.removesuffix('_s') if is_time else metric:<18}"
                f"{row['grpc'] * scale:>8.1f}{unit:<2}{row['direct'] * scale:>8.1f}{unit:<2}"
                f"{row['ratio']:>8.3f}  {row['ratio_min']:.3f} to {row['ratio_max']:.3f}"
            )
    for num_streams, summary in report["streams"].items():
        slower = 1 - summary["tokens_per_s"]["ratio"]
        later = summary["latency_p50_s"]["ratio"] - 1
        verdict = "within" if max(slower, later) <= TARGET else "NOT within"
        print(f"{num_streams} streams: {verdict} {TARGET:.0%} of direct at the median")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", help="model directory; default: a random micro model, made anew")
    parser.add_argument("--streams", default="1,16,64", help="numbers of streams, comma-separated")
    parser.add_argument("--pairs", type=int, default=7, help="grpc/direct pairs of rounds a level")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a completion")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--beside-run", metavar="LOADS", help="users' loads beside a run's samples")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a round beside a run")
    parser.add_argument("--load-generator", type=int, metavar="PORT", help=argparse.SUPPRESS)
    for hidden in ("--be-users", "--be-run", "--adapter"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_users:
        uvloop.run(beside_run.be_users(options.be_users))
        return
    if options.be_run:
        uvloop.run(beside_run.be_run(options.be_run, options.adapter))
        return
    if options.load_generator:
        uvloop.run(generate_load(options.load_generator))
        return
    streams = [int(number) for number in options.streams.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or make_micro_model(Path(scratch))
        if options.beside_run:
            loads = [parse_load(text, options.seconds) for text in options.beside_run.split(",")]
            report = uvloop.run(beside_run.measure(model, loads, options.pairs))
            beside_rounds.print_table(report)
        else:
            report = uvloop.run(measure(model, streams, options.pairs, options.tokens))
            print_table(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def parse_load(text: str, seconds: float) -> beside_rounds.Load:
    """ "8" or "8:2.5": users, and the pause between their requests in seconds."""
    users, _, pause = text.partition(":")
    return beside_rounds.Load(int(users), float(pause or 0.0), seconds)


def make_micro_model(path: Path) -> str:
    from opsd.trainer.tiny.model import make_model
    from opsd.trainer.tiny.tokenizer import make_tokenizer

    tokenizer = make_tokenizer()
    make_model(tokenizer, 0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


if __name__ == "__main__":
    main()
