"""Every breaker and bulkhead of one gateway: whose each is, what happened to it, and how it is set by hand.

They outlive reloads. A configuration plans first which breakers there are to be, and by what rules; only when it has
taken over are those that exist changed, and those that nobody wants any more forgotten. Exchanges that began before
keep the breaker they were admitted by.

What a breaker does is the business of `gw_breaker.machine`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from random import getrandbits
from time import monotonic_ns, time
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from gw import Context, Endpoint, Figures
from gw_breaker import settings
from gw_breaker.board import Board, Busy
from gw_breaker.bulkhead import Bulkhead
from gw_breaker.counts import Counts
from gw_breaker.limits import MAX_ENDPOINTS, MAX_HISTORY, MAX_REASON
from gw_breaker.machine import SECOND, Breaker, Rules, State, Transition

__all__ = ["Breakers", "Group", "Plan", "Scope", "breakers_of"]

log = logging.getLogger("gw.breaker")

_WHY: Final = {
    "consecutive": "too many failures in a row",
    "rate": "too large a share of failures",
    "slow_rate": "too large a share of slow calls",
    "open_elapsed": "its time was up",
    "probe_success": "enough probes succeeded",
    "probe_fail": "a probe failed",
    "half_open_elapsed": "the time for probes was up",
    "dry_run_disabled": "its dry run is over",
    "machine": "another worker's did",
    "manual": "by hand",
    "reset": "reset by hand",
}


class Scope(NamedTuple):
    """Whose a group of breakers is."""

    upstream: str
    route: str = ""
    """Empty where all routes to the upstream share it."""
    per_endpoint: bool = False
    machine: bool = False
    """Whether the workers of the machine share the verdict."""

    def __str__(self) -> str:
        return f"{self.upstream} for {self.route}" if self.route else self.upstream


class Watched:
    """A breaker with its name and its history; it logs and counts, and has its upstream's queue drained when it opens."""

    __slots__ = ("_board", "_counts", "_heard", "breaker", "group", "history", "name")

    def __init__(self, name: str, group: Group, counts: Counts, board: Board | None = None) -> None:
        self.name, self.group = name, group
        self._counts, self._board = counts, board
        self._heard = 0
        """The number of what was last said about it on the board."""
        self.breaker = Breaker(group.rules, self, None if board is None else self._claim)
        self.history: deque[tuple[float, Transition]] = deque(maxlen=MAX_HISTORY)

    def moved(self, transition: Transition) -> None:
        self.history.append((time(), transition))
        self._counts.moved(self.name, transition)
        after, why = transition.after, _WHY[transition.trigger]
        if transition.reason:
            why = f"{why}: {transition.reason}"
        level = logging.WARNING if after is State.OPEN else logging.INFO
        dry = " (dry run: nobody is turned away)" if self.breaker.rules.dry_run else ""
        log.log(level, "circuit breaker %s: %s to %s, %s%s", self.name, transition.before.value, after.value, why, dry)
        if after is not State.HALF_OPEN and transition.trigger != "machine":
            self._tell()
        if after is State.OPEN:
            self.group.opened(self.breaker)

    def _tell(self) -> None:
        """Tell the other workers what became of it; that it is half-open they were told by who claimed it."""
        breaker = self.breaker
        if self._board is not None:
            with _by_itself(self.name):
                self._heard = self._board.write(
                    self.name, breaker.state, breaker.open_until, breaker.trips, held=breaker.held
                )

    def _claim(self, now: int, until: int) -> bool:
        assert self._board is not None
        self.listen(now)
        if self.breaker.state is not State.OPEN or self.breaker.held or now < self.breaker.open_until:
            return False  # somebody has just said so
        with _by_itself(self.name):
            number = self._board.claim(self.name, self._heard, until, self.breaker.trips)
            self._heard = number or self._heard
            return number > 0
        return True

    def listen(self, now: int) -> None:
        """Do as another worker's breaker did, if one did anything."""
        if self._board is None:
            return
        with _by_itself(self.name):
            row = self._board.read(self.name)
            if row.number > self._heard:
                self._heard = row.number
                self.breaker.follow(row.state, row.until, row.trips, now, held=row.held)

    def forget(self) -> None:
        """Nobody wants it any more; one of that name begins as a new one."""
        if self._board is not None:
            with _by_itself(self.name):
                self._board.write(self.name, State.CLOSED, 0, 0, held=False)

    def rejected(self, reason: str, first: bool) -> None:
        self._counts.rejected(self.name, reason)
        log.log(logging.INFO if first else logging.DEBUG, "circuit breaker %s: turned away, %s", self.name, reason)


