"""The settings for upstreams that fail: retries and what bounds them (behaviour 4.5, 11.5).

What they mean is carried out in `gw.upstream`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, SecretStr, model_validator

from gw.config.hosts import address, is_address
from gw.config.settings import Settings
from gw.config.values import FieldName, FieldValue, Milliseconds, Natural, PathPrefix, Positive

__all__ = [
    "ActiveHealthConfig",
    "BalanceConfig",
    "DnsConfig",
    "HealthConfig",
    "HedgingConfig",
    "OutlierConfig",
    "RetryBudgetConfig",
    "RetryConfig",
    "StickyConfig",
    "UpstreamRetryConfig",
]

Condition = Literal["connect-failure", "refused-stream", "disconnect", "timeout", "gateway-error", "5xx"]
Status = Annotated[int, Field(ge=400, le=599)]

STATUSES: Final = {"gateway-error": frozenset({502, 503, 504}), "5xx": frozenset(range(500, 600))}
"""What the conditions that are about responses stand for."""


class RetryConfig(Settings):
    """When a request is sent once more."""

    max_retries: Annotated[int, Field(ge=0, le=10)] = 0
    """Retries, the first attempt not counted; 0 means none."""
    retry_on_connect_failure: bool = True
    """Retry when no connection came about, or the request surely was not looked at. Whatever the method: nothing was done."""
    retry_on_5xx: bool = False
    """Retry a response of 500 to 599."""
    retry_on_timeout: bool = False
    """Retry when the response's head did not come in time, or the upstream stopped taking the request."""
    retry_on_disconnect: bool = True
    """Retry when the connection ended before the response's head."""
    retry_on: tuple[Status | Condition, ...] | None = None
    """Instead of the four above, a list: statuses from 400 and `connect-failure`, `refused-stream`, `disconnect`, `timeout`, `gateway-error` (502, 503, 504), `5xx`."""
    retry_non_idempotent: bool = False
    """Retry POST and PATCH too, which may then be done twice."""
    per_try_timeout_ms: Milliseconds = 0
    """From the beginning of an attempt to its response's head; 0 means only what else is set."""
    overall_timeout_ms: Milliseconds = 0
    """The same for all attempts together: no retry begins that would end later."""
    buffer_bytes: Annotated[int, Field(ge=0, le=67_108_864)] = 65_536
    """How much of a request's body is kept to be sent again; one that grew longer is not retried."""
    max_retry_after_ms: Natural = 1000
    """The longest `Retry-After` that is waited for; an answer that asks for more is passed on."""

    @model_validator(mode="after")
    def _one_form(self) -> RetryConfig:
        single = sorted(key for key in self.model_fields_set if key.startswith("retry_on_"))
        if self.retry_on is not None and single:
            raise ValueError(f"has both retry_on and {single[0]}; put it into the list")
        return self

    def over(self, lower: RetryConfig) -> RetryConfig:
        """Return *lower* with the keys that are set here, as a route's settings stand over its upstream's."""
        return lower.model_copy(update={key: getattr(self, key) for key in self.model_fields_set})

    def conditions(self) -> frozenset[str]:
        """Return the ways of failing that are retried, by `UpstreamFailure.condition`."""
        if self.retry_on is not None:
            return frozenset(each for each in self.retry_on if isinstance(each, str)) - set(STATUSES)
        switches = {
            "connect-failure": self.retry_on_connect_failure,
            "refused-stream": self.retry_on_connect_failure,
            "disconnect": self.retry_on_disconnect,
            "timeout": self.retry_on_timeout,
        }
        return frozenset(condition for condition, is_on in switches.items() if is_on)

    def statuses(self) -> frozenset[int]:
        """Return the statuses of responses that are retried."""
        if self.retry_on is None:
            return STATUSES["5xx"] if self.retry_on_5xx else frozenset()
        lists = [STATUSES.get(each, ()) if isinstance(each, str) else (each,) for each in self.retry_on]
        return frozenset(status for each in lists for status in each)


class HedgingConfig(Settings):
    """A second attempt beside one that is slow: the first to answer wins, the other is cancelled. Idempotent methods only."""

    delay_ms: Annotated[int, Field(ge=0, le=86_400_000)]
    """How long the first may be without an answer, looked at twenty times a second; 0 means that there is no second."""
    percentile: Annotated[int, Field(ge=0, le=99)] = 0
    """Instead, as long as so many percent of the upstream's answers take, once 32 are known; 0 means always `delay_ms`."""


