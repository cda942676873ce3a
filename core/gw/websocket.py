"""A WebSocket that ends at the gateway: what a handler in Python is handed, and how it is run.

One that goes on to an upstream is `gw.tunnel`'s.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeAlias

import anyio

from gw.filters import Close, Exchange, Message, Outcome
from gw.http.handshake import Compression
from gw.http.websocket import FrameReader, FrameWriter, Ping
from gw.limits import WS_CLOSE_TIME, WS_HANDLER_ENDS
from gw.net.deadlines import Due
from gw.net.stream import DeadlineExceeded, StreamLost
from gw.silence import Silence
from gw.tunnel import GOING_AWAY, End, Hook, Terms, passed

__all__ = ["Handler", "Link", "WebSocket", "WebSocketClosed"]

_EMPTY: Final = 1005
_NO_CLOSE: Final = 1006
_MANDATORY_EXTENSION: Final = 1010
_IDLE: Final = Close(1001, "Idle for too long")
_ERROR: Final = Close(1011, "Internal error")


Handler: TypeAlias = Callable[["WebSocket"], Awaitable[None]]
"""What a WebSocket ends at: it is closed when that returns."""


class WebSocketClosed(Exception):
    """The WebSocket is over. *code* is what the client closed it with: 1005 for nothing, 1006 when it just left."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code} {reason}".rstrip())
        self.code, self.reason = code, reason


