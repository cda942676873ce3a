"""What is held until it is complete, and what is passed on as it comes. The gateway is real, time is virtual."""

from __future__ import annotations

import pytest
from http2_upstreams import ask, config as http2_config, played

from gw.http.h2 import Code
from gw.testing.gateway import in_memory, read_answer
from gw.testing.http2 import Http2Upstream
from gw.testing.memory import Backlog

SMALL = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab"
LARGE = b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\nab"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 4\r\n\r\nab"


def config(mode="streaming", route=None, **proxy):
    upstream = {"name": "up", "host": "192.0.2.1", "request_mode": mode, "proxy": proxy}
    return {"upstreams": [upstream], "routes": [{"upstream": "up", **(route or {})}]}


async def begun(gateway, backlog, version="1.1"):
    """Send a request and return both ends once it has arrived."""
    client = gateway.connect()
    client.write(f"GET / HTTP/{version}\r\nhost: a\r\n\r\n".encode())
    upstream = await backlog.accept()
    await upstream.read_until(b"\r\n\r\n")
    return client, upstream


@pytest.mark.parametrize(
    ("proxy", "route", "version", "answer", "is_held"),
    [
        ({}, {}, "1.1", SMALL, True),
        ({}, {}, "1.1", LARGE, False),
        ({"buffering": "never"}, {}, "1.1", SMALL, False),
        ({"buffering": "auto"}, {}, "1.1", SMALL, True),
        ({"buffering": "auto"}, {}, "1.1", LARGE, False),
        ({"buffering": "auto", "auto_stream_content_length_threshold_bytes": 300_000}, {}, "1.1", LARGE, True),
        ({"buffering": "auto"}, {}, "1.1", CHUNKED, False),
        ({"buffering": "auto"}, {}, "1.1", EVENTS, False),
        ({"buffering": "always"}, {}, "1.1", CHUNKED, True),
        ({"buffering": "always"}, {}, "1.1", EVENTS, True),
        ({"buffering": "always"}, {"buffering": "never"}, "1.1", SMALL, False),
        ({}, {"buffering": "always"}, "1.1", SMALL, True),
        ({}, {}, "1.0", CHUNKED, False),
        ({"h10_streaming": "buffer"}, {}, "1.0", CHUNKED, True),
        ({"h10_streaming": "buffer"}, {}, "1.1", CHUNKED, False),
    ],
)
async def test_what_is_held(proxy, route, version, answer, is_held):
    backlog = Backlog()
    async with in_memory(config(route=route, **proxy), backlog) as gateway:
        client, upstream = await begun(gateway, backlog, version)
        upstream.write(answer)
        await gateway.network.settle()
        assert client.has_data is not is_held


@pytest.mark.parametrize("answer", [SMALL, CHUNKED])
async def test_what_was_held_is_delivered_whole(answer):
    backlog = Backlog()
    async with in_memory(config(buffering="always"), backlog) as gateway:
        client, upstream = await begun(gateway, backlog)
        upstream.write(answer)
        await gateway.network.settle()
        upstream.write(b"cd" if answer is SMALL else b"2\r\ncd\r\n0\r\n\r\n")
        assert (await read_answer(client)).body == b"abcd"
        assert await gateway.leftovers() == []


async def test_what_fails_while_it_is_held_can_still_be_answered():
    backlog = Backlog()
    async with in_memory(config(buffering="auto"), backlog) as gateway:
        client, upstream = await begun(gateway, backlog)
        upstream.write(SMALL)
        upstream.close()
        assert (await read_answer(client)).status == 502


async def test_a_pause_while_it_is_held_is_504():
    backlog = Backlog()
    async with in_memory(config(buffering="always", stream_idle_timeout_sec=1), backlog) as gateway:
        client, upstream = await begun(gateway, backlog)
        upstream.write(SMALL)
        await gateway.network.advance(1.5)
        assert (await read_answer(client)).status == 504


