"""The settings of the core: every key with its default, its range and what it means (behaviour 4).

The configuration that is loaded is a model made from these and from the sections of the loaded plugins, so that
validation, JSON Schema and documentation have one source. Rules across several keys are in `gw.config.rules`.

Times are whole numbers in the unit that the key ends with; sizes are bytes. Nothing here reads files or the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from gw.config.values import (
    FieldName,
    FieldValue,
    Host,
    HostPatterns,
    LogFile,
    Methods,
    Name,
    Natural,
    Network,
    Path,
    PathPrefix,
    PluginNames,
    Port,
    Positive,
    ReferenceMethods,
    Regex,
    ResponseTimeout,
    RoutePrefix,
    StreamDuration,
    StreamIdle,
    Weight,
)
from gw.hookspecs import Sections
from gw.keys import Endpoint

__all__ = ["GatewayConfig", "ProxyConfig", "RouteConfig", "UpstreamConfig", "is_free", "with_sections"]


class Settings(BaseModel):
    """What every group of keys has in common: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# --- the gateway ---------------------------------------------------------------------------------


class RequestIdConfig(Settings):
    """The identifier of a request, in logs and on the way to the upstream."""

    enabled: bool = True
    """Whether the upstream is told it."""
    header: FieldName = "x-request-id"
    """The header that carries it."""
    trust: Literal["trusted", "always", "never"] = "trusted"
    """Whose own identifier is kept: that of a client among `trusted_proxies`, anyone's, or nobody's."""


class PathsConfig(Settings):
    """How a request's path is normalised before anything looks at it."""

    merge_slashes: bool = True
    """Whether `//` becomes `/`."""
    encoded_slash: Literal["keep", "reject"] = "keep"
    """What to do with `%2F`: leave it encoded, or answer 400."""
    backslash: Literal["keep", "reject"] = "reject"
    """The same for a backslash, written plainly or as `%5C`."""
    nul: Literal["keep", "reject"] = "reject"
    """The same for `%00`."""


class AccessLogConfig(Settings):
    """One line per exchange."""

    enabled: bool = False
    """Whether it is written."""
    file: LogFile = ""
    """The file; empty means standard output."""
    format: Literal["json", "text"] = "json"
    """`json` writes one object a line, `text` fills the template in."""
    template: str = ""
    """The line of the `text` format; empty means the built-in one."""


class LogConfig(Settings):
    """The gateway's own log."""

    level: Literal["trace", "debug", "info", "warn", "error", "critical"] = "info"
    """The least serious level that is written."""
    file: LogFile = ""
    """The file; empty means standard error only."""
    max_file_size: int = 10_485_760
    """Bytes at which a new file is begun."""
    max_files: int = 3
    """How many files are kept."""
    format: Literal["text", "json"] = "text"
    """`json` writes one object a line."""
    access: AccessLogConfig = AccessLogConfig()
    """The access log."""

    @field_validator("max_file_size", "max_files")
    @classmethod
    def _counts_with_a_file(cls, value: int, info: ValidationInfo) -> int:
        if value < 1 and info.data.get("file"):
            raise ValueError(f"must be at least 1 where log.file is set, not {value}")
        return value


class StreamingConfig(Settings):
    """How much of a body may wait for a slow receiver."""

    high_water_bytes: Positive = 262_144
    """Unsent bytes at which reading from the other side stops."""
    low_water_bytes: Natural = 65_536
    """Unsent bytes at which it goes on."""

    @field_validator("low_water_bytes")
    @classmethod
    def _below_high(cls, value: int, info: ValidationInfo) -> int:
        high = info.data.get("high_water_bytes")
        if high is not None and value >= high:
            raise ValueError(f"must be less than high_water_bytes ({high}), not {value}")
        return value

    model_config = ConfigDict(validate_default=True)


class Http1Config(Settings):
    """HTTP/1.1 with clients."""

    streaming: StreamingConfig = StreamingConfig()
    """Water marks of bodies."""


# --- upstreams -----------------------------------------------------------------------------------


class EndpointConfig(Settings):
    """One address of an upstream."""

    host: Host
    """Address or host name."""
    port: Port = 80
    """TCP port."""
    weight: Weight = 1
    """Its share of the requests, among the upstream's endpoints."""


class PoolConfig(Settings):
    """Connections to an upstream."""

    max_connections: Positive = 64
    """Connections in all."""
    max_idle_connections: Natural = 16
    """Of them, how many may wait for the next request; at most `max_connections`."""
    connect_timeout_ms: Annotated[int, Field(ge=1000)] = 5000
    """How long connecting may take."""
    idle_timeout_sec: Positive = 90
    """How long a connection may wait for the next request."""
    max_lifetime_sec: Natural = 3600
    """Age at which a connection takes no further request; 0 means never."""
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
    stream_idle_timeout_sec: StreamIdle = 30
    """The longest pause in a response's body, event streams excepted; 0 means no limit."""
    stream_max_duration_sec: StreamDuration = 0
    """The longest time a response's body may take; 0 means no limit."""
    forward_trailers: bool = True
    """Pass trailers on, in both directions."""
    header_rewrite: HeaderRewriteConfig = HeaderRewriteConfig()
    """Headers that the gateway sets."""


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
        """Return its endpoints, whichever form they are written in."""
        if self.host is not None:
            return (Endpoint(self.host, self.port),)
        return tuple(Endpoint(each.host, each.port, each.weight) for each in self.endpoints or ())


