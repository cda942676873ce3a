"""The filter that sees every request: it reads and writes trace headers, and says at the end what happened.

Only what must happen while a request is under way happens then; spans and their attributes are made from the exchange
when it is over, and only for those that are sent. Names and attributes are behaviour 17.4's, and beyond those the
stable ones of OpenTelemetry's semantic conventions for HTTP.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from time import monotonic, time_ns
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from gw import TRACE, Attempt, Count, Distribution, Exchange, Filter, Key, Message, Note, Order, Outcome, RouteInfo
from gw_otel.instruments import METHODS, Instruments
from gw_otel.limits import MAX_ATTRIBUTE_LENGTH, MAX_ATTRIBUTES, MAX_ROWS, MAX_SPANS_OF_EXCHANGE
from gw_otel.propagation import Propagation
from gw_otel.records import Log
from gw_otel.sampling import Overrides
from gw_otel.spans import CLIENT, INTERNAL, SERVER, Attributes, Inbound, Scope, Span, Tracer, moments

__all__ = ["Ended", "MessageTelemetry", "Telemetry", "Tracing", "log_of"]

INBOUND: Final[Key[Inbound]] = Key("otel.inbound")

_HTTP_SERVER: Final[Scope] = ("gw.http.server", "")
_HTTP_CLIENT: Final[Scope] = ("gw.gateway.http", "1.0.0")
_FILTERS: Final[Scope] = ("gw.filters", "")
_UNTRACED: Final = Tracer(None, None, None, idp_spans=False)  # type: ignore[arg-type]

_STATUS: Final = ["", *map(str, range(1, 1000))]
"""Status codes as labels; 0 is none."""

_INFO: Final = 9
_WARN: Final = 13
_ERROR: Final = 17
"""Severities of log records, as OpenTelemetry numbers them."""

_ERRORS: Final = {
    "gw.client_gone": "client_disconnect",
    "gw.shutdown": "shutdown",
    "gw.body_timeout": "request_timeout",
}
"""Why an exchange failed, in the words of behaviour 17.4, where they are not simply ours."""

_NO_CONNECTION: Final = frozenset({"connect_failure", "connect_timeout", "pool_queue_full", "pool_queue_timeout"})
"""What keeps an attempt from having a connection at all."""

_RETRIED: Final = {
    "gw.connect_failure": "connect_failure",
    "gw.connect_timeout": "connect_failure",
    "gw.upstream_timeout": "timeout",
    "gw.per_try_timeout": "timeout",
    "gw.attempts_timeout": "timeout",
    "gw.upstream_idle": "timeout",
    "gw.upstream_send_stalled": "timeout",
}
"""Why an attempt was followed by another, where it was not the connection's end."""


class Tracing:
    """What the filters of a configuration share about traces."""

    __slots__ = ("baggage", "errors", "filters", "propagation", "sampler", "send", "slow", "tracer")

    def __init__(
        self,
        tracer: Tracer,
        propagation: Propagation,
        sampler: Overrides,
        send: Callable[[Span], None] | None,
        *,
        errors: bool = False,
        slow: float = 0.0,
        baggage: tuple[str, ...] = (),
        filters: bool = False,
    ) -> None:
        self.tracer, self.propagation, self.sampler = tracer, propagation, sampler
        self.send = send
        """Takes each finished span; `None` where they are not sent, but propagated."""
        self.errors = errors
        """Whether the spans of what failed are kept, sampled or not."""
        self.slow = slow
        """Whether those of what took longer, in seconds; 0 for no."""
        self.baggage = baggage
        """Names of members of ``baggage`` that become attributes."""
        self.filters = filters
        """Whether what other filters decide is a span each."""


class _Row:
    """The series of one combination of method, status, version and error."""

    __slots__ = ("duration", "empty", "request_size", "request_sizes", "response_size")

    def __init__(self, duration: Distribution, request_size: Distribution, response_size: Distribution) -> None:
        self.duration, self.request_size, self.response_size = duration, request_size, response_size
        self.request_sizes = request_size.counts
        self.empty = bisect_left(request_size.bounds, 0.0)
        """The bucket of a request without a body: most are, and then nothing need be looked up."""


