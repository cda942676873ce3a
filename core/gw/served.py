"""The gateway as an ASGI 3 application, for the servers that run those: uvicorn, hypercorn, granian."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import anyio

from gw.config.load import load
from gw.downstream.asgi import AsgiStream
from gw.downstream.asgi_websocket import AsgiSocket
from gw.gateway import Gateway
from gw.keys import Client

__all__ = ["Served", "asgi"]

Event = MutableMapping[str, Any]


def asgi(config: str | Path | Mapping[str, Any]) -> Served:
    """Return the gateway of *config*, a path or a mapping, as an ASGI application; raises `ConfigError`."""
    return Served(Gateway(load(Path(config) if isinstance(config, str) else config)))


class Served:
    """*gateway* as an ASGI application: it serves what the server hands it, and listens nowhere itself.

    The server must speak the lifespan protocol: the gateway begins and ends with it.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        gateway.listens = False

    async def __call__(
        self,
        scope: Event,
        receive: Callable[[], Awaitable[Event]],
        send: Callable[[Event], Awaitable[None]],
    ) -> None:
        match scope["type"]:
            case "http":
                await self._serve(AsgiStream, scope, receive, send)
            case "lifespan":
                await self._lifespan(receive, send)
            case "websocket":
                await self._serve(AsgiSocket, scope, receive, send)
            case other:
                raise ValueError(f"{other!r} is nothing that the gateway speaks under another server")

    async def _serve(
        self,
        kind: type[AsgiStream],
        scope: Event,
        receive: Callable[[], Awaitable[Event]],
        send: Callable[[Event], Awaitable[None]],
    ) -> None:
        if self.gateway.generation == 0:
            raise RuntimeError("the gateway has not started: run it with the server's lifespan on")
        ip, port = scope.get("client") or ("", 0)
        scheme = "https" if scope.get("scheme") in {"https", "wss"} else "http"
        client = Client(ip, ip, port, scheme, trusted=self.gateway.trusts(ip))
        await kind(self.gateway, client, receive, send).serve(scope)

    async def _lifespan(
        self, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
    ) -> None:
        await receive()
        ready, failures = anyio.Event(), list[Exception]()

        async def serve() -> None:
            try:
                await self.gateway.serve(ready=ready.set)
            except Exception as error:  # noqa: BLE001  # it is told to the server
                failures.append(error)
            finally:
                ready.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            await ready.wait()
            if not failures:
                await send({"type": "lifespan.startup.complete"})
                await receive()
                self.gateway.stop()
        if failures:
            await send({"type": "lifespan.startup.failed", "message": str(failures[0])})
        else:
            await send({"type": "lifespan.shutdown.complete"})
