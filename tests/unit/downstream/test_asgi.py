"""Requests that another server hands the gateway: what is made of them, and what that server is told."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest
from asgi_in_memory import body_of, only_http, say, tells
from asgi_server import Server, served

from gw.filters import Headers, Reply
from gw.testing import PATIENCE
from gw.testing.gateway import Upstream
from gw.testing.memory import MemoryNetwork


def mounts(app):
    return lambda gateway: gateway.mount("/", app)


@only_http
async def echo(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        event = await receive()
        more = event.get("more_body", False)
        await send({"type": "http.response.body", "body": event["body"].upper(), "more_body": more})


async def test_bodies_flow_in_both_directions_at_once():
    fields = ((b"host", b"a.test"), (b"transfer-encoding", b"chunked"))
    async with served(prepare=mounts(echo)) as (_, ask), anyio.create_task_group() as tasks:
        server = Server()
        tasks.start_soon(lambda: ask(server, b"/", "POST", fields))
        server.brings(b"one", more=True)
        await server.until(2)
        assert server.body == b"ONE"
        server.brings(b"two", more=True)
        await server.until(3)
        server.brings(b"three")
        await server.until(4)
        assert (server.body, server.said[-1]["more_body"]) == (b"ONETWOTHREE", False)


@pytest.mark.parametrize(("chunks", "body"), [([b""], b""), ([b"a"], b"A"), ([b"", b"a", b""], b"A")])
async def test_in_http2_no_field_says_whether_there_is_a_body(chunks, body):
    async with served(prepare=mounts(echo)) as (_, ask):
        server = await ask(Server(*chunks), b"/", "POST", version="2")
        assert (server.status, server.body) == (200, body)


async def test_a_body_that_is_too_long_or_too_slow_is_refused():
    @only_http
    async def app(scope, receive, send):
        await say(send, await body_of(receive))

    long = ((b"host", b"a"), (b"content-length", b"6"))
    chunked = ((b"host", b"a"), (b"transfer-encoding", b"chunked"))
    async with served({"max_body_size": 5}, prepare=mounts(app)) as (gateway, ask):
        assert (await ask(Server(b"123456"), b"/", "POST", long)).status == 413
        assert (await ask(Server(b"123", b"456"), b"/", "POST", chunked)).status == 413
        assert (await ask(Server(b"123", b"45"), b"/", "POST", chunked)).body == b"12345"
        gateway.http1 = replace(gateway.http1, body_timeout=0.01)
        server = Server()
        server.brings(b"1", more=True)
        assert (await ask(server, b"/", "POST", chunked)).status == 408


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ((), {}),
        (((b"host", b"a"), (b"host", b"b")), {}),
        (((b"host", b"a b"),), {}),
        (((b"host", b"a"), (b"content-length", b"1"), (b"content-length", b"2")), {}),
        (((b"host", b"a"), (b"content-length", b"1"), (b"transfer-encoding", b"chunked")), {}),
        (((b"host", b"a"),), {"path": b"/a/../../b%00"}),
        (((b"host", b"a"),), {"path": b""}),
        (((b"host", b"a"),), {"method": "BREW"}),
    ],
)
async def test_what_a_server_should_have_refused_is_refused(fields, more):
    async with served(prepare=mounts(tells)) as (_, ask):
        server = await ask(Server(b""), fields=fields, **more)
        assert (server.status, server.said[-1]["more_body"]) == (400, False)


async def test_an_upgrade_is_not_for_us():
    fields = ((b"host", b"a"), (b"connection", b"upgrade"), (b"upgrade", b"websocket"))
    async with served(prepare=mounts(tells)) as (_, ask):
        assert (await ask(Server(b""), fields=(*fields, (b"sec-websocket-version", b"13")))).status == 201


async def test_a_client_that_leaves_ends_its_exchange():
    heard, began = anyio.Event(), anyio.Event()

    @only_http
    async def app(scope, receive, send):
        await body_of(receive)
        began.set()
        assert (await receive())["type"] == "http.disconnect"
        heard.set()

    async with served(prepare=mounts(app)) as (_, ask), anyio.create_task_group() as tasks:
        server = Server(b"")
        tasks.start_soon(lambda: ask(server))
        with anyio.fail_after(PATIENCE):
            await began.wait()
            server.leaves()
            await heard.wait()
        assert server.said == []


async def test_a_server_that_can_send_no_more_says_so():
    async with served(prepare=mounts(echo)) as (_, ask):
        server = await ask(Server(b"", left=True))
        assert server.said == []


async def test_an_answer_that_breaks_off_is_an_error_to_the_server():
    @only_http
    async def app(scope, receive, send):
        await say(send, b"half", more=True)

    async with served(prepare=mounts(app)) as (_, ask):
        server = Server(b"")
        with pytest.raises(RuntimeError, match="the answer is broken off"):
            await ask(server)
        assert (server.status, server.said[-1]["more_body"]) == (200, True)


async def test_a_client_that_waits_is_asked_for_its_body_when_somebody_wants_it():
    fields = ((b"host", b"a"), (b"content-length", b"2"), (b"expect", b"100-continue"))

    @only_http
    async def app(scope, receive, send):
        await say(send, b"" if scope["path"] == "/early" else await body_of(receive))

    class Waits(Server):
        asked = 0

        async def receive(self):
            self.asked += 1
            return await super().receive()

    async with served(prepare=mounts(app)) as (_, ask):
        server = await ask(Waits(b"ok"), b"/late", "POST", fields)
        assert (server.body, server.asked > 0) == (b"ok", True)
        server = Waits(b"ok")
        assert ((await ask(server, b"/early", "POST", (*fields, (b"host", b"b")))).status, server.asked) == (400, 1)


async def test_early_hints_and_trailers_are_passed_on_where_the_server_takes_them():
    async def page(ex):
        await ex.send_interim(102)
        await ex.send_interim(103, Headers.of([("link", "</a.css>; rel=preload"), ("x-other", "1")]))
        return Reply(200, b"page")

    script = Upstream(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n"
    )
    both = {"extensions": {"http.response.trailers": {}, "http.response.early_hint": {}}}
    config = {"upstreams": [{"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/up"}}]}

    def network(tasks):
        return MemoryNetwork(tasks, {"192.0.2.1:80": script})

    async with served(config, prepare=lambda gateway: gateway.get("/page", page), network=network) as (_, ask):
        server = await ask(Server(b""), b"/page", **both)
        assert server.said[0] == {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]}
        assert (server.said[1]["trailers"], server.said[-1]["headers"]) == (True, [])
        assert [event["type"] for event in (await ask(Server(b""), b"/page")).said] == [
            "http.response.start",
            "http.response.body",
        ]
        server = await ask(Server(b""), b"/up", **both)
        assert server.said[-1] == {
            "type": "http.response.trailers",
            "headers": [(b"x-sum", b"1")],
            "more_trailers": False,
        }
        assert "trailers" not in (await ask(Server(b""), b"/up")).said[0]
        assert "trailers" not in (await ask(Server(b""), b"/up", "HEAD", **both)).said[0]
