"""Pairs over gRPC: each is answered for, in order, once, and only with what is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import pytest

from opsd.daemon.types.pairs import Attempt, PairStatus
from opsd.v1 import collection_pb2 as pb

MakePair = Callable[..., pb.PairInput]
Running = Any

VERIFIED = pb.PAIR_STATUS_VERIFIED
INVALID = pb.PAIR_STATUS_INVALID


async def stream(pairs: Iterable[pb.PairInput]) -> AsyncIterator[pb.SubmitPairsRequest]:
    for pair in pairs:
        yield pb.SubmitPairsRequest(pair=pair)


async def submit(running: Running, *pairs: pb.PairInput) -> list[pb.PairResult]:
    response = await running.stub.SubmitPairs(stream(pairs))
    return list(response.results)


async def test_a_good_pair_is_verified_and_stored(running: Running, make_pair: MakePair) -> None:
    pair = make_pair(source="s", stratum="easy")
    call = running.stub.SubmitPairs(stream([pair]), metadata=[("x-opsd-actor", "ana")])
    response = await call
    assert (response.num_verified, response.num_refused) == (1, 0)
    (result,) = response.results
    assert (result.id, result.status, result.already_stored) == (pair.id, VERIFIED, False)
    assert result.verdict.kind == pb.VERDICT_KIND_PASS
    stored = await running.stub.GetPair(pb.GetPairRequest(id=pair.id))
    assert stored.input == pair
    assert stored.submitter == "ana"


async def test_a_wrong_pair_is_kept_and_never_trained_on(
    running: Running, make_pair: MakePair
) -> None:
    (result,) = await submit(running, make_pair(solution="Answer: 3"))
    assert result.status == pb.PAIR_STATUS_UNVERIFIED
    assert result.verdict.kind == pb.VERDICT_KIND_FAIL
    assert "not trained on" in result.message
    assert running.store.trainable_pairs() == []
    assert running.store.count_pairs().unverified == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": ""}, "id: "),
        ({"id": "1"}, "id: '1' is not a UUID"),
        ({"id": "0D63351E-E090-4305-8C8D-5CBE8C385CAD"}, "send 0d63351e-e090"),
        ({"prompt": ""}, "prompt: it is empty"),
        ({"prompt": "x" * 1025}, "prompt: 1025 bytes, more than the 1024"),
        ({"prompt": "a\0b"}, "prompt: character 1"),
        ({"solution": "\n"}, "solution: it is empty"),
        ({"solution": "x" * 2049}, "solution: 2049 bytes"),
        ({"reference": ""}, "reference: it is empty"),
        ({"verifier": "maths"}, "choose one of exact, numeric"),
        ({"reference": "two"}, "reference: for the verifier numeric: 'two' is not a number"),
        ({"source": "x" * 257}, "source: 257 bytes"),
    ],
)
async def test_a_malformed_pair_is_refused(
    running: Running, make_pair: MakePair, fields: dict[str, str], message: str
) -> None:
    good = make_pair()
    bad, stored = await submit(running, make_pair(**fields), good)
    assert (bad.status, stored.status) == (INVALID, VERIFIED)
    assert message in bad.message
    assert running.store.list_pairs(limit=9).total == 1
    assert running.verifier.calls == 1


@pytest.mark.parametrize(
    "prompt",
    [
        "Tom has 61 apples, loses 40. How many apples?",
        "TOM HAS 61 APPLES; loses 40 - how many apples".replace(" - ", " "),
        "Tom has 61\u200b apples, loses 40. How many apples?",
        "Tomhas61apples loses 40. How many apples?",
    ],
)
async def test_a_held_out_problem_is_refused(
    running: Running, make_pair: MakePair, prompt: str
) -> None:
    (result,) = await submit(running, make_pair(prompt=prompt))
    assert result.status == pb.PAIR_STATUS_HELD_OUT
    assert "'hard'" in result.message
    assert running.store.list_pairs(limit=9).total == 0


async def test_the_same_again_is_stored_once_and_not_verified_again(
    running: Running, make_pair: MakePair
) -> None:
    pair = make_pair()
    await submit(running, pair)
    (again,) = await submit(running, pair)
    assert (again.status, again.already_stored) == (VERIFIED, True)
    assert running.verifier.calls == 1
    assert running.store.list_pairs(limit=9).total == 1


async def test_a_taken_id_is_a_mistake(running: Running, make_pair: MakePair) -> None:
    pair = make_pair()
    await submit(running, pair)
    (result,) = await submit(running, make_pair(id=pair.id, solution="Answer: 2.0"))
    assert result.status == INVALID
    assert "new UUID" in result.message
    assert running.store.get_pair(pair.id).input.solution == "Answer: 2"


async def test_the_same_content_is_a_duplicate(running: Running, make_pair: MakePair) -> None:
    pair = make_pair()
    other = make_pair(prompt=pair.prompt)
    await submit(running, pair)
    (result,) = await submit(running, other)
    assert result.status == pb.PAIR_STATUS_DUPLICATE
    assert result.duplicate_of == pair.id


async def test_results_come_in_the_order_sent(running: Running, make_pair: MakePair) -> None:
    pairs = [make_pair(**({} if n % 3 else {"verifier": "?"})) for n in range(150)]
    results = await submit(running, *pairs)
    assert [result.id for result in results] == [pair.id for pair in pairs]


async def test_each_pair_is_acknowledged_before_the_next_is_sent(
    running: Running, make_pair: MakePair
) -> None:
    call = running.stub.SubmitPairsAcked()
    for _ in range(5):
        pair = make_pair()
        await call.write(pb.SubmitPairsRequest(pair=pair))
        result = await call.read()
        assert (result.id, result.status) == (pair.id, VERIFIED)
        assert running.store.get_pair(pair.id).status is PairStatus.VERIFIED
    await call.done_writing()
    assert await call.read() == grpc.aio.EOF


async def test_a_broken_stream_keeps_what_was_acknowledged(
    running: Running, make_pair: MakePair
) -> None:
    call = running.stub.SubmitPairsAcked()
    pair = make_pair()
    await call.write(pb.SubmitPairsRequest(pair=pair))
    await call.read()
    call.cancel()
    await asyncio.sleep(0.05)
    assert running.store.get_pair(pair.id).status is PairStatus.VERIFIED
    (again,) = await submit(running, pair)
    assert again.already_stored


async def test_invalid_utf8_gets_a_status_and_the_server_lives(
    running: Running, make_pair: MakePair
) -> None:
    pair = make_pair().SerializeToString().replace(b"What is", b"\xff\xfeat is")
    request = b"\x0a" + bytes([len(pair) & 0x7F | 0x80, len(pair) >> 7]) + pair
    method = running.channel.stream_unary(
        "/opsd.v1.CollectionService/SubmitPairs",
        request_serializer=lambda raw: raw,
        response_deserializer=pb.SubmitPairsResponse.FromString,
    )

    good = make_pair()

    async def raw() -> AsyncIterator[bytes]:
        yield pb.SubmitPairsRequest(pair=good).SerializeToString()
        yield request

    with pytest.raises(grpc.aio.AioRpcError, match="UTF-8") as caught:
        await method(raw())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [pair.input.id for pair in running.store.list_pairs(limit=9).items] == [good.id]
    (result,) = await submit(running, make_pair())
    assert result.status == VERIFIED


async def test_an_oversized_message_gets_a_status_and_the_server_lives(
    running: Running, make_pair: MakePair
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(running, make_pair(prompt="x" * (5 << 20)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    (result,) = await submit(running, make_pair())
    assert result.status == VERIFIED


async def test_listing_pages_and_filters(running: Running, make_pair: MakePair) -> None:
    pairs = [make_pair(source="a") for _ in range(5)]
    await submit(running, *pairs, make_pair(source="b"))
    first = await running.stub.ListPairs(pb.ListPairsRequest(page_size=3, source="a"))
    token = first.next_page_token
    second = await running.stub.ListPairs(
        pb.ListPairsRequest(page_size=3, source="a", page_token=token)
    )
    listed = [*first.pairs, *second.pairs]
    assert {pair.input.id for pair in listed} == {pair.id for pair in pairs}
    assert (first.total, second.next_page_token) == (5, "")
    for request in (
        pb.ListPairsRequest(page_size=1001),
        pb.ListPairsRequest(page_token="nonsense"),
        pb.ListPairsRequest(status=pb.PAIR_STATUS_DUPLICATE),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.ListPairs(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_page_fits_into_a_message(
    running: Running, make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opsd.daemon.collect.service.PAGE_BYTES", 1500)
    pairs = [make_pair(solution="Answer: 2" + " " * 400) for _ in range(7)]
    await submit(running, *pairs)
    seen = []
    token = ""
    while True:
        page = await running.stub.ListPairs(pb.ListPairsRequest(page_token=token))
        assert page.ByteSize() <= 1500
        seen += [pair.input.id for pair in page.pairs]
        token = page.next_page_token
        if not token:
            break
    assert sorted(seen) == sorted(pair.id for pair in pairs)


async def test_too_long_a_stream_is_sent_elsewhere(
    running: Running, make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opsd.daemon.collect.service.MAX_UNACKED_PAIRS", 3)
    with pytest.raises(grpc.aio.AioRpcError, match="SubmitPairsAcked"):
        await submit(running, *(make_pair() for _ in range(5)))


async def test_feedback_on_an_attempt_that_was_just_made(
    running: Running, make_pair: MakePair
) -> None:
    running.recorder.offer(Attempt("a1", "r1", "base", "1 + 1?", "3", 1, 1.0))
    correction = make_pair(prompt="")
    response = await running.stub.SubmitFeedback(
        pb.SubmitFeedbackRequest(
            attempt_id="a1", rating=pb.FEEDBACK_RATING_BAD, comment="no", correction=correction
        )
    )
    assert response.correction.status == VERIFIED
    assert running.store.get_pair(correction.id).input.prompt == "1 + 1?"
    attempt = await running.stub.GetAttempt(pb.GetAttemptRequest(id="a1"))
    assert (attempt.rating, attempt.comment) == (pb.FEEDBACK_RATING_BAD, "no")


async def test_bad_feedback_changes_nothing(running: Running, make_pair: MakePair) -> None:
    running.recorder.offer(Attempt("a1", "r1", "base", "1 + 1?", "3", 1, 1.0))
    good = pb.FEEDBACK_RATING_GOOD
    for request, code in (
        (pb.SubmitFeedbackRequest(attempt_id="a2", rating=good), grpc.StatusCode.NOT_FOUND),
        (pb.SubmitFeedbackRequest(attempt_id="a1"), grpc.StatusCode.INVALID_ARGUMENT),
        (
            pb.SubmitFeedbackRequest(attempt_id="a1", rating=7),  # type: ignore[arg-type]
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            pb.SubmitFeedbackRequest(attempt_id="a1", comment="x" * 5000),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            pb.SubmitFeedbackRequest(
                attempt_id="a1", rating=good, correction=make_pair(verifier="?")
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.SubmitFeedback(request)
        assert caught.value.code() is code
    assert running.store.get_attempt("a1").rating is None


async def test_unknown_things_are_not_found(running: Running) -> None:
    for call in (
        running.stub.GetPair(pb.GetPairRequest(id="x")),
        running.stub.GetAttempt(pb.GetAttemptRequest(id="x")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_nobody_submits_under_the_daemons_own_names(
    running: Running, make_pair: MakePair
) -> None:
    """They have quotas of their own."""
    pair = make_pair()
    await running.stub.SubmitPairs(stream([pair]), metadata=[("x-opsd-actor", "opsd:harvest")])
    stored = await running.stub.GetPair(pb.GetPairRequest(id=pair.id))
    assert stored.submitter == "claimed opsd:harvest"
