"""Nothing is routed before it is loaded, and nothing is unloaded while it is used."""

from __future__ import annotations

import asyncio

import pytest

from opsd.daemon.adapters.residency import Residency
from opsd.daemon.adapters.routing import Router, RoutingSnapshot
from opsd.daemon.errors import AdapterError, EngineError, NotFoundError, StateError
from opsd.daemon.types.engine import AdapterHandle, EngineInfo

A, B, C, D = (AdapterHandle(f"opsd-{x}", i + 1, f"/{x}") for i, x in enumerate("abcd"))


class SlotEngine:
    """Four slots; ``busy`` adapters refuse to go, as vLLM's would have to."""

    info = EngineInfo("fake", 128, 300, 4, 8)

    def __init__(self) -> None:
        self.loaded: list[AdapterHandle] = []
        self.busy: set[AdapterHandle] = set()
        self.broken: set[AdapterHandle] = set()
        self.dead = False

    async def load_adapter(self, adapter: AdapterHandle) -> None:
        await asyncio.sleep(0)
        if adapter in self.broken:
            raise AdapterError(f"{adapter.name} is broken")
        assert len(self.loaded) < 4
        self.loaded.append(adapter)

    async def unload_adapter(self, adapter: AdapterHandle) -> None:
        await asyncio.sleep(0)
        if self.dead:
            raise EngineError("dead")
        if adapter in self.busy:
            raise StateError("in use")
        self.loaded.remove(adapter)


@pytest.fixture
def engine() -> SlotEngine:
    return SlotEngine()


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def residency(engine: SlotEngine, router: Router) -> Residency:
    return Residency(engine, router)  # type: ignore[arg-type]


async def test_loads_once_and_follows_the_role(residency, engine, router) -> None:
    await residency.ensure(A, "candidate")
    await asyncio.gather(residency.ensure(A, "incumbent"), residency.ensure(A, "incumbent"))
    assert engine.loaded == [A]
    assert [(r.handle, r.role, r.in_flight) for r in residency.residents()] == [(A, "incumbent", 0)]
    assert router.route("r", A.name).adapter is A


async def test_failed_load_is_not_held(residency, engine, router) -> None:
    engine.broken.add(A)
    with pytest.raises(AdapterError):
        await residency.ensure(A, "candidate")
    assert not residency.handles()


async def test_retire_waits_for_the_last_request(residency, engine, router) -> None:
    await residency.ensure(A, "incumbent")
    router.swap(RoutingSnapshot(A))
    with router.route("r"):
        router.swap(RoutingSnapshot(epoch=1))
        retiring = asyncio.create_task(residency.retire(A.name))
        for _ in range(20):
            await asyncio.sleep(0)
        assert engine.loaded == [A]
    await asyncio.wait_for(retiring, 5)
    assert engine.loaded == []
    assert not residency.handles()


async def test_retire_waits_for_users_that_take_no_route(residency, engine, router) -> None:
    await residency.ensure(A, "candidate")
    engine.busy.add(A)
    retiring = asyncio.create_task(residency.retire(A.name))
    await asyncio.sleep(0.12)
    assert engine.loaded == [A]
    engine.busy.clear()
    await asyncio.wait_for(retiring, 5)
    assert engine.loaded == []


async def test_an_adapter_needed_again_stays(residency, engine, router) -> None:
    """Also when it comes back to the very role it had."""
    await residency.ensure(A, "previous")
    with router.route("r", A.name):
        retiring = asyncio.create_task(residency.retire(A.name))
        await asyncio.sleep(0)
        await residency.ensure(A, "incumbent")
        await residency.ensure(A, "previous")
    await asyncio.wait_for(retiring, 5)
    assert engine.loaded == [A]


async def test_what_is_routed_is_never_retired(residency, engine, router) -> None:
    await residency.ensure(A, "incumbent")
    router.swap(RoutingSnapshot(A))
    await residency.retire(A.name)
    assert engine.loaded == [A]


async def test_one_slot_stays_free_at_the_cost_of_an_idle_candidate(
    residency, engine, router
) -> None:
    await residency.ensure(A, "incumbent")
    await residency.ensure(B, "previous")
    await residency.ensure(C, "candidate")
    await residency.ensure(D, "candidate")
    assert engine.loaded == [A, B, D]
    with router.route("r", D.name), pytest.raises(StateError, match="slots stays free"):
        await residency.ensure(C, "candidate")
    assert engine.loaded == [A, B, D]


async def test_reload_after_a_restart(residency, engine, router) -> None:
    await residency.ensure(B, "previous")
    await residency.ensure(A, "incumbent")
    router.swap(RoutingSnapshot(A))
    engine.loaded.clear()
    engine.broken.add(B)
    await residency.reload_all()
    assert engine.loaded == [A]
    assert list(residency.handles()) == [A]
    engine.loaded.clear()
    engine.broken.add(A)
    with pytest.raises(AdapterError):
        await residency.reload_all()
    assert list(residency.handles()) == [A]


async def test_retire_from_a_dead_engine_lets_go(residency, engine, router) -> None:
    await residency.ensure(A, "previous")
    engine.dead = True
    await residency.retire(A.name)
    assert not residency.handles()


async def test_every_change_is_told(engine, router) -> None:
    told: list[dict[str, str]] = []
    residency = Residency(engine, router, on_change=told.append)
    await residency.ensure(A, "candidate")
    await residency.ensure(A, "incumbent")
    await residency.retire(A.name)
    assert told == [{A.name: "candidate"}, {A.name: "incumbent"}, {}]


async def test_no_request_can_name_a_student(residency, engine, router) -> None:
    await residency.ensure(A, "student")
    assert engine.loaded == [A]
    assert [(r.handle, r.role) for r in residency.residents()] == [(A, "student")]
    with pytest.raises(NotFoundError, match="is not loaded; loaded are base"):
        router.route("r", A.name)


async def test_a_student_takes_nobodys_place(residency, engine, router) -> None:
    await residency.ensure(A, "incumbent")
    await residency.ensure(B, "candidate")
    await residency.ensure(C, "previous")
    with pytest.raises(StateError, match=r"loaded as student.*raise engine\.max_loras"):
        await residency.ensure(D, "student")
    assert engine.loaded == [A, B, C]


async def test_a_student_makes_room_for_serving(residency, engine, router) -> None:
    """The older one first, and its sampling is ended before it goes."""
    interrupted: list[str] = []

    async def interrupt(name: str) -> None:
        interrupted.append(name)
        engine.busy.clear()

    residency.set_interrupt(interrupt)
    await residency.ensure(A, "incumbent")
    await residency.ensure(B, "student")
    await residency.ensure(C, "student")
    engine.busy.add(B)
    await residency.ensure(D, "candidate")
    assert interrupted == [B.name]
    assert engine.loaded == [A, C, D]


async def test_a_student_that_cannot_be_stopped_stays(residency, engine, router) -> None:
    await residency.ensure(A, "incumbent")
    await residency.ensure(B, "student")
    await residency.ensure(C, "previous")
    engine.busy.add(B)
    with pytest.raises(StateError, match="slots stays free"):
        await residency.ensure(D, "candidate")
    assert engine.loaded == [A, B, C]