class _AttemptRow:
    """The series of one combination of what an attempt was and came to."""

    __slots__ = ("at_once", "duration", "wait", "waits")

    def __init__(self, duration: Distribution, wait: Distribution) -> None:
        self.duration, self.wait = duration, wait
        self.waits = wait.counts
        self.at_once = bisect_left(wait.bounds, 0.0)
        """The bucket of an attempt that found a connection at hand, as most do."""


Ended: TypeAlias = Callable[[Exchange, Inbound, int, float, str], None]
"""Told of each exchange that is over: its span, the time in nanoseconds, the seconds it took, and its error's type."""


class Telemetry(Filter):
    """Traces and counts the exchanges of one route."""

    name = "otel"
    order = Order(unique=True)

    def __init__(
        self, route: RouteInfo, instruments: Instruments, tracing: Tracing | None, ended: Ended | None = None
    ) -> None:
        self._route, self._route_name = route.path, route.name
        self._instruments = instruments
        self._tracing = tracing
        self._ended = ended
        self._may_keep = tracing is not None and tracing.send is not None and bool(tracing.errors or tracing.slow)
        self._sends = tracing is not None and tracing.send is not None
        self._active: dict[str, Count] = {}
        self._rows: dict[tuple[str, int, str, str], _Row] = {}
        self._attempts: dict[tuple[str, int, str, str, int, str], _AttemptRow] = {}
        self._services: dict[str, Count] = {}
        self.explains = tracing is not None and tracing.send is not None and tracing.filters

    # --- while it is under way ---------------------------------------------------

    async def on_request_headers(self, ex: Exchange) -> None:
        method = ex.request.method
        active = self._active.get(method)
        if active is None:
            active = self._active_of(method)
        active.value += 1
        tracing = self._tracing
        if tracing is None:
            inbound = ex[INBOUND] = Inbound(_UNTRACED, "", "", "", "", False, False)
            inbound.active = active
            return
        known, found = tracing.propagation.known, None
        for name, value in ex.request.headers.raw:
            if name in known:
                if found is None:
                    found = {name: [value]}
                else:
                    found.setdefault(name, []).append(value)
        tracer = tracing.tracer
        parent = None if found is None else tracing.propagation.extract(found)
        trace_id, span_id = tracer.ids.root()
        if parent is None:
            parent_id = state = ""
            said = None
        else:
            parent_id, state, said = parent.span_id, parent.state, parent.sampled
            if parent.trace_id:
                trace_id = parent.trace_id
        sampler, path = tracing.sampler, ex.matched_path
        # Nearly always the second: a call that can be saved is worth it here.
        special = path.startswith(sampler.prefixes)
        sampled = sampler(path, trace_id, said) if special else sampler.decide(trace_id, said)
        if sampled and parent is None:
            state = sampler.state(path)
        inbound = Inbound(
            tracer, trace_id, span_id, parent_id, state, sampled, self._may_keep or (sampled and self._sends)
        )
        inbound.active = active
        ex[INBOUND] = ex[TRACE] = inbound

    async def on_upstream_request(self, ex: Exchange, attempt: Attempt) -> None:
        inbound = ex.get(INBOUND, None)
        if inbound is None:
            return
        if inbound.busy is not None:
            inbound.busy.value -= 1
        busy = self._services.get(attempt.upstream)
        if busy is None:
            busy = self._services[attempt.upstream] = self._instruments.client_active.at(attempt.upstream)
        busy.value += 1
        inbound.busy = busy
        tracing = self._tracing
        if tracing is not None:
            span_id = tracing.tracer.ids.span()
            inbound.attempts += span_id
            raw, propagation = ex.request.headers.raw, tracing.propagation
            known = propagation.known
            for line in raw:
                if line[0] in known:
                    propagation.strip(raw)
                    break
            if propagation.only_w3c and not inbound.state:  # what `inject` does with it, at a third of the price
                flag = "01" if inbound.sampled else "00"
                raw.append((b"traceparent", f"00-{inbound.trace_id}-{span_id}-{flag}".encode()))
            else:
                raw += propagation.inject(inbound.trace_id, span_id, inbound.sampled, inbound.state)

    # --- when it is over -----------------------------------------------------------

    def on_complete(self, ex: Exchange) -> None:
        inbound = ex.get(INBOUND, None)
        if inbound is None:
            return
        now = monotonic()
        elapsed = now - ex.started
        inbound.active.value -= 1
        if inbound.busy is not None:
            inbound.busy.value -= 1
        request, response = ex.request, ex.response
        status = 0 if response is None else response.status
        error = "" if ex.outcome is Outcome.UPSTREAM and status < 500 else _error_of(ex, status)
        key = (request.method, status, request.version, error)
        row = self._rows.get(key)
        if row is None:
            row = self._row_of(key)
        tracing, instruments, example = self._tracing, self._instruments, None
        wall = 0
        if tracing is not None:
            spans = 1 + len(inbound.attempts) // 16 + (0 if inbound.below is None else len(inbound.below))
            instruments.created.value += spans
            if inbound.kept and (
                inbound.sampled or (tracing.errors and _failed(ex, status)) or (0 < tracing.slow < elapsed)
            ):
                wall = time_ns()
                example = (inbound.trace_id, inbound.span_id, elapsed, wall)
                self._send(ex, inbound, tracing, wall, now, status, error)
            else:
                instruments.dropped_unsampled.value += spans
            inbound.is_over = True
        duration = row.duration
        if example is None:
            duration.counts[bisect_left(duration.bounds, elapsed)] += 1
            duration.sum += elapsed
        else:
            duration.record(elapsed, example)
        if ex.bytes_received:
            row.request_size.record(ex.bytes_received)
        else:
            row.request_sizes[row.empty] += 1
        sizes, sent = row.response_size, ex.bytes_sent
        sizes.counts[bisect_left(sizes.bounds, sent)] += 1
        sizes.sum += sent
        if ex.attempts:
            self._count_attempts(ex, now)
        if self._ended is not None:
            self._ended(ex, inbound, wall or time_ns(), elapsed, error)

    def _count_attempts(self, ex: Exchange, now: float) -> None:
        method, last = ex.request.method, ex.attempts[-1]
        for attempt in ex.attempts:
            if attempt.ended == 0.0 and _never_began(ex):
                continue
            status = 0 if attempt.response is None else attempt.response.status
            error = "" if 0 < status < 400 and attempt.error is None else _attempt_error(ex, attempt, status)
            endpoint = attempt.endpoint
            host, port = ("", 0) if endpoint is None else (endpoint.host, endpoint.port)
            key = (method, status, error, host, port, attempt.upstream)
            series = self._attempts.get(key)
            if series is None:
                series = self._attempt_of(key)
            took = (attempt.ended or now) - attempt.started
            duration = series.duration
            duration.counts[bisect_left(duration.bounds, took)] += 1
            duration.sum += took
            if attempt.connected:
                series.wait.record(attempt.connected - attempt.started)
            elif error in _NO_CONNECTION:
                series.wait.record(took)
            else:
                series.waits[series.at_once] += 1
            if attempt is not last:
                failure = getattr(attempt.error, "reason", "")
                reason = _RETRIED.get(failure, "upstream_disconnect") if attempt.error is not None else "response_5xx"
                self._instruments.retries.at(attempt.upstream, reason).value += 1

    # --- the first of its kind -----------------------------------------------------

    def _active_of(self, method: str) -> Count:
        series = self._instruments.active.at(METHODS.get(method, "_OTHER"), self._route)
        _remember(self._active, method, series)
        return series

    def _row_of(self, key: tuple[str, int, str, str]) -> _Row:
        method, status, version, error = key
        method, code = METHODS.get(method, "_OTHER"), _STATUS[status]
        instruments, route = self._instruments, self._route
        row = _Row(
            instruments.duration.at(method, code, route, version, error),
            instruments.request_size.at(method, route),
            instruments.response_size.at(method, route, code),
        )
        _remember(self._rows, key, row)
        return row

    def _attempt_of(self, key: tuple[str, int, str, str, int, str]) -> _AttemptRow:
        method, status, error, host, port, upstream = key
        instruments = self._instruments
        row = _AttemptRow(
            instruments.client_duration.at(
                METHODS.get(method, "_OTHER"), host, str(port), _STATUS[status], error, upstream
            ),
            instruments.checkout.at(upstream, error if error in _NO_CONNECTION else "success"),
        )
        _remember(self._attempts, key, row)
        return row

    # --- spans -----------------------------------------------------------------------

    def _send(
        self, ex: Exchange, inbound: Inbound, tracing: Tracing, wall: int, now: float, status: int, error: str
    ) -> None:
        """Make the spans of *ex*, which is over *now*: that is *wall* on the clock. Parents come last."""
        send = tracing.send
        assert send is not None
        if inbound.below is not None:
            for span in inbound.below:
                send(span.finished(wall, now))
        if self.explains and ex.notes:
            notes = ex.notes[:MAX_SPANS_OF_EXCHANGE]
            self._instruments.created.value += len(notes)
            for note in notes:
                send(_verdict_span(inbound, note, tracing.tracer.ids.span(), wall, now))
        for number, attempt in enumerate(ex.attempts):
            span_id = inbound.attempts[16 * number : 16 * number + 16]
            if span_id and (attempt.ended or not _never_began(ex)):
                send(_client_span(ex, inbound, attempt, span_id, wall, now))
        method = METHODS.get(ex.request.method, "HTTP")
        attributes = self._attributes(ex, status, error)
        if tracing.baggage:
            attributes += _from_baggage(ex, tracing.baggage)
        dropped = inbound.dropped_attributes
        if inbound.attributes is not None:
            attributes += inbound.attributes
            dropped += max(0, len(attributes) - MAX_ATTRIBUTES)
            del attributes[MAX_ATTRIBUTES:]
        send(
            Span(
                _HTTP_SERVER,
                f"{method} {self._route}" if self._route else method,
                SERVER,
                inbound.trace_id,
                inbound.span_id,
                inbound.parent_id,
                inbound.state,
                inbound.sampled,
                wall - int((now - ex.started) * 1e9),
                wall,
                attributes,
                moments(inbound.events, wall, now),
                _failed(ex, status),
                dropped,
                inbound.dropped_events,
            )
        )

    def _attributes(self, ex: Exchange, status: int, error: str) -> Attributes:
        request, client = ex.request, ex.client
        method = METHODS.get(request.method)
        host, port = _host_and_port(ex.asked_host, client.scheme)
        agent = content_type = None
        for name, value in request.headers.raw:
            if name == b"user-agent":
                agent = agent or value
            elif name == b"content-type":
                content_type = content_type or value
        found: Attributes = [
            ("http.request.method", method or "_OTHER"),
            ("url.scheme", client.scheme),
            ("url.path", ex.matched_path[:MAX_ATTRIBUTE_LENGTH]),
            ("network.protocol.version", request.version),
            ("client.address", client.ip),
            ("network.peer.address", client.peer),
            ("network.peer.port", client.port),
            ("http.server.response.body.size", ex.bytes_sent),
            ("gw.route", self._route_name),
            ("gw.request_id", ex.request_id),
        ]
        if self._route:
            found.append(("http.route", self._route))
        if method is None:
            found.append(("http.request.method_original", request.method[:MAX_ATTRIBUTE_LENGTH]))
        if host:
            found.append(("server.address", host))
            found.append(("server.port", port))
        if agent:
            found.append(("user_agent.original", agent.decode("latin-1")[:MAX_ATTRIBUTE_LENGTH]))
        if status:
            found.append(("http.response.status_code", status))
        if error:
            found.append(("error.type", error))
        if ex.reason:
            found.append(("gw.reason", ex.reason))
        if content_type is not None and content_type.startswith(b"application/grpc"):
            found += _of_grpc(ex)
        return found


