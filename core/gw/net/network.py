"""The one door to sockets: dial out, listen, and keep time, on whichever event loop runs."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup

from gw.limits import ACCEPT_PAUSE, LISTEN_BACKLOG, TURN_PAUSE
from gw.net import on_asyncio
from gw.net.deadlines import Deadlines
from gw.net.on_anyio import AnyioStream, secure
from gw.net.resolve import Answer, system
from gw.net.share import Share
from gw.net.stream import Stream
from gw.net.tls import ClientTls, ServerTls

__all__ = ["Listener", "Network", "bind"]

log = logging.getLogger("gw.net")

C = TypeVar("C")
T = TypeVar("T")


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens: a name is resolved, port 0 takes a free one. Raises `OSError` that says where."""
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
        self.share: Share | None = None
        """Says which connections are ours, where other processes accept on the same sockets."""
        self._asyncio = on_asyncio.AsyncioDriver(self.deadlines) if on_asyncio.is_running() else None
        self.handshakes = self.handshakes_failed = 0
        """TLS handshakes with clients of all listeners, those that succeeded and those that did not."""

    async def dial(self, host: str, port: int, tls: ClientTls | None = None, *, name: str = "") -> Stream:
        """Connect to *host*, with TLS or without; raises `OSError`, of which `ssl.SSLError` is one.

        *name* is whom to ask for in the handshake, where *host* is only one of its addresses.
        """
        asked = None if tls is None else tls.server_name(name or host)
        context = None if tls is None else tls.context
        if self._asyncio is not None:
            return await self._asyncio.dial(host, port, context, asked)
        sock = await anyio.connect_tcp(host, port)
        sock.extra(SocketAttribute.raw_socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is None:
            return AnyioStream(self.deadlines, sock, self.tasks, salvages=True)
        return AnyioStream(self.deadlines, await secure(sock, context, asked), self.tasks)

    async def aclose(self) -> None:
        """Cut off what is still saying goodbye, which over TLS means waiting for the peer's. Nothing is opened after it."""
        if self._asyncio is not None:
            await self._asyncio.aclose()

    async def lookup(self, name: str, family: int) -> Answer:
        """Find the addresses of *name*; raises `OSError`. Takes as long as the system's resolver does."""
        return await system(name, family)

    async def sleep(self, seconds: float) -> None:
        """Let *seconds* pass: finer than the wheel's turns, and a timer each."""
        await anyio.sleep(seconds)

    def bind(self, host: str, port: int) -> socket.socket:
        """Return a socket for `listen`, as `bind` does."""
        return bind(host, port)

    async def listen(
        self,
        at: socket.socket | tuple[str, int],
        serve: Callable[[Stream], Coroutine[Any, Any, None]],
        tls: ServerTls | None = None,
        *,
        admit: Callable[[], bool] | None = None,
    ) -> Listener:
        """Run *serve*, which must not raise, in a task of its own for every connection accepted.

        *at* is a listening socket, or host and port to bind one to: a name is resolved, port 0 takes a free one.
        With *tls*, *admit* is asked before each handshake; *serve* begins after it. Raises `OSError`.
        """
        sock = at if isinstance(at, socket.socket) else bind(*at)
        host, port = sock.getsockname()[:2]
        share = self.share
        if self._asyncio is not None:
            if tls is not None:
                return Listener((host, port), self._accept_tls(self._asyncio, sock, serve, tls, admit))

            if share is not None:
                serve = _counted(serve, share)

            def accepted(stream: Stream) -> None:
                if share is not None:
                    share.add(1)
                self.tasks.start_soon(serve, stream)

            return Listener((host, port), await self._asyncio.listen(sock, accepted, share))
        listener = await SocketListener.from_socket(sock)
        scope = anyio.CancelScope()

        async def handle(connection: SocketStream) -> None:
            connection.extra(SocketAttribute.raw_socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is None:
                await serve(AnyioStream(self.deadlines, connection, self.tasks))
            elif admit is not None and not admit():
                await anyio.aclose_forcefully(connection)
            else:
                peer = _peer(connection.extra(SocketAttribute.raw_socket))
                secured = await self._shaken(tls, peer, lambda: secure(connection, tls.context))
                if secured is not None:
                    await serve(AnyioStream(self.deadlines, secured, self.tasks))

        async def accept() -> None:
            try:
                with scope:
                    if share is None:
                        await listener.serve(handle, self.tasks)
                    else:
                        await self._accept_in_turn(sock, _counted(handle, share), share)
            finally:
                with anyio.CancelScope(shield=True):
                    await listener.aclose()

        self.tasks.start_soon(accept)
        return Listener((host, port), scope.cancel)

    async def _accept_in_turn(
        self, sock: socket.socket, handle: Callable[[SocketStream], Coroutine[Any, Any, None]], share: Share
    ) -> None:
        while True:
            await anyio.wait_readable(sock)
            if not share.is_ours:
                await anyio.sleep(TURN_PAUSE)  # if it is still there then, the others do not want it
            try:
                connection, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                continue
            except OSError as error:
                log.error("cannot accept: %s", error.strerror)  # noqa: TRY400 - it is no bug
                await anyio.sleep(ACCEPT_PAUSE)
                continue
            try:
                stream = await SocketStream.from_socket(connection)
            except (OSError, ValueError):  # it has gone already
                connection.close()
                continue
            share.add(1)
            self.tasks.start_soon(handle, stream)

    def _accept_tls(
        self,
        driver: on_asyncio.AsyncioDriver,
        sock: socket.socket,
        serve: Callable[[Stream], Coroutine[Any, Any, None]],
        tls: ServerTls,
        admit: Callable[[], bool] | None,
    ) -> Callable[[], None]:
        async def handle(connection: socket.socket) -> None:
            stream = await self._shaken(tls, _peer(connection), lambda: driver.secure(connection, tls))
            if stream is not None:
                await serve(stream)

        share = self.share
        run = handle if share is None else _counted(handle, share)

        def accepted(connection: socket.socket) -> None:
            if admit is not None and not admit():
                connection.close()
                return
            if share is not None:
                share.add(1)
            self.tasks.start_soon(run, connection)

        return driver.accept(sock, accepted, share)

    async def _shaken(self, tls: ServerTls, peer: str, shake: Callable[[], Awaitable[T]]) -> T | None:
        """Do a handshake within its time; `None`, and counted, where it fails."""
        tls.pending += 1
        try:
            with anyio.fail_after(tls.handshake_timeout):
                shaken = await shake()
        except (OSError, ValueError) as error:  # TimeoutError and ssl.SSLError are among the first
            self.handshakes_failed += 1
            tls.failed(peer, error)
            return None
        finally:
            tls.pending -= 1
        self.handshakes += 1
        return shaken


def _counted(serve: Callable[[C], Coroutine[Any, Any, None]], share: Share) -> Callable[[C], Coroutine[Any, Any, None]]:
    """Return *serve*, with the connection that it was given counted as over afterwards."""

    async def counted(connection: C) -> None:
        try:
            await serve(connection)
        finally:
            share.add(-1)

    return counted


def _peer(sock: Any) -> str:
    try:
        return str(sock.getpeername()[0])
    except OSError:
        return "a client that has gone"
