"""The filter: it asks a breaker for each attempt, answers when that says no, and reports once what became of it.

Success is told when the whole response has passed, a failing status already at its head. Exactly one report follows
each admission: whichever hook knows first gives it, and takes the call off the exchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic_ns
from typing import Final, TypeAlias

from gw import Attempt, Elsewhere, Exchange, Filter, Key, Order, Outcome, Reply, Response
from gw_breaker.breakers import Group
from gw_breaker.fallback import Instead
from gw_breaker.machine import SECOND, Breaker, Rejection, State, Verdict
from gw_breaker.verdicts import DRAINED, Verdicts

__all__ = ["BreakerFilter", "Guard"]

BODY: Final = b"Upstream circuit breaker is open; please retry later.\n"
"""Behaviour 11.4."""


class Guard:
    """What stands before one upstream, as one route sees it."""

    __slots__ = ("elsewhere", "group", "instead", "verdicts")

    def __init__(self, group: Group, verdicts: Verdicts, instead: Instead | None = None, elsewhere: str = "") -> None:
        self.group, self.verdicts, self.instead = group, verdicts, instead
        self.elsewhere = elsewhere
        """The upstream that is asked instead."""


_CLOSED: Final = State.CLOSED
_SUCCESS: Final = Verdict.SUCCESS
_UPSTREAM: Final = Outcome.UPSTREAM
_CANCELLED: Final = Outcome.CANCELLED
_RESET: Final = Outcome.RESET
"""By themselves: to look a member up in its class costs as much as to compare it, for each attempt."""

Call: TypeAlias = tuple[Breaker, int, Guard, Attempt]
"""An attempt that was admitted: by whom, with what token."""

CALL: Final[Key[Call | None]] = Key("breaker.call")


class BreakerFilter(Filter):
    """Breakers of the upstreams of one route, by name of the upstream."""

    name = "breaker"
    order = Order(unique=True)

    def __init__(self, guards: Mapping[str, Guard]) -> None:
        self._guards = guards

    async def on_upstream_request(self, ex: Exchange, attempt: Attempt) -> Reply | Elsewhere | None:
        if attempt.number > 1 and (call := ex.get(CALL, None)) is not None:
            _settle(ex, call)  # somebody wanted a retry although the answer was no failure
        guard = self._guards.get(attempt.upstream)
        if guard is None:
            return None
        breaker = guard.group.only or guard.group.of(attempt.endpoint)
        token = breaker.generation if breaker.state is _CLOSED else breaker.admit(monotonic_ns())
        if token.__class__ is not int:
            return self._elsewhere(ex, attempt, guard) or _turned_away(ex, attempt, guard, token)  # type: ignore[arg-type]
        ex[CALL] = (breaker, token, guard, attempt)
        attempt.guard = breaker
        return None

    def _elsewhere(self, ex: Exchange, attempt: Attempt, guard: Guard) -> Elsewhere | None:
        """Send the attempt to the other upstream, if there is one and its own breaker admits it. From there it goes no further."""
        if not guard.elsewhere:
            return None
        other = self._guards.get(guard.elsewhere)
        if other is not None and (breaker := other.group.only) is not None:  # of its endpoints none is chosen yet
            token = breaker.admit(monotonic_ns())
            if not isinstance(token, int):
                return None
            ex[CALL] = (breaker, token, other, attempt)
            attempt.guard = breaker
        ex.note("sent elsewhere", guard.elsewhere)
        return Elsewhere(guard.elsewhere)

    async def on_upstream_response(self, ex: Exchange, attempt: Attempt) -> None:
        guard, response = self._guards.get(attempt.upstream), attempt.response
        if guard is None or response is None:
            return
        verdict = guard.verdicts.of_status(response.status)
        if verdict is _SUCCESS and (response.content_length is not None or not _has_no_end(response)):
            return
        call = ex.get(CALL, None)
        if call is not None:
            _report(ex, call, verdict)

    async def on_upstream_error(self, ex: Exchange, attempt: Attempt, error: Exception) -> Reply | None:
        call = ex.get(CALL, None)
        if call is None:
            return None
        breaker, _, guard, _ = call
        _report(ex, call, guard.verdicts.of_error(error))
        if getattr(error, "reason", "") == DRAINED:
            rejection = breaker.turn_away(monotonic_ns())
            if rejection is not None:
                return _turned_away(ex, attempt, guard, rejection)
        return None

    def on_complete(self, ex: Exchange) -> None:
        call = ex.get(CALL, None)
        if call is None:
            return
        breaker, token, guard, attempt = call
        response = attempt.response
        if ex.outcome is _UPSTREAM and response is not None and guard.verdicts.simple and not breaker.rules.slow_call:
            # It was delivered whole, and its status was no failure, or its head would have been reported.
            breaker.report(token, guard.verdicts.of_status(response.status), monotonic_ns())
        else:
            _settle(ex, call)


def _settle(ex: Exchange, call: Call) -> None:
    """Report an admission whose attempt is over, by what the attempt and the exchange came to."""
    _, _, guard, attempt = call
    if attempt.error is not None:
        verdict = guard.verdicts.of_error(attempt.error)
    elif attempt.response is None or ex.outcome is _CANCELLED or ex.outcome is _RESET:
        verdict = Verdict.NEUTRAL  # the client, or another filter, ended it
    else:
        verdict = guard.verdicts.of_whole(attempt.response)
    _report(ex, call, verdict)


def _report(ex: Exchange, call: Call, verdict: Verdict) -> None:
    breaker, token, _, attempt = call
    ex[CALL] = None
    took = 0
    if breaker.rules.slow_call and attempt.answered:
        took = int((attempt.answered - attempt.started) * SECOND)
    breaker.report(token, verdict, monotonic_ns(), took)


def _has_no_end(response: Response) -> bool:
    """Tell whether it is an event stream or a WebSocket: that it began is all the success it will have for hours."""
    return response.status == 101 or response.headers.get("content-type", "").lower().startswith("text/event-stream")


def _turned_away(ex: Exchange, attempt: Attempt, guard: Guard, rejection: Rejection) -> Reply:
    ex.note("turned away", rejection.reason)
    state, retry_after = rejection.state.value, str(rejection.retry_after)
    if guard.instead is not None:
        reply = guard.instead.of(ex, (("retry-after", retry_after), ("x-circuit-breaker", state)))
        if reply is not None:
            return reply
    headers = (
        ("content-type", "text/plain"),
        ("retry-after", retry_after),
        ("x-circuit-breaker", state),
        ("x-upstream-host", str(attempt.endpoint or attempt.upstream)),
    )
    return Reply(503, BODY, headers, f"breaker.{rejection.reason}", close=True)
