"""One HTTP/1.1 connection to an endpoint: writes a request, reads its response, one exchange at a time.

Which connection carries what is the pool's business; what happens to the bytes, the chain's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from gw.failures import (
    BadResponse,
    Disconnected,
    Failure,
    ResponseIdle,
    ResponseTimeout,
    ResponseTooLong,
    SendStalled,
    Truncated,
)
from gw.filters import Attempt, Exchange, Response
from gw.http.framing import drop_named
from gw.http.h1 import END, End, Malformed
from gw.http.handshake import accept_of, make_key
from gw.http.write import last_chunk
from gw.limits import SEND_STALL_TIME
from gw.net.deadlines import NEVER
from gw.net.stream import DeadlineExceeded, Stream, StreamLost
from gw.upstream.forward import Forwarding

if TYPE_CHECKING:
    from gw.upstream.pool import Origin, Pool

__all__ = ["Http1Upstream", "Patience"]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a route waits for its upstream, in seconds; 0 is for ever (behaviour 11.2)."""

    response: float = 30.0
    idle: float = 30.0
    total: float = 0.0
    send: float = SEND_STALL_TIME

    def too_long(self, *, held: bool) -> Failure:
        """Return what a body is that took its time: of one that is held, the client has seen nothing."""
        if held:
            return ResponseTimeout(f"the response is held, and was not complete {self.response:g} s after its head")
        return ResponseTooLong("the response takes longer than stream_max_duration_sec")


