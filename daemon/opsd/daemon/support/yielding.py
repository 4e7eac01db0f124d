"""How many samples of a run may be in the engine beside the users' completions.

Pure: the time comes in as a number. The engine's priorities alone keep users first in its queue,
but every sample that runs beside them makes its steps longer. So what users see while samples run
is compared with what they see while none do, for each number of users apart, and the number of
samples follows the ratio: up by one while nothing shows, down by half at least when something does.
Where even one sample is noticed, samples run for so small a part of the time, or of the users'
pauses, that it does not show in the quantiles of the whole.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import ceil
from statistics import median

_MAX_KEPT = 4096
_MAX_WIDTH = 8  # of users together enough is seen
_PAUSE = 0  # levels of users: between two requests, nobody for long, and their number otherwise
_ALONE = -1
_SLOW_START_FACTOR = 2


@dataclass(frozen=True, slots=True)
class YieldPolicy:
    """``max_samples``: when nobody is about. The promise is 10 % at the median and 25 % at the 99th
    percentile; the controller aims lower, for what it sees comes late and in small numbers.
    """

    max_samples: int
    median_rise: float = 0.05  # users' median, with samples over without, minus 1
    tail_rise: float = 0.15  # above the 99th percentile without samples: a slow one
    tail_share: float = 0.02  # of slow ones among those with samples
    # Of each user, for all see the same steps of the engine:
    tail_window: int = 128  # observations before the tail says anything, and before more is tried
    window: int = 32  # observations between decisions
    quiet_window: int = 64  # observations without samples that are enough to compare with
    first_window: int = 8  # the same of times to first token, which are rarer
    quiet_first_window: int = 16
    kept_firsts: int = 32  # with samples, since their number last changed
    added_slow: float = 0.005  # share of slow ones that samples may add to the whole
    # Where even one is noticed, without samples at most:
    longest_rest: int = 4096  # observations of each user,
    longest_rest_s: float = 300.0  # whatever is observed: users may stream no more,
    longest_rest_pauses: int = 32
    settle_s: float = 0.02  # after samples began or ended, what is in the engine's queue counts not
    idle_s: float = 0.25  # without users, before more samples than beside users are let in,
    alone_s: float = 10.0  # and before nobody is about
    pause_samples: int = 4  # at first, between the two
    ramp_s: float = 0.1  # without users the number may double so often
    # One in so many pauses stays without samples, to learn how late first tokens come then; fewer,
    # once so many are known. Not for longer than this: somebody has to come.
    quiet_pauses: tuple[int, int] = (4, 16)
    known_firsts: int = 32
    quiet_pause_s: float = 60.0
    measure_s: float = 2.0  # at most, without samples, to learn what users see then
    run_s: float = 10.0  # with samples, before it is learnt anew
    stale_s: float = 120.0  # older observations no longer count,
    stale_firsts_s: float = 1800.0  # nor older times to first token, which are rarer


@dataclass(frozen=True, slots=True)
class ArrivalTag:
    """Under what conditions a user arrived."""

    level: int  # of the users with this one; without others, that of the pause
    quiet: bool  # no sample was in the engine
    counts: bool  # for long enough


@dataclass(slots=True)
class _Level:
    """What is known about one number of users (none, 1, 2-3, 4-7, …)."""

    limit: int
    width: int = 1  # users, at least
    intervals_without: deque[tuple[float, float]] = field(
        default_factory=lambda: deque(maxlen=_MAX_KEPT)
    )  # (when, seconds a token)
    firsts_without: deque[tuple[float, float]] = field(
        default_factory=lambda: deque(maxlen=_MAX_KEPT)
    )
    intervals_with: list[float] = field(default_factory=list)  # since the last decision
    # Since the number of samples last changed:
    firsts_with: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_KEPT))
    slow_with: deque[bool] = field(default_factory=lambda: deque(maxlen=_MAX_KEPT))
    num_with: int = 0  # intervals of this stretch with samples
    slow_s: float | None = None  # an interval above it is a slow one
    measuring_until_s: float | None = None  # what users see without samples
    running_since_s: float | None = None
    rest: int = 0  # observations, or pauses, that stay without samples
    rest_until_s: float = float("inf")
    slow_start: bool = True

    def end_stretch(self) -> None:
        """Samples are taken out, to learn what users see without."""
        self.measuring_until_s = self.running_since_s = None
        self.intervals_without.clear()
        self.intervals_with.clear()
        self.num_with = 0

    def set_limit(self, limit: int) -> None:
        if limit != self.limit:
            self.limit = limit
            self.firsts_with.clear()
            self.slow_with.clear()


class YieldController:
    """Says how many samples may run now; is told what users see and how many samples do run."""

    def __init__(self, policy: YieldPolicy) -> None:
        self._policy = policy
        pause = _Level(limit=min(policy.pause_samples, policy.max_samples))
        alone = _Level(limit=policy.max_samples, firsts_without=pause.firsts_without)
        self._levels = {_PAUSE: pause, _ALONE: alone}
        self._users = 0
        self._running = 0
        self._switched_s = float("-inf")  # when samples last began or ended
        self._idle_since_s = float("-inf")
        self._pauses = 0
        self._pause_is_quiet = False
        self._pause_is_counted = True
        self._ramp = 1
        self._ramped_s = float("-inf")
        self._last_beside_users = 1

    # What happens

    def arrived(self, now_s: float, users: int) -> ArrivalTag:
        level = _level_of(users) if users > 1 else self._idle_level(now_s)
        quiet = self._running == 0
        if quiet and level <= _PAUSE:
            self._levels[level].rest = max(0, self._levels[level].rest - 1)
        self._users = users
        return ArrivalTag(level, quiet, self._settled(now_s))

    def left(self, now_s: float, users: int) -> None:
        self._users = users
        if users == 0:
            self._idle_since_s = now_s
            self._pause_is_counted = False

    def running(self, now_s: float, num_samples: int) -> None:
        """So many samples are in the engine from now on."""
        if (num_samples == 0) != (self._running == 0):
            self._switched_s = now_s
        self._running = num_samples

    def first_token(self, now_s: float, tag: object, seconds: float) -> None:
        if not isinstance(tag, ArrivalTag) or not tag.counts:
            return
        level = self._level(tag.level)
        if tag.quiet:
            # Samples that began while the user waited would be counted as none.
            if self._switched_s <= now_s - seconds:
                level.firsts_without.append((now_s, seconds))
            return
        level.firsts_with.append(seconds)
        if tag.level <= _PAUSE:
            self._decide_pauses(level, now_s)

    def tokens(self, now_s: float, num_tokens: int, seconds: float) -> None:
        """Of one user's completion; ``seconds`` is what they took together."""
        began_s = now_s - seconds
        if num_tokens < 1 or seconds <= 0.0 or began_s < self._switched_s + self._policy.settle_s:
            return
        level = self._level(_level_of(self._users))
        each_s = seconds / num_tokens
        if self._running == 0:
            level.intervals_without.append((now_s, each_s))
            level.rest = max(0, level.rest - 1)
            return
        level.num_with += 1
        level.intervals_with.append(each_s)
        level.slow_with.append(level.slow_s is not None and each_s > level.slow_s)
        if len(level.intervals_with) >= self._policy.window * level.width:
            self._decide_beside(level, now_s)

    # What follows

    def allowed(self, now_s: float) -> int:
        """Samples that may be in the engine now; more than that are to be taken out."""
        policy = self._policy
        if self._users:
            level = self._level(_level_of(self._users))
            self._last_beside_users = self._phase(level, now_s)
            self._ramp = max(1, self._last_beside_users)
            return self._last_beside_users
        idle_s = now_s - self._idle_since_s
        if idle_s < policy.idle_s:
            # Between two of one user's requests nobody is about either.
            return self._last_beside_users
        self._count_pause(now_s)
        level = self._levels[self._idle_level(now_s)]
        quiet = self._pause_is_quiet and idle_s < policy.quiet_pause_s
        if quiet or (level.rest and idle_s < policy.quiet_pause_s):
            return 0
        if now_s - self._ramped_s >= policy.ramp_s:
            self._ramp = min(policy.max_samples, max(1, self._ramp) * 2)
            self._ramped_s = now_s
        return min(self._ramp, level.limit)

    def _level(self, key: int) -> _Level:
        if key not in self._levels:
            self._levels[key] = _Level(limit=1, width=min(1 << (key - 1), _MAX_WIDTH))
        return self._levels[key]

    def _count_pause(self, now_s: float) -> None:
        if self._pause_is_counted:
            return
        known = len(self._firsts(self._levels[_PAUSE], now_s))
        every = self._policy.quiet_pauses[known >= self._policy.known_firsts]
        self._pauses += 1
        self._pause_is_quiet = self._pauses % every == 0
        self._pause_is_counted = True

    def _idle_level(self, now_s: float) -> int:
        return _ALONE if now_s - self._idle_since_s >= self._policy.alone_s else _PAUSE

    def _phase(self, level: _Level, now_s: float) -> int:
        """The limit beside users, or 0 while it rests or learns what they see without samples."""
        policy = self._policy
        if level.rest and now_s < level.rest_until_s:
            return 0
        level.rest = 0
        if level.running_since_s is None:
            if level.measuring_until_s is None:
                level.measuring_until_s = now_s + policy.measure_s
            enough = len(self._intervals(level, now_s)) >= policy.quiet_window * level.width
            if not enough and now_s < level.measuring_until_s:
                return 0
            level.measuring_until_s, level.running_since_s = None, now_s
            level.slow_s = self._slow_s(self._intervals(level, now_s))
        if self._running and now_s - level.running_since_s > policy.run_s:
            level.end_stretch()
            return 0
        return level.limit

    def _decide_beside(self, level: _Level, now_s: float) -> None:
        """At the end of every window of intervals with samples."""
        policy = self._policy
        rises = [self._first_rise(level, now_s)]
        quiet = self._intervals(level, now_s)
        if len(quiet) >= policy.window * level.width // 2:
            rises.append(median(level.intervals_with) / median(quiet) - 1.0)
        level.intervals_with.clear()
        known = [rise for rise in rises if rise is not None]
        if not known:
            return
        judged = level.num_with >= policy.tail_window * level.width
        slow_share = sum(level.slow_with) / len(level.slow_with)
        if max(known) <= policy.median_rise and not (judged and slow_share > policy.tail_share):
            # Where users come and go, more is let in only when what they waited is known.
            unknown = rises[0] is None and (level.firsts_with or level.firsts_without)
            if judged and not unknown and max(known) <= policy.median_rise / 2:
                self._advance(level)
            return
        level.slow_start = False
        cost = self._cost(max(known), slow_share)
        if not self._lower(level, max(known)):
            rest = int(level.num_with * (cost - 1))
            level.rest = min(
                max(rest, policy.quiet_window * level.width), policy.longest_rest * level.width
            )
            level.rest_until_s = now_s + policy.longest_rest_s
        level.end_stretch()

    def _decide_pauses(self, level: _Level, now_s: float) -> None:
        """At the first token of every user who found samples, and nobody else, in the engine."""
        policy = self._policy
        rise = self._first_rise(level, now_s)
        if rise is None:
            return
        slow_s = self._slow_s(self._firsts(level, now_s))
        slow = 0 if slow_s is None else sum(first_s > slow_s for first_s in level.firsts_with)
        # One slow user of few is no news.
        slow_share = slow / len(level.firsts_with) if slow > 1 else 0.0
        if rise <= policy.median_rise and slow_share <= policy.tail_share:
            if rise <= policy.median_rise / 2:
                self._advance(level)
        else:
            level.slow_start = False
            cost = self._cost(rise, slow_share)
            if not self._lower(level, rise):
                level.rest = min(ceil(cost) - 1, policy.longest_rest_pauses)

    def _cost(self, rise: float, slow_share: float) -> float:
        """How many times what users may notice; the part of the time that samples may run is its
        inverse.
        """
        policy = self._policy
        added = slow_share - 0.01  # by definition, without samples
        return max(1.0, rise / policy.median_rise, added / policy.added_slow)

    def _lower(self, level: _Level, rise: float) -> bool:
        """To half at most, and to the number that should be bearable if each costs the same; False
        if not even one is.
        """
        limit = self._policy.median_rise
        bearable = int(level.limit * limit / max(rise, 2 * limit))
        level.set_limit(max(1, bearable))
        return bearable > 0

    def _advance(self, level: _Level) -> None:
        grown = level.limit * _SLOW_START_FACTOR if level.slow_start else level.limit + 1
        level.set_limit(min(self._policy.max_samples, grown))

    def _first_rise(self, level: _Level, now_s: float) -> float | None:
        """Of the median time to first token; None where too few are known."""
        policy = self._policy
        quiet = self._firsts(level, now_s)
        recent = list(level.firsts_with)[-policy.kept_firsts :]
        if len(recent) < policy.first_window or len(quiet) < policy.quiet_first_window:
            return None
        return median(recent) / median(quiet) - 1.0

    def _slow_s(self, quiet: list[float]) -> float | None:
        if len(quiet) < self._policy.window:
            return None
        return sorted(quiet)[int(0.99 * (len(quiet) - 1))] * (1 + self._policy.tail_rise)

    def _settled(self, now_s: float) -> bool:
        return now_s - self._switched_s >= self._policy.settle_s

    def _intervals(self, level: _Level, now_s: float) -> list[float]:
        return _fresh(level.intervals_without, now_s - self._policy.stale_s)

    def _firsts(self, level: _Level, now_s: float) -> list[float]:
        return _fresh(level.firsts_without, now_s - self._policy.stale_firsts_s)


def _fresh(seen: deque[tuple[float, float]], since_s: float) -> list[float]:
    while seen and seen[0][0] < since_s:
        seen.popleft()
    return [seconds for _, seconds in seen]


def _level_of(users: int) -> int:
    """Numbers of users within a factor of two are one level."""
    return users.bit_length()  # _PAUSE for none
