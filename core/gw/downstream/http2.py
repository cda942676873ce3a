"""Drives one client's HTTP/2 connection: its reader, its streams, and the tasks that carry them.

Frames are the engine's, filters and upstreams the chain's. The reader never
waits for a stream: it feeds the session and hands on what came. A stream is
carried by a task of its connection that is parked between two streams, not by
a new one. docs/http2.md says how windows, shutdown and abuse work together.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import uniform
from typing import Any, ClassVar, Final, Protocol as Interface

import anyio

from gw.downstream.http1 import Http1Settings
from gw.downstream.tunnel import Http2End, opens_tunnel, stays
from gw.failures import BodyTimeout, BodyTooLarge, ClientGone
from gw.filters import Exchange, Headers, Outcome, Reply, Request, Response
from gw.http.engines import Engine
from gw.http.framing import Fields, Refusal
from gw.http.h2 import (
    Code,
    Data,
    Ended,
    GoAway,
    Head,
    Pong,
    Reset,
    Session,
    SessionSettings,
    SettingsChanged,
    Trailers,
    WindowOpened,
)
from gw.http.pseudo import RequestHeads, StreamError, response_fields, trailer_fields, trailers_of
from gw.http.replies import http_date
from gw.keys import Client
from gw.limits import GOAWAY_NOTICE, MAX_QUEUED, MIN_QUEUED, MIN_RATE_GRACE, PULL_SIZE, RESET_DELAY, SETTINGS_TIME
from gw.net.stream import DeadlineExceeded, Signal, Stream, StreamLost
from gw.net.wait import Wait

__all__ = ["Host", "Http2Connection", "Http2Settings"]


@dataclass(frozen=True, slots=True)
class Http2Settings:
    """What HTTP/2 connections obey besides `Http1Settings`. Bytes, seconds; 0 is no bound (behaviour 4.4)."""

    session: SessionSettings
    high: int
    """Bytes of one response that may wait for the client's window before its sender waits."""
    low: int
    max_age: float
    """Seconds after which a connection is closed, as at a shutdown; spread by a tenth."""


