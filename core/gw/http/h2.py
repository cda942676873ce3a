"""What an HTTP/2 engine is: one end of one connection, bytes in, events out, no I/O (RFC 9113).

A `Session` frames, compresses and accounts for windows; it enforces what the
RFC says about frames and streams. What a head *means* is `gw.http.pseudo`'s
business, whose stream it is, and who waits for it, that of `gw.downstream.http2`
and `gw.upstream.http2`.

Two rules make a proxy of it. Receive windows are manual: what `Data` brought is
given back with `give_back` when it has been written on, so that a slow reader
stops one stream and never the connection's reader. And nothing is written by
itself: whoever called a method that sends, or fed bytes, takes `outgoing` and
puts it on the wire.
"""

from __future__ import annotations

import base64
import binascii
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol as Interface, TypeAlias

from gw.http.framing import Fields
from gw.limits import (
    FLOOD_EMPTY_DATA,
    FLOOD_PINGS,
    FLOOD_PRIORITIES,
    FLOOD_RESETS,
    FLOOD_SETTINGS,
    FLOOD_WINDOW_UPDATES,
)

__all__ = [
    "MAX_WINDOW",
    "PREFACE",
    "Code",
    "Data",
    "Ended",
    "Event",
    "FloodLimits",
    "GoAway",
    "Head",
    "Interim",
    "Pong",
    "Reset",
    "Session",
    "SessionSettings",
    "SettingsChanged",
    "Trailers",
    "WindowOpened",
    "goaway_frame",
    "name_of",
    "settings_of",
    "settings_payload",
]


