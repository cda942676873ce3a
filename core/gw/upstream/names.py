"""Upstreams whose endpoints have names: each address of a name is an endpoint, and they follow the name as it changes.

A service (RFC 2782) stands for its targets, which are names with a port, a priority and a weight.
How a name is resolved is `gw.net.resolve`'s business.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Final, TypeVar

import anyio

from gw.keys import Endpoint
from gw.limits import RESOLVE_AGAIN, TTL_LEAST, TTL_MOST
from gw.net.resolve import NotResolved, Resolved, Resolver, Services, Target, is_literal
from gw.upstream.endpoints import EndpointSet
from gw.upstream.pool import Pool

__all__ = ["Names"]

log = logging.getLogger("gw.upstream")

_Found = TypeVar("_Found", Resolved, Services)

_FINE: Final = 100
"""By how much weights are multiplied where a weight of 0 is among them."""


class Names:
    """The names of one upstream's endpoints, resolved again and again until `close`.

    A name is looked up again when its answer holds no longer, where the answer says how long it does; otherwise every
    *refresh* seconds, 0 for never again. With *stale*, the last addresses of a name stay when it cannot be resolved;
    without, they go.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        members: EndpointSet,
        pool: Pool,
        resolver: Resolver,
        *,
        services: Sequence[str] = (),
        refresh: float = 30.0,
        stale: bool = True,
    ) -> None:
        self._static, self._members, self._pool, self._resolver = tuple(endpoints), members, pool, resolver
        self._endpoints = self._static
        """Those that were given, and those that the services name."""
        self.services = tuple(dict.fromkeys(services))
        self._targets: dict[str, Services] = {}
        self._refresh, self._stale = refresh, stale
        self._found: dict[str, Resolved] = {}
        self._due: dict[str, float] = {}
        """When each is to be looked at again."""
        self._scope = anyio.CancelScope()
        self._asked: anyio.Event | None = None
        self.hosts = _names_of(self._static)
        self.errors: dict[str, NotResolved] = {}
        """Names that could not be resolved the last time, and why."""
        self.stale_served = 0
        self.is_watched = False
        """Whether `run` has been started."""
        self.resolved_at = 0.0

    async def resolve(self) -> None:
        """Look at every name once, and let the endpoints follow."""
        await self._look((*self.services, *self.hosts))

    async def begin(self) -> None:
        """Look at those that are not known, and those that nobody would look at again: for a configuration that begins.

        What is known and followed is left to its time, so that a reload neither asks for it nor waits for an answer.
        """
        known = self._found.keys() | self._targets.keys()
        await self._look(
            [name for name in (*self.services, *self.hosts) if name not in known or self._due.get(name, inf) == inf]
        )

    async def _look(self, names: Sequence[str]) -> None:
        if not names:
            return
        services = [name for name in names if name in self.services]
        if services:
            await self._each(services, self._resolver.services, self._targets)
            self._gather()
        hosts = [host for host in self.hosts if host in names or host not in self._due]
        if hosts:
            await self._each(hosts, self._resolver.resolve, self._found)
        self.resolved_at = self._pool.network.deadlines.now
        self._follow()

    async def _each(
        self, names: Sequence[str], look: Callable[[str], Awaitable[_Found]], known: dict[str, _Found]
    ) -> None:
        """Look at *names*, and keep what is found in *known*."""
        deadlines = self._pool.network.deadlines

        async def one(name: str) -> None:
            try:
                found = await look(name)
            except NotResolved as error:
                self._due[name] = deadlines.now + min(self._refresh or RESOLVE_AGAIN, RESOLVE_AGAIN)
                if name not in self.errors or str(self.errors[name]) != str(error):
                    log.warning("upstream %s: %s", self._pool.name, error)
                self.errors[name] = error
                if not self._stale:
                    known.pop(name, None)
                elif name in known:
                    self.stale_served += 1
                return
            if self.errors.pop(name, None) is not None:
                log.info("upstream %s: %s is resolved again", self._pool.name, name)
            known[name] = found
            self._due[name] = deadlines.now + self._holds(found.ttl)

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(one, name)

    def _gather(self) -> None:
        """Let the services say which names there are; what was known of those that are gone is forgotten."""
        targets = [target for each in self._targets.values() for target in each.targets]
        self._endpoints = (*self._static, *_endpoints_of(targets))
        self.hosts = _names_of(self._endpoints)
        for name in self._due.keys() - {*self.hosts, *self.services}:
            del self._due[name]
            self._found.pop(name, None)
            self.errors.pop(name, None)

    async def ask(self) -> None:
        """Look now, for a request that cannot do without; if another one has asked already, wait for that."""
        if self._asked is not None:
            await self._asked.wait()
            return
        self._asked = asked = anyio.Event()
        try:
            await self.resolve()
        finally:
            self._asked = None
            asked.set()

    def _follow(self) -> None:
        wanted = [each for endpoint in self._endpoints for each in self._addresses(endpoint)]
        if self._pool.replace(dict(wanted)):
            addresses = ", ".join(str(origin.endpoint) for origin in self._pool.origins) or "none"
            log.info("upstream %s: its addresses are %s", self._pool.name, addresses)
            self._members.replace(self._pool.origins)

    def _addresses(self, endpoint: Endpoint) -> Sequence[tuple[Endpoint, tuple[str, ...]]]:
        """Return what *endpoint* stands for: an endpoint for each address, and the addresses it may be reached by."""
        found = self._found.get(endpoint.host)
        if found is None:
            return [(endpoint, (endpoint.host,))] if is_literal(endpoint.host) else []
        others = found.others
        return [
            (
                replace(endpoint, address="" if address == endpoint.host else address),
                (address, *others[number % len(others) : number % len(others) + 1]) if others else (address,),
            )
            for number, address in enumerate(found.addresses)
        ]

    def _holds(self, ttl: float | None) -> float:
        """Return in how many seconds to look again; infinity for never."""
        if ttl is None:
            return self._refresh * random.uniform(0.9, 1.1) or inf  # noqa: S311  # spread, not secret
        # Not before it has run out: caches on the way would repeat what they said.
        return min(max(ttl, TTL_LEAST), TTL_MOST) * random.uniform(1.0, 1.1)  # noqa: S311  # as above

    async def run(self) -> None:
        """Look again from time to time, sooner while something could not be resolved."""
        network = self._pool.network
        soon = min(self._refresh or RESOLVE_AGAIN, RESOLVE_AGAIN)
        with self._scope:
            while True:
                now = network.deadlines.now
                for name in (*self.services, *self.hosts):
                    self._due.setdefault(name, now + soon)  # one that nobody had the time to wait for
                wait = min(self._due.values()) - now
                if wait == inf:
                    return
                if wait > 0:
                    await network.sleep(wait)
                now = network.deadlines.now
                await self._look([name for name, due in self._due.items() if due <= now])

    def unresolved(self) -> list[str]:
        """Return the names of which no address is known."""
        known = self._found.keys() | self._targets.keys()
        return [name for name in (*self.services, *self.hosts) if name not in known]

    def close(self) -> None:
        self._scope.cancel()

    def __repr__(self) -> str:
        return f"<Names {self._pool.name} {', '.join((*self.services, *self.hosts))}, {len(self.errors)} unresolved>"


def _names_of(endpoints: Sequence[Endpoint]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.host for each in endpoints if not is_literal(each.host)))


def _endpoints_of(targets: Sequence[Target]) -> list[Endpoint]:
    """Return the endpoints that *targets* are.

    A weight of 0 beside greater ones has "a very small chance of being selected" (RFC 2782): here a hundredth of what
    a weight of 1 has. Where all of a priority are 0, they are equal.
    """
    some = {each.priority for each in targets if each.weight}
    none = {each.priority for each in targets if not each.weight}
    mixed = some & none
    return [
        Endpoint(each.host, each.port, max(each.weight * (_FINE if each.priority in mixed else 1), 1), each.priority)
        for each in targets
    ]
