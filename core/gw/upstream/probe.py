"""What a health check says to an endpoint, and what it makes of the answer: over HTTP/1.1, over HTTP/2, and in gRPC's own words.

One request on a stream of its own. When to ask, and what follows from the answer, is `gw.upstream.health`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gw.filters import Response
from gw.http.engines import Engine
from gw.http.framing import Fields
from gw.http.h1 import Malformed, ReaderLimits
from gw.http.h2 import Data, Ended, GoAway, Head, Interim, Reset, SessionSettings, Trailers, name_of
from gw.limits import CHECK_BYTES, PULL_SIZE
from gw.net.stream import Stream

__all__ = ["HealthCheck", "Unwell", "ask"]

_GRPC: Final = (
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)
_SERVING: Final = 1
_STATES: Final = {0: "UNKNOWN", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
"""Of grpc.health.v1.HealthCheckResponse.ServingStatus, those that are not SERVING."""

_SETTINGS: Final = SessionSettings(max_concurrent_streams=1, max_header_list_size=CHECK_BYTES)


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How an upstream's endpoints are checked. Times are seconds."""

    kind: Literal["http", "grpc", "tcp"] = "http"
    path: str = "/"
    host: str = ""
    """Sent as ``Host``; empty means what the endpoint is called by."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    statuses: Sequence[range] = (range(200, 300),)
    """Of a healthy endpoint's answer."""
    service: str = ""
    """Which of its services a gRPC server is asked about; empty means all of it."""
    interval: float = 10.0
    jitter: float = 0.1
    """How much longer or shorter an interval may be, as a share of it: so that workers do not ask at once."""
    timeout: float = 3.0
    healthy_threshold: int = 2
    """Checks in a row that must go well before an unhealthy endpoint is healthy again."""
    unhealthy_threshold: int = 3


class Unwell(Exception):
    """A check did not go well; the message says why."""


async def ask(check: HealthCheck, stream: Stream, engine: Engine, authority: bytes, *, http2: bool) -> None:
    """Ask over *stream* as *check* says, and judge the answer; raises `Unwell`, or what the stream does."""
    host = check.host.encode("ascii") or authority
    if check.kind == "grpc":
        if not http2:
            raise Unwell("it did not choose h2, which gRPC is spoken over")
        await _ask_grpc(check, stream, engine, host)
    elif http2:
        status, _, _ = await _exchange(stream, engine, _head(check, stream, host), b"", whole=False)
        _judge(check, status)
    else:
        await _ask_http1(check, stream, engine, host)


def _judge(check: HealthCheck, status: int) -> None:
    if not any(status in each for each in check.statuses):
        raise Unwell(f"it answered {status}")


async def _ask_http1(check: HealthCheck, stream: Stream, engine: Engine, host: bytes) -> None:
    lines = [b"GET %s HTTP/1.1" % check.path.encode("ascii"), b"host: " + host, b"user-agent: gw-health"]
    lines += [name + b": " + value for name, value in check.headers]
    stream.write(b"\r\n".join([*lines, b"connection: close", b"", b""]))
    reader = engine.response_reader(ReaderLimits(CHECK_BYTES, 0, 0))
    reader.expect("GET")
    while True:
        while not reader.events:
            reader.feed(await stream.receive())
        event = reader.events.popleft()
        if isinstance(event, Malformed):
            raise Unwell(f"its answer is malformed: {event.message}")
        if isinstance(event, Response) and event.status >= 200:
            return _judge(check, event.status)


def _head(
    check: HealthCheck,
    stream: Stream,
    host: bytes,
    method: bytes = b"GET",
    path: bytes = b"",
    *more: tuple[bytes, bytes],
) -> Fields:
    return [
        (b":method", method),
        (b":scheme", b"https" if stream.is_secure else b"http"),
        (b":authority", host),
        (b":path", path or check.path.encode("ascii")),
        (b"user-agent", b"gw-health"),
        *more,
        *check.headers,
    ]


# --- over HTTP/2 -----------------------------------------------------------------------------


