"""RFC 9113 and RFC 7541, section by section, against the whole gateway: what each offence is answered with.

Every case is what a conformance suite sends: one connection, some frames, and the verdict. A stream error may be
answered as a connection error (RFC 9113 section 5.4.2), and a connection error by closing only (section 5.4.1).
"""

from __future__ import annotations

import pytest
from frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    POST,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    START,
    WINDOW_UPDATE,
    codes,
    frame,
    head,
    parsed,
)
from hpack import Encoder

from gw.http.h2 import Code
from gw.testing.gateway import in_memory

PROTOCOL, CLOSED, SIZE, FLOW, COMPRESSION = (
    Code.PROTOCOL_ERROR,
    Code.STREAM_CLOSED,
    Code.FRAME_SIZE_ERROR,
    Code.FLOW_CONTROL_ERROR,
    Code.COMPRESSION_ERROR,
)
BLOCK = head(1, GET)[9:]
BODY = head(1, POST, END_HEADERS)
DONE = head(1, GET)


async def conversation(engine: str, *steps: bytes) -> list[tuple[int, int, int, bytes]]:
    """Send each step after the answer to the one before it; return every frame of the gateway's."""
    async with in_memory(engine=engine) as gateway:
        stream = gateway.connect()
        said = b""
        for step in (START, *steps):
            stream.write(step)
            await gateway.network.settle()
            said += stream.take()
        await gateway.network.advance(1)
        said += stream.take()
        stream.abort()
        assert await gateway.leftovers() == []
    return parsed(said)


def raw_codes(frames: list[tuple[int, int, int, bytes]]) -> list[tuple[str, int, int]]:
    return codes(b"".join(frame(kind, flags, stream, payload) for kind, flags, stream, payload in frames))


