"""Streams on any loop anyio runs on, trio above all: two tasks a connection move the bytes.

Slower than `gw.net.on_asyncio`, and the same to everything above.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream, TaskGroup
from anyio.streams.tls import TLSAttribute, TLSStream

from gw.limits import PULL_SIZE, TLS_CLOSE_TIME, WRITE_HIGH_WATER, WRITE_LOW_WATER
from gw.net.deadlines import Deadlines
from gw.net.stream import Stream, salvage

__all__ = ["AnyioStream", "secure"]


class _InTurn(ByteStream):
    """A socket that two tasks may send on: TLS has something to say when it reads, too."""

    def __init__(self, socket: SocketStream) -> None:
        self._socket = socket
        self._turn = anyio.Lock(fast_acquire=True)

    async def send(self, item: bytes) -> None:
        async with self._turn:
            await self._socket.send(item)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._socket.receive(max_bytes)

    async def send_eof(self) -> None:
        await self._socket.send_eof()

    async def aclose(self) -> None:
        await self._socket.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._socket.extra_attributes


async def secure(socket: SocketStream, context: ssl.SSLContext, server_name: str | None = None) -> TLSStream:
    """Shake hands on *socket*, as a client that asks for *server_name* or else as a server; raises `OSError`.

    Where it fails, *socket* is closed.
    """
    try:
        return await TLSStream.wrap(
            _InTurn(socket), server_side=server_name is None, hostname=server_name, ssl_context=context
        )
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            await anyio.aclose_forcefully(socket)
        if isinstance(error, anyio.BrokenResourceError | anyio.EndOfStream):
            raise ConnectionResetError("the connection was closed") from None
        raise


class AnyioStream(Stream):
    """A `Stream` over anyio's: a reader task fills it, a writer task empties it."""

    def __init__(
        self, deadlines: Deadlines, socket: SocketStream | TLSStream, tasks: TaskGroup, *, salvages: bool = False
    ) -> None:
        super().__init__(deadlines)
        self._socket = socket
        self.tls = socket.extra(TLSAttribute.ssl_object, None)
        self._salvages = salvages
        self._high, self._low = WRITE_HIGH_WATER, WRITE_LOW_WATER
        self._unsent = bytearray()
        self._in_flight = 0
        self._pulls = False
        self._closing = self._ending = False
        self._scope = anyio.CancelScope()
        self._work = anyio.Event()
        self._resume = anyio.Event()
        tasks.start_soon(self._run)

    async def _run(self) -> None:
        try:
            with self._scope:
                try:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._read)
                        await self._write()
                        tasks.cancel_scope.cancel()
                except* (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                    if self._salvages:
                        self._data += salvage(self._socket.extra(SocketAttribute.raw_socket))
        finally:
            with anyio.CancelScope(shield=True):
                await self._shut()
            self._gone()

    async def _shut(self) -> None:
        if self._scope.cancel_called:
            await anyio.aclose_forcefully(self._socket)
        elif self.tls is None:
            await self._socket.aclose()
        else:
            with anyio.move_on_after(TLS_CLOSE_TIME):  # it waits for the peer to say that it has understood
                try:
                    await self._socket.aclose()
                except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError, OSError):
                    pass  # the peer had gone; and so has the socket

    async def _read(self) -> None:
        while True:
            try:
                data = await self._socket.receive()
            except anyio.EndOfStream:
                self._ended()
                return
            except anyio.BrokenResourceError:
                # The write side may still have something to say only if the peer listens, and it does not.
                self._scope.cancel()
                return
            self._received(data)
            if self._read_paused:
                self._resume = anyio.Event()
                await self._resume.wait()

    async def _write(self) -> None:
        while True:
            while self._unsent or self._pulls:
                if self._pulls:
                    self._take_pulled()
                    if not self._unsent:
                        continue
                piece = bytes(self._unsent)
                self._unsent.clear()
                self._in_flight = len(piece)
                await self._socket.send(piece)
                self._in_flight = 0
                if self.paused and self.unsent <= self._low:
                    self.paused = False
                    self._wake_writer()
            if self._closing:
                return
            if self._ending:
                self._ending = False
                if self.tls is None:
                    await self._socket.send_eof()
            self._work = anyio.Event()
            await self._work.wait()

    def _take_pulled(self) -> None:
        pulled = b"" if self.pull is None else self.pull(PULL_SIZE)
        self._pulls = len(pulled) >= PULL_SIZE
        self._unsent += pulled

    def flush_soon(self) -> None:
        self._pulls = True
        self._work.set()

    def write(self, data: bytes) -> None:
        if not self.lost and not self._closing:
            self._unsent += data
            self.paused = self.unsent > self._high
            self._work.set()

    def write_parts(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    @property
    def unsent(self) -> int:
        return 0 if self.lost else len(self._unsent) + self._in_flight

    def set_write_marks(self, high: int, low: int) -> None:
        self._high, self._low = high, low

    def write_eof(self) -> None:
        self._ending = True
        self._work.set()

    def abort(self) -> None:
        if not self.lost:
            self._scope.cancel()
            self._gone()

    def _close(self) -> None:
        while self._pulls:  # whoever is pulled from may be gone when the writer looks
            self._take_pulled()
        self._closing = True
        self._work.set()

    def _pause_reading(self) -> None:
        """Do nothing: the reader task looks at the flag before it reads again."""

    def _resume_reading(self) -> None:
        self._resume.set()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._socket.extra_attributes
