"""Both engines, and where it can be asked the parser that neither of us wrote, must read every stream alike.

Messages are generated, good and bad, then mutated, cut anywhere, and read by
both. Beside them stand the two libraries as they are, as judges of our own
reading of chunks: what we accept, both must accept, with the same result.
"""

from itertools import pairwise

import h11
import httptools
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st

from gw.filters import Request, Response
from gw.http.engines import choose
from gw.http.h1 import END, End, Malformed, ReaderLimits

LIMITS = ReaderLimits(400, 12, 120)
"""Small, so that generated heads reach them."""

NATIVE, PURE = choose("native"), choose("pure")

# --- messages ----------------------------------------------------------------

NAMES = [
    "Host Content-Length Transfer-Encoding Connection Expect Upgrade TE Trailer Content-Type Authorization Cookie",
    "host content-length transfer-encoding X-A X_B Keep-Alive Proxy-Connection Content-Length\x0b Transfer-Encoding\t",
]
VALUES = [
    "a a:80 [::1] 0 1 3 03 +3 3,3 chunked Chunked gzip,chunked identity close keep-alive upgrade,close TE host x-a",
    "100-continue websocket h2c x \xe9 \x00 \x7f a\rb a\nb",
]
names = st.sampled_from(" ".join(NAMES).split(" "))
values = st.sampled_from([*" ".join(VALUES).split(" "), "", "a, b", "\t", "b\r\n c", "x" * 300])
blanks = st.sampled_from([" ", " ", " ", "", "\t", "  "])
line_ends = st.sampled_from(["\r\n"] * 30 + ["\n", "\r", "\r\r\n", "\n\r\n"])
fields = st.lists(
    st.tuples(names, st.sampled_from([":"] * 20 + [" :", "", "::"]), blanks, values, blanks, line_ends), max_size=5
)

methods = st.sampled_from(
    ["GET", "GET", "POST", "HEAD", "OPTIONS", "CONNECT", "PURGE", "M-SEARCH", "PRI", "get", "SOURCE"]
)
targets = st.sampled_from(
    ["/"] * 8 + ["/a?b=c|", "*", "http://a/", "http://[::1]:1?x", "http://a|b/", "a:80", "", "//", '/"<>`', "/#"]
)
versions = st.sampled_from(
    ["HTTP/1.1"] * 8 + ["HTTP/1.0"] * 2 + ["HTTP/1.2", "HTTP/2.0", "HTTP/11", "http/1.1", "ICE/1.0", ""]
)
spaces = st.sampled_from([" "] * 20 + ["  ", "\t", ""])
statuses = st.sampled_from(["200"] * 8 + ["100", "101", "103", "204", "205", "304", "404", "999", "099", "20", "2000"])
reasons = st.sampled_from([" OK", " ", "", " \xe9\t", "  x", " a\x01"])

sizes = st.sampled_from(
    ["1", "01", "a", "A", "0x1", "+1", "1 ", " 1", "g", "1_0", "", "ffffffffffffffff", "0" * 15 + "1"]
)
extensions = st.sampled_from(
    [""] * 10 + [";a", ";a=b", ';a="b;\\""', ";", ";a=", "; a", ';a="', ";a\n", ";a\r", ';a="\xe9"', ";a;b"]
)
pieces = st.tuples(sizes, extensions, line_ends, st.sampled_from(["x", "0123456789", "\r\n", "0\r\n\r\n"]), line_ends)


def section(lines) -> str:
    return "".join("".join(line) for line in lines)


good_chunks = st.sampled_from(["1\r\nx\r\n", "a\r\n0123456789\r\n", '3;a="b"\r\n\r\n0\r\n'])
some_chunks = st.lists(st.one_of(good_chunks, good_chunks, pieces.map("".join)), max_size=4).map("".join)
last_chunks = st.sampled_from(["0\r\n"] * 6 + ["000;x\r\n", "0\n", "00\r\nX: y\r\n"])
trailers = st.one_of(st.just(""), fields.map(section))
chunked_bodies = st.tuples(some_chunks, last_chunks, trailers, line_ends).map("".join)
bodies = st.one_of(st.sampled_from(["", "abc", "\r\n\r\n"]), chunked_bodies)


@st.composite
def request(draw) -> str:
    start = [draw(methods), draw(spaces), draw(targets), draw(spaces), draw(versions), draw(line_ends)]
    host = draw(st.sampled_from(["Host: a\r\n"] * 9 + [""]))
    framing = draw(st.sampled_from(["", "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n"]))
    return "".join(start) + host + framing + section(draw(fields)) + draw(line_ends) + draw(bodies)


@st.composite
def response(draw) -> str:
    start = [draw(versions), draw(spaces), draw(statuses), draw(reasons), draw(line_ends)]
    framing = draw(st.sampled_from(["", "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n"]))
    return "".join(start) + framing + section(draw(fields)) + draw(line_ends) + draw(bodies)


@st.composite
def mutated(draw, messages) -> bytes:
    wire = bytearray("".join(draw(st.lists(messages, min_size=1, max_size=3))), "latin-1")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if wire:
            at = draw(st.integers(0, len(wire) - 1))
            wire[at : at + draw(st.integers(0, 2))] = draw(
                st.sampled_from([b"", b"\r", b"\n", b" ", b"\t", b"\0", b":", b"0", b"\x80", b"\x0b", b";", b","])
            )
    return bytes(wire)