@contextmanager
def _by_itself(name: str) -> Iterator[None]:
    """Go on without the other workers where they cannot be told."""
    try:
        yield
    except Busy as error:
        log.warning("circuit breaker %s goes by itself: the board of the workers cannot be used, %s", name, error)


class Group:
    """The breakers of one scope: one, or one for each endpoint that was asked for admission."""

    __slots__ = ("_counts", "_drain", "_each", "only", "rules", "scope")

    only: Breaker | None
    """The one that there is, unless each endpoint has its own."""

    def __init__(
        self,
        scope: Scope,
        rules: Rules,
        drain: Callable[[str, Breaker], None],
        counts: Counts,
        board: Board | None = None,
    ) -> None:
        self.scope, self.rules = scope, rules
        self._drain, self._counts = drain, counts
        self._each: dict[Endpoint | None, Watched] = {}
        if scope.per_endpoint:
            self.only = None
        else:
            whole = self._each[None] = Watched(str(scope), self, counts, board)
            self.only = whole.breaker

    def of(self, endpoint: Endpoint | None) -> Breaker:
        """Return the breaker that is asked about *endpoint*."""
        if self.only is not None:
            return self.only
        watched = self._each.get(endpoint)
        if watched is None:
            if len(self._each) >= MAX_ENDPOINTS:
                del self._each[next(iter(self._each))]
            watched = self._each[endpoint] = Watched(f"{self.scope} at {endpoint}", self, self._counts)
        return watched.breaker

    def watched(self) -> Iterable[Watched]:
        return self._each.values()

    def apply(self, rules: Rules, now: int) -> None:
        self.rules = rules
        for watched in self.watched():
            watched.breaker.apply(rules, now)

    def opened(self, breaker: Breaker) -> None:
        """One of them opened: there is no point in waiting for a connection for those that asked it."""
        if not (self.rules.dry_run or self.rules.shadow):
            self._drain(self.scope.upstream, breaker)


class Plan:
    """The breakers and bulkheads that one configuration wants."""

    __slots__ = ("bulkheads", "wanted")

    def __init__(self) -> None:
        self.wanted: dict[Scope, Rules] = {}
        self.bulkheads: dict[Scope, settings.Bulkhead] = {}