def _verdict_span(inbound: Inbound, note: Note, span_id: str, wall: int, now: float) -> Span:
    """Return the span of what a filter decided, as long as its hook took."""
    end = wall - int((now - note.at) * 1e9)
    attributes: Attributes = [("gw.plugin", note.plugin), ("gw.hook", note.stage), ("gw.verdict", note.verdict)]
    if note.reason:
        attributes.append(("gw.reason", note.reason[:MAX_ATTRIBUTE_LENGTH]))
    if note.position:
        attributes.append(("gw.position", note.position))
    return Span(
        _FILTERS,
        f"{note.plugin}.{note.stage}",
        INTERNAL,
        inbound.trace_id,
        span_id,
        inbound.span_id,
        inbound.state,
        inbound.sampled,
        end - int(note.took * 1e9),
        end,
        attributes,
        (),
        note.verdict == "error",
    )


class MessageTelemetry(Telemetry):
    """The same, with a span for every WebSocket message."""

    async def on_message(self, ex: Exchange, message: Message, from_client: bool) -> Message:
        inbound = ex.get(INBOUND, None)
        if inbound is not None and inbound.kept:
            is_text = isinstance(message.data, str)
            size = len(message.data.encode()) if is_text else len(message.data)  # type: ignore[union-attr]
            span = inbound.child("ws.recv" if from_client else "ws.send")
            span.set("ws.opcode", 1 if is_text else 2)
            span.set("ws.payload_size", size)
            span.end()
        return message


