"""Drives one WebSocket that another server took and hands to the gateway: ASGI 3, seen from the application.

A tunnel carries frames, and ASGI messages: each message becomes a frame here, and each frame a message. Fragments,
compression, pings and the bytes of the handshake are that server's business.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any, Final

import anyio

from gw.downstream.asgi import AsgiStream, request_of
from gw.filters import Close, Exchange, Message, Reply, Request, Response
from gw.http.framing import Refusal
from gw.http.websocket import FrameReader, FrameWriter, Ping
from gw.http.write import HOP_BY_HOP
from gw.limits import MIN_QUEUED
from gw.net.deadlines import Deadlines
from gw.net.stream import DeadlineExceeded, StreamLost

__all__ = ["AsgiSocket"]

Event = MutableMapping[str, Any]
_ANSWER: Final = "websocket.http.response"
_HANDSHAKE: Final = HOP_BY_HOP | {
    b"content-length",
    b"sec-websocket-accept",
    b"sec-websocket-extensions",
    b"sec-websocket-protocol",
}
"""Fields of an answer that the server writes by itself."""
_NO_STATUS, _ABNORMAL = 1005, 1006


class AsgiSocket(AsgiStream):
    """A WebSocket's handshake, as one request; once it is accepted, the client's `End` of the tunnel as well."""

    async def serve(self, scope: Event) -> None:
        """Answer the handshake that *scope* tells of, and carry what follows. Raises `RuntimeError` to cut it off."""
        refusal: Reply | None = None
        asks = {**scope, "method": "GET", "scheme": {"wss": "https"}.get(scope.get("scheme", "ws"), "http")}
        asks["headers"] = [each for each in scope["headers"] if each[0].lower() != b"sec-websocket-extensions"]
        try:
            request = request_of(asks, self._host.http1)
            request.upgrade = "websocket"
        except Refusal as error:
            request, text = Request("", ""), (("content-type", "text/plain"),)
            refusal = Reply(error.status, str(error).encode(), text, "gw.bad_request", close=True)
        self._answers = _ANSWER in (scope.get("extensions") or {})
        self._ex = ex = Exchange(request, self._client)
        ex.started = time.monotonic()
        self._end: _End | None = None
        self._event: Event | None = None
        """What came last, and nobody has taken yet."""
        await self._receive()  # it says that there is one, no more
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._pump)
            await self._host.handle(ex, self, refusal)
            self._tasks.cancel_scope.cancel()
        if self._is_broken and not self._has_left:
            raise RuntimeError("the WebSocket is cut off, so that the client can tell")

    async def _pump(self) -> None:
        """Read what comes, one message at a time; and notice when the client leaves."""
        while not self._has_left:
            while self._event is not None:
                await self._moved.wait()
            self._event = event = await self._receive()
            self._has_left = event["type"] != "websocket.receive"
            self._stir()
        if self._end is None:
            self._tasks.cancel_scope.cancel()

    # --- the answer ------------------------------------------------------------------

    async def send_interim(self, response: Response) -> None:
        """Drop it: ASGI has none here."""

    async def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        response = ex.response
        assert response is not None
        fields = [line for line in response.headers.raw if line[0] not in _HANDSHAKE]
        if response.status == 101:
            chosen = response.headers.get("sec-websocket-protocol")
            await self._say({"type": "websocket.accept", "subprotocol": chosen, "headers": fields})
        elif self._answers:
            await self._say({"type": f"{_ANSWER}.start", "status": response.status, "headers": fields})
            await self.send(chunk, end)
        else:  # which is a 403
            self._discards = True
            await self._say({"type": "websocket.close", "code": 1000, "reason": ""})

    async def send(self, chunk: bytes, end: bool) -> None:
        if self._end is not None:
            await self._end.flush()
        elif not self._discards:
            self._ex.bytes_sent += len(chunk)
            await self._say({"type": f"{_ANSWER}.body", "body": bytes(chunk), "more_body": not end})

    def tunnel(self, go_away: Callable[[], None]) -> _End:
        self._end = _End(self)
        self._tasks.start_soon(self._end.send_on)
        return self._end


class _End:
    """The client's end: `gw.tunnel.End`."""

    def __init__(self, socket: AsgiSocket) -> None:
        self._socket = socket
        self.deadlines: Deadlines = socket._host.deadlines
        self._in = FrameWriter(masks=True)
        self._out = FrameReader(masked=False, gathers=True)
        self._pongs: list[bytes] = []
        self._queue: deque[tuple[Event, int]] = deque()
        """What is to be sent, and the bytes of each."""
        self._queued = 0
        self._is_told = self._is_lost = False

    async def receive(self) -> bytes:
        socket = self._socket
        while True:
            if self._is_lost:
                raise StreamLost("the WebSocket was cut off")
            if self._pongs:
                return self._pongs.pop(0)
            event = socket._event
            if event is not None:
                socket._event = None
                socket._stir()
                if event["type"] == "websocket.receive":
                    text = event.get("text")
                    return self._in.message(event["bytes"] if text is None else text)
                code = event.get("code", _NO_STATUS)
                if code != _ABNORMAL:
                    return self._in.close(Close(code, event.get("reason") or ""))
            if socket._has_left:
                raise anyio.EndOfStream
            await socket._moved.wait()

    def write(self, data: bytes) -> None:
        if self._is_lost or self._is_told:
            return
        self._out.feed(data)
        events, self._out.events = self._out.events, []
        for event in events:
            if isinstance(event, Message):
                kind = "text" if isinstance(event.data, str) else "bytes"
                self._put({"type": "websocket.send", kind: event.data}, len(event.data))
            elif isinstance(event, Ping):  # it is the server that knows whether the client is there
                self._pongs.append(self._in.pong(event.payload))
                self._socket._stir()
        if (close := self._out.closed) is not None:
            self._is_told = True
            code = 1000 if close.code == _NO_STATUS else close.code
            self._put({"type": "websocket.close", "code": code, "reason": close.reason}, 0)

    def _put(self, event: Event, size: int) -> None:
        self._queue.append((event, size))
        self._queued += size
        self._socket._stir()

    @property
    def paused(self) -> bool:
        return self._queued > MIN_QUEUED

    async def drain(self) -> None:
        with anyio.move_on_after(self._socket._host.http1.send_timeout or None) as patience:
            while self.paused and not self._is_lost:
                await self._socket._moved.wait()
        if self._is_lost:
            raise StreamLost("the client has left")
        if patience.cancelled_caught:
            raise DeadlineExceeded("the client takes what it is sent too slowly")

    async def flush(self) -> None:
        """Wait until all was sent, or cannot be."""
        while self._queue and not (self._is_lost or self._socket._has_left):
            await self._socket._moved.wait()

    async def send_on(self) -> None:
        """Send what is written, as fast as the server takes it."""
        socket = self._socket
        while not self._is_lost:
            if not self._queue:
                await socket._moved.wait()
                continue
            event, size = self._queue[0]
            try:
                await socket._send(event)
            except (OSError, RuntimeError):  # how servers say that the client is gone
                self._is_lost = True
            self._queue.popleft()
            self._queued -= size
            socket._stir()

    def abort(self) -> None:
        self._is_lost = True
        if not self._is_told:
            self._socket.reset()
        self._socket._stir()