class Breakers:
    """All breakers of a gateway, by scope; what is asked and set from outside goes by name."""

    def __init__(self, figures: Figures, board: Board | None = None) -> None:
        self._counts, self._board = Counts(figures, self), board
        self._seen = 0
        """What was said on the board when it was last looked at."""
        self._groups: dict[Scope, Group] = {}
        self._bulkheads: dict[Scope, Bulkhead] = {}
        self._plans: WeakKeyDictionary[Context, Plan] = WeakKeyDictionary()
        self._serving: list[Context] = []
        """Of the configurations that have exchanges: the newest, and those that still drain."""

    # --- configurations ----------------------------------------------------------

    def plan(self, ctx: Context) -> Plan:
        """Return the plan of the configuration that *ctx* belongs to."""
        plan = self._plans.get(ctx)
        if plan is None:
            plan = self._plans[ctx] = Plan()
        return plan

    def want(self, ctx: Context, scope: Scope, rules: Rules) -> Group:
        """Return the group of *scope*, made if need be; *rules* hold for one that exists when *ctx* takes over."""
        self.plan(ctx).wanted[scope] = rules
        group = self._groups.get(scope)
        if group is None:
            board = self._board if scope.machine else None
            group = self._groups[scope] = Group(scope, rules, self._drain, self._counts, board)
            self._seen = 0  # what was said about it before counts, too
        return group

    def want_bulkhead(self, ctx: Context, scope: Scope, bounds: settings.Bulkhead) -> Bulkhead:
        """The same for a bulkhead and its bounds."""
        self.plan(ctx).bulkheads[scope] = bounds
        bulkhead = self._bulkheads.get(scope)
        if bulkhead is None:
            bulkhead = self._bulkheads[scope] = Bulkhead(*_bounds(bounds))
        return bulkhead

    def take_over(self, ctx: Context, now: int) -> None:
        """Change what there is to what *ctx* wants."""
        plan = self.plan(ctx)
        for scope in self._groups.keys() - plan.wanted.keys():
            for watched in self._groups.pop(scope).watched():
                watched.forget()
        self._bulkheads = {scope: each for scope, each in self._bulkheads.items() if scope in plan.bulkheads}
        for scope, group in self._groups.items():
            group.apply(plan.wanted[scope], now)
        for scope, bulkhead in self._bulkheads.items():
            bulkhead.resize(*_bounds(plan.bulkheads[scope]))

    def join(self, ctx: Context) -> None:
        self._serving.append(ctx)

    def leave(self, ctx: Context) -> None:
        self._serving.remove(ctx)

    def _drain(self, upstream: str, breaker: Breaker) -> None:
        for ctx in self._serving:
            ctx.drain(upstream, breaker)

    # --- other workers -------------------------------------------------------------

    def open_board(self, ctx: Context) -> Board | None:
        """Return the board, opened, if the configuration of *ctx* has breakers whose verdicts workers share; else `None`."""
        if self._board is None or not any(scope.machine for scope in self.plan(ctx).wanted):
            return None
        self._board.open()
        return self._board

    def listen(self, now: int) -> None:
        """Do as the other workers' breakers did, if anything was said since this was last called."""
        assert self._board is not None
        count = self._board.count
        if count != self._seen:
            self._seen = count
            for watched in tuple(self._watched()):
                watched.listen(now)

    # --- by hand -----------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(watched.name for watched in self._watched())

    def open(self, name: str, reason: str) -> None:
        """Open a breaker until it is closed by hand. Raises `LookupError`."""
        self._named(name).open(monotonic_ns(), reason[:MAX_REASON])

    def close(self, name: str, reason: str) -> None:
        """Close a breaker, whatever it knows. Raises `LookupError`."""
        self._named(name).close(monotonic_ns(), reason[:MAX_REASON])

    def reset(self, name: str, reason: str) -> None:
        """Close a breaker and forget what it counted. Raises `LookupError`."""
        self._named(name).reset(monotonic_ns(), reason[:MAX_REASON])

    def _named(self, name: str) -> Breaker:
        for watched in self._watched():
            if watched.name == name:
                return watched.breaker
        raise LookupError(f"there is no breaker {name!r}; there are {', '.join(self.names) or 'none'}")

    def _watched(self) -> Iterator[Watched]:
        for group in self._groups.values():
            yield from group.watched()

    # --- figures -----------------------------------------------------------------

    def states(self) -> Iterator[tuple[str, State]]:
        """Yield each breaker's name and state."""
        for watched in self._watched():
            yield watched.name, watched.breaker.state

    def stats(self) -> dict[str, Any]:
        """Return what each breaker is and has done, ready for JSON."""
        now = monotonic_ns()
        return {
            "breakers": {watched.name: _figures(watched, now) for watched in self._watched()},
            "bulkheads": {
                str(scope): {
                    "size": each.size,
                    "taken": each.taken,
                    "waiting": each.waiting,
                    "rejected": {"bulkhead_full": each.full, "bulkhead_timeout": each.late},
                }
                for scope, each in self._bulkheads.items()
            },
        }


def _bounds(bounds: settings.Bulkhead) -> tuple[int, int, float]:
    return bounds.max_concurrent, bounds.max_queue, bounds.queue_timeout_ms / 1000


def breakers_of(ctx: Context) -> Breakers:
    """Return the breakers that the gateway of *ctx* has."""

    def make() -> Breakers:
        board = None if ctx.alone else Board(partial(ctx.shared_memory, "board"), getrandbits(62))
        return Breakers(ctx.figures, board)

    return ctx.shared("breakers", make)


def _figures(watched: Watched, now: int) -> dict[str, Any]:
    # Mappings, and no lists: those of several workers are joined by their keys.
    breaker = watched.breaker
    return {
        "state": breaker.state.value,
        "workers": {each.value: int(each is breaker.state) for each in State},
        "by_hand": breaker.held,
        "dry_run": breaker.rules.dry_run,
        "open_for_ms": max(0, breaker.open_until - now) * 1000 // SECOND if breaker.state is State.OPEN else 0,
        "window": breaker.counts(now),
        "rejected": dict(breaker.rejected),
        "transitions": {
            f"{before} to {after}, {trigger}": count for (before, after, trigger), count in breaker.transitions.items()
        },
        "history": {
            datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds"): {
                "from": each.before.value,
                "to": each.after.value,
                "trigger": each.trigger,
                "reason": each.reason,
            }
            for at, each in watched.history
        },
    }
