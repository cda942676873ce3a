"""What is right, in a few lines of exact arithmetic each: the oracle of the property tests."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor


class Bucket:
    """*capacity* tokens, *rate* a second; times in ms."""

    def __init__(self, rate, capacity):
        self.rate, self.capacity, self.level, self.last = Fraction(rate), capacity, Fraction(capacity), None

    def ask(self, now, cost):
        passed = Fraction(0 if self.last is None else max(0, now - self.last), 1000)
        self.level, self.last = min(Fraction(self.capacity), self.level + self.rate * passed), now
        admitted = self.level >= cost
        self.level -= cost if admitted else 0
        return admitted, floor(self.level)

    def wait(self, cost):
        return ceil(max(Fraction(0), cost - self.level) / self.rate * 1000)


class Sliding:
    """*limit* in *length* ms: all of this window, and the share of the last one that is not over yet."""

    def __init__(self, limit, length):
        self.limit, self.length, self.counts = limit, length, {}

    def _used(self, now):
        number = now // self.length
        share = 1 - Fraction(now % self.length, self.length)
        return self.counts.get(number, 0) + self.counts.get(number - 1, 0) * share

    def ask(self, now, cost):
        admitted = self._used(now) + cost <= self.limit
        if admitted:
            number = now // self.length
            self.counts[number] = self.counts.get(number, 0) + cost
        return admitted, floor(self.limit - self._used(now))

    def wait(self, cost, now):
        later = now
        while self._used(later) + cost > self.limit:
            later += 1
        return later - now


class Fixed:
    """*limit* in each *length* ms, beginning at multiples of it."""

    def __init__(self, limit, length):
        self.limit, self.length, self.counts = limit, length, {}

    def ask(self, now, cost):
        number = now // self.length
        used = self.counts.get(number, 0)
        admitted = used + cost <= self.limit
        self.counts[number] = used + cost if admitted else used
        return admitted, self.limit - self.counts[number]
