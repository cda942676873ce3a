"""What the headers of HTTP/2 frames tell, before and whichever engine reads them: floods, and streams that are over.

A frame that costs the receiver something and the sender nothing has a budget for each period (behaviour 7.3). Whether
a frame is right is the engine's business, but for what one of the libraries lets pass. Only the nine bytes of a
frame's header are looked at (RFC 9113 section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from gw.http.h2 import PREFACE, Code, FloodLimits
from gw.limits import FLOOD_PERIOD, MAX_CONTINUATIONS, MAX_GONE_STREAMS

__all__ = ["FloodWatch"]

_DATA: Final = 0x0
_HEADERS: Final = 0x1
_PRIORITY: Final = 0x2
_RST_STREAM: Final = 0x3
_SETTINGS: Final = 0x4
_PING: Final = 0x6
_GOAWAY: Final = 0x7
_WINDOW_UPDATE: Final = 0x8
_CONTINUATION: Final = 0x9
_ACK: Final = 0x1
_END_STREAM: Final = 0x1
_HEADER: Final = 9
_frame_header: Final = Struct(">HBBBI").unpack_from
"""Length (its upper 16 bits, its lower 8), type, flags, stream."""
_NO_STREAM: Final = 2**32
"""More than any stream's number, reserved bit included: of a client's peer, which answers on the client's streams."""
_BYTES_A_FRAME: Final = 16384
_UPDATES_A_FRAME: Final = 10


class FloodWatch:
    """Watches what one peer sends. *clock* is in seconds, as `time.monotonic`; *preface* says that it is a client."""

    __slots__ = (
        "_clock",
        "_continuations",
        "_counts",
        "_limits",
        "_most",
        "_next",
        "_partial",
        "_period_ends",
        "_sending",
        "_sent",
        "_skip",
        "_skipped",
    )

    def __init__(
        self, limits: FloodLimits, clock: Callable[[], float], *, preface: bool, most_streams: int = 100
    ) -> None:
        self._clock = clock
        self._most = most_streams
        self._limits = {
            "SETTINGS": limits.settings,
            "PING": limits.ping,
            "reset streams": limits.reset,
            "empty DATA": limits.empty_data,
            "PRIORITY": limits.priority,
            "WINDOW_UPDATE": limits.window_update,
        }
        self._counts: dict[str, int] = {}
        self._period_ends = 0.0
        self._sent = 0
        """DATA frames of ours in this period, about."""
        self._skip = len(PREFACE) if preface else 0
        """Bytes to come that are no frame's header."""
        self._partial = b""
        self._continuations = 0
        self._next = 1 if preface else _NO_STREAM
        """The stream that a client opens next, if it leaves none out."""
        self._skipped: list[tuple[int, int]] = []
        """First and last of those that it left out, and can open no more."""
        self._sending: dict[int, None] = {}
        """Those that it has opened and neither ended nor reset, the oldest first."""

    def upgraded(self) -> None:
        """Note that stream 1 is the request that asked for HTTP/2: it has been sent to its end."""
        self._next = 3

    def sent(self, size: int) -> None:
        """Note that *size* bytes of DATA were sent: they earn WINDOW_UPDATEs."""
        self._sent += size // _BYTES_A_FRAME + 1

    def see(self, data: bytes) -> tuple[int, str] | None:
        """Look at what was received; return the error code and the message that it deserves, if any."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        at, size = self._skip, len(data)
        verdict: tuple[int, str] | None = None
        while at + _HEADER <= size:
            high, low, kind, flags, stream = _frame_header(data, at)
            length = high << 8 | low
            # The usual frames first: a head, and a body that has something in it.
            if kind == _HEADERS or (kind == _DATA and length):
                self._continuations = 0
                if kind == _HEADERS and stream == self._next and flags & _END_STREAM:
                    self._next += 2
                elif self._next != _NO_STREAM:
                    verdict = verdict or self._look_at_stream(kind, stream, flags & _END_STREAM)
            else:
                verdict = verdict or self._look(kind, flags, length, stream)
            at += _HEADER + length
        if at < size:
            self._partial = data[at:]
            at = size
        self._skip = at - size
        return verdict

    def _look_at_stream(self, kind: int, stream: int, ends: int) -> tuple[int, str] | None:
        """Refuse a frame on a stream that its client has ended, reset or left out; nghttp2 ignores some of them."""
        sending = self._sending
        if stream in sending:
            if ends:
                del sending[stream]
        elif stream >= self._next:
            if kind == _HEADERS:
                if stream > self._next:
                    self._skipped = [*self._skipped[-MAX_GONE_STREAMS + 1 :], (self._next, stream - 2)]
                self._next = stream + 2
                if not ends:
                    sending[stream] = None
                    if len(sending) > MAX_GONE_STREAMS + self._most:
                        del sending[next(iter(sending))]
        elif any(first <= stream <= last for first, last in self._skipped):
            return Code.PROTOCOL_ERROR, "a frame on a stream that was left out"  # RFC 9113 section 5.1.1
        elif stream & 1:
            return Code.STREAM_CLOSED, "a frame on a stream that its sender has closed"  # section 5.1
        return None

    def _look(self, kind: int, flags: int, length: int, stream: int) -> tuple[int, str] | None:
        what = None
        if kind == _CONTINUATION:
            self._continuations += 1
            what = "CONTINUATION" if self._continuations > MAX_CONTINUATIONS else None
        elif kind == _DATA:
            if self._next != _NO_STREAM and (gone := self._look_at_stream(kind, stream, flags & 1)):
                return gone
            what = None if flags & _END_STREAM else self.count("empty DATA")
        elif kind in (_SETTINGS, _PING):
            if flags & _ACK:
                # One of the libraries lets this pass (RFC 9113 section 6.5).
                wrong = kind == _SETTINGS and length
                return (Code.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload") if wrong else None
            what = self.count("SETTINGS" if kind == _SETTINGS else "PING")
        elif kind == _RST_STREAM:
            self._sending.pop(stream, None)
            what = self.count("reset streams")
        elif kind == _WINDOW_UPDATE:
            what = self.count("WINDOW_UPDATE", self._sent * _UPDATES_A_FRAME)
        elif kind != _GOAWAY:
            if kind == _PRIORITY and not stream:  # the other one lets this pass (section 6.3)
                return Code.PROTOCOL_ERROR, "PRIORITY on stream 0"
            what = self.count("PRIORITY")
        return None if what is None else (Code.ENHANCE_YOUR_CALM, f"too many: {what}")

    def count(self, what: str, earned: int = 0) -> str | None:
        """Count one more of *what*; return it when that is too many."""
        now = self._clock()
        if now >= self._period_ends:
            self._period_ends = now + FLOOD_PERIOD
            self._counts.clear()
            self._sent = 0
            earned = 0
        count = self._counts[what] = self._counts.get(what, 0) + 1
        return what if count > self._limits[what] + earned else None
