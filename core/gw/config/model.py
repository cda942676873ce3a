"""The settings of the core: every key with its default, its range and what it means (behaviour 4).

The configuration that is loaded is a model made from these and from the sections of the loaded plugins, so that
validation, JSON Schema and documentation have one source. Rules across several keys are in `gw.config.rules`.

Times are whole numbers in the unit that the key ends with; sizes are bytes. Nothing here reads files or the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from gw.config.resilience import DnsConfig, HedgingConfig, RetryConfig
from gw.config.settings import Settings
from gw.config.tls import BindPort, ListenerConfig, TlsConfig
from gw.config.upstream import HeaderRewriteConfig, ProxyConfig, UpstreamConfig
from gw.config.values import (
    Address,
    FieldName,
    FieldValue,
    Host,
    HostPatterns,
    LogFile,
    LogLevel,
    Methods,
    Milliseconds,
    Name,
    Natural,
    Network,
    Origins,
    Path,
    PathPrefix,
    PluginNames,
    Positive,
    Regex,
    ResponseTimeout,
    StreamDuration,
    StreamIdle,
)
from gw.hookspecs import Sections
from gw.limits import (
    FLOOD_EMPTY_DATA,
    FLOOD_PINGS,
    FLOOD_PRIORITIES,
    FLOOD_RESETS,
    FLOOD_SETTINGS,
    FLOOD_WINDOW_UPDATES,
    MAX_KEPT_MODELS,
    MAX_WORKERS,
)

__all__ = ["GatewayConfig", "RouteConfig", "is_free", "with_sections"]


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

    level: LogLevel = "info"
    """The least serious level that is written."""
    file: LogFile = ""
    """The file; empty means standard error only."""
    max_file_size: int = 10_485_760
    """Bytes at which a new file is begun."""
    max_files: int = 3
    """How many files are kept."""
    format: Literal["text", "json"] = "text"
    """`json` writes one object a line."""
    levels: dict[str, LogLevel] = Field(default_factory=dict)
    """Levels of single parts, such as `{chain: debug, auth: trace}`: what stands after `gw.` in a line of the log."""
    access: AccessLogConfig = AccessLogConfig()
    """The access log."""

    @field_validator("max_file_size", "max_files")
    @classmethod
    def _counts_with_a_file(cls, value: int, info: ValidationInfo) -> int:
        if value < 1 and info.data.get("file"):
            raise ValueError(f"must be at least 1 where log.file is set, not {value}")
        return value


class StatusConfig(Settings):
    """What the gateway says about itself to anyone who can reach it. A configured route for such a path takes its place."""

    health: bool = True
    """`/health`: it is alive."""
    ready: bool = True
    """`/ready`: it wants new requests; 503 while it drains."""
    stats: bool = True
    """`/stats`: its figures, those of all workers together. They name upstreams and their addresses."""
    metrics: bool = True
    """Whether plugins may have a path for Prometheus to scrape; what is there, and at which path, is theirs to say."""


class AdminConfig(Settings):
    """A listener for operators, with everything that the control socket of `gw` has."""

    bind: Address = "127.0.0.1:9901"
    """Host and port."""
    token: SecretStr
    """What a request must bring, as `Authorization: Bearer ...`; at least 16 characters."""

    @field_validator("token")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < 16:
            raise ValueError("must have at least 16 characters, so that it cannot be guessed")
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


class FloodConfig(Settings):
    """Frames that cost the gateway and give the client nothing: how many it may send in 10 seconds."""

    settings: Positive = FLOOD_SETTINGS
    """SETTINGS."""
    ping: Positive = FLOOD_PINGS
    """PING."""
    reset: Positive = FLOOD_RESETS
    """Streams reset by the client, or by us because of what it sent on them."""
    empty_data: Positive = FLOOD_EMPTY_DATA
    """DATA with nothing in it."""
    priority: Positive = FLOOD_PRIORITIES
    """PRIORITY, PRIORITY_UPDATE, and frames of unknown types."""
    window_update: Positive = FLOOD_WINDOW_UPDATES
    """WINDOW_UPDATE, beyond ten for each DATA frame that was sent."""


class Http2StreamingConfig(StreamingConfig):
    """How much of a body may wait for a slow receiver, on one stream."""

    window_update_bytes: Positive = 32_768
    """Accepted for the reference's sake: window is given back when half of it has been used."""


class Http2Config(Settings):
    """HTTP/2 with clients."""

    enabled: bool = True
    """Whether it is spoken: by ALPN over TLS, by prior knowledge in cleartext."""
    max_concurrent_streams: Positive = 100
    """Streams that a client may have open at once."""
    initial_window_size: Annotated[int, Field(ge=1, le=2**31 - 1)] = 65_535
    """Bytes of a request's body that may wait for the upstream."""
    max_frame_size: Annotated[int, Field(ge=16_384, le=16_777_215)] = 16_384
    """The largest frame that a client may send."""
    max_header_list_size: Annotated[int, Field(ge=4096)] = 65_536
    """The largest head, as HTTP/2 counts it: names, values and 32 bytes a field. Beyond it the stream is reset."""
    enable_push: bool = False
    """Whether handlers may push."""
    max_connection_age_sec: Natural = 0
    """Age at which a connection is closed in good order; 0 means never."""
    streaming: Http2StreamingConfig = Http2StreamingConfig()
    """Water marks of bodies."""
    flood: FloodConfig = FloodConfig()
    """Abuse."""


