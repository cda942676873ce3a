"""A configuration brought to life: its routes, chains and pools; and how one follows another.

A generation is built off to one side. If anything in it fails, what was opened
is closed again and the old one carries on untouched. Exchanges finish on the
generation they began with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio

from gw.around import HOOKS, Placed
from gw.chain import Chain, ChainError
from gw.config.load import Loaded
from gw.config.model import HeaderRewriteConfig, PoolConfig, RouteConfig, UpstreamConfig
from gw.filters import Body, Exchange
from gw.hookspecs import LocalRoute
from gw.http.engines import Engine
from gw.http.h1 import ReaderLimits
from gw.http.paths import PathPolicy
from gw.keys import RouteInfo
from gw.limits import MAX_HEADER_COUNT, MAX_RESPONSE_HEADER_SIZE, MAX_TRAILER_SIZE
from gw.net.network import Network
from gw.patterns import kept_path, reference_patterns
from gw.routing import Condition, Match, Router
from gw.upstream.forward import Forwarding
from gw.upstream.http1 import Patience
from gw.upstream.pool import Pool, PoolSettings
from gw.upstream.target import Leg, RouteTarget

__all__ = ["Current", "Generation", "Route", "RouteRow", "Shared", "build", "describe"]

log = logging.getLogger("gw.generation")

T = TypeVar("T")

UNMATCHED = RouteInfo("gw.unmatched", path="")
"""The route of requests that no route takes: the gateway's own filters still see them (behaviour 10.2)."""


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the route table, ready to run."""

    info: RouteInfo
    match: Match
    chain: Chain
    target: RouteTarget | LocalRoute | None
    max_body_size: int
    via: bytes


class Shared:
    """State that outlives a reload: buckets, breakers, key sets. Counted by use.

    Two generations that ask for the same key get the same object, so editing an
    unrelated route does not empty the rate limiter.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, list[Any]] = {}

    def use(self, key: Hashable, make: Callable[[], T], stack: AsyncExitStack) -> T:
        """Return the object of *key*, made if need be; it is kept until every *stack* that asked is closed."""
        entry = self._held.setdefault(key, [0, None])
        if entry[0] == 0:
            try:
                entry[1] = make()
            except BaseException:
                del self._held[key]
                raise
        entry[0] += 1
        stack.callback(self._leave, key)
        return entry[1]  # type: ignore[no-any-return]

    def _leave(self, key: Hashable) -> None:
        entry = self._held[key]
        entry[0] -= 1
        if entry[0] == 0:
            del self._held[key]

    def __len__(self) -> int:
        return len(self._held)


class PluginContext:
    """What one plugin is handed; implements `gw.hookspecs.Context`."""

    def __init__(self, name: str, loaded: Loaded, shared: Callable[[Hashable, Callable[[], Any]], Any]) -> None:
        self.name = name
        self.log = logging.getLogger(f"gw.{name}")
        self._loaded, self._shared = loaded, shared
        self._levels: dict[str, tuple[Any, Any, Any]] = {}
        self._gateway = loaded.section(name, "gateway")

    def see(
        self, route: RouteInfo, upstream: UpstreamConfig | None, config: RouteConfig | None
    ) -> tuple[Any, Any, Any]:
        """Look up and remember the settings at the three levels of *route*."""
        section = self._loaded.section
        levels = (
            self._gateway,
            section(self.name, "upstream", upstream) if upstream is not None else None,
            section(self.name, "route", config) if config is not None else None,
        )
        self._levels[route.name] = levels
        return levels

    def section(self, route: RouteInfo | None = None) -> Any:
        levels = (self._gateway,) if route is None else self._levels[route.name]
        return next((level for level in reversed(levels) if level is not None), None)

    def sections(self, route: RouteInfo) -> tuple[Any, Any, Any]:
        return self._levels[route.name]

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        return self._shared((self.name, key), make)  # type: ignore[no-any-return]


