"""Connections that are open before a request wants them: so many of an upstream's, to endpoints that may be chosen.

How a connection is opened and kept is the pool's business. Requests do not notice this: it looks at the pool from time to time.
"""

from __future__ import annotations

import anyio

from gw.failures import UpstreamFailure
from gw.limits import WARM_INTERVAL, WARM_INTERVAL_MOST
from gw.upstream.endpoints import EndpointSet
from gw.upstream.pool import Pool

__all__ = ["Warmth"]


class Warmth:
    """Keeps *least* connections of a pool waiting for requests, until `close`; shared ones count while they take any."""

    def __init__(self, least: int, pool: Pool, endpoints: EndpointSet) -> None:
        self._least, self._pool, self._endpoints = least, pool, endpoints
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        """Look again and again; less often while connecting fails."""
        wait = WARM_INTERVAL
        with self._scope:
            while True:
                try:
                    await self._fill()
                except UpstreamFailure:  # requests and checks will say so, if anybody cares
                    wait = min(wait * 2, WARM_INTERVAL_MOST)
                else:
                    wait = WARM_INTERVAL
                await self._pool.network.sleep(wait)

    async def _fill(self) -> None:
        pool = self._pool
        while pool.warm < self._least and pool.open < pool.settings.max_connections:
            origins = [member.origin for member in self._endpoints.candidates]
            if not origins:
                return
            before = pool.warm
            await pool.open_ahead(min(origins, key=lambda origin: len(origin.idle) + len(origin.sessions)))
            if pool.warm <= before:  # somebody was waiting for it, or it is not kept
                return

    def close(self) -> None:
        self._scope.cancel()

    def __repr__(self) -> str:
        return f"<Warmth {self._pool.name} {self._pool.warm} of {self._least}>"
