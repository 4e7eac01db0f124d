"""A daemon that is only its gRPC face, on a real socket, and a way to run commands against it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import pytest

from opsd.daemon.cli.main import run
from opsd.v1 import admin_pb2 as pb
from opsd.v1 import admin_pb2_grpc, collection_pb2_grpc, inference_pb2_grpc
from opsd.v1 import collection_pb2 as cpb
from opsd.v1 import inference_pb2 as ipb
from opsd.v1.token_audit_pb2 import AuditedAttempt

RUN_ID = "0b6c2c1e-0000-4000-8000-000000000001"
ADAPTER = "opsd-0123456789abcdef"


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def a_run(**fields: Any) -> pb.Run:
    values: dict[str, Any] = {
        "id": RUN_ID,
        "state": pb.RUN_STATE_TRAINING,
        "trigger": "operator",
        "num_pairs": 64,
        "step": 3,
        "num_steps": 10,
        "created_unix_s": 1_700_000_000.0,
    }
    run = pb.Run(**(values | fields))
    run.metrics.loss = 0.125
    return run


def an_adapter(**fields: Any) -> pb.Adapter:
    values: dict[str, Any] = {
        "name": ADAPTER,
        "sha256": "01" * 32,
        "state": pb.ADAPTER_STATE_CANDIDATE,
        "run_id": RUN_ID,
        "rank": 16,
        "size_bytes": 3 << 20,
        "gate_verdict": pb.GATE_VERDICT_PASS,
    }
    return pb.Adapter(**(values | fields))


def a_report() -> pb.GateReport:
    suite = pb.SuiteReport(
        name="arithmetic",
        role=pb.SUITE_ROLE_TARGET,
        n=600,
        incumbent_accuracy=0.47,
        candidate_accuracy=0.9,
        only_candidate=270,
        only_incumbent=12,
        difference=0.43,
        ci_low=0.39,
        ci_high=0.47,
        confidence=0.95,
        p_value=1e-40,
        margin=0.02,
        verdict=pb.GATE_VERDICT_PASS,
        explanation="arithmetic: the interval lies above the margin",
    )
    suite.strata.add(stratum="hard", n=200, incumbent_accuracy=0.09, candidate_accuracy=0.96)
    check = pb.CheckReport(
        name="length",
        kind=pb.CHECK_KIND_RATIO,
        against="base",
        n=600,
        reference=40.0,
        candidate=30.0,
        estimate=0.75,
        ci_low=0.72,
        ci_high=0.78,
        low=0.5,
        verdict=pb.GATE_VERDICT_PASS,
        explanation="length: tokens an answer 40 → 30",
    )
    unjudged = pb.CheckReport(
        name="markers", against="base", explanation="markers: there is nothing to lose"
    )
    sealed = pb.SuiteReport(
        name="vault",
        role=pb.SUITE_ROLE_GUARD,
        confidence=0.95,
        sealed=True,
        verdict=pb.GATE_VERDICT_PASS,
        explanation="vault (sealed): held",
    )
    return pb.GateReport(
        checks=[check, unjudged],
        run_id=RUN_ID,
        candidate=ADAPTER,
        incumbent="base",
        verdict=pb.GATE_VERDICT_PASS,
        explanation="every suite passed",
        suites=[suite, sealed],
    )


def a_canary() -> pb.Canary:
    canary = pb.Canary(
        adapter=ADAPTER,
        end="running",
        step=1,
        steps=[0.05, 0.25, 1.0],
        mode="auto",
        alpha=0.05,
        e_value=1.5,
        step_requests=120,
        reason="120 of 200 requests",
    )
    canary.metrics.add(
        name="engine_error",
        canary_n=118,
        incumbent_n=2300,
        canary_mean=0.01,
        incumbent_mean=0.012,
        harm_e_value=0.9,
        safe_e_value=12.0,
        margin=0.02,
        must_prove=True,
    )
    return canary


@dataclass
class FakeDaemon(
    admin_pb2_grpc.AdminServiceServicer,
    collection_pb2_grpc.CollectionServiceServicer,
    inference_pb2_grpc.InferenceServiceServicer,
):
    """Remembers requests and metadata; answers what a test put into it."""

    calls: list[tuple[str, Any]] = field(default_factory=list)
    actors: list[str] = field(default_factory=list)
    failure: tuple[grpc.StatusCode, str] | None = None
    watch: list[list[pb.Run] | grpc.StatusCode] = field(default_factory=list)
    adapter: pb.Adapter = field(default_factory=an_adapter)
    stored: dict[str, cpb.PairInput] = field(default_factory=dict)
    why: str = "because"  # of what is not verified
    status_of: Callable[[cpb.PairInput], cpb.PairStatus.ValueType] = lambda pair: (
        cpb.PAIR_STATUS_VERIFIED
    )
    break_after: list[int] = field(default_factory=list)  # acknowledgements of successive streams
    audited: list[AuditedAttempt] = field(default_factory=list)
    num_pairs: int = 3
    mixed: bool = False
    replays: bool = True
    on_trigger: Callable[[Any], pb.Run] | None = None
    runs: dict[str, pb.Run] = field(default_factory=dict)  # what GetRun and WatchRun know, if any
    reports: dict[str, pb.GateReport] = field(default_factory=dict)
    exported: list[pb.AuditBatch] = field(default_factory=list)
    progress: list[pb.AuditProgress] = field(default_factory=list)
    head: pb.AuditHead = field(default_factory=pb.AuditHead)
    keys: pb.SigningKeys = field(default_factory=pb.SigningKeys)
    pieces: list[pb.FilePiece] = field(default_factory=list)
    pending: list[pb.PendingCandidate] = field(default_factory=list)
    canary: pb.Canary = field(default_factory=a_canary)
    approvals: tuple[int, int] = (1, 1)

    def _note(self, name: str, request: Any, context: grpc.ServicerContext) -> None:
        self.calls.append((name, request))
        metadata = {str(key): str(value) for key, value in context.invocation_metadata()}
        self.actors.append(metadata["x-opsd-actor"])
        if self.failure is not None:
            self._abort(context, *self.failure)

    def _abort(
        self, context: grpc.ServicerContext, code: grpc.StatusCode, details: str
    ) -> NoReturn:
        context.abort(code, details)
        raise AssertionError("abort raises")

    def last(self, name: str) -> Any:
        return [request for called, request in self.calls if called == name][-1]

    # --- admin

    def GetStatus(self, request: Any, context: Any) -> pb.Status:
        self._note("GetStatus", request, context)
        status = pb.Status(
            version="0.1.0",
            serving=pb.SERVING_STATE_READY,
            uptime_s=3723,
            incumbent=ADAPTER,
            previous="base",
            incumbent_epoch=4,
            pool_devices=8,
            active_run=a_run(),
        )
        status.loaded.add(name=ADAPTER, role="incumbent", in_flight=2)
        return status

    def TriggerRun(self, request: Any, context: Any) -> pb.Run:
        self._note("TriggerRun", request, context)
        if self.on_trigger is not None:
            try:
                return self.on_trigger(request)
            except ValueError as error:
                self._abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return a_run(state=pb.RUN_STATE_QUEUED)

    def ListRuns(self, request: Any, context: Any) -> pb.ListRunsResponse:
        self._note("ListRuns", request, context)
        start = int(request.page_token or 0)
        end = min(5, start + min(request.page_size, 2))
        runs = [a_run(id=f"run-{n}", reason="new\nline \x1b[31m") for n in range(start, end)]
        return pb.ListRunsResponse(runs=runs, next_page_token=str(end) if end < 5 else "")

    def GetRun(self, request: Any, context: Any) -> pb.Run:
        self._note("GetRun", request, context)
        if request.id in self.runs:
            return self.runs[request.id]
        if not request.id or not RUN_ID.startswith(request.id):
            self._abort(context, grpc.StatusCode.NOT_FOUND, f"no run {request.id}")
        run = a_run(error="the trainer died", log_tail="Traceback\n  boom")
        run.history.add(state=pb.RUN_STATE_QUEUED, time_unix_s=1_700_000_000, reason="operator")
        return run

    def WatchRun(self, request: Any, context: Any) -> Iterator[pb.Run]:
        self._note("WatchRun", request, context)
        if request.id in self.runs:
            yield self.runs[request.id]
            return
        script = self.watch.pop(0)
        if isinstance(script, grpc.StatusCode):
            self._abort(context, script, "going down")
        yield from script

    def CancelRun(self, request: Any, context: Any) -> pb.Run:
        self._note("CancelRun", request, context)
        return a_run(state=pb.RUN_STATE_CANCELLED)

    def ReadTokenAudit(self, request: Any, context: Any) -> Iterator[AuditedAttempt]:
        self._note("ReadTokenAudit", request, context)
        yield from (a for a in self.audited if request.step in (0, a.step))

    def ListAdapters(self, request: Any, context: Any) -> pb.ListAdaptersResponse:
        self._note("ListAdapters", request, context)
        return pb.ListAdaptersResponse(adapters=[self.adapter])

    def GetAdapter(self, request: Any, context: Any) -> pb.Adapter:
        self._note("GetAdapter", request, context)
        if not self.adapter.name.startswith(request.name):
            self._abort(context, grpc.StatusCode.NOT_FOUND, f"no adapter {request.name}")
        return self.adapter

    def _change(self, request: Any) -> pb.AdapterChange:
        return pb.AdapterChange(
            incumbent=ADAPTER, previous="base", epoch=5, adapter=self.adapter, audit_id=7
        )

    def ApproveAdapter(self, request: Any, context: Any) -> pb.AdapterChange:
        self._note("ApproveAdapter", request, context)
        change = self._change(request)
        change.approvals, change.approvals_required = self.approvals
        return change

    def RejectAdapter(self, request: Any, context: Any) -> pb.AdapterChange:
        self._note("RejectAdapter", request, context)
        return self._change(request)

    def Rollback(self, request: Any, context: Any) -> pb.AdapterChange:
        self._note("Rollback", request, context)
        return self._change(request)

    def ListPending(self, request: Any, context: Any) -> pb.ListPendingResponse:
        self._note("ListPending", request, context)
        return pb.ListPendingResponse(candidates=self.pending)

    def GetCanary(self, request: Any, context: Any) -> pb.Canary:
        self._note("GetCanary", request, context)
        return self.canary

    def AdvanceCanary(self, request: Any, context: Any) -> pb.AdapterChange:
        self._note("AdvanceCanary", request, context)
        return self._change(request)

    def GetGate(self, request: Any, context: Any) -> pb.GateReport:
        self._note("GetGate", request, context)
        if self.runs:
            if request.id not in self.reports:
                self._abort(context, grpc.StatusCode.NOT_FOUND, "no gate report")
            return self.reports[request.id]
        return a_report()

    def ReplayGate(self, request: Any, context: Any) -> pb.ReplayGateResponse:
        self._note("ReplayGate", request, context)
        return pb.ReplayGateResponse(
            identical=self.replays,
            inputs_intact=True,
            message="" if self.replays else "the inputs give fail, the stored report says pass",
            replayed=a_report(),
            rules_version=2,
            inputs=b"{}" if request.with_inputs else b"",
        )

    def GetLedger(self, request: Any, context: Any) -> pb.Ledger:
        self._note("GetLedger", request, context)
        line = pb.LedgerLine(
            run_id=RUN_ID,
            suite="arithmetic",
            role=pb.SUITE_ROLE_TARGET,
            gate_number=2,
            alpha=0.0076,
            alpha_total=0.05,
        )
        return pb.Ledger(lines=[line])

    def ListAudit(self, request: Any, context: Any) -> pb.ListAuditResponse:
        self._note("ListAudit", request, context)
        entry = pb.AuditEntry(
            id=7, actor="alice", action="adapter.promote", subject=ADAPTER, reason="good"
        )
        return pb.ListAuditResponse(entries=[entry])

    # --- collection

    def SubmitPairs(self, request_iterator: Any, context: Any) -> NoReturn:
        raise NotImplementedError

    def SubmitFeedback(self, request: Any, context: Any) -> NoReturn:
        raise NotImplementedError

    def GetAttempt(self, request: Any, context: Any) -> NoReturn:
        raise NotImplementedError

    def SubmitPairsAcked(self, requests: Any, context: Any) -> Iterator[cpb.PairResult]:
        self._note("SubmitPairsAcked", None, context)
        limit = self.break_after.pop(0) if self.break_after else -1
        for done, request in enumerate(requests):
            if done == limit:
                self._abort(context, grpc.StatusCode.UNAVAILABLE, "draining")
            pair = request.pair
            known = self.stored.get(pair.id)
            status = self.status_of(pair)
            self.stored[pair.id] = pair
            yield cpb.PairResult(
                id=pair.id,
                status=status,
                already_stored=known == pair,
                message="" if status == cpb.PAIR_STATUS_VERIFIED else self.why,
            )

    def ListPairs(self, request: Any, context: Any) -> cpb.ListPairsResponse:
        self._note("ListPairs", request, context)
        pairs = [
            cpb.Pair(
                input=cpb.PairInput(id=f"pair-{n}", prompt="x" * 200, verifier="exact"),
                status=cpb.PAIR_STATUS_VERIFIED,
            )
            for n in range(min(self.num_pairs, request.page_size))
        ]
        return cpb.ListPairsResponse(pairs=pairs, total=self.num_pairs)

    def GetPair(self, request: Any, context: Any) -> cpb.Pair:
        self._note("GetPair", request, context)
        pair = cpb.PairInput(id=request.id, prompt="2+2", solution="four", verifier="exact")
        return cpb.Pair(input=pair, status=cpb.PAIR_STATUS_UNVERIFIED)

    # --- evidence

    def VerifyAudit(self, request: Any, context: Any) -> Iterator[pb.AuditProgress]:
        self._note("VerifyAudit", request, context)
        yield from self.progress

    def ExportAudit(self, request: Any, context: Any) -> Iterator[pb.AuditBatch]:
        self._note("ExportAudit", request, context)
        yield from self.exported

    def GetAuditHead(self, request: Any, context: Any) -> pb.AuditHead:
        self._note("GetAuditHead", request, context)
        return self.head

    def GetSigningKeys(self, request: Any, context: Any) -> pb.SigningKeys:
        self._note("GetSigningKeys", request, context)
        return self.keys

    def ExportAdapter(self, request: Any, context: Any) -> Iterator[pb.FilePiece]:
        self._note("ExportAdapter", request, context)
        yield from self.pieces

    # --- inference

    def Generate(self, request: Any, context: Any) -> ipb.GenerateResponse:
        self._note("Generate", request, context)
        return ipb.GenerateResponse(
            text="Grüße \x1b[1m",
            adapter=request.adapter or "base",
            finish_reason=ipb.FINISH_REASON_STOP,
            usage=ipb.Usage(prompt_tokens=3, completion_tokens=2),
        )

    def GenerateStream(self, request: Any, context: Any) -> Iterator[ipb.GenerateChunk]:
        self._note("GenerateStream", request, context)
        yield ipb.GenerateChunk(text_delta="one ", adapter="base", num_tokens=1)
        yield ipb.GenerateChunk(
            text_delta="two",
            adapter="opsd-other" if self.mixed else "base",
            finish_reason=ipb.FINISH_REASON_LENGTH,
            usage=ipb.Usage(prompt_tokens=3, completion_tokens=2),
        )


@dataclass
class Daemon:
    fake: FakeDaemon
    address: str


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    server = grpc.server(ThreadPoolExecutor(8))
    fake = FakeDaemon()
    admin_pb2_grpc.add_AdminServiceServicer_to_server(fake, server)
    collection_pb2_grpc.add_CollectionServiceServicer_to_server(fake, server)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Daemon(fake, f"127.0.0.1:{port}")
    server.stop(None).wait()


Opsd = Callable[..., Result]


@pytest.fixture
def opsd(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Opsd:
    """Runs a command against the fake daemon, in this process."""
    for variable in ("OPSD_ADDRESS", "OPSD_ACTOR", "OPSD_CONFIG", "OPSD_DEBUG", "OPSD_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def command(*arguments: str, stdin: bytes = b"", address: str = daemon.address) -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin))))
        capsys.readouterr()
        code = run(["--address", address, *arguments])
        captured = capsys.readouterr()
        return Result(int(code), captured.out, captured.err)

    return command