cuts = st.lists(st.integers(0, 400), max_size=4)

# --- reading -----------------------------------------------------------------


def cut(wire: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(at), len(wire)]
    return [wire[a:b] for a, b in pairwise(edges)]


def slots(message: Request | Response) -> list[object]:
    """Return everything that is known of a head."""
    return [type(message).__name__, *(getattr(message, slot) for slot in type(message).__slots__)]


def events(reader) -> list[object]:
    told: list[object] = []
    for event in reader.events:
        if isinstance(event, bytes):
            assert event
            if told and isinstance(told[-1], bytes):
                told[-1] += event
            else:
                told.append(event)
        elif isinstance(event, Malformed):
            told.append((event.status, event.truncated))
        else:
            told.append(slots(event) if isinstance(event, Request | Response) else event.trailers)
    return told


def read_requests(engine, parts: list[bytes]) -> list[object]:
    reader = engine.request_reader(LIMITS)
    for part in parts:
        reader.feed(part)
    before = reader.in_head
    reader.feed_eof()
    return [*events(reader), before]


def read_response(engine, parts: list[bytes], method: str) -> list[object]:
    reader = engine.response_reader(LIMITS)
    reader.expect(method)
    for part in parts:
        reader.feed(part)
    reader.feed_eof()
    return [*events(reader), reader.spare]


@given(mutated(request()), cuts)
@example(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", [])
@example(b"GET / HTTP/3.0\r\nA: b\nC: d\r\n\r\n", [20])
@settings(deadline=None)
def test_requests_are_read_alike_by_both_engines_however_they_are_cut(wire, at):
    expected = read_requests(NATIVE, [wire])

    assert read_requests(PURE, [wire]) == expected
    assert read_requests(NATIVE, cut(wire, at)) == expected
    assert read_requests(PURE, cut(wire, at)) == expected
    assert read_requests(NATIVE, [wire[i : i + 1] for i in range(len(wire))]) == expected


@given(mutated(response()), cuts, st.sampled_from(["GET", "GET", "HEAD", "CONNECT"]))
@settings(deadline=None)
def test_responses_are_read_alike_by_both_engines_however_they_are_cut(wire, at, method):
    expected = read_response(NATIVE, [wire], method)

    assert read_response(PURE, [wire], method) == expected
    assert read_response(NATIVE, cut(wire, at), method) == expected
    assert read_response(PURE, cut(wire, at), method) == expected
    assert read_response(NATIVE, [wire[i : i + 1] for i in range(len(wire))], method) == expected


# --- the libraries as judges -------------------------------------------------

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


class Judge:
    """What llhttp says of a stream, left to itself."""

    def __init__(self) -> None:
        self.messages: list[list[object]] = []

    def on_url(self, url: bytes) -> None:
        self.messages.append([url, b"", []])

    def on_header(self, name: bytes, value: bytes) -> None:
        self.messages[-1][2].append((name.lower(), value.strip()))

    def on_body(self, data: bytes) -> None:
        self.messages[-1][1] += data


MOST_ARE_REFUSED = [HealthCheck.filter_too_much]
"""What was mutated is seldom accepted, and only what is accepted says something here."""


def judged_by_llhttp(wire: bytes) -> list[list[object]]:
    judge = Judge()
    httptools.HttpRequestParser(judge).feed_data(wire)
    return judge.messages


def judged_by_h11(wire: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(wire)
    connection.next_event()
    read = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        read += event.data
    return read, list(event.headers), connection.trailing_data[0]


@given(mutated(chunked_bodies))
@example(b'3;a="b;\\"";c\r\n\r\n0\r\n00;x\r\nA: b\r\n\r\n')
@settings(deadline=None, suppress_health_check=MOST_ARE_REFUSED)
def test_a_chunked_body_that_we_accept_both_libraries_read_as_we_do(wire):
    reader = NATIVE.request_reader(LIMITS)
    reader.feed(HEAD)
    used = 0
    while used < len(wire) and not isinstance(reader.events[-1], End):
        reader.feed(wire[used : used + 1])
        used += 1
    assume(isinstance(reader.events[-1], End))
    told = events(reader)
    content = told[1] if len(told) == 3 else b""
    fields = [] if told[-1] is None else told[-1].raw

    assert judged_by_h11(HEAD + wire) == (content, fields, wire[used:])
    assert judged_by_llhttp(HEAD + wire[:used]) == [
        [b"/", content, [(b"host", b"a"), (b"transfer-encoding", b"chunked"), *fields]]
    ]


@given(mutated(request()))
@settings(deadline=None, suppress_health_check=MOST_ARE_REFUSED)
def test_requests_that_we_accept_llhttp_reads_as_we_do_when_left_to_itself(wire):
    reader = PURE.request_reader(LIMITS)
    reader.feed(wire)
    heads = [event for event in reader.events if isinstance(event, Request)]
    assume(heads and reader.events[-1] is END and not reader.in_head)
    # After an upgrade, CONNECT or a last request llhttp goes on otherwise than a gateway must.
    assume(all(head.keep_alive and not head.upgrade and head.method != "CONNECT" for head in heads))

    judged = judged_by_llhttp(wire)
    assert [target for target, _, _ in judged][: len(heads)] == [head.target.encode() for head in heads]
    content = b"".join(event for event in reader.events if isinstance(event, bytes))
    assert b"".join(body for _, body, _ in judged) == content
