"""What stands around an upstream's pool, made from its settings: endpoints and their order, retries, budgets.

From settings to objects, and no more: what they do is in `gw.upstream`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import anyio

from gw.config.model import RouteConfig
from gw.config.resilience import ActiveHealthConfig, BalanceConfig, DnsConfig, OutlierConfig, RetryConfig, StickyConfig
from gw.config.upstream import UpstreamConfig
from gw.figures import Figures
from gw.http.h2 import FloodLimits, SessionSettings
from gw.keys import RetryBudget
from gw.limits import FLOOD_UPSTREAM, SEND_STALL_TIME
from gw.net.network import Network
from gw.net.resolve import Resolver, is_literal
from gw.net.tls import ClientTls, ClientTlsSettings
from gw.upstream.balance import Algorithm, LeastRequests, PeakEwma, RandomChoice, RingHash, RoundRobin, key_of
from gw.upstream.endpoints import EndpointSet, Sticky
from gw.upstream.forward import Forwarding
from gw.upstream.health import HealthChecks
from gw.upstream.hedge import HedgePolicy, Hedges
from gw.upstream.http1 import Patience
from gw.upstream.http2 import Http2Policy
from gw.upstream.names import Names
from gw.upstream.outliers import Outliers, OutlierSettings
from gw.upstream.pool import Pool
from gw.upstream.probe import HealthCheck
from gw.upstream.retry import Budget, RetryAccount, RetryPolicy
from gw.upstream.target import Leg, Relaying
from gw.upstream.timeouts import Allowance
from gw.upstream.warm import Warmth

__all__ = ["Service", "client_tls", "http2_policy", "resolve"]


@dataclass(frozen=True, slots=True)
class Service:
    """One upstream at work."""

    config: UpstreamConfig
    pool: Pool
    endpoints: EndpointSet
    budget: Budget | None
    checks: HealthChecks | None
    outliers: Outliers | None
    names: Names | None
    resolver: Resolver
    """Of its names; upstreams share one."""
    hedges: Hedges

    @classmethod
    def of(
        cls,
        config: UpstreamConfig,
        pool: Pool,
        resolver: Resolver,
        dns: DnsConfig,
        stack: ExitStack,
    ) -> Service:
        """Bring *config* to life around *pool*; what ``proxy`` says about retries follows with `under`.

        Its names are not resolved yet: that is `resolve`'s to do.
        """
        balance = config.balance
        addresses = config.addresses()
        pool.replace({each: (each.host,) for each in addresses if is_literal(each.host)})
        endpoints = EndpointSet(
            config.name,
            pool.origins,
            _algorithm(balance),
            pool.network.deadlines,
            panic=balance.panic_threshold_percent / 100,
            slow_start=balance.slow_start_sec,
            sticky=None if balance.sticky is None else _sticky(balance.sticky),
        )
        stack.callback(endpoints.close)
        outliers: Outliers | None = None
        if config.health.outliers is not None:
            outliers = Outliers(_outlier_settings(config.health.outliers), endpoints, pool.network.deadlines)
            stack.callback(outliers.close)
        checks: HealthChecks | None = None
        if config.health.active is not None:
            check = _health_check(config.health.active)
            checks = HealthChecks(check, endpoints, pool.network, pool.engine, pool.stream_to_check)
            stack.callback(checks.close)
            checks.follow()
        if config.pool.min_idle_connections:
            warmth = Warmth(config.pool.min_idle_connections, pool, endpoints)
            stack.callback(warmth.close)
            pool.network.tasks.start_soon(warmth.run)
        found = Names(
            addresses,
            endpoints,
            pool,
            resolver,
            services=config.services(),
            refresh=dns.refresh_sec,
            stale=dns.stale_on_error,
        )
        stack.callback(found.close)
        names = found if found.hosts or found.services else None
        return cls(config, pool, endpoints, None, checks, outliers, names, resolver, Hedges())

    def under(self, config: UpstreamConfig, budget: RetryBudget | None, account: RetryAccount) -> Service:
        """Return the same endpoints and connections under *config*, of which only ``proxy`` may be another one.

        *budget* is a plugin's; the upstream's own comes first.
        """
        own = config.proxy.retry.budget
        if own is not None:
            budget = RetryBudget(own.percent, own.min_concurrency, own.dry_run)
        return replace(self, config=config, budget=None if budget is None else Budget(config.name, budget, account))

    def stats(self) -> dict[str, Any]:
        """Return what there is to know about it now, ready for JSON."""
        pool, budget, names = self.pool, self.budget, self.names
        found: dict[str, Any] = {
            "pool": {"open": pool.open, "idle": pool.idle, "waiting": pool.waiting},
            "panic": self.endpoints.panics,
            "endpoints": [
                {
                    "host": each.endpoint.host,
                    "address": str(each.endpoint),
                    "priority": each.endpoint.priority,
                    "weight": each.endpoint.weight,
                    "share": each.share,
                    "healthy": each.healthy,
                    "ejected": each.ejected,
                }
                for each in self.endpoints.members
            ],
        }
        if self.endpoints.watches:  # else nobody counts
            for row, each in zip(found["endpoints"], self.endpoints.members, strict=True):
                row |= {"active": each.active, "answered": each.answered, "failed": each.failed}
        if budget is not None:
            account = budget.account
            found["retry_budget"] = {
                "in_flight": account.in_flight,
                "retries": account.retries,
                "cap": budget.cap,
                "refused": account.refused,
            }
        if self.hedges.sent or self.hedges.refused:
            hedges = self.hedges
            found["hedging"] = {"sent": hedges.sent, "won": hedges.won, "refused": hedges.refused}
        if self.checks is not None:
            found["checks"] = {"done": self.checks.done, "failed": self.checks.failed}
        if self.outliers is not None:
            found["outliers"] = {"ejected": self.outliers.ejected, "spared": self.outliers.spared}
        if names is not None:
            found["names"] = {
                "age_seconds": int(pool.network.deadlines.now - names.resolved_at),
                "stale_served": names.stale_served,
                "errors": {host: str(error) for host, error in names.errors.items()},
            }
        return found

    def watch(self, figures: Figures, stack: ExitStack) -> None:
        """Let its endpoints be seen in the figures until *stack* is closed."""
        labels, name = ("gw.upstream.service", "gw.upstream.state"), self.config.name
        family = figures.level("gw.upstream.endpoints", "{endpoints}", "Endpoints, by what is known of them", labels)

        def read() -> Iterable[tuple[tuple[str, ...], float]]:
            members = self.endpoints.members
            ejected = sum(each.ejected for each in members)
            unhealthy = sum(not each.healthy and not each.ejected for each in members)
            states = (("healthy", len(members) - ejected - unhealthy), ("unhealthy", unhealthy), ("ejected", ejected))
            return [((name, state), count) for state, count in states]

        stack.callback(family.watch(read))

    def leg(self, route: RouteConfig | None, forwarding: Forwarding, weight: int) -> Leg:
        """Return it as *route* uses it; without one, as its own ``route_prefix`` does."""
        policy = _retry_policy(self.config, route)
        return Leg(
            self.pool,
            self.endpoints,
            forwarding,
            _patience(self.config, route),
            weight,
            policy=policy,
            budget=self.budget,
            allowance=_allowance(self.config, route),
            names=self.names,
            relaying=_relaying(self.config, route),
            hedging=_hedging(self.config, route),
            hedges=self.hedges,
        )


async def resolve(services: Iterable[Service], dns: DnsConfig, network: Network) -> list[str]:
    """Resolve the names of all upstreams that are not known yet, within the time for all of them; return what could not be, and why.

    From then on they are looked up again from time to time.
    """
    named = [service.names for service in services if service.names is not None]
    if not named:
        return []
    scope = anyio.CancelScope()
    due = network.deadlines.due(scope.cancel)
    due.after(dns.overall_timeout_ms / 1000)
    try:
        with scope:
            async with anyio.create_task_group() as tasks:
                for names in named:
                    tasks.start_soon(names.begin)
    finally:
        due.forget()
    for names in named:
        if not names.is_watched:  # one that was carried over is
            names.is_watched = True
            network.tasks.start_soon(names.run)
    late = f"not within {dns.overall_timeout_ms} ms"
    return [f"{host}: {names.errors.get(host, late)}" for names in named for host in names.unresolved()]


def client_tls(upstream: UpstreamConfig) -> ClientTls | None:
    """Return the TLS of *upstream*; `None` for cleartext. Raises `gw.net.tls.TlsError`."""
    tls, http2 = upstream.tls, upstream.http2
    if not tls.enabled:
        return None
    alpn: tuple[str, ...] = ("http/1.1",)
    if http2.enabled and http2.prefer != "never":
        alpn = ("h2",) if http2.prefer == "always" else ("h2", "http/1.1")
    return ClientTls(
        ClientTlsSettings(
            alpn=alpn,
            ca_file=tls.ca_file,
            verify_peer=tls.verify_peer,
            server_name=tls.sni_hostname,
            min_version=tls.min_version,
            cert_file=tls.cert_file,
            key_file=tls.key_file,
        )
    )


def http2_policy(upstream: UpstreamConfig) -> Http2Policy | None:
    """Return how *upstream* is spoken to in HTTP/2; `None` where it is not."""
    http2 = upstream.http2
    if not http2.enabled or http2.prefer == "never":
        return None
    often = FLOOD_UPSTREAM
    return Http2Policy(
        session=SessionSettings(
            max_concurrent_streams=http2.max_concurrent_streams_pref,
            initial_window_size=http2.initial_window_size,
            max_frame_size=http2.max_frame_size,
            max_header_list_size=http2.max_header_list_size,
            header_table_size=http2.header_table_size,
            flood=FloodLimits(often, often, often, often, often, often),
        ),
        prefer=http2.prefer,
        max_streams=http2.max_concurrent_streams_pref,
        ping_idle=http2.ping_idle_sec,
        ping_timeout=http2.ping_timeout_sec,
        goaway_drain=http2.goaway_drain_timeout_sec,
        saturation=http2.saturation_open_pct,
        preconnect=http2.preconnect_watermark_pct,
    )


def _algorithm(balance: BalanceConfig) -> Algorithm:
    match balance.algorithm:
        case "least_requests":
            return LeastRequests()
        case "peak_ewma":
            return PeakEwma()
        case "random":
            return RandomChoice()
        case "ring_hash":
            return RingHash(key_of(balance.hash_key), balance.load_factor_percent / 100)
    return RoundRobin()


def _sticky(sticky: StickyConfig) -> Sticky:
    attributes = f"; Path={sticky.path}; HttpOnly; SameSite=Lax"
    if sticky.max_age_sec:
        attributes += f"; Max-Age={sticky.max_age_sec}"
    if sticky.secure:
        attributes += "; Secure"
    return Sticky(sticky.cookie, sticky.secret.get_secret_value().encode(), attributes)


def _health_check(active: ActiveHealthConfig) -> HealthCheck:
    ranges = []
    for each in active.expected_statuses:
        low, _, high = str(each).partition("-")
        ranges.append(range(int(low), int(high or low) + 1))
    return HealthCheck(
        kind=active.type,
        path=active.path,
        host=active.host,
        headers=tuple((name.encode("ascii"), value.encode("ascii")) for name, value in active.headers.items()),
        statuses=tuple(ranges),
        service=active.service,
        interval=active.interval_ms / 1000,
        jitter=active.jitter_percent / 100,
        timeout=active.timeout_ms / 1000,
        healthy_threshold=active.healthy_threshold,
        unhealthy_threshold=active.unhealthy_threshold,
    )


def _outlier_settings(outliers: OutlierConfig) -> OutlierSettings:
    return OutlierSettings(
        consecutive_5xx=outliers.consecutive_5xx,
        consecutive_gateway_failures=outliers.consecutive_gateway_failures,
        interval=outliers.interval_ms / 1000,
        deviation=outliers.success_rate_deviation,
        minimum_endpoints=outliers.success_rate_minimum_endpoints,
        minimum_requests=outliers.success_rate_minimum_requests,
        base_ejection=outliers.base_ejection_sec,
        max_ejection=outliers.max_ejection_sec,
        max_ejected=outliers.max_ejection_percent / 100,
    )


def _retry_policy(upstream: UpstreamConfig, route: RouteConfig | None) -> RetryPolicy | None:
    """Return what the settings say about retries; `None` if there are to be none, which then costs nothing."""
    retry: RetryConfig = upstream.proxy.retry
    if route is not None and route.retry is not None:
        retry = route.retry.over(retry)
    if not (retry.max_retries or retry.per_try_timeout_ms or retry.overall_timeout_ms):
        return None
    return RetryPolicy(
        max_retries=retry.max_retries,
        conditions=retry.conditions(),
        statuses=retry.statuses(),
        non_idempotent=retry.retry_non_idempotent,
        per_try=retry.per_try_timeout_ms / 1000,
        overall=retry.overall_timeout_ms / 1000,
        buffer=retry.buffer_bytes,
        max_retry_after=retry.max_retry_after_ms / 1000,
    )


def _allowance(upstream: UpstreamConfig, route: RouteConfig | None) -> Allowance | None:
    """Return what the settings say about the time of whole exchanges; `None` if nothing."""
    proxy = upstream.proxy
    exchange, heeds = proxy.exchange_timeout_ms, proxy.client_timeout
    if route is not None:
        exchange = exchange if route.exchange_timeout_ms is None else route.exchange_timeout_ms
        heeds = route.client_timeout or heeds
    return Allowance(exchange / 1000, heeds) if exchange or heeds != "never" else None


def _hedging(upstream: UpstreamConfig, route: RouteConfig | None) -> HedgePolicy | None:
    hedging = upstream.proxy.hedging if route is None else route.hedging or upstream.proxy.hedging
    return (
        HedgePolicy(hedging.delay_ms / 1000, hedging.percentile) if hedging is not None and hedging.delay_ms else None
    )


def _relaying(upstream: UpstreamConfig, route: RouteConfig | None) -> Relaying:
    proxy = upstream.proxy
    return Relaying(
        buffering=proxy.buffering if route is None else route.buffering or proxy.buffering,
        threshold=proxy.auto_stream_content_length_threshold_bytes,
        h10=proxy.h10_streaming,
        request=upstream.request_mode == "buffered",
    )


def _patience(upstream: UpstreamConfig, route: RouteConfig | None) -> Patience:
    def setting(key: str) -> Any:
        own = None if route is None else getattr(route, key)
        return getattr(upstream.proxy, key) if own is None else own

    response, send = setting("response_timeout_ms") / 1000, setting("send_timeout_ms")
    return Patience(
        response=response,
        send=(response or SEND_STALL_TIME) if send is None else send / 1000,
        idle=setting("stream_idle_timeout_sec"),
        total=setting("stream_max_duration_sec"),
    )
