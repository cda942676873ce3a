"""Drives one client's HTTP/1.1 connection: reads requests in order, writes what the chain answers.

Parsing is the engine's, filters and upstreams are the chain's. What lives here
is the connection: whose turn it is, how long it may take, and how it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol as Interface

import anyio

from gw.failures import BadBody, BodyTimeout, BodyTooLarge, ClientGone
from gw.filters import Exchange, Outcome, Reply, Request, Response
from gw.http.engines import Engine
from gw.http.h1 import END, End, Malformed, ReaderLimits
from gw.http.h2 import settings_payload
from gw.http.handshake import accept_of
from gw.http.write import interim_head, last_chunk, response_head, upgrade_head
from gw.keys import Client
from gw.limits import DRAIN_QUIET_TIME, HALF_CLOSE_GRACE, LINGER_IDLE, LINGER_TIME, MAX_JOINED_WRITE, MIN_RATE_GRACE
from gw.net.deadlines import NEVER
from gw.net.stream import DeadlineExceeded, Stream, StreamLost

__all__ = ["Host", "Http1Connection", "Http1Settings"]


@dataclass(frozen=True, slots=True)
class Http1Settings:
    """What a listener's connections obey. Seconds, bytes, bytes a second; 0 is no bound (behaviour 4.1, 6.2)."""

    limits: ReaderLimits
    idle_timeout: float
    head_timeout: float
    body_timeout: float
    min_body_rate: float
    send_timeout: float
    min_send_rate: float
    max_body_size: int
    max_requests: int
    write_high: int
    write_low: int
    http2: bool = True
    """Whether a connection may go on in HTTP/2, if its client asks for that with ``Upgrade: h2c``."""
    server: bytes = b""
    """Value of ``Server`` on the gateway's own answers; empty for none."""


_SWITCHING: Final = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: h2c\r\n\r\n"