class RetryBudgetConfig(Settings):
    """How many requests to an upstream may be retries at once."""

    percent: Annotated[float, Field(ge=0, le=100)] = 20
    """Share of the requests under way that are no retries."""
    min_concurrency: Natural = 3
    """Retries that may be under way however few requests are."""
    dry_run: bool = False
    """Log what would be refused, and allow it."""


class UpstreamRetryConfig(RetryConfig):
    """When a request is sent once more, and how many may be at once."""

    budget: RetryBudgetConfig | None = None
    """The bound of all retries to the upstream; left out, a plugin may set it (`circuit_breaker`), else there is none."""


# --- which endpoint ------------------------------------------------------------------------------


def _hash_key(text: str) -> str:
    for part in text.split("+"):
        kind, colon, name = part.partition(":")
        if not (part in {"client_ip", "path"} or (kind in {"header", "cookie", "param"} and colon and name)):
            raise ValueError(
                f"{part!r} is not client_ip, path, header:NAME, cookie:NAME or param:NAME; join them with '+'"
            )
        if not (name.isascii() and name.isprintable()):
            raise ValueError(f"{name!r} must be printable ASCII")
    return text


class StickyConfig(Settings):
    """A cookie that keeps a client with its endpoint, as long as that is healthy."""

    cookie: FieldName = "gw_sticky"
    """Its name."""
    secret: Annotated[SecretStr, Field(min_length=16)]
    """What its values are made with, 16 characters or more: the same for all workers, and better `{file: PATH}` or `${VARIABLE}`."""
    max_age_sec: Natural = 0
    """How long the client keeps it; 0 means for its session."""
    path: PathPrefix = "/"
    """Of which paths the client sends it."""
    secure: bool = False
    """Whether the client sends it over TLS only."""


class BalanceConfig(Settings):
    """Which of an upstream's endpoints is next."""

    algorithm: Literal["round_robin", "least_requests", "peak_ewma", "ring_hash", "random"] = "round_robin"
    """`least_requests` and `peak_ewma` look at two at random; `ring_hash` sends the same key to the same endpoint."""
    hash_key: Annotated[str, AfterValidator(_hash_key)] = "client_ip"
    """The key of `ring_hash`: `client_ip`, `path`, `header:NAME`, `cookie:NAME`, `param:NAME`, joined by `+`. A request without it goes anywhere."""
    load_factor_percent: Annotated[int, Field(ge=0)] = 125
    """How much more than its share an endpoint may have under way before `ring_hash` passes it over; 0 means any amount."""
    panic_threshold_percent: Annotated[int, Field(ge=0, le=100)] = 50
    """The share of a tier's endpoints that must be healthy for their health to count; 0 means it always does."""
    slow_start_sec: Annotated[int, Field(ge=0, le=3600)] = 0
    """How long an endpoint that comes back takes to get its full weight; 0 means at once."""
    sticky: StickyConfig | None = None
    """Keep clients with their endpoint."""

    @model_validator(mode="after")
    def _factor_leaves_room(self) -> BalanceConfig:
        if 0 < self.load_factor_percent < 100:
            raise ValueError(f"load_factor_percent must be 0 or at least 100, not {self.load_factor_percent}")
        return self


# --- health --------------------------------------------------------------------------------------


def _statuses(value: int | str) -> int | str:
    low, _, high = str(value).partition("-")
    if not (low.isdigit() and (high or low).isdigit() and 200 <= int(low) <= int(high or low) <= 599):
        raise ValueError(f"{value!r} is not a status or a range of them from 200 to 599, such as 204 or '200-299'")
    return value


def _target(text: str) -> str:
    if not (text.startswith("/") and text.isascii() and text.isprintable() and " " not in text):
        raise ValueError(f"{text!r} must be a path, with or without a query, in ASCII and without spaces")
    return text


class ActiveHealthConfig(Settings):
    """Ask endpoints whether they are well."""

    type: Literal["http", "grpc", "tcp"] = "http"
    """`http` sends a GET, `grpc` asks as grpc.health.v1 says, `tcp` only connects."""
    path: Annotated[str, AfterValidator(_target)] = "/"
    """What is asked for, with its query."""
    host: FieldValue = ""
    """The `Host` of the request; empty means what the endpoint is called by."""
    headers: dict[FieldName, FieldValue] = Field(default_factory=dict)
    """Further fields of the request."""
    expected_statuses: Annotated[tuple[Annotated[int | str, AfterValidator(_statuses)], ...], Field(min_length=1)] = (
        "200-299",
    )
    """Statuses of a healthy answer, and ranges of them."""
    service: Annotated[str, Field(max_length=256)] = ""
    """Which service `grpc` asks about; empty means the whole server."""
    interval_ms: Annotated[int, Field(ge=100, le=86_400_000)] = 10_000
    """From one check of an endpoint to the next."""
    jitter_percent: Annotated[int, Field(ge=0, le=100)] = 10
    """How much longer or shorter that may be, at random."""
    timeout_ms: Annotated[int, Field(ge=50, le=86_400_000)] = 3000
    """How long a check may take."""
    healthy_threshold: Positive = 2
    """Good checks in a row that make an unhealthy endpoint healthy."""
    unhealthy_threshold: Positive = 3
    """Bad checks in a row that make a healthy one unhealthy; of a new endpoint the first counts."""


