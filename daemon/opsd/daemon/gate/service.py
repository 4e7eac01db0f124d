"""GateService of gate.proto."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc

from opsd.daemon.config.gate import SUITE_NAME
from opsd.daemon.errors import InvalidInputError
from opsd.daemon.gate.check import DIFFERENCES, CheckOptions, SuiteCheck, SuiteChecker
from opsd.daemon.gate.registry import SuiteRegistry, Upload
from opsd.daemon.types.gate import SuiteRole
from opsd.daemon.types.pairs import SuiteItem
from opsd.daemon.types.suites import SuiteSettings, SuiteState, SuiteVersion
from opsd.v1 import admin_pb2, gate_pb2_grpc
from opsd.v1 import gate_pb2 as pb

Context = grpc.aio.ServicerContext[Any, Any]

MAX_CONTENT_BYTES = 64 << 20
_ACTOR_KEY = "x-opsd-actor"
_MAX_ACTOR_CHARS = 200
_MAX_REASON_CHARS = 2000
_MAX_DIFFERENCES = 100
_MAX_COUNT = 1_000_000
_SHOWN_PAIRS = 20

_ROLES = {
    admin_pb2.SUITE_ROLE_TARGET: SuiteRole.TARGET,
    admin_pb2.SUITE_ROLE_GUARD: SuiteRole.GUARD,
}
_ROLES_BACK = {role: number for number, role in _ROLES.items()}
_STATES = {
    SuiteState.ACTIVE: pb.SUITE_STATE_ACTIVE,
    SuiteState.RETIRED: pb.SUITE_STATE_RETIRED,
}


class GateService(gate_pb2_grpc.GateServiceServicer):
    """Raises the errors of ``opsd.daemon.errors``; an interceptor makes statuses of them."""

    def __init__(self, registry: SuiteRegistry, checker: SuiteChecker) -> None:
        self._registry = registry
        self._checker = checker

    async def AddSuite(
        self, request_iterator: AsyncIterator[pb.AddSuiteRequest], context: Context
    ) -> pb.AddSuiteResponse:
        message, data = pb.SuiteUpload(), bytearray()
        async for request in request_iterator:
            if request.HasField("upload"):
                message = request.upload
            _grow(data, request.content)
        upload = _upload(message, bytes(data))
        added = await asyncio.to_thread(
            self._registry.add,
            upload,
            actor=_actor(context, message.actor),
            reason=_reason(message.reason, "a suite is added"),
        )
        shown = () if added.suite.settings.sealed else added.overlap.pair_ids[:_SHOWN_PAIRS]
        return pb.AddSuiteResponse(
            suite=_suite(added.suite),
            num_quarantined_exact=added.overlap.num_exact,
            num_quarantined_near=added.overlap.num_near,
            quarantined_pair_ids=shown,
        )

    async def CheckSuite(
        self, request_iterator: AsyncIterator[pb.CheckSuiteRequest], context: Context
    ) -> pb.SuiteCheck:
        message, data = pb.SuiteCheckOptions(), bytearray()
        async for request in request_iterator:
            if request.HasField("options"):
                message = request.options
            _grow(data, request.content)
        options = _options(message)
        subject = message.WhichOneof("subject")
        if subject == "name":
            return _check(await self._checker.check_active(message.name, options))
        if subject == "upload":
            upload = _upload(message.upload, bytes(data))
            return _check(await self._checker.check_draft(upload, options))
        raise InvalidInputError("options: neither a name nor an upload: send one of them first")

    async def ListSuites(
        self, request: pb.ListSuitesRequest, context: Context
    ) -> pb.ListSuitesResponse:
        versions = await asyncio.to_thread(self._registry.versions, retired=request.all)
        return pb.ListSuitesResponse(suites=[_suite(version) for version in versions])

    async def GetSuite(self, request: pb.GetSuiteRequest, context: Context) -> pb.GetSuiteResponse:
        name = _needed(request.name, "name")
        version = await asyncio.to_thread(self._registry.get, name, request.version)
        items: tuple[SuiteItem, ...] = ()
        if request.include_items:
            items = await asyncio.to_thread(self._registry.items, version)
        return pb.GetSuiteResponse(suite=_suite(version), items=[_item(item) for item in items])

    async def RemoveSuite(self, request: pb.RemoveSuiteRequest, context: Context) -> pb.Suite:
        removed = await asyncio.to_thread(
            self._registry.remove,
            _needed(request.name, "name"),
            actor=_actor(context, request.actor),
            reason=_reason(_needed(request.reason, "reason"), ""),
        )
        return _suite(removed)


def _actor(context: Context, named: str) -> str:
    actor = named
    if not actor:
        for key, value in context.invocation_metadata() or ():
            if key == _ACTOR_KEY:
                actor = value if isinstance(value, str) else value.decode("utf-8", "replace")
    return actor.strip()[:_MAX_ACTOR_CHARS] or "unknown"


def _reason(given: str, default: str) -> str:
    if len(given) > _MAX_REASON_CHARS:
        raise InvalidInputError(
            f"reason: has {len(given)} characters, at most {_MAX_REASON_CHARS} are kept"
        )
    return given.strip() or default


def _needed(value: str, field: str) -> str:
    if not value.strip():
        raise InvalidInputError(f"{field}: is empty, and needed")
    return value


def _grow(data: bytearray, piece: bytes) -> None:
    data += piece
    if len(data) > MAX_CONTENT_BYTES:
        raise InvalidInputError(
            f"content: more than {MAX_CONTENT_BYTES >> 20} MiB: make several suites of it"
        )


def _upload(message: pb.SuiteUpload, data: bytes) -> Upload:
    return Upload(
        settings=_settings(message.settings),
        data=data,
        place=message.file_name[:200] or "content",
        version=message.version,
        description=message.description,
    )


def _settings(message: pb.SuiteSettings) -> SuiteSettings:
    """Raises InvalidInputError, which names the field and the fix."""
    if not re.fullmatch(SUITE_NAME, message.name):
        raise InvalidInputError(
            f"name: {message.name[:80]!r} is not allowed: a lower-case letter or digit, then up to "
            "63 of these, hyphens and underscores"
        )
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidInputError("role: is neither TARGET (1) nor GUARD (2)")
    for field, margin in (("margin", message.margin), ("stratum_margin", message.stratum_margin)):
        if not 0.0 <= margin <= 1.0:
            raise InvalidInputError(f"{field}: {margin:g} is no fraction between 0 and 1")
    if message.sealed and not message.budget:
        raise InvalidInputError(
            "budget: a sealed suite needs one, the number of gates that may use it"
        )
    if message.budget and not message.sealed:
        raise InvalidInputError("budget: only a sealed suite has one: seal it, or leave it out")
    for field, count, most in (
        ("budget", message.budget, _MAX_COUNT),
        ("samples", message.samples, 256),
    ):
        if count > most:
            raise InvalidInputError(f"{field}: {count} is more than {most}")
    return SuiteSettings(
        name=message.name,
        role=role,
        margin=message.margin,
        stratum_margin=message.stratum_margin,
        sealed=message.sealed,
        budget=message.budget,
        samples=message.samples,
    )


def _options(message: pb.SuiteCheckOptions) -> CheckOptions:
    if not 0.0 <= message.discordance <= 1.0:
        raise InvalidInputError(
            f"discordance: {message.discordance:g} is no fraction between 0 and 1"
        )
    differences = tuple(message.differences) or DIFFERENCES
    if len(differences) > _MAX_DIFFERENCES or not all(0.0 < d <= 1.0 for d in differences):
        raise InvalidInputError(
            f"differences: at most {_MAX_DIFFERENCES} fractions above 0 and up to 1"
        )
    if message.gate_number > _MAX_COUNT:
        raise InvalidInputError(f"gate_number: {message.gate_number} is more than {_MAX_COUNT}")
    return CheckOptions(message.discordance, differences, message.gate_number)


def _settings_message(settings: SuiteSettings) -> pb.SuiteSettings:
    return pb.SuiteSettings(
        name=settings.name,
        role=_ROLES_BACK[settings.role],
        margin=settings.margin,
        stratum_margin=settings.stratum_margin,
        sealed=settings.sealed,
        budget=settings.budget,
        samples=settings.samples,
    )


def _suite(version: SuiteVersion) -> pb.Suite:
    return pb.Suite(
        settings=_settings_message(version.settings),
        version=version.version,
        sha256=version.sha256,
        num_items=version.num_items,
        state=_STATES[version.state],
        source=version.source.value,
        actor=version.actor,
        reason=version.reason,
        description=version.description,
        created_unix_s=version.created_unix_s,
        retired_unix_s=version.retired_unix_s,
        fresh_share=version.fresh_share,
        queries_used=version.queries_used,
        queries_carried=version.queries_carried,
    )


def _item(item: SuiteItem) -> pb.SuiteItem:
    return pb.SuiteItem(
        id=item.id,
        prompt=item.prompt,
        verifier=item.verifier,
        reference=item.reference,
        stratum=item.stratum,
        cluster=item.cluster,
        solution=item.solution,
    )


def _check(check: SuiteCheck) -> pb.SuiteCheck:
    return pb.SuiteCheck(
        settings=_settings_message(check.settings),
        version=check.version,
        sha256=check.sha256,
        num_items=check.num_items,
        num_clusters=check.num_clusters,
        effective_items=check.effective_items,
        gate_number=check.gate_number,
        gain_level=check.gain_level,
        guard_level=check.guard_level,
        discordance=check.discordance,
        discordance_source=check.discordance_source,
        detectable_gain=check.detectable_gain or 0.0,
        holdable_margin=check.holdable_margin or 0.0,
        needed=[
            pb.ItemsNeeded(difference=difference, num_items=count or 0)
            for difference, count in check.needed
        ],
        strata=[
            pb.StratumCheck(
                stratum=stratum.stratum,
                num_items=stratum.num_items,
                holdable_margin=stratum.holdable_margin or 0.0,
            )
            for stratum in check.strata
        ],
        errors=check.errors,
        warnings=check.warnings,
    )