@pytest.mark.parametrize("buffering", ["auto", "always"])
async def test_what_is_held_has_as_long_as_its_head_had_however_it_trickles(buffering):
    backlog = Backlog()
    proxy = {"buffering": buffering, "response_timeout_ms": 2000, "retry": {"max_retries": 0}}
    async with in_memory(config(**proxy), backlog) as gateway:
        client, upstream = await begun(gateway, backlog)
        upstream.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
        for _ in range(3):
            upstream.write(b"x")
            await gateway.network.advance(0.7)
        assert (await read_answer(client)).status == 504
        assert await gateway.leftovers() == []


async def test_what_is_streamed_may_take_longer_than_its_head():
    backlog = Backlog()
    async with in_memory(config(buffering="never", response_timeout_ms=2000), backlog) as gateway:
        client, upstream = await begun(gateway, backlog)
        upstream.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n")
        for byte in (b"a", b"b", b"c", b"d"):
            upstream.write(byte)
            await gateway.network.advance(0.7)
        assert (await read_answer(client)).body == b"abcd"


async def test_what_took_too_long_while_it_was_held_is_tried_again():
    backlog = Backlog()
    retry = {"max_retries": 1, "retry_on_timeout": True}
    async with in_memory(config(response_timeout_ms=1000, retry=retry), backlog) as gateway:
        client, upstream = await begun(gateway, backlog)
        upstream.write(SMALL)
        await gateway.network.advance(1.5)
        again = await backlog.accept()
        await again.read_until(b"\r\n\r\n")
        again.write(SMALL + b"cd")
        answer = await read_answer(client)
        assert (answer.status, answer.body, upstream.lost) == (200, b"abcd", True)


async def test_auto_holds_nothing_while_the_request_is_being_sent():
    """A client that goes on with its request only when it has read some of the answer must not wait for ever."""
    backlog = Backlog()
    async with in_memory(config(buffering="auto"), backlog) as gateway:
        client = gateway.connect()
        client.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nAB")
        upstream = await backlog.accept()
        await upstream.read_until(b"AB")
        upstream.write(SMALL)
        await client.read_until(b"ab")
        client.write(b"CD")
        await upstream.read_until(b"CD")
        upstream.write(b"cd")
        await client.read_until(b"cd")


async def test_a_client_that_leaves_ends_what_is_held_for_it():
    backlog = Backlog()
    async with in_memory(config(buffering="auto"), backlog) as gateway:
        client, upstream = await begun(gateway, backlog)
        upstream.write(SMALL)
        await gateway.network.settle()
        client.abort()
        await gateway.network.settle()
        assert upstream.lost
        assert await gateway.leftovers() == []


@pytest.mark.parametrize(("version", "proxy"), [("1.0", {"h10_streaming": "buffer"}), ("1.1", {"buffering": "always"})])
async def test_what_was_held_says_its_length(version, proxy):
    backlog = Backlog()
    async with in_memory(config(**proxy), backlog) as gateway:
        client, upstream = await begun(gateway, backlog, version)
        upstream.write(CHUNKED)
        await gateway.network.settle()
        upstream.write(b"0\r\n\r\n")
        answer = await read_answer(client)
        assert (answer.headers.get("content-length"), answer.body) == ("2", b"ab")
        assert answer.headers.get("transfer-encoding") is None


