"""What the section ``circuit_breaker`` may say, at its three levels (behaviour 4.5).

The models are for loading; what runs are the `Rules` and tables that are made of them here, once.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gw import Section
from gw_breaker.machine import SECOND, Rules

__all__ = [
    "GRPC_CODES",
    "BreakerSettings",
    "Bulkhead",
    "Cached",
    "Failures",
    "Fallback",
    "FixedAnswer",
    "RouteBreaker",
    "rules",
]

GRPC_CODES: Final = {
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}
"""gRPC's status codes (grpc, doc/statuscodes.md) but for OK."""

Kind = Literal[
    "connect_failure",
    "connect_timeout",
    "disconnect",
    "parse_error",
    "response_too_large",
    "response_too_long",
    "send_stalled",
    "stream_idle",
    "timeout",
    "truncated",
]
GrpcName = Literal[
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
]
Percent = Annotated[int, Field(ge=0, le=100)]
Share = Annotated[int, Field(ge=1, le=100)]
Count = Annotated[int, Field(ge=0)]


def _status(status: int) -> int:
    if not 100 <= status <= 599:
        raise ValueError(f"must be a status from 100 to 599, not {status}")
    return status


Status = Annotated[int, AfterValidator(_status)]


class Group(BaseModel):
    """What all groups of keys have in common: unknown keys are errors, values do not change."""

    model_config = Section.model_config


class Failures(Group):
    """What counts as a failure. Everything else is a success below status 400, and neutral above."""

    statuses: tuple[Status | Literal["4xx", "5xx"], ...] = ("5xx",)
    """Status codes, and whole classes of them."""
    grpc: tuple[GrpcName, ...] = ()
    """gRPC status codes, by name."""
    kinds: tuple[Kind, ...] = (
        "connect_failure",
        "connect_timeout",
        "disconnect",
        "parse_error",
        "send_stalled",
        "stream_idle",
        "timeout",
        "truncated",
    )
    """Ways in which an attempt fails without an answer, or within it."""


class FixedAnswer(Group):
    """An answer that is always the same."""

    status: Annotated[int, Field(ge=200, le=599)] = 503
    """Its status."""
    body: str = ""
    """Its body."""
    content_type: Annotated[str, Field(min_length=1)] = "text/plain; charset=utf-8"
    """What the body is."""


class Cached(Group):
    """The last good answers, kept for when the breaker is open."""

    max_age_sec: Annotated[int, Field(ge=1, le=86_400)] = 300
    """How old an answer may be."""
    max_entries: Annotated[int, Field(ge=1, le=100_000)] = 256
    """How many are kept; the one that was used longest ago goes first."""
    max_entry_bytes: Annotated[int, Field(ge=1, le=16_777_216)] = 65_536
    """The largest body that is kept."""
    max_bytes: Annotated[int, Field(ge=1, le=1_073_741_824)] = 8_388_608
    """Bodies and heads together."""


class Fallback(Group):
    """What the client gets while the breaker is open, instead of the 503."""

    cached: Cached | None = None
    """The last good answer to the same request, where there is one."""
    respond: FixedAnswer | None = None
    """A fixed answer; where both are given, for what is not cached."""
    upstream: Annotated[str, Field(min_length=1)] | None = None
    """The name of another upstream, which is asked instead; the others are for when its breaker is open, too."""

    @model_validator(mode="after")
    def _something(self) -> Fallback:
        if self.cached is None and self.respond is None and self.upstream is None:
            raise ValueError("must have one or more of cached, respond and upstream")
        return self


class Bulkhead(Group):
    """How many exchanges may be with an upstream at once."""

    max_concurrent: Annotated[int, Field(ge=1, le=1_000_000)]
    """Exchanges that are let through at once."""
    max_queue: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """How many more may wait for their turn; beyond it 503."""
    queue_timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 1000
    """How long one may wait; then 503."""


class BreakerSettings(Section):
    """The breaker of an upstream; at the top level, of every upstream that has no section of its own."""

    enabled: bool = False
    """Whether there is one."""
    dry_run: bool = False
    """Count, open, close and log as always, but turn nobody away."""
    consecutive_failure_threshold: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Failures in a row that open it."""
    failure_rate_threshold: Percent = 50
    """Percent of failures in the window that open it; 0 means any failure."""
    minimum_volume: Annotated[int, Field(ge=1, le=10_000_000)] = 20
    """Calls in the window from which on rates count."""
    window_seconds: Annotated[int, Field(ge=1, le=3600)] = 10
    """Length of the window."""
    slow_call_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 0
    """From here on an answer is slow, up to its head and with the wait for a connection; 0 means that none is."""
    slow_call_rate_threshold: Share = 100
    """Percent of slow calls in the window that open it."""
    permitted_half_open_calls: Annotated[int, Field(ge=1, le=1000)] = 5
    """Calls that are let through to find out whether the upstream is well again."""
    half_open_success_percent: Share = 100
    """Percent of them that must succeed."""
    half_open_timeout_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 60_000
    """How long finding out may take; then the calls that are back decide. 0 means for ever."""
    base_open_duration_ms: Annotated[int, Field(ge=100)] = 5000
    """How long it is open the first time; twice as long each time after that, until it has been closed."""
    max_open_duration_ms: Annotated[int, Field(ge=100)] = 60_000
    """The longest time that it is open."""
    max_ejection_percent_per_host_set: Percent = 50
    """Read and not used, as in the reference."""
    retry_budget_percent: Percent = 20
    """Retries that may be under way, in percent of the other requests that are."""
    retry_budget_min_concurrency: Count = 3
    """Retries that may be under way however few requests are."""
    failures: Failures = Failures()
    """What counts as a failure."""
    fallback: Fallback | None = None
    """What the client gets while it is open; left out, a 503."""
    bulkhead: Bulkhead | None = None
    """Bounds the exchanges at once, whether or not the breaker is enabled."""
    scope: Literal["upstream", "endpoint", "route", "machine"] = "upstream"
    """What has a breaker of its own: the upstream, each of its endpoints, or each route to it; in each worker, but for
    `machine`, which is the upstream's with one verdict for all workers."""

    @field_validator("max_open_duration_ms")
    @classmethod
    def _at_least_base(cls, value: int, info: ValidationInfo) -> int:
        base = info.data.get("base_open_duration_ms")
        if base is not None and value < base:
            raise ValueError(f"must be at least base_open_duration_ms ({base}), not {value}")
        return value

    model_config = ConfigDict(validate_default=True)


class RouteBreaker(BreakerSettings):
    """The breaker of one route, instead of its upstream's."""

    scope: Literal["endpoint", "route"] = "route"
    """What has a breaker of its own: the route, or each endpoint for this route."""


def rules(settings: BreakerSettings) -> Rules:
    """Return what the state machine goes by."""
    millisecond = SECOND // 1000
    return Rules(
        consecutive=settings.consecutive_failure_threshold,
        failure_rate=settings.failure_rate_threshold,
        volume=settings.minimum_volume,
        window=settings.window_seconds,
        probes=settings.permitted_half_open_calls,
        base_open=settings.base_open_duration_ms * millisecond,
        max_open=settings.max_open_duration_ms * millisecond,
        dry_run=settings.dry_run,
        shadow=settings.mode == "shadow",
        slow_call=settings.slow_call_ms * millisecond,
        slow_rate=settings.slow_call_rate_threshold,
        success_share=settings.half_open_success_percent,
        half_open_time=settings.half_open_timeout_ms * millisecond,
    )
