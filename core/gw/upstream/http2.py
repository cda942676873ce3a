"""One HTTP/2 connection to an endpoint, shared by as many exchanges as it carries (behaviour 13).

Frames are the engine's; which connection carries what, the pool's; what becomes of one stream's events,
`gw.upstream.http2_stream`'s. What lives here is the connection's reader, which never waits for a stream, and its end.
Window is given back when what used it was written on: a slow client stops its own stream, and never another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import anyio

from gw.failures import (
    BadResponse,
    Cancelled,
    Disconnected,
    Http11Required,
    MaybeProcessed,
    NoWebSocket,
    Overtaken,
    Unprocessed,
    UpstreamFailure,
)
from gw.filters import Attempt
from gw.http.h2 import (
    Code,
    Data,
    Ended,
    GoAway,
    Head,
    Interim,
    Reset,
    Session,
    SessionSettings,
    SettingsChanged,
    Trailers,
    name_of,
)
from gw.http.pseudo import StreamError
from gw.limits import PULL_SIZE, WRITE_LOW_WATER
from gw.net.deadlines import NEVER
from gw.net.stream import DeadlineExceeded, Stream, StreamLost
from gw.upstream.forward import Forwarding
from gw.upstream.http1 import Patience
from gw.upstream.http2_stream import UpstreamStream

if TYPE_CHECKING:
    from gw.upstream.pool import Origin, Pool

__all__ = ["Http2Policy", "Http2Upstream"]

_ASKED: Final = b"gw......"
"""What our PINGs carry."""


@dataclass(frozen=True, slots=True)
class Http2Policy:
    """How an upstream is spoken to in HTTP/2. Seconds, where 0 is never; percent, where 0 is off (behaviour 4.5)."""

    session: SessionSettings
    prefer: Literal["auto", "always", "h2c"] = "auto"
    max_streams: int = 100
    ping_idle: float = 60.0
    ping_timeout: float = 10.0
    goaway_drain: float = 30.0
    saturation: int = 0
    preconnect: int = 0


class Http2Upstream:
    """A connection and the exchanges it carries. *active* counts them from when the pool promises a place for one."""

    __slots__ = (
        "_due",
        "_early",
        "_failure",
        "_idle_until",
        "_most",
        "_over",
        "_pinged",
        "_policy",
        "_pool",
        "_promised",
        "_session",
        "_streams",
        "_unsent",
        "_waiting",
        "active",
        "draining",
        "expires",
        "is_settled",
        "is_warm",
        "number",
        "origin",
        "served",
        "stream",
    )

    def __init__(self, stream: Stream, origin: Origin, pool: Pool, policy: Http2Policy, expires: float) -> None:
        self.stream, self.origin, self._pool, self._policy = stream, origin, pool, policy
        self.expires = expires
        """When it is too old for another request."""
        self._session: Session = pool.engine.client_session(policy.session)
        self._streams: dict[int, UpstreamStream] = {}
        self._waiting: set[UpstreamStream] = set()
        """Those whose sender waits until the upstream has taken more."""
        self._unsent: set[UpstreamStream] = set()
        """Those of which all is here, and not yet on its way."""
        self._early: set[UpstreamStream] = set()
        """Those that ask for a WebSocket and wait for the upstream's SETTINGS."""
        self.is_settled = False
        """The upstream's SETTINGS have come."""
        self._most = policy.max_streams
        self._pinged = self._over = False
        self._failure: UpstreamFailure | None = None
        """Why it ended, where that was seen while sending."""
        self._due = stream.deadlines.due(self._drained)
        self._idle_until = NEVER
        self.is_warm = False
        """It was opened before anybody asked, so it may have died before its first request."""
        self.number = 0
        """Of all that its pool has opened, in their order."""
        self._promised = 0
        """Places that were reserved and in which nothing has begun."""
        self.active = 0
        self.served = 0
        self.draining = False
        """It takes no further request."""
        stream.pull = self._pull
        stream.set_write_marks(PULL_SIZE, PULL_SIZE // 4)

    # --- for the pool ----------------------------------------------------------

    @property
    def capacity(self) -> int:
        """How many exchanges it carries at once: what we want, or less where the upstream has said so."""
        return min(self._most, self._session.peer_max_streams)

    @property
    def takes_more(self) -> bool:
        """Whether it may begin another exchange now, room aside."""
        most = self._pool.settings.max_requests
        stream = self.stream
        return not (
            self.draining
            or stream.lost
            or stream.at_eof
            or stream.deadlines.now >= self.expires
            or (most and self.served + self._promised >= most)
        )

    @property
    def has_room(self) -> bool:
        return self.active < self.capacity and self.takes_more

    @property
    def is_alive(self) -> bool:
        return not self._over

    def opened(self) -> None:
        """It is there, and nobody has asked for it yet."""
        self._idle_until = self.stream.deadlines.now + self._pool.settings.idle_timeout

    def reserve(self) -> None:
        """Promise a place for an exchange: it begins, or the promise is taken back with `cancel`."""
        self.active += 1
        self._promised += 1

    def cancel(self) -> None:
        """Nobody wants the place that was reserved any more."""
        self._promised -= 1
        self.release()

    def release(self) -> None:
        """An exchange has ended."""
        self.active -= 1
        if self._over:
            return
        if self.active == 0:
            if self.draining or not self.takes_more:
                self.close()
                return
            self._idle_until = self.stream.deadlines.now + self._pool.settings.idle_timeout
            self._set_patience()
        self._pool.has_room(self)

    def begin(self, attempt: Attempt, forwarding: Forwarding, patience: Patience) -> UpstreamStream:
        """Begin to carry *attempt*, in a place that was reserved."""
        attempt.endpoint = self.origin.endpoint
        attempt.reused = self.served > 0 or self.is_warm
        self.served += 1
        self._promised -= 1
        self._idle_until = NEVER
        return UpstreamStream(self, attempt, forwarding, patience)

    def drain(self) -> None:
        """End it as soon as nothing is lost."""
        self.draining = True
        if self.active == 0:
            self.close()

    def close(self) -> None:
        """End it in good order; nothing is on it."""
        if not self._over:
            self._session.goaway(Code.NO_ERROR)
            self.stream.flush_soon()
            self._end()
            self.stream.close()

    def _end(self) -> None:
        """Change what others see; synchronously, and once."""
        self._over = self.draining = True
        self._due.forget()
        if self._pool.tls is not None:
            self._pool.tls.remember(self.stream.tls)
        self._pool.forget_session(self)

    # --- the connection ----------------------------------------------------------

    async def run(self) -> None:
        """Read until either side ends it. Raises nothing but cancellation from outside."""
        stream, session = self.stream, self._session
        failure = self._failure
        stream.flush_soon()
        self._set_patience()
        try:
            while failure is None and not self._over:
                try:
                    session.feed(await stream.receive())
                except DeadlineExceeded:
                    if self._over:
                        stream.abort()  # it took too long to close
                    else:
                        failure = self._silence()
                    continue
                self._pinged = False
                failure = self._dispatch()
                stream.flush_soon()
                self._set_patience()
        except (anyio.EndOfStream, StreamLost):
            pass
        finally:
            self._finish(failure or self._failure or Disconnected("the upstream closed the connection"))

    def _finish(self, failure: UpstreamFailure) -> None:
        if not self._over:
            self._end()
        streams, self._streams = self._streams, {}
        for stream in (*streams.values(), *self._early):
            stream.fail_with(failure)
        self.stream.close()

    def _set_patience(self) -> None:
        """Say how long the upstream may be silent."""
        reading = self.stream.reading
        idle = self._policy.ping_idle
        if self.active == 0 and self._idle_until != NEVER:
            left = max(self._idle_until - self.stream.deadlines.now, 0.001)
            reading.after(min(left, idle) if idle else left)
        else:
            reading.after(idle)

    def _silence(self) -> UpstreamFailure | None:
        """Nothing came for a while: end an idle connection, ask a busy one, give one up that was asked."""
        if self.active == 0 and self.stream.deadlines.now >= self._idle_until:
            self.close()
            return None
        if self._pinged:
            return MaybeProcessed(f"the upstream did not answer a PING within {self._policy.ping_timeout:g} s")
        self._pinged = True
        self._session.ping(_ASKED)
        self.stream.flush_soon()
        self.stream.reading.after(self._policy.ping_timeout)
        return None

    def _dispatch(self) -> UpstreamFailure | None:
        """Hand on what came; return why it was the last, if it was."""
        events, streams = self._session.events, self._streams
        while events:
            event = events.popleft()
            if isinstance(event, Data):
                stream = streams.get(event.stream)
                if stream is None:
                    self._session.give_back(event.stream, event.flow)
                else:
                    stream.add(event.data, event.end, event.flow)
            elif isinstance(event, Head | Interim | Trailers):
                stream = streams.get(event.stream)
                if stream is not None:
                    self._head(stream, event)
            elif isinstance(event, Reset):
                self._reset(event)
            elif isinstance(event, GoAway):
                self._go_away(event)
            elif isinstance(event, SettingsChanged):
                self._settle()
            elif isinstance(event, Ended):
                if event.by_peer or event.code == Code.NO_ERROR:
                    return Disconnected("the upstream ended the connection")
                return BadResponse(f"what came back is not HTTP/2: {event.message}")
        return None

    def _settle(self) -> None:
        """Take in the upstream's SETTINGS."""
        self.is_settled = True
        self.origin.tunnels = self._session.peer_connect_protocol
        while self._early:
            self._early.pop().open_tunnel()
        self._pool.has_room(self)

    def no_tunnel(self) -> UpstreamFailure:
        """Return why a WebSocket cannot be carried here: it may be worth another attempt, which is HTTP/1.1."""
        why = "the upstream carries no WebSockets over HTTP/2 (RFC 8441)"
        return Unprocessed(why) if self._pool.in_http1(self.origin, tunnel=True) else NoWebSocket(why)

    def _head(self, stream: UpstreamStream, event: Head | Interim | Trailers) -> None:
        try:
            if isinstance(event, Trailers):
                stream.end(event.fields)
            else:
                stream.answer(event.fields, isinstance(event, Head) and event.end)
        except StreamError as error:
            self._session.reset(stream.number, error.code)
            self._lose(stream, BadResponse(str(error)))

    def _lose(self, stream: UpstreamStream, failure: UpstreamFailure) -> None:
        del self._streams[stream.number]
        stream.fail_with(failure)

    def _reset(self, event: Reset) -> None:
        stream = self._streams.get(event.stream)
        if stream is None:
            return
        if event.code == Code.REFUSED_STREAM:
            # It has as many as it can do with, whatever its SETTINGS say.
            self._most = min(self._most, max(self.active - 1, 1))
            self._lose(stream, Unprocessed("the upstream refused the stream"))
        elif event.code == Code.HTTP_1_1_REQUIRED and stream.asks_tunnel:
            self.origin.tunnels = False
            self._lose(stream, self.no_tunnel())
        elif event.code == Code.HTTP_1_1_REQUIRED:
            self.origin.h1_only = True
            self._lose(stream, Http11Required("the upstream wants this request in HTTP/1.1"))
            self.draining = True
        elif not event.by_peer:
            self._lose(stream, BadResponse(f"the response broke a rule: {name_of(event.code)}"))
        elif event.code != Code.NO_ERROR or not stream.ended:  # RFC 9113 section 8.1: "stop sending, I have answered"
            self._lose(stream, Cancelled(f"the upstream reset the stream: {name_of(event.code)}"))
        else:
            stream.stop_sending()

    def _go_away(self, event: GoAway) -> None:
        self.draining = True
        kind = Overtaken if event.last else Unprocessed
        for number, stream in tuple(self._streams.items()):
            if number > event.last:
                self._lose(stream, kind("the upstream said GOAWAY before it came to this request"))
        self._pool.retire(self)
        if self.active == 0:
            self.close()
        elif self._due.when == NEVER:
            self._due.after(self._policy.goaway_drain)

    def _drained(self) -> None:
        """The time after a GOAWAY is over."""
        failure = MaybeProcessed(f"the upstream said GOAWAY and did not answer within {self._policy.goaway_drain:g} s")
        self._finish(failure)

    # --- sending ---------------------------------------------------------------

    def _pull(self, most: int) -> bytes:
        session = self._session
        data = session.outgoing(most)
        if session.events and (failure := self._dispatch()) is not None:
            self._failure = failure
            self.stream.fail(StreamLost(str(failure)))  # for the reader, which ends it
        for stream in tuple(self._waiting):
            if session.queued(stream.number) <= WRITE_LOW_WATER:
                self._waiting.discard(stream)
                stream.go_on()
        for stream in tuple(self._unsent):
            if not session.queued(stream.number):
                self._unsent.discard(stream)
                stream.sent()
        return data

    def __repr__(self) -> str:
        state = "over" if self._over else "draining" if self.draining else "open"
        return f"<Http2Upstream {self.origin.endpoint} {state} active {self.active} served {self.served}>"
