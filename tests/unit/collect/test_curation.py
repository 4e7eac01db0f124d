"""Over gRPC: what hygiene makes of a pair, and what operators do to stored ones."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from opsd.daemon.collect.overlap import find_overlaps, quarantine_overlaps
from opsd.daemon.config.collect import CollectConfig, QuotaConfig
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.pairs import PairStatus
from opsd.daemon.types.runs import Run, RunState, TriggerKind
from opsd.v1 import collection_pb2 as pb

MakePair = Callable[..., pb.PairInput]
Running = Any
HELD_OUT_PROMPT = "Tom has 61 apples, loses 40. How many apples?"
VERIFIED, QUARANTINED = pb.PAIR_STATUS_VERIFIED, pb.PAIR_STATUS_QUARANTINED


async def stream(pairs: Iterable[pb.PairInput]) -> AsyncIterator[pb.SubmitPairsRequest]:
    for pair in pairs:
        yield pb.SubmitPairsRequest(pair=pair)


async def send(running: Running, *pairs: pb.PairInput, who: str = "ana") -> pb.SubmitPairsResponse:
    response: pb.SubmitPairsResponse = await running.stub.SubmitPairs(
        stream(pairs), metadata=[("x-opsd-actor", who)]
    )
    return response


def change(**selector: Any) -> pb.ChangePairsRequest:
    return pb.ChangePairsRequest(
        selector=pb.PairSelector(**selector), reason="poisoned", actor="op"
    )


def trained(running: Running, tmp_path: Path, ids: list[str], state: RunState) -> tuple[Path, str]:
    """A run with a shard of these pairs, and its adapter."""
    run = Run(str(uuid4()), RunState.QUEUED, TriggerKind.OPERATOR, "a", "r", 1.0, 1.0)
    running.store.create_run(run)
    shard = tmp_path / run.id / "shard.jsonl"
    shard.parent.mkdir()
    shard.write_text("the pairs")
    spec_json = json.dumps({"shard": {"path": str(shard)}})
    running.store.update_run(run.id, spec_json=spec_json)
    running.store.record_snapshot(run.id, ids)
    digest = uuid4().hex * 2
    candidate = AdapterState.CANDIDATE
    name = f"opsd-{digest[:16]}"
    running.store.add_adapter(Adapter(name, digest, 0, candidate, run.id, "/", 8, 8.0, 1, "f", 1.0))
    if state is not RunState.QUEUED:
        running.store.transition_run(run.id, expected=RunState.QUEUED, to=state, reason="t")
    return shard, name


async def test_a_screened_pair_is_stored_as_the_screen_left_it(
    running: Running, make_pair: MakePair
) -> None:
    pair = make_pair(prompt="1 + 1?<|im_end|>")
    (result,) = (await send(running, pair)).results
    assert (result.status, result.message) == (VERIFIED, "prompt: a control token was made text")
    assert running.store.get_pair(pair.id).input.prompt == "1 + 1?< |im_end| >"
    (again,) = (await send(running, pair)).results
    assert again.already_stored


async def test_a_screens_refusal_and_quarantine(running: Running, make_pair: MakePair) -> None:
    refused, kept = make_pair(prompt="REFUSE"), make_pair(prompt="QUARANTINE")
    response = await send(running, refused, kept)
    assert (response.num_refused, response.num_quarantined) == (1, 1)
    assert response.results[0].message == "prompt: no language that is taken"
    assert response.results[1].status == QUARANTINED
    assert "looks personal" in response.results[1].message
    stored = await running.stub.GetPair(pb.GetPairRequest(id=kept.id))
    assert (stored.status, stored.quarantine_reason) == (QUARANTINED, "looks personal")
    assert (stored.origin, running.store.trainable_pairs()) == ("submitted", [])
    assert running.verifier.calls == 1


async def test_a_near_duplicate_is_named_as_one(running: Running, make_pair: MakePair) -> None:
    first = make_pair(prompt="What is 1 + 1?")
    await send(running, first)
    (result,) = (await send(running, make_pair(prompt="WHAT IS 1 + 1?"))).results
    assert (result.status, result.duplicate_of) == (pb.PAIR_STATUS_DUPLICATE, first.id)
    assert "near-duplicate" in result.message


class TestQuota:
    @pytest.fixture
    def collect_config(self) -> CollectConfig:
        return CollectConfig(quota=QuotaConfig(pairs_per_day=2, exempt=("root",)))

    async def test_over_the_quota_is_refused_before_it_is_verified(
        self, running: Running, make_pair: MakePair
    ) -> None:
        await send(running, make_pair(), make_pair())
        response = await send(running, make_pair())
        (result,) = response.results
        assert (result.status, response.num_refused) == (pb.PAIR_STATUS_REFUSED_QUOTA, 1)
        assert "stored 2 pairs today" in result.message
        assert "send it again after" in result.message
        assert running.verifier.calls == 2
        assert (await send(running, make_pair(), who="bob")).num_verified == 1
        assert (await send(running, *[make_pair() for _ in range(3)], who="root")).num_refused == 0

    async def test_a_stream_does_not_overshoot(self, running: Running, make_pair: MakePair) -> None:
        response = await send(running, *[make_pair() for _ in range(30)])
        assert (response.num_verified, response.num_refused) == (2, 28)

    async def test_the_statistics_show_its_use(self, running: Running, make_pair: MakePair) -> None:
        await send(running, make_pair(source="a"), make_pair(source="b"))
        stats = await running.curation.GetPairStats(pb.GetPairStatsRequest())
        assert [row.name for row in stats.by_source] == ["a", "b"]
        assert (stats.total.verified, stats.pairs_per_day) == (2, 2)
        assert [(use.submitter, use.pairs_today) for use in stats.quotas] == [("ana", 2)]
        assert stats.quota_resets_unix_s > 0

    async def test_who_has_no_quota_is_left_out(
        self, running: Running, make_pair: MakePair
    ) -> None:
        await send(running, make_pair(), who="root")
        await send(running, make_pair())
        stats = await running.curation.GetPairStats(pb.GetPairStatsRequest())
        assert [row.name for row in stats.by_submitter] == ["ana", "root"]
        assert [use.submitter for use in stats.quotas] == ["ana"]


async def test_quarantine_and_release(running: Running, make_pair: MakePair) -> None:
    mine, theirs = make_pair(), make_pair()
    await send(running, mine)
    await send(running, theirs, who="mallory")
    planned = change(submitter="mallory")
    planned.dry_run = True
    assert (await running.curation.QuarantinePairs(planned)).num_pairs == 1
    assert running.store.count_pairs().quarantined == 0
    done = await running.curation.QuarantinePairs(change(submitter="mallory"))
    assert done.num_pairs == 1
    entry = running.store.list_audit(limit=1).items[0]
    assert (entry.id, entry.action, entry.actor) == (done.audit_id, "pairs.quarantine", "op")
    assert entry.subject == "submitter 'mallory'"
    assert [pair.input.id for pair in running.store.trainable_pairs()] == [mine.id]
    again = await running.curation.QuarantinePairs(change(submitter="mallory"))
    assert (again.num_pairs, again.audit_id) == (0, 0)
    listed = await running.stub.ListPairs(
        pb.ListPairsRequest(status=QUARANTINED, submitter="mallory", origin="submitted")
    )
    assert [pair.input.id for pair in listed.pairs] == [theirs.id]
    released = await running.curation.ReleasePairs(change(ids=[theirs.id]))
    assert released.num_pairs == 1
    assert running.store.get_pair(theirs.id).status is PairStatus.VERIFIED


async def test_what_a_suite_holds_is_not_released(
    running: Running, make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opsd.daemon.collect.curation._SCAN_BATCH", 2)
    pairs = [make_pair() for _ in range(5)]
    await send(running, *pairs)
    free = running.store.get_pair(pairs[0].id)
    # As it was stored before there was the suite.
    given = replace(free.input, id=str(uuid4()), prompt=HELD_OUT_PROMPT)
    held = replace(free, input=given, content_sha256="ab" * 32)
    running.store.add_pair(held)
    assert (await running.curation.QuarantinePairs(change(submitter="ana"))).num_pairs == 6
    planned = change(submitter="ana")
    planned.dry_run = True
    for request in (planned, change(submitter="ana")):
        done = await running.curation.ReleasePairs(request)
        assert (done.num_pairs, done.num_held_out) == (5, 1)
    assert running.store.get_pair(held.input.id).status is PairStatus.QUARANTINED
    assert running.store.count_pairs().quarantined == 1
    again = await running.curation.ReleasePairs(change(ids=[held.input.id]))
    assert (again.num_pairs, again.num_held_out, again.audit_id) == (0, 1, 0)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.ChangePairsRequest(reason="r"), "name ids, a submitter"),
        (change(origin="nowhere"), "origin: 'nowhere' is not known"),
        (pb.ChangePairsRequest(selector=pb.PairSelector(source="s"), reason=" "), "reason"),
    ],
)
async def test_a_change_of_nothing_in_particular_is_refused(
    running: Running, request_: pb.ChangePairsRequest, message: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.curation.QuarantinePairs(request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in (caught.value.details() or "")


async def test_a_purge_names_what_was_trained_and_deletes_shards_when_asked(
    running: Running, make_pair: MakePair, tmp_path: Path
) -> None:
    pair = make_pair(source="leak")
    await send(running, pair)
    shard, adapter = trained(running, tmp_path, [pair.id], RunState.REJECTED)
    request = pb.PurgePairsRequest(
        selector=pb.PairSelector(source="leak"), reason="asked to", actor="op", dry_run=True
    )
    planned = await running.curation.PurgePairs(request)
    (run,) = planned.runs
    assert (planned.num_pairs, planned.audit_id, run.num_pairs) == (1, 0, 1)
    assert (list(run.adapters), run.shard_path, run.shard_exists) == ([adapter], str(shard), True)
    assert running.store.get_pair(pair.id).input.prompt == pair.prompt
    request.dry_run = False
    done = await running.curation.PurgePairs(request)
    assert (done.num_pairs, done.runs[0].shard_exists) == (1, True)
    assert running.store.get_pair(pair.id).input.prompt == ""
    entry = json.loads(running.store.list_audit(limit=1).items[0].detail_json)
    assert entry["adapters"] == [adapter]
    request.delete_shards = True
    gone = await running.curation.PurgePairs(request)
    assert (gone.num_pairs, gone.runs[0].shard_exists, shard.exists()) == (0, False, False)
    assert gone.audit_id > done.audit_id
    (back,) = (await send(running, pair)).results
    assert back.status == pb.PAIR_STATUS_PURGED
    assert running.verifier.calls == 1


async def test_a_shard_that_a_trainer_reads_is_not_deleted(
    running: Running, make_pair: MakePair, tmp_path: Path
) -> None:
    pair = make_pair()
    await send(running, pair)
    shard, _ = trained(running, tmp_path, [pair.id], RunState.TRAINING)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.curation.PurgePairs(
            pb.PurgePairsRequest(
                selector=pb.PairSelector(submitter="ana"), reason="r", delete_shards=True
            )
        )
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "cancel it first" in (caught.value.details() or "")
    assert shard.exists()
    assert running.store.get_pair(pair.id).status is PairStatus.VERIFIED


async def test_what_the_verifier_could_not_tell_is_verified_again(
    running: Running, make_pair: MakePair
) -> None:
    running.verifier.is_down = True
    unsure = [make_pair() for _ in range(3)]
    await send(running, *unsure)
    running.verifier.is_down = False
    wrong = make_pair(solution="Answer: 3")
    await send(running, wrong)
    calls = running.verifier.calls
    results = [result async for result in running.curation.ReverifyPairs(pb.ReverifyPairsRequest())]
    assert {(result.id, result.status) for result in results} == {
        (pair.id, VERIFIED) for pair in unsure
    }
    assert len(results) == 3
    assert running.verifier.calls == calls + 3
    assert running.store.count_pairs().verified == 3
    assert running.store.list_audit(limit=1).items[0].action == "pairs.reverify"
    request = pb.ReverifyPairsRequest(failed_too=True)
    results = [result async for result in running.curation.ReverifyPairs(request)]
    assert [result.id for result in results] == [wrong.id]


async def test_a_verified_pair_that_fails_now_is_not_trained_on(
    running: Running, make_pair: MakePair
) -> None:
    pair = make_pair()
    await send(running, pair)
    running.verifier.is_down = True
    request = pb.ReverifyPairsRequest(status=VERIFIED)
    results = [result async for result in running.curation.ReverifyPairs(request)]
    assert [result.status for result in results] == [pb.PAIR_STATUS_UNVERIFIED]
    assert running.store.trainable_pairs() == []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in running.curation.ReverifyPairs(pb.ReverifyPairsRequest(status=QUARANTINED)):
            pass
    assert "only unverified and verified" in (caught.value.details() or "")


class Match:
    suite, item_id, how, evidence = "hard", "7", "recased", "but for case"


class Matcher:
    """Holds prompts with a word in them."""

    def match(self, prompt: str) -> Match | None:
        return Match() if "HELD" in prompt else None


async def test_a_new_suites_problems_go_into_quarantine(
    running: Running, make_pair: MakePair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opsd.daemon.collect.overlap.SCAN_BATCH", 2)
    pairs = [make_pair(prompt=f"{'HELD' if n in (1, 4) else 'free'} {n}") for n in range(6)]
    for pair in pairs:
        await send(running, pair)
    _, adapter = trained(running, tmp_path, [pairs[1].id], RunState.REJECTED)
    seen = find_overlaps(running.store, Matcher())
    assert (seen.num_scanned, seen.by_how, seen.num_known) == (6, {"recased": 2}, 0)
    assert running.store.get_pair(pairs[4].id).status is PairStatus.VERIFIED
    asked = iter([False, True])
    first = quarantine_overlaps(running.store, Matcher(), "op", should_stop=lambda: next(asked))
    assert (first.num_scanned, first.num_quarantined, first.is_complete) == (2, 1, False)
    assert (first.adapters, len(first.trained_run_ids)) == ([adapter], 1)
    rest = quarantine_overlaps(running.store, Matcher(), "op", after_seq=first.last_seq)
    assert (rest.num_scanned, rest.num_quarantined, rest.is_complete) == (4, 1, True)
    assert rest.by_how == {"recased": 1}
    assert [example.pair_id for example in rest.examples] == [pairs[4].id]
    held = running.store.get_pair(pairs[4].id)
    assert held.status is PairStatus.QUARANTINED
    assert held.quarantine_reason == "held-out problem of suite 'hard'"
    audits = running.store.list_audit(limit=99).items
    again = quarantine_overlaps(running.store, Matcher(), "op")
    assert (again.num_scanned, again.num_quarantined, again.num_known) == (6, 0, 2)
    assert running.store.list_audit(limit=99).items == audits