class WebSocket:
    """One WebSocket, as its handler sees it. It is closed with 1000 when the handler returns.

    ``async for message in websocket`` yields messages until the client closes. Pings are answered, and the client's
    Close is noticed, while the handler does something else; one message at most waits for it.
    """

    def __init__(self, ex: Exchange, subprotocol: str) -> None:
        self.exchange = ex
        self.subprotocol = subprotocol
        """The one that was chosen of those the client offers; empty for none."""
        self.closed: Close | None = None
        """How it ended; `None` while it is open."""
        self._link: Link | None = None
        self._message: Message | None = None
        self._busy = False
        """The handler took a message, and has not come back for the next."""
        self._came = anyio.Event()
        self._moved = anyio.Event()
        self.is_behind = False
        """A message waits behind the one that the handler has not taken yet."""

    async def receive(self) -> str | bytes:
        """Wait for the next message: text is `str`, binary `bytes`. Raises `WebSocketClosed`."""
        self._busy = False
        self._moved.set()
        while (message := self._message) is None:
            if self.closed is not None:
                raise WebSocketClosed(self.closed.code, self.closed.reason)
            self._came = anyio.Event()
            await self._came.wait()
        self._message, self._busy = None, True
        self._moved.set()
        return message.data

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        while True:
            try:
                message = await self.receive()
            except WebSocketClosed:
                return
            yield message

    async def send(self, data: str | bytes) -> None:
        """Send a message; wait while the client is slower than we are. Raises `WebSocketClosed`."""
        link = self._link
        if link is None or self.closed is not None:
            over = self.closed or Close(_NO_CLOSE)
            raise WebSocketClosed(over.code, over.reason)
        await link.send(Message(data))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it, and wait until the client has answered; nothing happens if it is closed already."""
        if self._link is not None:
            await self._link.close(Close(code, reason))

    # --- called by the link ------------------------------------------------------

    async def hand(self, message: Message) -> None:
        """Hand over *message*: wait until the one before it was taken."""
        try:
            while self._message is not None and self.closed is None:
                self.is_behind = True
                self._moved = anyio.Event()
                await self._moved.wait()
        finally:
            self.is_behind = False
        self._message = message
        self._came.set()

    async def settle(self, due: Callable[[Callable[[], None]], Due]) -> None:
        """Wait until the handler has done what it was asked for, but not for long: its answers go out before a Close."""
        late: list[bool] = []

        def give_up() -> None:
            late.append(True)
            self._moved.set()

        patience = due(give_up)
        patience.after(WS_HANDLER_ENDS)
        try:
            while (self._message is not None or self._busy) and self.closed is None and not late:
                self._moved = anyio.Event()
                await self._moved.wait()
        finally:
            patience.forget()

    def end(self, close: Close) -> None:
        if self.closed is None:
            self.closed = close
        self._came.set()
        self._moved.set()

    def __repr__(self) -> str:
        return f"<WebSocket {self.exchange.request_id} {'open' if self.closed is None else self.closed}>"


class Link:
    """What joins a handler's WebSocket to its client: frames, filters, deadlines. *hooks* are the filters' `on_message`."""

    def __init__(self, ws: WebSocket, terms: Terms, compression: Compression | None, hooks: Sequence[Hook]) -> None:
        self.generation = terms.generation
        self._ws, self._terms = ws, terms
        self._from_client, self._to_client = tuple(hooks), tuple(reversed(hooks))
        self._reader = FrameReader(
            masked=True,
            limit=terms.max_message_size,
            inflater=compression.inflater(of_client=True) if compression is not None else None,
            gathers=True,
            counts=terms.live.received,
        )
        deflater = compression.deflater(as_client=False) if compression is not None else None
        self._writer = FrameWriter(masks=False, deflater=deflater, counts=terms.live.sent)
        self._goes_away = self._told = False
        self._over = anyio.Event()
        """Nothing more is read."""
        self._sending = anyio.Lock()

    async def run(
        self,
        end: End,
        handler: Handler,
        spawn: Callable[[Callable[[], Coroutine[Any, Any, None]]], None],
        report: Callable[[Exchange, Exception], None],
    ) -> None:
        """Run *handler*, to the end of both. Raises only cancellation."""
        ws, live, due = self._ws, self._terms.live, end.deadlines.due
        self._end, self._report = end, report
        self.heard = end.deadlines.now
        self._closing = due(end.abort)
        self._silence = Silence(
            end.deadlines,
            [self],
            idle=self._terms.idle_timeout,
            interval=self._terms.ping_interval,
            timeout=self._terms.ping_timeout,
            on_idle=self._idle,
            on_gone=self._gone,
        )
        reading, handling = anyio.CancelScope(), anyio.CancelScope()
        last_call = due(handling.cancel)
        ws._link = self

        async def read() -> None:
            try:
                with reading:
                    await self._read()
            finally:
                self._over.set()
                last_call.after(WS_HANDLER_ENDS)

        spawn(read)
        live.open.add(self)
        live.accepted += 1
        try:
            self._silence.look()
            if self._goes_away:  # it came to that before we began
                self.go_away()
            with handling:
                await self._handle(handler)
            await self._over.wait()
        finally:
            live.open.discard(self)
            self._closing.forget()
            self._silence.forget()
            reading.cancel()
            if not self._over.is_set():
                with anyio.CancelScope(shield=True):
                    await self._over.wait()
            last_call.forget()
            ws._link = None

    async def _handle(self, handler: Handler) -> None:
        try:
            await handler(self._ws)
        except WebSocketClosed:
            pass  # it is how most handlers end
        except Exception as error:  # noqa: BLE001  # whatever it raises ends here (behaviour 8.2: 1011)
            self._failed(error)
        finally:
            self._tell(Close())
            self._ws.end(Close())

    def _failed(self, error: Exception) -> None:
        ex = self._ws.exchange
        self._report(ex, error)
        ex.reason, ex.outcome = f"gw.error.{type(error).__name__}", Outcome.RESET
        self._tell(_ERROR)
        self._ws.end(_ERROR)

    # --- for the handler -----------------------------------------------------------

    async def send(self, message: Message) -> None:
        said = await passed(self._ws.exchange, self._to_client, message, from_client=False)
        if said is None:
            return
        if isinstance(said, Close):
            self._tell(said)
            return
        async with self._sending:  # it waits here, or behind somebody who does
            if not self._told:
                frame = self._writer.message(said.data)
                self._ws.exchange.bytes_sent += len(frame)
                self._silence.moved = self._end.deadlines.now
                self._end.write(frame)
            await self._flow()

    async def _write(self, frame: bytes) -> None:
        async with self._sending:
            self._end.write(frame)
            await self._flow()

    async def _flow(self) -> None:
        """Wait for a client that is slower than we are; the reader notices when it is gone."""
        if self._end.paused:
            try:
                await self._end.drain()
            except StreamLost:
                pass
            except DeadlineExceeded:
                self._end.abort()

    async def close(self, close: Close) -> None:
        self._tell(close)
        self._ws.end(close)
        await self._over.wait()

    def _tell(self, close: Close) -> None:
        """Send a Close, once, and see that the client answers it."""
        if not self._told:
            self._told = True
            self._end.write(self._writer.close(close))
            self._closing.after(WS_CLOSE_TIME)
            self._silence.off()

    def go_away(self) -> None:
        self._goes_away = True
        if self._ws._link is not None:
            self._tell(GOING_AWAY)
            self._ws.end(GOING_AWAY)

    # --- the client ------------------------------------------------------------------

    async def _read(self) -> None:
        """Read until the client has said its last. Raises only cancellation."""
        ws, reader, writer, end = self._ws, self._reader, self._writer, self._end
        while True:
            try:
                data = await end.receive()
            except (anyio.EndOfStream, StreamLost):
                self._told = True
                ws.end(Close(_NO_CLOSE))
                return
            ws.exchange.bytes_received += len(data)
            self.heard = end.deadlines.now
            reader.feed(data)
            events, reader.events = reader.events, []
            for event in events:
                if isinstance(event, Ping):
                    await self._write(writer.pong(event.payload))
                elif isinstance(event, Message) and not self._told and ws.closed is None:
                    self._silence.moved = end.deadlines.now
                    try:
                        said = await passed(ws.exchange, self._from_client, event, from_client=True)
                    except Exception as error:  # noqa: BLE001  # a filter raised
                        self._failed(error)
                        continue
                    if isinstance(said, Close):
                        self._tell(said)
                        ws.end(said)
                    elif said is not None:
                        await ws.hand(said)
            if reader.fault is not None or reader.closed is not None:
                await ws.settle(end.deadlines.due)
            if reader.fault is not None:
                self._tell(reader.fault)
                ws.end(reader.fault)
                return
            if (closed := reader.closed) is not None:
                self._tell(Close() if closed.code == _MANDATORY_EXTENSION else closed)
                ws.end(closed)
                return

    # --- silence -----------------------------------------------------------------------

    @property
    def is_read(self) -> bool:
        """Whether the client is read now: not while the handler has a message to take before the next."""
        return not self._ws.is_behind

    def ask(self) -> None:
        """Ask whether the client is still there."""
        self._reader.own_ping = os.urandom(8)
        self._end.write(self._writer.ping(self._reader.own_ping))

    def _idle(self) -> None:
        self._tell(_IDLE)
        self._ws.end(_IDLE)

    def _gone(self, _: Link) -> None:
        self._end.abort()