CONNECTION_ERRORS = [
    ("3.4 an invalid preface", [frame(SETTINGS), b"INVALID CONNECTION PREFACE\r\n\r\n"], None),
    ("4.1 nothing but garbage", [b"\xff" * 64], None),
    ("4.2 HEADERS over the size", [frame(HEADERS, 5, 1, bytes(16_385))], SIZE),
    ("4.3 an invalid block", [frame(HEADERS, 5, 1, b"\xff\xff\xff\xff\xff")], COMPRESSION),
    ("4.3 PRIORITY within a block", [frame(HEADERS, 1, 1, BLOCK), frame(PRIORITY, 0, 1, bytes(5))], PROTOCOL),
    ("4.3 another stream's HEADERS within a block", [frame(HEADERS, 1, 1, BLOCK), head(3, GET)], PROTOCOL),
    ("5.1 idle: DATA", [frame(DATA, 1, 1, b"x")], PROTOCOL),
    ("5.1 idle: RST_STREAM", [frame(RST_STREAM, 0, 1, bytes(4))], PROTOCOL),
    ("5.1 idle: WINDOW_UPDATE", [frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x64")], PROTOCOL),
    ("5.1 idle: CONTINUATION", [frame(CONTINUATION, 4, 1, BLOCK)], PROTOCOL),
    ("5.1 closed: HEADERS", [DONE, head(1, GET)], CLOSED),
    ("5.1.1 an even number", [head(2, GET)], PROTOCOL),
    ("5.1.1 a number that went by", [head(5, GET), head(3, GET)], PROTOCOL),
    ("5.4.1 a PING of a wrong size", [frame(PING, 0, 0, bytes(6))], SIZE),
    ("5.5 an extension frame within a block", [frame(HEADERS, 1, 1, BLOCK), frame(0x16, 0, 0, bytes(8))], PROTOCOL),
    ("6.1 DATA on stream 0", [frame(DATA, 1, 0, b"x")], PROTOCOL),
    ("6.1 padding that is longer", [BODY, frame(DATA, PADDED | END_STREAM, 1, b"\x06test")], PROTOCOL),
    ("6.2 HEADERS without their end, then another stream's", [frame(HEADERS, 0, 1, BLOCK), head(3, GET)], PROTOCOL),
    ("6.2 HEADERS on stream 0", [head(0, GET)], PROTOCOL),
    ("6.2 padding that is longer", [frame(HEADERS, PADDED | 5, 1, bytes([len(BLOCK) + 1]) + BLOCK)], PROTOCOL),
    ("6.3 PRIORITY on stream 0", [frame(PRIORITY, 0, 0, b"\0\0\0\1\0")], PROTOCOL),
    ("6.4 RST_STREAM on stream 0", [frame(RST_STREAM, 0, 0, bytes(4))], PROTOCOL),
    ("6.4 RST_STREAM of a wrong size", [BODY, frame(RST_STREAM, 0, 1, bytes(3))], SIZE),
    ("6.5 an ACK with a payload", [frame(SETTINGS, 1, 0, b"\0\0\0\0\0\0")], SIZE),
    ("6.5 SETTINGS on a stream", [frame(SETTINGS, 0, 1, b"\0\3\0\0\0\x64")], PROTOCOL),
    ("6.5 SETTINGS of a wrong size", [frame(SETTINGS, 0, 0, b"\0\3\0")], SIZE),
    ("6.5.2 ENABLE_PUSH of 2", [frame(SETTINGS, 0, 0, b"\0\2\0\0\0\2")], PROTOCOL),
    ("6.5.2 INITIAL_WINDOW_SIZE of 2^31", [frame(SETTINGS, 0, 0, b"\0\4\x80\0\0\0")], FLOW),
    ("6.5.2 MAX_FRAME_SIZE below", [frame(SETTINGS, 0, 0, b"\0\5\0\0\x3f\xff")], PROTOCOL),
    ("6.5.2 MAX_FRAME_SIZE above", [frame(SETTINGS, 0, 0, b"\0\5\x01\0\0\0")], PROTOCOL),
    ("6.7 PING on a stream", [frame(PING, 0, 1, bytes(8))], PROTOCOL),
    ("6.8 GOAWAY on a stream", [frame(GOAWAY, 0, 1, bytes(8))], PROTOCOL),
    ("6.9 WINDOW_UPDATE of 0", [frame(WINDOW_UPDATE, 0, 0, bytes(4))], PROTOCOL),
    ("6.9 WINDOW_UPDATE of a wrong size", [frame(WINDOW_UPDATE, 0, 0, bytes(3))], SIZE),
    ("6.9.1 the connection's window over 2^31-1", [frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2], FLOW),
    (
        "6.10 CONTINUATION on stream 0",
        [frame(HEADERS, 1, 1, BLOCK[:1]), frame(CONTINUATION, 4, 0, BLOCK[1:])],
        PROTOCOL,
    ),
    ("6.10 CONTINUATION after the block's end", [head(1, POST, 4), frame(CONTINUATION, 4, 1, BLOCK)], PROTOCOL),
    ("6.10 CONTINUATION after DATA", [head(1, POST, 4), frame(DATA, 0, 1, b"x"), frame(CONTINUATION, 4, 1)], PROTOCOL),
    ("8.4 PUSH_PROMISE", [BODY, frame(PUSH_PROMISE, 4, 1, b"\0\0\0\2" + BLOCK)], PROTOCOL),
    ("7541 2.3.3 an index that is not there", [frame(HEADERS, 5, 1, BLOCK + b"\xc6")], COMPRESSION),
    ("7541 4.2 a size update at the end", [frame(HEADERS, 5, 1, BLOCK + b"\x20")], COMPRESSION),
    (
        "7541 5.2 EOS in a string",
        [frame(HEADERS, 5, 1, BLOCK + b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f")],
        COMPRESSION,
    ),
    (
        "7541 5.2 padding of more than 7 bits",
        [frame(HEADERS, 5, 1, BLOCK + b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff")],
        COMPRESSION,
    ),
    (
        "7541 5.2 padding of zeros",
        [frame(HEADERS, 5, 1, BLOCK + b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90")],
        COMPRESSION,
    ),
    ("7541 6.1 index 0", [frame(HEADERS, 5, 1, BLOCK + b"\x80")], COMPRESSION),
    ("7541 6.3 a size over what was said", [frame(HEADERS, 5, 1, b"\x3f\xe1\xff\xff\x07" + BLOCK)], COMPRESSION),
]

STREAM_ERRORS = [
    ("5.1 half-closed: DATA", [DONE, frame(DATA, 1, 1, b"x")], CLOSED),
    ("5.1 closed by RST_STREAM: DATA", [BODY, frame(RST_STREAM, 0, 1, b"\0\0\0\x08"), frame(DATA, 1, 1, b"x")], CLOSED),
    ("5.1 closed by RST_STREAM: HEADERS", [BODY, frame(RST_STREAM, 0, 1, b"\0\0\0\x08"), head(1, GET)], CLOSED),
    ("6.9 WINDOW_UPDATE of 0", [BODY, frame(WINDOW_UPDATE, 0, 1, bytes(4))], PROTOCOL),
    ("6.9.1 a window over 2^31-1", [BODY, frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff") * 2], FLOW),
    ("8.1 trailers without an end", [BODY, head(1, [("x-a", "1")], END_HEADERS)], PROTOCOL),
    ("8.2 a name in upper case", [head(1, [*GET, ("X-A", "1")])], PROTOCOL),
    ("8.3 an unknown pseudo-header", [head(1, [*GET, (":test", "1")])], PROTOCOL),
    ("8.3 a pseudo-header of responses", [head(1, [*GET, (":status", "200")])], PROTOCOL),
    ("8.3 a pseudo-header in trailers", [BODY, head(1, [(":method", "POST")])], PROTOCOL),
    ("8.3 a pseudo-header after a field", [head(1, [*GET[:3], ("x-a", "1"), GET[3]])], PROTOCOL),
    ("8.2.2 connection", [head(1, [*GET, ("connection", "keep-alive")])], PROTOCOL),
    ("8.2.2 te other than trailers", [head(1, [*GET, ("te", "trailers, deflate")])], PROTOCOL),
    ("8.3.1 an empty :path", [head(1, [*GET[:3], (":path", "")])], PROTOCOL),
    ("8.3.1 no :method", [head(1, GET[1:])], PROTOCOL),
    ("8.3.1 no :scheme", [head(1, [GET[0], *GET[2:]])], PROTOCOL),
    ("8.3.1 no :path", [head(1, GET[:3])], PROTOCOL),
    ("8.3.1 :method twice", [head(1, [GET[0], *GET])], PROTOCOL),
    ("8.3.1 :scheme twice", [head(1, [GET[1], *GET])], PROTOCOL),
    ("8.3.1 :path twice", [head(1, [GET[3], *GET])], PROTOCOL),
    (
        "8.1.1 a length that DATA does not have",
        [head(1, [*POST, ("content-length", "1")], 4), frame(DATA, 1, 1, b"test")],
        PROTOCOL,
    ),
    (
        "8.1.1 a length that several DATA do not have",
        [head(1, [*POST, ("content-length", "1")], 4), frame(DATA, 0, 1, b"test"), frame(DATA, 1, 1, b"test")],
        PROTOCOL,
    ),
]

FINE = [
    ("4.1 a frame of an unknown type", [frame(0x16, 0, 0, bytes(8)), DONE]),
    ("4.1 undefined flags", [frame(PING, 0x16, 0, bytes(8)), DONE]),
    ("4.1 the reserved bit", [frame(PING, 0, 1 << 31, bytes(8)), DONE]),
    ("4.2 DATA of the largest size", [BODY, frame(DATA, 0, 1, bytes(16_384)), frame(DATA, 1, 1, b"x")]),
    ("5.1 closed: PRIORITY", [DONE, frame(PRIORITY, 0, 1, b"\0\0\0\0\xff")]),
    ("5.1 idle: PRIORITY", [frame(PRIORITY, 0, 1, b"\0\0\0\0\xff"), DONE]),
    ("6.1 padded DATA", [BODY, frame(DATA, PADDED | END_STREAM, 1, b"\x03test\0\0\0")]),
    ("6.2 padded HEADERS", [frame(HEADERS, PADDED | 5, 1, b"\x03" + BLOCK + bytes(3))]),
    ("6.2 HEADERS with a priority", [frame(HEADERS, 0x25, 1, b"\0\0\0\0\xff" + BLOCK)]),
    ("6.5.3 unknown settings", [frame(SETTINGS, 0, 0, b"\0\xff\0\0\0\1"), DONE]),
    ("6.8 GOAWAY, and the streams go on", [BODY, frame(GOAWAY, 0, 0, bytes(8)), frame(DATA, 1, 1, b"x")]),
    (
        "6.10 several CONTINUATIONs",
        [frame(HEADERS, 1, 1, BLOCK[:1]), frame(CONTINUATION, 0, 1, BLOCK[1:2]), frame(CONTINUATION, 4, 1, BLOCK[2:])],
    ),
    ("7 an unknown error code in GOAWAY", [BODY, frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\xff"), frame(DATA, 1, 1, b"x")]),
    ("7 an unknown error code in RST_STREAM", [BODY, frame(RST_STREAM, 0, 1, b"\0\0\0\xff"), head(3, GET)]),
    ("8.1 trailers", [BODY, frame(DATA, 0, 1, b"x"), head(1, [("x-a", "1")])]),
    ("7541 4.2 a size update at the beginning", [frame(HEADERS, 5, 1, b"\x20" + BLOCK)]),
]


@pytest.mark.parametrize(("why", "steps", "code"), CONNECTION_ERRORS, ids=[why for why, *_ in CONNECTION_ERRORS])
async def test_an_error_of_the_connection(engine, why, steps, code):
    found = raw_codes(await conversation(engine, *steps))
    assert [kind for kind, *_ in found] == ["goaway"]
    assert code is None or found[0][2] == code


@pytest.mark.parametrize(("why", "steps", "code"), STREAM_ERRORS, ids=[why for why, *_ in STREAM_ERRORS])
async def test_an_error_of_a_stream(engine, why, steps, code):
    found = raw_codes(await conversation(engine, *steps))
    assert {number for _, number, _ in found} in ({1}, {0})
    assert found[0][2] == code  # h2 repeats itself for what comes after


@pytest.mark.parametrize(("why", "steps"), FINE, ids=[why for why, *_ in FINE])
async def test_what_is_allowed(engine, why, steps):
    frames = await conversation(engine, *steps)
    assert raw_codes(frames) == []
    assert [flags & END_HEADERS for kind, flags, _, _ in frames if kind == HEADERS] == [END_HEADERS], "an answer"


@pytest.mark.parametrize(
    "dependent", [frame(HEADERS, 0x25, 1, b"\0\0\0\1\xff" + BLOCK), frame(PRIORITY, 0, 1, b"\0\0\0\1\xff")]
)
async def test_a_stream_that_depends_on_itself_is_no_harm(engine, dependent):
    """RFC 7540 section 5.3.1 made it an error; RFC 9113 has dropped priorities, and either answer is right."""
    found = raw_codes(await conversation(engine, dependent))
    assert found in ([], [("reset", 1, PROTOCOL)], [("goaway", 0, PROTOCOL)])


async def test_settings_are_acknowledged_and_pings_answered(engine):
    frames = await conversation(engine, frame(SETTINGS, 0, 0, b"\0\3\0\0\0\1"), frame(PING, 0, 0, b"01234567"))
    assert [(kind, payload) for kind, flags, _, payload in frames if flags & 1 and kind in (SETTINGS, PING)] == [
        (SETTINGS, b""),
        (SETTINGS, b""),
        (PING, b"01234567"),
    ]


async def test_a_ping_that_is_an_answer_is_not_answered(engine):
    frames = await conversation(engine, frame(PING, 1, 0, b"unasked!"), frame(PING, 0, 0, b"01234567"))
    assert [payload for kind, _, _, payload in frames if kind == PING] == [b"01234567"]


@pytest.mark.parametrize(
    ("steps", "sizes"),
    [
        ([frame(SETTINGS, 0, 0, b"\0\4\0\0\0\1"), DONE], [1]),
        ([frame(SETTINGS, 0, 0, b"\0\4\0\0\0\0"), DONE, frame(SETTINGS, 0, 0, b"\0\4\0\0\0\1")], [1]),
        (
            [
                frame(SETTINGS, 0, 0, b"\0\4\0\0\0\1"),
                DONE,
                frame(SETTINGS, 0, 0, b"\0\4\0\0\0\0"),
                frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\2"),
            ],
            [1, 1],
        ),
    ],
    ids=["a window of one byte", "one that grows from nothing", "one that became negative"],
)
async def test_data_keeps_to_the_window(engine, steps, sizes):
    frames = await conversation(engine, *steps)
    assert [len(payload) for kind, _, _, payload in frames if kind == DATA] == sizes


async def test_more_streams_than_allowed(engine):
    async with in_memory({"http2": {"max_concurrent_streams": 3}}, engine=engine) as gateway:
        stream = gateway.connect()
        stream.write(START + b"".join(head(number, POST, END_HEADERS) for number in range(1, 9, 2)))
        await gateway.network.settle()
        (found,) = codes(stream.take())
        assert found in (("reset", 7, Code.REFUSED_STREAM), ("reset", 7, PROTOCOL), ("goaway", 0, PROTOCOL))


def test_the_blocks_here_are_what_they_say():
    assert Encoder().encode(GET)
