"""How much is allowed, as integer arithmetic on three numbers a key. No clock, no table, no store in here.

The state of a key is ``(at, a, b)``; what they mean is each algorithm's. Times are integer milliseconds, and a request
costs *cost* tokens. The same arithmetic stands once more in `gw_ratelimit.script`, for Redis; tests hold both to one
result.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Final, Protocol, TypeAlias

from gw_ratelimit.limits import LEAST_LEVEL

__all__ = [
    "TOKEN",
    "Concurrency",
    "FixedWindow",
    "Left",
    "Limit",
    "Periods",
    "SlidingWindow",
    "State",
    "TokenBucket",
    "Verdict",
]

State: TypeAlias = tuple[int, int, int]

Verdict: TypeAlias = tuple[bool, int, int, int, int]
"""Whether the tokens are there, the state after that, and the time it is of, by the clock of the limit."""

Left: TypeAlias = tuple[int, int, int, int, int]
"""A state, the time it is of, and how many whole tokens are left in it."""

TOKEN: Final = 1_000_000
"""Units in a token. A rate of 0.001/s, the smallest, is then one unit a millisecond: nothing is ever rounded."""


class Limit(Protocol):
    """So much in such a time, for one key."""

    kind: str
    """What a state means; a zone whose kind changes begins anew."""
    steady: bool
    """Whether it reckons with a clock that only runs, rather than with the time of day."""
    fresh: State
    """Of a key that is seen for the first time."""
    limit: int
    """Tokens, as the client is told."""

    def take(self, at: int, a: int, b: int, now: int, cost: int) -> Verdict:
        """Return whether *cost* tokens are there, and the state after that: charged if they are, else only up to date."""

    def charge(self, at: int, a: int, b: int, now: int, cost: int) -> State:
        """Return the state after *cost* tokens are taken, whether they are there or not."""

    # What follows is asked about a state as `take` or `charge` returned it for *now*.

    def remaining(self, at: int, a: int, b: int, now: int) -> int:
        """Return how many whole tokens are left."""

    def wait(self, at: int, a: int, b: int, now: int, cost: int) -> int:
        """Return the milliseconds until *cost* tokens are there; 0 if they are."""

    def lasts(self, at: int, a: int, b: int, now: int) -> int:
        """Return the milliseconds after which the state says no more than `fresh` does."""

    def window(self, now: int) -> int:
        """Return the seconds that the limit is for, as the client is told."""


class Concurrency:
    """So many requests under way, for one key. It has no state that time changes."""

    __slots__ = ("kind", "limit")

    def __init__(self, limit: int) -> None:
        self.kind, self.limit = "concurrency", limit


class TokenBucket:
    """*capacity* tokens at most, *rate* of them a second (behaviour 14.1); the same as GCRA. *a* is the level, *at* its time.

    The refill is ``trunc(rate * 1000)`` thousandths of a token a second, lazily and with fractions kept. Another rate
    or capacity counts from the next request of a key; a capacity that shrinks takes the tokens above it.
    """

    __slots__ = ("_refill", "_size", "_window", "fresh", "kind", "limit", "steady")

    def __init__(self, rate: float, capacity: int) -> None:
        exact = Fraction(str(rate))
        self.kind, self.steady, self.limit = "token_bucket", True, capacity
        self._refill = int(exact * 1000)
        """Units a millisecond."""
        self._size = capacity * TOKEN
        self._window = max(1, -(-Fraction(capacity) // exact))
        self.fresh: State = (0, self._size, 0)

    @property
    def numbers(self) -> tuple[int, int]:
        """What the arithmetic goes by: the bucket's size, and what flows into it in a millisecond."""
        return self._size, self._refill

    def take(self, at: int, a: int, b: int, now: int, cost: int) -> Verdict:
        # A clock that went back: what ran since then is not known, and from here on it is counted.
        level = a + self._refill * (now - at) if now > at else a
        level = min(level, self._size)
        asked = cost * TOKEN
        if asked > level:
            return False, now, level, 0, now
        return True, now, level - asked, 0, now

    def charge(self, at: int, a: int, b: int, now: int, cost: int) -> State:
        level = min(self._size, a + self._refill * max(0, now - at))
        return now, max(LEAST_LEVEL, level - cost * TOKEN), 0

    def remaining(self, at: int, a: int, b: int, now: int) -> int:
        return a // TOKEN if a > 0 else 0

    def wait(self, at: int, a: int, b: int, now: int, cost: int) -> int:
        short = min(cost * TOKEN, self._size) - a
        return -(-short // self._refill) if short > 0 else 0

    def lasts(self, at: int, a: int, b: int, now: int) -> int:
        return -((a - self._size) // self._refill)

    def window(self, now: int) -> int:
        return self._window


class SlidingWindow:
    """*limit* tokens in any *length* ms, on the assumption that those of the last window were spread evenly.

    Two counters in place of a log of all requests: *a* of the window *at* (its number), *b* of the one before, which
    counts by the share of it that still lies within *length* from now.
    """

    __slots__ = ("_length", "fresh", "kind", "limit", "steady")

    def __init__(self, limit: int, length: int) -> None:
        self.kind, self.steady, self.limit = f"sliding_window/{length}", True, limit
        self._length = length
        self.fresh: State = (0, 0, 0)

    @property
    def numbers(self) -> tuple[int, int]:
        return self.limit, self._length

    def _moved(self, at: int, a: int, b: int, now: int) -> State:
        number = now // self._length
        if number == at:
            return at, a, b
        if number == at + 1:
            return number, 0, a
        if number == at - 1:  # the clock went back by a little
            return at, a, b
        return number, 0, 0

    def _used(self, at: int, a: int, b: int, now: int) -> int:
        """Return what counts now, in tokens times *length*."""
        left = self._length - now % self._length if now // self._length == at else self._length
        return a * self._length + b * left

    def take(self, at: int, a: int, b: int, now: int, cost: int) -> Verdict:
        at, a, b = self._moved(at, a, b, now)
        if self._used(at, a, b, now) + cost * self._length > self.limit * self._length:
            return False, at, a, b, now
        return True, at, a + cost, b, now

    def charge(self, at: int, a: int, b: int, now: int, cost: int) -> State:
        at, a, b = self._moved(at, a, b, now)
        return at, a + cost, b

    def remaining(self, at: int, a: int, b: int, now: int) -> int:
        return max(0, self.limit - -(-self._used(at, a, b, now) // self._length))

    def wait(self, at: int, a: int, b: int, now: int, cost: int) -> int:
        length, cost = self._length, min(cost, self.limit)
        if self._used(at, a, b, now) + cost * length <= self.limit * length:
            return 0
        free = self.limit - a - cost
        if free >= 0:  # in this window, as the last one slides out; b > free here
            return at * length + length - free * length // b - now
        # In the next one, of which this is then the last.
        return (at + 1) * length + max(0, length - (self.limit - cost) * length // a) - now

    def lasts(self, at: int, a: int, b: int, now: int) -> int:
        return (at + 2) * self._length - now

    def window(self, now: int) -> int:
        return -(-self._length // 1000)


Periods: TypeAlias = Callable[[int], tuple[int, int]]
"""From the time of day, in ms since 1970, to the beginning and the end of the period it is in."""


class FixedWindow:
    """*limit* tokens in each period of the clock or the calendar. *a* is what was used in the period that began *at*."""

    __slots__ = ("fresh", "kind", "limit", "periods", "steady")

    def __init__(self, limit: int, kind: str, periods: Periods) -> None:
        self.kind, self.steady, self.limit, self.periods = kind, False, limit, periods
        self.fresh: State = (0, 0, 0)

    def _moved(self, at: int, a: int, now: int) -> tuple[int, int]:
        begin, end = self.periods(now)
        if begin > at:
            return begin, 0
        # Another worker's clock is a little ahead: both count in its period, or neither limit would ever be reached.
        # More than a whole period ahead, the clock was wrong when that was written.
        return (begin, 0) if at - begin > end - begin else (at, a)

    def take(self, at: int, a: int, b: int, now: int, cost: int) -> Verdict:
        at, a = self._moved(at, a, now)
        return (True, at, a + cost, 0, now) if a + cost <= self.limit else (False, at, a, 0, now)

    def charge(self, at: int, a: int, b: int, now: int, cost: int) -> State:
        at, a = self._moved(at, a, now)
        return at, a + cost, 0

    def remaining(self, at: int, a: int, b: int, now: int) -> int:
        return max(0, self.limit - a)

    def wait(self, at: int, a: int, b: int, now: int, cost: int) -> int:
        return 0 if a + min(cost, self.limit) <= self.limit else self.periods(at)[1] - now

    def lasts(self, at: int, a: int, b: int, now: int) -> int:
        return self.periods(at)[1] - now

    def window(self, now: int) -> int:
        begin, end = self.periods(now)
        return -(-(end - begin) // 1000)
