"""Streams on asyncio and uvloop: the loop's own transport and a Protocol, nothing between.

Only this file imports asyncio. What may be waited for and how long is `Stream`'s business.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from anyio.abc import SocketAttribute

from gw.limits import (
    ACCEPT_PAUSE,
    CLOSE_FLUSH_TIME,
    MAX_HELD_WRITE,
    PULL_SIZE,
    TURN_PAUSE,
    WRITE_HIGH_WATER,
    WRITE_LOW_WATER,
)
from gw.net.deadlines import Deadlines
from gw.net.share import Share
from gw.net.stream import Signal, Stream, salvage
from gw.net.tls import ServerTls

try:
    import sniffio
except ImportError:
    sniffio = None  # type: ignore[assignment]

__all__ = ["AsyncioDriver", "AsyncioStream", "is_running"]

log = logging.getLogger("gw.net")


class _Outbox:
    """Small writes of one turn of the loop, sent together at its end.

    A send wakes the process at the other end of a local connection, and a proxy that sends, thinks for 40 us, and
    sends again wakes it each time anew. Sends in a row find it awake: measured, a fifth of the CPU time of a request.
    """

    __slots__ = ("_loop", "_streams", "closing")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: list[AsyncioStream] = []
        self.closing: set[AsyncioStream] = set()
        """Over TLS, and closed here: they wait for the peer's close_notify."""

    def add(self, stream: AsyncioStream) -> None:
        if not self._streams:
            self._loop.call_soon(self._send)
        self._streams.append(stream)

    def _send(self) -> None:
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.flush()


class _Signal:
    """A future that is set at most once and may be abandoned."""

    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[None] = loop.create_future()

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def wait(self) -> asyncio.Future[None]:
        return self._future


class AsyncioStream(Stream, asyncio.Protocol):
    """A `Stream` that is its transport's protocol."""

    __slots__ = ("_held", "_loop", "_made", "_outbox", "_pulls", "_reader", "_salvages", "_transport", "_writer", "tls")

    def __init__(
        self,
        deadlines: Deadlines,
        loop: asyncio.AbstractEventLoop,
        outbox: _Outbox,
        made: Callable[[AsyncioStream], None] | None = None,
        *,
        salvages: bool = False,
    ) -> None:
        super().__init__(deadlines)
        self._loop = loop
        self._outbox = outbox
        self._held = b""
        """Written, and waiting for the end of this turn of the loop."""
        self._pulls = False
        """`flush_soon` was called, and the end of the turn has not come yet."""
        self._made = made
        self._salvages = salvages
        self._reader: asyncio.Future[bytes] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.tls: ssl.SSLObject | None = None

    # --- asyncio.Protocol ----------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.tls = transport.get_extra_info("ssl_object")
        # asyncio sets it only for sockets whose protocol number is IPPROTO_TCP, and listeners hand out others.
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.set_write_marks(WRITE_HIGH_WATER, WRITE_LOW_WATER)
        if self._made is not None:
            self._made(self)
            self._made = None

    def data_received(self, data: bytes) -> None:
        # `Stream._received`, unrolled: this runs for every read of every connection.
        reader = self._reader
        if reader is not None:
            self._reader = None
            if not reader.done():
                reader.set_result(data)
                return
        self._received(data)

    def eof_received(self) -> bool:
        if self.tls is None:
            self._ended()
            return True  # half-closed: the answer may still be on its way
        if _was_closed(self.tls):
            self._ended()
        return False  # neither loop can half-close TLS

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self._salvages and self.tls is None:
            # The descriptor is still open here, on both loops.
            self._data += salvage(self._transport.get_extra_info("socket"))
        if self.tls is not None:
            self._outbox.closing.discard(self)
        elif exc is None:
            self._ended()
        self._gone()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._wake_writer()
        if self.pull is not None:
            self.flush_soon()

    # --- Stream --------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._held or len(data) > MAX_HELD_WRITE:
            self.flush()
            if not self.lost:
                self._transport.write(data)
        elif not self.lost:
            self._held = data
            self._outbox.add(self)

    def write_parts(self, parts: list[bytes]) -> None:
        self.flush()
        if not self.lost:
            self._transport.writelines(parts)

    def flush_soon(self) -> None:
        if not self._pulls:
            self._pulls = True
            self._outbox.add(self)

    def flush(self) -> None:
        """Send what `write` held back, and what there is to pull."""
        held = self._held
        if held:
            self._held = b""
            if not self.lost:
                self._transport.write(held)
        if self._pulls:
            self._pulls = False
            pull = self.pull
            while pull is not None and not self.paused and not self.lost:
                data = pull(PULL_SIZE)
                if data:
                    self._transport.write(data)
                if len(data) < PULL_SIZE:
                    break

    @property
    def unsent(self) -> int:
        return 0 if self.lost else self._transport.get_write_buffer_size() + len(self._held)

    def set_write_marks(self, high: int, low: int) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def write_eof(self) -> None:
        self.flush()
        if not self.lost and self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        if not self.lost:
            self._transport.abort()
            self._gone()

    def _close(self) -> None:
        self.flush()
        if not self._transport.is_closing():  # asyncio's TLS cannot be closed twice
            if self.tls is not None:
                self._outbox.closing.add(self)
            self._transport.close()

    async def receive(self, max_bytes: int | None = None) -> bytes:
        # `Stream.receive`, with the bytes handed over by the future that waits for them.
        if not (self._data or self.at_eof or self.lost or self._error is not None or max_bytes is not None):
            self._reader = reader = self._loop.create_future()
            try:
                data: bytes = await reader
            except BaseException:
                self._take_back(reader)
                raise
            if data:
                return data
        return await super().receive(max_bytes)

    async def _wait_readable(self) -> None:
        self._reader = reader = self._loop.create_future()
        try:
            await reader
        finally:
            self._take_back(reader)

    def _take_back(self, reader: asyncio.Future[bytes]) -> None:
        """Put what *reader* was handed before whatever came after it."""
        if reader.done() and not reader.cancelled():
            self._data = reader.result() + self._data

    def _reader_waits(self) -> bool:
        return self._reader is not None and not self._reader.done()

    def _wake_reader(self) -> None:
        reader = self._reader
        if reader is not None:
            self._reader = None
            if not reader.done():
                reader.set_result(b"")

    def signal(self) -> Signal:
        return _Signal(self._loop)

    def _wait_writable(self) -> Awaitable[object]:
        self._writer = writer = self._loop.create_future()
        return writer

    def _wake_writer(self) -> None:
        writer = self._writer
        if writer is not None:
            self._writer = None
            if not writer.done():
                writer.set_result(None)

    def _pause_reading(self) -> None:
        if not self.lost and not self._transport.is_closing():
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self.lost and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        info = self._transport.get_extra_info
        return {
            SocketAttribute.family: lambda: info("socket").family,
            SocketAttribute.local_address: lambda: info("sockname"),
            SocketAttribute.remote_address: lambda: info("peername"),
            SocketAttribute.raw_socket: lambda: info("socket"),
        }


