"""One stream of an HTTP/2 connection to an endpoint: what carries one attempt (behaviour 13).

What the connection hands over is kept here until it is taken; the deadlines of the attempt are here, too. The
connection's own are `gw.upstream.http2`'s.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from gw.failures import (
    Disconnected,
    MaybeProcessed,
    ResponseIdle,
    ResponseTimeout,
    SendStalled,
    Truncated,
    Unprocessed,
    UpstreamFailure,
)
from gw.filters import Attempt, Exchange, Response
from gw.http.framing import Fields
from gw.http.h2 import Code
from gw.http.pseudo import StreamError, response_of, trailer_fields, trailers_of
from gw.limits import MAX_INTERIM_RESPONSES, WRITE_HIGH_WATER, WS_CLOSE_TIME
from gw.net.deadlines import NEVER, Due
from gw.net.wait import Wait
from gw.upstream.forward import Forwarding
from gw.upstream.http1 import Patience
from gw.upstream.tunnel import Http2End

if TYPE_CHECKING:
    from gw.upstream.http2 import Http2Upstream

__all__ = ["UpstreamStream"]


class UpstreamStream:
    """One stream: the `Connection` that a chain sees."""

    __slots__ = (
        "_answer_by",
        "_attempt",
        "_body",
        "_connection",
        "_credit",
        "_ex",
        "_failure",
        "_forwarding",
        "_heads",
        "_idle",
        "_is_answered",
        "_is_held",
        "_leaving",
        "_left",
        "_patience",
        "_reading",
        "_request_done",
        "_response",
        "_sending",
        "_stopped",
        "_tunnels",
        "_until",
        "asks_tunnel",
        "ended",
        "number",
    )

    def __init__(self, connection: Http2Upstream, attempt: Attempt, forwarding: Forwarding, patience: Patience) -> None:
        self._connection, self._attempt = connection, attempt
        self._forwarding, self._patience = forwarding, patience
        self.number = 0
        self._heads: deque[Response] = deque()
        self._body: deque[tuple[bytes, bool, int]] = deque()
        """What came and was not taken yet: data, whether it is the end, and the window that it took."""
        self._credit = 0
        """Window of what was taken and is still on its way to the client."""
        self._left: int | None = None
        """What is still to come of a body whose length was declared."""
        self._response: Response | None = None
        self._failure: Exception | None = None
        self._request_done = False
        self._stopped = False
        """The upstream wants no more of the request."""
        self.asks_tunnel = self._tunnels = False
        """It asks for a WebSocket; it carries one."""
        self._leaving: Due | None = None
        """Set when the exchange is over, and the upstream has still to end its side of the WebSocket."""
        self.ended = False
        """Its response has come to its end."""
        self._reading = Wait(connection.stream)
        self._sending: Wait | None = None
        self._answer_by: float | None = None
        """When the response's head must be there; `None` while the request is not yet sent."""
        self._idle = -1.0
        """The longest pause in the response's body; negative until somebody waits for it."""
        self._until = NEVER
        self._is_held = False
        self._is_answered = False
        """An answer has begun to come, if only an interim one."""

    # --- called by the connection ------------------------------------------------

    def answer(self, fields: Fields, end: bool) -> None:
        """Take in a head, an interim one or the final one; raises `StreamError`."""
        self._is_answered = True
        pool = self._connection._pool
        response = response_of(fields, end, self._ex.request.method, pool.reader_limits)
        if response.status >= 200:
            if self.asks_tunnel:
                self._answer_tunnel(response, end)
            self._response = response
            if response.has_body:
                self._left = response.content_length
            self.ended = end
        elif len(self._heads) >= MAX_INTERIM_RESPONSES:
            raise StreamError("More interim responses than anybody reads", Code.ENHANCE_YOUR_CALM)
        self._heads.append(response)
        self._reading.wake()

    def _answer_tunnel(self, response: Response, end: bool) -> None:
        """Make what accepts a WebSocket the same as in HTTP/1.1 (RFC 8441 section 5); end our side where it is refused."""
        if not 200 <= response.status < 300:
            self._connection._session.send(self.number, b"", True)
            return
        if end:
            raise StreamError("The upstream accepts a WebSocket, and ends it as it begins")
        response.status, response.upgrade, response.has_body, response.content_length = 101, "websocket", False, None
        self._tunnels = True

    def add(self, data: bytes, end: bool, flow: int) -> None:
        """Take in what came of the body."""
        self.ended = end
        if self._leaving is not None:
            self._connection._session.give_back(self.number, flow)
            self._look_whether_gone()
            return
        if self._left is not None:
            self._left -= len(data)
        self._body.append((data, end, flow))
        self._reading.wake()

    def end(self, fields: Fields) -> None:
        """Take in the trailers, and with them the end; raises `StreamError`."""
        trailers = trailers_of(fields, self._connection._pool.reader_limits)
        if self._response is not None and self._forwarding.forward_trailers:
            self._response.trailers = trailers
        self.add(b"", True, 0)

    def fail_with(self, failure: UpstreamFailure) -> None:
        """The stream is over before its end."""
        if isinstance(failure, Disconnected | MaybeProcessed) and self._is_answered:
            failure = Truncated(str(failure))
        if self._failure is None:
            self._failure = failure
        self.stop_sending()
        self._reading.wake()
        if self._leaving is not None:
            self._gone()

    def stop_sending(self) -> None:
        self._stopped = True
        self.go_on()

    def go_on(self) -> None:
        """Let the sender look again."""
        if self._sending is not None:
            self._sending.wake()

    def sent(self) -> None:
        """All that was to be sent is on its way."""
        if self._leaving is None:
            self.expect_response()
        else:
            self._look_whether_gone()

    def expect_response(self) -> None:
        """All of the request is on its way: from now on the upstream has its time to answer."""
        if self._answer_by is None and self._response is None:
            response = self._patience.response
            self._answer_by = self._connection.stream.deadlines.now + response if response else NEVER
            self._reading.due.after(response)

    # --- Connection: the request ----------------------------------------------------

    def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        self._ex = ex
        connection = self._connection
        request, patience = ex.request, self._patience
        if patience.total:
            self._until = connection.stream.deadlines.now + patience.total
        if request.upgrade == "websocket":
            self.asks_tunnel = self._request_done = True
            self.expect_response()
            if connection.is_settled:
                self.open_tunnel()
            else:
                connection._early.add(self)
        elif not self._begin(not request.has_body):
            pass  # it has failed
        elif request.has_body:
            self._write(chunk, end)
        else:
            self._request_done = True
            self.expect_response()

    def open_tunnel(self) -> None:
        """Ask for a WebSocket, now that the upstream has said whether it may be asked (RFC 8441 section 3)."""
        if self._connection._session.peer_connect_protocol:
            self._begin(False)
        else:
            self.fail_with(self._connection.no_tunnel())

    def _begin(self, end: bool) -> bool:
        """Open the stream with the request's head; tell whether it could be."""
        connection = self._connection
        scheme = b"https" if connection.stream.is_secure else b"http"
        fields = self._forwarding.fields(self._ex, connection.origin.authority, scheme)
        self.number = 0 if connection.draining else connection._session.request(fields, end)
        if not self.number:
            connection.draining = True
            self.fail_with(Unprocessed("the connection takes no further stream"))
            return False
        connection._streams[self.number] = self
        self._attempt.sent = True
        connection.stream.flush_soon()
        return True

    def _write(self, chunk: bytes, end: bool) -> None:
        session = self._connection._session
        trailers: Fields = (
            trailer_fields(self._ex.request.trailers) if end and self._forwarding.forward_trailers else []
        )
        if trailers:
            if chunk:
                session.send(self.number, chunk, False)
            session.trail(self.number, trailers)
        elif chunk or end:
            session.send(self.number, chunk, end)
        if end:
            self._request_done = True
            self._connection._unsent.add(self)
        self._connection.stream.flush_soon()

    async def send(self, chunk: bytes, end: bool) -> None:
        if self._stopped:
            raise Disconnected("the upstream takes no more of the request")
        self._write(chunk, end)
        if self.is_clogged:
            await self.flow()

    @property
    def is_clogged(self) -> bool:
        """Whether enough waits for the upstream's window."""
        return self._connection._session.queued(self.number) > WRITE_HIGH_WATER

    async def flow(self) -> None:
        """Wait for an upstream that takes less than we have; raises `SendStalled`, `Disconnected`."""
        connection, session = self._connection, self._connection._session
        if self._sending is None:
            self._sending = Wait(connection.stream)
        connection._waiting.add(self)
        before = session.queued(self.number)
        while not self._stopped and not await self._sending.in_time(self._patience.send):
            left = session.queued(self.number)
            if left >= before:
                raise SendStalled("the upstream stopped taking the request")
            before = left
        if self._stopped:
            raise Disconnected("the upstream takes no more of the request")

    def fail(self, error: Exception | None) -> None:
        if error is None:
            self._request_done = True
            self.expect_response()
        else:
            if self._failure is None:
                self._failure = error
            self._reading.wake()

    # --- Connection: the response ---------------------------------------------------

    async def response(self) -> Response:
        connection = self._connection
        session, deadlines = connection._session, connection.stream.deadlines
        unsent = session.queued(self.number) if self.number else 0
        while not self._heads:
            if self._failure is not None:
                raise self._failure
            if self._answer_by is not None:
                seconds = 0 if self._answer_by == NEVER else max(self._answer_by - deadlines.now, 0.001)
            elif self._request_done:
                seconds = self._patience.send
            else:
                seconds = 0  # whoever sends it has a deadline
            if not await self._reading.in_time(seconds):
                if self._answer_by is not None:
                    raise ResponseTimeout(f"no response within {self._patience.response:g} s")
                left = session.queued(self.number)
                if left >= unsent:
                    raise SendStalled("the upstream stopped taking the request")
                unsent = left
        return self._heads.popleft()

    def take(self) -> tuple[bytes, bool] | None:
        connection = self._connection
        if self._credit:  # the last chunk was written on
            connection._session.give_back(self.number, self._credit)
            connection.stream.flush_soon()
            self._credit = 0
        if not self._body:
            if self._failure is not None:
                raise self._failure
            return None
        data, end, self._credit = self._body.popleft()
        if self._left is not None and (self._left < 0 or (end and self._left)):
            raise Truncated("the body is not as long as Content-Length says")
        return data, end

    async def receive(self) -> tuple[bytes, bool]:
        patience, deadlines = self._patience, self._connection.stream.deadlines
        while (got := self.take()) is None:
            left = self._until - deadlines.now
            if left <= 0:
                raise patience.too_long(held=self._is_held)
            if self._idle < 0:
                self._idle = 0.0 if self._may_be_silent() else patience.idle
            wait = min(self._idle or NEVER, left)
            if not await self._reading.in_time(0 if wait == NEVER else wait) and deadlines.now < self._until:
                raise ResponseIdle(f"nothing for {self._idle:g} s in mid-response")
        return got

    def hold(self) -> None:
        until = self._connection.stream.deadlines.now + (self._patience.response or NEVER)
        if until < self._until:
            self._until, self._is_held = until, True

    def _may_be_silent(self) -> bool:
        """Tell whether silence is part of the response (behaviour 11.2)."""
        assert self._response is not None
        return self._response.headers.get("content-type", "").lower().startswith("text/event-stream")

    # --- a WebSocket (RFC 8441) -------------------------------------------------------

    def tunnel(self) -> Http2End:
        """Return the stream as the end of a WebSocket: it was accepted."""
        return Http2End(self, self._connection.stream.deadlines)

    async def something(self) -> None:
        """Wait until there may be something to take."""
        await self._reading.in_time(0)

    def write(self, data: bytes) -> None:
        if not self._stopped:
            self._connection._session.send(self.number, data, False)
            self._connection.stream.flush_soon()

    def abort(self) -> None:
        """End it now, so that the upstream can tell."""
        connection = self._connection
        if connection._streams.pop(self.number, None) is not None:
            connection._session.reset(self.number, Code.CANCEL)
            self._drop_body()
        self.fail_with(Truncated("cut off"))

    def _leave(self) -> None:
        """End our side; the place is free when the upstream has ended its own, or had its time to."""
        connection = self._connection
        self._leaving = connection.stream.deadlines.due(self._gone)
        self._leaving.after(WS_CLOSE_TIME)
        self._drop_body()
        connection._session.send(self.number, b"", True)
        connection._unsent.add(self)

    def _look_whether_gone(self) -> None:
        if self.ended and not self._connection._session.queued(self.number):
            self._gone()

    def _gone(self) -> None:
        assert self._leaving is not None
        self._leaving.forget()
        self._leaving = None
        self._over()

    # --- its end ----------------------------------------------------------------------

    def finish(self) -> None:
        connection = self._connection
        self._reading.due.forget()
        if self._sending is not None:
            self._sending.due.forget()
        connection._waiting.discard(self)
        connection._early.discard(self)
        if self._tunnels and self.number in connection._streams:
            self._leave()
            connection.stream.flush_soon()
        else:
            self._over()

    def _over(self) -> None:
        """Give its place free."""
        connection, number, session = self._connection, self.number, self._connection._session
        connection._unsent.discard(self)
        if number:
            is_open = connection._streams.pop(number, None) is not None
            if is_open and (not self.ended or not self._request_done or session.queued(number)):
                session.reset(number, Code.CANCEL)
            self._drop_body()
            connection.stream.flush_soon()
        connection.release()

    def _drop_body(self) -> None:
        """Give back the window of what nobody will read."""
        flow = self._credit + sum(unread for _, _, unread in self._body)
        self._body.clear()
        self._credit = 0
        if flow:
            self._connection._session.give_back(self.number, flow)

    def __repr__(self) -> str:
        return f"<UpstreamStream {self.number} of {self._connection!r}>"
