"""From a configuration's settings to its route table: each route with its chain of filters and its target.

Nothing is opened here, and nobody waited for: `gw.generation` does that, and `gw.described` shows the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from gw.applications import App, AppTarget, Mount
from gw.around import Placed
from gw.chain import Chain, ChainError
from gw.config.load import Loaded
from gw.config.model import RouteConfig
from gw.config.upstream import HeaderRewriteConfig, UpstreamConfig
from gw.context import NO_POOLS, PluginContext, Shared
from gw.filters import Exchange, Filter
from gw.hookspecs import LocalRoute, LocalWebSocket
from gw.keys import RouteInfo
from gw.patterns import kept_path, reference_patterns
from gw.routing import Condition, Match
from gw.services import Service
from gw.terms import path_policy, terms_of
from gw.tunnel import Terms
from gw.upstream.forward import Forwarding
from gw.upstream.mirror import Mirror
from gw.upstream.pool import Pool
from gw.upstream.target import Leg, RouteTarget, claim

__all__ = ["UNMATCHED", "Compiler", "Proxied", "Route"]

Services: TypeAlias = Mapping[str, Service]

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


class Compiler:
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
        self._policy = path_policy(loaded.config)
        self.contexts = {
            plugin.name: PluginContext(plugin.name, loaded, shared, stack, pools) for plugin in loaded.plugins
        }

    def routes(self, services: Services | None) -> Iterator[Route]:
        """Yield every route, in the configuration's order: `routes:`, then the upstreams', then the plugins' own.

        Without *services* the targets are left out: that is enough to describe them.
        """
        config = self._loaded.config
        upstreams = {upstream.name: upstream for upstream in config.upstreams}
        for index, (name, route) in enumerate(zip(config.route_names(), config.routes, strict=True)):
            yield self._configured(index, name, route, upstreams, services)
        for index, upstream in enumerate(config.upstreams):
            if upstream.proxy.route_prefix:
                yield from self._prefixed(index, upstream, services)
        for plugin in self._loaded.plugins:
            own = self._loaded.plugins.call(plugin.name, "gw_endpoints", ctx=self.contexts[plugin.name])
            for local in own or ():
                if isinstance(local, LocalWebSocket) or local.kind != "metrics" or config.status.metrics:
                    yield self.local(local, plugin.name)

    def own(self, own: LocalRoute | LocalWebSocket | Mount | Proxied, services: Services) -> Route:
        """Return the route of a path of the embedding program's."""
        if not isinstance(own, Proxied):
            return self.local(own)
        upstream = next((each for each in self._loaded.config.upstreams if each.name == own.upstream), None)
        if upstream is None:
            raise ValueError(f"the program sends {own.pattern} to the upstream {own.upstream!r}, and there is none")
        info = RouteInfo(f"program {own.pattern}", (), own.pattern, own.methods, (own.upstream,))
        return self._passed(info, Match(path=own.pattern, methods=own.methods), upstream, ("plugins",), services)

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
        services: Services | None,
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
        mirror = () if route.mirror is None or services is None else self._mirror(route, match, upstreams, services)
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
            if services is not None and (weight or canary is not None):
                leg = services[upstream_name].leg(route, forwarding, weight)
                leg.claims = None if canary is None else claim(canary.header, canary.cookie, canary.value)
                legs.append(leg)
        target = None
        if services is not None and legs:
            target = RouteTarget(legs, self._elsewhere(info, route, partial(self._routed, route, match), services))
        return Route(info, match, chain, target, limit, via, terms)

    def _prefixed(self, index: int, upstream: UpstreamConfig, services: Services | None) -> Iterator[Route]:
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
            yield self._passed(info, match, upstream, ("upstreams", index), services)

    def _passed(
        self,
        info: RouteInfo,
        match: Match,
        upstream: UpstreamConfig,
        where: tuple[str | int, ...],
        services: Services | None,
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
        if services is not None:
            leg = services[upstream.name].leg(None, forwarding, 1)
            target = RouteTarget([leg], self._elsewhere(info, None, write, services))
        return Route(info, match, chain, target, limit, forwarding.via, self._terms())

    def _elsewhere(
        self,
        info: RouteInfo,
        route: RouteConfig | None,
        write: Callable[[UpstreamConfig], Forwarding],
        services: Services,
    ) -> dict[str, Leg]:
        """Return the upstreams that plugins may send attempts of a route to; *write* says how they are written there."""
        found: dict[str, Leg] = {}
        for plugin, name in self._named_elsewhere(info, route):
            if name in self._apps:
                raise ChainError(f"route {info.name!r}: {plugin} names the upstream {name!r}, which is an application")
            service = services[name]
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

    def _mirror(
        self, route: RouteConfig, match: Match, upstreams: dict[str, UpstreamConfig], services: Services
    ) -> Sequence[Filter]:
        """Return what copies requests of *route*: they are written as if it sent them there."""
        mirror = route.mirror
        assert mirror is not None
        service = services[mirror.upstream]
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
