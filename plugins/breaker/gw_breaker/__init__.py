"""The plugin ``breaker``: what it has for the gateway. Settings, the state machine and filters are in modules of their own."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import monotonic_ns
from typing import Any

import anyio
import click

from gw import Context, Filter, Problem, RetryBudget, RouteInfo, Sections, hookimpl
from gw_breaker.breakers import Breakers, breakers_of
from gw_breaker.limits import BOARD_POLL
from gw_breaker.orders import add_commands, orders
from gw_breaker.placing import filters, others, problems, retry_budget
from gw_breaker.settings import BreakerSettings, RouteBreaker

__all__ = ["GW_API", "Breakers", "breakers_of"]

GW_API = 1


@hookimpl
def gw_sections() -> Sections:
    return Sections("circuit_breaker", gateway=BreakerSettings, upstream=BreakerSettings, route=RouteBreaker)


@hookimpl
def gw_filters(route: RouteInfo, ctx: Context) -> Sequence[Filter]:
    return filters(route, ctx)


@hookimpl
def gw_upstreams(route: RouteInfo, ctx: Context) -> Iterable[str]:
    return others(route, ctx)


@hookimpl
def gw_check(config: Any) -> Iterable[Problem]:
    return problems(config)


@hookimpl
def gw_retry_budget(ctx: Context, upstream: str) -> RetryBudget | None:
    return retry_budget(upstream, ctx)


@hookimpl
def gw_lifespan(ctx: Context) -> AbstractAsyncContextManager[None]:
    return _serving(ctx)


@asynccontextmanager
async def _serving(ctx: Context) -> AsyncIterator[None]:
    """As long as a configuration has exchanges, a breaker that opens may have to send some of them away."""
    breakers = breakers_of(ctx)
    breakers.join(ctx)
    try:
        if breakers.open_board(ctx) is None:
            yield
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_listen, breakers)
                try:
                    yield
                finally:
                    tasks.cancel_scope.cancel()
    finally:
        breakers.leave(ctx)


async def _listen(breakers: Breakers) -> None:
    """Do as the other workers' breakers do."""
    while True:
        breakers.listen(monotonic_ns())
        await anyio.sleep(BOARD_POLL)


@hookimpl
def gw_takeover(ctx: Context) -> None:
    breakers_of(ctx).take_over(ctx, monotonic_ns())


@hookimpl
def gw_stats(ctx: Context) -> Mapping[str, Any]:
    return breakers_of(ctx).stats()


@hookimpl
def gw_orders(ctx: Context) -> Mapping[str, Callable[[Mapping[str, str]], Any]]:
    return orders(breakers_of(ctx))


@hookimpl
def gw_commands(cli: click.Group) -> None:
    add_commands(cli)
