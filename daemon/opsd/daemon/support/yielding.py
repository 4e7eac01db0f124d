"""How many samples of a run may be in the engine beside the users' completions.

Pure: the time comes in as a number. The engine's priorities alone keep users first in its queue,
but every sample that runs beside them makes its steps longer. So what users see while samples run
is compared with what they see while none do, for each number of users apart, and the number of
samples follows the ratio: up by one while nothing shows, down by half when something does.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from statistics import median

_MAX_KEPT = 512
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
    tail_window: int = 128  # observations before the tail says anything, and before more is tried
    window: int = 32  # observations between decisions
    quiet_window: int = 64  # observations without samples that are enough to compare with
    first_window: int = 4  # the same of times to first token, which are rarer
    quiet_first_window: int = 8
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
    run_s: float = 5.0  # with samples, before it is learnt anew
    stale_s: float = 120.0  # older observations no longer count,
    stale_firsts_s: float = 1800.0  # nor older times to first token, which are rarer
    first_backoff_s: float = 1.0  # doubles with every attempt that users noticed
    longest_backoff_s: float = 60.0


@dataclass(frozen=True, slots=True)
class ArrivalTag:
    """Under what conditions a user arrived."""

    level: int  # of the users before this one
    quiet: bool  # no sample was in the engine
    counts: bool  # for long enough


@dataclass(slots=True)
class _Level:
    """What is known about one number of users (none, 1, 2-3, 4-7, …)."""

    limit: int
    intervals_without: deque[tuple[float, float]] = field(
        default_factory=lambda: deque(maxlen=_MAX_KEPT)
    )  # (when, seconds a token)
    firsts_without: deque[tuple[float, float]] = field(
        default_factory=lambda: deque(maxlen=_MAX_KEPT)
    )
    intervals_with: list[float] = field(default_factory=list)
    firsts_with: list[float] = field(default_factory=list)
    slow_with: deque[bool] = field(
        default_factory=lambda: deque(maxlen=_MAX_KEPT)
    )  # since the limit last changed
    slow_s: float | None = None  # an interval above it is a slow one
    measuring_until_s: float | None = None  # None: samples may run
    running_since_s: float | None = None
    blocked_until_s: float = 0.0
    backoff_s: float = 0.0
    slow_start: bool = True

    def forget_with(self) -> None:
        self.intervals_with.clear()
        self.firsts_with.clear()


class YieldController:
    """Says how many samples may run now; is told what users see and how many samples do run."""

    def __init__(self, policy: YieldPolicy) -> None:
        self._policy = policy
        self._levels: defaultdict[int, _Level] = defaultdict(lambda: _Level(limit=1))
        self._levels[_PAUSE] = _Level(limit=min(policy.pause_samples, policy.max_samples))
        self._levels[_ALONE] = _Level(
            limit=policy.max_samples, firsts_without=self._levels[_PAUSE].firsts_without
        )
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
        level = _level_of(users - 1) or self._idle_level(now_s)
        self._users = users
        return ArrivalTag(level, self._running == 0, self._settled(now_s))

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
        level = self._levels[tag.level]
        if tag.quiet:
            # Samples that began while the user waited would be counted as none.
            if self._switched_s <= now_s - seconds:
                level.firsts_without.append((now_s, seconds))
            return
        level.firsts_with.append(seconds)
        self._decide(level, now_s)

    def tokens(self, now_s: float, num_tokens: int, seconds: float) -> None:
        """Of one user's completion; ``seconds`` is what they took together."""
        began_s = now_s - seconds
        if num_tokens < 1 or seconds <= 0.0 or began_s < self._switched_s + self._policy.settle_s:
            return
        level = self._levels[_level_of(self._users)]
        each_s = seconds / num_tokens
        if self._running == 0:
            level.intervals_without.append((now_s, each_s))
            return
        level.intervals_with.append(each_s)
        level.slow_with.append(level.slow_s is not None and each_s > level.slow_s)
        self._decide(level, now_s)

    # What follows

    def allowed(self, now_s: float) -> int:
        """Samples that may be in the engine now; more than that are to be taken out."""
        policy = self._policy
        if self._users:
            level = self._levels[_level_of(self._users)]
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
        if quiet or now_s < level.blocked_until_s:
            return 0
        if now_s - self._ramped_s >= policy.ramp_s:
            self._ramp = min(policy.max_samples, max(1, self._ramp) * 2)
            self._ramped_s = now_s
        return min(self._ramp, level.limit)

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
        """The limit beside users, or 0 while it is blocked or learns what they see without
        samples.
        """
        policy = self._policy
        if now_s < level.blocked_until_s:
            return 0
        if level.measuring_until_s is not None:
            enough = len(self._intervals(level, now_s)) >= policy.quiet_window
            if not enough and now_s < level.measuring_until_s:
                return 0
            level.measuring_until_s, level.running_since_s = None, now_s
            level.slow_s = self._slow_s(level, now_s)
        if level.running_since_s is None:
            return self._measure(level, now_s)
        if self._running and now_s - level.running_since_s > policy.run_s:
            return self._measure(level, now_s)
        return level.limit

    def _is_idle_level(self, level: _Level) -> bool:
        return level is self._levels[_PAUSE] or level is self._levels[_ALONE]

    def _measure(self, level: _Level, now_s: float) -> int:
        level.measuring_until_s = now_s + self._policy.measure_s
        level.intervals_without.clear()
        level.forget_with()
        return 0

    def _decide(self, level: _Level, now_s: float) -> None:
        policy = self._policy
        enough_intervals = len(level.intervals_with) >= policy.window
        enough_firsts = len(level.firsts_with) >= policy.first_window
        if not enough_intervals and not enough_firsts:
            return
        rise = self._rise(level, now_s)
        if rise is None:
            level.forget_with()
            return
        judged = len(level.slow_with) >= policy.tail_window or self._is_idle_level(level)
        slow = judged and sum(level.slow_with) > policy.tail_share * len(level.slow_with)
        if rise > policy.median_rise or slow:
            self._retreat(level, now_s, rise)
        elif judged and rise <= policy.median_rise / 2:
            self._advance(level)
        level.forget_with()

    def _rise(self, level: _Level, now_s: float) -> float | None:
        """The worse of both medians' rises; None where there is nothing to compare with."""
        policy = self._policy
        rises = []
        quiet = self._intervals(level, now_s)
        if min(len(level.intervals_with), len(quiet)) >= policy.window // 2:
            rises.append(median(level.intervals_with) / median(quiet) - 1.0)
        quiet = self._firsts(level, now_s)
        enough = len(level.firsts_with) >= policy.first_window
        if enough and len(quiet) >= policy.quiet_first_window:
            rises.append(median(level.firsts_with) / median(quiet) - 1.0)
        return max(rises) if rises else None

    def _slow_s(self, level: _Level, now_s: float) -> float | None:
        quiet = sorted(self._intervals(level, now_s))
        if len(quiet) < self._policy.window:
            return None
        return quiet[int(0.99 * (len(quiet) - 1))] * (1 + self._policy.tail_rise)

    def _retreat(self, level: _Level, now_s: float, rise: float) -> None:
        """To half at most, and to the number that should be bearable if each costs the same."""
        policy = self._policy
        level.slow_start = False
        level.slow_with.clear()
        bearable = int(level.limit * policy.median_rise / max(rise, 2 * policy.median_rise))
        level.limit = max(1, bearable)
        if bearable:
            return
        level.backoff_s = min(
            max(policy.first_backoff_s, 2 * level.backoff_s), policy.longest_backoff_s
        )
        level.blocked_until_s = now_s + level.backoff_s

    def _advance(self, level: _Level) -> None:
        level.backoff_s = 0.0
        level.slow_with.clear()
        grown = level.limit * _SLOW_START_FACTOR if level.slow_start else level.limit + 1
        level.limit = min(self._policy.max_samples, grown)

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