# --- what an exchange came to ----------------------------------------------------------


def _never_began(ex: Exchange) -> bool:
    """Tell what an attempt without an end means: a filter answered before anybody was dialled."""
    return ex.outcome is Outcome.REPLY


def _failed(ex: Exchange, status: int) -> bool:
    """Tell whether a request counts as failed: 5xx, or no whole answer (behaviour 17.4)."""
    return status >= 500 or status == 0 or ex.outcome in {Outcome.RESET, Outcome.CANCELLED}


def _error_of(ex: Exchange, status: int) -> str:
    """Return the ``error.type`` of an exchange that was not simply answered by its upstream."""
    outcome, reason = ex.outcome, ex.reason
    if outcome is Outcome.UPSTREAM:
        return _STATUS[status]
    if outcome is Outcome.CANCELLED:
        return _ERRORS.get(reason, "client_disconnect")
    if reason.startswith("gw.error."):
        return "handler_threw"
    if reason.startswith("gw."):
        own = _ERRORS.get(reason, reason[3:])
        return own if status >= 500 or outcome is Outcome.RESET or reason in _ERRORS else ""
    return "rejected_by_middleware" if status >= 400 or outcome is Outcome.RESET else ""


def _attempt_error(ex: Exchange, attempt: Attempt, status: int) -> str:
    if attempt.error is not None:
        reason: str = getattr(attempt.error, "reason", "")
        return reason.removeprefix("gw.") or type(attempt.error).__name__
    if status >= 400:
        return _STATUS[status]
    return _error_of(ex, status) if ex.outcome is Outcome.CANCELLED else "unfinished"


