"""The plugin ``ratelimit``: what it has for the gateway. Settings, filters and stores are in modules of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import anyio

from gw import Context, Filter, Problem, RouteInfo, Sections, hookimpl
from gw_ratelimit.checks import problems
from gw_ratelimit.filter import Stores, filters
from gw_ratelimit.headers import STYLES
from gw_ratelimit.keys import reads_secrets
from gw_ratelimit.leases import Leases
from gw_ratelimit.redis import RedisStore, tls_context
from gw_ratelimit.rules import any_under_way, identity_of, keys_of_all, rule_of
from gw_ratelimit.settings import GatewayRateLimit, RateLimit, ZoneSettings
from gw_ratelimit.stores import SharedStore, steady_ms
from gw_ratelimit.table import SharedTable
from gw_ratelimit.zones import LEVELS, Zone

GW_API = 1


@hookimpl
def gw_sections() -> Sections:
    return Sections("rate_limit", gateway=GatewayRateLimit, upstream=RateLimit, route=RateLimit)


@hookimpl
def gw_filters_before(route: RouteInfo, ctx: Context, plugin: str) -> Sequence[Filter]:
    _passed(route, ctx).add(plugin)
    return _filters(route, ctx, lambda zone: zone.before == plugin, plugin)


@hookimpl
def gw_filters(route: RouteInfo, ctx: Context) -> Sequence[Filter]:
    passed = _passed(route, ctx)
    return _filters(route, ctx, lambda zone: zone.before not in passed, "")


def _passed(route: RouteInfo, ctx: Context) -> set[str]:
    """Return the plugins of *route* that come earlier: the zones that stand before them have been placed."""
    return ctx.once(("passed", route.name), set)


def _filters(
    route: RouteInfo, ctx: Context, stands_here: Callable[[ZoneSettings], bool], where: str
) -> tuple[Filter, ...]:
    gateway, upstream, own = ctx.sections(route)
    section: RateLimit | None = own or upstream or gateway
    if section is None or not section.enabled:
        return ()
    here = tuple(zone for zone in section.zones if stands_here(zone))
    if not here:
        return ()
    place = f"route:{route.name}" if own else f"upstream:{route.upstreams[0]}" if upstream else "gateway"
    table = _shared_table(ctx, gateway)
    # Asked for by every route, so that a zone is kept as long as one uses it.
    zones = [_zone(ctx, place, settings, table) for settings in here]
    leases = _leases(ctx)

    def make() -> tuple[Filter, ...]:
        rules = [rule_of(each, section, zone) for each, zone in zip(here, zones, strict=True)]
        style = STYLES[section.header_style] if section.include_headers else None
        alone = len(here) == len(section.zones)
        return filters(rules, _stores(ctx, gateway, table, leases), exclude=section.exclude, style=style, alone=alone)

    # Routes that share a section share its filters.
    return ctx.once(("filters", place, id(section), where), make)


@hookimpl
def gw_check(config: Any) -> Iterable[Problem]:
    return tuple(problems(config))


@hookimpl
def gw_lifespan(ctx: Context) -> AbstractAsyncContextManager[None]:
    table, store = _shared_table(ctx, ctx.section()), _redis(ctx, ctx.section())
    return _running(table, store, _leases(ctx), opens=store is None and any_under_way(ctx.config))


@hookimpl
def gw_stats(ctx: Context) -> Mapping[str, Any]:
    found: dict[str, Any] = {"zones": {zone.label: zone.stats() for zone in sorted(_known(ctx).values(), key=_order)}}
    if (table := _shared_table(ctx, ctx.section())) is not None:
        found["shared"] = {"keys_shared": table.open().held(steady_ms())}
    if (store := _redis(ctx, ctx.section())) is not None:
        found["store"] = store.stats()
    return found


@asynccontextmanager
async def _running(
    table: SharedTable | None, store: RedisStore | None, leases: Leases | None, *, opens: bool
) -> AsyncIterator[None]:
    # Opened here, and not where filters are made: whoever only describes a configuration makes no file.
    if table is not None:
        table.open()
    if leases is not None and opens:
        leases.open()
    async with anyio.create_task_group() as tasks:
        if store is not None:
            tasks.start_soon(store.run)
        try:
            yield
        finally:
            if store is not None:
                await store.settle()
            tasks.cancel_scope.cancel()


def _order(zone: Zone) -> tuple[str, str]:
    return zone.place, zone.identity


def _known(ctx: Context) -> WeakValueDictionary[tuple[str, str], Zone]:
    """Return every zone that some generation has, for statistics and metrics."""

    def make() -> WeakValueDictionary[tuple[str, str], Zone]:
        zones: WeakValueDictionary[tuple[str, str], Zone] = WeakValueDictionary()
        figures = ctx.figures
        decisions = figures.counter(
            "gw.rate_limit.decisions", "{requests}", "Decisions of each zone", ("zone", "decision")
        )
        decisions.watch(lambda: _decisions(zones.values()))
        degraded = figures.counter(
            "gw.rate_limit.degraded", "{requests}", "Decisions made without the store that should have", ("zone",)
        )
        degraded.watch(lambda: [((zone.label,), zone.degraded) for zone in zones.values()])
        return zones

    return ctx.shared("zones", make)


def _decisions(zones: Iterable[Zone]) -> Iterator[tuple[tuple[str, str], int]]:
    for zone in zones:
        yield (zone.label, "admit"), zone.admitted
        yield (zone.label, "reject"), zone.denied
        yield (zone.label, "dry_run_reject"), zone.would_deny


def _zone(ctx: Context, place: str, settings: ZoneSettings, table: SharedTable | None) -> Zone:
    identity = identity_of(settings)

    def make() -> Zone:
        hides = reads_secrets(settings.key_type)
        zone = Zone(place, settings.name, identity, settings.max_entries, table, hides=hides)
        zone.tokens = ctx.figures.histogram(
            "gw.rate_limit.tokens", "{tokens}", "Tokens that were left after a decision", ("zone",), bounds=LEVELS
        ).at(zone.label)
        known[place, identity] = zone
        return zone

    known = _known(ctx)
    zone = ctx.shared(("zone", place, identity, id(table)), make)
    zone.resize(settings.max_entries)
    return zone


def _shared_table(ctx: Context, section: GatewayRateLimit | None) -> SharedTable | None:
    """Return the table that processes share: the one that is configured, or where there are workers one of theirs."""
    if section is not None and section.store is not None:
        shared = section.store.shared
        if shared is None:
            return None
        fd = None if shared.fd is None else partial(int, shared.fd)
        return ctx.shared(("table", shared), lambda: SharedTable(shared.path, fd, shared.max_entries))
    keys = 0 if ctx.alone else keys_of_all(ctx.config)
    if not keys:
        return None
    tables: WeakValueDictionary[int, SharedTable] = ctx.shared("tables", WeakValueDictionary)

    def make() -> SharedTable:
        before = next(iter(tables.values()), None)  # a reload that needs another one takes along what is known
        made = tables[keys] = SharedTable("", partial(ctx.shared_memory, f"keys-{keys}"), keys, before)
        return made

    return ctx.shared(("workers", keys), make)


def _leases(ctx: Context) -> Leases | None:
    """Return what the workers count requests under way with, whatever store there is.

    Configurations that count none have it, too: one object lives as long as the gateway, and knows what is under way.
    """
    if ctx.alone:
        return None
    return ctx.shared("leases", lambda: Leases(lambda number: ctx.shared_memory(f"under-way-{number}")))


def _redis(ctx: Context, section: GatewayRateLimit | None) -> RedisStore | None:
    settings = section.store.redis if section is not None and section.store is not None else None
    if settings is None:
        return None

    def make() -> RedisStore:
        url, timeout = settings.url.get_secret_value(), settings.timeout_ms / 1000
        return RedisStore(
            url,
            timeout=timeout,
            prefix=settings.prefix,
            log=ctx.log,
            cluster=settings.cluster,
            tls=lambda: tls_context(settings),
        )

    return ctx.shared(("redis", id(settings)), make)


def _stores(ctx: Context, section: GatewayRateLimit | None, table: SharedTable | None, leases: Leases | None) -> Stores:
    chosen = _redis(ctx, section) if table is None else SharedStore()
    return Stores(chosen, "local" if section is None else section.on_store_error, leases)
