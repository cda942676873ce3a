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

    __slots__ = ("_legs", "_only", "_sums")

    def __init__(self, legs: Sequence[Leg]) -> None:
        self._legs = tuple(legs)
        self._only = legs[0] if len(legs) == 1 else None
        self._sums = list(accumulate(leg.weight for leg in legs))

    def choose(self, ex: Exchange, attempt: Attempt) -> None:
        leg = self._only or random.choices(self._legs, cum_weights=self._sums)[0]  # noqa: S311  # balance, not secrecy
        origin = leg.pool.choose()
        attempt.upstream, attempt.endpoint, attempt._place = leg.pool.name, origin.endpoint, (leg, origin)

    def take(self, attempt: Attempt) -> Http1Upstream | None:
        leg, origin = attempt._place
        connection: Http1Upstream | None = leg.pool.take(origin)
        return None if connection is None else connection.begin(attempt, leg.forwarding, leg.patience)

    async def connect(self, attempt: Attempt, *, fresh: bool) -> Http1Upstream:
        leg, origin = attempt._place
        connection: Http1Upstream = await leg.pool.connect(origin, fresh=fresh)
        return connection.begin(attempt, leg.forwarding, leg.patience)
