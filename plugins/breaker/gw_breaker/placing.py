"""Which filters a route gets, whose breakers they ask, and what an upstream may retry: the sections, put together.

A route's own section makes breakers of the route's own. An upstream's section, or else that of the gateway, makes
breakers that all routes to the upstream share, unless its scope is `route`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from gw import Context, Filter, Problem, RetryBudget, RouteInfo
from gw_breaker.breakers import Scope, breakers_of
from gw_breaker.bulkhead import Bulkhead, BulkheadFilter
from gw_breaker.fallback import Instead, LastGood, Recorder
from gw_breaker.filter import BreakerFilter, Guard
from gw_breaker.settings import BreakerSettings, rules
from gw_breaker.verdicts import Verdicts

__all__ = ["filters", "others", "problems", "retry_budget"]


def filters(route: RouteInfo, ctx: Context) -> tuple[Filter, ...]:
    """Return the filters that *route* needs: none where no breaker is enabled and nothing is bounded.

    The bulkhead stands first: a probe's place is not held while waiting for a turn.
    """
    guards: dict[str, Guard] = {}
    stores: dict[str, LastGood] = {}
    bulkheads: dict[str, Bulkhead] = {}
    for upstream, section, owner in (*_sections(route, ctx), *_others(route, ctx)):
        if section.enabled:
            scope = Scope(upstream, owner, section.scope == "endpoint", section.scope == "machine")
            group = breakers_of(ctx).want(ctx, scope, rules(section))
            instead, elsewhere = None, ""
            if (asked := section.fallback) is not None:
                if (kept := asked.cached) is not None:
                    stores[upstream] = ctx.shared(("kept", scope, kept), partial(LastGood, kept))
                instead, elsewhere = Instead(stores.get(upstream), asked.respond), asked.upstream or ""
            guards[upstream] = Guard(group, Verdicts(section.failures), instead, elsewhere)
        if (bounds := section.bulkhead) is not None:
            if section.mode == "shadow":  # to wait would be an effect
                bounds = bounds.model_copy(update={"max_queue": 0})
            bulkheads[upstream] = breakers_of(ctx).want_bulkhead(ctx, Scope(upstream, owner), bounds)
    made: list[Filter] = []
    if bulkheads:
        made.append(BulkheadFilter(bulkheads))
    if guards:
        made.append(BreakerFilter(guards))
    if stores:
        made.append(Recorder(stores))
    return tuple(made)


def retry_budget(upstream: str, ctx: Context) -> RetryBudget | None:
    """Return how many requests to *upstream* may be retries; no bound where no breaker is enabled (behaviour 15.5)."""
    section = _of_upstream(upstream, ctx)
    if section is None or not section.enabled:
        return None
    return RetryBudget(
        section.retry_budget_percent,
        section.retry_budget_min_concurrency,
        dry_run=section.dry_run or section.mode == "shadow",
    )


def _sections(route: RouteInfo, ctx: Context) -> Iterator[tuple[str, BreakerSettings, str]]:
    """Yield each upstream of *route*, the section that holds for it, and whose that is: the route's name, or nobody's."""
    _, _, own = ctx.sections(route)
    for upstream in route.upstreams:
        if own is not None:
            yield upstream, own, route.name
        elif (section := _of_upstream(upstream, ctx)) is not None:
            yield upstream, section, route.name if section.scope == "route" else ""


def others(route: RouteInfo, ctx: Context) -> tuple[str, ...]:
    """Return the upstreams that requests of *route* go to while the breaker of one of its own is open."""
    asked = [section.fallback for _, section, _ in _sections(route, ctx) if section.enabled]
    return tuple({each.upstream: None for each in asked if each is not None and each.upstream is not None})


def _others(route: RouteInfo, ctx: Context) -> Iterator[tuple[str, BreakerSettings, str]]:
    """Yield each of the others that the route does not have anyway, with its own breaker."""
    for upstream in others(route, ctx):
        section = _of_upstream(upstream, ctx)
        if section is not None and upstream not in route.upstreams:
            yield upstream, section, route.name if section.scope == "route" else ""


def problems(config: Any) -> Iterator[Problem]:
    """Yield what is wrong with the fallbacks of *config*, the whole configuration."""
    names = [each.name for each in config.upstreams]
    sections: list[tuple[tuple[str | int, ...], BreakerSettings | None, str]] = [
        (("circuit_breaker",), config.circuit_breaker, "")
    ]
    sections += [
        (("upstreams", at, "circuit_breaker"), up.circuit_breaker, up.name) for at, up in enumerate(config.upstreams)
    ]
    sections += [(("routes", at, "circuit_breaker"), each.circuit_breaker, "") for at, each in enumerate(config.routes)]
    for at, section, own in sections:
        other = None if section is None or section.fallback is None else section.fallback.upstream
        if other is None:
            continue
        if other not in names:
            hint = f"there are {', '.join(names)}" if names else "there are none"
            yield Problem((*at, "fallback", "upstream"), f"there is no upstream {other!r}; {hint}")
        elif other == own:
            yield Problem((*at, "fallback", "upstream"), "is the upstream itself")


def _of_upstream(upstream: str, ctx: Context) -> BreakerSettings | None:
    section: BreakerSettings | None = ctx.upstream_section(upstream) or ctx.section()
    return section
