"""What a head means: where its message ends, whether the connection lives on, what is refused.

Every rule about the *meaning* of a request or response head is here, once, for
both engines: they hand over the start line and the field lines, lower-case
names, values without surrounding blanks, and get a `Request` or `Response`, or
a `Refusal`. How bytes become lines is `gw.http.readers`'s and the engines'
business, what a target names that of `gw.http.paths`. docs/engines.md has the
whole list of what is refused, and why.

One order of verdicts holds for every head, so that two engines that find the
same faults in a different order still answer alike: 505, then every 400, then
the sizes (431), then the expectation (417).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeAlias

from gw.filters import Headers, Request, Response
from gw.http.h1 import ReaderLimits
from gw.http.paths import valid_host

__all__ = [
    "METHODS",
    "SINGLETONS",
    "Fields",
    "Refusal",
    "SplitHead",
    "check_sizes",
    "drop_named",
    "frame_again",
    "frame_request",
    "frame_response",
    "frame_trailers",
    "host_of",
    "length_of",
]

Fields: TypeAlias = list[tuple[bytes, bytes]]

SplitHead: TypeAlias = Callable[[bytes], Fields]
"""What an engine is: takes one whole head, start line to empty line, and returns its field lines.

Names lower-case, values without surrounding blanks. Raises `Refusal` for whatever its grammar does not allow.
The caller has checked the start line.
"""


class Refusal(Exception):
    """A message breaks the rules. *status* is what its sender is told."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


METHODS: Final = {
    name: name.decode()
    for name in (
        # RFC 9110, PATCH (RFC 5789), QUERY
        b"GET HEAD POST PUT DELETE OPTIONS PATCH TRACE CONNECT QUERY "
        # WebDAV, its versions, calendars, searches and bindings
        b"COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK ACL REPORT BIND REBIND UNBIND "
        b"MKACTIVITY CHECKOUT MERGE MKCALENDAR "
        b"LINK UNLINK PURGE NOTIFY SUBSCRIBE UNSUBSCRIBE M-SEARCH"
    ).split()
}
"""What llhttp knows of HTTP, and so what either engine accepts; not HTTP/2's PRI, nor what belongs to RTSP or Icecast."""

SINGLETONS: Final = {
    b"host": "Host",
    b"authorization": "Authorization",
    b"content-type": "Content-Type",
    b"content-length": "Content-Length",
    b"content-range": "Content-Range",
    b"content-disposition": "Content-Disposition",
}
"""Fields of which a second line is an attack or a bug, whatever it says (behaviour 6.1)."""

_KNOWN: Final = frozenset({*SINGLETONS, b"transfer-encoding", b"connection", b"expect", b"upgrade"})

_OPTIONS: Final = frozenset({b"close", b"keep-alive", b"upgrade", b"te"})
"""What Connection may say that names no field to remove; `te` is never passed on as it came, but it is read."""

_NOT_TO_BE_NAMED: Final = frozenset({*SINGLETONS, b"transfer-encoding"})
"""What Connection must not take away: with it goes the framing, the routing, or who is asking."""

_OURS: Final = frozenset({b"forwarded", b"via", b"x-real-ip", b"x-request-id", b"traceparent", b"tracestate"})
"""What the gateway itself tells an upstream, as ``x-forwarded-*`` does: a client may not have it removed."""

_NOT_IN_TRAILERS: Final = frozenset({*_KNOWN, b"te", b"trailer", b"keep-alive", b"proxy-connection"})
"""RFC 9110 section 6.5.1: fields that frame, route or authorise, come before the body or not at all."""

_MAX_LENGTH: Final = 2**63 - 1
"""Content-Length: what fits a signed 64-bit integer, since somebody down the line keeps it in one."""

_SLASH: Final = 0x2F
_AUTHORITY: Final = rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"
_absolute_form: Final = re.compile(rb"(?i:https?)://" + _AUTHORITY + rb"(?::[0-9]+)?(?:[/?]|\Z)").match
_authority_form: Final = re.compile(_AUTHORITY + rb":[0-9]+").fullmatch
_token: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch


def frame_request(
    method: bytes, target: bytes, version: str, fields: Fields, limits: ReaderLimits, size: int
) -> Request:
    """Make a request of its parts; raise `Refusal`.

    *version* is ``1.0`` or ``1.1``; *size* is how long the head was as sent.
    *fields* becomes the request's headers and is not copied. The host is the
    Host field's; an absolute target is for `gw.http.paths.parse_target`.
    """
    name = METHODS.get(method)
    if name is None:
        raise Refusal("Unknown method")
    if (target[0] != _SLASH or name == "CONNECT") and not _unusual_target(name, target):
        raise Refusal("Invalid request target")

    known = _known_of(fields)
    request = Request(name, target.decode("ascii"), Headers(fields), version=version)
    if version == "1.0":
        request.keep_alive = False
    refused_expectation = wants_websocket = False
    for field, value in known.items():
        if field == b"host":
            host = host_of(value)
            if host is None:
                raise Refusal("Invalid Host header")
            request.host = host
        elif field == b"connection":
            if value == b"keep-alive":  # nearly always
                request.keep_alive = True
            elif named := _apply_options(value, known, request):
                if end_to_end := named & _NOT_TO_BE_NAMED:
                    raise Refusal(f"Connection names {min(end_to_end).decode('ascii')}, which is not hop-by-hop")
                request.named_hops = _honoured(named)
        elif field == b"content-length":
            length = request.content_length = length_of(value)
            request.has_body = length > 0
        elif field == b"transfer-encoding":
            _check_chunked(known, version)
            request.has_body = True
        elif field == b"upgrade":
            wants_websocket = value.lower() == b"websocket"
        elif field == b"expect":
            refused_expectation = {part.strip().lower() for part in value.split(b",")} != {b"100-continue"}
    if not request.host and version == "1.1":
        raise Refusal("Missing Host header")
    if wants_websocket and request.upgrade is None:
        raise Refusal("Upgrade: websocket needs HTTP/1.1 and Connection: upgrade")
    if b"expect" in known:
        if request.upgrade == "websocket":
            raise Refusal("Expect cannot go together with a WebSocket upgrade")
        # Without a body, or on HTTP/1.0, it means nothing (RFC 9110 section 10.1.1).
        request.expects_continue = request.has_body and version == "1.1"

    if size + len(fields) > limits.head_size > 0 or len(fields) > limits.header_count > 0:
        check_sizes(len(target), fields, limits.head_size, limits.header_count)
    if refused_expectation:
        raise Refusal("Expectation Failed", 417)
    return request


def frame_again(
    method: bytes, target: bytes, like: Request, fields: Fields, limits: ReaderLimits, size: int
) -> Request:
    """Make a request whose version and fields are those of *like*, which `frame_request` made; raise `Refusal`."""
    name = METHODS.get(method)
    if name is None:
        raise Refusal("Unknown method")
    if (target[0] != _SLASH or name == "CONNECT") and not _unusual_target(name, target):
        raise Refusal("Invalid request target")
    if size + len(fields) > limits.head_size > 0:
        check_sizes(len(target), fields, limits.head_size, limits.header_count)
    return like._again(name, target.decode("ascii"), Headers(fields))


def frame_response(
    status: int,
    reason: bytes,
    version: str,
    fields: Fields,
    limits: ReaderLimits,
    size: int,
    method: str,
    upgrade: str | None = None,
) -> tuple[Response, bool]:
    """Make a response to a *method* request of its parts, and say whether it is chunked; raise `Refusal`.

    A body that is neither chunked nor of a declared length ends with the connection. *upgrade* is the protocol that
    was asked for; a 101 that accepts it has no body in HTTP's sense.
    """
    if status == 101 and upgrade is None:
        raise Refusal("Switching Protocols, which nobody asked for")
    known: dict[bytes, bytes] = {}
    for field, value in fields:
        if field in _KNOWN:
            known[field] = _joined(field, known[field], value) if field in known else value
    response = Response(status, Headers(fields), version=version, has_body=False)
    response.reason = reason
    if version == "1.0":
        response.keep_alive = False
    connection = known.get(b"connection")
    if connection == b"keep-alive":
        response.keep_alive = True
    elif connection is not None:
        named = _apply_options(connection, known, response) - _NOT_TO_BE_NAMED
        response.named_hops = _honoured(named)
    if status == 101 and response.upgrade != upgrade:
        raise Refusal("Switching to another protocol than was asked for")

    chunked = b"transfer-encoding" in known
    length: int | None = None
    if chunked:
        _check_chunked(known, version)
    elif b"content-length" in known:
        length = length_of(known[b"content-length"])
    if size + len(fields) > limits.head_size > 0 or len(fields) > limits.header_count > 0:
        check_sizes(len(reason), fields, limits.head_size, limits.header_count)

    # RFC 9112 section 6.3, in its order.
    if status < 200 or status == 204:
        if chunked or length:
            raise Refusal(f"A {status} response cannot have a body")
    elif method == "CONNECT" and status < 300:
        pass
    elif method == "HEAD" or status == 304:
        response.content_length = length
        return response, False
    elif chunked:
        response.has_body = True
        return response, True
    elif length is not None:
        response.content_length = length
        response.has_body = length > 0
    else:
        response.has_body = True
        response.keep_alive = False
    return response, False


