"""Before a WebSocket: who is asked, what is refused, and what an upstream may answer."""

from __future__ import annotations

from types import ModuleType

import pytest
from websockets_in_memory import ACCEPT, answer, asks

from gw.filters import Filter, Reply
from gw.hookspecs import hookimpl
from gw.plugins import PluginSet
from gw.testing.gateway import Upstream, in_memory, read_answer
from gw.testing.memory import Backlog

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Denies(Filter):
    name = "denies"

    async def on_request_headers(self, ex):
        return Reply(401, reason="denies.all")


def plugins(*filters):
    @hookimpl
    def gw_filters(route, ctx):
        return filters

    module = ModuleType("own")
    module.GW_API, module.gw_filters = 1, gw_filters
    found = PluginSet()
    found.add("own", module)
    return found


def without(line):
    return asks().replace(line + b"\r\n", b"")


@pytest.mark.parametrize("engine", ["pure", "native"])
@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (without(b"Connection: Upgrade"), 400, b"Upgrade: websocket needs HTTP/1.1 and Connection: upgrade"),
        (asks().replace(b"HTTP/1.1", b"HTTP/1.0"), 400, b"Upgrade: websocket needs HTTP/1.1 and Connection: upgrade"),
        (asks().replace(b"GET", b"POST"), 400, b"A WebSocket begins with a GET that has no body"),
        (asks("/", "Content-Length: 2") + b"ab", 400, b"A WebSocket begins with a GET that has no body"),
        (
            without(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
            400,
            b"Sec-WebSocket-Key must be 24 characters of base64",
        ),
        (asks("/", "Expect: 100-continue"), 400, b"Expect cannot go together with a WebSocket upgrade"),
        (without(b"Sec-WebSocket-Version: 13"), 426, b"Sec-WebSocket-Version must be 13"),
        (asks("/nowhere"), 404, b"Not Found"),
    ],
)
async def test_a_handshake_that_is_wrong_is_refused_and_nothing_is_sent_on(request_, status, body, engine):
    upstream = Upstream()
    config = {"upstreams": [{"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/"}}]}
    config["routes"] = [{"match": {"prefix": "/nowhere"}}]
    async with in_memory(config, upstream, engine=engine) as gateway:
        got = await gateway.request(request_)
        assert (got.status, got.body) == (status, body)
        assert got.headers.get("sec-websocket-version") == ("13" if status == 426 else None)
        assert upstream.asked == []
        assert await gateway.leftovers() == []


async def test_after_a_refusal_the_connection_goes_on_with_what_came_behind():
    upstream = Upstream()
    async with in_memory({"websocket": {"enabled": False}}, upstream) as gateway:
        client = gateway.connect()
        client.write(asks() + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await read_answer(client)).status == 404
        assert (await read_answer(client)).status == 200
        assert [asked.head.path for asked in upstream.asked] == ["/next"]


async def test_header_filters_are_asked_before_the_handshake_is_looked_at():
    async with in_memory(plugins=plugins(Denies())) as gateway:
        assert (await gateway.request(without(b"Sec-WebSocket-Version: 13"))).status == 401


async def test_a_route_may_refuse_them():
    config = {
        "upstreams": [{"name": "up", "host": "192.0.2.1"}],
        "routes": [{"match": {"prefix": "/"}, "upstream": "up", "websocket": {"enabled": False}}],
    }
    async with in_memory(config) as gateway:
        assert (await gateway.request(asks())).status == 404
        assert (await gateway.get("/")).status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://app.example.com", 101),
        ("HTTPS://App.Example.com:443", 101),
        ("https://evil.example.com", 403),
        ("http://app.example.com", 403),
        ("null", 403),
        (None, 101),
    ],
)
async def test_a_page_of_another_origin_is_refused(origin, status):
    backlog = Backlog()
    async with in_memory({"websocket": {"origins": ["https://app.example.com"]}}, backlog) as gateway:
        client = gateway.connect()
        client.write(asks("/", *([f"Origin: {origin}"] if origin else [])))
        await gateway.network.settle()
        if status == 101:
            peer = await backlog.accept()
            peer.write(answer(await peer.read_until(b"\r\n\r\n")))
            assert (await client.read_until(b"\r\n")).startswith(b"HTTP/1.1 101 ")
        else:
            assert (await read_answer(client)).status == status


