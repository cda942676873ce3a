"""Lines that were seen before: read once by the engine, the same ever after."""

from __future__ import annotations

import pytest

from gw.http.engines import choose
from gw.http.framing import Refusal
from gw.http.h1 import ReaderLimits
from gw.http.seen import SeenLines
from gw.limits import MAX_SEEN_LINES

HEAD = b"HTTP/1.1 200 OK\r\nServer: s\r\nContent-Type:  text/plain \r\nX-Secret: hush\r\nSet-Cookie: a=b\r\n\r\n"
FIELDS = [(b"server", b"s"), (b"content-type", b"text/plain"), (b"x-secret", b"hush"), (b"set-cookie", b"a=b")]


class Counting:
    """An engine that remembers what it was shown."""

    def __init__(self, engine: str) -> None:
        self._split = __import__(f"gw.http.{engine}", fromlist=["split_response"]).split_response
        self.shown: list[bytes] = []

    def __call__(self, head: bytes) -> list[tuple[bytes, bytes]]:
        self.shown.append(head)
        return self._split(head)


@pytest.mark.parametrize("engine", ["llhttp", "pure"])
def test_the_engine_is_shown_only_what_was_not_seen_and_the_result_is_the_same(engine):
    counting = Counting(engine)
    seen = SeenLines(counting)
    assert [seen(HEAD), seen(HEAD)] == [FIELDS, FIELDS]
    assert counting.shown == [HEAD, b"HTTP/1.1 200 OK\r\nX-Secret: hush\r\nSet-Cookie: a=b\r\n\r\n"]


@pytest.mark.parametrize("engine", ["llhttp", "pure"])
@pytest.mark.parametrize("line", [b"Server : s", b" Server: s", b"Server: a\nb", b"Server", b"Ser\0ver: s"])
def test_a_line_that_the_engine_refuses_is_refused_each_time_and_not_learned(engine, line):
    seen = SeenLines(Counting(engine))
    seen(HEAD)
    for _ in range(2):
        with pytest.raises(Refusal):
            seen(b"HTTP/1.1 200 OK\r\nServer: s\r\n" + line + b"\r\n\r\n")
    assert seen(HEAD) == FIELDS


def test_secrets_and_custom_fields_are_forgotten_with_their_message():
    seen = SeenLines(Counting("llhttp"))
    seen(HEAD)
    assert list(seen._seen) == [b"Server: s", b"Content-Type:  text/plain "]


def test_the_memory_is_bounded():
    seen = SeenLines(Counting("llhttp"))
    for n in range(MAX_SEEN_LINES * 2 + 1):
        assert seen(b"HTTP/1.1 200 OK\r\nDate: %d\r\n\r\n" % n) == [(b"date", b"%d" % n)]
        assert len(seen._seen) <= MAX_SEEN_LINES
    seen(b"HTTP/1.1 200 OK\r\nServer: %b\r\n\r\n" % (b"x" * 200))
    assert max(map(len, seen._seen)) < 200


def test_two_lengths_are_refused_although_each_line_was_seen():
    reader = choose("native").response_reader(ReaderLimits(0, 0, 0))
    one, two = b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n"
    for fields, refused in ((one, False), (one + two, True)):
        reader = choose("native").response_reader(ReaderLimits(0, 0, 0)) if refused else reader
        reader.expect("GET")
        reader.feed(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\nx")
        assert (type(reader.events[-1]).__name__ == "Malformed") is refused
