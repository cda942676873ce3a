"""Heads of HTTP/2 requests on one connection: what is known by heart means what it meant when it was read."""

import itertools

import pytest

from gw.filters import Request
from gw.http.framing import Refusal
from gw.http.h1 import ReaderLimits
from gw.http.pseudo import RequestHeads, StreamError

METHOD, SCHEME, HOST, PATH = (b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")
USUAL = (METHOD, SCHEME, HOST, PATH, (b"x", b"y"))
LIMITS = ReaderLimits(300, 10, 300)
LIST_SIZE = 400


def path(value):
    return (METHOD, SCHEME, HOST, (b":path", value), (b"x", b"y"))


HEADS = {
    "the usual": (USUAL, True),
    "another path": (path(b"/b?c"), True),
    "a path with a blank": (path(b"/b c"), True),
    "a path that is none": (path(b"b"), True),
    "no path": ((METHOD, SCHEME, HOST, (b"x", b"y")), True),
    "nothing after the scheme": ((METHOD, SCHEME, HOST), True),
    "two paths": ((METHOD, SCHEME, HOST, PATH, PATH, (b"x", b"y")), True),
    "the path first": ((PATH, METHOD, SCHEME, HOST, (b"x", b"y")), True),
    "the path last": ((METHOD, SCHEME, HOST, PATH), True),
    "another field": ((METHOD, SCHEME, HOST, PATH, (b"x", b"z")), True),
    "another host": ((METHOD, SCHEME, (b":authority", b"b"), PATH, (b"x", b"y")), True),
    "a path that makes the head too large": (path(b"/" + b"p" * 290), True),
    "a path that makes the list too large": (path(b"/" + b"p" * 390), True),
    "a body": (USUAL, False),
    "a length": ((*USUAL, (b"content-length", b"2"), (b"expect", b"100-continue")), False),
    "a length and no body": ((*USUAL, (b"content-length", b"2"), (b"expect", b"100-continue")), True),
    "an expectation": ((*USUAL, (b"expect", b"more")), False),
    "a WebSocket": (((b":method", b"CONNECT"), (b":protocol", b"websocket"), SCHEME, HOST, PATH), False),
    "CONNECT": (((b":method", b"CONNECT"), (b":authority", b"a:80")), False),
}


def read(heads, lines, end):
    """Return what becomes of a head: a request's slots, or the refusal; and change the request, as filters do."""
    try:
        request = heads.request_of(lines, end)
    except (StreamError, Refusal) as error:
        return type(error), str(error)
    said = {slot: getattr(request, slot) for slot in Request.__slots__ if slot != "headers"}
    fields = request.headers.raw.copy()
    request.headers.set("x", "changed")
    request.headers.add("more", "of it")
    request.method = request.host = request.path = "changed"
    return said, fields


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_head_means_the_same_whatever_came_before_it(kind):
    fresh = {name: read(RequestHeads(LIMITS, LIST_SIZE), kind(lines), end) for name, (lines, end) in HEADS.items()}
    for names in itertools.product(HEADS, repeat=3):
        heads = RequestHeads(LIMITS, LIST_SIZE)
        for name in (names[0], *names):
            lines, end = HEADS[name]
            assert read(heads, kind(lines), end) == fresh[name], names


def test_each_kind_of_verdict_is_among_them():
    seen = [read(RequestHeads(LIMITS, LIST_SIZE), *head)[0] for head in HEADS.values()]

    assert {StreamError, Refusal} <= {each for each in seen if isinstance(each, type)}
    assert sum(isinstance(each, dict) for each in seen) >= 8
