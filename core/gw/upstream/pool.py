"""The connections to one upstream: how many, which one next, and who waits (behaviour 12).

Counting is synchronous and comes first; opening and closing follow. So a
cancelled task can neither leak a place nor give one away twice.
"""

from __future__ import annotations

import random
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import anyio

from gw.failures import (
    ConnectFailed,
    ConnectTimeout,
    HandshakeFailed,
    NotHttp2,
    QueueDrained,
    QueueFull,
    QueueTimeout,
    UpstreamFailure,
)
from gw.http.engines import Engine
from gw.http.h1 import ReaderLimits
from gw.keys import Endpoint
from gw.net.deadlines import NEVER
from gw.net.network import Network
from gw.net.resolve import first_of
from gw.net.stream import Stream
from gw.net.tls import ClientTls, reason_of
from gw.upstream.http1 import Http1Upstream
from gw.upstream.http2 import Http2Policy, Http2Upstream

__all__ = ["Origin", "Pool", "PoolSettings"]


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Bounds of one upstream's connections, in one worker. Seconds; 0 is no bound where the name allows it."""

    max_connections: int = 64
    max_idle: int = 16
    max_queue: int = 256
    connect_timeout: float = 5.0
    queue_timeout: float = 5.0
    idle_timeout: float = 90.0
    max_lifetime: float = 3600.0
    lifetime_jitter: float = 0.0
    """By how much shorter a connection's life may be, as a share of it: so that those of one moment do not end together."""
    max_requests: int = 0


class Origin:
    """One endpoint of a pool: what it is called by, its idle HTTP/1.1 connections, the last used last, and its HTTP/2 ones."""

    __slots__ = ("addresses", "authority", "endpoint", "h1_only", "idle", "is_gone", "opening", "sessions", "tunnels")

    def __init__(self, endpoint: Endpoint, addresses: Sequence[str] = (), tls: ClientTls | None = None) -> None:
        self.endpoint = endpoint
        self.addresses = addresses or (endpoint.address or endpoint.host,)
        """Where to connect: its own address first, then others that it can be reached by."""
        self.authority = _authority(endpoint, tls)
        self.idle: list[Http1Upstream] = []
        self.is_gone = False
        """It is no endpoint of the upstream any more."""
        self.sessions: list[Http2Upstream] = []
        """Those that take further requests."""
        self.opening: _Opening | None = None
        self.h1_only = False
        """It was found to speak HTTP/1.1, where both were offered."""
        self.tunnels = True
        """Its HTTP/2 connections carry WebSockets (RFC 8441), as far as is known."""


class _Opening:
    """A connection that is being opened for all who wait for it: it may turn out to be one to share."""

    __slots__ = ("_done", "failure", "wanted")

    def __init__(self) -> None:
        self._done = anyio.Event()
        self.failure: UpstreamFailure | None = None
        self.wanted = 0

    async def wait(self, *, wants: bool = True) -> None:
        """Wait until it is open, for a request that *wants* it or just to know; raises why it is not."""
        self.wanted += wants
        await self._done.wait()
        if self.failure is not None:
            raise type(self.failure)(*self.failure.args)  # one for each: an exception collects where it was raised

    def done(self) -> None:
        self._done.set()


class _Waiter:
    """Somebody in the queue. Is given a connection, or a place to open one, or nothing in time."""

    __slots__ = ("connection", "event", "guard", "has_place", "http1", "sent_away")

    def __init__(self, guard: object | None, *, http1: bool) -> None:
        self.guard = guard
        self.http1 = http1
        """It has no use for a shared connection."""
        self.event = anyio.Event()
        self.connection: Http1Upstream | Http2Upstream | None = None
        self.has_place = False
        self.sent_away = False


