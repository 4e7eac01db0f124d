"""`opsd suites` against a daemon that is only its gRPC face."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from opsd.daemon.cli.exits import Exit
from opsd.v1 import admin_pb2, gate_pb2_grpc
from opsd.v1 import gate_pb2 as pb

SUITE = pb.Suite(
    settings=pb.SuiteSettings(
        name="sums", role=admin_pb2.SUITE_ROLE_GUARD, margin=0.03, sealed=True, budget=5
    ),
    version="2",
    sha256="ab" * 32,
    num_items=120,
    state=pb.SUITE_STATE_ACTIVE,
    source="added",
    actor="ana",
    reason="because\x1b[31m",
    fresh_share=0.4,
    queries_used=2,
    queries_carried=2,
)


class FakeGate(gate_pb2_grpc.GateServiceServicer):
    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.content = b""
        self.errors: list[str] = []
        self.address = ""

    def AddSuite(self, requests: Iterator[pb.AddSuiteRequest], context: Any) -> Any:
        for request in requests:
            self.content += request.content
            if request.HasField("upload"):
                self.seen.append(request.upload)
        return pb.AddSuiteResponse(suite=SUITE, num_quarantined_exact=1, num_quarantined_near=2)

    def CheckSuite(self, requests: Iterator[pb.CheckSuiteRequest], context: Any) -> Any:
        for request in requests:
            self.content += request.content
            if request.HasField("options"):
                self.seen.append(request.options)
        return pb.SuiteCheck(
            settings=SUITE.settings,
            num_items=120,
            num_clusters=30,
            effective_items=28.5,
            gate_number=3,
            gain_level=0.0034,
            guard_level=0.025,
            discordance=0.2,
            discordance_source="assumed",
            detectable_gain=0.21,
            needed=[
                pb.ItemsNeeded(difference=0.05, num_items=1200),
                pb.ItemsNeeded(difference=0.01),
            ],
            strata=[pb.StratumCheck(stratum="hard", num_items=9)],
            errors=self.errors,
            warnings=["tiny\x1b[31m"],
        )

    def ListSuites(self, request: pb.ListSuitesRequest, context: Any) -> Any:
        self.seen.append(request)
        return pb.ListSuitesResponse(suites=[SUITE])

    def GetSuite(self, request: pb.GetSuiteRequest, context: Any) -> Any:
        self.seen.append(request)
        if request.include_items and request.name == "sealed":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "suite 'sealed' is sealed")
        item = pb.SuiteItem(id="i1", prompt="1+1", verifier="numeric", reference="2")
        return pb.GetSuiteResponse(suite=SUITE, items=[item] if request.include_items else [])

    def RemoveSuite(self, request: pb.RemoveSuiteRequest, context: Any) -> Any:
        self.seen.append(request)
        return SUITE


@pytest.fixture
def gate() -> Iterator[FakeGate]:
    fake = FakeGate()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        gate_pb2_grpc.add_GateServiceServicer_to_server(fake, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        fake.address = f"127.0.0.1:{port}"
        yield fake
        server.stop(0).wait()


@pytest.fixture
def run_alone(opsd: Any, gate: FakeGate) -> Any:
    return partial(opsd, address=gate.address)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    path.write_bytes(b"x" * (5 << 19))
    return path


def test_add_sends_the_file_in_pieces(run_alone: Any, gate: FakeGate, file: Path) -> None:
    result = run_alone(
        *("suites", "add", str(file), "--name", "sums", "--role", "guard", "--margin", "0.03"),
        *("--stratum-margin", "0.1", "--sealed", "--budget", "5", "--reason", "because"),
        *("--version", "2", "--samples", "4"),
    )
    assert result.code == 0, result.err
    (upload,) = gate.seen
    assert gate.content == file.read_bytes()
    assert upload.settings == pb.SuiteSettings(
        name="sums",
        role=admin_pb2.SUITE_ROLE_GUARD,
        margin=0.03,
        stratum_margin=0.1,
        sealed=True,
        budget=5,
        samples=4,
    )
    assert (upload.version, upload.reason, upload.file_name) == ("2", "because", "sums.jsonl")
    assert "3 stored pairs overlap it (1 exactly, 2 nearly) and are in quarantine" in result.err
    assert "only 40.0 % of its problems are fresh, so 2 gates" in result.err
    assert "2 of 5" in result.out
    assert "\x1b" not in result.out


def test_list_and_show(run_alone: Any, gate: FakeGate) -> None:
    result = run_alone("suites", "list", "--all")
    assert gate.seen[-1].all
    assert "sealed" in result.out
    assert "2 of 5" in result.out
    assert run_alone("suites", "list", "-o", "json").json["suites"][0]["queries_used"] == 2
    assert "i1" not in run_alone("suites", "show", "sums").out
    assert "1+1" in run_alone("suites", "show", "sums", "--items").out
    refused = run_alone("suites", "show", "sealed", "--items")
    assert refused.code == Exit.REFUSED
    assert "sealed" in refused.err


def test_check_of_a_file_and_of_a_suite(run_alone: Any, gate: FakeGate, file: Path) -> None:
    result = run_alone(
        *("suites", "check", str(file), "--role", "guard", "--difference", "0.05"),
        *("--difference", "0.01", "--discordance", "0.3", "--gate", "3"),
    )
    assert result.code == 0, result.err
    assert gate.content == file.read_bytes()
    options = gate.seen[-1]
    assert list(options.differences) == [0.05, 0.01]
    assert (options.discordance, options.gate_number) == (0.3, 3)
    assert options.upload.settings.role == admin_pb2.SUITE_ROLE_GUARD
    assert options.upload.settings.name == "draft"
    run_alone("suites", "check", str(file), "--name", "sums")
    assert gate.seen[-1].upload.settings.name == "sums"
    gate.content = file.read_bytes()
    assert "120 in 30 clusters, worth 28 at worst" in result.out
    assert "21.0 points are shown 4 times in 5 (p ≤ 0.0034, one-sided)" in result.out
    assert "1,200" in result.out
    assert "hard" in result.out
    assert "warning: tiny\N{REPLACEMENT CHARACTER}" in result.out
    gate.errors = ["a problem stands in two suites"]
    named = run_alone("suites", "check", "sums")
    assert named.code == Exit.NEGATIVE_OUTCOME
    assert "error: a problem stands in two suites" in named.out
    assert gate.seen[-1].name == "sums"
    assert run_alone("suites", "check", "no/such.jsonl").code == Exit.NOT_FOUND


def test_remove_needs_a_reason(run_alone: Any, gate: FakeGate) -> None:
    assert run_alone("suites", "remove", "sums").code == Exit.USAGE
    removed = run_alone("suites", "remove", "sums", "--reason", "old")
    assert removed.code == 0
    assert "opsd pairs release" in removed.err
    assert (gate.seen[-1].name, gate.seen[-1].reason) == ("sums", "old")
