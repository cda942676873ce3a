"""HTTP/2 frames by hand, for what no engine would send (RFC 9113 section 4.1)."""

from __future__ import annotations

from hpack import Encoder

from gw.http.h2 import PREFACE

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 0x1, 0x1, 0x4, 0x8

GET = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")]
POST = [(":method", "POST"), *GET[1:]]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def head(stream: int, fields: list[tuple[str, str]], flags: int = END_HEADERS | END_STREAM) -> bytes:
    """A HEADERS frame, compressed without a table: it does not depend on those before it."""
    encoder = Encoder()
    encoder.header_table_size = 0
    return frame(HEADERS, flags, stream, encoder.encode(fields)[1:])  # without the table's size update


START = PREFACE + frame(SETTINGS)


def parsed(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Split *data* into frames: kind, flags, stream, payload."""
    found = []
    while data:
        end = 9 + int.from_bytes(data[:3])
        found.append((data[3], data[4], int.from_bytes(data[5:9]), data[9:end]))
        data = data[end:]
    return found


def codes(data: bytes) -> list[tuple[str, int, int]]:
    """What *data* says against the peer: ``("reset", stream, code)`` and ``("goaway", 0, code)``."""
    said = []
    for kind, _, stream, payload in parsed(data):
        if kind == RST_STREAM:
            said.append(("reset", stream, int.from_bytes(payload)))
        elif kind == GOAWAY:
            said.append(("goaway", 0, int.from_bytes(payload[4:8])))
    return said
