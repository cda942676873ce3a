"""Handlers of WebSockets in Python: what they are handed, and how each of them ends."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import ModuleType

import anyio
import pytest
from websockets_in_memory import Half, asks
from ws_frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close, frame

from gw.config.load import load
from gw.filters import Close, Filter, Message, Outcome
from gw.gateway import Gateway
from gw.hookspecs import LocalWebSocket, hookimpl
from gw.limits import WS_CLOSE_TIME, WS_HANDLER_ENDS
from gw.plugins import PluginSet
from gw.testing.gateway import InMemory, in_memory, read_answer
from gw.testing.memory import MemoryNetwork
from gw.websocket import WebSocketClosed


def sent(opcode, payload=b"", **how):
    return frame(opcode, payload, masked=True, **how)


def closes(code=None, reason=b""):
    return close(code, reason, masked=True)


def told(code=None, reason=b""):
    return CLOSE, 1, b"" if code is None else code.to_bytes(2) + reason


class Keeps(Filter):
    name = "keeps"

    def __init__(self, do=None):
        self.exchange, self.do, self.seen = None, do, []

    def on_complete(self, ex):
        self.exchange = ex


class Watches(Keeps):
    async def on_message(self, ex, message, from_client):
        self.seen.append((message.data, from_client))
        return message if self.do is None else self.do(message)


@asynccontextmanager
async def serving(handler, config=None, *, filters=(), subprotocols=(), asked=()):
    """Run a gateway whose plugin has *handler* at /ws; yield it and a client whose handshake it took."""

    @hookimpl
    def gw_filters(route, ctx):
        return filters

    @hookimpl
    def gw_endpoints(ctx):
        return [LocalWebSocket("/ws", handler, subprotocols)]

    module = ModuleType("own")
    module.GW_API, module.gw_filters, module.gw_endpoints = 1, gw_filters, gw_endpoints
    plugins = PluginSet()
    plugins.add("own", module)
    async with in_memory({"upstreams": [], **(config or {})}, plugins=plugins) as gateway:
        stream = gateway.connect()
        stream.write(asks("/ws", *asked))
        head = await stream.read_until(b"\r\n\r\n")
        yield gateway, Half(stream, masked=False, settle=gateway.network.settle, head=head)


async def echo(ws):
    async for message in ws:
        await ws.send(message)


async def test_an_embedding_program_has_handlers_of_its_own():
    gateway = Gateway(load({}, environ={}))
    gateway.websocket("/ws", echo, subprotocols=("chat",))
    networks = []

    def network(tasks):
        networks.append(MemoryNetwork(tasks, {}))
        return networks[0]

    async with anyio.create_task_group() as tasks:
        ready = anyio.Event()
        tasks.start_soon(lambda: gateway.serve(ready=ready.set, network=network))
        await ready.wait()
        running = InMemory(gateway, networks[0])
        stream = running.connect()
        stream.write(asks("/ws", "Sec-WebSocket-Protocol: superchat, chat"))
        head = await stream.read_until(b"\r\n\r\n")
        assert b"sec-websocket-protocol: chat\r\n" in head
        client = Half(stream, masked=False, settle=networks[0].settle)
        await client.send(sent(TEXT, b"hello"))
        assert await client.take() == [(TEXT, 1, b"hello")]
        tasks.cancel_scope.cancel()


async def test_frames_are_counted():
    async with serving(echo) as (gateway, client):
        await client.send(sent(TEXT, b"a"), sent(PING), closes(1000))
        assert [each[0] for each in await client.take()] == [PONG, TEXT, CLOSE]
        counted = dict(gateway.gateway.websockets.frames())
        assert counted == dict.fromkeys(
            [
                *((op, direction) for op in ("text", "close") for direction in ("receive", "send")),
                ("ping", "receive"),
                ("pong", "send"),
            ],
            1,
        )


async def test_messages_are_text_or_bytes_and_whole():
    got = []

    async def handler(ws):
        got.extend([message async for message in ws])

    async with serving(handler) as (_, client):
        await client.send(sent(TEXT, b"a", fin=False), sent(PING, b"p"), sent(CONTINUATION, b"b"), sent(BINARY, b"\0"))
        assert await client.take() == [(PONG, 1, b"p")]
        await client.send(closes(1000))
        assert got == ["ab", b"\0"]


async def test_a_handler_that_returns_closes():
    async def handler(ws):
        await ws.send("bye")

    keeps = Keeps()
    async with serving(handler, filters=(keeps,)) as (gateway, client):
        assert await client.take() == [(TEXT, 1, b"bye"), told(1000)]
        await client.send(closes(1000))
        assert await client.is_over()
        assert keeps.exchange.outcome is Outcome.REPLY
        assert keeps.exchange.response.status == 101
        assert await gateway.leftovers() == []


async def test_it_may_close_with_a_code_and_waits_for_the_answer():
    done = []

    async def handler(ws):
        await ws.close(4000, "enough")
        done.append(ws.closed)

    async with serving(handler) as (_, client):
        assert await client.take() == [told(4000, b"enough")]
        assert done == []
        await client.send(sent(TEXT, b"late"), sent(PING, b"p"), closes(4000))
        assert await client.take() == [(PONG, 1, b"p")]
        assert done == [Close(4000, "enough")]


@pytest.mark.parametrize(
    ("sends", "answered", "code", "reason"),
    [
        (closes(1000, b"done"), told(1000, b"done"), 1000, "done"),
        (closes(), told(), 1005, ""),
        (closes(1010), told(1000), 1010, ""),
        (closes(4999), told(4999), 4999, ""),
    ],
)
async def test_the_clients_close_is_answered_and_reported(sends, answered, code, reason):
    found = []

    async def handler(ws):
        try:
            await ws.receive()
        except WebSocketClosed as closed:
            found.append((closed.code, closed.reason))
            with pytest.raises(WebSocketClosed):
                await ws.send("too late")

    async with serving(handler) as (_, client):
        await client.send(sends)
        assert await client.take() == [answered]
        assert found == [(code, reason)]
        assert await client.is_over()


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_a_client_that_just_leaves_is_1006(how):
    found = []

    async def handler(ws):
        try:
            await ws.receive()
        except WebSocketClosed as closed:
            found.append(closed.code)

    async with serving(handler) as (gateway, client):
        client.stream.write_eof() if how == "eof" else client.stream.abort()
        await gateway.network.settle()
        assert found == [1006]
        client.stream.abort()
        assert await gateway.leftovers() == []


@pytest.mark.parametrize(
    ("bad", "code"),
    [(frame(TEXT, b"a"), 1002), (sent(TEXT, b"\xff"), 1007), (sent(BINARY, b"x" * 11), 1009)],
)
async def test_a_client_that_breaks_a_rule_is_told_which(bad, code):
    async with serving(echo, {"max_ws_message_size": 10}) as (gateway, client):
        await client.send(sent(TEXT, b"good"), bad)
        echoed, end = await client.take()
        assert echoed == (TEXT, 1, b"good")
        assert (end[0], end[2][:2]) == (CLOSE, code.to_bytes(2))
        client.stream.abort()
        assert await gateway.leftovers() == []


async def test_a_handler_that_raises_is_1011_and_one_record(caplog):
    async def handler(ws):
        await ws.receive()
        raise RuntimeError("oops")

    async with serving(handler) as (gateway, client):
        await client.send(sent(TEXT, b"a"))
        assert await client.take() == [told(1011, b"Internal error")]
        await client.send(closes(1011))
        assert await gateway.leftovers() == []
    assert [record.levelname for record in caplog.records if record.name == "gw.chain"] == ["ERROR"]


async def test_a_close_waits_for_the_answer_to_what_came_before_it():
    go_on = anyio.Event()

    async def handler(ws):
        async for message in ws:
            await go_on.wait()
            await ws.send(message)

    async with serving(handler) as (_gateway, client):
        await client.send(sent(TEXT, b"a"), sent(TEXT, b"b"), closes(1000))
        assert await client.take() == []
        go_on.set()
        assert await client.take() == [(TEXT, 1, b"a"), (TEXT, 1, b"b"), told(1000)]


async def test_but_not_for_long():
    async def handler(ws):
        await anyio.Event().wait()

    async with serving(handler) as (gateway, client):
        await client.send(sent(TEXT, b"a"), closes(1000))
        await gateway.network.advance(WS_HANDLER_ENDS + 0.2)
        assert await client.take() == [told(1000)]


async def test_pings_are_answered_while_it_does_something_else():
    async def handler(ws):
        await anyio.Event().wait()

    async with serving(handler) as (_, client):
        await client.send(sent(PING, b"p"))
        assert await client.take() == [(PONG, 1, b"p")]


async def test_a_client_that_waits_for_a_slow_handler_is_not_taken_for_gone():
    """Its answers to pings are behind messages that the handler has not taken, so they are not waited for."""

    async def handler(ws):
        await anyio.Event().wait()

    async with serving(handler, {"websocket": {"ping_interval_sec": 5, "ping_timeout_sec": 2}}) as (gateway, client):
        await client.send(sent(TEXT, b"a"), sent(TEXT, b"b"))
        await gateway.network.advance(60)
        assert not client.stream.lost
        assert await client.take() == []


async def test_one_that_does_not_notice_the_end_is_cancelled_after_a_while():
    ended = []

    async def handler(ws):
        try:
            await anyio.Event().wait()
        finally:
            ended.append(True)

    async with serving(handler) as (gateway, client):
        await client.send(closes(1000))
        await gateway.network.advance(WS_HANDLER_ENDS - 0.2)
        assert ended == []
        await gateway.network.advance(0.4)
        assert ended == [True]
        assert await gateway.leftovers() == []


async def test_one_message_at_most_waits_for_it():
    go_on = anyio.Event()

    async def handler(ws):
        await go_on.wait()
        async for message in ws:
            await ws.send(message)

    async with serving(handler) as (gateway, client):
        piece = sent(BINARY, b"x" * 60_000)
        for _ in range(50):
            client.stream.write(piece)
            await gateway.network.settle()
        assert client.stream.unsent > 40 * len(piece)
        go_on.set()
        got = b""
        while len(got) < 50 * 60_004:
            got += await client.stream.receive()


async def test_a_client_that_does_not_answer_the_close_is_cut_off():
    async def handler(ws):
        pass

    async with serving(handler) as (gateway, client):
        assert await client.take() == [told(1000)]
        await gateway.network.advance(WS_CLOSE_TIME + 0.2)
        assert client.stream.lost
        assert await gateway.leftovers() == []


async def test_a_shutdown_is_1001_and_the_handler_learns_it():
    found = []

    async def handler(ws):
        try:
            await ws.receive()
        except WebSocketClosed as closed:
            found.append((closed.code, closed.reason))

    async with serving(handler) as (gateway, client):
        gateway.gateway.stop()
        await gateway.network.advance(0.1)
        assert await client.take() == [told(1001, b"Going Away")]
        assert found == [(1001, "Going Away")]


async def test_silence_and_a_missing_pong_end_it():
    async with serving(echo, {"websocket": {"idle_timeout_sec": 3}}) as (gateway, client):
        await gateway.network.advance(4)
        assert await client.take() == [told(1001, b"Idle for too long")]
    async with serving(echo, {"websocket": {"ping_interval_sec": 3, "ping_timeout_sec": 2}}) as (gateway, client):
        await gateway.network.advance(4)
        ((opcode, _, payload),) = await client.take()
        assert opcode == PING
        await client.send(sent(PONG, payload))
        await gateway.network.advance(4)
        assert [opcode for opcode, _, _ in await client.take()] == [PING]
        await gateway.network.advance(3)
        assert client.stream.lost
        assert await gateway.leftovers() == []


async def test_compression_is_agreed_on():
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    async with serving(echo, asked=(offer,)) as (_, client):
        assert b"sec-websocket-extensions: permessage-deflate\r\n" in client.head
        hello = bytes.fromhex("f248cdc9c90700")
        await client.send(sent(TEXT, hello, rsv=4))
        assert client.stream.take() == frame(TEXT, hello, rsv=4)


class TestFilters:
    async def test_they_see_messages_both_ways(self):
        watches = Watches()
        async with serving(echo, filters=(watches,)) as (_, client):
            await client.send(sent(TEXT, b"a"))
            assert await client.take() == [(TEXT, 1, b"a")]
            assert watches.seen == [("a", True), ("a", False)]

    async def test_they_may_change_drop_and_end(self):
        def do(message):
            return {"drop": None, "end": Close(1008, "no")}.get(message.data, Message("changed"))

        async with serving(echo, filters=(Watches(do),)) as (_, client):
            await client.send(sent(TEXT, b"drop"), sent(TEXT, b"a"))
            assert await client.take() == [(TEXT, 1, b"changed")]
            await client.send(sent(TEXT, b"end"))
            assert await client.take() == [told(1008, b"no")]

    async def test_one_that_raises_is_1011(self, caplog):
        async with serving(echo, filters=(Watches(lambda message: 1 / 0),)) as (gateway, client):
            await client.send(sent(TEXT, b"a"))
            assert await client.take() == [told(1011, b"Internal error")]
            await client.send(closes(1011))
            assert await gateway.leftovers() == []
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


async def test_a_plain_request_is_told_what_the_path_is_for():
    async with serving(echo) as (gateway, _):
        got = await gateway.get("/ws")
        assert (got.status, got.headers.get("sec-websocket-version")) == (426, "13")


async def test_a_handshake_is_checked_here_too():
    async with serving(echo) as (gateway, _):
        stream = gateway.connect()
        stream.write(asks("/ws").replace(b"Version: 13", b"Version: 8"))
        assert (await read_answer(stream)).status == 426


def test_closed_says_how():
    assert str(WebSocketClosed(1006)) == "1006"
    assert str(WebSocketClosed(1000, "done")) == "1000 done"
