"""Bodies on their way through a chain: the filters they pass, what is held of them, and the task that sends one on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import anyio

from gw.failures import Disconnected, ResponseTooLarge
from gw.filters import Exchange, Filter, Reply, Response
from gw.peers import Connection, Downstream, Source

__all__ = [
    "EMPTY",
    "Answered",
    "BodyRow",
    "Held",
    "Payload",
    "Upload",
    "collect",
    "filtered",
    "live",
    "set_length",
    "whole_of",
]

_PIECES: Final = 64
_PIECE: Final = 4096
"""Pieces of a held body, and their least mean size beyond so many; smaller ones are put together."""

BodyRow: TypeAlias = tuple[int, Filter, Callable[..., Awaitable[Any]], bool]


class Held:
    """A body already in memory, presented as a source."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self) -> tuple[bytes, bool] | None:
        return self.data, True

    async def receive(self) -> tuple[bytes, bool]:
        return self.data, True


class Answered(Exception):
    """A filter replied from within a body."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


class Payload:
    """The request body of one exchange, as far as it is known before the first attempt."""

    __slots__ = ("_kept", "_most", "_size", "first", "lost", "rows", "whole")

    def __init__(self, rows: tuple[BodyRow, ...], first: tuple[bytes, bool] | None, whole: bytes | None) -> None:
        self.rows = rows
        """The filters it still has to pass."""
        self.first = first
        """A chunk taken already, not yet passed through them."""
        self.whole = whole
        """All of it, filtered. `None` while it is still coming."""
        self.lost = "streaming-source-consumed" if whole is None else ""
        """Why it cannot be sent again; empty if it can: all of it is here, or what was sent of it was kept."""
        self._kept: list[bytes] = []
        self._size = self._most = 0

    def keep_up_to(self, most: int) -> None:
        """Keep what is sent, as long as it is not more than *most* bytes. Said before any of it is."""
        if most:
            self._most, self.lost = most, ""

    def kept(self) -> bytes:
        return b"".join(self._kept)

    async def next(self, ex: Exchange, down: Downstream) -> tuple[bytes, bool]:
        """Wait for the next part and pass it through the filters; it is kept before anybody can be cut off."""
        chunk, end = self.first or down.take() or await down.receive()
        self.first = None
        if self.rows:
            before, self.lost = self.lost, "streaming-source-consumed"  # cut off in a filter, it is in nobody's hands
            chunk = await filtered(ex, self.rows, chunk, end)
            self.lost = before
        if not self.lost:
            self._size += len(chunk)
            if self._size > self._most:
                self._kept, self.lost = [], "streaming-body-on-wire"
            else:
                self._kept.append(chunk)
                if end:
                    self.whole = self.kept()
        return chunk, end


EMPTY: Final = Payload((), None, b"")
"""Of a request without a body."""


class Upload:
    """A request body that is still coming, sent on beside the response."""

    __slots__ = ("connection", "done", "down", "ex", "payload", "scope")

    def __init__(self, ex: Exchange, down: Downstream, connection: Connection, payload: Payload) -> None:
        self.ex, self.down, self.connection, self.payload = ex, down, connection, payload
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()

    async def run(self) -> None:
        ex, down, connection, payload = self.ex, self.down, self.connection, self.payload
        end = False
        try:
            with self.scope:
                while not end:
                    chunk, end = await payload.next(ex, down)
                    if chunk or end:
                        await connection.send(chunk, end)
        except Disconnected:
            connection.fail(None)  # the upstream may have answered before it stopped listening
        except Exception as error:  # noqa: BLE001  # raised again where the response is awaited
            connection.fail(error)
        finally:
            self.done.set()

    async def stop(self) -> None:
        """End it, and wait until it touches nothing any more."""
        if not self.done.is_set():
            self.scope.cancel()
            with anyio.CancelScope(shield=True):
                await self.done.wait()


async def _ask_for_body(ex: Exchange, down: Downstream) -> None:
    """Tell a client that waits to be told: nobody behind us will be asked before the body is here."""
    request = ex.request
    if request.expects_continue:
        request.expects_continue = False
        request.headers.discard("expect")
        await down.send_interim(Response(100))


async def collect(ex: Exchange, down: Downstream, rows: tuple[BodyRow, ...], source: Source, most: int) -> bytes:
    """Read all of a request's body from *source* and pass it through *rows*. Raises `Answered` beyond *most* bytes."""
    too_long = Reply(413, reason="gw.body_too_large", close=True)
    if (ex.request.content_length or 0) > most and not any(changes for *_, changes in rows):
        raise Answered(too_long)  # before a client that waits to be told sends it
    await _ask_for_body(ex, down)
    held, end = bytearray(), False
    while not end:
        chunk, end = source.take() or await source.receive()
        held += await filtered(ex, rows, chunk, end)
        if len(held) > most:
            raise Answered(too_long)
    return bytes(held)


async def filtered(ex: Exchange, rows: tuple[BodyRow, ...], chunk: bytes, end: bool) -> bytes:
    for _, _, hook, changes in rows:
        if not chunk and not end:
            break  # an earlier filter is holding it back
        out = await hook(ex, chunk, end)
        if out.__class__ is Reply:
            raise Answered(out)
        if changes:
            chunk = out
    return chunk


async def whole_of(connection: Connection, chunk: bytes, most: int, *, end: bool = False) -> bytes:
    """Return all of a response's body, of which *chunk* was read already; raises `ResponseTooLarge`."""
    held, size = [chunk], len(chunk)  # joined once: 100 KiB cost 1 us so, and 90 us by way of a bytearray
    while size <= most and not end:
        chunk, end = connection.take() or await connection.receive()
        held.append(chunk)
        size += len(chunk)
        if len(held) > _PIECES + size // _PIECE:  # what trickles must not cost more memory than it has bytes
            held = [b"".join(held)]
    if size > most:
        raise ResponseTooLarge(f"at most {most} bytes of a response may be held")
    return b"".join(held)


def live(ex: Exchange, rows: tuple[BodyRow, ...], after: int) -> tuple[BodyRow, ...]:
    skip = ex._skip
    if skip is None and after < 0:
        return rows
    return tuple(row for row in rows if row[0] > after and not (skip and row[1] in skip))


def set_length(message: Any, length: int | None) -> None:
    """Make content-length say *length*, on the fields and on the message."""
    raw = message.headers.raw
    raw[:] = [line for line in raw if line[0] != b"content-length"]
    if length is not None:
        raw.append((b"content-length", b"%d" % length))
    message.content_length = length
