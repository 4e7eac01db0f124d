"""Routing is one snapshot, deterministic, and counts what it lends."""

from __future__ import annotations

import asyncio

import pytest

from opsd.daemon.adapters.routing import Router, RoutingSnapshot
from opsd.daemon.errors import EngineError, InvalidInputError, NotFoundError
from opsd.daemon.types.engine import AdapterHandle

OLD = AdapterHandle("opsd-aa11", 1, "/a")
NEW = AdapterHandle("opsd-ab22", 2, "/b")
IDS = [f"request-{i}" for i in range(4000)]


def test_base_serves_before_anything_was_promoted() -> None:
    with Router().route("r") as route:
        assert route.adapter is None
        assert route.name == "base"


def test_canary_gets_its_share_and_the_same_requests_every_time() -> None:
    def canaries() -> set[str]:
        router = Router(RoutingSnapshot(OLD, NEW, 0.25, 3))
        return {r for r in IDS if router.route(r).adapter is NEW}

    chosen = canaries()
    assert 0.22 < len(chosen) / len(IDS) < 0.28
    assert chosen == canaries()
    more = Router(RoutingSnapshot(OLD, NEW, 0.5, 4))
    assert chosen <= {r for r in IDS if more.route(r).adapter is NEW}


CALLERS = [f"caller-{i}" for i in range(2000)]


def chosen_callers(share: float, salt: str = "s", request: str = "r") -> set[str]:
    router = Router(RoutingSnapshot(OLD, NEW, share, 3, salt=salt))
    return {c for c in CALLERS if router.route(request, "", c).adapter is NEW}


def test_a_caller_once_in_stays_in_as_the_share_grows() -> None:
    few, more = chosen_callers(0.05), chosen_callers(0.25)
    assert 0.03 < len(few) / len(CALLERS) < 0.07
    assert few < more
    assert chosen_callers(0.05, request="another") == few


def test_another_canary_draws_other_callers() -> None:
    first, second = chosen_callers(0.05), chosen_callers(0.05, salt="t")
    # By chance one in twenty of either is in both.
    assert len(first & second) < 0.3 * len(first)


def test_each_request_can_be_drawn_for_itself() -> None:
    router = Router(RoutingSnapshot(OLD, NEW, 0.25, 3, salt="s", by_caller=False))
    routes = [router.route(r, "", "gateway") for r in IDS]
    assert 0.22 < sum(route.adapter is NEW for route in routes) / len(IDS) < 0.28
    assert {route.assignment.caller for route in routes if route.assignment} == {""}


def test_a_named_adapter_is_nobodys_draw() -> None:
    router = Router(RoutingSnapshot(OLD, NEW, 0.5, 3, salt="s", mirror_share=1.0))
    assert router.route("r", NEW.name, "ann").assignment is None
    assert router.route("r", "base", "ann").adapter is None
    assert Router(RoutingSnapshot(OLD)).route("r", "", "ann").assignment is None


def test_a_draw_says_how_and_keeps_no_name() -> None:
    router = Router(RoutingSnapshot(OLD, NEW, 0.25, 3, salt="s", mirror_share=0.5))
    routes = [router.route(r, "", "ann") for r in IDS]
    drawn = [route.assignment for route in routes]
    assert all(d is not None and d.share == 0.25 and d.canary == NEW.name for d in drawn)
    assert len({d.caller for d in drawn if d}) == 1
    assert "ann" not in str(drawn[0])
    assert 0.45 < sum(d.mirrored for d in drawn if d) / len(IDS) < 0.55


@pytest.mark.parametrize(("share", "expected"), [(0.0, OLD), (1.0, NEW)])
def test_share_of_none_and_of_all(share: float, expected: AdapterHandle) -> None:
    router = Router(RoutingSnapshot(OLD, NEW, share, 1))
    assert {router.route(r).adapter for r in IDS} == {expected}


def test_swap_changes_new_routes_only() -> None:
    router = Router(RoutingSnapshot(OLD))
    with router.route("r") as before:
        router.swap(RoutingSnapshot(NEW, epoch=1))
        with router.route("r") as after:
            assert (before.adapter, before.epoch) == (OLD, 0)
            assert (after.adapter, after.epoch) == (NEW, 1)
            assert router.in_flight(OLD.name) == router.in_flight(NEW.name) == 1
    assert router.total_in_flight() == 0


def test_explicit_names() -> None:
    router = Router(RoutingSnapshot(OLD))
    router.set_resident(lambda: (OLD, NEW))
    assert router.route("r", "base").adapter is None
    assert router.route("r", NEW.name).adapter is NEW
    assert router.route("r", "opsd-ab").adapter is NEW
    with pytest.raises(InvalidInputError, match=r"'opsd-a' is ambiguous.*opsd-aa11, opsd-ab22"):
        router.route("r", "opsd-a")
    with pytest.raises(NotFoundError, match="loaded are base, opsd-aa11, opsd-ab22"):
        router.route("r", "opsd-ff")
    assert router.in_flight("opsd-ff") == 0


def test_outcomes_are_counted_by_adapter() -> None:
    router = Router(RoutingSnapshot(OLD))
    with router.route("r"):
        pass
    for error in (EngineError("died"), EngineError("died"), InvalidInputError("theirs")):
        with pytest.raises(type(error)), router.route("r"):
            raise error
    with pytest.raises(asyncio.CancelledError), router.route("r"):
        raise asyncio.CancelledError
    assert (router.ok(OLD.name), router.engine_errors(OLD.name)) == (1, 2)
    assert router.in_flight(OLD.name) == 0


async def test_wait_idle_returns_when_the_last_lease_ends() -> None:
    router = Router(RoutingSnapshot(OLD))
    await router.wait_idle(OLD.name)
    with router.route("r"):
        with router.route("r"):
            waiting = [asyncio.create_task(router.wait_idle(OLD.name)) for _ in range(2)]
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
