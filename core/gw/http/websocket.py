"""WebSocket frames without I/O (RFC 6455): what one side sends is read, checked, and passed on or gathered.

A `FrameReader` reads one direction. It either relays (what it returns are the
sender's own bytes, checked but not put together) or gathers (whole messages).
Both go through the same checks, so a message has one reading. How a connection
becomes a WebSocket is `gw.http.handshake`'s business.
"""

from __future__ import annotations

import os
from codecs import utf_8_decode
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol as Interface

from gw.filters import Close, Message

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "OPCODES",
    "OPCODE_NAMES",
    "PING",
    "PONG",
    "TEXT",
    "FrameReader",
    "FrameWriter",
    "Ping",
    "Pong",
    "apply_mask",
    "is_close_code",
]

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
OPCODES: Final = PONG + 1
OPCODE_NAMES: Final = {
    TEXT: "text",
    BINARY: "binary",
    CONTINUATION: "continuation",
    PING: "ping",
    PONG: "pong",
    CLOSE: "close",
}
"""As figures name them (behaviour 17.5)."""

_PROTOCOL_ERROR: Final = 1002
_INVALID_DATA: Final = 1007
_TOO_BIG: Final = 1009

_CONTROL_MOST: Final = 125
_REASON_MOST: Final = 123
_NO_STATUS: Final = 1005
_FIN: Final = 0x80
_RSV1: Final = 0x40
_MASKED: Final = 0x80


class Ping(NamedTuple):
    """A ping that wants an answer."""

    payload: bytes


class Pong(NamedTuple):
    """The answer to somebody's ping, or said for no reason."""

    payload: bytes


class Inflater(Interface):
    """What undoes a message's compression; see `gw.http.deflate`."""

    def feed(self, data: bytes, take: Callable[[bytes], bool], *, end: bool) -> bool:
        """Hand what *data* inflates to to *take*, piece by piece; false as soon as *take* is, or *data* is no deflate."""


class Deflater(Interface):
    """What compresses whole messages."""

    def message(self, data: bytes) -> bytes: ...


def apply_mask(data: bytes, key: bytes, offset: int = 0) -> bytes:
    """Mask or unmask *data*, which begins *offset* bytes into its payload (RFC 6455 section 5.3)."""
    size = len(data)
    if not size:
        return b""
    turn = offset & 3
    if turn:
        key = key[turn:] + key[:turn]
    mask = (key * ((size + 3) >> 2))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(mask, "little")).to_bytes(size, "little")