class Host(Interface):
    """What a connection is served for: the gateway."""

    http1: Http1Settings
    engine: Engine
    draining: bool

    async def handle(self, ex: Exchange, down: Http1Connection, refusal: Reply | None = None) -> None:
        """Carry *ex* to its end, or answer *refusal*. Raises only cancellation."""

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run *run* beside."""


class Http1Connection:
    """One connection, from its first byte to its last. Also the `Downstream` of each of its exchanges."""

    __slots__ = (
        "_body_left",
        "_chunked",
        "_close",
        "_discards",
        "_events",
        "_ex",
        "_go_away",
        "_host",
        "_idle_since",
        "_in_exchange",
        "_progress",
        "_reader",
        "_request_done",
        "_response_done",
        "_scope",
        "_served",
        "_settings",
        "_stream",
        "_waited",
        "client",
        "max_body_size",
        "via",
    )

    protocol: ClassVar = "http/1.1"
    """What is spoken on it, for the figures."""

    def __init__(self, stream: Stream, host: Host, client: Client) -> None:
        self._stream, self._host, self.client = stream, host, client
        self._settings = settings = host.http1
        self._reader = host.engine.request_reader(settings.limits)
        self._events = self._reader.events
        self._scope = anyio.CancelScope()
        self._ex: Exchange | None = None
        self._in_exchange = False
        self._go_away: Callable[[], None] | None = None
        """Ends the WebSocket that this has become."""
        self._served = 0
        self._idle_since = NEVER
        self._progress = -1
        self.via = b""
        self.max_body_size = settings.max_body_size
        stream.on_lost = self._left
        stream.on_eof = self._half_closed
        stream.on_idle_due = self._grace_over
        stream.send_timeout, stream.min_rate = settings.send_timeout, settings.min_send_rate
        stream.set_write_marks(settings.write_high, settings.write_low)

    # --- the connection --------------------------------------------------------

    async def serve(self) -> tuple[Request, bytes] | None:
        """Serve until either side ends it. Raises nothing but cancellation from outside.

        What is returned is a request to go on with in HTTP/2, and the payload of its client's SETTINGS; the stream
        is then left open.
        """
        switches = False
        with self._scope:
            try:
                while (request := await self._next_request()) is not None:
                    if (
                        request.upgrade == "h2c"
                        and self._stream.tls is None
                        and (settings := self._switched(request)) is not None
                    ):
                        switches = True
                        return request, settings
                    await self._exchange(request)
                    if not self._may_go_on():
                        break
                await self._part()
            finally:
                if not switches:
                    self._stream.close()
        return None

    def _switched(self, request: Request) -> bytes | None:
        """Agree to go on in HTTP/2 (RFC 7540 section 3.2); `None` where the wish is ignored.

        With a body it is: all of it would have to be read before the first frame. So it is over TLS, which has ALPN.
        """
        fields = request.headers.get_all("http2-settings")
        named = request.named_hops or ()
        if (
            not self._settings.http2
            or self._stream.is_secure
            or request.has_body
            or len(fields) != 1
            or b"http2-settings" not in named
            or self._events
            or self._reader.in_head
        ):
            return None
        settings = settings_payload(fields[0])
        if settings is not None:
            self._stream.write(_SWITCHING)
        return settings

    @property
    def is_idle(self) -> bool:
        return not self._in_exchange

    def drain(self) -> None:
        """End it as soon as nothing is lost; called again until it has gone (behaviour 21.1).

        One that has just been answered may have its next request on the way, which will be answered with
        ``Connection: close``. One that asked for nothing yet, or was silent for DRAIN_QUIET_TIME, is closed.
        """
        if not self._in_exchange and not self._reader.in_head:
            now = self._stream.deadlines.now
            if not self._served or now - self._idle_since >= DRAIN_QUIET_TIME:
                self._stream.close()
        elif self._go_away is not None:
            self._go_away()

    async def _exchange(self, request: Request, refusal: Reply | None = None) -> None:
        self._ex = ex = Exchange(request, self.client)
        ex.started = time.monotonic()
        self._request_done = not request.has_body
        self._response_done = self._chunked = self._discards = False
        self._close = not request.keep_alive
        self._waited = 0.0
        self._served += 1
        self._in_exchange = True
        if self._stream.at_eof:
            self._half_closed()
        await self._host.handle(ex, self, refusal)
        self._in_exchange = False
        if request.upgrade is not None and self._go_away is None:
            self._reader.go_on()
        self._idle_since = self._stream.deadlines.now

    async def _next_request(self) -> Request | None:
        """Wait for the next head; `None` when there will be none."""
        stream, reader, events = self._stream, self._reader, self._events
        try:
            if not events:
                timed = reader.in_head  # it may have begun right behind the last request
                stream.reading.after(self._settings.head_timeout if timed else self._settings.idle_timeout)
                while not events:
                    reader.feed(await stream.receive())
                    if reader.in_head and not timed:  # counted from its first byte (behaviour 6.2)
                        timed = True
                        stream.reading.after(self._settings.head_timeout)
                stream.reading.off()
        except (anyio.EndOfStream, StreamLost):
            return None  # with an incomplete request too: there is nobody to answer (behaviour 6.2)
        except DeadlineExceeded:
            if reader.in_head:
                await self._refuse(408, "Request Timeout", "gw.head_timeout")
            return None
        event = events.popleft()
        if event.__class__ is Request:
            request: Request = event
            if not request.has_body:
                events.popleft()  # its end
            return request
        assert isinstance(event, Malformed), event
        await self._refuse(event.status, event.message, "gw.bad_request")
        return None

    async def _refuse(self, status: int, message: str, reason: str) -> None:
        request = Request("", "")
        request.keep_alive = False
        text = (("content-type", "text/plain"),)
        await self._exchange(request, Reply(status, message.encode(), text, reason=reason, close=True))
        self._request_done = False  # whatever else the client is sending will not be read

    def _may_go_on(self) -> bool:
        """Tell whether another request may follow on this connection."""
        if not self._response_done or self._close:
            return False
        if not self._request_done:
            self._skip_queued_body()
        return self._request_done and not self._stream.lost

    async def _part(self) -> None:
        """Let the client read our last answer although it is still sending (RFC 9112 section 9.6)."""
        stream = self._stream
        if self._ex is None or not self._response_done or stream.lost:
            return
        if self._request_done and not stream.has_data and not self._events and not self._reader.in_head:
            return
        stream.write_eof()
        until = stream.deadlines.now + LINGER_TIME
        try:
            while (left := until - stream.deadlines.now) > 0:
                stream.reading.after(min(left, LINGER_IDLE))
                await stream.receive()
        except (anyio.EndOfStream, StreamLost, DeadlineExceeded):
            pass

    # --- what the stream tells while nobody reads ---------------------------------

    def _left(self) -> None:
        """Stop all work for a client that has gone."""
        self._scope.cancel()

    def cut(self) -> None:
        """End it, and what it carries: the time to drain is over."""
        if self._ex is not None and self._in_exchange:
            self._ex.reason = "gw.shutdown"
        self._stream.reset()

    def _half_closed(self) -> None:
        if self._in_exchange:
            self._progress = -1
            self._stream.reading.after(HALF_CLOSE_GRACE)

    def _grace_over(self) -> None:
        """A client that half-closed may still be listening while something is sent to it; otherwise it has left."""
        if not self._in_exchange or self._ex is None:
            return
        if self._ex._started and self._ex.bytes_sent != self._progress:
            self._progress = self._ex.bytes_sent
            self._stream.reading.after(HALF_CLOSE_GRACE)
        else:
            self._stream.abort()

    # --- Downstream: the request body -----------------------------------------------

    def take(self) -> tuple[bytes, bool] | None:
        events = self._events
        if not events:
            return None
        event = events.popleft()
        if event.__class__ is bytes:
            chunk: bytes = event
            ex = self._ex
            assert ex is not None
            ex.bytes_received += len(chunk)
            if self.max_body_size and ex.bytes_received > self.max_body_size:
                raise BodyTooLarge
            if events and isinstance(events[0], End):
                self._end(events.popleft())  # type: ignore[arg-type]
                return chunk, True
            return chunk, False
        if isinstance(event, End):
            self._end(event)
            return b"", True
        assert isinstance(event, Malformed), event
        events.append(event)  # it stays the last word on this connection
        raise ClientGone if event.truncated else BadBody(event.message)

    def _end(self, event: End) -> None:
        self._request_done = True
        if event is not END and self._ex is not None:
            self._ex.request.trailers = event.trailers

    async def receive(self) -> tuple[bytes, bool]:
        settings, stream, ex = self._settings, self._stream, self._ex
        assert ex is not None
        while (got := self.take()) is None:
            patience = settings.body_timeout
            if settings.min_body_rate:
                earned = MIN_RATE_GRACE + ex.bytes_received / settings.min_body_rate - self._waited
                patience = min(patience or earned, max(earned, 0.001))
            began = stream.deadlines.now
            stream.reading.after(patience)
            try:
                self._reader.feed(await stream.receive())
            except anyio.EndOfStream:
                self._reader.feed_eof()
            except StreamLost:
                raise ClientGone from None
            except DeadlineExceeded:
                raise BodyTimeout from None
            finally:
                stream.reading.off()
            self._waited += stream.deadlines.now - began
            if stream.at_eof:
                self._half_closed()
        return got

    def _skip_queued_body(self) -> None:
        """Drop a body that nobody wanted, as far as it is here already."""
        events = self._events
        while events and not self._request_done:
            event = events.popleft()
            if isinstance(event, End):
                self._request_done = True
            elif isinstance(event, Malformed):
                events.append(event)
                return

    # --- Downstream: the response ------------------------------------------------------

    async def send_interim(self, response: Response) -> None:
        ex = self._ex
        assert ex is not None
        if ex.request.version == "1.1" and not ex._started:
            self._stream.write(interim_head(response))
            await self._flow()

    async def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        request, response = ex.request, ex.response
        assert response is not None
        if response.status == 101:
            self._switch(request, response)
            return
        newer = request.version == "1.1"
        has_body = response.has_body and request.method != "HEAD"
        if end and not self._request_done:
            self._skip_queued_body()
        if self._host.draining or (end and not self._request_done) or (self._served == self._settings.max_requests):
            self._close = True
        if has_body and response.content_length is None:
            if newer:
                self._chunked = True
            else:
                self._close = True
        elif response.content_length is None and request.method != "HEAD" and response.status not in (204, 304):
            # Without a body because its own framing said so, as HTTP/2's does: ours has to say it too.
            response.headers.raw.append((b"content-length", b"0"))
        if self._settings.server and ex.outcome is Outcome.REPLY:
            response.headers.raw.append((b"server", self._settings.server))
        parts = response_head(
            response,
            close=self._close,
            stays_open=not newer and not self._close,
            chunked=self._chunked,
            via=self.via,
        )
        self._response_done = end
        stream = self._stream
        if not has_body:
            self._discards = True
            stream.write(b"".join(parts))
        elif len(chunk) <= MAX_JOINED_WRITE:
            parts += self._framed(ex, chunk, end)
            stream.write(b"".join(parts))
        else:
            stream.write_parts([b"".join(parts), *self._framed(ex, chunk, end)])
        if stream.paused or stream.lost:
            await self._flow()

    def _switch(self, request: Request, response: Response) -> None:
        """Stop speaking HTTP: the response accepts an upgrade."""
        key = request.headers.get("sec-websocket-key", "").encode("ascii")
        self._stream.write(upgrade_head(response, accept_of(key), self.via))
        self._response_done = self._close = self._discards = True

    def tunnel(self, go_away: Callable[[], None]) -> Stream:
        """Return the connection as the end of a WebSocket; *go_away* ends that when the connection is to end."""
        stream = self._stream
        self._go_away = go_away
        self._request_done = False
        stream.reading.off()
        stream.on_lost = stream.on_eof = stream.on_idle_due = None  # whoever reads finds out
        if self._reader.held:
            stream.unread(self._reader.held)
        return stream

    async def send(self, chunk: bytes, end: bool) -> None:
        self._response_done = end
        if self._discards:
            return
        ex = self._ex
        assert ex is not None
        stream = self._stream
        pieces = self._framed(ex, chunk, end)
        if len(pieces) == 1:
            stream.write(pieces[0])
        else:
            stream.write_parts(pieces)
        if stream.paused or stream.lost:
            await self._flow()

    def _framed(self, ex: Exchange, chunk: bytes, end: bool) -> list[bytes]:
        """Return the pieces of the body that *chunk* makes, and count it."""
        ex.bytes_sent += len(chunk)
        if not self._chunked:
            return [chunk]
        pieces = [b"%x\r\n" % len(chunk), chunk, b"\r\n"] if chunk else []
        if end:
            assert ex.response is not None
            pieces.append(last_chunk(ex.response.trailers))
        return pieces

    async def _flow(self) -> None:
        """Wait for a client that is slower than we are."""
        stream = self._stream
        if stream.lost:
            raise ClientGone
        if stream.paused:
            try:
                await stream.drain()
            except StreamLost:
                raise ClientGone from None
            except DeadlineExceeded:
                stream.abort()
                raise ClientGone("it takes the response too slowly") from None

    def close_after(self) -> None:
        self._close = True

    def reset(self) -> None:
        self._response_done = False
        self._stream.reset()

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._host.spawn(run)
