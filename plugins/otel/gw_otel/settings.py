"""What the section ``observability`` may say (behaviour 4.9), and more. All that can be wrong with it alone is found here.

What the environment adds (``OTEL_*``) is the business of `gw_otel.resource` and `gw_otel.destination`.
"""

from __future__ import annotations

import re
from itertools import pairwise
from math import isfinite
from typing import Annotated, Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, SecretStr, model_validator

from gw import Section
from gw_otel.limits import MAX_BUCKETS, MAX_QUEUE

__all__ = [
    "Batch",
    "Logs",
    "Metrics",
    "Observability",
    "Otlp",
    "Override",
    "Prometheus",
    "Resource",
    "Retries",
    "Sampler",
    "Tail",
    "Traces",
]

Items = TypeVar("Items", bound=tuple[str, ...])

_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


class Group(BaseModel):
    """What all groups of keys have in common: unknown keys are errors, values do not change."""

    model_config = Section.model_config


def _distinct(items: Items) -> Items:
    for item in items:
        if items.count(item) > 1:
            raise ValueError(f"names {item!r} twice")
    return items


def _field_name(name: str) -> str:
    if not _FIELD_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name")
    if name.lower() in {"content-type", "content-length", "content-encoding", "host", "transfer-encoding"}:
        raise ValueError(f"{name} is written by the exporter")
    return name


