"""AdminService's calls about candidates, canaries and what serves."""

from __future__ import annotations

import asyncio

from opsd.daemon.adapters.promotion import Outcome, Promoter
from opsd.daemon.admin.asked import Context, actor_of, required
from opsd.daemon.admin.canaries import canary_to_proto, pending_to_proto
from opsd.daemon.admin.convert import adapter_to_proto
from opsd.daemon.errors import NotFoundError
from opsd.daemon.store.api import Store
from opsd.daemon.types.gate import GateVerdict
from opsd.v1 import admin_pb2


class DecisionCalls:
    """A part of AdminService: every change goes through the promoter."""

    def __init__(self, store: Store, promoter: Promoter) -> None:
        self._store = store
        self._promoter = promoter

    async def ApproveAdapter(
        self, request: admin_pb2.ApproveAdapterRequest, context: Context
    ) -> admin_pb2.AdapterChange:
        outcome = await self._promoter.approve(
            required(request.name, "name"),
            actor=actor_of(context, request.actor),
            reason=request.reason,
            override_inconclusive=request.override_inconclusive,
        )
        return await self._changed(outcome)

    async def RejectAdapter(
        self, request: admin_pb2.RejectAdapterRequest, context: Context
    ) -> admin_pb2.AdapterChange:
        outcome = await self._promoter.reject(
            required(request.name, "name"),
            actor=actor_of(context, request.actor),
            reason=request.reason,
        )
        return await self._changed(outcome)

    async def Rollback(
        self, request: admin_pb2.RollbackRequest, context: Context
    ) -> admin_pb2.AdapterChange:
        outcome = await self._promoter.rollback(
            actor=actor_of(context, request.actor),
            reason=request.reason,
            canary_only=request.canary_only,
        )
        return await self._changed(outcome)

    async def ListPending(
        self, request: admin_pb2.ListPendingRequest, context: Context
    ) -> admin_pb2.ListPendingResponse:
        pending = await self._promoter.pending()
        return admin_pb2.ListPendingResponse(
            candidates=[pending_to_proto(candidate) for candidate in pending]
        )

    async def GetCanary(
        self, request: admin_pb2.GetCanaryRequest, context: Context
    ) -> admin_pb2.Canary:
        canary = await self._promoter.find_canary(request.name.strip())
        return canary_to_proto(canary, self._promoter.canary)

    async def AdvanceCanary(
        self, request: admin_pb2.AdvanceCanaryRequest, context: Context
    ) -> admin_pb2.AdapterChange:
        outcome = await self._promoter.advance_canary(
            actor=actor_of(context, request.actor), reason=request.reason
        )
        return await self._changed(outcome)

    async def _verdict(self, key: str) -> GateVerdict | None:
        try:
            return (await asyncio.to_thread(self._store.get_gate, key)).verdict
        except NotFoundError:
            return None

    async def _changed(self, outcome: Outcome) -> admin_pb2.AdapterChange:
        row = outcome.change.incumbent
        message = admin_pb2.AdapterChange(
            incumbent=row.adapter,
            previous=row.previous,
            epoch=row.epoch,
            audit_id=outcome.change.audit_id,
            swap_s=outcome.swap_s,
            approvals=outcome.counted,
            approvals_required=outcome.required,
        )
        if outcome.adapter is not None:
            verdict = await self._verdict(outcome.adapter.name)
            message.adapter.CopyFrom(adapter_to_proto(outcome.adapter, verdict))
        return message
