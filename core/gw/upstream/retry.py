"""Whether a failed attempt is followed by another: the policy of a route, and the budget of an upstream (behaviour 11.5).

What is decided here is carried out by the chain. Nothing here waits, but for the limits of time that an attempt runs in.
"""

from __future__ import annotations

import logging
import random
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from types import TracebackType
from typing import Final, Protocol as Interface

import anyio

from gw.failures import AttemptsTimeout, ExchangeTimeout, PerTryTimeout, UpstreamFailure
from gw.filters import Attempt, Exchange, Reply
from gw.keys import RetryBudget
from gw.limits import MAX_RETRY_BACKOFF, RETRY_BACKOFF
from gw.net.deadlines import NEVER, Deadlines
from gw.upstream.timeouts import Allowance, Asked, asked_by

__all__ = ["IDEMPOTENT", "Budget", "Counted", "RetryAccount", "RetryPolicy", "Tries", "Watcher"]

log = logging.getLogger("gw.upstream")

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})
"""RFC 9110 section 9.2.2: a proxy must not repeat others by itself, once they may have been processed."""

_UNPROCESSED: Final = frozenset({"connect-failure", "refused-stream"})
"""Nothing was sent, or surely nothing was done: whatever the method, it may be sent again."""

_AT_ONCE: Final = _UNPROCESSED | {"disconnect"}
"""The first retry does not wait: it is the connection that failed, more than the endpoint."""

_EXHAUSTED: Final = b"Upstream retry budget exhausted.\n"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What a route retries. Times are seconds, 0 for no limit."""

    max_retries: int = 0
    conditions: frozenset[str] = frozenset({"connect-failure", "disconnect", "refused-stream"})
    """Of `UpstreamFailure.condition`."""
    statuses: frozenset[int] = frozenset()
    non_idempotent: bool = False
    per_try: float = 0.0
    """From the beginning of an attempt, its connection included, to the response's head."""
    overall: float = 0.0
    """From the beginning of the first attempt to the head that is delivered."""
    buffer: int = 65536
    """Bytes of a request's body that are kept to be sent again."""
    max_retry_after: float = 1.0
    """The longest wait that an upstream may ask for; one that asks for more is not asked again."""


class RetryAccount:
    """What is under way to one upstream, on all routes. Outlives a reload."""

    __slots__ = ("in_flight", "refused", "retries")

    def __init__(self) -> None:
        self.in_flight = 0
        """Exchanges, those on a retry included."""
        self.retries = 0
        """Of them, on a retry."""
        self.refused = 0
        """Retries that the budget did not allow, or would not have; ever."""


class Budget:
    """A `RetryBudget` and the account it is applied to."""

    __slots__ = ("account", "name", "settings")

    def __init__(self, name: str, settings: RetryBudget, account: RetryAccount) -> None:
        self.name, self.settings, self.account = name, settings, account

    @property
    def cap(self) -> int:
        """Retries that may be under way at once, now."""
        account, settings = self.account, self.settings
        share = int((account.in_flight - account.retries) * settings.percent / 100)
        return max(settings.min_concurrency, share)

    def admits(self) -> bool:
        """Tell whether another retry may begin; count it if not."""
        account = self.account
        if account.retries < self.cap:
            return True
        account.refused = refused = account.refused + 1
        if refused & (refused - 1) == 0:  # 1, 2, 4, 8, ...: an outage must not flood the log as well
            verb = "would refuse" if self.settings.dry_run else "refuses"
            log.warning("upstream %s: the retry budget %s a retry (%d so far)", self.name, verb, refused)
        return self.settings.dry_run

    def begin(self) -> Reply | None:
        """Count a retry as under way, or say why it may not be."""
        if not self.admits():
            headers = (("content-type", "text/plain"), ("x-retry-budget-exhausted", "1"), *self.settings.headers)
            return Reply(503, _EXHAUSTED, headers, "gw.retry_budget_exhausted", close=True)
        self.account.retries += 1
        return None

    def __repr__(self) -> str:
        return f"<Budget {self.name} {self.account.retries} of {self.cap}, {self.account.in_flight} in flight>"