# --- routes --------------------------------------------------------------------------------------


class Condition(Settings):
    """What a header or query parameter must be like: exactly one of the keys."""

    exact: str | None = None
    """It has this value."""
    regex: Regex | None = None
    """Its whole value matches this regular expression."""
    present: bool | None = None
    """It is there, or (false) it is not."""

    @model_validator(mode="after")
    def _one_of(self) -> Condition:
        if [self.exact, self.regex, self.present].count(None) != 2:
            raise ValueError("must have exactly one of exact, regex, present")
        return self


def _as_condition(value: str | Condition) -> Condition:
    return Condition(exact=value) if isinstance(value, str) else value


def _text_or_mapping(value: object) -> str:
    return "text" if isinstance(value, str) else "mapping"


if TYPE_CHECKING:
    Conditioned = Condition
else:  # text is short for an exact value
    Conditioned = Annotated[
        Annotated[str, Tag("text")] | Annotated[Condition, Tag("mapping")],
        Discriminator(_text_or_mapping),
        AfterValidator(_as_condition),
    ]


class MatchConfig(Settings):
    """Which requests a route takes: those that fit everything given."""

    host: HostPatterns = ()
    """A host, `*.` and a domain, or a list of them; empty means any."""
    path: Path | None = None
    """A pattern, such as `/users/:id([0-9]+)/*rest`. At most one of path, prefix, regex; none means every path."""
    prefix: PathPrefix | None = None
    """A path and all that is below it: `/api` takes `/api` and `/api/x`, but not `/apix`."""
    regex: Regex | None = None
    """A regular expression for the whole path."""
    methods: Methods = ()
    """Empty means all."""
    headers: dict[FieldName, Conditioned] = Field(default_factory=dict)
    """Header name to value, or to `{regex: ...}` or `{present: ...}`."""
    query: dict[str, Conditioned] = Field(default_factory=dict)
    """Query parameter to value, or to `{regex: ...}` or `{present: ...}`."""

    @model_validator(mode="after")
    def _one_path(self) -> MatchConfig:
        given = [key for key in ("path", "prefix", "regex") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"has {' and '.join(given)}; a path is matched in one way")
        return self

    def __str__(self) -> str:
        methods = f"{','.join(self.methods)} " if self.methods else ""
        path = self.path or self.prefix or (f"~{self.regex}" if self.regex else "/")
        return f"{methods}{','.join(self.host)}{path}"


class WeightedUpstream(Settings):
    """One of several upstreams of a route."""

    name: Name
    """Name of the upstream."""
    weight: Annotated[int, Field(ge=0, le=65535)] = 1
    """Its share of the requests; 0 takes it out."""


class RouteConfig(Settings):
    """Which requests go where, and through which filters."""

    name: Name | None = None
    """How logs and metrics call it; left out, it is what the route matches."""
    match: MatchConfig = MatchConfig()
    """Which requests it takes; left out, all that no other route takes."""
    upstream: Name | None = None
    """Where to send them. Without an upstream a plugin has to answer."""
    upstreams: Annotated[tuple[WeightedUpstream, ...], Field(min_length=1)] | None = None
    """Several upstreams, by weight."""
    strip_prefix: bool | None = None
    """Send only what follows the prefix, or what the pattern's catch-all matched."""
    response_timeout_ms: ResponseTimeout | None = None
    """Instead of the upstream's."""
    stream_idle_timeout_sec: StreamIdle | None = None
    """Instead of the upstream's."""
    stream_max_duration_sec: StreamDuration | None = None
    """Instead of the upstream's."""
    max_body_size: Natural | None = None
    """Instead of the gateway's."""
    header_rewrite: HeaderRewriteConfig | None = None
    """Instead of the upstream's, key by key."""
    plugins: PluginNames | None = None
    """The plugins of this route, in the order of their filters; left out, all that are loaded."""

    @model_validator(mode="after")
    def _one_target(self) -> RouteConfig:
        if self.upstream is not None and self.upstreams is not None:
            raise ValueError("has both upstream and upstreams; keep one")
        if self.upstreams is not None and not any(each.weight for each in self.upstreams):
            raise ValueError("has no upstream with a weight above 0")
        return self

    def targets(self) -> tuple[tuple[str, int], ...]:
        """Return name and weight of its upstreams; nothing for a route that answers by itself."""
        if self.upstream is not None:
            return ((self.upstream, 1),)
        return tuple((each.name, each.weight) for each in self.upstreams or ())


