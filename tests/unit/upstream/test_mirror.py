"""Shadow traffic: what is copied, what is not, and that nobody notices. The gateway is real, time is virtual."""

from __future__ import annotations

import pytest

from gw.limits import MAX_MIRRORED, MIRROR_TIME
from gw.testing.gateway import Upstream, in_memory
from gw.testing.http2 import Http2Upstream
from gw.testing.memory import Backlog

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REAL, SHADOW = "192.0.2.1:80", "192.0.2.2:80"


def config(**mirror):
    upstreams = [{"name": "real", "host": "192.0.2.1"}, {"name": "shadow", "host": "192.0.2.2"}]
    return {"upstreams": upstreams, "routes": [{"upstream": "real", "mirror": {"upstream": "shadow", **mirror}}]}


def post(body, length=None):
    framing = f"content-length: {len(body)}" if length is None else "transfer-encoding: chunked"
    payload = body if length is None else b"".join(b"1\r\n%c\r\n" % each for each in body) + b"0\r\n\r\n"
    return f"POST /a?b HTTP/1.1\r\nhost: example.test\r\nx-mine: 1\r\n{framing}\r\n\r\n".encode() + payload


def counts(gateway):
    return gateway.gateway._current.now.routes[0].chain.placed[-1].filter.counts


async def test_a_copy_is_what_the_upstream_got():
    real, shadow = Upstream(OK), Upstream(b"HTTP/1.1 500 No\r\ncontent-length: 5\r\n\r\nwrong")
    async with in_memory(config(), upstreams={REAL: real, SHADOW: shadow}) as gateway:
        answer = await gateway.request(post(b"hello"), method="POST")
        await gateway.network.settle()
        assert (answer.status, answer.body) == (200, b"ok")
        (one,), (other,) = real.asked, shadow.asked
        assert (other.head.method, other.head.target, other.body) == ("POST", "/a?b", b"hello")
        assert other.head.headers.get("x-mine") == "1"
        assert other.head.headers.get("x-request-id") == one.head.headers.get("x-request-id")
        assert other.head.headers.get("host") == "192.0.2.2"
        assert await gateway.leftovers() == []


@pytest.mark.parametrize("framing", [None, "chunked"])
async def test_a_body_that_comes_in_pieces_is_copied_whole(framing):
    shadow = Upstream(OK)
    async with in_memory(config(), upstreams={REAL: Upstream(OK), SHADOW: shadow}) as gateway:
        client = gateway.connect()
        for byte in post(b"hello", framing):
            client.write(bytes([byte]))
            await gateway.network.settle()
        assert [asked.body for asked in shadow.asked] == [b"hello"]


async def test_what_has_no_body_is_copied_too():
    shadow = Upstream(OK)
    async with in_memory(config(), upstreams={REAL: Upstream(OK), SHADOW: shadow}) as gateway:
        for _ in range(3):
            await gateway.get("/")
        await gateway.network.settle()
        assert (len(shadow.asked), counts(gateway).sent, counts(gateway).under_way) == (3, 3, 0)


async def test_a_body_that_is_too_long_is_not_copied():
    shadow = Upstream(OK)
    async with in_memory(config(max_body_bytes=4), upstreams={REAL: Upstream(OK), SHADOW: shadow}) as gateway:
        assert (await gateway.request(post(b"hello"), method="POST")).status == 200
        await gateway.network.settle()
        assert (shadow.asked, counts(gateway).dropped, counts(gateway).under_way) == ([], 1, 0)


async def test_a_share_of_nothing_is_nothing():
    shadow = Upstream(OK)
    async with in_memory(config(percent=0), upstreams={REAL: Upstream(OK), SHADOW: shadow}) as gateway:
        await gateway.get("/")
        await gateway.network.settle()
        assert shadow.asked == []


@pytest.mark.parametrize("script", [None, Upstream(None), Upstream(b"garbage\r\n\r\n")])
async def test_how_a_copy_fails_is_seen_by_nobody(script):
    scripts = {REAL: Upstream(OK)} if script is None else {REAL: Upstream(OK), SHADOW: script}
    async with in_memory(config(), upstreams=scripts) as gateway:
        assert (await gateway.get("/")).status == 200
        await gateway.network.settle()
        assert (counts(gateway).failed, counts(gateway).under_way) == (1, 0)
        assert await gateway.leftovers() == []


async def test_only_so_many_copies_are_under_way_and_none_for_ever():
    async with in_memory(config(), upstreams={REAL: Upstream(OK), SHADOW: Backlog()}) as gateway:
        for _ in range(MAX_MIRRORED + 3):
            assert (await gateway.get("/")).status == 200
        assert (counts(gateway).under_way, counts(gateway).dropped) == (MAX_MIRRORED, 3)
        await gateway.network.advance(MIRROR_TIME + 1)
        assert counts(gateway).under_way == 0
        assert await gateway.leftovers() == []


async def test_bodies_that_do_not_come_to_their_end_are_among_those_that_are_under_way():
    shadow = Upstream(OK)
    async with in_memory(config(), upstreams={REAL: Upstream(OK), SHADOW: shadow}) as gateway:
        clients = [gateway.connect() for _ in range(MAX_MIRRORED + 3)]
        for client in clients:
            client.write(post(b"hello")[:-1])
        await gateway.network.settle()
        assert (counts(gateway).under_way, counts(gateway).dropped) == (MAX_MIRRORED, 3)
        for client in clients:
            client.abort()
        await gateway.network.settle()
        assert (counts(gateway).under_way, shadow.asked) == (0, [])
        assert await gateway.leftovers() == []


async def test_a_copy_is_written_as_the_route_writes_it():
    settings = config()
    settings["routes"][0] |= {
        "match": {"prefix": "/api"},
        "strip_prefix": True,
        "header_rewrite": {"rewrite_host": False},
    }
    real, shadow = Upstream(OK), Upstream(OK)
    async with in_memory(settings, upstreams={REAL: real, SHADOW: shadow}) as gateway:
        assert (await gateway.get("/api/a?b")).status == 200
        await gateway.network.settle()
    told = [(asked.head.target, asked.head.headers.get("host")) for asked in (*real.asked, *shadow.asked)]
    assert told[0] == told[1]
    assert told[0][0] == "/a?b"


async def test_a_websocket_is_not_copied():
    ask = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    shadow = Upstream(OK)
    async with in_memory(config(), upstreams={REAL: Upstream(OK), SHADOW: shadow}) as gateway:
        await gateway.request(f"{ask}sec-websocket-key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n\r\n".encode())
        await gateway.network.settle()
        assert (shadow.asked, counts(gateway).sent) == ([], 0)


@pytest.mark.parametrize("body", [b"", b"hello"])
async def test_copies_go_to_an_upstream_that_speaks_http2(body, engine):
    settings = config()
    settings["upstreams"][1]["http2"] = {"enabled": True, "prefer": "h2c"}
    shadow = Http2Upstream(engine=engine)
    async with in_memory(settings, upstreams={REAL: Upstream(OK), SHADOW: shadow}, engine=engine) as gateway:
        for _ in range(3):
            answer = await (gateway.request(post(body), method="POST") if body else gateway.get("/a?b"))
            assert answer.status == 200
            await gateway.network.settle()
        assert [(asked.head.target, asked.body) for asked in shadow.asked] == [("/a?b", body)] * 3
        assert (counts(gateway).sent, counts(gateway).failed, counts(gateway).under_way) == (3, 0, 0)
        assert gateway.network.dialled.count(SHADOW) == 1
        assert await gateway.leftovers() == []