async def _exchange(
    stream: Stream, engine: Engine, head: Fields, body: bytes, *, whole: bool
) -> tuple[int, bytes, dict[bytes, bytes]]:
    """Send a request as the only one of a connection; return status, body and the fields of head and trailers.

    Unless the *whole* answer is wanted, its head is all that is waited for. Raises `Unwell`.
    """
    session = engine.client_session(_SETTINGS)
    number = session.request(head, not body)
    if body:
        session.send(number, body, True)
    status, fields, held = 0, dict[bytes, bytes](), bytearray()
    while True:
        events = session.events
        while events:
            event = events.popleft()
            if isinstance(event, Ended):
                raise Unwell(f"what it says is not HTTP/2: {event.message}" if not event.by_peer else "it said GOAWAY")
            if isinstance(event, GoAway) and event.last < number:
                raise Unwell("it said GOAWAY")
            if getattr(event, "stream", 0) != number or isinstance(event, Interim):
                continue
            if isinstance(event, Reset):
                raise Unwell(f"it reset the stream: {name_of(event.code)}")
            if isinstance(event, Head):
                status = _status(event.fields)
                if not whole:
                    return status, b"", {}
                fields.update(event.fields)
            elif isinstance(event, Data):
                held += event.data
                if len(held) > CHECK_BYTES:
                    raise Unwell(f"its answer is longer than {CHECK_BYTES} bytes")
                session.give_back(number, event.flow)
            elif isinstance(event, Trailers):
                fields.update(event.fields)
            if isinstance(event, Trailers) or (isinstance(event, Head | Data) and event.end):
                return status, bytes(held), fields
        while data := session.outgoing(PULL_SIZE):
            stream.write(data)
        session.feed(await stream.receive())


def _status(fields: Fields) -> int:
    value = next((value for name, value in fields if name == b":status"), b"")
    if len(value) != 3 or not value.isdigit():
        raise Unwell("its answer has no status")
    return int(value)


# --- grpc.health.v1 ----------------------------------------------------------------------------


async def _ask_grpc(check: HealthCheck, stream: Stream, engine: Engine, host: bytes) -> None:
    """Call ``grpc.health.v1.Health/Check`` (github.com/grpc/grpc, doc/health-checking.md)."""
    name = check.service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""  # HealthCheckRequest{service = 1}
    body = b"\0" + len(message).to_bytes(4) + message
    head = _head(check, stream, host, b"POST", b"/grpc.health.v1.Health/Check", *_GRPC)
    status, answer, fields = await _exchange(stream, engine, head, body, whole=True)
    if status != 200:
        raise Unwell(f"it answered {status}")
    code = fields.get(b"grpc-status", b"")
    if code != b"0":
        shown = code.decode("ascii", "replace")[:10] or "none"
        raise Unwell(f"it answered grpc-status {shown}")
    state = _state(answer)
    if state != _SERVING:
        raise Unwell(f"it is {_STATES.get(state, f'in state {state}')}")


def _state(answer: bytes) -> int:
    """Return the status of the HealthCheckResponse in *answer*; raises `Unwell` where there is none."""
    if len(answer) < 5 or answer[0] or int.from_bytes(answer[1:5]) != len(answer) - 5:
        raise Unwell("its answer is no message of gRPC")
    state = 0  # a field that is not there has its default
    try:
        for number, value in _numbers(answer, 5):
            if number == 1:
                state = value
    except IndexError:
        raise Unwell("its answer is no HealthCheckResponse") from None
    return state


def _numbers(message: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Yield the number fields of a protobuf *message* from *at* on, and pass over others; raises `IndexError`."""
    while at < len(message):
        tag, at = _read_varint(message, at)
        match tag & 7:
            case 0:
                value, at = _read_varint(message, at)
                yield tag >> 3, value
            case 1:
                at += 8
            case 2:
                size, at = _read_varint(message, at)
                at += size
            case 5:
                at += 4
            case kind:
                raise IndexError(f"wire type {kind}")
    if at > len(message):
        raise IndexError(at)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at *at*, and where the next thing begins (protobuf.dev/programming-guides/encoding); raises `IndexError`."""
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise IndexError(at)
