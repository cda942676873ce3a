"""WebSockets to ASGI applications: how they are accepted or not, what goes over them, and how each of them ends."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import ModuleType

import anyio
import pytest
from asgi_in_memory import echoes, mounted, only_websockets
from websockets_in_memory import Half, asks
from ws_frames import BINARY, CLOSE, TEXT, close, frame

from gw.filters import Filter, Message, Reply
from gw.hookspecs import hookimpl
from gw.plugins import PluginSet
from gw.testing import PATIENCE


@asynccontextmanager
async def opened(app, *asked, path="/app/ws", config=None, **more):
    """Mount *app*, and yield the gateway and a client that it accepted."""
    async with mounted(app, config=config, **more) as gateway:
        stream = gateway.connect()
        stream.write(asks(path, *asked))
        head = await stream.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        yield gateway, Half(stream, masked=False, settle=gateway.network.settle, head=head)


def sent(opcode, payload=b""):
    return frame(opcode, payload, masked=True)


async def test_a_websocket_carries_text_and_bytes_in_both_directions():
    async with opened(echoes) as (gateway, client):
        await client.send(sent(TEXT, "é".encode()), sent(BINARY, b"\0\1"))
        assert await client.take() == [(TEXT, 1, "é".encode()), (BINARY, 1, b"\0\1")]
        await client.send(close(4000, b"bye", masked=True))
        assert await client.take() == [(CLOSE, 1, (4000).to_bytes(2) + b"bye")]
        assert await client.is_over()
        assert await gateway.leftovers() == []


async def test_what_a_websocket_is_told():
    seen = {}

    @only_websockets
    async def app(scope, receive, send):
        seen.update(scope)
        await send({"type": "websocket.accept", "headers": [(b"X-App", b"yes"), (b"upgrade", b"no")]})

    async with opened(app, "Sec-WebSocket-Protocol: chat, superchat", path="/app/caf%C3%A9?a=1") as (_, client):
        assert b"x-app: yes\r\n" in client.head
        assert b"sec-websocket-protocol" not in client.head
        assert await client.take() == [(CLOSE, 1, (1000).to_bytes(2))]
        assert (seen["scheme"], seen["path"], seen["root_path"]) == ("ws", "/app/café", "/app")
        assert (seen["subprotocols"], seen["query_string"]) == (["chat", "superchat"], b"a=1")
        assert (b"host", b"example.test") in seen["headers"]


async def test_it_chooses_a_subprotocol_and_messages_are_compressed():
    asked = ("Sec-WebSocket-Protocol: chat, superchat", "Sec-WebSocket-Extensions: permessage-deflate")
    async with opened(echoes, *asked) as (_, client):
        assert b"sec-websocket-protocol: superchat\r\n" in client.head
        assert b"sec-websocket-extensions: permessage-deflate" in client.head


async def test_it_closes_with_a_code_and_cannot_speak_afterwards():
    told = []

    @only_websockets
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4001, "reason": "kicked"})
        told.append(await receive())
        with pytest.raises(OSError, match="the client has gone"):
            await send({"type": "websocket.send", "text": "hello?"})
        told.append("refused")

    async with opened(app) as (gateway, client):
        assert await client.take() == [(CLOSE, 1, (4001).to_bytes(2) + b"kicked")]
        await client.send(close(4001, masked=True))
        assert await client.is_over()
        assert told == [{"type": "websocket.disconnect", "code": 4001, "reason": "kicked"}, "refused"]
        assert await gateway.leftovers() == []


@pytest.mark.parametrize(
    ("leaves", "code"), [(None, 1006), (close(masked=True), 1005), (close(3000, masked=True), 3000)]
)
async def test_it_hears_how_the_client_left(leaves, code):
    told = []

    @only_websockets
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        told.append(await receive())

    async with opened(app) as (gateway, client):
        if leaves is None:
            client.stream.abort()
        else:
            await client.send(leaves)
        await gateway.network.settle()
        assert [(event["type"], event["code"]) for event in told] == [("websocket.disconnect", code)]
        assert await gateway.leftovers() == []


async def test_it_may_speak_while_it_waits():
    @only_websockets
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})

        async def speak():
            await send({"type": "websocket.send", "bytes": b"unasked"})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(speak)
            assert (await receive())["type"] == "websocket.disconnect"

    async with opened(app) as (_, client):
        assert await client.take() == [(BINARY, 1, b"unasked")]


@only_websockets
async def closes_at_once(scope, receive, send):
    await send({"type": "websocket.close"})


@only_websockets
async def says_why(scope, receive, send):
    assert scope["extensions"] == {"websocket.http.response": {}}
    await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"www-authenticate", b"Basic")]})
    await send({"type": "websocket.http.response.body", "body": b"who?"})


@only_websockets
async def raises_at_once(scope, receive, send):
    raise KeyError("oh")


@only_websockets
async def returns_at_once(scope, receive, send):
    return


@only_websockets
async def chooses_what_was_not_offered(scope, receive, send):
    await send({"type": "websocket.accept", "subprotocol": "mine"})


@only_websockets
async def splits_the_handshake(scope, receive, send):
    await send({"type": "websocket.accept", "headers": [(b"x", b"a\r\nb: c")]})


@only_websockets
async def refuses_with_success(scope, receive, send):
    await send({"type": "websocket.http.response.start", "status": 200, "headers": []})


@only_websockets
async def speaks_before_it_accepts(scope, receive, send):
    await send({"type": "websocket.send", "text": "x"})


@pytest.mark.parametrize(
    ("app", "status", "body"),
    [
        (closes_at_once, 403, b""),
        (says_why, 401, b"who?"),
        (raises_at_once, 500, None),
        (returns_at_once, 500, None),
        (chooses_what_was_not_offered, 500, None),
        (splits_the_handshake, 500, None),
        (refuses_with_success, 500, None),
        (speaks_before_it_accepts, 500, None),
    ],
)
async def test_one_that_is_not_accepted_is_answered(app, status, body):
    async with mounted(app) as gateway:
        answer = await gateway.request(asks("/app"))
        assert answer.status == status
        assert body is None or answer.body == body
        assert await gateway.leftovers() == []


async def raises_later(receive, send):
    raise KeyError("oh")


async def closes_with_no_code(receive, send):
    await send({"type": "websocket.close", "code": 1006})


async def speaks_http(receive, send):
    await send({"type": "http.response.body"})


async def says_nothing_at_all(receive, send):
    await send({"type": "websocket.send"})


@pytest.mark.parametrize("then", [raises_later, closes_with_no_code, speaks_http, says_nothing_at_all])
async def test_one_that_goes_wrong_later_is_closed_as_an_error(then):
    @only_websockets
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        await then(receive, send)

    async with opened(app) as (gateway, client):
        assert await client.take() == [(CLOSE, 1, (1011).to_bytes(2) + b"Internal error")]
        await client.send(close(1011, masked=True))
        assert await client.is_over()
        assert await gateway.leftovers() == []


async def test_one_that_stays_after_its_websocket_is_cancelled(monkeypatch):
    monkeypatch.setattr("gw.applications.APP_LEAVES", 0.01)
    monkeypatch.setattr("gw.websocket.WS_HANDLER_ENDS", 0.2)
    ended = anyio.Event()

    @only_websockets
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with opened(app) as (gateway, client):
        await client.send(close(1000, masked=True))
        await gateway.network.advance(10)
        with anyio.fail_after(PATIENCE):
            await ended.wait()
        assert await gateway.leftovers() == []


async def test_filters_are_before_its_websockets_and_see_messages():
    class Guard(Filter):
        async def on_request_headers(self, ex):
            return Reply(401, b"no") if ex.request.path.endswith("/secret") else None

        async def on_message(self, ex, message, from_client):
            return Message(message.data + ("<" if from_client else ">"))

    plugins, module = PluginSet(), ModuleType("guard")
    module.GW_API = 1
    module.gw_filters = hookimpl(lambda route, ctx: [Guard()], specname="gw_filters")
    plugins.add("guard", module)
    async with opened(echoes, plugins=plugins) as (gateway, client):
        assert (await gateway.request(asks("/app/secret"))).status == 401
        await client.send(sent(TEXT, b"x"))
        assert await client.take() == [(TEXT, 1, b"x<>")]


async def test_the_gateways_rules_for_websockets_hold_for_applications():
    async with mounted(echoes, config={"websocket": {"origins": ["https://a.test"]}}) as gateway:
        assert (await gateway.request(asks("/app", "Origin: https://b.test"))).status == 403
    async with mounted(echoes, config={"websocket": {"enabled": False}}) as gateway:
        assert (await gateway.request(asks("/app"))).status == 404
    async with opened(echoes, config={"max_ws_message_size": 3}) as (_, client):
        await client.send(sent(TEXT, b"four"))
        assert [payload[:2] for _, _, payload in await client.take()] == [(1009).to_bytes(2)]
