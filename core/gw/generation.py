"""A configuration brought to life: its routes, chains and pools; and how one follows another.

A generation is built off to one side. If anything in it fails, what was opened
is closed again and the old one carries on untouched. Exchanges finish on the
generation they began with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
from math import inf
from types import MappingProxyType
from typing import Any, Final

import anyio
from anyio.abc import TaskStatus

from gw.applications import App, AppTarget, Mount
from gw.around import HOOKS, Placed
from gw.chain import Chain, ChainError
from gw.config.apps import application
from gw.config.load import Loaded
from gw.config.model import RouteConfig
from gw.config.upstream import HeaderRewriteConfig, UpstreamConfig
from gw.context import NO_POOLS, PluginContext, Shared
from gw.filters import Body, Exchange, Filter
from gw.hookspecs import LocalRoute, LocalWebSocket, Problem
from gw.http.engines import Engine
from gw.http.h1 import ReaderLimits
from gw.http.paths import PathPolicy
from gw.keys import RetryBudget, RouteInfo
from gw.limits import (
    CLOSING_GRACE,
    MAX_HEADER_COUNT,
    MAX_OLD_GENERATIONS,
    MAX_RESPONSE_HEADER_SIZE,
    MAX_TRAILER_SIZE,
    WS_CLOSE_TIME,
)
from gw.net.network import Network
from gw.patterns import kept_path, reference_patterns
from gw.pools import put_to_work
from gw.routing import Condition, Match, Router
from gw.services import Service, resolve
from gw.terms import terms_of
from gw.tunnel import Live, Terms
from gw.upstream.forward import Forwarding
from gw.upstream.mirror import Mirror
from gw.upstream.pool import Pool
from gw.upstream.retry import RetryAccount
from gw.upstream.target import Leg, RouteTarget, claim

__all__ = ["Current", "Generation", "PluginContext", "Proxied", "Route", "RouteRow", "Shared", "build", "describe"]

log = logging.getLogger("gw.generation")

_NO_APPS: Final[Mapping[str, App]] = MappingProxyType({})

UNMATCHED = RouteInfo("gw.unmatched", path="")
"""The route of requests that no route takes: the gateway's own filters still see them (behaviour 10.2)."""


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the route table, ready to run."""

    info: RouteInfo
    match: Match
    chain: Chain
    target: RouteTarget | AppTarget | LocalRoute | LocalWebSocket | None
    max_body_size: int
    via: bytes
    websocket: Terms | None
    """On which its requests may become WebSockets; `None`: not at all."""


@dataclass(frozen=True, slots=True)
class Proxied:
    """A path of the embedding program's that goes to an upstream of the configuration."""

    pattern: str
    upstream: str
    methods: tuple[str, ...] = ()


