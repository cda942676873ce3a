"""A second attempt beside a slow first one: whichever answers first is the answer, and the other is given up.

It is made where the connection of an attempt is, below the chain: to filters both are one attempt. Whether an attempt
that failed is followed by another is `gw.upstream.retry`'s business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol as Interface, TypeAlias

import anyio

from gw.filters import Attempt, Exchange, Response
from gw.limits import HEDGE_LATENCIES, MAX_HEDGED
from gw.net.deadlines import Deadlines
from gw.net.stream import Stream
from gw.upstream.http1 import Http1Upstream
from gw.upstream.http2_stream import UpstreamStream
from gw.upstream.retry import IDEMPOTENT, Budget
from gw.upstream.tunnel import Http2End

__all__ = ["HedgePolicy", "Hedged", "Hedges", "Second"]


_Carrier: TypeAlias = Http1Upstream | UpstreamStream


@dataclass(frozen=True, slots=True)
class HedgePolicy:
    """When a route hedges."""

    delay: float
    """Seconds that the first attempt may be without an answer."""
    percentile: int = 0
    """Instead, as long as this many percent of the answers take, once enough are known; 0 is the delay always."""


class Hedges:
    """What is known of one upstream: how long it takes to answer, and what came of second attempts."""

    __slots__ = ("_known", "_new", "_recent", "refused", "sent", "under_way", "won")

    def __init__(self) -> None:
        self.sent = self.won = self.refused = self.under_way = self._new = 0
        self._recent: deque[float] = deque(maxlen=HEDGE_LATENCIES)
        self._known: dict[int, float] = {}

    def delay(self, policy: HedgePolicy) -> float:
        """Return the seconds after which there may be a second attempt."""
        recent, wanted = self._recent, policy.percentile
        if not wanted or len(recent) < HEDGE_LATENCIES // 4:
            return policy.delay
        if wanted not in self._known:
            self._known[wanted] = sorted(recent)[min(len(recent) * wanted // 100, len(recent) - 1)]
        return self._known[wanted]

    def observe(self, seconds: float) -> None:
        """An attempt was answered after so long."""
        self._recent.append(seconds)
        self._new += 1
        if self._new == HEDGE_LATENCIES // 8:  # sorting them costs more than an exchange may
            self._new = 0
            self._known.clear()

    def admits(self, budget: Budget | None) -> bool:
        """Count a second attempt, or say that there may be none: they are retries to the *budget*."""
        if self.under_way >= MAX_HEDGED or (budget is not None and not budget.admits()):
            self.refused += 1
            return False
        self.sent += 1
        self.under_way += 1
        if budget is not None:
            budget.account.retries += 1
        return True

    def over(self, budget: Budget | None) -> None:
        self.under_way -= 1
        if budget is not None:
            budget.account.retries -= 1

    def __repr__(self) -> str:
        return f"<Hedges {self.won} of {self.sent} won, {self.under_way} under way>"


class Hedged:
    """The `Connection` of an attempt that a second one may overtake.

    *another* gets that one ready, without sending anything yet.
    """

    __slots__ = (
        "_another",
        "_body",
        "_budget",
        "_connection",
        "_deadlines",
        "_ex",
        "_hedges",
        "_is_finished",
        "_may",
        "_on_end",
        "_policy",
    )

    def __init__(
        self,
        first: _Carrier,
        policy: HedgePolicy,
        hedges: Hedges,
        budget: Budget | None,
        deadlines: Deadlines,
        another: Callable[[Exchange], Second],
    ) -> None:
        self._connection, self._another = first, another
        self._policy, self._hedges, self._budget, self._deadlines = policy, hedges, budget, deadlines
        self._may = self._is_finished = False
        self._on_end: Callable[[], None] | None = None

    # --- the request ------------------------------------------------------------------

    def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        request = ex.request
        self._ex = ex
        self._body = chunk
        self._may = end and not request.upgrade and request.method in IDEMPOTENT
        self._connection.start(ex, chunk, end)

    async def send(self, chunk: bytes, end: bool) -> None:
        await self._connection.send(chunk, end)

    def fail(self, error: Exception | None) -> None:
        self._connection.fail(error)

    # --- the response -----------------------------------------------------------------

    async def response(self) -> Response:
        if not self._may:
            return await self._connection.response()
        self._may = False
        began = monotonic()
        response = await self._in_time(self._hedges.delay(self._policy))
        if response is None:
            response = await (self._race() if self._hedges.admits(self._budget) else self._connection.response())
        if self._policy.percentile:
            self._hedges.observe(monotonic() - began)
        return response

    async def _in_time(self, seconds: float) -> Response | None:
        """Return the first attempt's answer if it comes in so many seconds."""
        scope = anyio.CancelScope()
        due = self._deadlines.due(scope.cancel)
        due.after(seconds)
        try:
            with scope:
                return await self._connection.response()
        finally:
            due.forget()
        return None

    async def _race(self) -> Response:
        """Begin another attempt; return the answer that comes first. If neither has one, raises what the first did."""
        first, second = self._connection, self._another(self._ex)
        won: list[tuple[_Carrier, Response]] = []
        failures: dict[bool, Exception] = {}
        self._ex.note("hedge", f"{second.attempt.endpoint}")
        try:
            async with anyio.create_task_group() as tasks:

                async def run(begin: Callable[[], Awaitable[_Carrier]], *, is_first: bool) -> None:
                    try:
                        connection = await begin()
                        response = await connection.response()
                    except Exception as error:  # noqa: BLE001  # raised below, if the other one has no answer either
                        failures[is_first] = error
                        self._drop(first if is_first else second.connection)
                        second.failed(error, is_first=is_first)
                    else:
                        if not won:
                            won.append((connection, response))
                            tasks.cancel_scope.cancel()

                async def at_hand() -> _Carrier:
                    return first

                tasks.start_soon(lambda: run(at_hand, is_first=True))
                tasks.start_soon(lambda: run(lambda: second.begin(self._body), is_first=False))
        finally:
            if won and won[0][0] is not first:
                self._hedges.won += 1
                self._connection, self._is_finished = won[0][0], False
                self._on_end = lambda: self._hedges.over(self._budget)
                second.wins()
                if True not in failures:
                    first.finish()
            else:
                if False not in failures:
                    self._drop(second.connection)
                second.loses(answered=bool(won))
                self._hedges.over(self._budget)
        if not won:
            raise failures[True]
        return won[0][1]

    def _drop(self, connection: _Carrier | None) -> None:
        """Nothing more comes of one of the two: it need not wait for the other to give its place free."""
        if connection is not None:
            connection.finish()
            if connection is self._connection:
                self._is_finished = True

    def take(self) -> tuple[bytes, bool] | None:
        return self._connection.take()

    async def receive(self) -> tuple[bytes, bool]:
        return await self._connection.receive()

    def hold(self) -> None:
        self._connection.hold()

    def tunnel(self) -> Stream | Http2End:
        return self._connection.tunnel()

    def finish(self) -> None:
        if not self._is_finished:
            self._connection.finish()
        if self._on_end is not None:
            self._on_end()
            self._on_end = None


class Second(Interface):
    """Another attempt, to another endpoint where there is one."""

    attempt: Attempt
    connection: _Carrier | None
    """Once there is one."""

    async def begin(self, body: bytes) -> _Carrier:
        """Connect and send the request; raises an `UpstreamFailure`."""

    def failed(self, failure: Exception, *, is_first: bool) -> None:
        """One of the two has failed, and its connection was finished; the other one may still be answered."""

    def wins(self) -> None:
        """It is what answers."""

    def loses(self, *, answered: bool) -> None:
        """The first is what is *answered*, or neither is. The connection was finished."""
