"""Joins the sources of pairs with the parts that they need."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from opsd.daemon.adapters.routing import Route, Router
from opsd.daemon.collect.ports import HeldOut
from opsd.daemon.collect.service import CollectionService
from opsd.daemon.collect.source_service import SourceService
from opsd.daemon.collect.sources.answers import AnswerIntake
from opsd.daemon.collect.sources.consistency import Consistency
from opsd.daemon.collect.sources.driver import SourceDriver, SourcePart
from opsd.daemon.collect.sources.harvest import Harvest
from opsd.daemon.collect.sources.majority import Judge
from opsd.daemon.collect.sources.pairs import PairMaker
from opsd.daemon.collect.sources.ports import PairIntake, Ready, Room, UserActivity
from opsd.daemon.collect.sources.problems import ProblemIntake
from opsd.daemon.collect.sources.rounds import Rounds
from opsd.daemon.collect.sources.sampling import OwnSampler
from opsd.daemon.collect.sources.selfplay import SelfPlay
from opsd.daemon.config.schema import CollectConfig
from opsd.daemon.store.sources_api import SourceStore
from opsd.daemon.types.engine import BASE, Engine
from opsd.daemon.types.pairs import Origin
from opsd.daemon.types.problems import Answerable


class IncumbentLeases:
    """The router as sources see it: never the canary, which has to be judged first."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def lease(self) -> AbstractContextManager[Route]:
        incumbent = self._router.snapshot.incumbent
        return self._router.route("source", BASE if incumbent is None else incumbent.name)


@dataclass(frozen=True, slots=True)
class SourceParts:
    """What every source is made of."""

    store: SourceStore
    intake: PairIntake
    held_out: HeldOut
    verifier: Judge
    sampler: OwnSampler


def build_sources(
    config: CollectConfig,
    collection: CollectionService,
    *,
    store: SourceStore,
    verifier: Judge,
    held_out: HeldOut,
    engine: Engine,
    router: Router,
    room: Room,
    users: UserActivity,
    ready: Ready,
) -> tuple[SourceService, SourceDriver]:
    """The gRPC service and the driver that ``Daemon`` starts and stops."""
    parts = SourceParts(
        store=store,
        intake=collection.intake,
        held_out=held_out,
        verifier=verifier,
        sampler=OwnSampler(engine, IncumbentLeases(router), room),
    )
    driver = SourceDriver(
        [_harvest(config, parts), _consistency(config, parts), _self_play(config, parts, users)],
        store,
        ready,
    )
    problems = ProblemIntake(store, held_out, collection.intake)
    answers = AnswerIntake(
        store,
        collection.attempt,
        verifier,
        collection.intake,
        problems,
        collection.intake,
    )
    return SourceService(store, answers, problems, driver), driver


def _harvest(config: CollectConfig, parts: SourceParts) -> SourcePart:
    own = config.harvest
    maker = PairMaker(
        "harvest", Origin.OWN_ATTEMPT, parts.store, parts.intake, daily_quota=own.daily_quota
    )
    source = Rounds(
        Answerable.KNOWN,
        Harvest(parts.sampler, parts.verifier, maker, own).attempt,
        store=parts.store,
        held_out=parts.held_out,
        maker=maker,
        config=own,
    )
    return SourcePart(source, maker, Answerable.KNOWN, own.enabled)


def _consistency(config: CollectConfig, parts: SourceParts) -> SourcePart:
    own = config.self_consistency
    maker = PairMaker(
        "self_consistency",
        Origin.SELF_CONSISTENCY,
        parts.store,
        parts.intake,
        daily_quota=own.daily_quota,
    )
    source = Rounds(
        Answerable.UNKNOWN,
        Consistency(parts.sampler, parts.verifier, maker, own).attempt,
        store=parts.store,
        held_out=parts.held_out,
        maker=maker,
        config=own,
    )
    return SourcePart(source, maker, Answerable.UNKNOWN, own.enabled)


def _self_play(config: CollectConfig, parts: SourceParts, users: UserActivity) -> SourcePart:
    own = config.self_play
    maker = PairMaker(
        "self_play", Origin.SELF_PLAY, parts.store, parts.intake, daily_quota=own.daily_quota
    )
    rounds = Rounds(
        Answerable.SELF_POSED,
        Consistency(parts.sampler, parts.verifier, maker, own).attempt,
        store=parts.store,
        held_out=parts.held_out,
        maker=maker,
        config=own,
    )
    source = SelfPlay(
        rounds,
        parts.sampler,
        store=parts.store,
        held_out=parts.held_out,
        maker=maker,
        users=users,
        config=own,
    )
    return SourcePart(source, maker, Answerable.SELF_POSED, own.enabled)