async def test_a_gateway_that_stops_takes_no_more():
    async with in_memory(upstream=Backlog()) as gateway:
        busy, client = gateway.connect(), gateway.connect()
        for each in (busy, client):
            each.write(b"GET / HTTP/1.1\r\nhost: a\r\n")  # under way, so that it is not closed
        await gateway.network.settle()
        gateway.gateway.stop()
        await gateway.network.settle()
        client.write(asks().partition(b"\r\n")[2].replace(b"Host: example.test\r\n", b""))
        got = await read_answer(client)
        assert (got.status, got.headers.get("connection")) == (503, "close")


class TestWhatTheUpstreamAnswers:
    @pytest.mark.parametrize("status", [200, 302, 403, 503])
    async def test_another_answer_than_101_is_passed_on(self, status):
        upstream = Upstream(b"HTTP/1.1 %d X\r\nx-why: 1\r\ncontent-length: 2\r\n\r\nno" % status)
        async with in_memory(upstream=upstream) as gateway:
            got = await gateway.request(asks())
            assert (got.status, got.body, got.headers.get("x-why")) == (status, b"no", "1")

    @pytest.mark.parametrize(
        "change",
        [
            lambda head: head.replace(b"Sec-WebSocket-Accept: ", b"Sec-WebSocket-Accept: x"),
            lambda head: head.replace(b"Sec-WebSocket-Accept", b"x-accept"),
            lambda head: head.replace(b"Upgrade: websocket\r\n", b""),
            lambda head: head.replace(b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n"),
            lambda head: head.replace(b"Connection: Upgrade\r\n", b""),
            lambda head: head[:-2] + b"Sec-WebSocket-Protocol: other\r\n\r\n",
            lambda head: head[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
            lambda head: head.replace(b"HTTP/1.1", b"HTTP/1.0"),
        ],
        ids=["accept", "no accept", "no upgrade", "other upgrade", "no connection", "protocol", "extension", "1.0"],
    )
    @pytest.mark.parametrize("engine", ["pure", "native"])
    async def test_a_101_that_is_wrong_is_a_bad_gateway(self, change, engine):
        backlog = Backlog()
        async with in_memory(upstream=backlog, engine=engine) as gateway:
            client = gateway.connect()
            client.write(asks())
            peer = await backlog.accept()
            peer.write(change(answer(await peer.read_until(b"\r\n\r\n"))))
            assert (await read_answer(client)).status == 502
            client.abort()
            assert await gateway.leftovers() == []

    async def test_a_101_that_nobody_asked_for_is_one_too(self):
        async with in_memory(upstream=Upstream(answer(b"sec-websocket-key: x\r\n"))) as gateway:
            assert (await gateway.get("/")).status == 502

    async def test_it_may_take_only_so_long(self):
        async with in_memory(upstream=Backlog()) as gateway:
            client = gateway.connect()
            client.write(asks())
            await gateway.network.advance(31)
            assert (await read_answer(client)).status == 504


async def test_filters_may_add_to_the_101_but_not_touch_the_handshake():
    class Adds(Filter):
        name = "adds"

        def on_response_headers(self, ex):
            ex.response.headers.set("x-added", "1")
            ex.response.headers.set("sec-websocket-accept", "mine")
            ex.response.headers.set("sec-websocket-protocol", "mine")
            ex.response.headers.set("upgrade", "mine")

    backlog = Backlog()
    async with in_memory(upstream=backlog, plugins=plugins(Adds())) as gateway:
        client = gateway.connect()
        client.write(asks())
        peer = await backlog.accept()
        peer.write(answer(await peer.read_until(b"\r\n\r\n")))
        head = (await client.read_until(b"\r\n\r\n")).decode()
        assert "x-added: 1\r\n" in head
        assert f"sec-websocket-accept: {ACCEPT}\r\n" in head
        assert "mine" not in head


async def test_an_offer_to_speak_another_protocol_is_not_taken():
    upstream = Upstream()
    async with in_memory(upstream=upstream) as gateway:
        answer_ = await gateway.get("/", {"connection": "upgrade", "upgrade": "foo"})
        assert answer_.status == 200
        assert upstream.asked[0].head.headers.get("upgrade") is None
