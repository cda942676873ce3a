"""Active health checks: endpoints are asked whether they are well, over connections of the checks' own.

What is said, and what makes a good answer, is `gw.upstream.probe`'s business.
What follows from the answers is said to the `EndpointSet`; what may be concluded from requests that were sent anyway
is `gw.upstream.outliers`' business.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import anyio

from gw.failures import UpstreamFailure
from gw.http.engines import Engine
from gw.limits import CHECKS_AT_ONCE
from gw.net.network import Network
from gw.net.stream import Stream, StreamLost
from gw.upstream.endpoints import EndpointSet, Member
from gw.upstream.pool import Origin
from gw.upstream.probe import HealthCheck, Unwell, ask

__all__ = ["HealthChecks"]

log = logging.getLogger("gw.upstream")


class HealthChecks:
    """The checks of one upstream: a task an endpoint, until `close`."""

    def __init__(
        self,
        check: HealthCheck,
        endpoints: EndpointSet,
        network: Network,
        engine: Engine,
        dial: Callable[[Origin], Awaitable[tuple[Stream, bool]]],
    ) -> None:
        self._check, self._endpoints, self._network, self._engine = check, endpoints, network, engine
        self._dial = dial
        self._running: dict[Member, anyio.CancelScope] = {}
        self._at_once = anyio.Semaphore(CHECKS_AT_ONCE)
        self.done = 0
        self.failed = 0
        endpoints.on_change.append(self.follow)

    def follow(self) -> None:
        """Check the endpoints that there are now, and no others."""
        members = set(self._endpoints.members)
        for gone in set(self._running) - members:
            self._running.pop(gone).cancel()
        for member in members - set(self._running):
            self._running[member] = scope = anyio.CancelScope()
            self._network.tasks.start_soon(self._watch, member, scope)

    async def _watch(self, member: Member, scope: anyio.CancelScope) -> None:
        check = self._check
        streak = 0
        first = True
        with scope:
            while True:
                why = await self._once(member.origin)
                self.done += 1
                self.failed += why is not None
                streak = 0 if (why is None) == member.healthy else streak + 1
                needed = 1 if first else check.unhealthy_threshold if member.healthy else check.healthy_threshold
                first = False
                if streak >= needed:
                    streak = 0
                    self._say(member, why, needed)
                    self._endpoints.mark(member, healthy=why is None)
                await self._network.sleep(check.interval * (1 + check.jitter * random.uniform(-1, 1)))  # noqa: S311  # spread, not secret

    def _say(self, member: Member, why: str | None, checks: int) -> None:
        name = self._endpoints.name
        if why is None:
            log.info("upstream %s: endpoint %s is healthy again", name, member.endpoint)
        else:
            log.warning("upstream %s: endpoint %s is unhealthy: %s (checks: %d)", name, member.endpoint, why, checks)

    async def _once(self, origin: Origin) -> str | None:
        """Check once; return what is wrong."""
        async with self._at_once:
            scope = anyio.CancelScope()
            due = self._network.deadlines.due(scope.cancel)
            due.after(self._check.timeout)
            stream: Stream | None = None
            try:
                with scope:
                    stream, http2 = await self._dial(origin)
                    if self._check.kind != "tcp":
                        await ask(self._check, stream, self._engine, origin.authority, http2=http2)
                    return None
            except Unwell as unwell:
                return str(unwell)
            except (OSError, UpstreamFailure) as error:
                return f"cannot connect: {error}"
            except (anyio.EndOfStream, StreamLost):
                return "it closed the connection without an answer"
            finally:
                due.forget()
                if stream is not None:
                    stream.abort()
            return f"no answer within {self._check.timeout:g} s"

    def close(self) -> None:
        """Stop."""
        for scope in self._running.values():
            scope.cancel()
        self._running.clear()

    def __repr__(self) -> str:
        return (
            f"<HealthChecks {self._endpoints.name} {len(self._running)} endpoints, {self.failed} of {self.done} failed>"
        )