def frame_trailers(fields: Fields, limits: ReaderLimits) -> Headers:
    """Check a trailer section, accounted as a head of its own; raise `Refusal`."""
    for name, _ in fields:
        if name in _NOT_IN_TRAILERS:
            raise Refusal(f"The field {name.decode('ascii')} cannot be a trailer")
    check_sizes(0, fields, limits.trailer_size, limits.header_count)
    return Headers(fields)


def _unusual_target(method: str, target: bytes) -> bool:
    """Return whether *target* has a form of RFC 9112 section 3.2 that suits *method*, the usual one aside."""
    if method == "CONNECT":
        return _authority_form(target) is not None
    return (target == b"*" and method == "OPTIONS") or _absolute_form(target) is not None


def drop_named(message: Request | Response) -> None:
    """Remove the fields that the message's own Connection names (RFC 9110 section 7.6.1)."""
    named = message.named_hops
    if named is not None:
        raw = message.headers.raw
        raw[:] = [line for line in raw if line[0] not in named]


def _known_of(fields: Fields) -> dict[bytes, bytes]:
    """Pick the fields that decide anything; lines of a list are joined, second lines of the others refused."""
    known: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in _KNOWN:
            known[name] = _joined(name, known[name], value) if name in known else value
    return known


def _joined(name: bytes, first: bytes, second: bytes) -> bytes:
    if name in SINGLETONS:
        raise Refusal(f"Duplicate {SINGLETONS[name]} header")
    if name == b"transfer-encoding":
        raise Refusal("Duplicate Transfer-Encoding header")
    return first + b", " + second


def _apply_options(value: bytes, known: dict[bytes, bytes], message: Request | Response) -> set[bytes]:
    """Set on *message* what Connection and Upgrade say; return the fields that Connection names."""
    options = {option for part in value.lower().split(b",") if (option := part.strip())}
    if not all(map(_token, options)):
        raise Refusal("Invalid Connection header")
    if b"close" in options:
        message.keep_alive = False
    elif b"keep-alive" in options:
        message.keep_alive = True
    if b"upgrade" in options and message.version == "1.1" and known.get(b"upgrade"):
        protocols = [name.strip() for name in known[b"upgrade"].decode("latin-1").lower().split(",")]
        message.upgrade = "websocket" if "websocket" in protocols else protocols[0]
    return options - _OPTIONS


def _honoured(named: set[bytes]) -> frozenset[bytes] | None:
    return frozenset(name for name in named - _OURS if not name.startswith(b"x-forwarded-")) or None


def _check_chunked(known: dict[bytes, bytes], version: str) -> None:
    # RFC 9112 section 6.1 lets us choose; any other choice has been a request smuggling advisory somewhere.
    if b"content-length" in known:
        raise Refusal("Content-Length and Transfer-Encoding together")
    if version == "1.0":
        raise Refusal("Transfer-Encoding in an HTTP/1.0 message")
    if known[b"transfer-encoding"].lower() != b"chunked":
        raise Refusal("Transfer-Encoding is not exactly chunked")


def length_of(value: bytes) -> int:
    """Return what a Content-Length says; raise `Refusal`."""
    # bytes.isdigit is ASCII only; more than 19 digits are too many, whatever they are.
    if not value.isdigit() or len(value) > 19 or (length := int(value)) > _MAX_LENGTH:
        raise Refusal("Invalid Content-Length header")
    return length


@lru_cache(maxsize=1024)
def host_of(value: bytes) -> str | None:
    """Return a Host field's value as text, `None` if it is not a host. The same few come again and again."""
    host = value.decode("latin-1")
    return host if valid_host(host) else None


def check_sizes(start: int, fields: Fields, size: int, count: int) -> None:
    """Hold a section to its limits: *start* + names + values + 4 a line (behaviour 6.1).

    As sent, a line is at least name + value + 3 bytes: only a section that comes near its limit needs adding up.
    """
    if len(fields) > count > 0 or start + sum(len(name) + len(value) + 4 for name, value in fields) > size > 0:
        raise Refusal("Request Header Fields Too Large", 431)