def _client_span(ex: Exchange, inbound: Inbound, attempt: Attempt, span_id: str, wall: int, now: float) -> Span:
    response, endpoint = attempt.response, attempt.endpoint
    status = 0 if response is None else response.status
    error = "" if 0 < status < 400 and attempt.error is None else _attempt_error(ex, attempt, status)
    version = "1.1" if attempt.sent else "unknown"
    if response is not None:
        version = response.version
    method = METHODS.get(ex.request.method, "_OTHER")
    attributes: Attributes = [
        ("http.request.method", method),
        ("network.protocol.version", version),
        ("http.request.resend_count", attempt.number - 1),
        ("gw.upstream.service", attempt.upstream),
        ("gw.connection.reused", attempt.reused),
    ]
    if endpoint is not None:
        attributes.append(("server.address", endpoint.host))
        attributes.append(("server.port", endpoint.port))
    if status:
        attributes.append(("http.response.status_code", status))
    if error:
        attributes.append(("error.type", error))
    return Span(
        _HTTP_CLIENT,
        f"HTTP {method}",
        CLIENT,
        inbound.trace_id,
        span_id,
        inbound.span_id,
        inbound.state,
        inbound.sampled,
        wall - int((now - attempt.started) * 1e9),
        wall - int((now - (attempt.ended or now)) * 1e9),
        attributes,
        (),
        bool(error),
    )


