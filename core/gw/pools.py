"""Upstreams at work: a pool each, and what is known of its endpoints. They outlive reloads that leave their settings as they are."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gw.config.load import Loaded
from gw.config.upstream import PoolConfig, UpstreamConfig
from gw.context import Shared
from gw.figures import Figures
from gw.http.engines import Engine
from gw.http.h1 import ReaderLimits
from gw.net.network import Network
from gw.net.resolve import Resolver, ResolverSettings
from gw.services import Service, client_tls, http2_policy
from gw.upstream.pool import Pool, PoolSettings

__all__ = ["AtWork", "put_to_work"]


@dataclass(frozen=True, slots=True)
class AtWork:
    """A pool and what is known of its endpoints: what outlives a reload that leaves its settings as they are."""

    pool: Pool
    service: Service
    stack: ExitStack


def put_to_work(
    upstream: UpstreamConfig,
    loaded: Loaded,
    network: Network,
    engine: Engine,
    limits: ReaderLimits,
    shared: Shared,
    stack: AsyncExitStack,
) -> AtWork:
    """Return *upstream* at work: the one there is, if its meaning did not change, with its connections and queue.

    ``proxy``, which says how exchanges are passed on, and the sections of plugins are no part of that meaning; the
    certificate files are.
    """
    dns = loaded.config.dns
    timeout = dns.resolve_timeout_ms / 1000
    settings = ResolverSettings(dns.lookup_family, timeout, dns.resolver_max_inflight)
    resolves = shared.figures.counter("gw.dns.resolves", "{resolves}", "Names looked up", ("outcome",))

    def resolving() -> Resolver:
        stub = None if dns.resolver == "system" else _stub(dns.name_servers(), timeout)
        return Resolver(
            settings,
            network.lookup if stub is None else stub.lookup,
            network.tasks,
            network.deadlines,
            told=lambda outcome: resolves.at(outcome).add(),
            services=None if stub is None else stub.services,
        )

    resolver = shared.use(("gw.resolver", settings, dns.resolver, dns.servers), resolving, stack)
    tls = client_tls(upstream)

    def make() -> AtWork:
        own = ExitStack()
        settings = _pool_settings(upstream.pool)
        pool = Pool(upstream.name, upstream.addresses(), settings, network, engine, limits, tls, http2_policy(upstream))
        own.callback(pool.close)
        _watch_pool(pool, shared.figures, own)
        service = Service.of(upstream, pool, resolver, dns, own)
        service.watch(shared.figures, own)
        return AtWork(pool, service, own)

    core = set(UpstreamConfig.model_fields) - {"proxy"}
    meaning = (_frozen(upstream.model_dump(include=core)), settings, _frozen(dns.model_dump()), engine.name)
    files = () if tls is None else tuple(tls.looks)
    return shared.use(("gw.upstream", upstream.name, meaning, files), make, stack, lambda held: held.stack.close())


def _stub(servers: Sequence[tuple[str, int]], timeout: float) -> Any:
    """Return a stub resolver, whose library is there only where it is asked for."""
    return import_module("gw.net.stub").Stub(servers, timeout)


def _frozen(value: Any) -> Hashable:
    """Return a value that is equal where the settings *value* mean the same, secrets included."""
    if isinstance(value, Mapping):
        return tuple((key, _frozen(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return value  # type: ignore[no-any-return]


def _watch_pool(pool: Pool, figures: Figures, stack: ExitStack) -> None:
    """Let *pool* be seen in the figures until *stack* is closed."""
    labels, here = ("gw.upstream.service",), (pool.name,)
    for name, what, read in (
        ("gw.upstream.pool.connections.idle", "Connections that wait for a request", lambda: pool.idle),
        ("gw.upstream.pool.connections.active", "Connections in use or being opened", lambda: pool.open - pool.idle),
    ):
        family = figures.level(name, "{connections}", what, labels)
        stack.callback(family.watch(lambda read=read: ((here, read()),)))  # type: ignore[misc]
    waiting = figures.level("gw.upstream.pool.requests.waiting", "{requests}", "Requests that wait for one", labels)
    stack.callback(waiting.watch(lambda: ((here, pool.waiting),)))


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
        lifetime_jitter=pool.lifetime_jitter_percent / 100,
        max_requests=pool.max_requests_per_conn,
    )