async def test_what_comes_in_many_pieces_is_put_together():
    backlog = Backlog()
    async with in_memory(config(buffering="always"), backlog) as gateway:
        client, upstream = await begun(gateway, backlog)
        body = bytes(range(256)) * 4
        upstream.write(CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        assert (await read_answer(client)).body == b"ab" + body


async def test_what_was_held_keeps_its_trailers():
    backlog = Backlog()
    async with in_memory(config(buffering="always"), backlog) as gateway:
        client, upstream = await begun(gateway, backlog)
        upstream.write(CHUNKED + b"0\r\nx-sum: 1\r\n\r\n")
        answer = await read_answer(client)
        assert (answer.body, answer.trailers.get("x-sum")) == (b"ab", "1")


class TestOverHttp2:
    """The same of an upstream that speaks HTTP/2."""

    async def test_small_answers_are_held_and_large_ones_are_not(self, engine):
        async with played(engine) as (gateway, accept):
            peer = None
            for length, is_held in ((4, True), (300_000, False)):
                client = ask(gateway)
                peer = peer or await accept()
                stream = await peer.request()
                peer.respond(stream, 200, [("content-length", str(length))], b"ab", more=True)
                await gateway.network.settle()
                assert client.has_data is not is_held
                client.abort()
                await gateway.network.settle()

    async def test_what_is_larger_than_the_window_is_held_too(self, engine):
        """The window is given back although nothing was written on."""
        async with played(engine, proxy={"buffering": "always"}, initial_window_size=1000) as (gateway, accept):
            client = ask(gateway)
            peer = await accept()
            stream = await peer.request()
            peer.respond(stream, body=b"x" * 100_000)
            answering = False
            while not answering:
                await gateway.network.settle()
                peer.take_in()
                peer.flush()
                answering = client.has_data
            answer = await read_answer(client)
            assert (len(answer.body), answer.headers.get("content-length")) == (100_000, "100000")
            client.abort()
            assert await gateway.leftovers() == []

    async def test_what_fails_while_it_is_held_is_502(self, engine):
        async with played(engine) as (gateway, accept):
            client = ask(gateway)
            peer = await accept()
            stream = await peer.request()
            peer.respond(stream, 200, [("content-length", "4")], b"ab", more=True)
            await gateway.network.settle()
            peer.reset(stream, Code.INTERNAL_ERROR)
            assert (await read_answer(client)).status == 502

    async def test_what_is_held_has_as_long_as_its_head_had(self, engine):
        async with played(engine, proxy={"response_timeout_ms": 2000}) as (gateway, accept):
            client = ask(gateway)
            peer = await accept()
            stream = await peer.request()
            peer.respond(stream, 200, [("content-length", "100")], b"x", more=True)
            for _ in range(3):
                await gateway.network.advance(0.7)
                peer.send(stream, b"x")
            assert (await read_answer(client)).status == 504

    async def test_a_request_is_held_until_it_is_complete(self, engine):
        settings = http2_config()
        settings["upstreams"][0]["request_mode"] = "buffered"
        upstream = Http2Upstream(engine=engine)
        async with in_memory(settings, upstream, engine=engine) as gateway:
            client = ask(gateway, b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n")
            await gateway.network.settle()
            assert gateway.network.dialled == []
            client.write(b"3\r\nllo\r\n0\r\n\r\n")
            assert (await read_answer(client)).status == 200
            (asked,) = upstream.asked
            assert (asked.body, asked.head.headers.get("content-length")) == (b"hello", "5")


async def test_only_so_much_is_held(monkeypatch):
    monkeypatch.setattr("gw.upstream.target.MAX_HELD_BODY", 100_000)
    backlog = Backlog()
    async with in_memory(config(buffering="always"), backlog) as gateway:
        client, upstream = await begun(gateway, backlog)
        upstream.write(b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n" + b"x" * 150_000)
        assert (await read_answer(client)).status == 502


@pytest.mark.parametrize("framing", ["content-length: 5", "transfer-encoding: chunked"])
async def test_a_request_is_held_until_it_is_complete(framing):
    backlog = Backlog()
    async with in_memory(config("buffered"), backlog) as gateway:
        client = gateway.connect()
        client.write(f"POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\nexpect: 100-continue\r\n\r\n".encode())
        assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        client.write(b"he" if "length" in framing else b"2\r\nhe\r\n")
        await gateway.network.settle()
        assert gateway.network.dialled == []
        client.write(b"llo" if "length" in framing else b"3\r\nllo\r\n0\r\n\r\n")
        upstream = await backlog.accept()
        head = await upstream.read_until(b"hello")
        assert b"content-length: 5\r\n" in head
        assert b"expect" not in head


async def test_a_request_that_is_too_large_to_be_held_is_413(monkeypatch):
    monkeypatch.setattr("gw.chain.MAX_HELD_BODY", 1000)
    async with in_memory({**config("buffered"), "max_body_size": 0}, Backlog()) as gateway:
        data = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2000\r\n\r\n" + b"x" * 1500
        assert (await gateway.request(data, method="POST")).status == 413
        assert gateway.network.dialled == []