class Http1Upstream:
    """A connection and the exchange it carries, if any. The `Connection` that a chain sees."""

    __slots__ = (
        "_attempt",
        "_chunked",
        "_events",
        "_ex",
        "_forwarding",
        "_got_bytes",
        "_idle",
        "_is_held",
        "_key",
        "_patience",
        "_pool",
        "_reader",
        "_request_done",
        "_response",
        "_response_done",
        "_tunnels",
        "_until",
        "expires",
        "is_idle",
        "is_warm",
        "origin",
        "served",
        "stream",
    )

    def __init__(self, stream: Stream, origin: Origin, pool: Pool, expires: float) -> None:
        self.stream, self.origin, self._pool = stream, origin, pool
        self.expires = expires
        """When it is too old for another request."""
        self._reader = pool.engine.response_reader(pool.reader_limits)
        self._events = self._reader.events
        self.served = 0
        self.is_idle = False
        self.is_warm = False
        """It was opened before anybody asked, so it may have died before its first request."""
        self._response: Response | None = None
        self._idle: float | None = None
        """The longest pause in the response's body; `None` until somebody waits for it."""
        self._request_done = self._response_done = True
        self._is_held = False
        self._key = b""
        """Of the WebSocket handshake that the exchange is."""
        self._tunnels = False
        stream.on_lost = stream.on_eof = stream.on_idle_due = self._over

    def begin(self, attempt: Attempt, forwarding: Forwarding, patience: Patience) -> Http1Upstream:
        """Get ready to carry *attempt*."""
        attempt.endpoint = self.origin.endpoint
        attempt.reused = self.served > 0 or self.is_warm
        self._attempt, self._forwarding, self._patience = attempt, forwarding, patience
        self.stream.send_timeout = patience.send
        self._request_done = self._response_done = self._got_bytes = self._chunked = self._is_held = False
        self._response = self._idle = None
        self._key = b""
        self.served += 1
        return self

    # --- Connection: the request ----------------------------------------------------

    def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        self._ex = ex
        request, patience = ex.request, self._patience
        if request.upgrade == "websocket":
            self._key = make_key()
            self._reader.expect(request.method, request.upgrade)
        else:
            self._reader.expect(request.method)
        parts = self._forwarding.head(ex, self.origin.authority, self._key)
        if request.has_body:
            if request.content_length is None:
                self._chunked = True
                if chunk:
                    parts += (b"%x\r\n" % len(chunk), chunk, b"\r\n")
                if end:
                    parts.append(self._last_chunk())
            elif chunk:
                parts.append(chunk)
        self._attempt.sent = True
        self._until = self.stream.deadlines.now + patience.total if patience.total else NEVER
        if end:
            self._request_done = True
            self.stream.reading.after(patience.response)
        else:
            self.stream.reading.off()  # it may still say how long the connection may be idle
        self.stream.write(b"".join(parts))

    async def send(self, chunk: bytes, end: bool) -> None:
        stream = self.stream
        if not self._chunked:
            stream.write(chunk)
        else:
            parts = [b"%x\r\n" % len(chunk), chunk, b"\r\n"] if chunk else []
            if end:
                parts.append(self._last_chunk())
            stream.write_parts(parts)
        if stream.lost:
            raise Disconnected("the upstream closed while the request was being sent")
        if stream.paused:
            try:
                await stream.drain()
            except StreamLost:
                raise Disconnected("the upstream closed while the request was being sent") from None
            except DeadlineExceeded:
                raise SendStalled("the upstream stopped taking the request") from None
        if end:
            self._request_done = True
            self._expect_response()

    def _last_chunk(self) -> bytes:
        return last_chunk(self._ex.request.trailers if self._forwarding.forward_trailers else None)

    def _expect_response(self) -> None:
        if self._response is None and not self.stream.lost:
            self.stream.reading.after(self._patience.response)

    def fail(self, error: Exception | None) -> None:
        if error is None:
            self._expect_response()
        else:
            self.stream.fail(error)

    # --- Connection: the response ---------------------------------------------------

    async def response(self) -> Response:
        events = self._events
        while not events:
            try:
                data = await self.stream.receive()
            except (anyio.EndOfStream, StreamLost, DeadlineExceeded) as error:
                self._read_failed(error)
            else:
                self._got_bytes = True
                self._reader.feed(data)
        event = events.popleft()
        if event.__class__ is Response:
            response: Response = event
            if response.status >= 200 or response.status == 101:
                self._response = response
                self.stream.reading.when = NEVER
                if not response.has_body:
                    self._take_end()
                if response.status == 101 and response.headers.get_all("sec-websocket-accept") != [
                    accept_of(self._key).decode("ascii")
                ]:
                    raise BadResponse("Sec-WebSocket-Accept does not answer the key")
            if response.named_hops is not None:
                drop_named(response)
            return response
        assert isinstance(event, Malformed), event
        raise Truncated(event.message) if event.truncated else BadResponse(event.message)

    def take(self) -> tuple[bytes, bool] | None:
        events = self._events
        if not events:
            return None
        event = events.popleft()
        if isinstance(event, (bytes, memoryview)):
            if events and self._take_end():
                return event, True
            return event, False
        if isinstance(event, End):
            events.appendleft(event)
            self._take_end()
            return b"", True
        assert isinstance(event, Malformed), event
        raise Truncated(event.message) if event.truncated else BadResponse(event.message)

    async def receive(self) -> tuple[bytes, bool]:
        patience, stream = self._patience, self.stream
        while (got := self.take()) is None:
            left = self._until - stream.deadlines.now
            if left <= 0:
                raise self._patience.too_long(held=self._is_held)
            if self._idle is None:
                self._idle = NEVER if self._is_event_stream() else patience.idle or NEVER
            wait = min(self._idle, left)
            stream.reading.after(0 if wait == NEVER else wait)
            try:
                self._reader.feed(await stream.receive())
            except (anyio.EndOfStream, StreamLost, DeadlineExceeded) as error:
                self._read_failed(error)
            stream.reading.off()
        return got

    def hold(self) -> None:
        until = self.stream.deadlines.now + (self._patience.response or NEVER)
        if until < self._until:
            self._until, self._is_held = until, True

    def _is_event_stream(self) -> bool:
        """Tell whether silence is part of the response (behaviour 11.2)."""
        assert self._response is not None
        return self._response.headers.get("content-type", "").lower().startswith("text/event-stream")

    def _take_end(self) -> bool:
        events = self._events
        if not events or not isinstance(events[0], End):
            return False
        event = events.popleft()
        self._response_done = True
        response = self._response
        if event is not END and response is not None and self._forwarding.forward_trailers:
            response.trailers = event.trailers  # type: ignore[union-attr]
        return True

    def _read_failed(self, error: Exception) -> None:
        """Say what the end of the upstream's bytes means: the end of the response, or a failure, which is raised."""
        if isinstance(error, DeadlineExceeded):
            raise self._late() from None
        if not self._got_bytes:
            raise Disconnected("the upstream closed before it answered") from None
        if isinstance(error, StreamLost):
            raise Truncated("the upstream reset the connection") from None
        self._reader.feed_eof()

    def _late(self) -> Failure:
        if self._response is None:
            return ResponseTimeout(f"no response within {self._patience.response:g} s")
        if self.stream.deadlines.now >= self._until:
            return self._patience.too_long(held=self._is_held)
        return ResponseIdle(f"nothing for {self._patience.idle:g} s in mid-response")

    def tunnel(self) -> Stream:
        """Return the connection as the end of a WebSocket: it was answered 101."""
        stream = self.stream
        self._tunnels = True
        stream.reading.off()
        stream.on_lost = stream.on_eof = stream.on_idle_due = None  # whoever reads finds out
        if self._reader.held:
            stream.unread(self._reader.held)
        return stream

    # --- between exchanges ------------------------------------------------------------

    def finish(self) -> None:
        response, stream = self._response, self.stream
        if self._tunnels:
            stream.close()
            self._pool.forget(self)
        elif (
            self._response_done
            and self._request_done
            and response is not None
            and response.keep_alive
            and not (stream.lost or stream.at_eof or stream.has_data or self._reader.spare or self._events)
        ):
            self._pool.put_back(self)
        else:
            self.close()

    def close(self) -> None:
        """Close the connection and give its place in the pool free."""
        self.drop()
        self._pool.forget(self)

    def drop(self) -> None:
        """Close the connection; nothing on it is worth keeping."""
        stream = self.stream
        stream.on_lost = stream.on_eof = stream.on_idle_due = None
        if stream.tls is not None and self._pool.tls is not None and self.served:
            self._pool.tls.remember(stream.tls)
        stream.abort()

    @property
    def is_alive(self) -> bool:
        """Whether the peer still listens, and has not spoken unasked."""
        stream = self.stream
        return not (stream.lost or stream.at_eof or stream.has_data)

    def _over(self) -> None:
        """The peer closed, or the idle deadline came. While an exchange runs, its reads will find out."""
        if self.is_idle:
            self._pool.evict(self)

    def __repr__(self) -> str:
        return f"<Http1Upstream {self.origin.endpoint} {'idle' if self.is_idle else 'busy'} served {self.served}>"