class Generation:
    """What a configuration became. Immutable but for the count of its users."""

    def __init__(
        self,
        number: int,
        loaded: Loaded,
        routes: list[Route],
        unmatched: Chain,
        pools: dict[str, Pool],
        stack: AsyncExitStack,
    ) -> None:
        self.number, self.loaded, self.pools = number, loaded, pools
        self.paths = _path_policy(loaded)
        self.router = Router(((r.info.name, r.match, r) for r in routes), self.paths)
        self.routes, self.unmatched = routes, unmatched
        for loser, winner in self.router.displaced:
            if loser.partition(" ")[0] != winner.partition(" ")[0]:  # not the bare companion of its own prefix
                log.warning("route %r gives way to %r for some or all of its requests", loser, winner)
        self.users = 0
        self.idle: anyio.Event | None = None
        self._stack = stack

    async def aclose(self) -> None:
        await self._stack.aclose()


async def build(number: int, loaded: Loaded, network: Network, engine: Engine, shared: Shared) -> Generation:
    """Bring *loaded* to life. Whatever fails, nothing stays open; raises `ChainError`, `RouteConflict`, ..."""
    async with AsyncExitStack() as stack:
        limits = ReaderLimits(MAX_RESPONSE_HEADER_SIZE, MAX_HEADER_COUNT, MAX_TRAILER_SIZE)
        pools: dict[str, Pool] = {}
        for upstream in loaded.config.upstreams:
            pool = Pool(upstream.name, upstream.addresses(), _pool_settings(upstream.pool), network, engine, limits)
            pools[upstream.name] = pool
            stack.callback(pool.close)
        builder = _Builder(loaded, lambda key, make: shared.use(key, make, stack))
        routes = list(builder.routes(pools))
        generation = Generation(number, loaded, routes, builder.unmatched(), pools, stack)
        for plugin in loaded.plugins:
            lifespan = loaded.plugins.call(plugin.name, "gw_lifespan", ctx=builder.contexts[plugin.name])
            if lifespan is not None:
                await stack.enter_async_context(lifespan)
        generation._stack = stack.pop_all()
        return generation


class Current:
    """The generation that new exchanges join."""

    def __init__(self, drain: float) -> None:
        self._drain = drain
        self.now: Generation | None = None

    async def switch(self, new: Generation | None) -> None:
        """Let *new* take over: one assignment. Then wait for the old one's exchanges, for so long, and close it."""
        old, self.now = self.now, new
        if old is None:
            return
        if old.users:
            old.idle = anyio.Event()
            with anyio.move_on_after(self._drain):
                await old.idle.wait()
        with anyio.CancelScope(shield=True):
            await old.aclose()


# --- from settings to objects ---------------------------------------------------------------


