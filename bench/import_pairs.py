"""How many pairs a second `opsd pairs import` brings into the store.

    python bench/import_pairs.py [--lines 100000] [--verifier math] [--processes 1]

Writes a file of GSM8K's form, serves CollectionService on a real store with real verifier
processes, and imports the file with the command line in a process of its own; then once more, when
everything is stored already; then exports it. Every pair is verified and durable before it counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import grpc

from opsd.daemon.app.interceptors import ErrorInterceptor
from opsd.daemon.collect.hygiene.contamination import HeldOutIndex
from opsd.daemon.collect.service import CollectionService
from opsd.daemon.collect.source_service import SourceService
from opsd.daemon.collect.sources.answers import AnswerIntake
from opsd.daemon.collect.sources.driver import SourceDriver
from opsd.daemon.collect.sources.problems import ProblemIntake
from opsd.daemon.config.schema import CollectConfig
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.verify.pool import VerifierPool
from opsd.v1 import collection_pb2_grpc as pb_grpc


def write_file(path: Path, num_lines: int) -> None:
    draw = random.Random(7)
    with path.open("w") as out:
        for number in range(num_lines):
            a, b = draw.randrange(100, 10_000), draw.randrange(100, 10_000)
            text = f"First there are {a}. Then {b} more come: {a}+{b} = <<{a}+{b}={a + b}>>{a + b}."
            record = {
                "question": f"Case {number}: a shop has {a} apples and gets {b}. How many then?",
                "answer": f"{text}\n#### {a + b}",
            }
            out.write(json.dumps(record) + "\n")


class Always:
    """The engine is not needed here."""

    is_ready = True


async def serve(store: SqlStore, verifiers: VerifierPool) -> tuple[grpc.aio.Server, str]:
    held_out = HeldOutIndex({})
    collection = CollectionService(store, verifiers, held_out, CollectConfig())
    problems = ProblemIntake(store, held_out, collection.intake)
    answers = AnswerIntake(
        store, collection.attempt, verifiers, collection.intake, problems, collection.intake
    )
    sources = SourceService(store, answers, problems, SourceDriver([], store, Always()))
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    pb_grpc.add_CollectionServiceServicer_to_server(collection, server)
    pb_grpc.add_SourceServiceServicer_to_server(sources, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def opsd(address: str, *arguments: str) -> tuple[float, str]:
    """Seconds of the whole command, and what it said."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "opsd.daemon.cli.main", "--address", address, *arguments),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"opsd {' '.join(arguments)} ended with {process.returncode}")
    return time.perf_counter() - began, out.decode()


async def run(options: argparse.Namespace, directory: Path) -> None:
    path = directory / "set.jsonl"
    write_file(path, options.lines)
    store = open_store(options.store_url or sqlite_url(directory))
    verifiers = VerifierPool(processes=options.processes, timeout_s=10.0)
    await verifiers.start()
    server, address = await serve(store, verifiers)
    command = ("pairs", "import", str(path), "--verifier", options.verifier, "-o", "json")
    for name in ("import", "import again"):
        seconds, said = await opsd(address, *command)
        counts = json.loads(said)["counts"]
        print(f"{name}: {options.lines / seconds:.0f} pairs/s ({seconds:.1f} s) {counts}")
    seconds, _ = await opsd(address, "pairs", "export", str(directory / "out.jsonl"))
    print(f"export: {options.lines / seconds:.0f} pairs/s ({seconds:.1f} s)")
    await server.stop(0)
    await verifiers.stop()
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--verifier", default="math")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--store-url", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(options, Path(directory)))


if __name__ == "__main__":
    main()