def is_close_code(code: int) -> bool:
    """Whether a Close frame may carry *code* (RFC 6455 section 7.4, IANA; behaviour 8.2)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class FrameReader:
    """Reads what one side sends.

    *masked* says which side that is: a client's frames are masked, a server's are not. *limit* bounds a message,
    inflated, in bytes; 0 is none. With *gathers*, messages are put together and become events; without, `feed`
    returns what may be passed on. After a `closed` or a `fault` nothing more is read. In *counts* frames are counted
    by opcode: all of a client's, and of a server's those that may be passed on.
    """

    __slots__ = (
        "_compressed",
        "_counts",
        "_fin",
        "_frame_offset",
        "_gathers",
        "_head",
        "_inflater",
        "_key",
        "_left",
        "_limit",
        "_masked",
        "_opcode",
        "_parts",
        "_size",
        "_tail",
        "boundary",
        "closed",
        "events",
        "fault",
        "in_frame",
        "own_ping",
    )

    def __init__(
        self,
        *,
        masked: bool,
        limit: int = 0,
        inflater: Inflater | None = None,
        gathers: bool = False,
        counts: list[int] | None = None,
    ) -> None:
        self._counts = [0] * OPCODES if counts is None else counts
        self._masked, self._limit, self._inflater, self._gathers = masked, limit, inflater, gathers
        self.events: list[Message | Ping | Pong] = []
        """Pings that came, and when gathering also messages and pongs, in order. Who reads them empties it."""
        self.closed: Close | None = None
        """The Close frame that came: the last there is. Code 1005 says that it was empty."""
        self.fault: Close | None = None
        """What the sender did wrong, as it is to be told."""
        self.boundary = -1
        """Where in the bytes last returned a frame ended, the last one that did; -1 if none."""
        self.in_frame = False
        """Whether the bytes returned so far end in the middle of a frame."""
        self.own_ping = b""
        """The payload of a ping of ours: its pong is kept back, and empties this."""
        self._head = b""
        """The beginning of a frame of which not enough is here."""
        self._opcode = 0
        """Of the message that is under way; 0 between messages."""
        self._fin = self._compressed = False
        self._left = 0
        """Payload of the frame that is still to come."""
        self._frame_offset = 0
        """Payload of the frame that came."""
        self._key = b""
        self._size = 0
        """Of the message so far, as the limit counts it."""
        self._tail = b""
        """The beginning of a character that was cut (UTF-8)."""
        self._parts: list[Any] = []

    def feed(self, data: bytes) -> bytes:
        """Read *data*; return what of it may be passed on, if this reader relays. Never raises."""
        if self.fault is not None or self.closed is not None:
            return b""
        if self._head:
            data, self._head = self._head + data, b""
        at, start, end = 0, 0, len(data)
        pieces: list[bytes] = []
        begun = -1
        boundary = -1
        while at < end:
            left = self._left
            if not left:
                begun = at
                at = self._begin(data, at, end)
                if at == begun:  # it is not all here, or it is wrong
                    if self.fault is None:
                        self._head = data[begun:end]
                    end = begun
                    break
                if at < 0:  # a control frame that goes no further
                    at = -at
                    if begun > start:
                        pieces.append(data[start:begun])
                    start = at
                    if self.closed is not None:
                        end = at
                        break
                    continue
                left = self._left
            here = min(left, end - at)
            if here and not self._take(data[at : at + here] if here != end or at else data):
                end = begun if begun >= 0 else at
                break
            at += here
            if here == left:
                self._left = 0
                if self._fin and not self._finish():
                    end = begun if begun >= 0 else at - here
                    break
                boundary = at - start + (sum(map(len, pieces)) if pieces else 0)
                begun = -1
            else:
                self._left = left - here
        if self._gathers:
            return b""
        if pieces:
            pieces.append(data[start:end])
            out = b"".join(pieces)
        else:
            out = data[start:end]
        if out:
            self.boundary = min(boundary, len(out))
            self.in_frame = self.boundary != len(out)
        else:
            self.boundary = -1
        return out

    # --- one frame -----------------------------------------------------------

    def _begin(self, data: bytes, at: int, end: int) -> int:
        """Read a frame's head; return where its payload begins, or *at* when that is not yet to be told, or never.

        A control frame is read whole. One that is not to be passed on ends at the negative of what is returned.
        """
        if end - at < 2:
            return at
        first, second = data[at], data[at + 1]
        opcode, length = first & 0x0F, second & 0x7F
        is_masked = second >= _MASKED
        if is_masked is not self._masked:
            return self._wrong(
                at, "A client's frames are masked" if self._masked else "A server's frames are not masked"
            )
        rsv = first & 0x70
        if opcode >= CLOSE:
            return self._control(data, at, end, first, length)
        if rsv and (rsv != _RSV1 or self._inflater is None or opcode == CONTINUATION):
            return self._wrong(at, "A reserved bit is set")
        if opcode > BINARY:
            return self._wrong(at, "The opcode is reserved")
        if opcode:
            if self._opcode:
                return self._wrong(at, "A message begins inside of another")
        elif not self._opcode:
            return self._wrong(at, "There is no message to continue")
        body = at + 2
        if length >= 126:
            body += 2 if length == 126 else 8
            if end < body:
                return at
            least = 126 if length == 126 else 65536
            length = int.from_bytes(data[at + 2 : body])
            if length < least or length >= 1 << 63:
                return self._wrong(at, "The length is not written in its shortest form")
        if is_masked:
            if end < body + 4:
                return at
            self._key = data[body : body + 4]
            body += 4
        compressed = rsv != 0 if opcode else self._compressed
        if not compressed:
            size = length if opcode else self._size + length
            if size > self._limit > 0:
                self.fault = Close(_TOO_BIG, "The message is too big")
                return at
            self._size = size
        elif opcode:
            self._size = 0
        if opcode:
            self._opcode, self._compressed = opcode, compressed
        self._fin = first >= _FIN
        self._left, self._frame_offset = length, 0
        self._counts[opcode] += 1
        return body

    def _control(self, data: bytes, at: int, end: int, first: int, length: int) -> int:
        opcode = first & 0x0F
        if first & 0x70:
            return self._wrong(at, "A reserved bit is set")
        if opcode > PONG:
            return self._wrong(at, "The opcode is reserved")
        if first < _FIN or length > _CONTROL_MOST:
            return self._wrong(at, "A control frame is fragmented or too long")
        body = at + (6 if self._masked else 2)
        after = body + length
        if after > end:
            return at
        payload = data[body:after]
        if self._masked:
            payload = apply_mask(payload, data[body - 4 : body])
        if opcode == CLOSE:
            if not self._close(payload):
                return at
            self._counts[CLOSE] += self._masked
            return -after
        if opcode == PING:
            self.events.append(Ping(payload))
        elif payload == self.own_ping and payload:
            self.own_ping = b""
            self._counts[PONG] += self._masked
            return -after
        elif self._gathers:
            self.events.append(Pong(payload))
        self._counts[opcode] += 1
        self._fin = False  # it may stand between the frames of a message, and ends none
        return after

    def _close(self, payload: bytes) -> bool:
        if not payload:
            self.closed = Close(_NO_STATUS)
            return True
        code = int.from_bytes(payload[:2])
        if len(payload) == 1 or not is_close_code(code):
            self.fault = Close(_PROTOCOL_ERROR, "The close code is not one that may be sent")
            return False
        try:
            self.closed = Close(code, payload[2:].decode())
        except UnicodeDecodeError:
            self.fault = Close(_INVALID_DATA, "The reason is not UTF-8")
            return False
        return True

    def _wrong(self, at: int, why: str) -> int:
        self.fault = Close(_PROTOCOL_ERROR, why)
        return at

    # --- payload ---------------------------------------------------------------

    def _take(self, data: bytes) -> bool:
        """Take in part of a data frame's payload; tell whether it is sound."""
        opcode = self._opcode
        if opcode == BINARY and not self._gathers and not self._compressed:
            return True
        if self._masked:
            offset = self._frame_offset
            self._frame_offset = offset + len(data)
            data = apply_mask(data, self._key, offset)
        if self._compressed:
            assert self._inflater is not None
            if self._inflater.feed(data, self._inflated, end=False):
                return True
            return self._unsound()
        return self._plain(data)

    def _plain(self, data: bytes) -> bool:
        if self._opcode == BINARY:
            if self._gathers:
                self._parts.append(data)
            return True
        if not self._gathers and not self._tail and data.isascii():
            return True
        try:
            text, used = utf_8_decode(self._tail + data if self._tail else data, "strict", False)
        except UnicodeDecodeError:
            return self._unsound()
        if used != len(self._tail) + len(data):
            self._tail = (self._tail + data)[used:]
            if self._tail[0] == 0xED and len(self._tail) > 1 and self._tail[1] >= 0xA0:  # half of a surrogate pair
                return self._unsound()
        else:
            self._tail = b""
        if self._gathers and text:
            self._parts.append(text)
        return True

    def _inflated(self, data: bytes) -> bool:
        self._size += len(data)
        if self._size > self._limit > 0:
            self.fault = Close(_TOO_BIG, "The message is too big")
            return False
        return self._plain(data)

    def _unsound(self) -> bool:
        if self.fault is None:
            self.fault = Close(_INVALID_DATA, "The payload is not what the frame says it is")
        return False

    def _finish(self) -> bool:
        """End the message; tell whether it is sound."""
        if self._compressed:
            assert self._inflater is not None
            if not self._inflater.feed(b"", self._inflated, end=True):
                return self._unsound()
        if self._tail:
            self._tail = b""
            return self._unsound()
        if self._gathers:
            parts = self._parts
            empty: Any = "" if self._opcode == TEXT else b""
            self.events.append(Message(parts[0] if len(parts) == 1 else empty.join(parts)))
            self._parts = []
        self._opcode = self._size = 0
        self._fin = self._compressed = False
        return True