class Generation:
    """What a configuration became. Immutable but for the count of its users."""

    def __init__(
        self,
        number: int,
        loaded: Loaded,
        routes: list[Route],
        unmatched: Chain,
        pools: dict[str, Pool],
        services: dict[str, Service],
        contexts: Mapping[str, PluginContext],
        stack: AsyncExitStack,
        live: Live,
    ) -> None:
        self.number, self.loaded, self.pools, self.services, self.live = number, loaded, pools, services, live
        self.contexts = contexts
        self.paths = _path_policy(loaded)
        self.router = Router(((r.info.name, r.match, r) for r in routes), self.paths)
        self.routes, self.unmatched = routes, unmatched
        for loser, winner in self.router.displaced:
            if loser.partition(" ")[0] != winner.partition(" ")[0]:  # not the bare companion of its own prefix
                log.warning("route %r gives way to %r for some or all of its requests", loser, winner)
        self.users = 0
        self.idle: anyio.Event | None = None
        self._stack = stack

    def stats(self) -> dict[str, Any]:
        """Return the figures of each plugin that has some, by its section. One that raises is logged and left out."""
        found: dict[str, Any] = {}
        for name, context in self.contexts.items():
            try:
                theirs = self.loaded.plugins.call(name, "gw_stats", ctx=context)
            except Exception:
                log.exception("plugin %s raised in gw_stats", name)
                continue
            if theirs is not None:
                found[context.section_name] = theirs
        return found

    def order(self, plugin: str, name: str, values: Mapping[str, str]) -> Any:
        """Have *plugin* do what it calls *name*; return what it answers. Raises `ValueError` where it cannot, or will not."""
        context = self.contexts.get(plugin)
        orders = None if context is None else self.loaded.plugins.call(plugin, "gw_orders", ctx=context)
        if orders is None or name not in orders:
            there = (
                "no plugin of that name is loaded" if context is None else f"it has {', '.join(orders or ()) or 'none'}"
            )
            raise ValueError(f"there is no order {plugin} {name}: {there}")
        try:
            answer = orders[name](values)
            json.dumps(answer)
        except ValueError:
            raise
        except Exception as error:
            log.exception("plugin %s raised in its order %s", plugin, name)
            raise ValueError(f"{plugin} raised {type(error).__name__} in {name}; the log says where") from error
        return answer

    def take_over(self) -> None:
        """Tell the plugins that new exchanges come here from now on."""
        for name, context in self.contexts.items():
            try:
                self.loaded.plugins.call(name, "gw_takeover", ctx=context)
            except Exception:
                log.exception("plugin %s raised in gw_takeover; what it shares may be as it was before", name)

    async def aclose(self) -> None:
        await self._stack.aclose()


async def build(
    number: int,
    loaded: Loaded,
    network: Network,
    engine: Engine,
    shared: Shared,
    own: Sequence[LocalRoute | LocalWebSocket | Mount | Proxied] = (),
    yields: Sequence[LocalRoute] = (),
    first: Sequence[Filter] = (),
) -> Generation:
    """Bring *loaded* to life, with the embedding program's *own* paths, and those of ours that a configured one *yields* to.

    The filters that come *first* stand before those of plugins, everywhere.

    Whatever fails, nothing stays open; raises `ChainError`, `RouteConflict`, ...
    """
    async with AsyncExitStack() as stack:
        limits = ReaderLimits(MAX_RESPONSE_HEADER_SIZE, MAX_HEADER_COUNT, MAX_TRAILER_SIZE)
        pools: dict[str, Pool] = {}
        apps: dict[str, App] = {}
        services: dict[str, Service] = {}
        for upstream in loaded.config.upstreams:
            if upstream.application is not None:
                apps[upstream.name] = await _start(upstream, upstream.application, loaded, network, shared, stack)
                continue
            held = put_to_work(upstream, loaded, network, engine, limits, shared, stack)
            pools[upstream.name], services[upstream.name] = held.pool, held.service
        builder = _Builder(loaded, shared, stack, pools, number, apps, first)
        await builder.serve(services, network, shared, stack)
        routes = [*builder.routes(pools), *(builder.own(each, pools) for each in own)]
        routes += (builder.local(each, gives_way=True) for each in yields)
        generation = Generation(
            number,
            loaded,
            routes,
            builder.unmatched(),
            pools,
            builder.services,
            builder.contexts,
            stack,
            shared.websockets,
        )
        for plugin in loaded.plugins:
            lifespan = loaded.plugins.call(plugin.name, "gw_lifespan", ctx=builder.contexts[plugin.name])
            if lifespan is not None:
                await _hold(lifespan, plugin.name, network, stack)
        generation._stack = stack.pop_all()
        return generation


async def _start(
    upstream: UpstreamConfig, name: str, loaded: Loaded, network: Network, shared: Shared, stack: AsyncExitStack
) -> App:
    """Return the application called *name*, which lives as long as some generation has it. Raises `ConfigError`, `ValueError`."""
    try:
        found = application(name)
    except ValueError as error:
        path = ("upstreams", loaded.config.upstreams.index(upstream), "endpoints", 0, "asgi")
        raise loaded.refuse([Problem(path, str(error))]) from None
    app = shared.use(("gw.app", name), lambda: App(name, found), stack)
    stack.push_async_callback(app.leave)
    await app.join(network.tasks)
    return app


