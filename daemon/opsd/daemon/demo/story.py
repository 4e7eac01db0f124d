"""The stages of the demonstration, in order, each timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import json_format

from opsd.daemon.demo.client import Client
from opsd.daemon.demo.exam import Exam, adapters_of, ask_suites
from opsd.daemon.demo.options import Options
from opsd.daemon.demo.process import DaemonProcess
from opsd.daemon.demo.screen import Screen
from opsd.daemon.demo.traffic import Traffic, TrafficLog
from opsd.daemon.demo.workspace import (
    DemoError,
    Workspace,
    make_tiny,
    prepare,
)
from opsd.v1 import admin_pb2, collection_pb2

QUIET_USERS = 2
QUIET_PAUSE_S = 0.4
BUSY_USERS = 32
REQUESTS_AROUND_A_SWAP = 80
SWAP_MARGIN_S = 1.0
CONSISTENCY_PROMPTS = 8

_WAITS_OR_ENDED = frozenset(
    {
        admin_pb2.RUN_STATE_AWAITING_APPROVAL,
        admin_pb2.RUN_STATE_REJECTED,
        admin_pb2.RUN_STATE_FAILED,
        admin_pb2.RUN_STATE_CANCELLED,
    }
)


@dataclass(slots=True)
class Swap:
    """One change of the incumbent under traffic."""

    action: str
    incumbent: str
    swap_s: float
    window: tuple[float, float]  # time.monotonic() seconds


@dataclass(slots=True)
class Evidence:
    """What the demonstration saw; the final table is made of nothing else."""

    seed: int
    wrong_references: bool
    stages_s: dict[str, float] = field(default_factory=dict)
    submitted: collection_pb2.SubmitPairsResponse | None = None
    run: admin_pb2.Run | None = None
    gate: admin_pb2.GateReport | None = None
    before: Exam = field(default_factory=dict)
    after: Exam = field(default_factory=dict)
    swaps: list[Swap] = field(default_factory=list)
    traffic: TrafficLog = field(default_factory=TrafficLog)
    wall_s: float = 0.0
    inconsistent: int = 0  # answers that differ from a later solo run of the adapter they name
    compared: int = 0  # answers that were compared so

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.stages_s[name] = time.monotonic() - started

    @property
    def gate_passed(self) -> bool:
        return self.gate is not None and self.gate.verdict == admin_pb2.GATE_VERDICT_PASS

    @property
    def swap_windows(self) -> list[tuple[float, float]]:
        return [swap.window for swap in self.swaps]


async def tell(options: Options, work_dir: Path, screen: Screen) -> Evidence:
    """Runs everything; raises DemoError when the loop itself broke."""
    evidence = Evidence(seed=options.seed, wrong_references=options.wrong_references)
    began = time.monotonic()
    screen.headline("A tiny model, made from scratch (kept for the next time)")
    with evidence.stage("make_model"):
        tiny_dir = await make_tiny(options.cache_dir, options.seed)
    workspace = prepare(
        tiny_dir,
        work_dir,
        seed=options.seed,
        num_steps=options.num_steps,
        num_pairs=options.num_pairs,
        wrong=options.wrong_references,
    )
    daemon = DaemonProcess(workspace)
    try:
        screen.headline("The daemon starts")
        with evidence.stage("start_daemon"):
            ready_s = await daemon.start()
        screen.say(f"READY after {ready_s:.1f} s at {daemon.address}")
        client = Client(daemon.address)
        try:
            await _with_daemon(client, workspace, evidence, screen)
        finally:
            await client.close()
    except DemoError as error:
        raise DemoError(
            f"{error}\n--- the daemon's log ends so ---\n{daemon.log_tail()}"
        ) from error
    finally:
        with evidence.stage("stop_daemon"):
            await daemon.stop()
    evidence.wall_s = time.monotonic() - began
    return evidence


async def _with_daemon(
    client: Client, workspace: Workspace, evidence: Evidence, screen: Screen
) -> None:
    prompts = [problem.prompt for problem in workspace.suites["target"][:200]]
    traffic = Traffic(client, prompts, seed=evidence.seed)
    traffic.resize(QUIET_USERS, pause_s=QUIET_PAUSE_S)
    try:
        screen.headline(f"{QUIET_USERS} users keep asking from now on; the held-out problems first")
        with evidence.stage("ask_before"), screen.bar("asked") as progress:
            evidence.before = await ask_suites(client, workspace.suites, progress)
        screen.headline("Problem-solution pairs are submitted, verified and stored")
        with evidence.stage("submit_pairs"):
            evidence.submitted = await client.submit(workspace.pairs)
        screen.say(
            f"{evidence.submitted.num_verified} verified, "
            f"{evidence.submitted.num_unverified} failed verification, "
            f"{evidence.submitted.num_duplicate} duplicates, "
            f"{evidence.submitted.num_refused} refused"
        )
        await _train_and_gate(client, evidence, screen)
        if evidence.gate_passed and not evidence.wrong_references:
            await _swap_under_traffic(client, traffic, evidence, screen)
            screen.headline("The served model answers the held-out problems again")
            with evidence.stage("ask_after"), screen.bar("asked") as progress:
                evidence.after = await ask_suites(client, workspace.suites, progress)
            assert evidence.run is not None
            if adapters_of(evidence.after) != {evidence.run.candidate}:
                raise DemoError(
                    f"{adapters_of(evidence.after)} answered, "
                    f"but {evidence.run.candidate} was approved"
                )
    finally:
        evidence.traffic = await traffic.finish()
    with evidence.stage("check_answers"):
        await _check_consistency(client, evidence)


async def _train_and_gate(client: Client, evidence: Evidence, screen: Screen) -> None:
    screen.headline("A run: the pairs become a new adapter, the gate compares it with what serves")
    triggered = await client.admin.TriggerRun(
        admin_pb2.TriggerRunRequest(reason="demonstration", actor="demo")
    )
    entered: dict[int, float] = {}
    run = triggered
    with screen.run_progress() as show:
        async for run in client.admin.WatchRun(admin_pb2.GetRunRequest(id=triggered.id)):
            entered.setdefault(run.state, time.monotonic())
            show(run)
            if run.state in _WAITS_OR_ENDED:
                break
    run = await client.admin.GetRun(admin_pb2.GetRunRequest(id=triggered.id))
    evidence.run = run
    for transition, following in zip(run.history, run.history[1:], strict=False):
        name = admin_pb2.RunState.Name(transition.state).removeprefix("RUN_STATE_").lower()
        evidence.stages_s[f"run_{name}"] = following.time_unix_s - transition.time_unix_s
    if run.state in {admin_pb2.RUN_STATE_FAILED, admin_pb2.RUN_STATE_CANCELLED}:
        raise DemoError(f"the run ended as {json_format.MessageToJson(run)}")
    evidence.gate = await client.admin.GetGate(admin_pb2.GetGateRequest(id=run.id))
    screen.gate(evidence.gate)


async def _swap_under_traffic(
    client: Client, traffic: Traffic, evidence: Evidence, screen: Screen
) -> None:
    """Promotion, rollback and promotion again, each in the thick of it."""
    assert evidence.run is not None
    name = evidence.run.candidate
    screen.headline(f"{BUSY_USERS} users; approve, roll back, approve again, nobody is dropped")
    traffic.resize(BUSY_USERS, pause_s=0.0)
    with evidence.stage("swap_under_traffic"):
        for action in ("approve", "rollback", "approve"):
            await traffic.wait_for_more(REQUESTS_AROUND_A_SWAP)
            started = time.monotonic()
            if action == "approve":
                change = await client.admin.ApproveAdapter(
                    admin_pb2.ApproveAdapterRequest(name=name, reason="demonstration", actor="demo")
                )
            else:
                change = await client.admin.Rollback(
                    admin_pb2.RollbackRequest(reason="demonstration", actor="demo")
                )
            ended = time.monotonic()
            evidence.swaps.append(
                Swap(
                    action,
                    change.incumbent,
                    change.swap_s,
                    (started - SWAP_MARGIN_S, ended + SWAP_MARGIN_S),
                )
            )
            screen.say(
                f"{action}: {change.incumbent} serves (epoch {change.epoch}), "
                f"{change.swap_s * 1000:.0f} ms"
            )
            await traffic.wait_for_more(REQUESTS_AROUND_A_SWAP)
            # The window has a margin behind it too: let the traffic live through all of it.
            await asyncio.sleep(max(0.0, ended + SWAP_MARGIN_S - time.monotonic()))
    traffic.resize(QUIET_USERS, pause_s=QUIET_PAUSE_S)


async def _check_consistency(client: Client, evidence: Evidence) -> None:
    """Answers from the thick of the swaps must be what the adapter that they name says alone."""
    seen: dict[tuple[str, str], set[str]] = {}
    for reply in evidence.traffic.replies:
        if not reply.error and len(reply.adapters) == 1:
            (adapter,) = reply.adapters
            seen.setdefault((reply.prompt, adapter), set()).add(reply.text)
    for (prompt, adapter), texts in list(seen.items()):
        if len({key for key in seen if key[0] == prompt}) < 2:
            continue
        if evidence.compared >= 2 * CONSISTENCY_PROMPTS:
            break
        alone = await client.ask(prompt, adapter=adapter)
        if alone.error:
            raise DemoError(f"{adapter} did not answer alone: {alone.error}")
        evidence.compared += len(texts)
        evidence.inconsistent += len(texts - {alone.text})