class GatewayConfig(Settings):
    """Everything the core can be told."""

    plugins: PluginNames | None = None
    """What is loaded, in the order of the filters; left out, our own plugins in their standard order."""
    bind_host: Host = "127.0.0.1"
    """Where to listen: an address, or a name that is resolved at start."""
    bind_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """TCP port; 0 takes a free one and logs it."""
    max_connections: Natural = 10_000
    """Clients connected at once; 0 means no limit."""
    idle_timeout_sec: Natural = 300
    """How long a connection may be silent between requests; 0 means no limit."""
    max_header_size: Natural = 8192
    """A request's head: target, names and values; 0 means no limit. Beyond it 431."""
    max_body_size: Natural = 1_048_576
    """A request's body; 0 means no limit. Beyond it 413."""
    request_timeout_sec: Natural = 30
    """From a request's first byte to the end of its head; 0 means no limit. Beyond it 408."""
    body_timeout_sec: Natural = 30
    """The longest pause in a request's body; 0 means no limit. Beyond it 408."""
    min_body_rate: Natural = 240
    """Bytes per second that a request's body must keep up after 5 s; 0 means any."""
    send_timeout_sec: Natural = 60
    """How long a client may take nothing of its response; 0 means no limit."""
    min_send_rate: Natural = 240
    """Bytes per second that a client must take, over each `send_timeout_sec`, while more waits for it; 0 means any."""
    shutdown_drain_timeout_sec: Annotated[int, Field(ge=0, le=300)] = 30
    """How long exchanges may go on after the gateway was told to stop; 0 means not at all."""
    max_requests_per_connection: Natural = 0
    """Requests after which a client's connection is closed; 0 means no limit."""
    engine: Literal["auto", "pure", "native"] = "auto"
    """The HTTP parser: h11 (`pure`), llhttp (`native`), or llhttp where it is installed."""
    loop: Literal["auto", "asyncio", "uvloop", "trio"] = "auto"
    """The event loop: `auto` is uvloop where it is installed, else asyncio."""
    trusted_proxies: tuple[Network, ...] = ()
    """Whose `X-Forwarded-*` and `Forwarded` are believed: addresses and networks."""
    request_id: RequestIdConfig = RequestIdConfig()
    """Request identifiers."""
    server_header: FieldValue = ""
    """Value of `Server` on the gateway's own answers; empty means none."""
    explain: bool = False
    """Whether the access log tells how the requests of trusted clients that send `x-gw-explain: 1` were decided."""
    paths: PathsConfig = PathsConfig()
    """Normalisation of paths."""
    log: LogConfig = LogConfig()
    """Logs."""
    http1: Http1Config = Http1Config()
    """HTTP/1.1 with clients."""
    upstreams: tuple[UpstreamConfig, ...] = ()
    """Services that requests are sent to."""
    routes: tuple[RouteConfig, ...] = ()
    """Which requests go where, beside the routes that `proxy.route_prefix` makes."""

    def route_names(self) -> tuple[str, ...]:
        """Return a name for each of `routes`, no two alike: its own, else what it matches."""
        taken = {route.name for route in self.routes if route.name is not None}
        names: list[str] = []
        for route in self.routes:
            name = first = route.name if route.name is not None else str(route.match)
            number = 1
            while route.name is None and name in taken:
                number += 1
                name = f"{first} #{number}"
            taken.add(name)
            names.append(name)
        return tuple(names)


# --- with the plugins' sections ------------------------------------------------------------------

LEVELS: Mapping[str, type[Settings]] = {"gateway": GatewayConfig, "upstream": UpstreamConfig, "route": RouteConfig}


def is_free(section: str) -> bool:
    """Whether a plugin may call its section so: it is a plain key, and no level has that key already."""
    taken = any(section in model.model_fields or hasattr(model, section) for model in LEVELS.values())
    return bool(re.fullmatch(r"[a-z][a-z0-9_]*", section)) and not taken


def with_sections(sections: Iterable[Sections]) -> type[GatewayConfig]:
    """Return the model of a whole configuration: the core's keys, and *sections* at the levels where they are accepted."""
    found = tuple(sections)

    def fields(level: str) -> dict[str, Any]:
        models = ((each.name, getattr(each, level)) for each in found)
        return {name: (model | None, None) for name, model in models if model is not None}

    upstream = create_model("UpstreamConfig", __base__=UpstreamConfig, **fields("upstream"))
    route = create_model("RouteConfig", __base__=RouteConfig, **fields("route"))
    known = GatewayConfig.model_fields
    lists: dict[str, Any] = {
        "upstreams": (tuple[upstream, ...], Field((), description=known["upstreams"].description)),  # type: ignore[valid-type]
        "routes": (tuple[route, ...], Field((), description=known["routes"].description)),  # type: ignore[valid-type]
    }
    return create_model("GatewayConfig", __base__=GatewayConfig, **lists, **fields("gateway"))
