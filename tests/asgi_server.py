"""Plays an ASGI server, with the gateway as its application."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import anyio

from gw.config.load import load
from gw.gateway import Gateway
from gw.net.network import Network
from gw.served import Served
from gw.testing import PATIENCE


class Server:
    """Plays the server of one request."""

    def __init__(self, *chunks, left=False):
        self.said, self.left = [], left
        self._to_app, self._from_server = anyio.create_memory_object_stream(100)
        for number, chunk in enumerate(chunks):
            self.brings(chunk, more=number + 1 < len(chunks))
        self.moved = anyio.Event()

    def brings(self, chunk=b"", *, more=False):
        self._to_app.send_nowait({"type": "http.request", "body": chunk, "more_body": more})

    def leaves(self):
        self._to_app.send_nowait({"type": "http.disconnect"})

    async def receive(self):
        return await self._from_server.receive()

    async def send(self, event):
        if self.left:
            raise OSError("nobody there")
        self.said.append(event)
        self.moved.set()
        self.moved = anyio.Event()

    async def until(self, said):
        with anyio.fail_after(PATIENCE):
            while len(self.said) < said:
                await self.moved.wait()

    def close(self):
        self._to_app.close()
        self._from_server.close()

    @property
    def status(self):
        return self.said[0]["status"]

    @property
    def fields(self):
        return dict(self.said[0]["headers"])

    @property
    def body(self):
        return b"".join(event["body"] for event in self.said[1:])


@asynccontextmanager
async def served(config=None, *, prepare=lambda gateway: None, network=Network):
    """Have a gateway be an application that has started; yield it, and what asks it."""
    gateway = Gateway(load({"bind_port": 1, "plugins": [], **(config or {})}, environ={}))
    prepare(gateway)
    gateway.serve = partial(gateway.serve, network=network)
    app, ends, told, states = Served(gateway), anyio.Event(), anyio.Event(), ["lifespan.shutdown", "lifespan.startup"]
    said = []

    async def receive():
        if len(states) == 1:
            await ends.wait()
        return {"type": states.pop()}

    async def send(event):
        said.append(event)
        told.set()

    servers = []

    async def ask(server, path=b"/", method="GET", fields=((b"host", b"a.test"),), version="1.1", **more):
        servers.append(server)
        scope = {"type": "http", "method": method, "raw_path": path, "http_version": version, "headers": fields}
        scope |= {"scheme": "https", "client": ("198.51.100.7", 5), "query_string": b"", **more}
        with anyio.fail_after(PATIENCE):
            await app(scope, server.receive, server.send)
        return server

    failure = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, {"type": "lifespan"}, receive, send)
        await told.wait()
        assert said == [{"type": "lifespan.startup.complete"}]
        try:
            yield gateway, ask
        except Exception as error:  # noqa: BLE001  # raised below, where no task group wraps it
            failure = error
        ends.set()
    for server in servers:
        server.close()
    if failure is not None:
        raise failure
    assert said[1:] == [{"type": "lifespan.shutdown.complete"}]