def _was_closed(connection: ssl.SSLObject) -> bool:
    """Tell whether the peer ended TLS in good order; without that, somebody may have cut the connection short."""
    try:
        return connection.read(1) == b""
    except ssl.SSLError:
        return False


def is_running() -> bool:
    """Tell whether the caller runs on an asyncio loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class AsyncioDriver:
    """Makes streams on the running loop."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._loop = asyncio.get_running_loop()
        self._outbox = _Outbox(self._loop)
        if sniffio is not None:
            # anyio asks it which library runs. In what the loop calls back no task does, and it knows only what it was
            # told: by `anyio.run`, not by `asyncio.run`.
            sniffio.current_async_library_cvar.set("asyncio")

    async def dial(
        self, host: str, port: int, tls: ssl.SSLContext | None = None, server_name: str | None = None
    ) -> AsyncioStream:
        """Connect; raises `OSError`, of which `ssl.SSLError` is one. Deadlines are the caller's."""
        stream = AsyncioStream(self._deadlines, self._loop, self._outbox, salvages=True)
        await self._loop.create_connection(
            lambda: stream,
            host,
            port,
            ssl=tls,
            server_hostname=server_name if tls is not None else None,
            ssl_shutdown_timeout=CLOSE_FLUSH_TIME if tls is not None else None,
        )
        return stream

    async def listen(
        self, sock: socket.socket, on_stream: Callable[[Stream], None], share: Share | None = None
    ) -> Callable[[], None]:
        """Accept on *sock* until the function returned is called; *on_stream* gets each connection, and must not wait.

        With *share* other processes accept on it too.
        """

        def made() -> AsyncioStream:
            return AsyncioStream(self._deadlines, self._loop, self._outbox, on_stream)

        if share is not None:
            being_made: set[asyncio.Task[Any]] = set()

            def accepted(connection: socket.socket) -> None:
                task = self._loop.create_task(self._loop.connect_accepted_socket(made, connection))
                being_made.add(task)
                task.add_done_callback(being_made.discard)

            return self.accept(sock, accepted, share)
        server = await self._loop.create_server(made, sock=sock)
        return server.close

    def accept(
        self, sock: socket.socket, on_socket: Callable[[socket.socket], None], share: Share | None = None
    ) -> Callable[[], None]:
        """As `listen`, for what has to be done with a connection before it is a stream."""
        loop = self._loop
        again: asyncio.TimerHandle | None = None

        def ready() -> None:
            nonlocal again
            if share is not None and not share.is_ours:
                loop.remove_reader(sock)
                again = loop.call_later(TURN_PAUSE, insist)
                return
            take()

        def insist() -> None:
            loop.add_reader(sock, ready)
            take()  # if it is still there, the others do not want it

        def take() -> None:
            nonlocal again
            for _ in range(64 if share is None else 1):
                try:
                    connection, _ = sock.accept()
                except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                    return
                except OSError as error:
                    if error.errno not in _EXHAUSTED:
                        raise
                    log.error("cannot accept: %s; trying again in %g s", error.strerror, ACCEPT_PAUSE)  # noqa: TRY400
                    loop.remove_reader(sock)
                    again = loop.call_later(ACCEPT_PAUSE, loop.add_reader, sock, ready)
                    return
                connection.setblocking(False)
                on_socket(connection)

        def close() -> None:
            if sock.fileno() >= 0:
                loop.remove_reader(sock)
                if again is not None:
                    again.cancel()
                sock.close()

        sock.setblocking(False)
        loop.add_reader(sock, ready)
        return close

    async def aclose(self) -> None:
        """Cut off what waits for its peer to close."""
        for stream in tuple(self._outbox.closing):
            stream.abort()
        for _ in range(2):  # the loop closes a transport one turn later, and its socket another one
            await asyncio.sleep(0)

    async def secure(self, connection: socket.socket, tls: ServerTls) -> AsyncioStream:
        """Shake hands with the client on *connection*; raises `OSError`, of which `ssl.SSLError` is one."""
        stream = AsyncioStream(self._deadlines, self._loop, self._outbox)
        try:
            await self._loop.connect_accepted_socket(
                lambda: stream,
                connection,
                ssl=tls.context,
                ssl_handshake_timeout=tls.handshake_timeout,
                ssl_shutdown_timeout=CLOSE_FLUSH_TIME,
            )
        except BaseException:
            connection.close()
            raise
        return stream


_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""What `accept` says when there is nothing left to accept with."""
