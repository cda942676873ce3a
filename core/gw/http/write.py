"""Writing HTTP/1.1 messages (RFC 9112): heads, chunks, trailers. Lists of bytes out, nothing read, no I/O.

What comes in was checked by an engine or by `gw.filters.Headers`; nothing here can split a message.
"""

from __future__ import annotations

import time
from typing import Final

from gw.filters import Headers, Response
from gw.http.replies import PHRASES, http_date

__all__ = ["HOP_BY_HOP", "LAST_CHUNK", "interim_head", "last_chunk", "response_head", "upgrade_head"]

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields about one connection, not about the message (RFC 9110 section 7.6.1, behaviour 11.1)."""

NOT_IN_TRAILERS: Final = HOP_BY_HOP | {
    b"authorization",
    b"age",
    b"cache-control",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"date",
    b"expect",
    b"expires",
    b"forwarded",
    b"host",
    b"location",
    b"max-forwards",
    b"pragma",
    b"range",
    b"retry-after",
    b"set-cookie",
    b"trailer",
    b"vary",
    b"via",
    b"www-authenticate",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
}
"""Fields that change how a message is framed, routed, authorised or handled (RFC 9110 section 6.5.1)."""

_STATUS_LINES: Final = {status: b"HTTP/1.1 %d %b\r\n" % (status, phrase) for status, phrase in PHRASES.items()}
_DATED: Final = HOP_BY_HOP | {b"date"}
_NOT_IN_UPGRADE: Final = HOP_BY_HOP | {b"content-length", b"sec-websocket-accept"}

LAST_CHUNK: Final = b"0\r\n\r\n"


def response_head(response: Response, *, close: bool, stays_open: bool, chunked: bool, via: bytes) -> list[bytes]:
    """Return the pieces of a final response's head.

    *stays_open* says ``Connection: keep-alive`` to an HTTP/1.0 client. *via* is the value of our own ``Via``
    line, empty for none. A response without a date gets one (RFC 9110 section 6.6.1).
    """
    status, reason = response.status, response.reason
    known = _STATUS_LINES.get(status)
    if known is None or (reason and reason != PHRASES[status]):
        known = b"HTTP/1.1 %d %b\r\n" % (status, reason)
    out = [known]
    dated = False
    for name, value in response.headers.raw:
        if name in _DATED:
            if name != b"date":
                continue
            dated = True
        out += (name, b": ", value, b"\r\n")
    if not dated:
        out += (b"date: ", http_date(time.time()), b"\r\n")
    if via:
        out += (b"via: ", via, b"\r\n")
    if chunked:
        out.append(b"transfer-encoding: chunked\r\n")
    if close:
        out.append(b"connection: close\r\n\r\n")
    elif stays_open:
        out.append(b"connection: keep-alive\r\n\r\n")
    else:
        out.append(b"\r\n")
    return out


def upgrade_head(response: Response, accept: bytes, via: bytes) -> bytes:
    """Return a 101 that makes the connection a WebSocket (RFC 6455 section 4.2.2).

    What the two sides agreed on stands in the response's fields; *accept* answers the client's key.
    """
    out = [_STATUS_LINES[101], b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: ", accept, b"\r\n"]
    for name, value in response.headers.raw:
        if name not in _NOT_IN_UPGRADE:
            out += (name, b": ", value, b"\r\n")
    if via:
        out += (b"via: ", via, b"\r\n")
    out.append(b"\r\n")
    return b"".join(out)


def interim_head(response: Response) -> bytes:
    """Return a 1xx head: no framing, no connection fields (RFC 9110 section 15.2)."""
    status = response.status
    out = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
    for name, value in response.headers.raw:
        if name not in HOP_BY_HOP and name != b"content-length":
            out += (name, b": ", value, b"\r\n")
    out.append(b"\r\n")
    return b"".join(out)


def last_chunk(trailers: Headers | None) -> bytes:
    """Return the end of a chunked body, with the trailer fields that may be there."""
    if trailers is None:
        return LAST_CHUNK
    out = [b"0\r\n"]
    for name, value in trailers.raw:
        if name not in NOT_IN_TRAILERS:
            out += (name, b": ", value, b"\r\n")
    out.append(b"\r\n")
    return b"".join(out)
