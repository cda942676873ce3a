"""The gateway as an ASGI application: how it starts and ends, and that it answers."""

from __future__ import annotations

import anyio
import pytest
from asgi_server import Server, served

import gw
from gw.config.errors import ConfigError
from gw.config.load import load
from gw.filters import Reply
from gw.gateway import Gateway
from gw.served import Served
from gw.testing import PATIENCE


async def test_a_request_is_answered_and_nothing_listens():
    def prepare(gateway):
        async def greet(ex):
            return Reply(200, f"{ex.client.ip} {ex.request.scheme} {ex.params['name']} {ex.request.query}".encode())

        gateway.route("/hello/:name", greet, methods=("GET", "HEAD"))

    async with served({"server_header": "gw"}, prepare=prepare) as (gateway, ask):
        assert gateway.addresses == {}
        server = await ask(Server(b""), b"/hello/you", query_string=b"a=%20")
        assert (server.status, server.body) == (200, b"198.51.100.7 https you a=%20")
        assert (server.fields[b"content-length"], server.fields[b"server"]) == (b"28", b"gw")
        assert server.said[-1]["more_body"] is False
        server = await ask(Server(b""), b"/hello/you", "HEAD")
        assert (server.fields[b"content-length"], server.body, len(server.said)) == (b"27", b"", 2)
        assert (await ask(Server(b""), b"/other")).status == 404
        assert (await ask(Server(b""), b"/ready")).status == 200
        assert (await ask(Server(b""), b"/stats")).status == 200


async def test_a_gateway_that_cannot_start_says_why():
    async def fails(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    gateway = Gateway(load({"plugins": []}, environ={}))
    gateway.mount("/app", fails)
    said = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(event):
        said.append(event)

    with anyio.fail_after(PATIENCE):
        await Served(gateway)({"type": "lifespan"}, receive, send)
    why = "application app /app cannot start: no database"
    assert said == [{"type": "lifespan.startup.failed", "message": why}]
    with pytest.raises(RuntimeError, match="run it with the server's lifespan on"):
        await Served(gateway)({"type": "http"}, receive, send)
    with pytest.raises(ValueError, match="'mqtt' is nothing that the gateway speaks"):
        await Served(gateway)({"type": "mqtt"}, receive, send)


async def test_it_reloads_without_listening():
    async with served() as (gateway, ask):
        assert (await ask(Server(b""), b"/x")).status == 404
        again = {"plugins": [], "listeners": [{"name": "more", "bind_port": 1}]}
        await gateway.reload(load(again, environ={}))
        assert (gateway.generation, gateway.addresses) == (2, {})
        assert (await ask(Server(b""), b"/x")).status == 404


def test_a_configuration_is_an_application(tmp_path):
    path = tmp_path / "gateway.json"
    path.write_text('{"server_header": "here"}')
    for app in (gw.asgi(path), gw.asgi(str(path)), gw.asgi({"server_header": "here"})):
        assert isinstance(app, Served)
        assert app.gateway.loaded.config.server_header == "here"
        assert not app.gateway.listens
    with pytest.raises(ConfigError, match="bind_prot"):
        gw.asgi({"bind_prot": 1})
