"""Names become addresses: a bound number at once, each name once at a time, within a time.

Who asks again when, and what an address is used for, is not known here.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, Literal

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from gw.limits import ATTEMPT_DELAY, MAX_ADDRESSES, MAX_RESOLVE_QUEUE, MAX_TARGETS
from gw.net.deadlines import Deadlines
from gw.net.stream import Stream

__all__ = [
    "Answer",
    "Family",
    "LookupFailed",
    "NotResolved",
    "Resolved",
    "Resolver",
    "ResolverSettings",
    "Services",
    "Target",
    "first_of",
    "is_literal",
    "system",
]

Family = Literal["v4_only", "v6_only", "v4_preferred", "v6_preferred"]

_FAMILIES: Final = {"v4_only": socket.AF_INET, "v6_only": socket.AF_INET6}


_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
"""What a target may be: the DNS can say anything, and this becomes `Host`."""

_OUTCOMES: Final = {
    socket.EAI_NONAME: "nxdomain",
    getattr(socket, "EAI_NODATA", socket.EAI_NONAME): "nxdomain",
    socket.EAI_AGAIN: "servfail",
    socket.EAI_FAIL: "servfail",
}
"""What a failed look-up is called (behaviour 17.5)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a look-up found."""

    addresses: Sequence[str]
    ttl: float | None = None
    """Seconds for which it holds; `None` where nobody says."""


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """Where a service is to be had (RFC 2782); of a lower *priority* first."""

    host: str
    port: int
    priority: int = 0
    weight: int = 0


@dataclass(frozen=True, slots=True)
class Services:
    """The targets of a service; none means that it is decidedly not there."""

    targets: Sequence[Target]
    ttl: float | None = None
    """Seconds for which they hold; `None` where nobody says."""


class LookupFailed(OSError):
    """A look-up failed. *outcome* is what that is called: nxdomain, servfail, timeout or other_error."""

    def __init__(self, message: str, outcome: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class NotResolved(OSError):
    """A name has no address, or none was found in time."""

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late
        """Whether there was no answer, rather than a bad one."""


@dataclass(frozen=True, slots=True)
class ResolverSettings:
    """How names are resolved. Times are seconds."""

    family: Family = "v4_preferred"
    timeout: float = 5.0
    max_inflight: int = 32


@dataclass(frozen=True, slots=True)
class Resolved:
    """The addresses of a name: those of the family that is wanted, and those of the other, to fall back on."""

    addresses: tuple[str, ...]
    others: tuple[str, ...] = ()
    ttl: float | None = None
    """Seconds for which they hold; `None` where nobody says."""


def _nobody(_: str) -> None:
    """Hear of a look-up, and do nothing."""


class _Flight:
    """One look-up under way, and whoever waits for it."""

    __slots__ = ("error", "found", "over")

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.found: Any = None
        self.error: NotResolved | None = None


class Resolver:
    """Resolves names. One is shared by all upstreams; the counters are for `/stats`.

    *lookup* finds every address of a name, *services* every target of a service; both raise `OSError`. They may take as
    long as they like, which is why a look-up goes on in *tasks* when nobody waits for it any more. *told* hears of every
    look-up how it ended: success, nxdomain, timeout, servfail, other_error, or cache_hit for an address that is one already.
    """

    def __init__(
        self,
        settings: ResolverSettings,
        lookup: Callable[[str, int], Awaitable[Answer]],
        tasks: TaskGroup,
        deadlines: Deadlines,
        told: Callable[[str], None] = _nobody,
        services: Callable[[str], Awaitable[Services]] | None = None,
    ) -> None:
        self._told, self._lookup_services = told, services
        self._settings, self._lookup, self._tasks, self._deadlines = settings, lookup, tasks, deadlines
        self._flights: dict[str, _Flight] = {}
        self._places = anyio.Semaphore(settings.max_inflight)
        self.total = 0
        self.failed = 0
        self.timeouts = 0
        self.again = 0
        """Failures that the resolver called temporary (``EAI_AGAIN``)."""
        self.in_flight = 0
        self.queued = 0

    def stats(self) -> dict[str, int]:
        """Return its counters, as behaviour 19 calls them."""
        return {
            "total_resolutions": self.total,
            "total_resolutions_failed": self.failed,
            "total_resolutions_timeout": self.timeouts,
            "eai_again": self.again,
            "queue_depth": self.queued,
            "queued": self.queued,
            "in_flight": self.in_flight,
            "completed": self.total,
        }

    async def resolve(self, name: str) -> Resolved:
        """Return the addresses of *name*, an address itself being its own; raises `NotResolved`."""
        if is_literal(name):
            self._told("cache_hit")
            return Resolved((name,))
        return await self._find(name, self._addresses)  # type: ignore[no-any-return]

    async def services(self, name: str) -> Services:
        """Return the targets of the service *name*, at most `MAX_TARGETS`; raises `NotResolved`."""
        return await self._find(name, self._targets, "SRV ")  # type: ignore[no-any-return]

    async def _addresses(self, name: str) -> Resolved:
        family = self._settings.family
        found = _sorted(await self._lookup(name, _FAMILIES.get(family, socket.AF_UNSPEC)), family)
        if not found.addresses:
            raise OSError("it has no address of the family that is wanted")
        return found

    async def _targets(self, name: str) -> Services:
        if self._lookup_services is None:
            raise OSError("services are not looked up by the system's resolver")
        found = await self._lookup_services(name)
        for each in found.targets:
            if not _NAME.fullmatch(each.host):
                raise OSError(f"its target {each.host!r} is no host name")
        preferred = sorted(set(found.targets), key=lambda each: (each.priority, -each.weight, each))
        return Services(sorted(preferred[:MAX_TARGETS]), found.ttl)

    async def _find(self, name: str, look: Callable[[str], Awaitable[Any]], kind: str = "") -> Any:
        key = kind + name
        flight = self._flights.get(key)
        if flight is None:
            if self.queued >= MAX_RESOLVE_QUEUE:
                self.failed += 1
                self._told("other_error")
                raise NotResolved(f"cannot resolve {name}: the resolver is saturated")
            flight = self._flights[key] = _Flight()
            self.queued += 1
            self._tasks.start_soon(self._fly, name, key, flight, look)
        scope = anyio.CancelScope()
        due = self._deadlines.due(scope.cancel)
        due.after(self._settings.timeout)
        try:
            with scope:
                await flight.over.wait()
        finally:
            due.forget()
        if flight.found is not None:
            return flight.found
        if flight.error is not None:
            raise NotResolved(str(flight.error), late=flight.error.late)
        self.timeouts += 1
        self._told("timeout")
        raise NotResolved(f"cannot resolve {name}: no answer within {self._settings.timeout:g} s", late=True)

    async def _fly(self, name: str, key: str, flight: _Flight, look: Callable[[str], Awaitable[Any]]) -> None:
        try:
            async with self._places:
                self.queued -= 1
                self.in_flight += 1
                try:
                    flight.found = await look(name)
                finally:
                    self.in_flight -= 1
            self._told("success")
        except (OSError, UnicodeError, RuntimeError) as error:  # a label that IDNA cannot encode; no more threads
            self.failed += 1
            self.again += isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            outcome = _outcome(error)
            late = outcome == "timeout"
            self.timeouts += late
            self._told(outcome)
            reason = getattr(error, "strerror", None) or error
            flight.error = NotResolved(f"cannot resolve {name}: {reason}", late=late)
        finally:
            self.total += 1
            del self._flights[key]
            flight.over.set()

    def __repr__(self) -> str:
        return f"<Resolver {self.in_flight} in flight, {self.queued} queued, {self.failed} of {self.total} failed>"


def is_literal(host: str) -> bool:
    """Tell whether *host* is an address already."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _outcome(error: Exception) -> str:
    if isinstance(error, LookupFailed):
        return error.outcome
    return _OUTCOMES.get(error.errno or 0, "other_error") if isinstance(error, socket.gaierror) else "other_error"