class WebSocketConfig(Settings):
    """WebSockets with clients, to an upstream or a handler."""

    enabled: bool = True
    """Whether requests may become one; otherwise 404."""
    origins: Origins = ()
    """Pages that browsers may open one from, such as `https://app.example.com`; empty means all. Others get 403."""
    compression: Literal["relay", "off"] = "relay"
    """`relay` lets both ends agree on permessage-deflate, `off` keeps the client's offer back."""
    idle_timeout_sec: Natural | None = None
    """How long nothing may be said in either direction; 0 means no limit, null as long as the gateway's own."""
    ping_interval_sec: Natural = 0
    """Silence after which a side is sent a ping; 0 means never."""
    ping_timeout_sec: Positive = 20
    """How long it may take to say anything then, before it is taken to be gone."""


class RouteWebSocketConfig(WebSocketConfig):
    """WebSockets of one route; what is left out is as the gateway has it."""

    max_message_size: Natural | None = None
    """Instead of `max_ws_message_size`."""

    def over(self, lower: WebSocketConfig) -> WebSocketConfig:
        """Return the gateway's settings with the keys that are set here."""
        own = {key: getattr(self, key) for key in self.model_fields_set & set(WebSocketConfig.model_fields)}
        return lower.model_copy(update=own)


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


class CanaryConfig(Settings):
    """Requests that go to an upstream whatever the weights say: exactly one of `header` and `cookie`."""

    header: FieldName | None = None
    """Name of a header that they have."""
    cookie: FieldName | None = None
    """Name of a cookie that they have."""
    value: str | None = None
    """Its value; null means any."""

    @model_validator(mode="after")
    def _one_of(self) -> CanaryConfig:
        if (self.header is None) == (self.cookie is None):
            raise ValueError("must have exactly one of header, cookie")
        return self


class MirrorConfig(Settings):
    """Copies of a route's requests for another upstream. The client notices nothing of it."""

    upstream: Name
    """Where they are sent; what it answers is thrown away."""
    percent: Annotated[float, Field(ge=0, le=100)] = 100
    """Of how many of the requests, chosen at random."""
    max_body_bytes: Annotated[int, Field(ge=0, le=67_108_864)] = 65_536
    """The longest body that is copied; a request with a longer one is not."""


