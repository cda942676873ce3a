"""A byte stream that costs what the loop's own transport costs, and what every driver of one shares.

`Stream` holds the state: bytes at hand, end of stream, waits and their
deadlines. A driver (`gw.net.on_asyncio`, `gw.net.on_anyio`) moves the bytes. It
is an anyio `ByteStream`, and more than that: it can be looked at and written to
without waiting, its waits obey numbers instead of cancel scopes, and it says
when the peer has gone although nobody is reading.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol as Interface

import anyio
from anyio.abc import ByteStream, SocketAttribute

from gw.limits import CLOSE_FLUSH_TIME, READ_HIGH_WATER, SALVAGE_BYTES
from gw.net.deadlines import Deadlines

__all__ = ["DeadlineExceeded", "Signal", "Stream", "StreamLost", "salvage"]

_CUT: Final = "the peer reset the connection"
_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""`SO_LINGER` with no time to linger: closing then sends a reset."""


class DeadlineExceeded(Exception):
    """A wait on a stream took longer than its deadline."""


class StreamLost(Exception):
    """The connection is gone: reset by the peer, or aborted here."""


class Signal(Interface):
    """Something that happens once, and that one task waits for: what `anyio.Event` is, without what it costs."""

    def set(self) -> None: ...
    def wait(self) -> Awaitable[object]: ...