def _sorted(found: Answer, family: Family) -> Resolved:
    addresses, ttl = list(dict.fromkeys(found.addresses))[:MAX_ADDRESSES], found.ttl
    v4 = tuple(each for each in addresses if ":" not in each)
    v6 = tuple(each for each in addresses if ":" in each)
    match family:
        case "v4_only":
            return Resolved(v4, ttl=ttl)
        case "v6_only":
            return Resolved(v6, ttl=ttl)
        case "v6_preferred":
            return Resolved(v6, v4, ttl) if v6 else Resolved(v4, ttl=ttl)
    return Resolved(v4, v6, ttl) if v4 else Resolved(v6, ttl=ttl)


async def system(name: str, family: int) -> Answer:
    """Ask the system's resolver, in a thread; a thread that hangs is left behind on cancellation."""
    found = await to_thread.run_sync(
        lambda: socket.getaddrinfo(name, None, family, socket.SOCK_STREAM),
        abandon_on_cancel=True,
        limiter=anyio.CapacityLimiter(1),  # the bound is the `Resolver`'s; anyio's own is shared with everything else
    )
    return Answer([str(address[0]).partition("%")[0] for *_, address in found])


async def first_of(dials: Sequence[Callable[[], Awaitable[Stream]]], deadlines: Deadlines) -> Stream:
    """Connect to several addresses of one endpoint, the next when one fails or is slow; the first to connect wins (RFC 8305).

    Raises the `OSError` of the first, if none connects.
    """
    if len(dials) == 1:
        return await dials[0]()
    winner: Stream | None = None
    errors: list[OSError] = []
    try:
        async with anyio.create_task_group() as tasks:

            async def dial(number: int, failed: anyio.Event) -> None:
                nonlocal winner
                try:
                    stream = await dials[number]()
                except OSError as error:
                    errors.append(error)
                    failed.set()
                    return
                if winner is None:
                    winner = stream
                    tasks.cancel_scope.cancel()
                else:
                    stream.abort()

            for number in range(len(dials)):
                go_on = anyio.Event()
                tasks.start_soon(dial, number, go_on)
                due = deadlines.due(go_on.set)
                due.after(ATTEMPT_DELAY)
                try:
                    await go_on.wait()
                finally:
                    due.forget()
    except BaseException:
        if winner is not None:
            winner.abort()
        raise
    if winner is None:
        raise errors[0]
    return winner