def _field_value(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not (text.isprintable() and text.isascii() and text == text.strip()):
        raise ValueError("must be printable ASCII without spaces around it")
    return value


def _path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("must begin with '/'")
    return path


def _own_path(path: str) -> str:
    if _path(path) == "/" or not re.fullmatch(r"[A-Za-z0-9/._~-]+", path):
        raise ValueError("must be a path below '/', of letters, digits and -._~")
    return path


def _rising(bounds: tuple[float, ...]) -> tuple[float, ...]:
    if not bounds or len(bounds) > MAX_BUCKETS:
        raise ValueError(f"must be 1 to {MAX_BUCKETS} numbers")
    if not all(map(isfinite, bounds)) or any(low >= high for low, high in pairwise(bounds)):
        raise ValueError("must be finite and strictly rising")
    return bounds


def _url(url: str) -> str:
    if url and not re.fullmatch(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?", url):
        raise ValueError("must be a URL such as http://collector:4318, without user, query or fragment")
    return url


Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]
Ratio = Annotated[float, Field(ge=0, le=1)]
HeaderName = Annotated[str, AfterValidator(_field_name)]
HeaderValue = Annotated[SecretStr, AfterValidator(_field_value)]
Exporter = Literal["", "otlp_http"]
SamplerType = Literal["always_on", "always_off", "trace_id_ratio", "parent_based", "consistent"]
Propagator = Literal["w3c", "jaeger", "b3", "b3multi"]


class Resource(Group):
    """Who sends the telemetry."""

    service_name: Annotated[str, Field(min_length=1)] = "gw"
    """`service.name`. Where it is not set, `OTEL_SERVICE_NAME` counts."""
    service_version: str = ""
    """`service.version`; left out when empty."""
    service_instance_id: str = ""
    """`service.instance.id`; left out when empty."""
    attributes: dict[str, str] = Field(default_factory=dict)
    """More attributes; they win over those of `OTEL_RESOURCE_ATTRIBUTES`."""


class Otlp(Group):
    """Where to push, over OTLP."""

    upstream: str = ""
    """Name of the upstream that is the collector."""
    endpoint: Annotated[str, AfterValidator(_url)] = ""
    """Instead of an upstream, the URL of a collector; `/v1/traces` and so on is appended, unless it is gRPC."""
    protocol: Literal["http/json", "http/protobuf", "grpc"] = "http/json"
    """What is spoken, as `OTEL_EXPORTER_OTLP_PROTOCOL` calls it."""
    compression: Literal["none", "gzip"] = "none"
    """How they are compressed."""
    timeout_ms: Milliseconds = 10_000
    """Milliseconds that one push may take."""
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    """Header fields that go along, such as an API key."""

    @model_validator(mode="after")
    def _of_a_service(self) -> Otlp:
        if self.protocol == "grpc" and urlsplit(self.endpoint).path.strip("/"):
            raise ValueError("endpoint must have no path with protocol grpc; the service is the path")
        return self


class Override(Group):
    """A sampler for some paths."""

    path: Annotated[str, AfterValidator(_path)]
    """The path itself and everything below it."""
    sampler: SamplerType = "always_off"
    """The sampler that replaces the one for all."""
    ratio: Ratio = 1.0
    """Of the samplers that have one."""


class Sampler(Group):
    """Which traces are recorded."""

    type: SamplerType = "parent_based"
    """How it is decided."""
    ratio: Ratio = 1.0
    """The share of traces that begin here."""
    routes: tuple[Override, ...] = ()
    """Other samplers by path; the first that fits counts."""


class Tail(Group):
    """Requests whose trace is kept although it was not sampled, decided when they end."""

    errors: bool = False
    """Those that failed: 5xx, or no answer."""
    slow_ms: Annotated[int, Field(ge=0)] = 0
    """Those that took longer than so many milliseconds; 0 for none."""


class Retries(Group):
    """How often a batch is sent again."""

    max_attempts: Annotated[int, Field(ge=0, le=100)] = 3
    """In all; 0 means 1."""
    initial_backoff_ms: Milliseconds = 1000
    """Milliseconds before the second attempt, doubled before each further one."""
    max_backoff_ms: Milliseconds = 10_000
    """The longest pause."""

    @model_validator(mode="after")
    def _in_order(self) -> Retries:
        if self.max_backoff_ms < self.initial_backoff_ms:
            raise ValueError(f"max_backoff_ms must be at least initial_backoff_ms ({self.initial_backoff_ms})")
        return self


class Batch(Group):
    """How much is sent at once, and how much may wait."""

    max_queue_size: Annotated[int, Field(ge=1, le=1_000_000)] = MAX_QUEUE
    """Spans, or log records, that may wait; the oldest is dropped for one more."""
    max_export_batch_size: Annotated[int, Field(ge=1)] = 512
    """How many are sent at once, at most; so many are sent without waiting."""
    schedule_delay_ms: Milliseconds = 5000
    """Milliseconds after which what there is is sent."""
    retries: Retries = Retries()
    """How often a batch is sent again."""

    @model_validator(mode="after")
    def _in_order(self) -> Batch:
        if self.max_export_batch_size > self.max_queue_size:
            raise ValueError(f"max_export_batch_size must be at most max_queue_size ({self.max_queue_size})")
        return self


class Traces(Group):
    """Spans of requests, and of what is done for them."""

    enabled: bool = True
    """Whether there are spans and trace headers; without, trace headers of clients pass through untouched."""
    exporter: Exporter = ""
    """How spans are sent; without, traces are propagated only."""
    propagators: Annotated[tuple[Propagator, ...], Field(min_length=1), AfterValidator(_distinct)] = ("w3c",)
    """Formats of trace headers: the first that is found counts, all are written."""
    auth_idp_span: bool = True
    """Whether a call to an identity provider is a span, or two events of the request's."""
    filters: bool = False
    """Whether every verdict of a plugin is a span, with the time that it took."""
    websocket_messages: bool = False
    """Whether every WebSocket message is a span."""
    baggage_attributes: Annotated[tuple[str, ...], AfterValidator(_distinct)] = ()
    """Names of W3C baggage members that become attributes `baggage.NAME` of the request's span."""
    sampler: Sampler = Sampler()
    """Which traces are recorded."""
    tail: Tail = Tail()
    """Which are kept although they were not sampled."""
    otlp: Otlp = Otlp()
    """Where they are sent."""
    batch: Batch = Batch()
    """How much at once."""


class Prometheus(Group):
    """The endpoint that Prometheus scrapes."""

    path: Annotated[str, AfterValidator(_own_path)] = "/metrics"
    """Where it is."""
    include_target_info: bool = True
    """Whether `target_info` has the resource's attributes."""
    process: bool = True
    """Whether the process's CPU, memory, file descriptors and garbage collections are there too."""


class Metrics(Group):
    """Figures of the gateway and its plugins."""

    enabled: bool = True
    """Whether they are exported; they are counted in any case."""
    exporter: (
        Literal["", "otlp_http", "prometheus_pull"]
        | Annotated[tuple[Literal["otlp_http", "prometheus_pull"], ...], AfterValidator(_distinct)]
    ) = ""
    """`otlp_http`, `prometheus_pull`, or a list of both."""
    otlp: Otlp = Otlp()
    """Where they are pushed."""
    export_interval_ms: Milliseconds = 60_000
    """Milliseconds between two pushes."""
    export_timeout_ms: Milliseconds = 10_000
    """Milliseconds that one push may take, its retries included."""
    prometheus: Prometheus = Prometheus()
    """Where they are scraped."""
    histogram_buckets: dict[str, Annotated[tuple[float, ...], AfterValidator(_rising)]] = Field(default_factory=dict)
    """Bounds of a histogram by its name, in its unit, instead of its own."""

    @model_validator(mode="after")
    def _in_order(self) -> Metrics:
        if self.export_timeout_ms > self.export_interval_ms:
            raise ValueError(f"export_timeout_ms must be at most export_interval_ms ({self.export_interval_ms})")
        return self

    @property
    def pushes(self) -> bool:
        return self.enabled and "otlp_http" in (self.exporter, *self.exporter)

    @property
    def is_scraped(self) -> bool:
        """Whether there is an endpoint; with `enabled: false` it answers 404 (behaviour 17.6)."""
        return "prometheus_pull" in (self.exporter, *self.exporter)


class Logs(Group):
    """A log record for every request, with the identifiers of its trace."""

    enabled: bool = True
    """Whether they are sent."""
    exporter: Exporter = ""
    """How they are sent; without, there are none."""
    otlp: Otlp = Otlp()
    """Where they are sent."""
    batch: Batch = Batch()
    """How much at once."""


class Observability(Section):
    """Traces, metrics and logs, as OpenTelemetry has them."""

    enabled: bool = False
    """Whether there is any of it; off costs nothing."""
    resource: Resource = Resource()
    """Who sends it."""
    traces: Traces = Traces()
    """Spans."""
    metrics: Metrics = Metrics()
    """Figures."""
    logs: Logs = Logs()
    """The access log as OpenTelemetry log records."""
