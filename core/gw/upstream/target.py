"""Where a route sends: one upstream, or several by weight. The `Target` that its chain is run with."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import monotonic
from typing import Literal

from gw.failures import ResolveFailed, ResolveTimeout
from gw.filters import Attempt, Exchange
from gw.http.fields import cookie
from gw.limits import MAX_HELD_BODY
from gw.upstream.endpoints import EndpointSet, Member
from gw.upstream.forward import Forwarding
from gw.upstream.hedge import Hedged, HedgePolicy, Hedges
from gw.upstream.http1 import Http1Upstream, Patience
from gw.upstream.http2 import Http2Upstream
from gw.upstream.http2_stream import UpstreamStream
from gw.upstream.names import Names
from gw.upstream.pool import Pool
from gw.upstream.retry import Budget, Counted, RetryPolicy, Tries
from gw.upstream.timeouts import Allowance

__all__ = ["Leg", "Relaying", "RouteTarget", "claim"]


@dataclass(frozen=True, slots=True)
class Relaying:
    """When a response is held until it is complete, and a request (behaviour 11.3). Sizes are bytes."""

    buffering: Literal["auto", "always", "never"] = "auto"
    threshold: int = 262_144
    """The longest that `auto` holds."""
    h10: Literal["close", "buffer"] = "close"
    """How an HTTP/1.0 client gets a response of unknown length: its end is the connection's, or it is held."""
    request: bool = False
    """Whether a request's body is held."""

    def most(self, ex: Exchange, *, sending: bool) -> int:
        """Return how much of the response's body to hold; 0 to stream it.

        While its request is being sent, `auto` holds nothing: the client may go on only when it has read some.
        """
        response = ex.response
        assert response is not None
        length = response.content_length
        if self.h10 == "buffer" and length is None and ex.request.version == "1.0":
            return MAX_HELD_BODY
        if self.buffering == "always":
            return MAX_HELD_BODY
        if self.buffering == "auto" and not sending and length is not None and length <= self.threshold:
            media = response.headers.get("content-type", "").lower()
            return 0 if media.startswith("text/event-stream") else length
        return 0


class Leg:
    """One upstream as one route uses it. Without anything to be known of attempts, a first one costs nothing more."""

    __slots__ = (
        "_counted",
        "_watched",
        "allowance",
        "budget",
        "claims",
        "endpoints",
        "forwarding",
        "hedges",
        "hedging",
        "names",
        "patience",
        "policy",
        "pool",
        "relaying",
        "weight",
    )

    def __init__(
        self,
        pool: Pool,
        endpoints: EndpointSet,
        forwarding: Forwarding,
        patience: Patience,
        weight: int = 1,
        *,
        policy: RetryPolicy | None = None,
        budget: Budget | None = None,
        allowance: Allowance | None = None,
        names: Names | None = None,
        relaying: Relaying | None = None,
        hedging: HedgePolicy | None = None,
        hedges: Hedges | None = None,
    ) -> None:
        self.hedging, self.hedges = hedging, hedges or Hedges()
        self.pool, self.endpoints = pool, endpoints
        self.forwarding, self.patience, self.weight = forwarding, patience, weight
        self.names = names
        self.claims: Callable[[Exchange], bool] | None = None
        """Says which exchanges come here whatever the weights are."""
        self.relaying = relaying or Relaying()
        self.policy, self.budget, self.allowance = policy or RetryPolicy(), budget, allowance
        self._watched = policy is not None or allowance is not None or endpoints.watches
        self._counted = None if self._watched else budget

    def tries(self, ex: Exchange) -> Tries | Counted | None:
        """Return what accompanies the attempts of an exchange; `None` if nothing has to."""
        if not self._watched:
            return None if self._counted is None else Counted(self._counted)
        watcher = self.endpoints if self.endpoints.watches else None
        tries = Tries(self.policy, self.budget, self.pool.network.deadlines, watcher=watcher)
        return tries if self.allowance is None else tries.within(self.allowance, ex)


