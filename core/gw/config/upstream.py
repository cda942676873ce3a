"""The settings of an upstream: its addresses, connections, protocols, and how requests are passed on (behaviour 4.5).

What happens when it fails is set in `gw.config.resilience`; which requests come to it, in `gw.config.model`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gw.config.http2 import UpstreamHttp2Config
from gw.config.resilience import BalanceConfig, HealthConfig, HedgingConfig, UpstreamRetryConfig
from gw.config.settings import Settings
from gw.config.tls import UpstreamTlsConfig
from gw.config.values import (
    AppName,
    FieldName,
    Host,
    Milliseconds,
    Name,
    Natural,
    Port,
    Positive,
    ReferenceMethods,
    ResponseTimeout,
    RoutePrefix,
    ServiceName,
    StreamDuration,
    StreamIdle,
    Weight,
)
from gw.keys import Endpoint

__all__ = ["HeaderRewriteConfig", "PoolConfig", "ProxyConfig", "UpstreamConfig"]


class EndpointConfig(Settings):
    """One address of an upstream, or the application that it is."""

    host: Host | None = None
    """Address or host name."""
    port: Port = 80
    """TCP port."""
    weight: Weight = 1
    """Its share of the requests, among the upstream's endpoints."""
    priority: Annotated[int, Field(ge=0, le=127)] = 0
    """Its tier: those of a higher number get requests while too few of the lower ones are healthy."""
    srv: ServiceName | None = None
    """Instead of an address, a service such as `_http._tcp.example.com`: each target that the DNS names is an endpoint, with its port, weight and priority (RFC 2782)."""
    asgi: AppName | None = None
    """Instead of an address, an ASGI application in this process, such as `package.module:app`: the only endpoint."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> EndpointConfig:
        given = [key for key in ("host", "srv", "asgi") if getattr(self, key) is not None]
        if not given:
            raise ValueError(
                "has no address; give host, srv for a service in the DNS, or asgi for an application in this process"
            )
        if len(given) > 1:
            raise ValueError(f"has both {given[0]} and {given[1]}; keep one")
        if self.srv is not None:
            for key in ("port", "weight", "priority"):
                if key in self.model_fields_set:
                    raise ValueError(f"has both srv and {key}, which the records of the service say")
        return self


class PoolConfig(Settings):
    """Connections to an upstream."""

    max_connections: Positive = 64
    """Connections in all."""
    max_idle_connections: Natural = 16
    """Of them, how many may wait for the next request; at most `max_connections`."""
    min_idle_connections: Natural = 0
    """Of them, how many are opened before a request wants them, at the start and whenever fewer wait; at most `max_idle_connections`."""
    connect_timeout_ms: Annotated[int, Field(ge=1000)] = 5000
    """How long connecting may take."""
    idle_timeout_sec: Positive = 90
    """How long a connection may wait for the next request."""
    max_lifetime_sec: Natural = 3600
    """Age at which a connection takes no further request; 0 means never."""
    lifetime_jitter_percent: Annotated[int, Field(ge=0, le=100)] = 0
    """By how much shorter that may be, at random: so that connections of one moment do not end together."""
    max_requests_per_conn: Natural = 0
    """Requests after which a connection takes no further one; 0 means never."""
    max_queue: Natural = 256
    """Requests that may wait for a connection; beyond it 503."""
    queue_timeout_ms: Positive | None = None
    """How long a request may wait for a connection; null means as long as `connect_timeout_ms`."""

    @field_validator("max_idle_connections")
    @classmethod
    def _within_all(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("max_connections")
        if most is not None and value > most:
            raise ValueError(f"must be at most max_connections ({most}), not {value}")
        return value

    @field_validator("min_idle_connections")
    @classmethod
    def _within_idle(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("max_idle_connections")
        if most is not None and value > most:
            raise ValueError(f"must be at most max_idle_connections ({most}), not {value}")
        return value

    model_config = ConfigDict(validate_default=True)


class HeaderRewriteConfig(Settings):
    """What the gateway itself says in the headers that it passes on."""

    set_x_forwarded_for: bool = True
    """Append the client's address to `X-Forwarded-For`."""
    set_x_forwarded_proto: bool = True
    """Say in `X-Forwarded-Proto` whether the client spoke http or https."""
    set_x_forwarded_host: bool = True
    """Say in `X-Forwarded-Host` which host the client asked for."""
    set_forwarded: bool = False
    """Append an element to `Forwarded` (RFC 7239)."""
    set_via_header: bool = True
    """Append to `Via`, in both directions."""
    rewrite_host: bool = True
    """Send the upstream's own host as `Host`, rather than the client's."""
    client_subject: FieldName | None = None
    """Header that tells the upstream the subject of the client's certificate; a client's own is removed."""
    client_names: FieldName | None = None
    """The same for its alternative names, such as `DNS:api.example, URI:spiffe://example/api`."""

    def over(self, lower: HeaderRewriteConfig) -> HeaderRewriteConfig:
        """Return *lower* with the keys that are set here, as a route's settings stand over its upstream's."""
        return lower.model_copy(update={key: getattr(self, key) for key in self.model_fields_set})


