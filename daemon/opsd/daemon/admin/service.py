"""AdminService: every change goes through the promoter or the runs' controller, every look through
the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from opsd.daemon.adapters.promotion import Promoter
from opsd.daemon.admin.asked import actor_of, required
from opsd.daemon.admin.audit import AuditCalls, AuditDoor
from opsd.daemon.admin.convert import adapter_to_proto, audit_to_proto, run_to_proto
from opsd.daemon.admin.decisions import DecisionCalls
from opsd.daemon.admin.overrides import overrides_json
from opsd.daemon.admin.ports import RunControl, StatusSource
from opsd.daemon.admin.token_audit import read_token_audit
from opsd.daemon.errors import InvalidInputError
from opsd.daemon.gate.proto import ledger_to_proto, replay_to_proto, report_to_proto
from opsd.daemon.gate.replay import replay
from opsd.daemon.store.api import Store
from opsd.daemon.types.runs import Run, RunState, TriggerKind
from opsd.v1 import admin_pb2, admin_pb2_grpc, token_audit_pb2

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_REASON_CHARS = 2000
_DEFAULT_PAGE = 50
_MAX_PAGE = 1000
_GATED = frozenset(
    {
        RunState.EVALUATING,
        RunState.AWAITING_APPROVAL,
        RunState.CANARY,
        RunState.PROMOTED,
        RunState.REJECTED,
        RunState.ROLLED_BACK,
    }
)


def page_limit(requested: int) -> int:
    if requested > _MAX_PAGE:
        raise InvalidInputError(
            f"page_size: is {requested}, at most {_MAX_PAGE}; use page_token for the rest"
        )
    return requested or _DEFAULT_PAGE


class AdminService(DecisionCalls, AuditCalls, admin_pb2_grpc.AdminServiceServicer):
    """See admin.proto for what each call promises."""

    def __init__(
        self,
        store: Store,
        runs: RunControl,
        promoter: Promoter,
        status: StatusSource,
        audit: AuditDoor,
    ) -> None:
        DecisionCalls.__init__(self, store, promoter)
        AuditCalls.__init__(self, audit)
        self._runs = runs
        self._status = status

    async def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: Context
    ) -> admin_pb2.Status:
        status = admin_pb2.Status()
        self._status.fill(status)
        await asyncio.to_thread(self._fill_stored, status)
        return status

    def _fill_stored(self, status: admin_pb2.Status) -> None:
        row = self._store.get_incumbent()
        status.incumbent = row.adapter
        status.previous = row.previous
        status.canary = row.canary
        status.canary_share = row.canary_share
        status.incumbent_epoch = row.epoch
        counts = self._store.count_pairs()
        status.pairs.verified = counts.verified
        status.pairs.unverified = counts.unverified
        status.pairs.new_since_last_run = counts.new_since_last_run
        lease = self._store.pool_lease()
        status.pool_holder = lease.holder if lease else ""
        open_runs = self._store.open_runs()
        if open_runs:
            status.active_run.CopyFrom(run_to_proto(open_runs[0], details=False))

    async def TriggerRun(
        self, request: admin_pb2.TriggerRunRequest, context: Context
    ) -> admin_pb2.Run:
        if len(request.reason) > _MAX_REASON_CHARS:
            raise InvalidInputError(
                f"reason: has {len(request.reason)} characters, "
                f"at most {_MAX_REASON_CHARS} are kept"
            )
        if request.validate_only:
            spec = await self._runs.plan(
                overrides_json=overrides_json(request),
                source=request.source,
                same_data_as=request.same_data_as,
            )
            return admin_pb2.Run(spec=spec, num_steps=spec.optim.num_steps)
        run = await self._runs.trigger(
            TriggerKind.OPERATOR,
            actor=actor_of(context, request.actor),
            reason=request.reason or "triggered by an operator",
            overrides_json=overrides_json(request),
            source=request.source,
            request_id=request.request_id,
            same_data_as=request.same_data_as,
            measure_only=request.measure_only,
        )
        return run_to_proto(run)

    async def ListRuns(
        self, request: admin_pb2.ListRunsRequest, context: Context
    ) -> admin_pb2.ListRunsResponse:
        limit = page_limit(request.page_size)
        page = await asyncio.to_thread(self._store.list_runs, limit=limit, token=request.page_token)
        runs = [await self._present(run, details=False) for run in page.items]
        return admin_pb2.ListRunsResponse(runs=runs, next_page_token=page.next_token)

    async def GetRun(self, request: admin_pb2.GetRunRequest, context: Context) -> admin_pb2.Run:
        run = await asyncio.to_thread(self._store.get_run, required(request.id, "id"))
        return await self._present(run)

    async def WatchRun(
        self, request: admin_pb2.GetRunRequest, context: Context
    ) -> AsyncIterator[admin_pb2.Run]:
        run = await asyncio.to_thread(self._store.get_run, required(request.id, "id"))
        async for changed in self._runs.watch(run.id):
            yield await self._present(changed)

    async def CancelRun(
        self, request: admin_pb2.CancelRunRequest, context: Context
    ) -> admin_pb2.Run:
        run = await asyncio.to_thread(self._store.get_run, required(request.id, "id"))
        cancelled = await self._runs.cancel(
            run.id,
            actor=actor_of(context, request.actor),
            reason=request.reason or "cancelled by an operator",
        )
        return await self._present(cancelled)

    async def ReadTokenAudit(
        self, request: admin_pb2.ReadTokenAuditRequest, context: Context
    ) -> AsyncIterator[token_audit_pb2.AuditedAttempt]:
        run = await asyncio.to_thread(self._store.get_run, required(request.id, "id"))
        attempts = read_token_audit(run, request.step)
        while (attempt := await asyncio.to_thread(next, attempts, None)) is not None:
            yield attempt

    async def ListAdapters(
        self, request: admin_pb2.ListAdaptersRequest, context: Context
    ) -> admin_pb2.ListAdaptersResponse:
        adapters = await asyncio.to_thread(self._store.list_adapters)
        return admin_pb2.ListAdaptersResponse(
            adapters=[
                adapter_to_proto(adapter, await self._verdict(adapter.name)) for adapter in adapters
            ]
        )

    async def GetAdapter(
        self, request: admin_pb2.GetAdapterRequest, context: Context
    ) -> admin_pb2.Adapter:
        name = required(request.name, "name")
        adapter = await asyncio.to_thread(self._store.get_adapter, name)
        return adapter_to_proto(adapter, await self._verdict(adapter.name))

    async def GetGate(
        self, request: admin_pb2.GetGateRequest, context: Context
    ) -> admin_pb2.GateReport:
        report = await asyncio.to_thread(self._store.get_gate, required(request.id, "id"))
        return report_to_proto(report)

    async def ReplayGate(
        self, request: admin_pb2.ReplayGateRequest, context: Context
    ) -> admin_pb2.ReplayGateResponse:
        found = await asyncio.to_thread(replay, self._store, required(request.id, "id"))
        return replay_to_proto(found, with_inputs=request.with_inputs)

    async def GetLedger(
        self, request: admin_pb2.GetLedgerRequest, context: Context
    ) -> admin_pb2.Ledger:
        return ledger_to_proto(await asyncio.to_thread(self._store.list_suite_uses))

    async def ListAudit(
        self, request: admin_pb2.ListAuditRequest, context: Context
    ) -> admin_pb2.ListAuditResponse:
        limit = page_limit(request.page_size)
        page = await asyncio.to_thread(
            self._store.list_audit, limit=limit, token=request.page_token
        )
        return admin_pb2.ListAuditResponse(
            entries=[audit_to_proto(entry) for entry in page.items],
            next_page_token=page.next_token,
        )

    async def _present(self, run: Run, *, details: bool = True) -> admin_pb2.Run:
        verdict = await self._verdict(run.id) if run.state in _GATED else None
        return run_to_proto(run, verdict=verdict, details=details)