def _host_and_port(authority: str, scheme: str) -> tuple[str, int]:
    host, colon, port = authority.rpartition(":")
    if colon and port.isdecimal():
        return host.strip("[]"), int(port)
    return authority.strip("[]"), 443 if scheme == "https" else 80


def _of_grpc(ex: Exchange) -> Attributes:
    """Return what the semantic conventions for RPC have to say about a call of gRPC."""
    service, _, method = ex.matched_path[1:].rpartition("/")
    found: Attributes = [("rpc.system", "grpc")]
    if service and method:
        found += [("rpc.service", service[:MAX_ATTRIBUTE_LENGTH]), ("rpc.method", method[:MAX_ATTRIBUTE_LENGTH])]
    response = ex.response
    if response is not None:
        code = response.headers.get("grpc-status")
        if code is None and response.trailers is not None:
            code = response.trailers.get("grpc-status")
        if code is not None and code.isdecimal() and len(code) < 4:
            found.append(("rpc.grpc.status_code", int(code)))
    return found


def _from_baggage(ex: Exchange, wanted: tuple[str, ...]) -> Attributes:
    """Return the wanted members of the request's ``baggage`` (W3C Baggage); what cannot be read is left out."""
    found: Attributes = []
    for line in ex.request.headers.get_all("baggage"):
        for member in line.split(","):
            key, equals, value = member.partition(";")[0].partition("=")
            if equals and (name := key.strip()) in wanted and len(found) < len(wanted):
                found.append((f"baggage.{name}", unquote(value.strip())[:MAX_ATTRIBUTE_LENGTH]))
    return found


def _remember(rows: dict[Any, Any], key: Any, row: Any) -> None:
    """Keep *row* for the next exchange like this; methods and errors may be made up, so there is a bound."""
    if len(rows) >= MAX_ROWS:
        rows.clear()
    rows[key] = row


# --- log records -----------------------------------------------------------------------------


def log_of(ex: Exchange, inbound: Inbound, wall: int, elapsed: float, error: str) -> Log:
    """Return the log record of an exchange that took *elapsed* seconds and ended at *wall*."""
    request, response = ex.request, ex.response
    status = 0 if response is None else response.status
    attributes: Attributes = [
        ("http.request.method", METHODS.get(request.method, "_OTHER")),
        ("url.path", ex.matched_path[:MAX_ATTRIBUTE_LENGTH]),
        ("client.address", ex.client.ip),
        ("network.protocol.version", request.version),
        ("http.server.request.duration", elapsed),
        ("http.server.response.body.size", ex.bytes_sent),
        ("gw.request_id", ex.request_id),
        ("gw.outcome", "" if ex.outcome is None else ex.outcome.value),
    ]
    if ex.route is not None:
        attributes.append(("gw.route", ex.route.name))
    if status:
        attributes.append(("http.response.status_code", status))
    if error:
        attributes.append(("error.type", error))
    if ex.reason:
        attributes.append(("gw.reason", ex.reason))
    if ex.attempts:
        attributes.append(("gw.upstream.service", ex.attempts[-1].upstream))
    severity = _ERROR if _failed(ex, status) else _WARN if status >= 400 else _INFO
    body = f"{request.method} {ex.matched_path} {status or '-'}"[:MAX_ATTRIBUTE_LENGTH]
    return Log(wall, severity, body, attributes, inbound.trace_id, inbound.span_id, inbound.sampled)
