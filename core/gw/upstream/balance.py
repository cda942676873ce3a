"""Which of several endpoints is next: round robin, least requests, peak EWMA, ring hash, random.

An algorithm is told its candidates whenever they or their weights change, and is then asked once an attempt. Which
endpoints are candidates is the business of `gw.upstream.endpoints`. Nothing here waits or looks at a clock by itself.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from hashlib import blake2b
from heapq import heapify, heapreplace
from itertools import accumulate
from math import ceil, exp
from typing import Final, Protocol as Interface

from gw.filters import Exchange
from gw.http.fields import cookie
from gw.keys import Endpoint
from gw.limits import EWMA_DECAY, MAX_RING_STEPS, RING_POINTS

__all__ = ["Algorithm", "Balanced", "LeastRequests", "PeakEwma", "RandomChoice", "RingHash", "RoundRobin", "key_of"]

_GOLDEN: Final = 0.6180339887498949
"""Multiples of it, without their whole part, are spread as evenly as any, however many there are."""

_UNKNOWN: Final = 1e6
"""What an endpoint costs that has work but has answered nothing yet: more than any that has."""


class Balanced(Interface):
    """An endpoint, as an algorithm looks at it."""

    endpoint: Endpoint
    share: float
    """Its weight now, above 0: less than that of the configuration while it starts slowly."""
    active: int
    """Attempts under way, where they are counted."""
    latency: float
    """Seconds, as `PeakEwma` has found; 0 while nothing is known."""


class Algorithm(Interface):
    counts: bool
    """Whether it needs `Balanced.active` and *under_way*."""
    under_way: int
    """Attempts under way to all endpoints."""

    def join(self, members: Sequence[Balanced]) -> None:
        """There are these endpoints now, candidates or not; `set` follows."""

    def set(self, candidates: Sequence[Balanced]) -> None:
        """Choose among *candidates*, at least one, from now on."""

    def pick(self, ex: Exchange) -> Balanced: ...


class _Simple:
    """What most algorithms have in common: they look at the candidates only."""

    counts = False
    under_way = 0

    def join(self, members: Sequence[Balanced]) -> None:
        """Do nothing."""


class RoundRobin(_Simple):
    """One after the other, by weight, and smoothly: weights 2 and 1 give a b a, not a a b.

    Earliest deadline first: each pick moves an endpoint's own deadline by the inverse of its weight, so a pick
    costs the logarithm of their number. Without different weights it is a plain turn.
    """

    def __init__(self) -> None:
        self._turn = -1
        self._equal: list[Balanced] = []
        self._queue: list[tuple[float, int, Balanced]] = []
        self._next = 0

    def set(self, candidates: Sequence[Balanced]) -> None:
        self._equal, self._queue = [], []
        if len({each.share for each in candidates}) == 1:
            self._equal = list(candidates)
        else:
            # Spread over their periods, or all light ones would come one after the other.
            self._queue = [(number * _GOLDEN % 1 / each.share, number, each) for number, each in enumerate(candidates)]
            self._next = len(candidates)
            heapify(self._queue)

    def pick(self, ex: Exchange) -> Balanced:
        equal = self._equal
        if equal:
            self._turn = turn = (self._turn + 1) % len(equal)
            return equal[turn]
        queue = self._queue
        due, _, picked = queue[0]
        self._next += 1
        heapreplace(queue, (due + 1 / picked.share, self._next, picked))
        return picked


class _Sampled(_Simple):
    """Draws an endpoint at random, by weight."""

    def __init__(self) -> None:
        self._candidates: list[Balanced] = []
        self._sums: list[float] = []
        self._equal = True

    def set(self, candidates: Sequence[Balanced]) -> None:
        self._candidates = list(candidates)
        self._sums = list(accumulate(each.share for each in candidates))
        self._equal = len({each.share for each in candidates}) == 1

    def _draw(self) -> int:
        if self._equal:
            return int(random.random() * len(self._candidates))  # noqa: S311  # balance, not secrecy
        sums = self._sums
        return min(bisect_right(sums, random.random() * sums[-1]), len(sums) - 1)  # noqa: S311  # as above

    def _two(self) -> tuple[Balanced, Balanced]:
        """Draw two, different ones unless chance is against it: enough for the power of two choices."""
        candidates = self._candidates
        first = second = self._draw()
        if len(candidates) > 1:
            second = self._draw()
            if second == first:
                second = self._draw()
        return candidates[first], candidates[second]


class RandomChoice(_Sampled):
    """Any of them, by weight."""

    def pick(self, ex: Exchange) -> Balanced:
        return self._candidates[self._draw()]


class LeastRequests(_Sampled):
    """Of two at random, the one with less under way for its weight (Mitzenmacher's power of two choices)."""

    counts = True

    def pick(self, ex: Exchange) -> Balanced:
        one, other = self._two()
        return one if one.active / one.share <= other.active / other.share else other


class PeakEwma(_Sampled):
    """Of two at random, the one that promises to answer sooner: its latency, times what it has under way already."""

    counts = True

    def pick(self, ex: Exchange) -> Balanced:
        one, other = self._two()
        return one if _cost(one) <= _cost(other) else other

    @staticmethod
    def observed(latency: float, before: float, since: float) -> float:
        """Return the new average: a worse answer counts at once, a better one with the time that has passed (Finagle)."""
        if latency >= before:
            return latency
        weight = exp(-max(since, 0.0) / EWMA_DECAY)
        return before * weight + latency * (1 - weight)


def _cost(each: Balanced) -> float:
    latency = each.latency
    if not latency:
        return (_UNKNOWN * each.active) / each.share
    return latency * (each.active + 1) / each.share


class RingHash:
    """The same endpoint for the same key, as far as it has not too much to do (consistent hashing with bounded load).

    Each endpoint has points on a ring, by weight; a key belongs to the next point. An endpoint that is no candidate,
    or has more than *factor* times its share under way, is passed over: only its own keys move.
    """

    counts = True

    def __init__(self, key: Callable[[Exchange], str], factor: float) -> None:
        self._key, self._factor = key, factor
        self.under_way = 0
        self._hashes: list[bytes] = []
        self._owners: list[Balanced] = []
        self._candidates: list[Balanced] = []
        self._set: set[Balanced] = set()
        self._shares = 0.0

    def join(self, members: Sequence[Balanced]) -> None:
        total = sum(each.endpoint.weight for each in members)
        points = []
        for number, each in enumerate(members):
            count = max(1, round(RING_POINTS * len(members) * each.endpoint.weight / total))
            points += [(_hashed(f"{each.endpoint}#{at}"), number) for at in range(count)]
        points.sort()
        self._hashes = [point for point, _ in points]
        self._owners = [members[number] for _, number in points]

    def set(self, candidates: Sequence[Balanced]) -> None:
        self._candidates, self._set = list(candidates), set(candidates)
        self._shares = sum(each.share for each in candidates)

    def pick(self, ex: Exchange) -> Balanced:
        key, candidates, owners = self._key(ex), self._set, self._owners
        if not key:
            return self._candidates[int(random.random() * len(self._candidates))]  # noqa: S311  # as above
        at = bisect_right(self._hashes, _hashed(key))
        bound = self._factor * (self.under_way + 1) / self._shares
        for step in range(min(len(owners), MAX_RING_STEPS)):
            owner = owners[(at + step) % len(owners)]
            if owner in candidates and (not bound or owner.active < ceil(bound * owner.share)):
                return owner
        return min(self._candidates, key=lambda each: each.active / each.share)


def _hashed(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def key_of(template: str) -> Callable[[Exchange], str]:
    """Return what finds the key of an exchange: ``client_ip``, ``path``, ``header:x``, ``cookie:x``, ``param:x``, joined by ``+``.

    The key is empty where every part is.
    """
    parts = [_part(each) for each in template.split("+")]
    if len(parts) == 1:
        return parts[0]

    def joined(ex: Exchange) -> str:
        values = [part(ex) for part in parts]
        return "\0".join(values) if any(values) else ""

    return joined


def _part(text: str) -> Callable[[Exchange], str]:
    kind, _, name = text.partition(":")
    if kind == "client_ip":
        return lambda ex: ex.client.ip
    if kind == "path":
        return lambda ex: ex.request.path
    if kind == "header":
        return lambda ex: ex.request.headers.get(name, "")
    if kind == "param":
        return lambda ex: ex.params.get(name, "")
    return lambda ex: cookie(ex.request.headers, name) or ""