async def _hold(
    lifespan: AbstractAsyncContextManager[None], plugin: str, network: Network, stack: AsyncExitStack
) -> None:
    """Enter *lifespan*, and leave it when *stack* is closed: in a task of its own, so that it may hold a task group.

    Generations overlap, and task groups that are entered by one task must be left in the opposite order. Raises what
    entering raises. Once entered, only the stack ends it: what is cancelled is the wait for it, and then it is too.
    """
    closing, closed, scope = anyio.Event(), anyio.Event(), anyio.CancelScope()

    async def live(*, task_status: TaskStatus[None]) -> None:
        began = False
        try:
            with scope:
                async with lifespan:
                    began = scope.shield = True
                    task_status.started()
                    await closing.wait()
        except Exception:
            if not began:
                raise
            log.exception("plugin %s: its background work ended in an error", plugin)
        finally:
            closed.set()

    async def leave() -> None:
        closing.set()
        try:
            await closed.wait()
        finally:
            scope.cancel()

    await network.tasks.start(live)
    stack.push_async_callback(leave)


class Current:
    """The generation that new exchanges join, and those before it that are still in use."""

    def __init__(self, drain: float) -> None:
        self._drain = drain
        self.now: Generation | None = None
        self.old: list[Generation] = []
        """Those that exchanges still run on, the oldest first."""

    async def switch(self, new: Generation | None, *, until: float = inf) -> None:
        """Let *new* take over, as `replace` does, and close the one before as `retire` does, within the time to drain."""
        old = self.replace(new)
        if old is not None:
            await self.retire(old, self._drain, until=until)

    def replace(self, new: Generation | None) -> Generation | None:
        """Let *new* take over: one assignment. Return the one before, which is to be given to `retire`.

        A generation in use may stay as long as a WebSocket does. Beyond MAX_OLD_GENERATIONS the oldest is closed
        under the exchanges it has left, which then go on without the plugins' background work.
        """
        old, self.now = self.now, new
        if new is not None:
            new.take_over()
        if old is not None:
            old.idle = anyio.Event()
            if old.users == 0:
                old.idle.set()
            self.old.append(old)
            for oldest in self.old[:-MAX_OLD_GENERATIONS]:
                log.warning(
                    "generation %d is closed with %d exchanges on it: many came after it", oldest.number, oldest.users
                )
                if oldest.idle is not None:
                    oldest.idle.set()
        return old

    async def retire(self, old: Generation, patience: float = inf, *, until: float = inf) -> None:
        """Wait for the exchanges of *old*, for *patience* seconds, and close it.

        Closing it must be over in the time that draining may take, or at *until* by `anyio.current_time`.
        """
        assert old.idle is not None
        try:
            with anyio.move_on_after(patience):
                await old.idle.wait()
            if old.users and old.live.go_away(old.number):  # WebSockets do not end by themselves
                old.idle = anyio.Event()
                with anyio.move_on_after(min(self._drain, WS_CLOSE_TIME)):
                    await old.idle.wait()
        finally:
            until = min(until, anyio.current_time() + self._drain) + CLOSING_GRACE
            with anyio.CancelScope(shield=True, deadline=until):
                await old.aclose()
            self.old.remove(old)


# --- from settings to objects ---------------------------------------------------------------


