"""What the gateway says when it answers by itself: reason phrases, default bodies, the Date field.

Which status an event deserves is decided elsewhere (`gw.failures`, plugins);
how a message is framed and written is `gw.http.write`'s. Nothing here tells a
client why: `Reply.reason` is for operators.
"""

from __future__ import annotations

import json
import time
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from gw.filters import Headers, Reply, Request, Response
from gw.http.fields import parse_accept, quality_of

__all__ = ["PHRASES", "http_date", "phrase", "render", "response_to"]

PHRASES: Final[dict[int, bytes]] = {
    100: b"Continue",
    101: b"Switching Protocols",
    102: b"Processing",
    103: b"Early Hints",
    200: b"OK",
    201: b"Created",
    202: b"Accepted",
    203: b"Non-Authoritative Information",
    204: b"No Content",
    205: b"Reset Content",
    206: b"Partial Content",
    207: b"Multi-Status",
    208: b"Already Reported",
    226: b"IM Used",
    300: b"Multiple Choices",
    301: b"Moved Permanently",
    302: b"Found",
    303: b"See Other",
    304: b"Not Modified",
    305: b"Use Proxy",
    307: b"Temporary Redirect",
    308: b"Permanent Redirect",
    400: b"Bad Request",
    401: b"Unauthorized",
    402: b"Payment Required",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    406: b"Not Acceptable",
    407: b"Proxy Authentication Required",
    408: b"Request Timeout",
    409: b"Conflict",
    410: b"Gone",
    411: b"Length Required",
    412: b"Precondition Failed",
    413: b"Payload Too Large",
    414: b"URI Too Long",
    415: b"Unsupported Media Type",
    416: b"Range Not Satisfiable",
    417: b"Expectation Failed",
    421: b"Misdirected Request",
    422: b"Unprocessable Content",
    423: b"Locked",
    424: b"Failed Dependency",
    425: b"Too Early",
    426: b"Upgrade Required",
    428: b"Precondition Required",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    451: b"Unavailable For Legal Reasons",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
    506: b"Variant Also Negotiates",
    507: b"Insufficient Storage",
    508: b"Loop Detected",
    510: b"Not Extended",
    511: b"Network Authentication Required",
}
"""The registered status codes. Not `http.HTTPStatus`: its phrases change between versions of Python (413 did)."""

_CLASSES: Final = {1: b"Informational", 2: b"Success", 3: b"Redirection", 4: b"Client Error", 5: b"Server Error"}
"""What a code without a registration means (RFC 9110 section 15): what its first digit means."""

_WITHOUT_CONTENT: Final = frozenset({204, 205, 304})

_GRPC_STATUSES: Final = {
    # The mapping of the gRPC project (doc/http-grpc-status-mapping.md) ...
    400: 13,  # INTERNAL
    401: 16,  # UNAUTHENTICATED
    403: 7,  # PERMISSION_DENIED
    404: 12,  # UNIMPLEMENTED
    429: 14,  # UNAVAILABLE
    502: 14,
    503: 14,
    # ... and three that it leaves UNKNOWN or UNAVAILABLE, although it has a word for them.
    408: 4,  # DEADLINE_EXCEEDED
    413: 8,  # RESOURCE_EXHAUSTED
    504: 4,
}
_GRPC_UNKNOWN: Final = 2
_MAX_GRPC_MESSAGE: Final = 1024
"""Bytes of a reply's body that become a grpc-message. nghttp2 and Go take a header list of 64 KiB and 16 MiB."""

_TEXT: Final = b"text/plain; charset=utf-8"
_PROBLEM: Final = b"application/problem+json"

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def phrase(status: int) -> bytes:
    """Return the phrase of *status*; of its class, if nobody registered it."""
    return PHRASES.get(status) or _CLASSES.get(status // 100, b"Unknown")


def response_to(request: Request, reply: Reply, request_id: str) -> tuple[Response, bytes]:
    """Return the response that *reply* is to *request*, and its body.

    A gRPC client gets what it understands: status 200 and ``grpc-status``, in one head without a body
    ("Trailers-Only"), unless the reply has a ``grpc-status`` of its own.
    """
    headers = Headers()
    for name, value in reply.headers:
        headers.add(name, value)
    content_type = request.headers.get("content-type")
    if content_type is not None and _is_grpc(content_type) and "grpc-status" not in headers:
        return _grpc_response(reply, headers, content_type), b""
    body = reply.body
    if body is None:
        accept = ", ".join(request.headers.get_all("accept"))
        body, kind = render(reply, accept or None, request_id)
        if reply.status not in _WITHOUT_CONTENT:
            headers.raw.append((b"content-type", kind))
            headers.raw.append((b"vary", b"accept"))
    response = Response(reply.status, headers, has_body=reply.status not in (204, 304))
    if not response.has_body:
        return response, b""
    if reply.status == 205:  # RFC 9110 section 15.3.6: no content, and its length says so
        body = b""
    headers.raw.append((b"content-length", b"%d" % len(body)))
    response.content_length = len(body)
    return response, body


def _is_grpc(content_type: str) -> bool:
    return content_type.startswith("application/grpc") and content_type[16:17] in {"", "+", ";"}


def _grpc_response(reply: Reply, headers: Headers, content_type: str) -> Response:
    message = (
        phrase(reply.status).decode() if not reply.body else reply.body[:_MAX_GRPC_MESSAGE].decode(errors="replace")
    )
    status = 0 if reply.status < 300 else _GRPC_STATUSES.get(reply.status, _GRPC_UNKNOWN)
    headers.discard("content-type")
    headers.set("content-type", content_type)
    headers.add("grpc-status", str(status))
    # Percent-encoded outside printable ASCII, and the percent sign itself (gRPC over HTTP/2, "Responses").
    headers.add("grpc-message", quote(message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"))
    return Response(200, headers, has_body=False)


def render(reply: Reply, accept: str | None, request_id: str) -> tuple[bytes, bytes]:
    """Return the body and the content type for *reply*, which has no body of its own.

    *accept* is the request's ``Accept`` field, its lines joined by commas, or
    `None`. Plain text unless the client prefers JSON (RFC 9110 section 12.5.1):
    a tie, ``*/*``, and a client that takes neither get text. The JSON is a
    problem document (RFC 9457) of type ``about:blank``; *request_id*, if there
    is one, is its extension member ``request_id``, so that a user can quote it.
    """
    status = reply.status
    if status in _WITHOUT_CONTENT or status < 200:
        return b"", _TEXT
    if accept is None or not _prefers_json(accept):
        return phrase(status), _TEXT
    problem: dict[str, str | int] = {"type": "about:blank", "title": phrase(status).decode(), "status": status}
    if request_id:
        problem["request_id"] = request_id
    return json.dumps(problem).encode(), _PROBLEM


def _prefers_json(accept: str) -> bool:
    ranges = parse_accept(accept)
    # Who asks for application/json can read application/problem+json, though no range says so.
    as_json = max(quality_of(ranges, "application/problem+json"), quality_of(ranges, "application/json"))
    return as_json > quality_of(ranges, "text/plain")


def http_date(now: float) -> bytes:
    """Return the value of a ``Date`` field (RFC 9110 section 5.6.7) for *now*, in `time.time` seconds.

    Made once a second; a tenth of a microsecond otherwise.
    """
    return _date(int(now))


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    # Not strftime: its names are the locale's.
    at = time.gmtime(second)
    day, month = _DAYS[at.tm_wday], _MONTHS[at.tm_mon - 1]
    return f"{day}, {at.tm_mday:02d} {month} {at.tm_year:04d} {at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d} GMT".encode()