MAX_WINDOW: Final = 2**31 - 1
"""The largest flow-control window (RFC 9113 section 6.9.1)."""

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first (RFC 9113 section 3.4)."""


class Code:
    """Error codes (RFC 9113 section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


_NAMES: Final = {value: name for name, value in vars(Code).items() if name.isupper()}


def name_of(code: int) -> str:
    """Return what RFC 9113 section 7 calls an error code."""
    return _NAMES.get(code) or f"error {code}"


@dataclass(frozen=True, slots=True)
class FloodLimits:
    """Frames that cost us and give the peer nothing: how many it may send in each `FLOOD_PERIOD` (behaviour 7.3)."""

    settings: int = FLOOD_SETTINGS
    ping: int = FLOOD_PINGS
    reset: int = FLOOD_RESETS
    """Streams reset by the peer, or by us because of what it sent on them."""
    empty_data: int = FLOOD_EMPTY_DATA
    priority: int = FLOOD_PRIORITIES
    """PRIORITY, PRIORITY_UPDATE, and frames of unknown types."""
    window_update: int = FLOOD_WINDOW_UPDATES
    """Beyond ten for each DATA frame that was sent."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What our end says in SETTINGS and holds its peer to (behaviour 7.2, 13)."""

    max_concurrent_streams: int = 100
    initial_window_size: int = 65_535
    max_frame_size: int = 16_384
    max_header_list_size: int = 65_536
    """Sum of name + value + 32 a field (RFC 9113 section 6.5.2); beyond it the stream is reset, not the connection."""
    header_table_size: int = 4_096
    enable_push: bool = False
    enable_connect_protocol: bool = False
    flood: FloodLimits = FloodLimits()

    @property
    def connection_window_size(self) -> int:
        """Receive window of the whole connection: as much as its streams have together.

        So a stream that nobody reads can stop itself, and never the others.
        """
        return min(max(self.max_concurrent_streams, 1) * self.initial_window_size, MAX_WINDOW)


def settings_of(settings: SessionSettings, *, client: bool) -> dict[int, int]:
    """Return the SETTINGS that say *settings* (RFC 9113 section 6.5.2, RFC 8441 section 3)."""
    said = {
        _HEADER_TABLE_SIZE: settings.header_table_size,
        _INITIAL_WINDOW_SIZE: settings.initial_window_size,
        _MAX_FRAME_SIZE: settings.max_frame_size,
        _MAX_HEADER_LIST_SIZE: settings.max_header_list_size,
    }
    if client:
        said[_ENABLE_PUSH] = 0
    else:
        said[_MAX_CONCURRENT_STREAMS] = settings.max_concurrent_streams
        if not settings.enable_push:
            said[_ENABLE_PUSH] = 0
        if settings.enable_connect_protocol:
            said[_ENABLE_CONNECT_PROTOCOL] = 1
    return said


_HEADER_TABLE_SIZE: Final = 0x1
_ENABLE_PUSH: Final = 0x2
_MAX_CONCURRENT_STREAMS: Final = 0x3
_INITIAL_WINDOW_SIZE: Final = 0x4
_MAX_FRAME_SIZE: Final = 0x5
_MAX_HEADER_LIST_SIZE: Final = 0x6
_ENABLE_CONNECT_PROTOCOL: Final = 0x8


def goaway_frame(last: int, code: int) -> bytes:
    """Return a GOAWAY (RFC 9113 section 6.8), for an engine that can say nothing more itself."""
    return b"\0\0\x08\x07\0\0\0\0\0" + last.to_bytes(4) + code.to_bytes(4)


def settings_payload(field: str) -> bytes | None:
    """Return the SETTINGS payload of an ``HTTP2-Settings`` field (RFC 7540 section 3.2.1); `None` if it is none."""
    try:
        payload = base64.b64decode(field + "=" * (-len(field) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return payload if len(payload) % 6 == 0 else None


# --- events ------------------------------------------------------------------


@dataclass(slots=True)
class Head:
    """A request (server) or a final response (client) begins; names are lower-case, pseudo-header fields included."""

    stream: int
    fields: Fields
    end: bool


@dataclass(slots=True)
class Interim:
    """A 1xx response (client)."""

    stream: int
    fields: Fields


@dataclass(slots=True)
class Data:
    """Part of a body; *data* may be empty where *end* is true."""

    stream: int
    data: bytes
    end: bool
    flow: int
    """Bytes of window it took, padding included: what `give_back` wants when it has been consumed."""


@dataclass(slots=True)
class Trailers:
    """The trailer section, and with it the end of the message."""

    stream: int
    fields: Fields


@dataclass(slots=True)
class Reset:
    """The stream is over before its end: the peer reset it, or we did because the peer broke a rule on it."""

    stream: int
    code: int
    by_peer: bool


@dataclass(slots=True)
class WindowOpened:
    """The peer takes more of *stream*, or of all streams (0); what became of what waits is told by `Session.queued`."""

    stream: int


@dataclass(slots=True)
class SettingsChanged:
    """The peer's SETTINGS came; look at the session's ``peer_*``."""


@dataclass(slots=True)
class Pong:
    """The answer to a PING of ours."""

    data: bytes


@dataclass(slots=True)
class GoAway:
    """The peer will take no stream above *last*; those that are open up to it go on."""

    last: int
    code: int
    debug: bytes


@dataclass(slots=True)
class Ended:
    """The connection cannot go on; the last event there is. What has to be said to the peer is in `outgoing`."""

    code: int
    message: str
    by_peer: bool


Event: TypeAlias = Head | Interim | Data | Trailers | Reset | WindowOpened | SettingsChanged | Pong | GoAway | Ended


class Session(Interface):
    """One end of a connection. Methods that name a stream do nothing once that stream is over."""

    events: deque[Event]
    peer_max_streams: int
    """MAX_CONCURRENT_STREAMS of the peer; 100 until it has spoken."""
    peer_connect_protocol: bool
    """Whether the peer takes extended CONNECT (RFC 8441)."""
    peer_allows_push: bool

    def feed(self, data: bytes) -> None:
        """Parse *data*. Never raises: a broken connection becomes `Ended`, a broken stream `Reset`."""

    def outgoing(self, most: int) -> bytes:
        """Return, and forget, about *most* bytes of what has to be put on the wire; less means that there is no more.

        It may add to `events`.
        """

    # --- sending a message ---

    def request(self, fields: Fields, end: bool) -> int:
        """Open a stream (client); return its number, or 0 where the connection can carry no further one."""

    def respond(self, stream: int, fields: Fields, end: bool) -> None:
        """Send the final head (server)."""

    def interim(self, stream: int, fields: Fields) -> None:
        """Send a 1xx head (server)."""

    def send(self, stream: int, data: bytes, end: bool) -> None:
        """Queue part of the body: it is framed as the peer's windows allow. Look at `queued` before more."""

    def trail(self, stream: int, fields: Fields) -> None:
        """Send the trailer section after the body, and end our side."""

    def queued(self, stream: int) -> int:
        """Return the bytes of *stream*'s body that wait for its peer's window."""

    # --- streams and the connection ---

    def upgraded(self, payload: bytes, head: bool) -> None:
        """Begin with stream 1, asked for by ``Upgrade: h2c`` (RFC 7540 section 3.2; server).

        *payload* is the decoded HTTP2-Settings field, *head* whether the request was a HEAD. Raises `ValueError`.
        """

    def push(self, stream: int, fields: Fields) -> int:
        """Promise a request on *stream* (server); return the promised stream, or 0 where it may not be."""

    def reset(self, stream: int, code: int) -> None:
        """End *stream* at once; what was queued on it is dropped. No `Reset` event follows."""

    def refuse(self, stream: int, code: int) -> None:
        """End *stream* because its peer broke a rule on it. It counts as a reset of the peer's: see `FloodLimits`."""

    def give_back(self, stream: int, flow: int) -> None:
        """Return window for *flow* bytes that were consumed; to the connection alone, if *stream* is over."""

    def configure(self, settings: SessionSettings) -> None:
        """Send changed SETTINGS."""

    def ping(self, data: bytes) -> None:
        """Send a PING with 8 bytes of *data*."""

    def shutdown_notice(self) -> None:
        """Say that GOAWAY is near, refusing nothing yet (RFC 9113 section 6.8: last stream 2^31-1)."""

    def goaway(self, code: int, debug: bytes = b"") -> None:
        """Refuse streams above the last one processed; those that are open go on where *code* is NO_ERROR."""
