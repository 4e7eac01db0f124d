"""How a stream's chunk size follows the crowd and the engine's speed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.serve.pacing import StreamPacer


def paced(seconds_per_token: float) -> StreamPacer:
    pacer = StreamPacer()
    pacer.finished(100, 100 * seconds_per_token)
    return pacer


def test_few_streams_get_every_token_alone() -> None:
    assert {paced(0.0001).tokens_per_chunk(n) for n in range(9)} == {1}


def test_nothing_is_held_back_before_the_speed_is_known() -> None:
    assert StreamPacer().tokens_per_chunk(1000) == 1


def test_a_crowd_shares_the_messages() -> None:
    # 40 streams above the first 8 share 400 messages a second: one each in 100 ms.
    assert paced(0.018).tokens_per_chunk(48) == 5
    assert paced(0.018).tokens_per_chunk(28) == 2


def test_a_slow_model_sends_single_tokens_to_any_crowd() -> None:
    assert paced(0.070).tokens_per_chunk(10_000) == 1


def test_a_chunk_stays_small_however_fast_the_model() -> None:
    assert paced(0.0001).tokens_per_chunk(10_000) == 16


def test_the_speed_is_remembered_and_follows_slowly() -> None:
    pacer = paced(0.010)
    assert pacer.tokens_per_chunk(1000) == 12
    pacer.finished(10, 10 * 0.050)
    assert pacer.tokens_per_chunk(1000) == 8  # 0.9 × 10 ms + 0.1 × 50 ms = 14 ms


def test_streams_without_a_second_token_say_nothing() -> None:
    pacer = paced(0.018)
    pacer.finished(0, 5.0)
    pacer.finished(3, 0.0)
    assert pacer.tokens_per_chunk(48) == 5


@given(st.floats(1e-6, 10.0), st.integers(1, 100_000))
def test_a_chunk_never_waits_longer_than_an_eighth_of_a_second(
    seconds_per_token: float, num_streams: int
) -> None:
    tokens = paced(seconds_per_token).tokens_per_chunk(num_streams)
    assert 1 <= tokens <= 16
    assert tokens == 1 or tokens * seconds_per_token <= 0.125 * (1 + 1e-9)
