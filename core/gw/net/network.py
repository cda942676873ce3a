"""The one door to sockets: dial out, listen, and keep time, on whichever event loop runs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup

from gw.limits import LISTEN_BACKLOG
from gw.net import on_asyncio
from gw.net.deadlines import Deadlines
from gw.net.on_anyio import AnyioStream
from gw.net.stream import Stream

__all__ = ["Listener", "Network"]


def _bind(host: str, port: int) -> socket.socket:
    sock: socket.socket | None = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(LISTEN_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        if sock is not None:
            sock.close()
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from error
    return sock


class Listener:
    """Where connections come in at *address*, until it is closed."""

    def __init__(self, address: tuple[str, int], close: Callable[[], None]) -> None:
        self.address = address
        self.close = close


class Network:
    """Streams and deadlines of one event loop. Background work runs in *tasks*."""

    def __init__(self, tasks: TaskGroup, deadlines: Deadlines | None = None) -> None:
        self.tasks = tasks
        self.deadlines = Deadlines() if deadlines is None else deadlines
        self._asyncio = on_asyncio.AsyncioDriver(self.deadlines) if on_asyncio.is_running() else None

    async def dial(self, host: str, port: int) -> Stream:
        """Connect to *host*; raises `OSError`."""
        if self._asyncio is not None:
            return await self._asyncio.dial(host, port)
        sock = await anyio.connect_tcp(host, port)
        sock.extra(SocketAttribute.raw_socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return AnyioStream(self.deadlines, sock, self.tasks, salvages=True)

    async def listen(
        self, at: socket.socket | tuple[str, int], serve: Callable[[Stream], Coroutine[Any, Any, None]]
    ) -> Listener:
        """Run *serve*, which must not raise, in a task of its own for every connection accepted.

        *at* is a listening socket, or host and port to bind one to: a name is resolved, port 0 takes a free one.
        Raises `OSError`.
        """
        sock = at if isinstance(at, socket.socket) else _bind(*at)
        host, port = sock.getsockname()[:2]
        if self._asyncio is not None:

            def accepted(stream: Stream) -> None:
                self.tasks.start_soon(serve, stream)

            return Listener((host, port), await self._asyncio.listen(sock, accepted))
        listener = await SocketListener.from_socket(sock)
        scope = anyio.CancelScope()

        async def handle(connection: SocketStream) -> None:
            connection.extra(SocketAttribute.raw_socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await serve(AnyioStream(self.deadlines, connection, self.tasks))

        async def accept() -> None:
            try:
                with scope:
                    await listener.serve(handle, self.tasks)
            finally:
                with anyio.CancelScope(shield=True):
                    await listener.aclose()

        self.tasks.start_soon(accept)
        return Listener((host, port), scope.cancel)
