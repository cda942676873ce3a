"""Six filters of four hooks that do nothing: what the chain itself costs. `run.py` loads it for its `filters` scenario."""

from __future__ import annotations

from collections.abc import Sequence

from gw.filters import Attempt, Exchange, Filter, Reply, Retry
from gw.hookspecs import Context, hookimpl
from gw.keys import RouteInfo

GW_API = 1


class Noop(Filter):
    name = "noop"

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        return None

    async def on_upstream_request(self, ex: Exchange, attempt: Attempt) -> Reply | None:
        return None

    async def on_upstream_response(self, ex: Exchange, attempt: Attempt) -> Reply | Retry | None:
        return None

    def on_response_headers(self, ex: Exchange) -> None:
        pass


@hookimpl
def gw_filters(route: RouteInfo, ctx: Context) -> Sequence[Filter]:
    return [Noop() for _ in range(6)]
