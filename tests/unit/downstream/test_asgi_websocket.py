"""WebSockets that another server hands the gateway: messages become frames, and frames messages."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest
from asgi_server import Server, served
from websockets_in_memory import Half, answer
from ws_frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close, frame

from gw.filters import Reply
from gw.testing import PATIENCE
from gw.testing.memory import Backlog, MemoryNetwork

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
FIELDS = (
    (b"host", b"a.test"),
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", KEY),
    (b"sec-websocket-extensions", b"permessage-deflate"),
)
RICH = {"extensions": {"websocket.http.response": {}}}


class Client(Server):
    """Plays the server of one WebSocket."""

    def __init__(self):
        super().__init__()
        self._to_app.send_nowait({"type": "websocket.connect"})

    def sends(self, message):
        kind = "text" if isinstance(message, str) else "bytes"
        self._to_app.send_nowait({"type": "websocket.receive", kind: message})

    def leaves(self, code=1000, reason=""):
        self._to_app.send_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})

    def messages(self):
        return [event.get("text", event.get("bytes")) for event in self.said if event["type"] == "websocket.send"]


async def echo(ws):
    async for message in ws:
        await ws.send(message)


def handles(handler, **more):
    return lambda gateway: gateway.websocket("/ws", handler, **more)


async def asks(ask, client, path=b"/ws", fields=FIELDS, **more):
    """Hand the gateway a WebSocket, as a server does."""
    return await ask(client, path, fields=fields, type="websocket", scheme="wss", **more)


@asynccontextmanager
async def proxied():
    """Run a gateway with an upstream; yield it, what asks it, the upstream's connections and the network."""
    backlog, networks = Backlog(), []

    def network(tasks):
        networks.append(MemoryNetwork(tasks, {"192.0.2.1:80": backlog}))
        return networks[0]

    config = {"upstreams": [{"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/ws"}}]}
    async with served(config, network=network) as (gateway, ask):
        yield gateway, ask, backlog, networks[0]


@asynccontextmanager
async def opened():
    """Yield what plays the server of an accepted WebSocket, and its upstream."""
    async with proxied() as (_, ask, backlog, network), anyio.create_task_group() as tasks:
        client = Client()
        tasks.start_soon(asks, ask, client)
        peer = await backlog.accept()
        request = await peer.read_until(b"\r\n\r\n")
        peer.write(answer(request))
        await client.until(1)
        yield client, Half(peer, masked=True, settle=network.settle, head=request)
        peer.abort()


async def test_messages_go_both_ways_and_the_close_too():
    async with opened() as (client, upstream):
        assert b"sec-websocket-extensions" not in upstream.head
        assert b"x-forwarded-proto: https" in upstream.head
        client.sends("up")
        client.sends(b"\0" * 70_000)
        assert await upstream.take() == [(TEXT, 1, b"up"), (BINARY, 1, b"\0" * 70_000)]
        await upstream.send(frame(TEXT, b"do", fin=False), frame(CONTINUATION, b"wn"), frame(BINARY, b"b"))
        await client.until(3)
        assert client.messages() == ["down", b"b"]
        client.leaves(4000, "enough")
        assert await upstream.take() == [(CLOSE, 1, (4000).to_bytes(2) + b"enough")]
        await upstream.send(close(4000))


async def test_the_upstream_may_end_it():
    async with opened() as (client, upstream):
        await upstream.send(frame(TEXT, b"last"), close(4001, b"so long"))
        await client.until(3)
        assert client.said[-1] == {"type": "websocket.close", "code": 4001, "reason": "so long"}
        client.leaves(4001)
        assert await upstream.take() == [(CLOSE, 1, (4001).to_bytes(2))]


async def test_pings_of_the_upstream_are_answered_here():
    async with opened() as (client, upstream):
        await upstream.send(frame(PING, b"p"))
        assert await upstream.take() == [(PONG, 1, b"p")]
        client.leaves()
        await upstream.take()
        await upstream.send(close(1000))


async def test_a_client_that_leaves_without_a_word_is_reported():
    async with opened() as (client, upstream):
        client.leaves(1006)
        assert await upstream.take() == [(CLOSE, 1, (1001).to_bytes(2) + b"The client has left")]
        await upstream.send(close(1001))


async def test_a_handler_is_the_other_side_and_a_subprotocol_is_chosen():
    fields = (*FIELDS, (b"sec-websocket-protocol", b"x, chat"))
    async with served(prepare=handles(echo, subprotocols=("chat",))) as (_, ask):
        client = Client()
        client.sends("hello")
        client.leaves()
        await asks(ask, client, fields=fields)
        assert client.said[0] == {"type": "websocket.accept", "subprotocol": "chat", "headers": []}
        assert client.messages() == ["hello"]


async def test_over_http2_there_is_no_key():
    fields = ((b"host", b"a.test"), (b"sec-websocket-version", b"13"))
    async with served(prepare=handles(echo)) as (_, ask):
        client = Client()
        client.leaves()
        await asks(ask, client, fields=fields, version="2")
        assert client.said[0]["type"] == "websocket.accept"


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [(b"/none", FIELDS, 404), (b"/ws", FIELDS[:3], 426), (b"/ws", FIELDS[1:], 400), (b"/%zz", FIELDS, 400)],
)
async def test_what_is_refused_is_answered_if_the_server_can_and_else_closed(path, fields, status):
    async with served(prepare=handles(echo)) as (_, ask):
        client = await asks(ask, Client(), path, fields, **RICH)
        assert [event["type"] for event in client.said] == [
            "websocket.http.response.start",
            "websocket.http.response.body",
        ]
        assert (client.status, client.said[-1]["more_body"]) == (status, False)
        client = await asks(ask, Client(), path, fields)
        assert client.said == [{"type": "websocket.close", "code": 1000, "reason": ""}]


async def test_a_filter_may_refuse_it():
    def prepare(gateway):
        async def own(_ex):
            return Reply(401, b"who?")

        gateway.route("/ws", own)

    async with served(prepare=prepare) as (_, ask):
        client = await asks(ask, Client(), **RICH)
        assert (client.status, client.body) == (401, b"who?")


async def test_a_client_that_takes_nothing_holds_the_handler_back_and_one_that_is_gone_ends_it():
    sent, ended, taken = [], anyio.Event(), anyio.Event()

    async def floods(ws):
        try:
            while True:
                await ws.send(b"x" * 5_000)
                sent.append(1)
        finally:
            ended.set()

    class Slow(Client):
        async def send(self, event):
            if event["type"] == "websocket.send":
                await taken.wait()
                raise OSError("gone")
            await super().send(event)

    networks = []

    def network(tasks):
        networks.append(MemoryNetwork(tasks, {}))
        return networks[0]

    started = served(prepare=handles(floods), network=network)
    async with started as (_, ask), anyio.create_task_group() as tasks:
        client = Slow()
        tasks.start_soon(asks, ask, client)
        await client.until(1)
        await networks[0].settle()
        assert 1 <= len(sent) < 10
        taken.set()
        with anyio.fail_after(PATIENCE):
            await ended.wait()


async def test_a_client_that_leaves_before_it_is_accepted_leaves_nothing():
    async with proxied() as (gateway, ask, backlog, network), anyio.create_task_group() as tasks:
        client = Client()
        tasks.start_soon(asks, ask, client)
        peer = await backlog.accept()
        await peer.read_until(b"\r\n\r\n")
        client.leaves(1006)
        await network.settle()
        assert (client.said, gateway.stats()["requests"]["active"]) == ([], 0)
        peer.abort()