class ProxyConfig(Settings):
    """How requests are passed on to an upstream."""

    route_prefix: RoutePrefix = ""
    """A path or pattern that makes a route to this upstream; empty makes none."""
    strip_prefix: bool = False
    """Send only what follows the prefix."""
    methods: ReferenceMethods = ()
    """Methods of that route; empty means all."""
    response_timeout_ms: ResponseTimeout = 30_000
    """From the end of the request to the response's head: 0 for no limit, or at least 1000."""
    send_timeout_ms: Milliseconds | None = None
    """How long the upstream may take nothing of a request; null means as `response_timeout_ms`, or 30 s where that is 0."""
    exchange_timeout_ms: Milliseconds = 0
    """From a request's first byte to the end of its response; 0 means no limit."""
    client_timeout: Literal["never", "trusted", "always"] = "never"
    """Whose `X-Request-Timeout` and `grpc-timeout` shorten that: nobody's, those of `trusted_proxies`, or anyone's. What is left is passed on."""
    stream_idle_timeout_sec: StreamIdle = 30
    """The longest pause in a response's body, event streams excepted; 0 means no limit."""
    stream_max_duration_sec: StreamDuration = 0
    """The longest time a response's body may take; 0 means no limit."""
    buffering: Literal["auto", "always", "never"] = "auto"
    """`always` holds a response until it is complete, up to 64 MiB; `never` passes on what comes; `auto` holds those whose length is known and small, unless their request is still being sent."""
    auto_stream_content_length_threshold_bytes: Natural = 262_144
    """The longest that `auto` holds; at most `relay_buffer_limit_bytes`."""
    relay_buffer_limit_bytes: Annotated[int, Field(ge=16_384, le=67_108_864)] = 1_048_576
    """Accepted for the reference's sake: what waits for a client is bounded by the water marks of `http1` and `http2`."""
    h10_streaming: Literal["close", "buffer"] = "close"
    """How an HTTP/1.0 client gets a response of unknown length: ended by closing, or held until it is complete."""
    retry: UpstreamRetryConfig = UpstreamRetryConfig()
    """When a request is sent once more."""
    hedging: HedgingConfig | None = None
    """When it is sent a second time although the first may still be answered."""
    forward_trailers: bool = True
    """Pass trailers on, in both directions."""
    header_rewrite: HeaderRewriteConfig = HeaderRewriteConfig()
    """Headers that the gateway sets."""

    @model_validator(mode="after")
    def _held_within_limit(self) -> ProxyConfig:
        held, most = self.auto_stream_content_length_threshold_bytes, self.relay_buffer_limit_bytes
        if held > most:
            raise ValueError(
                f"auto_stream_content_length_threshold_bytes ({held}) must be at most relay_buffer_limit_bytes ({most})"
            )
        return self


class UpstreamConfig(Settings):
    """A service that requests are sent to."""

    name: Name
    """How routes call it."""
    host: Host | None = None
    """Its only address; the other form is `endpoints`."""
    port: Port = 80
    """The port of `host`."""
    endpoints: Annotated[tuple[EndpointConfig, ...], Field(min_length=1)] | None = None
    """Its addresses; the other form is `host` and `port`."""
    request_mode: Literal["streaming", "buffered"] = "streaming"
    """`buffered` reads a request's body to its end before anything is sent, up to `max_body_size` and 64 MiB."""
    balance: BalanceConfig = BalanceConfig()
    """Which endpoint is next."""
    health: HealthConfig = HealthConfig()
    """Which endpoints are fit."""
    tls: UpstreamTlsConfig = UpstreamTlsConfig()
    """TLS."""
    http2: UpstreamHttp2Config = UpstreamHttp2Config()
    """HTTP/2."""
    pool: PoolConfig = PoolConfig()
    """Connections."""
    proxy: ProxyConfig = ProxyConfig()
    """Passing requests on."""

    @model_validator(mode="after")
    def _one_form(self) -> UpstreamConfig:
        if self.host is None and self.endpoints is None:
            raise ValueError("has no address; give host and port, or endpoints")
        if self.endpoints is not None and not self.model_fields_set.isdisjoint({"host", "port"}):
            raise ValueError("has both host or port and endpoints; keep one form")
        return self

    def addresses(self) -> tuple[Endpoint, ...]:
        """Return its endpoints, whichever form they are written in; an application has none, and a service's are not known."""
        if self.host is not None:
            return (Endpoint(self.host, self.port),)
        found = ((each.host, each) for each in self.endpoints or ())
        return tuple(Endpoint(host, each.port, each.weight, each.priority) for host, each in found if host is not None)

    def services(self) -> tuple[str, ...]:
        """Return the names of the services whose targets are its endpoints."""
        return tuple(each.srv for each in self.endpoints or () if each.srv is not None)

    @property
    def application(self) -> str | None:
        """The ASGI application that it is, as ``package.module:attribute``; `None` where it has addresses."""
        return next((each.asgi for each in self.endpoints or () if each.asgi is not None), None)
