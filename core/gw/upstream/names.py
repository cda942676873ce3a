"""Upstreams whose endpoints have names: each address of a name is an endpoint, and they follow the name as it changes.

How a name is resolved is `gw.net.resolve`'s business.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from math import inf

import anyio

from gw.keys import Endpoint
from gw.limits import RESOLVE_AGAIN, TTL_LEAST, TTL_MOST
from gw.net.resolve import NotResolved, Resolved, Resolver, is_literal
from gw.upstream.endpoints import EndpointSet
from gw.upstream.pool import Pool

__all__ = ["Names"]

log = logging.getLogger("gw.upstream")


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
        refresh: float = 30.0,
        stale: bool = True,
    ) -> None:
        self._endpoints, self._members, self._pool, self._resolver = endpoints, members, pool, resolver
        self._refresh, self._stale = refresh, stale
        self._found: dict[str, Resolved] = {}
        self._due: dict[str, float] = {}
        """When each is to be looked at again."""
        self._scope = anyio.CancelScope()
        self._asked: anyio.Event | None = None
        self.hosts = tuple(dict.fromkeys(each.host for each in endpoints if not is_literal(each.host)))
        self.errors: dict[str, NotResolved] = {}
        """Names that could not be resolved the last time, and why."""
        self.stale_served = 0
        self.is_watched = False
        """Whether `run` has been started."""
        self.resolved_at = 0.0

    async def resolve(self) -> None:
        """Look at every name once, and let the endpoints follow."""
        await self._look(self.hosts)

    async def begin(self) -> None:
        """Look at those that are not known, and those that nobody would look at again: for a configuration that begins.

        What is known and followed is left to its time, so that a reload neither asks for it nor waits for an answer.
        """
        await self._look([host for host in self.hosts if host not in self._found or self._due.get(host, inf) == inf])

    async def _look(self, hosts: Sequence[str]) -> None:
        if not hosts:
            return
        deadlines = self._pool.network.deadlines

        async def one(host: str) -> None:
            try:
                found = await self._resolver.resolve(host)
            except NotResolved as error:
                self._due[host] = deadlines.now + min(self._refresh or RESOLVE_AGAIN, RESOLVE_AGAIN)
                if host not in self.errors or str(self.errors[host]) != str(error):
                    log.warning("upstream %s: %s", self._pool.name, error)
                self.errors[host] = error
                if not self._stale:
                    self._found.pop(host, None)
                elif host in self._found:
                    self.stale_served += 1
                return
            if self.errors.pop(host, None) is not None:
                log.info("upstream %s: %s is resolved again", self._pool.name, host)
            self._found[host] = found
            self._due[host] = deadlines.now + self._holds(found.ttl)

        async with anyio.create_task_group() as tasks:
            for host in hosts:
                tasks.start_soon(one, host)
        self.resolved_at = deadlines.now
        self._follow()

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
                for host in self.hosts:
                    self._due.setdefault(host, now + soon)  # one that nobody had the time to wait for
                wait = min(self._due.values()) - now
                if wait == inf:
                    return
                if wait > 0:
                    await network.sleep(wait)
                now = network.deadlines.now
                await self._look([host for host in self.hosts if self._due[host] <= now])

    def unresolved(self) -> list[str]:
        """Return the names of which no address is known."""
        return [host for host in self.hosts if host not in self._found]

    def close(self) -> None:
        self._scope.cancel()

    def __repr__(self) -> str:
        return f"<Names {self._pool.name} {', '.join(self.hosts)}, {len(self.errors)} unresolved>"