class FrameWriter:
    """Makes the frames that are sent to one side; *masks* them where that is a server. In *counts* they are counted by opcode."""

    __slots__ = ("_counts", "_deflater", "_masks")

    def __init__(self, *, masks: bool, deflater: Deflater | None = None, counts: list[int] | None = None) -> None:
        self._masks, self._deflater = masks, deflater
        self._counts = [0] * OPCODES if counts is None else counts

    def message(self, data: str | bytes) -> bytes:
        """Return a message as one frame."""
        opcode, payload = (TEXT, data.encode()) if isinstance(data, str) else (BINARY, data)
        if self._deflater is None:
            return self._frame(_FIN | opcode, payload)
        return self._frame(_FIN | _RSV1 | opcode, self._deflater.message(payload))

    def ping(self, payload: bytes = b"") -> bytes:
        return self._frame(_FIN | PING, payload)

    def pong(self, payload: bytes) -> bytes:
        return self._frame(_FIN | PONG, payload)

    def close(self, close: Close) -> bytes:
        """Return a Close frame. Code 1005 makes it empty; a reason that is too long is cut at a character."""
        if close.code == _NO_STATUS:
            return self._frame(_FIN | CLOSE, b"")
        reason = close.reason.encode()[:_REASON_MOST].decode(errors="ignore").encode()
        return self._frame(_FIN | CLOSE, close.code.to_bytes(2) + reason)

    def _frame(self, first: int, payload: bytes) -> bytes:
        self._counts[first & 0x0F] += 1
        size, mask = len(payload), _MASKED if self._masks else 0
        if size < 126:
            head = bytes((first, mask | size))
        elif size < 65536:
            head = bytes((first, mask | 126)) + size.to_bytes(2)
        else:
            head = bytes((first, mask | 127)) + size.to_bytes(8)
        if not self._masks:
            return head + payload
        key = os.urandom(4)
        return head + key + apply_mask(payload, key)
