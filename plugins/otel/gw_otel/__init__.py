"""The plugin ``otel``: what it has for the gateway. Its section is called ``observability``, as in the reference."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from gw import Context, Filter, LocalRoute, Problem, RouteInfo, Sections, hookimpl
from gw_otel.checks import problems
from gw_otel.settings import Observability
from gw_otel.telemetry import Observed

GW_API = 1


@hookimpl
def gw_sections() -> Sections:
    return Sections("observability", gateway=Observability)


@hookimpl
def gw_filters(route: RouteInfo, ctx: Context) -> Sequence[Filter]:
    observed = _observed(ctx)
    return () if observed is None else (observed.filter_for(route),)


@hookimpl
def gw_endpoints(ctx: Context) -> Iterable[LocalRoute]:
    observed = _observed(ctx)
    return () if observed is None else observed.endpoints()


@hookimpl
def gw_lifespan(ctx: Context) -> AbstractAsyncContextManager[None] | None:
    observed = _observed(ctx)
    return None if observed is None else observed.running()


@hookimpl
def gw_stats(ctx: Context) -> Mapping[str, Any]:
    observed = _observed(ctx)
    return {"enabled": False} if observed is None else {"enabled": True, **observed.stats()}


@hookimpl
def gw_check(config: Any) -> Iterable[Problem]:
    return tuple(problems(config))


def _observed(ctx: Context) -> Observed | None:
    """Return what this configuration has; filters, endpoints and background work share it."""
    asked: Observability | None = ctx.section()
    if asked is None or not asked.enabled:
        return None
    return ctx.once("observed", lambda: Observed(asked, ctx))