class Host(Interface):
    """What a connection is served for: the gateway."""

    http1: Http1Settings
    http2: Http2Settings
    engine: Engine
    draining: bool

    async def handle(self, ex: Exchange, down: Http2Stream, refusal: Reply | None = None) -> None:
        """Carry *ex* to its end, or answer *refusal*. Raises only cancellation."""

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run *run* beside."""


_NOTICE_PING: Final = b"goaway.."
_NO_BODY: Final[deque[tuple[bytes, bool, int]]] = deque(maxlen=0)


class Http2Connection:
    """One connection, from its preface to its last frame."""

    __slots__ = (
        "_age",
        "_blocked",
        "_goaway_at",
        "_gone",
        "_heads",
        "_host",
        "_lingering",
        "_parked",
        "_pushed",
        "_refusing",
        "_served",
        "_session",
        "_settings",
        "_stream",
        "_streams",
        "_workers",
        "client",
        "pushes",
        "queued",
    )

    protocol: ClassVar = "h2"
    """What is spoken on it, for the figures."""

    def __init__(self, stream: Stream, host: Host, client: Client, session: Session | None = None) -> None:
        self._stream, self._host, self.client = stream, host, client
        self._settings = host.http2
        self._session = host.engine.server_session(host.http2.session) if session is None else session
        self._heads = RequestHeads(host.http1.limits, host.http2.session.max_header_list_size)
        self._streams: dict[int, Http2Stream] = {}
        self._blocked: set[Http2Stream] = set()
        """Those that wait until the client has taken more of what they sent."""
        self._lingering: dict[int, float | None] = {}
        """Streams whose exchange is over and that are not, and from when on what their client still sends is refused.

        `None`: it has said all; only the end of the response is still to be sent.
        """
        self.queued = 0
        """Bytes of long responses that wait for the client's window, as last counted."""
        self._pushed = 0
        """Streams that we have opened and that are not over."""
        self._parked: list[_Carrier] = []
        self._workers: set[_Carrier] = set()
        self._served = 0
        self._goaway_at = 0.0
        """When the final GOAWAY follows the notice; 0 while no notice was given."""
        self._gone = False
        self.pushes = host.http2.session.enable_push
        self._age = stream.deadlines.due(self.drain)
        self._refusing = stream.deadlines.due(stream.flush_soon)
        stream.on_lost = self._left
        stream.on_idle_due = None
        stream.pull = self._pull
        stream.set_write_marks(PULL_SIZE, PULL_SIZE // 4)

    @classmethod
    def upgraded(cls, stream: Stream, host: Host, client: Client, request: Request, settings: bytes) -> Http2Connection:
        """Go on with a connection whose client asked for that (RFC 7540 section 3.2): *request* is its stream 1."""
        session = host.engine.server_session(host.http2.session, start=False)
        try:
            session.upgraded(settings, request.method == "HEAD")
        except ValueError as error:
            session.events.append(Ended(Code.PROTOCOL_ERROR, str(error), by_peer=False))
            return cls(stream, host, client, session)
        connection = cls(stream, host, client, session)
        request.version, request.upgrade = "2", None
        connection._carry(Http2Stream(connection, 1, request, None, end=True))
        return connection

    # --- the connection --------------------------------------------------------

    async def serve(self) -> None:
        """Serve until either side ends it. Raises nothing but cancellation from outside."""
        stream, session, host = self._stream, self._session, self._host
        if self._settings.max_age:
            self._age.after(self._settings.max_age * uniform(0.9, 1.1))  # noqa: S311  # spread, not secrecy
        stream.reading.after(host.http1.head_timeout or SETTINGS_TIME)
        stream.flush_soon()
        try:
            while not session.events or not self._dispatch():
                session.feed(await stream.receive())
                ended = self._dispatch()
                stream.flush_soon()
                if ended:
                    break
                self._set_patience()
        except (anyio.EndOfStream, StreamLost, DeadlineExceeded):
            if not stream.lost and not self._gone and not self._streams:
                session.goaway(Code.NO_ERROR)
                stream.flush_soon()
        finally:
            self._age.forget()
            self._refusing.forget()
            for worker in tuple(self._workers):
                worker.scope.cancel()
            stream.close()
            # What points back here: a flood of connections would wait, with all that they hold, for the collector.
            stream.pull = None
            self._parked.clear()

    def _set_patience(self) -> None:
        """How long may the client be silent? While it has streams, that is for each of them to say."""
        if self._streams:
            self._stream.reading.off()
        elif self._lingering:
            self._stream.reading.after(self._host.http1.send_timeout)
        elif not self._served:
            self._stream.reading.after(self._host.http1.head_timeout)
        else:
            self._stream.reading.after(self._host.http1.idle_timeout)

    def _dispatch(self) -> bool:
        """Hand on what came; tell whether it was the last."""
        events = self._session.events
        streams = self._streams
        while events:
            event = events.popleft()
            kind = event.__class__
            if kind is Head:
                self._begin(event)  # type: ignore[arg-type]
            elif kind is Data:
                stream = streams.get(event.stream)  # type: ignore[union-attr]
                if stream is None:
                    self._discard(event)  # type: ignore[arg-type]
                else:
                    stream.add(event)  # type: ignore[arg-type]
            elif kind is WindowOpened or kind is SettingsChanged or kind is GoAway:
                pass  # what waits is looked at when it is pulled
            elif kind is Trailers:
                stream = streams.get(event.stream)  # type: ignore[union-attr]
                if stream is not None:
                    self._add_trailers(stream, event)  # type: ignore[arg-type]
            elif kind is Reset:
                self._lingering.pop(event.stream, None)  # type: ignore[union-attr]
                stream = streams.pop(event.stream, None)  # type: ignore[union-attr]
                if stream is not None:
                    stream.cut()
            elif kind is Pong:
                if event.data == _NOTICE_PING:  # type: ignore[union-attr]
                    self._goaway_at = min(self._goaway_at, self._stream.deadlines.now)
                    if self._goaway_at:
                        self.drain()
            elif kind is Ended:
                return True
        return False

    def _discard(self, event: Data) -> None:
        """Take in what nobody wants any more."""
        self._session.give_back(event.stream, event.flow)
        if event.end and event.stream in self._lingering:
            self._lingering[event.stream] = None

    def _begin(self, head: Head) -> None:
        """Begin the exchange that *head* asks for."""
        number, session = head.stream, self._session
        # A stream that was cancelled counts until the task that carries it has ended (CVE-2023-44487).
        if len(self._workers) - len(self._parked) >= self._settings.session.max_concurrent_streams:
            session.reset(number, Code.REFUSED_STREAM)
            return
        refusal = None
        try:
            request = self._heads.request_of(head.fields, head.end)
        except StreamError as error:
            session.refuse(number, error.code)
            return
        except Refusal as refused:
            request = Request("", "", version="2", has_body=not head.end)
            text = (("content-type", "text/plain"),)
            refusal = Reply(refused.status, refused.message.encode(), text, reason="gw.bad_request")
        self._carry(Http2Stream(self, number, request, refusal, head.end))

    def _carry(self, stream: Http2Stream) -> None:
        """Let a task have it: one that is parked, or a new one."""
        self._served += 1
        self._streams[stream.number] = stream
        if self._parked:
            self._parked.pop().go_on(stream)
        else:
            worker = _Carrier(self, stream)
            self._workers.add(worker)
            self._host.spawn(worker.run)
        if self._served == self._host.http1.max_requests:
            self.drain()

    def push(self, parent: Http2Stream, path: str, headers: Headers) -> bool:
        """Promise the response to a GET of *path* on *parent*, and begin with it; tell whether that could be."""
        asked, session = parent.request, self._session
        if (
            not self._settings.session.enable_push
            or not session.peer_allows_push
            or self._goaway_at
            or self._pushed >= min(session.peer_max_streams, self._settings.session.max_concurrent_streams)
            or self._streams.get(parent.number) is not parent
            or parent.response_done
            or not asked.host
            or not path.startswith("/")
        ):
            return False
        authority = asked.host.encode("ascii")
        fields: Fields = [
            (b":method", b"GET"),
            (b":scheme", asked.scheme.encode("ascii")),
            (b":authority", authority),
            (b":path", path.encode("ascii", "replace")),
            *headers.raw,
        ]
        number = session.push(parent.number, fields)
        if not number:
            return False
        request = Request("GET", path, Headers([(b"host", authority), *headers.raw]), version="2")
        request.host, request.scheme = asked.host, asked.scheme
        self._pushed += 1
        self._carry(Http2Stream(self, number, request, None, end=True))
        self._stream.flush_soon()
        return True

    def _add_trailers(self, stream: Http2Stream, event: Trailers) -> None:
        try:
            stream.end(trailers_of(event.fields, self._host.http1.limits))
        except StreamError as error:
            self._session.refuse(stream.number, error.code)
            del self._streams[stream.number]
            stream.cut()

    def over(self, stream: Http2Stream) -> None:
        """*stream*'s exchange has ended."""
        number, session = stream.number, self._session
        if not number & 1:
            self._pushed -= 1
        if self._streams.pop(number, None) is None:
            return  # it was cut
        self.queued -= stream._queued
        stream.drop_body()
        if not stream.response_done:
            session.reset(number, Code.INTERNAL_ERROR)
        elif not stream.request_done:
            # RFC 9113 section 8.1: the response is whole, stop sending. Not at once: curl 7.88 and others lose a
            # response when the reset comes in the same read.
            self._lingering[number] = self._stream.deadlines.now + RESET_DELAY
            self._refusing.after(RESET_DELAY)
        elif session.queued(number):
            self._lingering[number] = None
        if not self._streams:
            self._set_patience()
            if self._goaway_at:
                self.drain()
        self._stream.flush_soon()

    # --- sending ---------------------------------------------------------------

    def _pull(self, most: int) -> bytes:
        data = self._session.outgoing(most)
        if self._session.events and self._dispatch():
            self._stream.fail(StreamLost("the connection is over"))  # for the reader, which closes when this is sent
        if self._blocked:
            if self.is_clogged:
                for stream in self._streams.values():
                    stream._count()
            for stream in tuple(self._blocked):
                stream.look_at_queue()
        if self._lingering and len(data) < most:
            data += self._settle(most)
        return data

    def _settle(self, most: int) -> bytes:
        """See which responses have gone out to their end; return what that leaves to be sent."""
        session, now, resets = self._session, self._stream.deadlines.now, False
        for number, refused in tuple(self._lingering.items()):
            if session.queued(number):
                continue
            if refused is None:
                del self._lingering[number]
            elif now >= refused:
                del self._lingering[number]
                session.reset(number, Code.NO_ERROR)
                resets = True
            else:
                self._refusing.after(refused - now)
        if self.is_idle:
            self._set_patience()
        return session.outgoing(most) if resets else b""

    @property
    def is_clogged(self) -> bool:
        """Whether so much waits for the client, on all streams, that none may add to what it has waiting."""
        return self.queued > MAX_QUEUED

    @property
    def room(self) -> int:
        """How much of one response may wait."""
        return 0 if self.is_clogged else self._settings.high

    # --- ending ------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        return not self._streams and not self._lingering

    def drain(self) -> None:
        """End it in two steps (RFC 9113 section 6.8); called again until it has gone.

        A notice first: streams that the client has begun before it could know are still served. When its PING has
        made the round, or after `GOAWAY_NOTICE`, the final GOAWAY; when the last stream is over, the end.
        """
        session, now = self._session, self._stream.deadlines.now
        if not self._goaway_at:
            self._goaway_at = now + GOAWAY_NOTICE
            session.shutdown_notice()
            session.ping(_NOTICE_PING)
        elif not self._gone and now >= self._goaway_at:
            self._gone = True
            session.goaway(Code.NO_ERROR)
        for stream in tuple(self._streams.values()):
            stream.go_away()
        self._stream.flush_soon()
        if self._gone and self.is_idle:
            self._stream.close()
        else:
            self._age.after(GOAWAY_NOTICE / 4)

    def cut(self) -> None:
        """End it, and what it carries: the time to drain is over."""
        for stream in self._streams.values():
            if stream._ex is not None:
                stream._ex.reason = "gw.shutdown"
        self._stream.abort()

    def _left(self) -> None:
        for worker in tuple(self._workers):
            worker.scope.cancel()

    # --- for its streams -----------------------------------------------------------

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._host.spawn(run)

    def park(self, worker: _Carrier) -> None:
        self._parked.append(worker)

    def forget(self, worker: _Carrier) -> None:
        self._workers.discard(worker)


class _Carrier:
    """A task that carries one stream after another."""

    __slots__ = ("_connection", "_stream", "_wake", "scope")

    def __init__(self, connection: Http2Connection, stream: Http2Stream) -> None:
        self._connection, self._stream = connection, stream
        self._wake: Signal | None = None
        self.scope = anyio.CancelScope()
        stream.carrier = self

    def go_on(self, stream: Http2Stream) -> None:
        """Leave the car park with *stream*."""
        self._stream = stream
        stream.carrier = self
        assert self._wake is not None
        self._wake.set()

    async def run(self) -> None:
        connection = self._connection
        try:
            with self.scope:
                while True:
                    await self._stream.run()
                    if self.scope.cancel_called:
                        return  # by a reset that found nothing left to stop, and would stop the next stream
                    self._wake = connection._stream.signal()
                    connection.park(self)
                    await self._wake.wait()
        finally:
            connection.forget(self)


class Http2Stream:
    """One stream: the `Downstream` of its exchange."""

    __slots__ = (
        "_body",
        "_credit",
        "_discards",
        "_ex",
        "_queued",
        "_receiving",
        "_refusal",
        "_sending",
        "_tunnel",
        "_waited",
        "carrier",
        "connection",
        "go_away",
        "max_body_size",
        "number",
        "request",
        "request_done",
        "response_done",
        "via",
    )

    def __init__(
        self, connection: Http2Connection, number: int, request: Request, refusal: Reply | None, end: bool
    ) -> None:
        self.connection, self.number = connection, number
        self.carrier: _Carrier | None = None
        self.request, self._refusal = request, refusal
        self._ex: Exchange | None = None
        self.via = b""
        self.max_body_size = connection._host.http1.max_body_size
        self._body: deque[tuple[bytes, bool, int]] = _NO_BODY if end else deque()
        """What came and was not taken yet: data, whether it is the end, and the window that it took."""
        self._credit = 0
        """Window of what was taken and is still on its way to the upstream."""
        self.request_done = end
        self.response_done = False
        self._discards = False
        self._queued = 0
        """What `_count` found last."""
        self._receiving: Wait | None = None
        self._sending: Wait | None = None
        self._waited = 0.0
        self._tunnel: Http2End | None = None
        self.go_away: Callable[[], None] = stays  # ends the WebSocket, which does not end by itself

    async def run(self) -> None:
        """Carry the exchange. Raises only cancellation."""
        connection = self.connection
        self._ex = ex = Exchange(self.request, connection.client)
        ex.started = time.monotonic()
        if connection.pushes:
            ex._push = self._push
        try:
            await connection._host.handle(ex, self, self._refusal)
        finally:
            if self._receiving is not None:
                self._receiving.due.forget()
            if self._sending is not None:
                self._sending.due.forget()
                connection._blocked.discard(self)
            connection.over(self)
            self.carrier = None

    def _push(self, path: str, headers: Headers) -> bool:
        return self.connection.push(self, path, headers)

    # --- called by the connection -------------------------------------------------

    def add(self, event: Data) -> None:
        """Take in what came of the request's body."""
        self.request_done = event.end
        self._body.append((event.data, event.end, event.flow))
        if self._receiving is not None:
            self._receiving.wake()

    def end(self, trailers: Headers) -> None:
        """Take in the trailers, and with them the end."""
        self.request_done = True
        self.request.trailers = trailers
        self._body.append((b"", True, 0))
        if self._receiving is not None:
            self._receiving.wake()

    def cut(self) -> None:
        """The stream was reset: stop all work for it."""
        self.drop_body()
        if self._tunnel is not None:
            self._tunnel.lose()
        elif self.carrier is not None:
            self.carrier.scope.cancel()

    def drop_body(self) -> None:
        """Give back the window of what nobody will read."""
        flow = self._credit
        for _, _, unread in self._body:
            flow += unread
        if flow:
            self._credit = 0
            self._body.clear()
            self.connection._session.give_back(self.number, flow)

    def look_at_queue(self) -> None:
        """Let the sender go on, if enough of what it sent was taken."""
        if self._count() <= (0 if self.connection.is_clogged else self.connection._settings.low):
            self.connection._blocked.discard(self)
            assert self._sending is not None
            self._sending.wake()

    def _count(self) -> int:
        """Return how much of the response waits for the client, and have the connection know it."""
        queued = self.connection._session.queued(self.number)
        self.connection.queued += queued - self._queued
        self._queued = queued
        return queued

    # --- Downstream: the request body -----------------------------------------------

    def next_chunk(self) -> tuple[bytes, bool] | None:
        """Return what came first and was not taken yet, and whether it is the last."""
        if self._credit:  # the last chunk was written on
            self.connection._session.give_back(self.number, self._credit)
            self.connection._stream.flush_soon()
            self._credit = 0
        if not self._body:
            return None
        data, end, self._credit = self._body.popleft()
        return data, end

    def receiving(self) -> Wait:
        self._receiving = self._receiving or Wait(self.connection._stream)
        return self._receiving

    def take(self) -> tuple[bytes, bool] | None:
        got = self.next_chunk()
        if got is not None:
            ex: Exchange = self._ex  # type: ignore[assignment]
            ex.bytes_received += len(got[0])
            if self.max_body_size and ex.bytes_received > self.max_body_size:
                raise BodyTooLarge
        return got

    async def receive(self) -> tuple[bytes, bool]:
        settings, ex = self.connection._host.http1, self._ex
        assert ex is not None
        while (got := self.take()) is None:
            patience = settings.body_timeout
            if settings.min_body_rate:
                earned = MIN_RATE_GRACE + ex.bytes_received / settings.min_body_rate - self._waited
                patience = min(patience or earned, max(earned, 0.001))
            began = self.connection._stream.deadlines.now
            if not await self.receiving().in_time(patience):
                raise BodyTimeout
            self._waited += self.connection._stream.deadlines.now - began
        return got

    # --- Downstream: the response ------------------------------------------------------

    async def send_interim(self, response: Response) -> None:
        assert self._ex is not None
        if not self._ex._started:
            fields = response_fields(response, b"", b"")
            self.connection._session.interim(self.number, [line for line in fields if line[0] != b"content-length"])
            self.connection._stream.flush_soon()

    async def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        response = ex.response
        assert response is not None
        connection = self.connection
        if connection._host.http1.server and ex.outcome is Outcome.REPLY:
            response.headers.raw.append((b"server", connection._host.http1.server))
        fields = response_fields(response, self.via, http_date(time.time()))
        opens = self.request.upgrade == "websocket" and opens_tunnel(response, fields)
        if not opens and (ex.request.method == "HEAD" or not response.has_body):
            self._discards = True
            self.response_done = end
            connection._session.respond(self.number, fields, True)
            connection._stream.flush_soon()
            return
        connection._session.respond(self.number, fields, False)
        await self.send(chunk, end)

    async def send(self, chunk: bytes, end: bool) -> None:
        connection, number = self.connection, self.number
        self.response_done = end
        if self._discards or (self._tunnel is not None and self._tunnel.lost):
            return
        ex, session = self._ex, connection._session
        assert ex is not None
        assert ex.response is not None
        ex.bytes_sent += len(chunk)
        trailers: Fields = trailer_fields(ex.response.trailers) if end else []
        if trailers:
            if chunk:
                session.send(number, chunk, False)
            session.trail(number, trailers)
        elif chunk or end:
            session.send(number, chunk, end)
        connection._stream.flush_soon()
        if ex.bytes_sent > MIN_QUEUED and session.queued(number) > MIN_QUEUED and self._count() > connection.room:
            await self._flow()

    async def _flow(self) -> None:
        """Wait for a client that takes less than we have."""
        connection, settings = self.connection, self.connection._host.http1
        session = connection._session
        self._sending = self._sending or Wait(connection._stream)
        before = session.queued(self.number)
        connection._blocked.add(self)
        while not await self._sending.in_time(settings.send_timeout):
            left = session.queued(self.number)
            if before - left <= settings.min_send_rate * settings.send_timeout:
                session.reset(self.number, Code.CANCEL)
                connection._streams.pop(self.number, None)
                connection._stream.flush_soon()
                raise ClientGone("it takes the response too slowly")
            before = left

    def close_after(self) -> None:
        """Do nothing: a stream ends by itself, and the others have no part in it."""

    def tunnel(self, go_away: Callable[[], None]) -> Http2End:
        """Return the stream as the end of a WebSocket; *go_away* ends that when the connection is to end."""
        self.go_away, self._tunnel = go_away, Http2End(self)
        return self._tunnel

    def reset(self, code: int = Code.INTERNAL_ERROR) -> None:
        """Break the stream off so that the client can tell."""
        connection = self.connection
        connection._session.reset(self.number, code)
        connection._streams.pop(self.number, None)
        self.drop_body()
        connection._stream.flush_soon()

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.connection.spawn(run)
