"""Whole streams through the readers, over both engines, each three ways: whole, byte by byte, with more behind it."""

import gc
import itertools
import weakref

import httptools
import pytest

from gw.filters import Headers, Request, Response
from gw.http.engines import choose
from gw.http.framing import Refusal
from gw.http.h1 import END, Malformed, ReaderLimits
from gw.limits import HEAD_SLACK, MAX_CHUNK_OVERHEAD, MAX_EMPTY_LINES, MAX_JOINED_WRITE, MAX_UNLIMITED_SECTION

AMPLE = ReaderLimits(8192, 100, 8192)

HOST = b"Host: a\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: n\r\n\r\n"


@pytest.fixture(params=["native", "pure"])
def engine(request):
    return choose(request.param)


def whole(reader, data):
    reader.feed(data)


def byte_by_byte(reader, data):
    for i in range(len(data)):
        reader.feed(data[i : i + 1])


def transcript(reader) -> list:
    """Return what the events say: heads as text, bodies joined, refusals as their status."""
    said = []
    for event in reader.events:
        if isinstance(event, bytes):
            assert event
            if said and isinstance(said[-1], bytes):
                said[-1] += event
            else:
                said.append(event)
        elif isinstance(event, Request):
            said.append(f"{event.method} {event.target}")
        elif isinstance(event, Response):
            said.append(event.status)
        elif isinstance(event, Malformed):
            said.append("truncated" if event.truncated else f"refused {event.status}")
        else:
            said.append("end" if event.trailers is None else dict(event.trailers))
    return said