class RouteTarget:
    """Chooses an upstream and an endpoint for each attempt. An exchange stays with its last one's upstream."""

    __slots__ = ("_claiming", "_elsewhere", "_legs", "_only", "_sums", "buffers")

    def __init__(self, legs: Sequence[Leg], elsewhere: Mapping[str, Leg] | None = None) -> None:
        """*elsewhere* are the upstreams that a filter may send attempts to, whatever is chosen here."""
        self._elsewhere = elsewhere or {}
        self.buffers = any(leg.relaying.request for leg in legs)
        self._legs = tuple(legs)
        self._only = legs[0] if len(legs) == 1 else None
        self._claiming = tuple((leg.claims, leg) for leg in legs if leg.claims is not None)
        self._sums = list(accumulate(leg.weight for leg in legs))

    def choose(self, ex: Exchange, attempt: Attempt) -> Tries | Counted | None:
        attempt._tunnel = ex.request.upgrade == "websocket"
        if attempt.number > 1:
            leg: Leg = ex.attempts[-2]._place[0]
            self._place(attempt, leg, leg.endpoints.pick(ex, ex.attempts[:-1]))
            return None
        leg = self._only or self._one_of_several(ex)
        endpoints = leg.endpoints
        self._place(attempt, leg, endpoints.only or endpoints.pick(ex))
        return leg.tries(ex)

    def divert(self, ex: Exchange, attempt: Attempt, upstream: str) -> None:
        leg = self._elsewhere.get(upstream)
        if leg is None:
            raise LookupError(f"no upstream {upstream!r} was named in gw_upstreams for this route")
        attempt.endpoint = None
        self._place(attempt, leg, leg.endpoints.only or leg.endpoints.pick(ex))

    def _one_of_several(self, ex: Exchange) -> Leg:
        for claims, leg in self._claiming:
            if claims(ex):
                return leg
        return random.choices(self._legs, cum_weights=self._sums)[0]  # noqa: S311  # balance, not secrecy

    @staticmethod
    def _place(attempt: Attempt, leg: Leg, member: Member | None) -> None:
        attempt.upstream, attempt._place = leg.pool.name, (leg, member)
        if member is not None:
            attempt.endpoint = member.endpoint

    def holds(self, ex: Exchange, attempt: Attempt, *, sending: bool) -> int:
        relaying: Relaying = attempt._place[0].relaying
        return relaying.most(ex, sending=sending)

    async def sleep(self, seconds: float) -> None:
        await self._legs[0].pool.network.sleep(seconds)

    def take(self, attempt: Attempt) -> Http1Upstream | UpstreamStream | Hedged | None:
        leg, member = attempt._place
        if member is None:
            return None
        connection: Http1Upstream | Http2Upstream | None = leg.pool.take(member.origin, tunnel=attempt._tunnel)
        if connection is None:
            return None
        begun = connection.begin(attempt, leg.forwarding, leg.patience)
        return begun if leg.hedging is None else _hedged(begun, leg, attempt)

    async def connect(self, attempt: Attempt, *, fresh: bool) -> Http1Upstream | UpstreamStream | Hedged:
        begun = await self._connect(attempt, fresh=fresh)
        leg: Leg = attempt._place[0]
        return begun if leg.hedging is None else _hedged(begun, leg, attempt)

    async def _connect(self, attempt: Attempt, *, fresh: bool) -> Http1Upstream | UpstreamStream:
        leg, member = attempt._place
        if member is None:
            member = await _named(leg)
            self._place(attempt, leg, member)
        connection: Http1Upstream | Http2Upstream = await leg.pool.connect(
            member.origin, fresh=fresh, guard=attempt.guard, tunnel=attempt._tunnel
        )
        if connection.origin is not member.origin:  # the queue's, to another endpoint
            attempt._place = leg, leg.endpoints.of(connection.origin) or member
        return connection.begin(attempt, leg.forwarding, leg.patience)


def claim(header: str | None, name: str | None, value: str | None) -> Callable[[Exchange], bool]:
    """Return what tells whether an exchange has a *header*, or else a cookie called *name*, with *value* if that is given."""

    def claims(ex: Exchange) -> bool:
        headers = ex.request.headers
        found = headers.get(header) if header is not None else cookie(headers, name or "")
        return found is not None and (value is None or found == value)

    return claims


def _hedged(first: Http1Upstream | UpstreamStream, leg: Leg, attempt: Attempt) -> Hedged:
    assert leg.hedging is not None

    def another(ex: Exchange) -> _Second:
        return _Second(leg, attempt, ex)

    return Hedged(first, leg.hedging, leg.hedges, leg.budget, leg.pool.network.deadlines, another)


class _Second:
    """The attempt that may overtake *first*. It is not in the exchange's list: to filters both are one."""

    def __init__(self, leg: Leg, first: Attempt, ex: Exchange) -> None:
        self._leg, self._first, self._ex = leg, first, ex
        self.attempt = Attempt(first.number, leg.pool.name, monotonic())
        self.connection: Http1Upstream | UpstreamStream | None = None
        self._failure: tuple[Exception, float] | None = None
        """How the first failed, and after how many seconds."""
        self._target = RouteTarget((leg,))
        RouteTarget._place(self.attempt, leg, leg.endpoints.pick(ex, (first,)))
        self.attempt.guard = first.guard
        if leg.endpoints.watches:
            leg.endpoints.began(self.attempt)

    async def begin(self, body: bytes) -> Http1Upstream | UpstreamStream:
        leg, member = self.attempt._place
        taken = None if member is None else leg.pool.take(member.origin)
        if taken is None:
            connection = await self._target._connect(self.attempt, fresh=False)
        else:
            connection = taken.begin(self.attempt, leg.forwarding, leg.patience)
        self.connection = connection
        connection.start(self._ex, body, True)
        return connection

    def failed(self, failure: Exception, *, is_first: bool) -> None:
        endpoints = self._leg.endpoints
        if is_first:
            endpoints.unload(self._first)
            self._failure = failure, monotonic() - self._first._since
        elif endpoints.watches:
            endpoints.ended(self.attempt, failure)

    def wins(self) -> None:
        first, second, endpoints = self._first, self.attempt, self._leg.endpoints
        if endpoints.watches:
            if self._failure is None:
                endpoints.overtaken(first)
            else:
                endpoints.failed(first, *self._failure)
            endpoints.unload(first)
            first._load, second._load = second._load, None
        first.endpoint, first.reused, first._place = second.endpoint, second.reused, second._place
        first._since = second._since

    def loses(self, *, answered: bool) -> None:
        endpoints = self._leg.endpoints
        if endpoints.watches:
            if self.attempt._load is not None:
                endpoints.overtaken(self.attempt)
                endpoints.unload(self.attempt)
            if not answered and self._failure is None:
                endpoints.overtaken(self._first)


async def _named(leg: Leg) -> Member:
    """Look once more for an upstream's addresses, none of which is known; raises an `UpstreamFailure`."""
    names = leg.names
    if names is not None:
        await names.ask()
    if leg.endpoints.candidates:
        return leg.endpoints.candidates[0]
    errors = list(names.errors.values()) if names is not None else []
    if errors and all(error.late for error in errors):
        raise ResolveTimeout(str(errors[0]))
    raise ResolveFailed(str(errors[0]) if errors else f"upstream {leg.pool.name} has no address")