class Watcher(Interface):
    """Wants to know of every attempt: who balances by load, or judges endpoints by what they answer."""

    def began(self, attempt: Attempt) -> None: ...

    def answered(self, ex: Exchange, attempt: Attempt) -> None:
        """Its response's head is here, and not yet on its way."""

    def ended(self, attempt: Attempt, error: BaseException | None) -> None: ...


class Counted:
    """The attempts of one exchange where there is a budget and nothing else: only a filter may want another."""

    __slots__ = ("_budget", "_holds")

    buffer = 0
    statuses: frozenset[int] = frozenset()
    denied = ""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._holds = budget, False
        budget.account.in_flight += 1

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        account = self._budget.account
        account.in_flight -= 1
        if self._holds:
            account.retries -= 1

    def limit(self, ex: Exchange, attempt: Attempt) -> None: ...

    def answered(self, ex: Exchange, attempt: Attempt) -> None: ...

    def wants(self, ex: Exchange, attempt: Attempt, failure: UpstreamFailure | None, lost: str) -> None: ...

    def admit(self) -> Reply | None:
        self.release()
        refusal = self._budget.begin()
        self._holds = refusal is None
        return refusal

    def release(self) -> None:
        if self._holds:
            self._holds = False
            self._budget.account.retries -= 1


class Tries:
    """The attempts of one exchange. Made with the first, and the context of all of them."""

    __slots__ = (
        "_asked",
        "_budget",
        "_deadlines",
        "_due",
        "_ends",
        "_holds",
        "_limit",
        "_overall",
        "_policy",
        "_retries",
        "_scope",
        "_until",
        "_watcher",
        "buffer",
        "denied",
        "statuses",
    )

    def __init__(
        self,
        policy: RetryPolicy,
        budget: Budget | None,
        deadlines: Deadlines,
        *,
        watcher: Watcher | None = None,
    ) -> None:
        self._policy, self._budget, self._deadlines, self._watcher = policy, budget, deadlines, watcher
        self._retries = 0
        self._holds = False
        self._limit: _Limit | None = None
        self._overall = self._until = deadlines.now + policy.overall if policy.overall else NEVER
        self.buffer = policy.buffer if policy.max_retries else 0
        """Bytes of the body to keep."""
        self.statuses = policy.statuses
        self.denied = ""
        """Why the retry that the policy wanted could not be had: the value of ``X-Proxy-Retry-Denied``."""
        self._ends = NEVER
        self._asked: Asked | None = None
        self._scope: anyio.CancelScope | None = None
        if budget is not None:
            budget.account.in_flight += 1

    def within(self, allowance: Allowance, ex: Exchange) -> Tries:
        """Let the whole exchange end in time, measured from its request's first byte; return itself."""
        now = self._deadlines.now
        taken = monotonic() - ex.started
        if allowance.exchange:
            self._ends = now + allowance.exchange - taken
        if allowance.heeds == "always" or (allowance.heeds == "trusted" and ex.client.trusted):
            self._asked = asked = asked_by(ex)
            if asked is not None:
                self._ends = min(self._ends, now + asked.seconds - taken)
        self._until = min(self._until, self._ends)
        return self

    def __enter__(self) -> None:
        if self._ends != NEVER:
            self._scope = scope = anyio.CancelScope()
            self._due = self._deadlines.due(scope.cancel)
            self._due.after(max(self._ends - self._deadlines.now, 0.001))
            scope.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        self.release()
        if self._budget is not None:
            self._budget.account.in_flight -= 1
        scope = self._scope
        if scope is None:
            return False
        self._due.forget()
        swallowed = bool(scope.__exit__(kind, error, at))
        if scope.cancelled_caught:
            raise ExchangeTimeout("the exchange took longer than its route, or its client, allows") from None
        return swallowed

    def wants(self, ex: Exchange, attempt: Attempt, failure: UpstreamFailure | None, lost: str) -> float | None:
        """Return the seconds to wait before another attempt; `None` if this one is the last.

        *failure* is how the attempt failed; without one, its response is judged. *lost* says why the request's body
        cannot be sent again, if it cannot.
        """
        policy = self._policy
        if self._retries >= policy.max_retries:
            return None
        if failure is None:
            assert attempt.response is not None
            if attempt.response.status not in policy.statuses:
                return None
            condition = ""
        else:
            condition = failure.condition
            if condition not in policy.conditions:
                return None
        repeatable = policy.non_idempotent or ex.request.method in IDEMPOTENT
        if attempt.sent and not repeatable and condition not in _UNPROCESSED:
            self.denied = "non-idempotent-headers-queued"
            return None
        if lost:
            self.denied = lost
            return None
        delay = 0.0 if condition in _AT_ONCE and not self._retries else self._backoff()
        if failure is None:
            asked = _retry_after(attempt)
            if asked > policy.max_retry_after:
                return None
            delay = max(delay, asked)
        if self._deadlines.now + delay >= self._until:
            return None
        return delay

    def _backoff(self) -> float:
        most = min(MAX_RETRY_BACKOFF, RETRY_BACKOFF << self._retries)
        return random.uniform(1, most - 1) / 1000  # noqa: S311  # to spread retries, not to keep a secret

    def admit(self) -> Reply | None:
        """Count another attempt; with a `Reply`, the budget does not allow it."""
        budget = self._budget
        if budget is not None:
            self.release()
            if (refusal := budget.begin()) is not None:
                return refusal
            self._holds = True
        self._retries += 1
        return None

    def limit(self, ex: Exchange, attempt: Attempt) -> AbstractContextManager[object] | None:
        """Return the context of one attempt, which raises when its time is over; `None` if there is nothing to it."""
        if self._asked is not None:
            ex.request.headers.set(self._asked.name, self._asked.left(self._ends - self._deadlines.now))
        seconds = self._policy.per_try
        left = self._overall - self._deadlines.now
        overall = not seconds or left < seconds
        if overall and left == NEVER and self._watcher is None:
            return None
        self._limit = limit = _Limit(self, attempt, left if overall else seconds, overall=overall)
        return limit

    def answered(self, ex: Exchange, attempt: Attempt) -> None:
        """The attempt has its response: what is still to come has other limits."""
        if self._limit is not None:
            self._limit.off()
        if self._watcher is not None:
            self._watcher.answered(ex, attempt)

    def release(self) -> None:
        """Take back what `admit` counted."""
        if self._holds and self._budget is not None:
            self._holds = False
            self._budget.account.retries -= 1