class _Builder:
    """Makes the routes of one configuration."""

    def __init__(self, loaded: Loaded, shared: Callable[[Hashable, Callable[[], Any]], Any]) -> None:
        self._loaded = loaded
        self._policy = _path_policy(loaded)
        self.contexts = {plugin.name: PluginContext(plugin.name, loaded, shared) for plugin in loaded.plugins}

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
                name = local.name or f"{plugin.name}:{local.path}"
                info = RouteInfo(name, path=local.path, methods=local.methods)
                match = Match(path=local.path, methods=local.methods)
                yield Route(info, match, self._chain(info, None, None, ("plugins",)), local, config.max_body_size, b"")

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
        chain = self._chain(info, first if len(targets) == 1 else None, route, ("routes", index))
        legs = []
        via = b""
        for upstream_name, weight in targets:
            upstream = upstreams[upstream_name]
            proxy = upstream.proxy
            rewrite = (
                proxy.header_rewrite
                if route.header_rewrite is None
                else route.header_rewrite.over(proxy.header_rewrite)
            )
            strips = proxy.strip_prefix if route.strip_prefix is None else route.strip_prefix
            forwarding = self._forwarding(upstream, rewrite, self._strip(match) if strips else None)
            via = forwarding.via
            if pools is not None and weight:
                legs.append(Leg(pools[upstream_name], forwarding, _patience(upstream, route), weight))
        limit = self._loaded.config.max_body_size if route.max_body_size is None else route.max_body_size
        return Route(info, match, chain, RouteTarget(legs) if legs else None, limit, via)

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
            chain = self._chain(info, upstream, None, ("upstreams", index))
            forwarding = self._forwarding(
                upstream, proxy.header_rewrite, self._strip(match) if proxy.strip_prefix else None
            )
            target = None
            if pools is not None:
                target = RouteTarget([Leg(pools[upstream.name], forwarding, _patience(upstream, None))])
            yield Route(info, match, chain, target, self._loaded.config.max_body_size, forwarding.via)

    def _chain(
        self, info: RouteInfo, upstream: UpstreamConfig | None, route: RouteConfig | None, where: tuple[str | int, ...]
    ) -> Chain:
        loaded = self._loaded
        names = loaded.plugins.names if route is None or route.plugins is None else route.plugins
        placed: list[Placed] = []
        for name in names:
            context = self.contexts[name]
            context.see(info, upstream, route)
            settings = context.section(info)
            filters = loaded.plugins.call(name, "gw_filters", route=info, ctx=context) or ()
            placed += (
                Placed(
                    f,
                    name,
                    getattr(settings, "mode", "enforce"),
                    getattr(settings, "on_error", "deny"),
                    loaded.position(where),
                )
                for f in filters
            )
        try:
            return Chain(placed)
        except ChainError as error:
            raise ChainError(f"{loaded.position(where)}: route {info.name!r}: {error}") from None

    def _forwarding(
        self, upstream: UpstreamConfig, rewrite: HeaderRewriteConfig, strip: Callable[[Exchange], str] | None
    ) -> Forwarding:
        ids = self._loaded.config.request_id
        return Forwarding(
            set_x_forwarded_for=rewrite.set_x_forwarded_for,
            set_x_forwarded_proto=rewrite.set_x_forwarded_proto,
            set_x_forwarded_host=rewrite.set_x_forwarded_host,
            set_forwarded=rewrite.set_forwarded,
            rewrite_host=rewrite.rewrite_host,
            via=b"1.1 gw" if rewrite.set_via_header else b"",
            request_id=ids.header.encode("ascii") if ids.enabled else b"",
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


def _pool_settings(pool: PoolConfig) -> PoolSettings:
    queue = pool.connect_timeout_ms if pool.queue_timeout_ms is None else pool.queue_timeout_ms
    return PoolSettings(
        max_connections=pool.max_connections,
        max_idle=pool.max_idle_connections,
        max_queue=pool.max_queue,
        connect_timeout=pool.connect_timeout_ms / 1000,
        queue_timeout=queue / 1000,
        idle_timeout=pool.idle_timeout_sec,
        max_lifetime=pool.max_lifetime_sec,
        max_requests=pool.max_requests_per_conn,
    )


def _patience(upstream: UpstreamConfig, route: RouteConfig | None) -> Patience:
    def setting(key: str) -> Any:
        own = None if route is None else getattr(route, key)
        return getattr(upstream.proxy, key) if own is None else own

    return Patience(
        response=setting("response_timeout_ms") / 1000,
        idle=setting("stream_idle_timeout_sec"),
        total=setting("stream_max_duration_sec"),
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
    stack = AsyncExitStack()
    shared = Shared()
    builder = _Builder(loaded, lambda key, make: shared.use(key, make, stack))
    routes = list(builder.routes(None))
    Router(((route.info.name, route.match, route) for route in routes), _path_policy(loaded))
    return [_row(route) for route in routes]


def _row(route: Route) -> RouteRow:
    if isinstance(route.target, LocalRoute):
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