class _Builder:
    """Makes the routes of one configuration."""

    def __init__(
        self,
        loaded: Loaded,
        shared: Shared,
        stack: AsyncExitStack,
        pools: Mapping[str, Pool] = NO_POOLS,
        number: int = 0,
        apps: Mapping[str, App] = _NO_APPS,
        first: Sequence[Filter] = (),
    ) -> None:
        self._loaded, self._apps, self._first = loaded, apps, first
        self._terms = partial(terms_of, loaded.config, shared.websockets, number)
        self._policy = _path_policy(loaded)
        self.contexts = {
            plugin.name: PluginContext(plugin.name, loaded, shared, stack, pools) for plugin in loaded.plugins
        }
        self.services: dict[str, Service] = {}

    async def serve(
        self, services: Mapping[str, Service], network: Network, shared: Shared, stack: AsyncExitStack
    ) -> None:
        """Put each of *services* under its upstream's settings for exchanges, and what plugins say about its retries."""
        dns = self._loaded.config.dns
        for upstream in self._loaded.config.upstreams:
            if upstream.name in self._apps:
                continue
            budget: RetryBudget | None = None
            for name, ctx in self.contexts.items():
                if budget is None:
                    budget = self._loaded.plugins.call(name, "gw_retry_budget", ctx=ctx, upstream=upstream.name)
            account = shared.use(("gw.retries", upstream.name), RetryAccount, stack)
            self.services[upstream.name] = services[upstream.name].under(upstream, budget, account)
        missing = await resolve(self.services.values(), dns, network)
        if missing and dns.required:
            raise OSError(f"names of upstreams that cannot be resolved: {'; '.join(missing)}")

    def routes(self, pools: dict[str, Pool] | None) -> Iterator[Route]:
        """Yield every route, in the configuration's order: `routes:`, then the upstreams', then the plugins' own.

        Without *pools* the targets are left out: that is enough to describe them.
        """
        config = self._loaded.config
        upstreams = {upstream.name: upstream for upstream in config.upstreams}
        for index, (name, route) in enumerate(zip(config.route_names(), config.routes, strict=True)):
            yield self._configured(index, name, route, upstreams, pools)
        for index, upstream in enumerate(config.upstreams):
            if upstream.proxy.route_prefix:
                yield from self._prefixed(index, upstream, pools)
        for plugin in self._loaded.plugins:
            own = self._loaded.plugins.call(plugin.name, "gw_endpoints", ctx=self.contexts[plugin.name])
            for local in own or ():
                if isinstance(local, LocalWebSocket) or local.kind != "metrics" or config.status.metrics:
                    yield self.local(local, plugin.name)

    def own(self, own: LocalRoute | LocalWebSocket | Mount | Proxied, pools: dict[str, Pool]) -> Route:
        """Return the route of a path of the embedding program's."""
        if not isinstance(own, Proxied):
            return self.local(own)
        upstream = next((each for each in self._loaded.config.upstreams if each.name == own.upstream), None)
        if upstream is None:
            raise ValueError(f"the program sends {own.pattern} to the upstream {own.upstream!r}, and there is none")
        info = RouteInfo(f"program {own.pattern}", (), own.pattern, own.methods, (own.upstream,))
        return self._passed(info, Match(path=own.pattern, methods=own.methods), upstream, ("plugins",), pools)

    def local(self, local: LocalRoute | LocalWebSocket | Mount, owner: str = "gw", *, gives_way: bool = False) -> Route:
        """Return the route of a path that is answered here."""
        if isinstance(local, Mount):
            info, match = RouteInfo(local.name, path=local.path), Match(prefix=local.path)
            chain = self._chain(info, None, None, ("plugins",))
            return Route(info, match, chain, local.target, self._loaded.config.max_body_size, b"", self._terms())
        info = RouteInfo(local.name or f"{owner}:{local.path}", path=local.path, methods=local.methods)
        match = Match(path=local.path, methods=local.methods, gives_way=gives_way)
        chain = self._chain(info, None, None, ("plugins",))
        terms = self._terms() if isinstance(local, LocalWebSocket) else None
        return Route(info, match, chain, local, self._loaded.config.max_body_size, b"", terms)

    def unmatched(self) -> Chain:
        return self._chain(UNMATCHED, None, None, ("plugins",))

    def _configured(
        self,
        index: int,
        name: str,
        route: RouteConfig,
        upstreams: dict[str, UpstreamConfig],
        pools: dict[str, Pool] | None,
    ) -> Route:
        targets = route.targets()
        match = Match(
            hosts=route.match.host,
            path=route.match.path,
            prefix=route.match.prefix if _has_path(route) else "/",
            regex=route.match.regex,
            methods=route.match.methods,
            headers=tuple(_conditions(route.match.headers)),
            query=tuple(_conditions(route.match.query)),
        )
        info = RouteInfo(name, match.hosts, _where(match), match.methods, tuple(name for name, _ in targets))
        first = upstreams[targets[0][0]] if targets else None
        mirror = () if route.mirror is None or pools is None else self._mirror(route, match, upstreams)
        chain = self._chain(info, first if len(targets) == 1 else None, route, ("routes", index), mirror)
        limit = self._loaded.config.max_body_size if route.max_body_size is None else route.max_body_size
        terms = self._terms(route.websocket)
        if first is not None and first.name in self._apps:
            strips = first.proxy.strip_prefix if route.strip_prefix is None else route.strip_prefix
            app = self._app_target(info, route, first, self._strip(match) if strips else None)
            return Route(info, match, chain, app, limit, b"", terms)
        legs = []
        via = b""
        for upstream_name, weight in targets:
            forwarding = self._routed(route, match, upstreams[upstream_name])
            via = forwarding.via
            canary = route.canaries().get(upstream_name)
            if pools is not None and (weight or canary is not None):
                leg = self.services[upstream_name].leg(route, forwarding, weight)
                leg.claims = None if canary is None else claim(canary.header, canary.cookie, canary.value)
                legs.append(leg)
        target = None
        if legs:
            target = RouteTarget(legs, self._elsewhere(info, route, partial(self._routed, route, match)))
        return Route(info, match, chain, target, limit, via, terms)

    def _prefixed(self, index: int, upstream: UpstreamConfig, pools: dict[str, Pool] | None) -> Iterator[Route]:
        """Yield the routes of ``upstreams[].proxy.route_prefix`` (behaviour 10.3)."""
        proxy = upstream.proxy
        for number, pattern in enumerate(reference_patterns(proxy.route_prefix, self._policy)):
            match = Match(
                path=pattern,
                methods=proxy.methods,
                head_as_get="HEAD" in proxy.methods or "GET" not in proxy.methods,
                gives_way=True,
            )
            name = upstream.name if number == 0 else f"{upstream.name} {pattern}"
            info = RouteInfo(name, (), pattern, match.methods, (upstream.name,))
            yield self._passed(info, match, upstream, ("upstreams", index), pools)

    def _passed(
        self,
        info: RouteInfo,
        match: Match,
        upstream: UpstreamConfig,
        where: tuple[str | int, ...],
        pools: dict[str, Pool] | None,
    ) -> Route:
        """Return a route to *upstream* that has no settings of its own."""
        chain = self._chain(info, upstream, None, where)
        strip = self._strip(match) if upstream.proxy.strip_prefix else None
        limit = self._loaded.config.max_body_size
        if upstream.name in self._apps:
            app = self._app_target(info, None, upstream, strip)
            return Route(info, match, chain, app, limit, b"", self._terms())
        write = partial(self._forwarding, strip)
        forwarding, target = write(upstream), None
        if pools is not None:
            leg = self.services[upstream.name].leg(None, forwarding, 1)
            target = RouteTarget([leg], self._elsewhere(info, None, write))
        return Route(info, match, chain, target, limit, forwarding.via, self._terms())

    def _elsewhere(
        self, info: RouteInfo, route: RouteConfig | None, write: Callable[[UpstreamConfig], Forwarding]
    ) -> dict[str, Leg]:
        """Return the upstreams that plugins may send attempts of a route to; *write* says how they are written there."""
        found: dict[str, Leg] = {}
        for plugin, name in self._named_elsewhere(info, route):
            if name in self._apps:
                raise ChainError(f"route {info.name!r}: {plugin} names the upstream {name!r}, which is an application")
            service = self.services[name]
            found[name] = service.leg(route, write(service.config), 0)
        return found

    def _named_elsewhere(self, info: RouteInfo, route: RouteConfig | None) -> Iterator[tuple[str, str]]:
        """Yield plugins of a route, and the upstreams that they may send its attempts to."""
        for plugin in self._names(route):
            named = self._loaded.plugins.call(plugin, "gw_upstreams", route=info, ctx=self.contexts[plugin])
            for name in named or ():
                yield plugin, name

    def _app_target(
        self,
        info: RouteInfo,
        route: RouteConfig | None,
        upstream: UpstreamConfig,
        strips: Callable[[Exchange], str] | None,
    ) -> AppTarget:
        for plugin, name in self._named_elsewhere(info, route):
            message = f"{plugin} names the upstream {name!r}, which cannot be asked in place of an application"
            raise ChainError(f"route {info.name!r}: {message}")
        return AppTarget(self._apps[upstream.name], upstream.name, strips=strips)

    def _names(self, route: RouteConfig | None) -> Sequence[str]:
        """Return the plugins of *route*, in their order."""
        return self._loaded.plugins.names if route is None or route.plugins is None else route.plugins

    def _mirror(self, route: RouteConfig, match: Match, upstreams: dict[str, UpstreamConfig]) -> Sequence[Filter]:
        """Return what copies requests of *route*: they are written as if it sent them there."""
        mirror = route.mirror
        assert mirror is not None
        service = self.services[mirror.upstream]
        leg = service.leg(None, self._routed(route, match, upstreams[mirror.upstream]), 1)
        leg.hedging = None
        return (Mirror(RouteTarget([leg]), service.pool.network, mirror.percent / 100, mirror.max_body_bytes),)

    def _routed(self, route: RouteConfig, match: Match, upstream: UpstreamConfig) -> Forwarding:
        """Return how *route* writes requests to *upstream*."""
        proxy = upstream.proxy
        rewrite = proxy.header_rewrite
        if route.header_rewrite is not None:
            rewrite = route.header_rewrite.over(rewrite)
        strips = proxy.strip_prefix if route.strip_prefix is None else route.strip_prefix
        return self._forwarding(self._strip(match) if strips else None, upstream, rewrite)

    def _chain(
        self,
        info: RouteInfo,
        upstream: UpstreamConfig | None,
        route: RouteConfig | None,
        where: tuple[str | int, ...],
        last: Sequence[Filter] = (),
    ) -> Chain:
        loaded = self._loaded
        names = self._names(route)
        for name in names:
            self.contexts[name].see(info, upstream, route)
        position = loaded.position(where)
        placed = [Placed(each) for each in self._first]
        for index, name in enumerate(names):
            for later in names[index + 1 :]:
                placed += self._placed(later, "gw_filters_before", position, route=info, plugin=name)
            placed += self._placed(name, "gw_filters", position, route=info)
        placed += (Placed(each, "gw", position=position) for each in last)
        try:
            return Chain(placed)
        except ChainError as error:
            raise ChainError(f"{position}: route {info.name!r}: {error}") from None

    def _placed(self, name: str, hook: str, position: str, *, route: RouteInfo, **more: str) -> Iterator[Placed]:
        context = self.contexts[name]
        settings = context.section(route)
        for each in self._loaded.plugins.call(name, hook, route=route, ctx=context, **more) or ():
            yield Placed(
                each, name, getattr(settings, "mode", "enforce"), getattr(settings, "on_error", "deny"), position
            )

    def _forwarding(
        self, strip: Callable[[Exchange], str] | None, upstream: UpstreamConfig, own: HeaderRewriteConfig | None = None
    ) -> Forwarding:
        rewrite = own or upstream.proxy.header_rewrite
        ids = self._loaded.config.request_id
        return Forwarding(
            set_x_forwarded_for=rewrite.set_x_forwarded_for,
            set_x_forwarded_proto=rewrite.set_x_forwarded_proto,
            set_x_forwarded_host=rewrite.set_x_forwarded_host,
            set_forwarded=rewrite.set_forwarded,
            rewrite_host=rewrite.rewrite_host,
            via=b"1.1 gw" if rewrite.set_via_header else b"",
            request_id=ids.header.encode("ascii") if ids.enabled else b"",
            client_subject=(rewrite.client_subject or "").encode("ascii"),
            client_names=(rewrite.client_names or "").encode("ascii"),
            forward_trailers=upstream.proxy.forward_trailers,
            strip=strip,
        )

    def _strip(self, match: Match) -> Callable[[Exchange], str] | None:
        pattern = match.pattern(self._policy)
        return None if pattern is None else partial(_stripped, pattern.strips)