class _Limit:
    """Cancels what runs in it when its time is over, and raises why. Times are looked at by the wheel."""

    __slots__ = ("_attempt", "_due", "_overall", "_scope", "_watcher")

    def __init__(self, tries: Tries, attempt: Attempt, seconds: float, *, overall: bool) -> None:
        self._attempt, self._overall, self._watcher = attempt, overall, tries._watcher
        self._scope = None if seconds == NEVER else anyio.CancelScope()
        if self._scope is not None:
            self._due = tries._deadlines.due(self._scope.cancel)
            self._due.after(max(seconds, 0.001))

    def off(self) -> None:
        if self._scope is not None:
            self._due.off()

    def __enter__(self) -> None:
        if self._watcher is not None:
            self._watcher.began(self._attempt)
        if self._scope is not None:
            self._scope.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        late: UpstreamFailure | None = None
        swallowed = False
        if self._scope is not None:
            self._due.forget()
            swallowed = bool(self._scope.__exit__(kind, error, at))
            if self._scope.cancelled_caught:
                late = (
                    AttemptsTimeout("no attempt was answered within retry.overall_timeout_ms")
                    if self._overall
                    else PerTryTimeout("the attempt was not answered within retry.per_try_timeout_ms")
                )
        if self._watcher is not None:
            self._watcher.ended(self._attempt, late or error)
        if late is not None:
            raise late from None
        return swallowed


def _retry_after(attempt: Attempt) -> float:
    """Return the seconds that a response asks to stay away for; 0 if it does not, or not legibly (RFC 9110 section 10.2.3)."""
    assert attempt.response is not None
    value = attempt.response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:10])
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
