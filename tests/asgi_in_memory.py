"""ASGI applications for tests, and gateways in memory that have them."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

from gw.testing.gateway import in_memory


@asynccontextmanager
async def mounted(app, path="/app", config=None, **more):
    def prepare(gateway):
        gateway.mount(path, app)

    async with in_memory(config, prepare=prepare, **more) as gateway:
        yield gateway


def only_http(app):
    """Return *app* with no lifespan."""

    async def whole(scope, receive, send):
        if scope["type"] != "http":
            raise ValueError("no lifespan here")
        await app(scope, receive, send)

    return whole


async def say(send, body=b"ok", status=200, headers=(), *, more=False):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def body_of(receive):
    body = b""
    while True:
        event = await receive()
        assert event["type"] == "http.request"
        body += event["body"]
        if not event["more_body"]:
            return body


@only_http
async def tells(scope, receive, send):
    seen = {key: scope[key] for key in ("method", "scheme", "path", "root_path", "http_version", "client", "server")}
    seen |= {key: scope[key].decode() for key in ("raw_path", "query_string")}
    seen["headers"] = [[name.decode(), value.decode()] for name, value in scope["headers"]]
    seen["body"] = (await body_of(receive)).decode()
    await say(send, json.dumps(seen).encode(), 201, [(b"X-App", b"yes"), (b"connection", b"close")])


def only_websockets(app):
    """Return *app* with no lifespan, told that somebody wants a WebSocket."""

    async def whole(scope, receive, send):
        if scope["type"] != "websocket":
            raise ValueError("no lifespan here")
        assert await receive() == {"type": "websocket.connect"}
        await app(scope, receive, send)

    return whole


@only_websockets
async def echoes(scope, receive, send):
    await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[-1]})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


class Living:
    """Has a lifespan, and state for its requests."""

    def __init__(self):
        self.steps = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                event = await receive()
                self.steps.append(event["type"])
                scope["state"]["database"] = "open"
                await send({"type": f"{event['type']}.complete"})
                if event["type"] == "lifespan.shutdown":
                    return
        assert "request" not in scope["state"]
        scope["state"]["request"] = "its own"
        await say(send, scope["state"]["database"].encode())