class Stream(ByteStream):
    """One connection, with *tls* or without it. One task may read it and one may write it at a time.

    *reading* and *writing* are the deadlines of the waits; a wait that passes
    its own raises `DeadlineExceeded`. *on_idle_due* is called when *reading* is
    reached while nobody reads. *on_eof* and *on_lost* are called, once each, when the
    peer has sent its last byte and when the connection is gone.
    """

    __slots__ = (
        "_data",
        "_error",
        "_read_paused",
        "_readable",
        "_writable",
        "at_eof",
        "deadlines",
        "lost",
        "min_rate",
        "on_eof",
        "on_idle_due",
        "on_lost",
        "paused",
        "pull",
        "reading",
        "send_timeout",
        "unsent_then",
        "writing",
    )

    tls: ssl.SSLObject | None = None

    def __init__(self, deadlines: Deadlines) -> None:
        self.deadlines = deadlines
        self.reading = deadlines.due(self._read_due)
        self.writing = deadlines.due(self._write_due)
        self._data = b""
        self._error: Exception | None = None
        self._read_paused = False
        self.at_eof = False
        self.lost = False
        self.paused = False
        """Whether writers should `drain` before they write more."""
        self.send_timeout = 0.0
        """Seconds that `drain` waits while the peer takes nothing; 0 means for ever."""
        self.min_rate = 0.0
        """Bytes a second that the peer must take while `drain` waits; 0 means any."""
        self.unsent_then = 0
        """What was left to write when *writing* was last set."""
        self._readable: anyio.Event | None = None
        self._writable: anyio.Event | None = None
        self.on_eof: Callable[[], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.on_idle_due: Callable[[], None] | None = None
        self.pull: Callable[[int], bytes] | None = None
        """Where `flush_soon` gets what is to be sent: about so many bytes; less means that there is no more for now."""

    # --- reading -------------------------------------------------------------

    def take(self) -> bytes:
        """Return what is at hand, perhaps nothing, without waiting."""
        data = self._data
        if data:
            self._data = b""
            if self._read_paused:
                self._read_paused = False
                self._resume_reading()
        return data

    async def receive(self, max_bytes: int | None = None) -> bytes:
        """Return what is at hand, or wait for some; all of it, unless *max_bytes* says less.

        Raises `anyio.EndOfStream`, `StreamLost`, `DeadlineExceeded`, or what `fail` was given.
        """
        if not self._data:
            if self._error is not None:
                raise self._failure()
            if self.at_eof:
                raise anyio.EndOfStream
            if self.lost:
                raise StreamLost(_CUT)
            await self._wait_readable()
            if self._error is not None and not self._data:
                raise self._failure()
        if max_bytes is not None and len(self._data) > max_bytes:
            data, self._data = self._data[:max_bytes], self._data[max_bytes:]
            return data
        data = self.take()
        if not data:
            if self.at_eof:
                raise anyio.EndOfStream
            raise StreamLost(_CUT)
        return data

    @property
    def has_data(self) -> bool:
        return bool(self._data)

    def unread(self, data: bytes) -> None:
        """Put *data* back, to be received next."""
        self._data = data + self._data

    def fail(self, error: Exception) -> None:
        """Make the read that waits now, or else the next one, raise *error*: that one only."""
        if self._error is None:
            self._error = error
            self._wake_reader()

    def _failure(self) -> Exception:
        error, self._error = self._error, None  # kept, it would keep the frames it passed through
        assert error is not None
        return error

    def _read_due(self) -> None:
        if self._reader_waits():
            self.fail(DeadlineExceeded("nothing was received in time"))
        elif self.on_idle_due is not None:
            self.on_idle_due()

    # --- writing -------------------------------------------------------------

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send *data* without waiting; look at *paused* afterwards. Does nothing once the connection is lost."""

    @abstractmethod
    def write_parts(self, parts: list[bytes]) -> None:
        """Send several pieces as one write."""

    @abstractmethod
    def flush_soon(self) -> None:
        """Send what `pull` gives, at the end of this turn of the loop, and whatever is left as the peer takes it.

        For a writer that many tasks add to: what they add in one turn goes out together.
        """

    async def send(self, item: bytes) -> None:
        if self.lost:
            raise StreamLost(_CUT)
        self.write(item)
        if self.paused:
            await self.drain()

    async def drain(self) -> None:
        """Wait until the peer has taken enough; raises `DeadlineExceeded` when it takes too little, `StreamLost`."""
        if self.lost:
            raise StreamLost(_CUT)
        if self.paused:
            if self.send_timeout:
                self.unsent_then = self.unsent
                self.writing.after(self.send_timeout)
            try:
                await self._wait_writable()
            finally:
                self.writing.off()
            if self.lost:
                raise StreamLost(_CUT)
            if self.paused:
                raise DeadlineExceeded("the peer takes what it is sent too slowly")

    def _write_due(self) -> None:
        """Look at how much the peer took in the last period: enough means another period."""
        left = self.unsent
        if left and self.unsent_then - left > self.min_rate * self.send_timeout:
            self.unsent_then = left
            self.writing.after(self.send_timeout)
        else:
            self._wake_writer()

    @property
    @abstractmethod
    def unsent(self) -> int:
        """Bytes written that the kernel has not taken yet."""

    @abstractmethod
    def set_write_marks(self, high: int, low: int) -> None:
        """Set the numbers of unsent bytes at which *paused* becomes true, and false again."""

    # --- ending --------------------------------------------------------------

    @abstractmethod
    def write_eof(self) -> None:
        """Send what is written and then end our direction (half-close). Does nothing over TLS, which cannot."""

    async def send_eof(self) -> None:
        self.write_eof()

    def close(self) -> None:
        """Send what is written, then close; a peer that does not take it is cut off after a while."""
        if not self.lost:
            self.on_lost = self.on_eof = self.on_idle_due = None
            self.reading.off()
            self.writing.off()
            if self.unsent:
                self.on_idle_due = self.abort
                self.reading.after(CLOSE_FLUSH_TIME)
            self._close()

    @abstractmethod
    def abort(self) -> None:
        """Drop the connection now. The peer may take that for an orderly end: see `reset`."""

    def reset(self) -> None:
        """Drop the connection now, and so that the peer cannot take what it got for the whole."""
        sock = self.extra_attributes.get(SocketAttribute.raw_socket)
        if sock is not None and not self.lost:
            sock().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.abort()

    async def aclose(self) -> None:
        self.close()

    # --- for drivers ---------------------------------------------------------

    def _received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        if len(self._data) >= READ_HIGH_WATER and not self._reader_waits():
            self._read_paused = True
            self._pause_reading()
        else:
            self._wake_reader()

    def _ended(self) -> None:
        if not self.at_eof and not self.lost:
            self.at_eof = True
            self._wake_reader()
            if self.on_eof is not None:
                self.on_eof()

    def _gone(self) -> None:
        if not self.lost:
            self.lost = True
            self.reading.forget()
            self.writing.forget()
            self._wake_reader()
            self._wake_writer()
            tell, self.on_lost, self.on_eof, self.on_idle_due = self.on_lost, None, None, None
            if tell is not None:
                tell()

    def signal(self) -> Signal:
        """Make a `Signal` for the tasks around this stream."""
        return anyio.Event()

    # The waits, with anyio's means. A driver on a loop that has cheaper ones overrides all five.

    async def _wait_readable(self) -> None:
        self._readable = readable = anyio.Event()
        try:
            await readable.wait()
        finally:
            self._readable = None

    def _wait_writable(self) -> Awaitable[object]:
        self._writable = anyio.Event()
        return self._writable.wait()

    def _reader_waits(self) -> bool:
        return self._readable is not None

    def _wake_reader(self) -> None:
        if self._readable is not None:
            self._readable.set()
            self._readable = None

    def _wake_writer(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    @abstractmethod
    def _pause_reading(self) -> None: ...
    @abstractmethod
    def _resume_reading(self) -> None: ...
    @abstractmethod
    def _close(self) -> None: ...

    # --- what it is connected to -------------------------------------------------

    @property
    def alpn(self) -> str:
        """The protocol that a TLS handshake agreed on; empty for none, and without TLS."""
        return "" if self.tls is None else self.tls.selected_alpn_protocol() or ""

    @property
    def is_secure(self) -> bool:
        """Whether it is TLS."""
        return self.tls is not None

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port of the other end; ``("", 0)`` where there is none."""
        return _address(self.extra_attributes.get(SocketAttribute.remote_address))

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}

    def __repr__(self) -> str:
        state = "lost" if self.lost else "half-closed" if self.at_eof else "open"
        return f"<{type(self).__name__} {state} {len(self._data)} to read, {self.unsent} to write>"


def salvage(sock: Any) -> bytes:
    """Read what the kernel still holds of a connection whose write side failed.

    An upstream that answers early and closes makes our next write fail; then the loop gives the socket up, although
    the answer may lie in its buffer.
    """
    found = b""
    try:
        while len(found) < SALVAGE_BYTES and (data := os.read(sock.fileno(), 65536)):
            found += data
    except (OSError, ValueError):
        pass  # there is no more: nothing now, a reset, or a descriptor that is closed already
    return found


def _address(get: Callable[[], Any] | None) -> tuple[str, int]:
    name = get() if get is not None else None
    if isinstance(name, tuple):
        host = str(name[0]).partition("%")[0]
        if host.startswith("::ffff:") and "." in host:  # an IPv4 peer on a dual-stack listener
            host = host[7:]
        return host, int(name[1])
    return "", 0
