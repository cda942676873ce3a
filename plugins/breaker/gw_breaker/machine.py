"""The state machine of one breaker (behaviour 15.1 to 15.3). No I/O, no clock of its own, no configuration.

Time comes in as whole nanoseconds of a monotonic clock. Who is asked for admission gets a token, and brings it back
with a verdict exactly once. A token says in which phase it was given: what comes back after the state has changed
counts for nothing.

Filters, requests and responses are the business of `gw_breaker.filter`; which breaker is whose, of
`gw_breaker.breakers`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from gw_breaker.limits import MAX_DOUBLINGS, MAX_RETRY_AFTER

__all__ = ["SECOND", "UNCOUNTED", "Breaker", "Observer", "Rejection", "Rules", "State", "Transition", "Verdict"]

SECOND: Final = 1_000_000_000
UNCOUNTED: Final = 0
"""The token of who would have been rejected, in a dry run: what becomes of them is not counted."""


class State(enum.Enum):
    CLOSED = "closed"
    """Everyone is admitted."""
    OPEN = "open"
    """Nobody is."""
    HALF_OPEN = "half_open"
    """A few are, to find out."""


class Verdict(enum.Enum):
    """What one admission came to."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"
    """It says nothing about the upstream; a probe's place is free again."""


@dataclass(frozen=True, slots=True)
class Rules:
    """When to open, for how long, and when to close again. Times are nanoseconds, rates and shares percent."""

    consecutive: int = 5
    """Failures in a row that open it."""
    failure_rate: int = 50
    """Share of failures in the window that opens it, from *volume* on. 0: any failure."""
    volume: int = 20
    window: int = 10
    """Seconds, the current one included."""
    probes: int = 5
    """Admissions of one half-open phase."""
    base_open: int = 5 * SECOND
    max_open: int = 60 * SECOND
    dry_run: bool = False
    """Nobody is turned away."""
    shadow: bool = False
    """Who is turned away goes on all the same: the gateway sees to it, and the machine need not know."""
    slow_call: int = 0
    """From here on a call is slow; 0: none is."""
    slow_rate: int = 100
    """Share of slow calls in the window that opens it, from *volume* on."""
    success_share: int = 100
    """Share of the probes that must succeed."""
    half_open_time: int = 60 * SECOND
    """How long a half-open phase may take until what is known decides; 0: for ever."""

    @property
    def needed(self) -> int:
        """How many probes of one phase must succeed: at least one."""
        return max(1, -(-self.probes * self.success_share // 100))


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why somebody was not admitted."""

    state: State
    reason: str
    """``open``, ``half_open_full`` or ``half_open_recovery_failing``."""
    retry_after: int
    """Whole seconds."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state; from OPEN to OPEN when the dry run of an open breaker ends."""

    at: int
    before: State
    after: State
    trigger: str
    """``consecutive``, ``rate``, ``slow_rate``, ``open_elapsed``, ``probe_success``, ``probe_fail``,
    ``half_open_elapsed``, ``dry_run_disabled``, ``machine``, ``manual`` or ``reset``."""
    reason: str = ""
    """What somebody gave as their reason; empty when it was not done by hand."""


class Observer(Protocol):
    """Who is told what happens to a breaker. Must not raise, nor call back."""

    def moved(self, transition: Transition) -> None: ...

    def rejected(self, reason: str, first: bool) -> None:
        """Somebody was turned away, or would have been but for a dry run; *first* since the state changed."""


class _Nobody:
    def moved(self, transition: Transition) -> None: ...

    def rejected(self, reason: str, first: bool) -> None: ...


_CLOSED: Final = State.CLOSED
_SUCCESS: Final = Verdict.SUCCESS
_NEUTRAL: Final = Verdict.NEUTRAL


class Breaker:
    """One breaker. *observer* is told of each transition and each rejection.

    Where there are others of its kind, *claim* is asked now and until when whether it may find out for all of them.

    Synchronous and never waiting, so that nobody can be cancelled within it.
    """

    __slots__ = (
        "_allowed_failures",
        "_claim",
        "_consecutive",
        "_failures",
        "_half_open_until",
        "_in_flight",
        "_needed",
        "_observer",
        "_probes",
        "_rejected_before",
        "_successes",
        "_taken",
        "_window",
        "generation",
        "held",
        "open_until",
        "rejected",
        "rules",
        "state",
        "transitions",
        "trips",
    )

    def __init__(
        self, rules: Rules, observer: Observer | None = None, claim: Callable[[int, int], bool] | None = None
    ) -> None:
        self.rules = rules
        self.state = State.CLOSED
        self.open_until = 0
        """When an open breaker lets the first probe through."""
        self.held = False
        """Whether it was opened by hand: then it stays open until it is closed by hand."""
        self.rejected = {"open": 0, "open_dry_run": 0, "half_open_full": 0, "half_open_recovery_failing": 0}
        """How often somebody was not admitted, by reason."""
        self.transitions: dict[tuple[str, str, str], int] = {}
        """How often it went from one state to another, by (from, to, trigger)."""
        self._observer: Observer = observer or _Nobody()
        self.generation = 1
        """The token of this phase; while closed, `admit` gives it to everyone, and asking it is not necessary."""
        self._claim = claim
        self._consecutive = 0
        self.trips = 0
        """How often in a row it opened since it was closed."""
        self._window = Window(rules.window)
        self._rejected_before = False
        # The half-open phase that is under way; its size is fixed when it begins.
        self._probes = self._needed = self._allowed_failures = 0
        self._taken = self._in_flight = self._successes = self._failures = 0
        self._half_open_until = 0

    # --- asking and reporting ----------------------------------------------------

    def admit(self, now: int) -> int | Rejection:
        """Return a token, to be brought back by `report`; or why not."""
        if self.state is State.CLOSED:
            return self.generation
        if self.state is State.HALF_OPEN and self._half_open_until and now >= self._half_open_until:
            self._decide(now)
            return self.admit(now)
        if self.state is State.OPEN:
            if self.held or now < self.open_until:
                return self._reject("open", self._open_left(now))
            if not self._may_probe(now):
                return self._as_told(now)
            self._probe(now)
        if self._failures > self._allowed_failures:
            return self._reject("half_open_recovery_failing", self._duration())
        if self._taken >= self._probes:
            return self._reject("half_open_full", self._duration())
        self._taken += 1
        self._in_flight += 1
        return self.generation

    def turn_away(self, now: int) -> Rejection | None:
        """Return the rejection of somebody who was admitted before it opened and has not begun yet; none in a dry run."""
        rejection = self._reject("open", self._open_left(now))
        return None if rejection.__class__ is int else rejection  # type: ignore[return-value]

    def report(self, token: int, verdict: Verdict, now: int, took: int = 0) -> None:
        """Take back *token*. *took* is how long it took until the response's head came; 0 where there was none."""
        if token != self.generation:
            return
        limit = self.rules.slow_call
        slow = took >= limit > 0 and verdict is not _NEUTRAL
        if self.state is _CLOSED:
            if verdict is _SUCCESS:
                self._consecutive = 0
                self._window.add(now // SECOND, False, slow)
                if not slow:
                    return
            elif verdict is Verdict.FAILURE:
                self._consecutive += 1
                self._window.add(now // SECOND, True, slow)
            if slow or verdict is Verdict.FAILURE:
                self._judge(verdict, now, slow=slow)
            return
        self._in_flight -= 1
        if verdict is Verdict.NEUTRAL:
            self._taken -= 1
        elif verdict is Verdict.SUCCESS and not slow:
            self._successes += 1
        else:
            self._failures += 1
        if self._successes >= self._needed:
            self._close("probe_success", now)
        elif self._failures > self._allowed_failures and not self._in_flight:
            self._open("probe_fail", now)
        elif self._half_open_until and now >= self._half_open_until:
            self._decide(now)

    # --- by hand -----------------------------------------------------------------

    def open(self, now: int, reason: str = "") -> None:
        """Open it, and keep it open until `close` or `reset`."""
        self.held = True
        self.open_until = now
        self._move(State.OPEN, "manual", now, reason)

    def close(self, now: int, reason: str = "") -> None:
        """Close it; it begins to count anew."""
        self._close("manual", now, reason)

    def reset(self, now: int, reason: str = "") -> None:
        """Make it as it was at first: closed, without counts."""
        self._close("reset", now, reason)
        self.rejected = dict.fromkeys(self.rejected, 0)
        self.transitions.clear()

    # --- other workers -----------------------------------------------------------

    def follow(self, state: State, until: int, trips: int, now: int, *, held: bool) -> None:
        """Become what another worker's is. While that one finds out, in a half-open state, this one waits until then."""
        if state is State.CLOSED:
            if self.state is not State.CLOSED:
                self._close("machine", now)
            return
        self.open_until, self.trips, self.held = until, trips, held
        if self.state is not State.OPEN:
            self._move(State.OPEN, "machine", now)

    # --- reload ------------------------------------------------------------------

    def apply(self, rules: Rules, now: int) -> None:
        """Go on by other rules (behaviour 15.6). A phase that is under way keeps its size and its deadline."""
        before, self.rules = self.rules, rules
        if rules.window != before.window:
            self._window = Window(rules.window)
            self._consecutive = 0
        if before.dry_run and not rules.dry_run and self.state is State.OPEN:
            self._record(Transition(now, State.OPEN, State.OPEN, "dry_run_disabled"))

    # --- for the stats -----------------------------------------------------------

    def counts(self, now: int) -> dict[str, int]:
        """Return what the window holds, and the failures in a row."""
        self._window.turn(now // SECOND)
        window = self._window
        return {
            "calls": window.total,
            "failures": window.failed,
            "slow": window.slow,
            "consecutive_failures": self._consecutive,
            "trips": self.trips,
        }

    # --- inside ------------------------------------------------------------------

    def _judge(self, verdict: Verdict, now: int, *, slow: bool) -> None:
        rules, window = self.rules, self._window
        if verdict is Verdict.FAILURE:
            if self._consecutive >= rules.consecutive:
                self._open("consecutive", now)
                return
            if window.total >= rules.volume and window.failed * 100 >= rules.failure_rate * window.total:
                self._open("rate", now)
                return
        if slow and window.total >= rules.volume and window.slow * 100 >= rules.slow_rate * window.total:
            self._open("slow_rate", now)

    def _decide(self, now: int) -> None:
        """The half-open phase has lasted long enough: the probes that are back decide."""
        back = self._successes + self._failures
        if self._successes and self._successes * 100 >= self.rules.success_share * back:
            self._close("half_open_elapsed", now)
        else:
            self._open("half_open_elapsed", now)

    def _open(self, trigger: str, now: int) -> None:
        self.open_until = now + self._duration()
        self.trips += 1
        self._move(State.OPEN, trigger, now)

    def _as_told(self, now: int) -> int | Rejection:
        """Answer who came when another worker was finding out, or has just found out that it is well."""
        return self.generation if self.state is State.CLOSED else self._reject("open", self._open_left(now))

    def _may_probe(self, now: int) -> bool:
        """Tell whether it is this one that finds out, if there are others of its kind."""
        return self._claim is None or self._claim(now, now + (self.rules.half_open_time or self.rules.max_open))

    def _probe(self, now: int) -> None:
        rules = self.rules
        self._probes, self._needed = rules.probes, rules.needed
        self._allowed_failures = rules.probes - rules.needed
        self._taken = self._in_flight = self._successes = self._failures = 0
        self._half_open_until = now + rules.half_open_time if rules.half_open_time else 0
        self._move(State.HALF_OPEN, "open_elapsed", now)

    def _close(self, trigger: str, now: int, reason: str = "") -> None:
        self.trips = self._consecutive = 0
        self._window.clear()
        self.held = False
        self._move(State.CLOSED, trigger, now, reason)

    def _move(self, after: State, trigger: str, now: int, reason: str = "") -> None:
        before, self.state = self.state, after
        self.generation += 1
        self._rejected_before = False
        self._record(Transition(now, before, after, trigger, reason))

    def _record(self, transition: Transition) -> None:
        key = (transition.before.value, transition.after.value, transition.trigger)
        self.transitions[key] = self.transitions.get(key, 0) + 1
        self._observer.moved(transition)

    def _duration(self) -> int:
        """How long it is open the next time: doubled by each trip since it was closed."""
        rules = self.rules
        return min(rules.base_open << min(self.trips, MAX_DOUBLINGS), rules.max_open)

    def _open_left(self, now: int) -> int:
        return self.rules.max_open if self.held else self.open_until - now

    def _reject(self, reason: str, left: int) -> int | Rejection:
        dry = self.rules.dry_run
        if dry and reason == "open":
            reason = "open_dry_run"
        self.rejected[reason] += 1
        first = not self._rejected_before
        self._rejected_before = True
        self._observer.rejected(reason, first)
        if dry:
            return UNCOUNTED
        state = State.OPEN if reason == "open" else State.HALF_OPEN
        return Rejection(state, reason, min(max(-(-left // SECOND), 1), MAX_RETRY_AFTER))

    def __repr__(self) -> str:
        return f"<Breaker {self.state.value}{' by hand' if self.held else ''} {self._window!r}>"


class Window:
    """Calls of the last seconds, counted by the second."""

    __slots__ = ("_failed", "_second", "_slow", "_total", "failed", "seconds", "slow", "total")

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self._second = 0
        self.clear()

    def clear(self) -> None:
        self._total, self._failed, self._slow = ([0] * self.seconds for _ in range(3))
        self.total = self.failed = self.slow = 0

    def turn(self, second: int) -> None:
        """Forget what is too old at *second*."""
        passed = second - self._second
        if passed <= 0:
            return
        self._second = second
        if passed >= self.seconds:
            if self.total:
                self.clear()
            return
        for old in range(second - passed + 1, second + 1):
            at = old % self.seconds
            self.total -= self._total[at]
            self.failed -= self._failed[at]
            self.slow -= self._slow[at]
            self._total[at] = self._failed[at] = self._slow[at] = 0

    def add(self, second: int, failed: bool, slow: bool) -> None:
        if second != self._second:
            self.turn(second)
        at = self._second % self.seconds
        self._total[at] += 1
        self.total += 1
        if failed:
            self._failed[at] += 1
            self.failed += 1
        if slow:
            self._slow[at] += 1
            self.slow += 1

    def __repr__(self) -> str:
        return f"<Window {self.failed} of {self.total} failed in {self.seconds} s>"