class WeightedUpstream(Settings):
    """One of several upstreams of a route."""

    name: Name
    """Name of the upstream."""
    weight: Annotated[int, Field(ge=0, le=65535)] = 1
    """Its share of the requests; 0 takes it out, but for those that `when` says."""
    when: CanaryConfig | None = None
    """Requests that go there in any case; the first upstream that claims one gets it."""


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
    mirror: MirrorConfig | None = None
    """Send copies of its requests to another upstream."""
    strip_prefix: bool | None = None
    """Send only what follows the prefix, or what the pattern's catch-all matched."""
    response_timeout_ms: ResponseTimeout | None = None
    """Instead of the upstream's."""
    send_timeout_ms: Milliseconds | None = None
    """Instead of the upstream's."""
    exchange_timeout_ms: Milliseconds | None = None
    """Instead of the upstream's."""
    client_timeout: Literal["never", "trusted", "always"] | None = None
    """Instead of the upstream's."""
    stream_idle_timeout_sec: StreamIdle | None = None
    """Instead of the upstream's."""
    stream_max_duration_sec: StreamDuration | None = None
    """Instead of the upstream's."""
    buffering: Literal["auto", "always", "never"] | None = None
    """Instead of the upstream's."""
    retry: RetryConfig | None = None
    """Instead of the upstream's, key by key."""
    hedging: HedgingConfig | None = None
    """Instead of the upstream's."""
    max_body_size: Natural | None = None
    """Instead of the gateway's."""
    header_rewrite: HeaderRewriteConfig | None = None
    """Instead of the upstream's, key by key."""
    websocket: RouteWebSocketConfig | None = None
    """Instead of the gateway's, key by key."""
    plugins: PluginNames | None = None
    """The plugins of this route, in the order of their filters; left out, all that are loaded."""

    @model_validator(mode="after")
    def _one_target(self) -> RouteConfig:
        if self.upstream is not None and self.upstreams is not None:
            raise ValueError("has both upstream and upstreams; keep one")
        if self.upstreams is not None and not any(each.weight for each in self.upstreams):
            raise ValueError("has no upstream with a weight above 0")
        return self

    def canaries(self) -> Mapping[str, CanaryConfig]:
        """Return what its upstreams claim for themselves, by their names."""
        return {each.name: each.when for each in self.upstreams or () if each.when is not None}

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
    bind_port: BindPort = 8080
    """TCP port; 0 takes a free one and logs it."""
    tls: TlsConfig = TlsConfig()
    """TLS at that address."""
    listeners: tuple[ListenerConfig, ...] = ()
    """More addresses to listen on; the only ones, where none of `bind_host`, `bind_port` and `tls` is set."""
    max_connections: Natural = 10_000
    """Clients connected at once; 0 means no limit."""
    idle_timeout_sec: Natural = 300
    """How long a connection may be silent between requests; 0 means no limit."""
    max_header_size: Natural = 8192
    """A request's head: target, names and values; 0 means no limit. Beyond it 431."""
    max_body_size: Natural = 1_048_576
    """A request's body; 0 means no limit. Beyond it 413."""
    max_ws_message_size: Annotated[int, Field(ge=0, le=2**63 - 1)] = 16_777_216
    """A WebSocket message, fragments together and inflated; 0 means no limit. Beyond it close code 1009."""
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
    drain_delay_sec: Annotated[int, Field(ge=0, le=300)] = 0
    """Of that time, how long it goes on as before with only `/ready` failing, so that load balancers notice."""
    workers: Annotated[int, Field(ge=0, le=MAX_WORKERS)] | None = None
    """Processes that serve: 0 or none means one for each core, 1 means no supervisor beside it."""
    worker_threads: Annotated[int, Field(ge=0, le=MAX_WORKERS)] | None = None
    """The reference's name for `workers`."""
    status: StatusConfig = StatusConfig()
    """What it says about itself on its listeners."""
    admin: AdminConfig | None = None
    """A listener for operators; none means none."""
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
    http2: Http2Config = Http2Config()
    """HTTP/2 with clients."""
    dns: DnsConfig = DnsConfig()
    """Names of upstreams."""
    websocket: WebSocketConfig = WebSocketConfig()
    """WebSockets."""
    upstreams: tuple[UpstreamConfig, ...] = ()
    """Services that requests are sent to."""
    routes: tuple[RouteConfig, ...] = ()
    """Which requests go where, beside the routes that `proxy.route_prefix` makes."""

    @model_validator(mode="after")
    def _one_number_of_workers(self) -> GatewayConfig:
        if self.workers is not None and self.worker_threads is not None:
            raise ValueError("has both workers and worker_threads; keep workers")
        return self

    def places(self) -> dict[str, tuple[str, int]]:
        """Return host and port of each listener, by its name."""
        return {each.name: (each.bind_host, each.bind_port) for each in self.all_listeners()}

    def processes(self) -> int:
        """Return how many processes are to serve; 0 for one on each core."""
        return self.workers or self.worker_threads or 0

    def all_listeners(self) -> tuple[ListenerConfig, ...]:
        """Return every address to listen on; the one that the keys beside `listeners` describe comes first, as ``main``."""
        if self.listeners and self.model_fields_set.isdisjoint({"bind_host", "bind_port", "tls"}):
            return self.listeners
        main = ListenerConfig(name="main", bind_host=self.bind_host, bind_port=self.bind_port, tls=self.tls)
        return (main, *self.listeners)

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

LEVELS: Mapping[str, type[Settings]] = {
    "gateway": GatewayConfig,
    "upstream": UpstreamConfig,
    "proxy": ProxyConfig,
    "route": RouteConfig,
}


def is_free(section: str) -> bool:
    """Whether a plugin may call its section so: it is a plain key, and no level has that key already."""
    taken = any(section in model.model_fields or hasattr(model, section) for model in LEVELS.values())
    return bool(re.fullmatch(r"[a-z][a-z0-9_]*", section)) and not taken


def with_sections(sections: Iterable[Sections]) -> type[GatewayConfig]:
    """Return the model of a whole configuration: the core's keys, and *sections* at the levels where they are accepted."""
    return _with_sections(tuple(sections))


@lru_cache(maxsize=MAX_KEPT_MODELS)
def _with_sections(found: tuple[Sections, ...]) -> type[GatewayConfig]:
    def fields(level: str, *, in_proxy: bool = False) -> dict[str, Any]:
        models = (
            (each.name, getattr(each, level)) for each in found if level != "upstream" or each.in_proxy == in_proxy
        )
        return {name: (model | None, None) for name, model in models if model is not None}

    held = fields("upstream")
    if passing := fields("upstream", in_proxy=True):
        proxy = create_model("ProxyConfig", __base__=ProxyConfig, **passing)
        held["proxy"] = (proxy, Field(proxy(), description=UpstreamConfig.model_fields["proxy"].description))
    upstream = create_model("UpstreamConfig", __base__=UpstreamConfig, **held)
    route = create_model("RouteConfig", __base__=RouteConfig, **fields("route"))
    known = GatewayConfig.model_fields
    lists: dict[str, Any] = {
        "upstreams": (tuple[upstream, ...], Field((), description=known["upstreams"].description)),  # type: ignore[valid-type]
        "routes": (tuple[route, ...], Field((), description=known["routes"].description)),  # type: ignore[valid-type]
    }
    return create_model("GatewayConfig", __base__=GatewayConfig, **lists, **fields("gateway"))
