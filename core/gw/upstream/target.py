"""Where a route sends: one upstream, or several by weight. The `Target` that its chain is run with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate

from gw.filters import Attempt, Exchange
from gw.upstream.forward import Forwarding
from gw.upstream.http1 import Http1Upstream, Patience
from gw.upstream.pool import Pool

__all__ = ["Leg", "RouteTarget"]


class Leg:
    """One upstream as one route uses it."""

    __slots__ = ("forwarding", "patience", "pool", "weight")

    def __init__(self, pool: Pool, forwarding: Forwarding, patience: Patience, weight: int = 1) -> None:
        self.pool, self.forwarding, self.patience, self.weight = pool, forwarding, patience, weight


class RouteTarget:
    """Chooses an upstream and an endpoint for each attempt."""

    __slots__ = ("_legs", "_names", "_only", "_sums")

    def __init__(self, legs: Sequence[Leg]) -> None:
        self._legs = tuple(legs)
        self._only = legs[0] if len(legs) == 1 else None
        self._sums = list(accumulate(leg.weight for leg in legs))
        self._names = {leg.pool.name: leg for leg in legs}

    def choose(self, ex: Exchange, attempt: Attempt) -> None:
        leg = self._only or random.choices(self._legs, cum_weights=self._sums)[0]  # noqa: S311  # balance, not secrecy
        attempt.upstream = leg.pool.name
        attempt.endpoint = leg.pool.choose()

    def take(self, attempt: Attempt) -> Http1Upstream | None:
        leg = self._only or self._names[attempt.upstream]
        assert attempt.endpoint is not None
        connection = leg.pool.take(attempt.endpoint)
        return None if connection is None else connection.begin(attempt, leg.forwarding, leg.patience)

    async def connect(self, attempt: Attempt, *, fresh: bool) -> Http1Upstream:
        leg = self._only or self._names[attempt.upstream]
        assert attempt.endpoint is not None
        connection = await leg.pool.connect(attempt.endpoint, fresh=fresh)
        return connection.begin(attempt, leg.forwarding, leg.patience)
