"""A network in memory: the real gateway, its real engines, pools and chains, without a socket.

Bytes written on one end are there on the other at once. Time is a number that
the test moves, so that deadlines are tested without waiting. What is cut where,
and what must be left then, is `gw.testing.cuts`'s.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import anyio
from anyio.abc import SocketAttribute, TaskGroup

from gw.limits import WRITE_HIGH_WATER, WRITE_LOW_WATER
from gw.net.deadlines import RESOLUTION, Deadlines
from gw.net.network import Listener, Network
from gw.net.resolve import Answer
from gw.net.stream import Stream
from gw.net.tls import ClientTls, ServerTls

__all__ = ["Backlog", "Clock", "MemoryNetwork", "MemoryStream", "pair"]


_ONE_READ: Final = 65536
"""The most that arrives at once."""

_HOPS: Final = 20
"""Turns of the loop that a step in memory takes at most, mostly."""

_GLANCE: Final = 0.001
"""Seconds after which `settle` looks again: anyio's `wait_all_tasks_blocked` sleeps 0.1 where it finds a task at work."""


class Clock:
    """A time of its own, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class MemoryStream(Stream):
    """One end of a connection that has no socket. Cut it with `abort`, end it with `write_eof` or `close`.

    Whoever sends to an end that is closed is reset, as TCP does; what had arrived can still be read.
    """

    def __init__(self, deadlines: Deadlines, address: tuple[str, int]) -> None:
        super().__init__(deadlines)
        self.other: MemoryStream
        self.on_wait: Callable[[], None] | None = None
        """Called before each wait of this end; it may cut either end."""
        self._address = address
        self.agreed: str | None = None
        """What a TLS handshake would have agreed on, empty for nothing; `None` where there is no TLS."""
        self._held = bytearray()
        self._eof_pending = False
        self._closing = False
        self._high, self._low = WRITE_HIGH_WATER, WRITE_LOW_WATER

    def write(self, data: bytes) -> None:
        if not self.lost and not self._closing:
            self._held += data
            self._deliver()

    def write_parts(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def flush_soon(self) -> None:
        while self.pull is not None and not self.paused and not self.lost and (data := self.pull(_ONE_READ)):
            self.write(data)

    def _deliver(self) -> None:
        other = self.other
        if other.lost and self._held:
            self._held.clear()
            self._gone()
            return
        while self._held and not other._read_paused:
            data = bytes(self._held[:_ONE_READ])
            del self._held[:_ONE_READ]
            other._received(data)
        if not self._held and self._eof_pending:
            self._eof_pending = False
            other._ended()
            if self._closing:
                self._gone()
                if other._closing and not other._held:
                    other._gone()
        was, self.paused = self.paused, len(self._held) > (self._low if self.paused else self._high)
        if was and not self.paused:
            self._wake_writer()
            if self.pull is not None:
                self.flush_soon()

    @property
    def unsent(self) -> int:
        return len(self._held)

    def set_write_marks(self, high: int, low: int) -> None:
        self._high, self._low = high, low

    def write_eof(self) -> None:
        if not self.lost:
            self._eof_pending = True
            self._deliver()

    def _close(self) -> None:
        self._closing = True
        self.write_eof()

    def abort(self) -> None:
        if not self.lost:
            self._held.clear()
            self._gone()
            self.other._gone()

    def _pause_reading(self) -> None:
        """Do nothing: the other end looks at the flag before it delivers."""

    def _resume_reading(self) -> None:
        self.other._deliver()

    async def _wait_readable(self) -> None:
        if self._goes_on():
            await super()._wait_readable()

    def _wait_writable(self) -> Awaitable[object]:
        return super()._wait_writable() if self._goes_on() else anyio.lowlevel.checkpoint()

    def _goes_on(self) -> bool:
        """Announce a wait; tell whether there is still something to wait for."""
        if self.on_wait is not None:
            self.on_wait()
        return not (self.lost or self.at_eof or self._error)

    # --- for the test's end ------------------------------------------------------

    async def read_until(self, mark: bytes) -> bytes:
        """Return what comes up to *mark* and including it; raises `anyio.EndOfStream` or `StreamLost` without it."""
        data = b""
        while mark not in data:
            data += await self.receive()
        end = data.index(mark) + len(mark)
        self.unread(data[end:])
        return data[:end]

    async def read_until_end(self) -> bytes:
        """Return all that comes until the other end closes or half-closes; raises `StreamLost` if it resets."""
        data = b""
        while True:
            try:
                data += await self.receive()
            except anyio.EndOfStream:
                return data

    @property
    def alpn(self) -> str:
        return self.agreed or ""

    @property
    def is_secure(self) -> bool:
        return self.agreed is not None

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.remote_address: lambda: self._address}


def pair(deadlines: Deadlines, left: tuple[str, int], right: tuple[str, int]) -> tuple[MemoryStream, MemoryStream]:
    """Return two connected ends; *left* is the address of the first."""
    first, second = MemoryStream(deadlines, right), MemoryStream(deadlines, left)
    first.other, second.other = second, first
    return first, second


class Backlog:
    """An upstream that the test plays itself: every connection waits here for `accept`."""

    def __init__(self) -> None:
        self._waiting: deque[MemoryStream] = deque()
        self._came = anyio.Event()

    async def __call__(self, stream: MemoryStream) -> None:
        self._waiting.append(stream)
        self._came.set()

    async def accept(self) -> MemoryStream:
        """Return the connection that came first, or wait for one."""
        while not self._waiting:
            self._came = anyio.Event()
            await self._came.wait()
        return self._waiting.popleft()


class MemoryNetwork(Network):
    """A `Network` whose other side is the test.

    *upstreams* maps ``host:port`` to what serves a connection there; any other address refuses.
    """

    def __init__(
        self, tasks: TaskGroup, upstreams: Mapping[str, Callable[[MemoryStream], Coroutine[Any, Any, None]]]
    ) -> None:
        self.clock = Clock()
        super().__init__(tasks, Deadlines(self.clock))
        self._upstreams = upstreams
        self._serve: Callable[[Stream], Coroutine[Any, Any, None]] | None = None
        self._ports = 40000
        self.names: dict[str, Sequence[str] | Answer | OSError | None] = {}
        """The addresses of names, an `Answer` that says how long they hold, an error, or `None` for no answer; a name that is not in it is its own address."""
        self.lookups: list[str] = []
        self.agrees: dict[str, str | ssl.SSLError] = {}
        """What an upstream chooses in the TLS handshake, ``http/1.1`` unless it is said here, or why there is none."""
        self.dialled: list[str] = []
        """Every address that the gateway connected to, or tried to."""
        self.clients: list[MemoryStream] = []
        """The test's ends of the connections to the gateway."""
        self.peers: list[MemoryStream] = []
        """The upstreams' ends of the connections from it."""
        self.on_wait: Callable[[], None] | None = None
        """Called before each wait of the gateway on one of its connections."""

    def _wait(self) -> None:
        if self.on_wait is not None:
            self.on_wait()

    async def dial(self, host: str, port: int, tls: ClientTls | None = None, *, name: str = "") -> Stream:
        address = f"{host}:{port}"
        self.dialled.append(address)
        self._wait()
        await anyio.lowlevel.checkpoint()
        if address not in self._upstreams:
            raise ConnectionRefusedError("connection refused")
        near, far = pair(self.deadlines, ("192.0.2.254", 1), (host, port))
        near.on_wait = self._wait
        if tls is not None:
            chosen = self.agrees.get(address, "http/1.1")
            if isinstance(chosen, ssl.SSLError):
                raise chosen
            near.agreed = chosen if chosen in tls.settings.alpn else ""
        self.peers.append(far)
        self.tasks.start_soon(self._upstreams[address], far)
        return near

    async def lookup(self, name: str, family: int) -> Answer:
        self.lookups.append(name)
        await anyio.lowlevel.checkpoint()
        known = self.names.get(name, (name,))
        if isinstance(known, OSError):
            raise known
        while known is None:
            await anyio.sleep_forever()
        return known if isinstance(known, Answer) else Answer(known)

    async def sleep(self, seconds: float) -> None:
        over = anyio.Event()
        due = self.deadlines.due(over.set)
        due.after(seconds)
        try:
            await over.wait()
        finally:
            due.forget()

    def bind(self, host: str, port: int) -> socket.socket:
        return socket.socket()  # one that stands for itself

    async def listen(
        self,
        at: socket.socket | tuple[str, int],
        serve: Callable[[Stream], Coroutine[Any, Any, None]],
        tls: ServerTls | None = None,
        *,
        admit: Callable[[], bool] | None = None,
    ) -> Listener:
        self._serve = serve

        def close() -> None:
            if self._serve is serve:
                self._serve = None
            if isinstance(at, socket.socket):
                at.close()

        return Listener(("memory", 0), close)

    def connect(self, client: str = "198.51.100.7") -> MemoryStream:
        """Open a connection to the gateway, as *client*."""
        if self._serve is None:
            raise ConnectionRefusedError("nobody listens")
        self._ports += 1
        near, far = pair(self.deadlines, (client, self._ports), ("192.0.2.254", 80))
        far.on_wait = self._wait
        self.clients.append(near)
        self.tasks.start_soon(self._serve, far)
        return near

    async def settle(self) -> None:
        """Wait until nothing more happens without a new byte or a later time."""
        while True:
            for _ in range(_HOPS):
                await anyio.lowlevel.checkpoint()
            with anyio.move_on_after(_GLANCE) as glance:
                await anyio.wait_all_tasks_blocked()
            if not glance.cancelled_caught:
                return

    async def advance(self, seconds: float) -> None:
        """Let *seconds* pass, deadline by deadline, and let everything happen that they bring."""
        await self.settle()
        until = self.clock.now + seconds
        while self.clock.now < until:
            nearest = min(self.deadlines._slots, default=until / RESOLUTION) * RESOLUTION
            self.clock.now = min(until, max(nearest, self.clock.now + RESOLUTION))
            self.deadlines.turn()
            await self.settle()
