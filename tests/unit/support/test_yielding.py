"""How many samples run beside users follows what users see."""

from __future__ import annotations

from itertools import pairwise

import pytest

from opsd.daemon.support.yielding import YieldController, YieldPolicy

POLICY = YieldPolicy(max_samples=64)


class World:
    """Eight users at one token per ``step_s``; each sample makes the steps longer by ``cost``."""

    def __init__(self, cost: float, users: int = 8, policy: YieldPolicy = POLICY) -> None:
        self.controller = YieldController(policy)
        self.cost = cost
        self.now_s = 0.0
        self.users = 0
        self.running = 0
        self.slow_steps = 0
        self.steps = 0
        self.sampled = 0
        for _ in range(users):
            self.arrive()

    def arrive(self) -> object:
        self.users += 1
        return self.controller.arrived(self.now_s, self.users)

    def leave(self) -> None:
        self.users -= 1
        self.controller.left(self.now_s, self.users)

    def review(self) -> int:
        self.running = self.controller.allowed(self.now_s)
        self.controller.running(self.now_s, self.running)
        return self.running

    def step(self) -> None:
        self.review()
        seconds = 0.01 * (1 + self.cost * self.running)
        self.now_s += seconds
        self.steps += 1
        self.slow_steps += seconds > 0.0125
        self.sampled += self.running
        for _ in range(self.users):
            self.controller.tokens(self.now_s, 1, seconds)

    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.step()


def test_free_samples_are_let_in_up_to_the_maximum() -> None:
    world = World(cost=0.0)
    world.run(20)
    assert world.review() in (0, 64)  # 0 while it measures anew
    world.sampled = world.steps = 0
    world.run(60)
    assert world.sampled / world.steps > 0.9 * 64


def test_the_number_settles_where_users_barely_notice() -> None:
    """At 0.5 % a sample, 5 % is ten of them."""
    world = World(cost=0.005)
    world.run(60)
    world.sampled = world.steps = world.slow_steps = 0
    world.run(120)
    assert 4 < world.sampled / world.steps < 14
    assert world.slow_steps == 0


def test_samples_that_cost_too_much_are_tried_ever_more_rarely() -> None:
    world = World(cost=1.0)
    world.run(120)
    world.sampled = world.steps = world.slow_steps = 0
    world.run(600)
    assert world.slow_steps / world.steps < 0.01
    assert world.sampled > 0


def test_a_rest_ends_though_nobody_streams_any_more() -> None:
    world = World(cost=1.0)
    world.run(120)
    while world.review():
        world.step()
    world.now_s += POLICY.longest_rest_s + 1.0
    world.review()  # learns what users see without, as long as it may
    world.now_s += POLICY.measure_s
    assert world.review() == 1


def test_a_slow_tail_counts_where_the_median_shows_nothing() -> None:
    class Spiky(World):
        def step(self) -> None:
            self.review()
            spike = self.running > 0 and self.steps % 10 == 0
            seconds = 0.03 if spike else 0.01
            self.now_s += seconds
            self.steps += 1
            self.sampled += self.running
            for _ in range(self.users):
                self.controller.tokens(self.now_s, 1, seconds)

    world = Spiky(cost=0.0)
    world.run(120)
    world.sampled = world.steps = 0
    world.run(120)
    assert world.sampled / world.steps < 0.2


def test_without_users_the_number_grows_to_the_maximum_step_by_step() -> None:
    world = World(cost=0.0, users=0)
    seen = []
    for _ in range(12):
        seen.append(world.review())
        world.now_s += 0.1
    assert seen[0] <= 2
    assert seen == sorted(seen)
    assert all(after <= 2 * before for before, after in pairwise(seen))
    assert seen[-1] == 64


def test_a_users_arrival_takes_the_samples_out_at_once() -> None:
    world = World(cost=0.0, users=0)
    for _ in range(12):
        world.review()
        world.now_s += 0.1
    assert world.review() == 64
    world.arrive()
    assert world.review() <= 1


def test_the_pause_between_two_requests_of_a_user_is_no_idleness() -> None:
    world = World(cost=0.0, users=1)
    world.run(5)
    before = world.review()
    world.leave()
    world.now_s += 0.1
    assert world.review() <= max(before, 1)
    world.now_s += 1.0
    for _ in range(8):
        world.review()
        world.now_s += 0.1
    assert world.review() == POLICY.pause_samples
    world.now_s += POLICY.alone_s
    for _ in range(8):
        world.review()
        world.now_s += 0.1
    assert world.review() == 64


@pytest.mark.parametrize(("pause_s", "late_from"), [(2.0, 4), (15.0, 16)])
def test_first_tokens_that_come_late_bring_the_idle_number_down(
    pause_s: float, late_from: int
) -> None:
    """Users come one at a time, each after a pause in which samples ran, or not."""
    world = World(cost=0.0, users=0)
    for _ in range(400):
        for _ in range(int(10 * pause_s)):
            world.review()
            world.now_s += 0.1
        late = world.running > late_from
        tag = world.arrive()
        world.review()
        world.now_s += 0.05
        world.controller.first_token(world.now_s, tag, 0.05 * (1.5 if late else 1.0))
        world.leave()
    for _ in range(int(10 * pause_s)):
        world.review()
        world.now_s += 0.1
    assert world.running <= late_from


def test_where_even_one_sample_is_noticed_few_pauses_have_one() -> None:
    world = World(cost=0.0, users=0)
    with_samples = []
    for _ in range(400):
        for _ in range(20):
            world.review()
            world.now_s += 0.1
        with_samples.append(world.running > 0)
        tag = world.arrive()
        world.review()
        world.now_s += 0.05
        world.controller.first_token(world.now_s, tag, 0.05 * (1.5 if with_samples[-1] else 1.0))
        world.leave()
    assert 0 < sum(with_samples[100:]) < 0.15 * 300


def test_late_first_tokens_beside_users_bring_the_number_down() -> None:
    """Steps are as fast as ever, but who comes to four users waits for a sample to enter."""
    world = World(cost=0.0, users=4)
    for _ in range(900):
        world.leave()
        tag = world.arrive()
        late = world.running > 0
        world.controller.first_token(world.now_s, tag, 0.05 * (1.5 if late else 1.0))
        world.run(0.2)
    world.sampled = world.steps = 0
    world.run(30)
    assert world.sampled / world.steps < 0.5


def test_what_began_before_samples_did_is_not_counted() -> None:
    controller = YieldController(POLICY)
    controller.arrived(0.0, 1)
    controller.running(10.0, 1)
    for _ in range(100):
        controller.tokens(10.01, 1, 5.0)  # began at 5.01
    assert not controller._level(1).intervals_with
    controller.tokens(11.0, 1, 0.5)
    assert controller._level(1).intervals_with == [0.5]
