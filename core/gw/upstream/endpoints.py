"""The endpoints of one upstream: which of them may be chosen now, and which is.

Health, tiers, slow starts and sticky clients decide here who is a candidate; among the candidates an algorithm of
`gw.upstream.balance` picks. Who is healthy is found out elsewhere and said here.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol as Interface

from gw.failures import UpstreamFailure
from gw.filters import Attempt, Exchange
from gw.http.fields import cookie
from gw.keys import Endpoint
from gw.limits import FAILURE_LATENCY, PICKS, SLOW_START_LEAST, SLOW_START_STEP
from gw.net.deadlines import Deadlines
from gw.upstream.balance import Algorithm, PeakEwma
from gw.upstream.pool import Origin

__all__ = ["EndpointSet", "Member", "Sticky"]

log = logging.getLogger("gw.upstream")


class Member:
    """One endpoint, its connections, and what is known of it."""

    __slots__ = (
        "active",
        "answered",
        "ejected",
        "endpoint",
        "failed",
        "healthy",
        "latency",
        "origin",
        "seen",
        "share",
        "slow_since",
        "token",
    )

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.endpoint: Endpoint = origin.endpoint
        self.share = float(self.endpoint.weight)
        self.active = 0
        self.latency = 0.0
        self.seen = 0.0
        """When *latency* was last changed."""
        self.healthy = True
        """As active checks have found; true where there are none."""
        self.ejected = False
        """Taken out for a while because of what it answered."""
        self.slow_since: float | None = None
        """When it began to start slowly; `None` once it has."""
        self.token = ""
        """The value of a sticky client's cookie."""
        self.answered = 0
        """Attempts that it answered, and those that failed, where that is counted."""
        self.failed = 0

    @property
    def is_available(self) -> bool:
        return self.healthy and not self.ejected

    def __repr__(self) -> str:
        state = "healthy" if self.healthy else "unhealthy"
        return f"<Member {self.endpoint} {'ejected' if self.ejected else state} active {self.active}>"


@dataclass(frozen=True, slots=True)
class Sticky:
    """How a client is kept with its endpoint: by a cookie that only we can have made, and that names no address."""

    cookie: str
    secret: bytes
    attributes: str = "; Path=/; HttpOnly; SameSite=Lax"

    def token(self, upstream: str, endpoint: Endpoint) -> str:
        return hmac.digest(self.secret, f"{upstream}\0{endpoint}".encode(), "sha256").hex()[:32]


class Observer(Interface):
    """Judges endpoints by how attempts end."""

    def observe(self, member: Member, attempt: Attempt, failure: UpstreamFailure | None) -> None: ...