class OutlierConfig(Settings):
    """Take endpoints out for a while that answer badly."""

    consecutive_5xx: Natural = 5
    """Failures in a row, of any kind; 0 means that they do not count."""
    consecutive_gateway_failures: Natural = 5
    """The same for 502, 503, 504 and attempts that got no answer."""
    interval_ms: Annotated[int, Field(ge=100, le=86_400_000)] = 10_000
    """How often success rates are compared."""
    success_rate_deviation: Annotated[float, Field(ge=0, le=10)] = 1.9
    """Standard deviations that an endpoint's success rate may be below the mean of all; 0 means any."""
    success_rate_minimum_endpoints: Positive = 5
    """How many endpoints must have had enough requests for that."""
    success_rate_minimum_requests: Positive = 100
    """How many requests in an interval are enough."""
    base_ejection_sec: Positive = 30
    """How long the first ejection lasts; the next in a row twice, three times as long."""
    max_ejection_sec: Positive = 300
    """The longest that any lasts."""
    max_ejection_percent: Annotated[int, Field(ge=0, le=100)] = 50
    """The share of an upstream's endpoints that may be out at once; a larger one stays in, however it answers."""


class HealthConfig(Settings):
    """Which endpoints are fit to be sent requests."""

    active: ActiveHealthConfig | None = None
    """Checks of the gateway's own; left out, there are none."""
    outliers: OutlierConfig | None = None
    """Conclusions from what requests get; left out, there are none."""


# --- names ---------------------------------------------------------------------------------------


def _name_server(text: str) -> str:
    host, port = address(text)
    if not is_address(host):
        raise ValueError(f"{text!r} has a name; a name server is an address and a port, such as 10.0.0.2:53")
    if not port:
        raise ValueError(f"{text!r}: port 0 cannot be asked")
    return text


NameServer = Annotated[str, AfterValidator(_name_server)]


class DnsConfig(Settings):
    """How the names of upstreams are resolved."""

    lookup_family: Literal["v4_only", "v6_only", "v4_preferred", "v6_preferred"] = "v4_preferred"
    """Which addresses are used; with a preference, those of the other family stand in where a connection fails or is slow."""
    resolve_timeout_ms: Positive = 5000
    """How long one name may take."""
    overall_timeout_ms: Positive = 15_000
    """How long all of them may hold up a start; at least `resolve_timeout_ms`."""
    refresh_sec: Natural = 30
    """How often names are looked up again where `resolver` is `system`; 0 means never, once they were found."""
    resolver: Literal["system", "dnspython"] = "system"
    """Who is asked: the system's resolver, or name servers themselves, which say how long an answer holds (`gw[dns]`)."""
    servers: tuple[NameServer, ...] = ()
    """Name servers for `dnspython`, as address and port; none means those of /etc/resolv.conf."""
    stale_on_error: bool = True
    """Keep the last addresses of a name that cannot be resolved any more."""
    required: bool = False
    """Whether a name that cannot be resolved keeps the gateway from starting."""
    resolver_max_inflight: Positive = 32
    """Look-ups at once, each in a thread of its own; with `dnspython`, in one for each family."""

    def name_servers(self) -> tuple[tuple[str, int], ...]:
        """Return `servers`, each as address and port."""
        return tuple(map(address, self.servers))

    @model_validator(mode="after")
    def _servers_are_asked(self) -> DnsConfig:
        if self.servers and self.resolver == "system":
            raise ValueError("servers are asked by resolver: dnspython only; the system's resolver has its own")
        return self

    @model_validator(mode="after")
    def _overall_is_longer(self) -> DnsConfig:
        if self.overall_timeout_ms < self.resolve_timeout_ms:
            raise ValueError(
                f"overall_timeout_ms ({self.overall_timeout_ms}) must be at least resolve_timeout_ms ({self.resolve_timeout_ms})"
            )
        return self