ACCEPTED = {
    "a GET": (GET + b"\r\n", ["GET /", "end"]),
    "HTTP/1.0 without a host, kept open": (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", ["GET /", "end"]),
    "empty lines before": (b"\r\n\r\n" + GET + b"\r\n", ["GET /", "end"]),
    "a value of every kind": (GET + b"A:\r\nB: \t\r\nC:x\r\nD: \xe9\xff ~\t! \r\n\r\n", ["GET /", "end"]),
    "a body of a length": (GET + b"Content-Length: 5\r\n\r\nhello", ["GET /", b"hello", "end"]),
    "a body of no length": (GET + b"Content-Length: 0\r\n\r\n", ["GET /", "end"]),
    "a body that looks like a request": (
        GET + b"Content-Length: %d\r\n\r\n" % len(NEXT) + NEXT,
        ["GET /", NEXT, "end"],
    ),
    "chunks": (CHUNKED + b"5\r\nhello\r\n06\r\n world\r\n0\r\n\r\n", ["POST /", b"hello world", "end"]),
    "no chunk": (CHUNKED + b"0\r\n\r\n", ["POST /", "end"]),
    "many zeros at the end": (CHUNKED + b"1\r\na\r\n000\r\n\r\n", ["POST /", b"a", "end"]),
    "a chunk of line ends": (CHUNKED + b"8\r\n\r\n\r\n0\r\n\r\r\n0\r\n\r\n", ["POST /", b"\r\n\r\n0\r\n\r", "end"]),
    "upper and lower case sizes": (
        CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
        ["POST /", b"0123456789" * 2, "end"],
    ),
    "chunk extensions": (
        CHUNKED + b'1;a;b=c;d="e \\" ;\t"\r\nx\r\n0;z\r\n\r\n',
        ["POST /", b"x", "end"],
    ),
    "trailers": (
        CHUNKED + b"1\r\nx\r\n0\r\nA: b \r\nGrpc-Status:0\r\n\r\n",
        ["POST /", b"x", {"a": "b", "grpc-status": "0"}],
    ),
    "an upgrade, which is read as a request": (
        GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        ["GET /", "end"],
    ),
    "an upgrade with a body": (
        GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
        ["GET /", b"hi", "end"],
    ),
    "an absolute target": (b"GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n", ["GET http://a/b", "end"]),
}


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
@pytest.mark.parametrize("case", ACCEPTED)
def test_a_good_request_is_read_and_so_is_the_one_behind_it(engine, case, feed):
    wire, expected = ACCEPTED[case]
    for trailing, more in ((b"", []), (NEXT, ["GET /next", "end"])):
        reader = engine.request_reader(AMPLE)
        feed(reader, wire + trailing)
        reader.feed_eof()

        assert transcript(reader) == expected + more
        assert not reader.in_head


REFUSED = {
    # start lines
    "two blanks": (b"GET  / HTTP/1.1\r\n" + HOST, 400),
    "two blanks before the version": (b"GET /  HTTP/1.1\r\n" + HOST, 400),
    "a tab": (b"GET\t/ HTTP/1.1\r\n" + HOST, 400),
    "a blank first": (b" GET / HTTP/1.1\r\n" + HOST, 400),
    "a blank last": (b"GET / HTTP/1.1 \r\n" + HOST, 400),
    "no version": (b"GET /\r\n" + HOST, 400),
    "no target": (b"GET HTTP/1.1\r\n" + HOST, 400),
    "a version in lower case": (b"GET / http/1.1\r\n" + HOST, 400),
    "HTTP/1.10": (b"GET / HTTP/1.10\r\n" + HOST, 400),
    "HTTP/0.9": (b"GET / HTTP/0.9\r\n" + HOST, 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + HOST, 505),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n" + HOST, 505),
    "an HTTP/2 preface": (b"PRI * HTTP/2.0\r\n", 505),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "an unknown method": (b"BREW / HTTP/1.1\r\n" + HOST, 400),
    "a method in lower case": (b"get / HTTP/1.1\r\n" + HOST, 400),
    "a fragment": (b"GET /#a HTTP/1.1\r\n" + HOST, 400),
    "a target that is not ASCII": (b"GET /\xe9 HTTP/1.1\r\n" + HOST, 400),
    "a control character in the target": (b"GET /\x01 HTTP/1.1\r\n" + HOST, 400),
    "a target without a slash": (b"GET a HTTP/1.1\r\n" + HOST, 400),
    # line ends
    "bare LF after the start line": (b"GET / HTTP/1.1\n" + HOST, 400),
    "bare LF after a field": (GET + b"A: b\nC: d\r\n", 400),
    "bare LF as the empty line": (GET + b"\n", 400),
    "bare CR after the start line": (b"GET / HTTP/1.1\r" + HOST, 400),
    "bare CR in a value": (GET + b"A: b\rC: d\r\n", 400),
    "bare CR before CR LF": (GET + b"A: b\r\r\n", 400),
    "bare LF before the request": (b"\n" + GET, 400),
    "bare CR before the request": (b"\r" + GET, 400),
    "bare LF, and a version we do not speak": (b"GET / HTTP/3.0\r\nA: b\nC: d\r\n", 400),
    # fields
    "a folded line": (GET + b"A: b\r\n c\r\n", 400),
    "a fold with nothing before": (GET + b"A:\r\n\tc\r\n", 400),
    "a fold after the start line": (b"GET / HTTP/1.1\r\n Host: a\r\n", 400),
    "a blank before the colon": (GET + b"A : b\r\n", 400),
    "a tab before the colon": (GET + b"A\t: b\r\n", 400),
    "no colon": (GET + b"A\r\n", 400),
    "no name": (GET + b": b\r\n", 400),
    "a name that is no token": (GET + b"A(: b\r\n", 400),
    "a name that is not ASCII": (GET + b"\xc3\xa9: b\r\n", 400),
    "NUL in a value": (GET + b"A: \x00\r\n", 400),
    "a control character in a value": (GET + b"A: b\x0bc\r\n", 400),
    "DEL in a value": (GET + b"A: \x7f\r\n", 400),
    # meaning
    "no host": (b"GET / HTTP/1.1\r\nA: b\r\n", 400),
    "a length and chunks": (GET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
    "chunks and a length": (GET + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
    "two lengths": (GET + b"Content-Length: 5\r\nContent-Length: 6\r\n", 400),
    "a list of lengths": (GET + b"Content-Length: 5, 5\r\n", 400),
    "a signed length": (GET + b"Content-Length: +5\r\n", 400),
    "an endless length": (GET + b"Content-Length: 99999999999999999999\r\n", 400),
    "a length with a tab in it": (GET + b"Content-Length: 1\t1\r\n", 400),
    "a coding we do not know": (GET + b"Transfer-Encoding: xchunked\r\n", 400),
    "a coding before chunked": (GET + b"Transfer-Encoding: gzip, chunked\r\n", 400),
    "a coding after chunked": (GET + b"Transfer-Encoding: chunked, identity\r\n", 400),
    "two lines of codings": (GET + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", 400),
    "a coding behind a vertical tab": (GET + b"Transfer-Encoding:\x0bchunked\r\n", 400),
    "chunks on HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", 400),
    "another expectation": (GET + b"Expect: magic\r\n", 417),
    "too many fields": (GET + b"A: b\r\n" * 100, 431),
    "a field that is too long": (GET + b"A: " + b"b" * 8192 + b"\r\n", 431),
    "a head that never ends": (GET + b"A: " + b"b" * 10000, 431),
    "too many blanks": (GET + b"A:" + b" " * 9000 + b"\r\n", 431),
    "a bare LF within the limit": (GET + b"A: b\n" + b"b" * 10000, 400),
    "a bare LF beyond the limit": (GET + b"A: " + b"b" * 10000 + b"\n\r\n", 431),
    "too many empty lines": (b"\r\n" * (MAX_EMPTY_LINES + 1) + GET, 400),
}


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_head_is_refused_and_nothing_behind_it_is_read(engine, case, feed):
    wire, status = REFUSED[case]
    for trailing in (b"\r\n", b"\r\n" + NEXT, b"\r\n" + b"5\r\nhello\r\n0\r\n\r\n" + NEXT):
        reader = engine.request_reader(AMPLE)
        feed(reader, wire + trailing)

        assert transcript(reader) == [f"refused {status}"]
        reader.feed(NEXT)
        reader.feed_eof()
        assert len(reader.events) == 1


BAD_CHUNKS = {
    "no size": b"\r\nhello\r\n",
    "a prefix": b"0x5\r\nhello\r\n",
    "a sign": b"+5\r\nhello\r\n",
    "a minus": b"-5\r\nhello\r\n",
    "a blank before": b" 5\r\nhello\r\n",
    "a blank after": b"5 \r\nhello\r\n",
    "a tab after": b"5\t\r\nhello\r\n",
    "an underscore": b"1_0\r\n0123456789abcdef\r\n",
    "not a digit": b"g\r\nhello\r\n",
    "not an ASCII digit": b"\xb2\r\nhello\r\n",
    "too many digits": b"0000000000000005\r\nhello\r\n",
    "a size of 64 bits": b"ffffffffffffffff\r\nhello\r\n",
    "bare LF after the size": b"5\nhello\r\n",
    "bare CR after the size": b"5\rhello\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n",
    "bare CR in an extension": b"5;a\rb\r\nhello\r\n",
    "an extension without a name": b"5;\r\nhello\r\n",
    "an extension of blanks": b"5; a=b\r\nhello\r\n",
    "an extension with a blank value": b"5;a= b\r\nhello\r\n",
    "an open quote": b'5;a="b\r\nhello\r\n',
    "a line end in quotes": b'5;a="\r\n"\r\nhello\r\n',
    "too short a size": b"4\r\nhello\r\n",
    "too long a size": b"6\r\nhello\r\n0\r\n\r\n",
    "bare LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "bare CR after the data": b"5\r\nhello\r0\r\n\r\n",
    "no line end after the data": b"5\r\nhello0\r\n\r\n",
    "an endless extension": b"5;" + b"a" * (MAX_CHUNK_OVERHEAD + 16),
    "bare LF as the last line": b"0\r\n\n",
    "bare CR as the last line": b"0\r\n\rX",
    "a folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "a trailer without a colon": b"0\r\nGET / HTTP/1.1\r\n\r\n",
    "bare LF in a trailer": b"0\r\nA: b\nC: d\r\n\r\n",
    "a trailer that frames": b"0\r\nContent-Length: 5\r\n\r\n",
    "a control character in a trailer": b"0\r\nA: \x01\r\n\r\n",
}


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_a_bad_chunk_is_refused_in_requests_and_responses(engine, case, feed):
    for trailing in (b"", NEXT):
        requests, responses = engine.request_reader(AMPLE), engine.response_reader(AMPLE)
        responses.expect("GET")
        feed(requests, CHUNKED + b"1\r\n!\r\n" + BAD_CHUNKS[case] + trailing)
        feed(responses, CHUNKS + b"1\r\n!\r\n" + BAD_CHUNKS[case] + trailing)

        assert (transcript(requests)[0], transcript(requests)[-1]) == ("POST /", "refused 400")
        assert (transcript(responses)[0], transcript(responses)[-1]) == (200, "refused 502")


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
def test_chunk_overhead_is_counted_over_the_whole_body(engine, feed):
    line = b"1;" + b"a" * 1012 + b"\r\n"
    chunk = line + b"x\r\n"
    fitting = MAX_CHUNK_OVERHEAD // (len(line) - 16)

    reader = engine.request_reader(AMPLE)
    feed(reader, CHUNKED + chunk * fitting + b"0\r\n\r\n")
    assert transcript(reader) == ["POST /", b"x" * fitting, "end"]

    feed(reader, CHUNKED + chunk * (fitting + 1) + b"0\r\n\r\n")
    assert transcript(reader)[-3:] == ["POST /", b"x" * fitting, "refused 400"]


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
def test_trailers_have_limits_of_their_own(engine, feed):
    limits = ReaderLimits(8192, 3, 20)
    good = CHUNKED + b"0\r\nA: 0123456789\r\n\r\n"
    for bad in (b"0\r\nA: 0123456789abcdef\r\n\r\n", b"0\r\n" + b"A:\r\n" * 4 + b"\r\n", b"0\r\nA: " + b"b" * 1000):
        reader = engine.request_reader(limits)
        feed(reader, good + CHUNKED + bad)

        assert transcript(reader) == ["POST /", {"a": "0123456789"}, "POST /", "refused 431"]


def test_empty_lines_are_counted_for_each_request_anew(engine):
    reader = engine.request_reader(AMPLE)
    reader.feed((b"\r\n" * MAX_EMPTY_LINES + NEXT) * 3)

    assert transcript(reader) == ["GET /next", "end"] * 3


def test_a_lenient_build_of_llhttp_does_not_make_us_lenient(monkeypatch):
    class Lenient(httptools.HttpRequestParser):
        def __init__(self, protocol):
            super().__init__(protocol)
            self.set_dangerous_leniencies(lenient_headers=True, lenient_optional_cr_before_lf=True)

    monkeypatch.setattr(httptools, "HttpRequestParser", Lenient)
    for lenient in (GET + b"A: b\r\n c\r\n\r\n", GET + b"A: b\n\r\n\r\n"):
        reader = choose("native").request_reader(AMPLE)
        reader.feed(lenient)

        assert transcript(reader) == ["refused 400"]


def test_a_head_that_h11_reads_otherwise_is_refused():
    with pytest.raises(Refusal, match="more than one reading"):
        choose("pure").split_request(GET + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n")


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
def test_blanks_count_as_far_as_the_slack_goes(engine, feed):
    limits = ReaderLimits(100, 0, 100)
    for over in (0, 1):
        bound = 100 + HEAD_SLACK + over
        head = GET + b"A:%s\r\n\r\n" % (b" " * (bound - len(GET) - 6))
        trailers = b"A:%s\r\n\r\n" % (b" " * (bound - 6))
        assert len(head) == len(trailers) == bound
        for wire in (head, CHUNKED + b"0\r\n" + trailers):
            reader = engine.request_reader(limits)
            feed(reader, wire)

            assert ("refused 431" in transcript(reader)) is bool(over)


def test_what_is_done_to_one_request_does_not_show_on_the_next(engine):
    reader = engine.request_reader(AMPLE)
    wire = (
        GET + b"X: y\r\nConnection: x-a, upgrade\r\nUpgrade: h2c\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi"
    )
    reader.feed(wire * 2)
    first, _, _, second, *_ = reader.events
    fresh = {slot: getattr(second, slot) for slot in Request.__slots__ if slot not in {"headers", "version"}}
    for request in (first, second):
        request.headers.set("x", "changed")
        for slot, value in fresh.items():
            setattr(request, slot, not value if isinstance(value, bool) else None)
    reader.feed(wire)

    third = reader.events[6]
    assert {slot: getattr(third, slot) for slot in fresh} == fresh
    assert third.headers.get("x") == "y"
    assert transcript(reader)[-2:] == [b"hi", "end"]


def test_what_is_done_to_one_response_does_not_show_on_the_next(engine):
    reader = engine.response_reader(AMPLE)
    wire = b"HTTP/1.1 200 Fine\r\nX: y\r\nConnection: x-a, close\r\nContent-Length: 2\r\n\r\nhi"
    seen = []
    for _ in range(4):
        reader.expect("GET")
        reader.feed(wire)
        response = reader.events[-3]
        seen.append({slot: getattr(response, slot) for slot in Response.__slots__ if slot != "headers"})
        assert response.headers.get("x") == "y"
        response.headers.set("x", "changed")
        for slot, value in seen[0].items():
            setattr(response, slot, not value if isinstance(value, bool) else None)

    assert seen == [seen[0]] * 4


ANSWERS = [
    ("GET", b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 2\r\n\r\n", b"hi"),
    ("HEAD", b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 2\r\n\r\n", b""),
    ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ("GET", b"HTTP/1.1 103 Early Hints\r\n\r\n" + CHUNKS, b"2\r\nhi\r\n0\r\n\r\n"),
]


@pytest.mark.parametrize("first", ANSWERS)
def test_a_response_means_the_same_whatever_came_before_it(engine, first):
    def read(reader, answer):
        method, head, body = answer
        reader.events.clear()
        reader.expect(method)
        reader.feed(head + body)
        said = transcript(reader)
        return said, [
            {slot: getattr(e, slot) for slot in Response.__slots__} for e in reader.events if type(e) is Response
        ]

    for second, third, fourth in itertools.product(ANSWERS, repeat=3):
        reader = engine.response_reader(AMPLE)
        for answer in (first, first, second, third, fourth):
            assert read(reader, answer) == read(engine.response_reader(AMPLE), answer)


def test_chunks_of_one_feed_are_handed_on_as_one(engine):
    reader = engine.request_reader(AMPLE)
    reader.feed(CHUNKED + b"1\r\na\r\n" * 50 + b"3\r\nb")
    reader.feed(b"cd\r\n0\r\n\r\n")

    assert list(reader.events)[1:] == [b"a" * 50 + b"b", b"cd", END]


def test_a_body_piece_is_handed_on_without_a_copy(engine):
    reader = engine.request_reader(AMPLE)
    piece = b"x" * 1000
    reader.feed(GET + b"Content-Length: 1000\r\n\r\n")
    reader.feed(piece)

    assert reader.events[1] is piece


@pytest.mark.parametrize("size", [MAX_JOINED_WRITE, MAX_JOINED_WRITE + 1])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_large_response_is_not_copied_out_of_the_read_that_brought_its_head(engine, size, missing):
    reader = engine.response_reader(AMPLE)
    reader.expect("GET")
    data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    read = data[: len(data) - missing]
    reader.feed(read)
    reader.feed(data[len(read) :])

    piece = reader.events[1]
    assert piece == b"x" * (size - missing)
    assert (isinstance(piece, memoryview) and piece.obj is read) is (size > MAX_JOINED_WRITE)
    assert list(reader.events)[2:] == [b"x"] * missing + [END]


def test_names_are_lower_case_and_values_bare(engine):
    reader = engine.request_reader(AMPLE)
    reader.feed(GET + b"X-AbC:\t v  w \t\r\nx-abc:2\r\n\r\n")

    assert reader.events[0].headers.raw == [(b"host", b"a"), (b"x-abc", b"v  w"), (b"x-abc", b"2")]


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
@pytest.mark.parametrize(
    "last",
    [
        GET + b"Connection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_after_the_last_request_of_a_connection_nothing_is_read(engine, last, feed):
    reader = engine.request_reader(AMPLE)
    feed(reader, last + NEXT)
    reader.feed_eof()

    assert len(reader.events) == 2
    assert reader.events[1] is END


@pytest.mark.parametrize("end", range(1, len(GET) + 2))
def test_a_request_cut_in_its_head_is_truncated(engine, end):
    reader = engine.request_reader(AMPLE)
    reader.feed((GET + b"\r\n")[:end])
    assert reader.in_head
    reader.feed_eof()

    assert transcript(reader) == ["truncated"]


@pytest.mark.parametrize("body", [b"", b"5", b"5\r\nhel", b"5\r\nhello\r", b"5\r\nhello\r\n0\r\n", b"0\r\nA: b\r\n"])
def test_a_message_cut_in_its_body_is_truncated(engine, body):
    requests, responses = engine.request_reader(AMPLE), engine.response_reader(AMPLE)
    responses.expect("GET")
    requests.feed(CHUNKED + body)
    responses.feed(CHUNKS + body)
    requests.feed_eof()
    responses.feed_eof()

    assert transcript(requests)[-1] == "truncated"
    assert transcript(responses)[-1] == "truncated"


def test_the_end_of_an_idle_connection_is_no_event(engine):
    reader = engine.request_reader(AMPLE)
    reader.feed_eof()
    reader.feed(NEXT)

    assert not reader.events


@pytest.mark.parametrize("junk", [b"A: " + b"b" * 100, b"A: b\r\n" * 100])
def test_a_head_that_never_ends_takes_a_bounded_buffer(engine, junk):
    for limit, bound in ((1000, 1000 + HEAD_SLACK), (0, MAX_UNLIMITED_SECTION)):
        reader = engine.request_reader(ReaderLimits(limit, 0, 0))
        reader.feed(GET)
        fed = 0
        while not reader.events:
            reader.feed(junk)
            fed += len(junk)
            assert len(reader._buffer) <= bound
        assert transcript(reader) == ["refused 431"]
        assert fed <= bound + len(junk)


def test_a_reader_goes_without_the_garbage_collector(engine):
    class Watched(type(engine.request_reader(AMPLE))):
        pass  # with a weak reference, which slots leave out

    gc.disable()
    try:
        reader = Watched(engine.split_request, AMPLE)
        reader.feed(GET + b"\r\n" + GET)
        gone = weakref.ref(reader)
        del reader
        assert gone() is None
    finally:
        gc.enable()


RESPONSES = {
    "a length": ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", [200, b"hello", "end"]),
    "no reason": ("GET", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", [200, "end"]),
    "an unusual status": ("GET", b"HTTP/1.0 999 \xe9\t!\r\nContent-Length: 0\r\n\r\n", [999, "end"]),
    "chunks and trailers": ("GET", CHUNKS + b"1\r\na\r\n0\r\nA: b\r\n\r\n", [200, b"a", {"a": "b"}]),
    "HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", [200, "end"]),
    "HEAD and chunks": ("HEAD", CHUNKS, [200, "end"]),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", [204, "end"]),
    "304 with a length": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", [304, "end"]),
    "interim responses": (
        "GET",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 E\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n!",
        [100, 103, 200, b"!", "end"],
    ),
    "CONNECT": ("CONNECT", b"HTTP/1.1 200 OK\r\n\r\n", [200, "end"]),
    "an upgrade offered": (
        "GET",
        b"HTTP/1.1 426 U\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
        [426, b"hi", "end"],
    ),
}


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
@pytest.mark.parametrize("case", RESPONSES)
def test_a_good_response_is_read_and_what_follows_is_spare(engine, case, feed):
    method, wire, expected = RESPONSES[case]
    reader = engine.response_reader(AMPLE)
    for trailing in (b"", b"HTTP/1.1 200 OK\r\n"):
        reader.expect(method)
        assert not reader.spare
        feed(reader, wire + trailing)

        assert transcript(reader) == expected
        assert reader.spare is bool(trailing)
        reader.events.clear()
    reader.feed_eof()
    assert not reader.events


BAD_RESPONSES = {
    "an empty line first": b"\r\nHTTP/1.1 200 OK\r\n",
    "another protocol": b"ICY 200 OK\r\n",
    "a request": b"GET / HTTP/1.1\r\n",
    "junk": b"junk",
    "HTTP/2": b"HTTP/2 200 OK\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n",
    "two digits": b"HTTP/1.1 20 OK\r\n",
    "four digits": b"HTTP/1.1 2000 OK\r\n",
    "a status below 100": b"HTTP/1.1 099 OK\r\n",
    "two blanks": b"HTTP/1.1  200 OK\r\n",
    "a control character in the reason": b"HTTP/1.1 200 O\x01K\r\n",
    "bare CR in the reason": b"HTTP/1.1 200 O\rK\r\n",
    "bare LF": b"HTTP/1.1 200 OK\n",
    "a folded line": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n",
    "a blank before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n",
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n",
    "chunks on HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
    "a body in 204": b"HTTP/1.1 204 No Content\r\nContent-Length: 1\r\n",
    "a body in 100": b"HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n",
    "a head too long": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 8192 + b"\r\n",
}


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
@pytest.mark.parametrize("case", BAD_RESPONSES)
def test_a_bad_response_is_a_bad_gateway(engine, case, feed):
    for trailing in (b"\r\n", b"\r\n0\r\n\r\nhello"):
        reader = engine.response_reader(AMPLE)
        reader.expect("GET")
        feed(reader, BAD_RESPONSES[case] + trailing)

        assert transcript(reader) == ["refused 502"]
        assert reader.events[0].message != "Request Header Fields Too Large"


@pytest.mark.parametrize("feed", [whole, byte_by_byte])
def test_a_body_of_no_declared_length_ends_with_the_connection(engine, feed):
    reader = engine.response_reader(AMPLE)
    reader.expect("GET")
    feed(reader, b"HTTP/1.1 200 OK\r\n\r\nhel")
    feed(reader, b"lo\r\n\r\n")
    assert transcript(reader) == [200, b"hello\r\n\r\n"]
    reader.feed_eof()

    assert transcript(reader) == [200, b"hello\r\n\r\n", "end"]


@pytest.mark.parametrize(
    "wire", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n!"]
)
def test_a_response_that_does_not_come_is_truncated(engine, wire):
    reader = engine.response_reader(AMPLE)
    reader.expect("GET")
    reader.feed(wire)
    reader.feed_eof()

    assert reader.events[-1] == Malformed(
        "The upstream closed the connection before its response was complete", 502, True
    )


def test_bytes_that_nobody_asked_for_are_spare_and_dropped(engine):
    reader = engine.response_reader(AMPLE)
    reader.feed(b"HTTP/1.1 408 Request Timeout\r\n\r\n")

    assert reader.spare
    assert not reader.events


def test_a_connection_that_went_wrong_stays_wrong(engine):
    reader = engine.response_reader(AMPLE)
    reader.expect("GET")
    reader.feed(b"junk")
    reader.expect("GET")
    reader.feed(CHUNKS + b"0\r\n\r\n")

    assert transcript(reader) == ["refused 502"]


def test_pipelined_requests_are_queued_in_order(engine):
    reader = engine.request_reader(AMPLE)
    reader.feed(NEXT * 3 + CHUNKED + b"1\r\na\r\n0\r\n\r\n" + GET)

    assert transcript(reader) == ["GET /next", "end"] * 3 + ["POST /", b"a", "end"]
    assert reader.in_head
    assert isinstance(reader.events[0].headers, Headers)