class Pool:
    """Connections of one upstream. Idle ones are used last in, first out, so that the rest can age."""

    def __init__(
        self,
        name: str,
        endpoints: Sequence[Endpoint],
        settings: PoolSettings,
        network: Network,
        engine: Engine,
        reader_limits: ReaderLimits,
        tls: ClientTls | None = None,
        http2: Http2Policy | None = None,
    ) -> None:
        self.name, self.endpoints, self.settings = name, tuple(endpoints), settings
        self.engine, self.reader_limits = engine, reader_limits
        self.tls, self.http2 = tls, http2
        self.network = network
        self.origins = [Origin(endpoint, tls=tls) for endpoint in self.endpoints]
        self._idle_count = 0
        self.open = 0
        """Connections that exist or are being opened, idle ones included."""
        self.opened = 0
        """Shared connections so far."""
        self._waiters: deque[_Waiter] = deque()
        self._closed = False
        self.preconnects = 0
        """HTTP/2 connections that were opened before they were needed."""
        self.preconnects_skipped = 0
        """Those that were not, for want of room."""

    def in_http1(self, origin: Origin, *, tunnel: bool) -> bool:
        """Tell whether nothing but HTTP/1.1 will do for *origin*; a *tunnel* is a request for a WebSocket."""
        if self.http2 is None or origin.h1_only:
            return True
        return tunnel and not origin.tunnels and self.http2.prefer == "auto"

    def take(self, origin: Origin, *, tunnel: bool = False, after: int = 0) -> Http1Upstream | Http2Upstream | None:
        """Return an idle connection to *origin* that is alive, or a shared one with room, in which a place is reserved.

        Shared ones only of those that were opened *after* so many others.
        """
        if origin.sessions and not (tunnel and self.in_http1(origin, tunnel=True)):
            session = self._choose_session(origin, after)
            if session is not None:
                session.reserve()
                return session
        idle = origin.idle
        while idle:
            connection = idle.pop()
            self._idle_count -= 1
            connection.is_idle = False
            # One whose peer closed was evicted when that was seen; bytes that nobody asked for are seen here.
            if not connection.stream.has_data and self.network.deadlines.now < connection.expires:
                return connection
            connection.close()
        return None

    async def connect(
        self, origin: Origin, *, fresh: bool = False, guard: object | None = None, tunnel: bool = False
    ) -> Http1Upstream | Http2Upstream:
        """Open a connection to *origin*, or wait for one; raises an `UpstreamFailure`.

        What the queue hands out may lead to another endpoint, unless it must be *fresh*: not used before. Of a shared
        connection that means opened since, perhaps for another one that asked for such; where no more may be opened,
        no more than that it is alive. Who waits under a *guard* can be sent away by it.
        """
        after = self.opened if fresh else 0
        while True:
            http1 = self.in_http1(origin, tunnel=tunnel)
            if self.http2 is not None and not (fresh and http1):
                # What is waited for below may be here.
                if (found := self.take(origin, tunnel=tunnel, after=after)) is not None:
                    return found
                if not http1 and origin.opening is not None and origin.opening.wanted < self.http2.max_streams:
                    await origin.opening.wait()
                    continue
            if self.open >= self.settings.max_connections and not self._evict_oldest():
                given = (await self._queue(guard, http1=http1)).connection
                if isinstance(given, Http2Upstream):
                    if given.is_alive:
                        return given
                    given.cancel()
                    continue
                if given is not None:
                    if not fresh and given.is_alive:
                        return given
                    given.drop()  # its place becomes ours
            else:
                self.open += 1
            if http1:
                return await self._dial(origin, http11=True)
            await self._begin(origin).wait()

    async def _dial(self, origin: Origin, *, http11: bool) -> Http1Upstream | Http2Upstream:
        """Open a connection in a place that is already counted."""
        endpoint, done = origin.endpoint, False
        policy = self.http2
        try:
            with anyio.fail_after(self.settings.connect_timeout):
                stream = await self._stream(origin, http11=http11)
            done = True
        except TimeoutError:
            raise ConnectTimeout(f"no connection to {endpoint} within {self.settings.connect_timeout:g} s") from None
        except ssl.SSLError as error:
            raise HandshakeFailed(f"no TLS with {endpoint}: {reason_of(error)}") from error
        except OSError as error:
            raise ConnectFailed(f"cannot connect to {endpoint}: {reason_of(error)}") from error
        finally:
            if not done:
                self._free_place()
        lifetime = self.settings.max_lifetime
        lifetime *= 1 - self.settings.lifetime_jitter * random.random()  # noqa: S311  # spread, not secret
        expires = self.network.deadlines.now + lifetime if lifetime else NEVER
        if policy is not None and self._is_http2(stream):
            session = Http2Upstream(stream, origin, self, policy, expires)
            self.opened = session.number = self.opened + 1
            return session
        return Http1Upstream(stream, origin, self, expires)

    async def open_ahead(self, origin: Origin) -> None:
        """Open a connection to *origin* that nobody has asked for, where there is room; raises an `UpstreamFailure`."""
        if not self.in_http1(origin, tunnel=False):
            if origin.opening is None:
                self.open += 1
                self._begin(origin)
            assert origin.opening is not None
            await origin.opening.wait(wants=False)
            return
        self.open += 1
        connection = await self._dial(origin, http11=True)
        if isinstance(connection, Http1Upstream):
            connection.is_warm = True
            self.put_back(connection)

    async def stream_to(self, origin: Origin, *, http11: bool) -> Stream:
        """Open a stream to *origin*; raises `OSError`. Deadlines are the caller's.

        *http11* offers nothing but HTTP/1.1 in the handshake.
        """
        host, port = origin.endpoint.host, origin.endpoint.port
        tls = self.tls.http11() if http11 and self.tls is not None else self.tls
        dials = [partial(self.network.dial, address, port, tls, name=host) for address in origin.addresses]
        return await first_of(dials, self.network.deadlines)

    async def stream_to_check(self, origin: Origin) -> tuple[Stream, bool]:
        """Open a stream as requests to *origin* get one, outside the pool; tell whether it speaks HTTP/2."""
        stream = await self._stream(origin, http11=self.in_http1(origin, tunnel=False))
        return stream, self._is_http2(stream)

    async def _stream(self, origin: Origin, *, http11: bool) -> Stream:
        """Open a stream for requests; raises `OSError`, or `NotHttp2`."""
        policy = self.http2
        stream = await self.stream_to(origin, http11=http11)
        if policy is not None and policy.prefer == "always" and stream.alpn != "h2":
            stream.abort()
            raise NotHttp2(f"{origin.endpoint} did not choose h2, and nothing else may be spoken")
        return stream

    def _is_http2(self, stream: Stream) -> bool:
        return self.http2 is not None and (self.http2.prefer == "h2c" or stream.alpn == "h2")

    def replace(self, wanted: Mapping[Endpoint, Sequence[str]]) -> bool:
        """There are these endpoints now, at these addresses; tell whether that is a change.

        Idle connections to those that are gone are closed, busy ones when they are done (behaviour 18).
        """
        known = {origin.endpoint: origin for origin in self.origins}
        if not self._reweigh(known, wanted) and list(known) == list(wanted):
            for endpoint, addresses in wanted.items():
                known[endpoint].addresses = addresses
            return False
        self.origins = []
        for endpoint, addresses in wanted.items():
            origin = known.pop(endpoint, None) or Origin(endpoint, tls=self.tls)
            origin.addresses = addresses
            self.origins.append(origin)
        for origin in known.values():
            origin.is_gone = True
            self._empty(origin)
        return True

    @staticmethod
    def _reweigh(known: dict[Endpoint, Origin], wanted: Mapping[Endpoint, Sequence[str]]) -> bool:
        """Let those that are where they were, with another weight or priority, be what they have become; tell whether any is."""
        any_is = False
        gone = {(each.host, each.port, each.address): each for each in known if each not in wanted}
        for endpoint in wanted:
            if endpoint not in known:
                before = gone.pop((endpoint.host, endpoint.port, endpoint.address), None)
                if before is not None:
                    known[endpoint] = origin = known.pop(before)
                    origin.endpoint = endpoint
                    any_is = True
        return any_is

    # --- connections that are shared ---------------------------------------------------

    def _begin(self, origin: Origin) -> _Opening:
        """Begin to open a connection in a place that is already counted. It outlives whoever asked for it."""
        origin.opening = opening = _Opening()
        self.network.tasks.start_soon(self._open_shared, origin, opening)
        return opening

    async def _open_shared(self, origin: Origin, opening: _Opening) -> None:
        try:
            connection = await self._dial(origin, http11=origin.h1_only)
        except UpstreamFailure as failure:
            opening.failure = failure
            failure.__traceback__ = None
        else:
            connection.is_warm = not opening.wanted
            if isinstance(connection, Http2Upstream):
                self.network.tasks.start_soon(connection.run)
                if self._closed or origin.is_gone:
                    connection.drain()
                else:
                    origin.sessions.append(connection)
                    connection.opened()
                    self.has_room(connection)
            else:
                origin.h1_only = True
                self.put_back(connection)
        finally:
            if origin.opening is opening:
                origin.opening = None
            opening.done()

    def _choose_session(self, origin: Origin, after: int) -> Http2Upstream | None:
        """Return the first with room below saturation, else that with the most room; open ahead if need be."""
        policy = self.http2
        assert policy is not None
        best: Http2Upstream | None = None
        room = 0
        for session in origin.sessions:
            capacity = session.capacity
            if session.number > after and session.active < capacity and session.takes_more:
                if not policy.saturation or session.active * 100 < capacity * policy.saturation:
                    best = session
                    break
                if capacity - session.active > room:
                    best, room = session, capacity - session.active
        if policy.saturation:
            self._open_ahead(origin, policy)
        return best

    def _open_ahead(self, origin: Origin, policy: Http2Policy) -> None:
        """Open one more connection, while there is still room in those that are there, if they are full enough."""
        active = sum(session.active for session in origin.sessions) + 1
        capacity = sum(session.capacity for session in origin.sessions)
        if origin.opening is None and active * 100 >= capacity * (policy.preconnect or policy.saturation):
            if self.open < self.settings.max_connections:
                self.open += 1
                self.preconnects += 1
                self._begin(origin)
            else:
                self.preconnects_skipped += 1

    def has_room(self, session: Http2Upstream) -> None:
        """Let those who wait have what room *session* has."""
        while session.has_room:
            waiter = next((each for each in self._waiters if not each.http1), None)
            if waiter is None:
                return
            self._waiters.remove(waiter)
            session.reserve()
            waiter.connection = session
            waiter.event.set()

    def retire(self, session: Http2Upstream) -> None:
        """It takes no further request."""
        if session in session.origin.sessions:
            session.origin.sessions.remove(session)

    def forget_session(self, session: Http2Upstream) -> None:
        """It is closed: its place is free."""
        self.retire(session)
        self._free_place()

    async def _queue(self, guard: object | None, *, http1: bool) -> _Waiter:
        if len(self._waiters) >= self.settings.max_queue:
            raise QueueFull(f"{self.name}: {len(self._waiters)} requests wait for a connection already")
        waiter = _Waiter(guard, http1=http1)
        self._waiters.append(waiter)
        due = self.network.deadlines.due(waiter.event.set)
        due.after(self.settings.queue_timeout)
        try:
            await waiter.event.wait()
        except BaseException:
            if isinstance(waiter.connection, Http2Upstream):
                waiter.connection.cancel()
            elif waiter.connection is not None:
                if waiter.connection.is_alive:
                    self.put_back(waiter.connection)
                else:
                    waiter.connection.close()
            elif waiter.has_place:
                self._free_place()
            raise
        finally:
            due.forget()
            if waiter.connection is None and not waiter.has_place and not waiter.sent_away:
                self._waiters.remove(waiter)
        if waiter.sent_away:
            raise QueueDrained(f"{self.name}: the requests that waited for a connection were sent away")
        if waiter.connection is None and not waiter.has_place:
            raise QueueTimeout(f"{self.name}: no connection became free in {self.settings.queue_timeout:g} s")
        return waiter

    # --- called by connections -------------------------------------------------------

    def put_back(self, connection: Http1Upstream) -> None:
        """Take back a connection that can carry another request."""
        settings = self.settings
        if (
            self._closed
            or connection.origin.is_gone
            or (settings.max_requests and connection.served >= settings.max_requests)
            or self.network.deadlines.now >= connection.expires
        ):
            connection.close()
        elif self._waiters or self._idle_count >= settings.max_idle:
            self._hand_over(connection)
        else:
            connection.is_idle = True
            connection.stream.reading.after(settings.idle_timeout)
            connection.origin.idle.append(connection)
            self._idle_count += 1

    def forget(self, connection: Http1Upstream) -> None:
        """A connection is closed: its place is free."""
        self._free_place()

    def evict(self, connection: Http1Upstream) -> None:
        """Close an idle connection whose peer has gone, or whose time is up."""
        connection.origin.idle.remove(connection)
        self._idle_count -= 1
        connection.is_idle = False
        connection.close()

    # --- inside ------------------------------------------------------------------------

    def _hand_over(self, connection: Http1Upstream) -> None:
        """Give *connection* to whoever waits longest; nobody does, and enough are idle: close it."""
        if self._waiters:
            waiter = self._waiters.popleft()
            connection.stream.reading.off()
            waiter.connection = connection
            waiter.event.set()
        else:
            connection.close()

    def _free_place(self) -> None:
        if self._waiters and not self._closed:
            waiter = self._waiters.popleft()
            waiter.has_place = True
            waiter.event.set()
        else:
            self.open -= 1

    def _evict_oldest(self) -> bool:
        """Make room by closing an idle connection to an endpoint that nobody asked for."""
        for origin in self.origins:
            if origin.idle:
                connection = origin.idle.pop(0)
                self._idle_count -= 1
                connection.is_idle = False
                connection.close()
                return True
            for session in origin.sessions:
                if session.active == 0:
                    session.close()
                    return True
        return False

    def drain(self, guard: object) -> int:
        """Send away, by `QueueDrained`, whoever waits for a connection under *guard*; return how many that are."""
        going = [waiter for waiter in self._waiters if waiter.guard is guard]
        for waiter in going:
            self._waiters.remove(waiter)
            waiter.sent_away = True
            waiter.event.set()
        return len(going)

    def close(self) -> None:
        """Close what is idle, and what is busy as soon as it is done; whoever waits is told that there is nothing."""
        self._closed = True
        for waiter in self._waiters:
            waiter.event.set()
        for origin in self.origins:
            self._empty(origin)

    def _empty(self, origin: Origin) -> None:
        """Close what is idle there; what is busy, as soon as it is done."""
        while origin.idle:
            self.evict(origin.idle[-1])
        for session in tuple(origin.sessions):
            session.drain()

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return self._idle_count

    @property
    def warm(self) -> int:
        """Connections that could take a request at once: those that are idle, and those to share."""
        return self._idle_count + sum(len(origin.sessions) for origin in self.origins)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiters)

    def __repr__(self) -> str:
        return f"<Pool {self.name} open {self.open} idle {self._idle_count} waiting {self.waiting}>"


def _authority(endpoint: Endpoint, tls: ClientTls | None) -> bytes:
    """Return the Host that an endpoint is addressed by: the port is left out where it is the usual one (behaviour 11.1)."""
    if tls is not None and tls.settings.server_name:
        host = tls.settings.server_name
    else:
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host.removesuffix(".")
    usual = 80 if tls is None else 443
    return (host if endpoint.port == usual else f"{host}:{endpoint.port}").encode("ascii")