def _stripped(segments: int, ex: Exchange) -> str:
    return kept_path(ex.request.path, segments)


def _has_path(route: RouteConfig) -> bool:
    match = route.match
    return any(each is not None for each in (match.path, match.prefix, match.regex))


def _where(match: Match) -> str:
    if match.path is not None:
        return match.path
    return f"~{match.regex}" if match.regex is not None else f"{(match.prefix or '').rstrip('/')}/*"


def _conditions(asked: dict[str, Any]) -> Iterator[Condition]:
    for name, condition in asked.items():
        if condition.exact is not None:
            yield name, "exact", condition.exact
        elif condition.regex is not None:
            yield name, "regex", condition.regex
        else:
            yield name, "present" if condition.present else "absent", ""


def _path_policy(loaded: Loaded) -> PathPolicy:
    paths = loaded.config.paths
    return PathPolicy(
        merge_slashes=paths.merge_slashes,
        encoded_slash=paths.encoded_slash,
        backslash=paths.backslash,
        nul=paths.nul,
    )


# --- for people --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FilterRow:
    """One filter of a route's chain, as `gw routes` shows it."""

    name: str
    plugin: str
    hooks: tuple[str, ...]
    body: str
    upstream_body: str
    mode: str
    on_error: str


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One route and its compiled chain, as `gw routes` shows it."""

    name: str
    hosts: tuple[str, ...]
    path: str
    methods: tuple[str, ...]
    target: str
    filters: tuple[FilterRow, ...]
    framing: str
    """What the chain does to the framing of bodies, in words."""


def describe(loaded: Loaded) -> list[RouteRow]:
    """Compile the routes without opening anything, and say what they are.

    Raises `ValueError` for what would keep the gateway from serving them.
    """
    builder = _Builder(loaded, Shared(), AsyncExitStack())
    routes = list(builder.routes(None))
    Router(((route.info.name, route.match, route) for route in routes), _path_policy(loaded))
    return [_row(route) for route in routes]


def _row(route: Route) -> RouteRow:
    if isinstance(route.target, LocalRoute | LocalWebSocket):
        target = "the gateway itself"
    else:
        target = ", ".join(route.info.upstreams) or "none: a filter answers, or 404"
    filters = tuple(
        FilterRow(
            placed.filter.name,
            placed.plugin,
            tuple(hook for hook in HOOKS if placed.has(hook)),
            placed.filter.body.value if placed.has("on_body") else Body.NONE.value,
            placed.filter.upstream_body.value if placed.has("on_upstream_body") else Body.NONE.value,
            placed.mode,
            placed.on_error,
        )
        for placed in route.chain.placed
    )
    framing = "; ".join(
        f"{message}: {effect}"
        for message, modes in (("request", {f.body for f in filters}), ("response", {f.upstream_body for f in filters}))
        if (effect := _framing(modes))
    )
    info = route.info
    return RouteRow(info.name, info.hosts, info.path, info.methods, target, filters, framing or "unchanged")


def _framing(modes: set[str]) -> str:
    if Body.STREAM.value in modes:
        return "content-length is dropped, the body is chunked"
    return "held whole, content-length is rewritten" if Body.BUFFER.value in modes else ""
