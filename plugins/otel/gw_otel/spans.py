"""Spans: the one of an exchange while it is under way, those that others begin below it, and what is left of either.

Times are `time.monotonic` seconds until a span is finished, nanoseconds since 1970 from then on. The names and
attributes of the gateway's own spans are in `gw_otel.filter`; how spans are sent is the business of `gw_otel.otlp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gw import Trace
from gw_otel.limits import MAX_ATTRIBUTE_LENGTH, MAX_ATTRIBUTES, MAX_EVENTS, MAX_SPANS_OF_EXCHANGE

if TYPE_CHECKING:
    from gw_otel.sampling import Ids

__all__ = [
    "CLIENT",
    "INTERNAL",
    "SERVER",
    "Attributes",
    "Below",
    "Event",
    "Inbound",
    "Scope",
    "Span",
    "Tracer",
    "admit",
]

Value: TypeAlias = str | bool | int | float
Attributes: TypeAlias = list[tuple[str, Value]]
Event: TypeAlias = tuple[float, str, Attributes]
"""When, what, and more about it."""
Scope: TypeAlias = tuple[str, str]
"""Name and version of what made a span."""

INTERNAL: Final = 1
SERVER: Final = 2
CLIENT: Final = 3
"""Kinds, as OTLP numbers them."""

_SECRET: Final = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"})
_OF_HEADERS: Final = ("http.request.header.", "http.response.header.")
_REDACTED: Final = "[REDACTED]"

_SCOPES: Final[dict[str, Scope]] = {"ws": ("gw.gateway.ws", "1.0.0"), "auth": ("gw.gateway.auth", "1.0.0")}
_IDP_CHECK: Final = "auth.idp_check"
"""What a call to an identity provider is named; it may be asked for as two events instead (behaviour 17.4)."""


def admit(attributes: Attributes, key: str, value: Value) -> bool:
    """Add an attribute that came from elsewhere: bounded, and without what is secret. Tell whether there was room."""
    if len(attributes) >= MAX_ATTRIBUTES:
        return False
    bare = key.lower()
    for prefix in _OF_HEADERS:
        bare = bare.removeprefix(prefix)
    if bare in _SECRET:
        value = _REDACTED
    elif isinstance(value, str) and len(value) > MAX_ATTRIBUTE_LENGTH:
        value = value[:MAX_ATTRIBUTE_LENGTH]
    attributes.append((key, value))
    return True


class Tracer:
    """What all spans of a configuration share: where identifiers come from, and how a context is written."""

    __slots__ = ("headers", "idp_spans", "ids", "late")

    def __init__(self, ids: Ids, headers: Any, late: Any, *, idp_spans: bool) -> None:
        self.ids = ids
        self.headers = headers
        """Returns the field lines of (trace, span, sampled, tracestate)."""
        self.late = late
        """The `gw.Count` of spans that were begun when their exchange was over."""
        self.idp_spans = idp_spans


class Span:
    """A finished span, ready to be sent."""

    __slots__ = (
        "attributes",
        "dropped_attributes",
        "dropped_events",
        "end",
        "events",
        "failed",
        "kind",
        "name",
        "parent_id",
        "sampled",
        "scope",
        "span_id",
        "start",
        "state",
        "trace_id",
    )

    def __init__(
        self,
        scope: Scope,
        name: str,
        kind: int,
        trace_id: str,
        span_id: str,
        parent_id: str,
        state: str,
        sampled: bool,
        start: int,
        end: int,
        attributes: Attributes,
        events: list[tuple[int, str, Attributes]] | tuple[()],
        failed: bool,
        dropped_attributes: int = 0,
        dropped_events: int = 0,
    ) -> None:
        self.scope, self.name, self.kind = scope, name, kind
        self.trace_id, self.span_id, self.parent_id, self.state, self.sampled = (
            trace_id,
            span_id,
            parent_id,
            state,
            sampled,
        )
        self.start, self.end = start, end
        self.attributes, self.events, self.failed = attributes, events, failed
        self.dropped_attributes, self.dropped_events = dropped_attributes, dropped_events

    def __repr__(self) -> str:
        return f"<Span {self.name} {self.span_id} below {self.parent_id or 'nothing'}>"


class _Recording(Trace):
    """What an exchange's span and those below it have in common: attributes, events, and their bounds."""

    __slots__ = ("attributes", "dropped_attributes", "dropped_events", "events")

    attributes: Attributes | None
    events: list[Event] | None
    dropped_attributes: int
    dropped_events: int

    def set(self, key: str, value: Value) -> None:
        if self.attributes is None:
            self.attributes = []
        if not admit(self.attributes, key, value):
            self.dropped_attributes += 1

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        if self.events is None:
            self.events = []
        if len(self.events) >= MAX_EVENTS:
            self.dropped_events += 1
            return
        admitted: Attributes = []
        for key, value in (attributes or {}).items():
            admit(admitted, key, value)
        self.events.append((monotonic(), name, admitted))


