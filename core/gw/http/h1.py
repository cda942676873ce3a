"""What an HTTP/1.1 engine is: bytes in, events out, no I/O (RFC 9112).

An engine reads one direction of one connection. It is handed bytes in whatever
cuts the network made and appends to *events*, in order:

* a `Request` or `Response`: a head, already checked by `gw.http.framing`;
* `bytes`: part of the body, never empty;
* an `End`: the message is over (trailers included);
* a `Malformed`: what was read breaks the rules; the last event there will be.

Interim (1xx) responses are heads without an `End`; the reader stays with the
same exchange until the final head. Writing is no engine's business: see
`gw.http.write`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol as Interface, TypeAlias

from gw.filters import Headers, Request, Response

__all__ = [
    "END",
    "End",
    "Malformed",
    "ReaderLimits",
    "RequestEvent",
    "RequestReader",
    "ResponseEvent",
    "ResponseReader",
]


@dataclass(frozen=True, slots=True)
class End:
    """The message is complete. *trailers* are the fields of its trailer section."""

    trailers: Headers | None = None


END = End()
"""The end of a message without trailers: one object for all of them."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Why a message is refused. *status* is what a client should be told: 400, 431 or 505."""

    message: str
    status: int = 400
    truncated: bool = False
    """The peer stopped in the middle: nothing it sent was wrong."""


RequestEvent: TypeAlias = Request | bytes | End | Malformed
ResponseEvent: TypeAlias = Response | bytes | End | Malformed


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """Bounds of one reader; 0 means none (behaviour 4.1, 6.1; `gw.limits`)."""

    head_size: int
    header_count: int
    trailer_size: int


class RequestReader(Interface):
    """The server's side: reads requests, pipelined ones too."""

    events: deque[RequestEvent]
    in_head: bool
    """Part of a head was read, and not all of it."""
    held: bytes
    """What came behind a request to become a WebSocket: not HTTP any more, or, if that is refused, the next request."""

    def go_on(self) -> None:
        """Read what was held as HTTP."""

    def feed(self, data: bytes) -> None:
        """Parse *data*. Never raises: what is wrong becomes a `Malformed` event."""

    def feed_eof(self) -> None:
        """The peer sent its last byte. In the middle of a message: a truncated `Malformed`; else nothing."""


class ResponseReader(Interface):
    """The client's side: reads the response to one request at a time.

    After the `End` of one response *spare* tells whether the peer sent bytes that belong to none.
    """

    events: deque[ResponseEvent]
    spare: bool
    held: bytes
    """What came behind a 101: the other protocol's."""

    def expect(self, method: str, upgrade: str | None = None) -> None:
        """Say which method the next response answers: HEAD and CONNECT change its framing. Resets *spare*.

        A 101 is its final response where *upgrade* says which protocol was asked for.
        """

    def feed(self, data: bytes) -> None:
        """Parse *data*, as in `RequestReader.feed`."""

    def feed_eof(self) -> None:
        """The peer sent its last byte: ends a body that is read until close, truncates any other."""
