"""Streams on any loop anyio runs on, trio above all: two tasks a connection move the bytes.

Slower than `gw.net.on_asyncio`, and the same to everything above.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup

from gw.limits import WRITE_HIGH_WATER, WRITE_LOW_WATER
from gw.net.deadlines import Deadlines
from gw.net.stream import Stream, salvage

__all__ = ["AnyioStream"]


class AnyioStream(Stream):
    """A `Stream` over anyio's: a reader task fills it, a writer task empties it."""

    def __init__(self, deadlines: Deadlines, socket: SocketStream, tasks: TaskGroup, *, salvages: bool = False) -> None:
        super().__init__(deadlines)
        self._socket = socket
        self._salvages = salvages
        self._high, self._low = WRITE_HIGH_WATER, WRITE_LOW_WATER
        self._unsent = bytearray()
        self._in_flight = 0
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
                await (anyio.aclose_forcefully(self._socket) if self._scope.cancel_called else self._socket.aclose())
            self._gone()

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
            while self._unsent:
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
                await self._socket.send_eof()
            self._work = anyio.Event()
            await self._work.wait()

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
        self._closing = True
        self._work.set()

    def _pause_reading(self) -> None:
        """Do nothing: the reader task looks at the flag before it reads again."""

    def _resume_reading(self) -> None:
        self._resume.set()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._socket.extra_attributes