class Inbound(_Recording):
    """The SERVER span of an exchange, from its head to its end."""

    __slots__ = ("active", "attempts", "below", "busy", "is_over", "kept", "parent_id", "state", "tracer")

    def __init__(
        self, tracer: Tracer, trace_id: str, span_id: str, parent_id: str, state: str, sampled: bool, kept: bool
    ) -> None:
        self.trace_id, self.span_id, self.sampled = trace_id, span_id, sampled
        self.tracer = tracer
        self.parent_id, self.state = parent_id, state
        self.kept = kept
        """Whether it may still be sent: it is sampled, or the end will tell."""
        self.attempts = ""
        """Identifiers of the spans of the attempts, in order: 16 digits each."""
        self.active: Any = None
        """What counts it among the requests that are under way."""
        self.busy: Any = None
        """What counts the attempt that is under way, if one is."""
        self.below: list[Below] | None = None
        self.is_over = False
        self.attributes = self.events = None
        self.dropped_attributes = self.dropped_events = 0

    def child(self, name: str, attributes: Mapping[str, Value] | None = None) -> Below:
        return self.begin(name, attributes, self.span_id)

    def begin(self, name: str, attributes: Mapping[str, Value] | None, parent_id: str) -> Below:
        span = Below(self, name, parent_id)
        for key, value in (attributes or {}).items():
            span.set(key, value)
        if self.is_over:
            self.tracer.late.value += 1
        elif self.kept:
            if self.below is None:
                self.below = []
            if span.is_hidden:
                self.event("auth.pending_start", _chosen(span, "auth.issuer"))
            elif len(self.below) < MAX_SPANS_OF_EXCHANGE:
                self.below.append(span)
        return span

    def end(self, error: str = "") -> None:
        """Do nothing: it ends with its exchange."""

    def headers(self) -> tuple[tuple[str, str], ...]:
        lines = self.tracer.headers(self.trace_id, self.span_id, self.sampled, self.state)
        return tuple((name.decode(), value.decode("latin-1")) for name, value in lines)


class Below(_Recording):
    """A span that somebody began below an exchange's."""

    __slots__ = ("ended", "error", "is_hidden", "name", "parent_id", "root", "started")

    def __init__(self, root: Inbound, name: str, parent_id: str) -> None:
        self.root, self.name, self.parent_id = root, name, parent_id
        self.is_hidden = name == _IDP_CHECK and not root.tracer.idp_spans
        self.trace_id, self.sampled = root.trace_id, root.sampled
        # A hidden span is nobody's parent: what is called under it hangs below the exchange's.
        self.span_id = root.span_id if self.is_hidden else root.tracer.ids.span()
        self.started, self.ended, self.error = monotonic(), 0.0, ""
        self.attributes = self.events = None
        self.dropped_attributes = self.dropped_events = 0

    def child(self, name: str, attributes: Mapping[str, Value] | None = None) -> Below:
        return self.root.begin(name, attributes, self.span_id)

    def end(self, error: str = "") -> None:
        if not self.ended:
            self.ended, self.error = monotonic(), error
            if self.is_hidden and self.root.kept:
                self.root.event("auth.pending_end", _chosen(self, "auth.outcome"))

    def headers(self) -> tuple[tuple[str, str], ...]:
        root = self.root
        lines = root.tracer.headers(self.trace_id, self.span_id, self.sampled, root.state)
        return tuple((name.decode(), value.decode("latin-1")) for name, value in lines)

    def finished(self, wall: int, now: float) -> Span:
        """Return what is left of it; one that was not ended ends *now*, which is *wall* on the clock."""
        attributes = self.attributes or []
        if self.error:
            attributes.append(("error.type", self.error))
        family = self.name.partition(".")[0]
        return Span(
            _SCOPES.get(family, (f"gw.{family}", "")),
            self.name,
            INTERNAL,
            self.trace_id,
            self.span_id,
            self.parent_id,
            self.root.state,
            self.sampled,
            wall - int((now - self.started) * 1e9),
            wall - int((now - (self.ended or now)) * 1e9),
            attributes,
            moments(self.events, wall, now),
            bool(self.error),
            self.dropped_attributes,
            self.dropped_events,
        )


def moments(events: list[Event] | None, wall: int, now: float) -> list[tuple[int, str, Attributes]] | tuple[()]:
    """Return *events* with times on the clock."""
    if not events:
        return ()
    return [(wall - int((now - at) * 1e9), name, attributes) for at, name, attributes in events]


def _chosen(span: Below, key: str) -> dict[str, Value]:
    return {name: value for name, value in span.attributes or () if name == key}