class EndpointSet:
    """The endpoints of one upstream. *only* is the one there is, where there is nothing to choose."""

    def __init__(
        self,
        name: str,
        origins: Sequence[Origin],
        algorithm: Algorithm,
        deadlines: Deadlines,
        *,
        panic: float = 0.5,
        slow_start: float = 0.0,
        sticky: Sticky | None = None,
    ) -> None:
        self.name, self.algorithm, self.sticky = name, algorithm, sticky
        self._deadlines = deadlines
        self._panic_share, self._slow_start = panic, slow_start
        self._steps = deadlines.due(self._step)
        self.members: tuple[Member, ...] = ()
        self.candidates: tuple[Member, ...] = ()
        self.only: Member | None = None
        self.panics = False
        """Whether health is not looked at, because too few are healthy."""
        self._by_origin: dict[Origin, Member] = {}
        self._by_token: dict[str, Member] = {}
        self.on_change: list[Callable[[], None]] = []
        self.outliers: Observer | None = None
        self.replace(origins)

    # --- choosing --------------------------------------------------------------------

    def pick(self, ex: Exchange, tried: Sequence[Attempt] = ()) -> Member | None:
        """Return the endpoint whose turn it is, one that was not *tried* yet if there is one; `None` without any."""
        if not self.candidates:
            return None
        if self.sticky is not None and not tried:
            token = cookie(ex.request.headers, self.sticky.cookie)
            member = self._by_token.get(token) if token else None
            if member is not None and (member.is_available or self.panics):
                return member
        picked: Member = self.algorithm.pick(ex)  # type: ignore[assignment]  # it was given members
        if not tried:
            return picked
        used = {attempt.endpoint for attempt in tried}
        for _ in range(PICKS):
            if picked.endpoint not in used:
                return picked
            picked = self.algorithm.pick(ex)  # type: ignore[assignment]  # as above
        # Rather one that is thought to be ill than one that has just failed.
        fresh = (each for each in (*self.candidates, *self.members) if each.endpoint not in used)
        return next(fresh, picked)

    def of(self, origin: Origin) -> Member | None:
        """Return the endpoint that a connection leads to; `None` for one that is gone."""
        return self._by_origin.get(origin)

    # --- what attempts tell ------------------------------------------------------------

    def began(self, attempt: Attempt) -> None:
        attempt._load = member = attempt._place[1]
        if member is not None:
            member.active += 1
            self.algorithm.under_way += 1

    def answered(self, ex: Exchange, attempt: Attempt) -> None:
        """Give a client that is to stay with its endpoint the means to."""
        sticky, response, member = self.sticky, attempt.response, attempt._place[1]
        if sticky is not None and response is not None and cookie(ex.request.headers, sticky.cookie) != member.token:
            response.headers.add("set-cookie", f"{sticky.cookie}={member.token}{sticky.attributes}")

    def ended(self, attempt: Attempt, error: BaseException | None) -> None:
        self.unload(attempt)
        member: Member | None = attempt._place[1]  # another one, if the queue's connection led there
        if member is None:
            return
        if isinstance(error, UpstreamFailure):
            self.failed(attempt, error, monotonic() - attempt._since)
        elif attempt.answered:
            member.answered += 1
            self._observe(member, attempt.answered - attempt._since)
            if self.outliers is not None:
                self.outliers.observe(member, attempt, None)

    def unload(self, attempt: Attempt) -> None:
        """It is not under way any more."""
        member: Member | None = attempt._load
        if member is not None:
            attempt._load = None
            member.active -= 1
            self.algorithm.under_way -= 1

    def failed(self, attempt: Attempt, failure: Exception, taken: float) -> None:
        """Judge an attempt that failed after so many seconds."""
        member: Member | None = attempt._place[1]
        if member is not None and isinstance(failure, UpstreamFailure):
            member.failed += 1
            self._observe(member, max(taken, FAILURE_LATENCY))
            if self.outliers is not None:
                self.outliers.observe(member, attempt, failure)

    def overtaken(self, attempt: Attempt) -> None:
        """Judge an attempt that was given up, since another one was answered or nobody waits any more.

        That is no failure of its endpoint. But it would have taken longer than until now, which counts where that is
        longer than it is known to take (as in Finagle, whose peak EWMA ends the clock of a cancelled request too): or
        one that always loses would keep the name it had before.
        """
        member: Member | None = attempt._place[1]
        if member is not None and attempt.sent:  # or it waited for a connection, which is the pool's to give
            taken = monotonic() - attempt._since
            if taken > member.latency:
                self._observe(member, taken)

    def _observe(self, member: Member, latency: float) -> None:
        now = self._deadlines.now
        member.latency = PeakEwma.observed(latency, member.latency, now - member.seen)
        member.seen = now

    # --- what changes ----------------------------------------------------------------

    def replace(self, origins: Sequence[Origin]) -> None:
        """There are these endpoints now. Those that were there before keep what is known of them."""
        first = not self.members
        members = []
        for origin in origins:
            member = self._by_origin.get(origin)
            if member is None:
                member = Member(origin)
                if self.sticky is not None:
                    member.token = self.sticky.token(self.name, member.endpoint)
                if not first:
                    self._start_slowly(member)
            elif member.endpoint is not origin.endpoint:  # it weighs something else now
                member.endpoint = origin.endpoint
                if member.slow_since is None:
                    member.share = float(member.endpoint.weight)
            members.append(member)
        self.members = tuple(members)
        self._by_origin = {each.origin: each for each in members}
        self._by_token = {each.token: each for each in members if each.token}
        self.only = members[0] if len(members) == 1 else None
        if members:
            self.algorithm.join(members)
        self.refresh()
        for tell in self.on_change:
            tell()

    def mark(self, member: Member, *, healthy: bool) -> None:
        """Say what active checks have found."""
        if member.healthy != healthy:
            member.healthy = healthy
            self._changed(member)

    def eject(self, member: Member, *, ejected: bool) -> None:
        """Take *member* out for a while, or back in."""
        if member.ejected != ejected:
            member.ejected = ejected
            self._changed(member)

    def _changed(self, member: Member) -> None:
        if member.is_available:
            self._start_slowly(member)
        self.refresh()

    @property
    def watches(self) -> bool:
        """Whether it wants to know of attempts."""
        return self.algorithm.counts or self.sticky is not None or self.outliers is not None

    def refresh(self) -> None:
        """Find the candidates anew: the healthy ones of the first tier that has enough of them."""
        tiers: dict[int, list[Member]] = {}
        for each in self.members:
            tiers.setdefault(each.endpoint.priority, []).append(each)
        best, best_share, panics = [], -1.0, False
        for _, tier in sorted(tiers.items()):
            available = [each for each in tier if each.is_available]
            share = len(available) / len(tier)
            if available and share >= self._panic_share:
                best, panics = available, False
                break
            if share > best_share:
                best, best_share, panics = tier, share, True
        if panics != self.panics:
            self.panics = panics
            if panics:
                log.warning("upstream %s: too few endpoints are healthy; all of a tier are used", self.name)
            else:
                log.info("upstream %s: enough endpoints are healthy again", self.name)
        self.candidates = tuple(best)
        if best:
            self.algorithm.set(best)

    # --- slow start ------------------------------------------------------------------

    def _start_slowly(self, member: Member) -> None:
        if self._slow_start:
            member.slow_since = self._deadlines.now
            member.share = member.endpoint.weight * SLOW_START_LEAST
            self._steps.after(SLOW_START_STEP)

    def _step(self) -> None:
        """Give those that start slowly more of their share."""
        starting = False
        for each in self.members:
            if each.slow_since is not None:
                part = (self._deadlines.now - each.slow_since) / self._slow_start
                if part >= 1:
                    each.slow_since = None
                else:
                    starting = True
                each.share = each.endpoint.weight * max(SLOW_START_LEAST, min(part, 1.0))
        if starting:
            self._steps.after(SLOW_START_STEP)
        self.refresh()

    def close(self) -> None:
        self._steps.forget()

    def __repr__(self) -> str:
        return f"<EndpointSet {self.name} {len(self.candidates)} of {len(self.members)}>"
