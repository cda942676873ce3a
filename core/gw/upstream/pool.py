"""The connections to one upstream: how many, which one next, and who waits (behaviour 12).

Counting is synchronous and comes first; opening and closing follow. So a
cancelled task can neither leak a place nor give one away twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from gw.failures import ConnectFailed, ConnectTimeout, QueueFull, QueueTimeout
from gw.http.engines import Engine
from gw.http.h1 import ReaderLimits
from gw.keys import Endpoint
from gw.net.deadlines import NEVER
from gw.net.network import Network
from gw.upstream.http1 import Http1Upstream

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
    max_requests: int = 0


class Origin:
    """One endpoint of a pool: what it is called by, and its idle connections, the last used last."""

    __slots__ = ("authority", "endpoint", "idle")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.authority = _authority(endpoint)
        self.idle: list[Http1Upstream] = []


class _Waiter:
    """Somebody in the queue. Is given a connection, or a place to open one, or nothing in time."""

    __slots__ = ("connection", "event", "has_place")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.connection: Http1Upstream | None = None
        self.has_place = False


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
    ) -> None:
        self.name, self.endpoints, self.settings = name, tuple(endpoints), settings
        self.engine, self.reader_limits = engine, reader_limits
        self._network = network
        self._turn = -1
        self._origins = [Origin(endpoint) for endpoint in self.endpoints]
        self._order = [origin for origin in self._origins for _ in range(origin.endpoint.weight)]
        self._idle_count = 0
        self.open = 0
        """Connections that exist or are being opened, idle ones included."""
        self._waiters: deque[_Waiter] = deque()
        self._closed = False

    def choose(self) -> Origin:
        """Return the origin whose turn it is: round robin, by weight."""
        self._turn = turn = (self._turn + 1) % len(self._order)
        return self._order[turn]

    def take(self, origin: Origin) -> Http1Upstream | None:
        """Return an idle connection to *origin*, if there is one that is alive."""
        idle = origin.idle
        while idle:
            connection = idle.pop()
            self._idle_count -= 1
            connection.is_idle = False
            # One whose peer closed was evicted when that was seen; bytes that nobody asked for are seen here.
            if not connection.stream.has_data and self._network.deadlines.now < connection.expires:
                return connection
            connection.close()
        return None

    async def connect(self, origin: Origin, *, fresh: bool = False) -> Http1Upstream:
        """Open a connection to *origin*, or wait for one; raises an `UpstreamFailure`.

        What the queue hands out may lead to another endpoint, unless it must be *fresh*.
        """
        if self.open >= self.settings.max_connections and not self._evict_oldest():
            waiter = await self._queue()
            if waiter.connection is not None:
                if not fresh and waiter.connection.is_alive:
                    return waiter.connection
                waiter.connection.drop()  # its place becomes ours
        else:
            self.open += 1
        return await self._dial(origin)

    async def _dial(self, origin: Origin) -> Http1Upstream:
        """Open a connection in a place that is already counted."""
        endpoint, done = origin.endpoint, False
        try:
            with anyio.fail_after(self.settings.connect_timeout):
                stream = await self._network.dial(endpoint.host, endpoint.port)
            done = True
        except TimeoutError:
            raise ConnectTimeout(f"no connection to {endpoint} within {self.settings.connect_timeout:g} s") from None
        except OSError as error:
            raise ConnectFailed(f"cannot connect to {endpoint}: {error}") from error
        finally:
            if not done:
                self._free_place()
        lifetime = self.settings.max_lifetime
        return Http1Upstream(stream, origin, self, self._network.deadlines.now + lifetime if lifetime else NEVER)

    async def _queue(self) -> _Waiter:
        if len(self._waiters) >= self.settings.max_queue:
            raise QueueFull(f"{self.name}: {len(self._waiters)} requests wait for a connection already")
        waiter = _Waiter()
        self._waiters.append(waiter)
        due = self._network.deadlines.due(waiter.event.set)
        due.after(self.settings.queue_timeout)
        try:
            await waiter.event.wait()
        except BaseException:
            if waiter.connection is not None:
                if waiter.connection.is_alive:
                    self.put_back(waiter.connection)
                else:
                    waiter.connection.close()
            elif waiter.has_place:
                self._free_place()
            raise
        finally:
            due.forget()
            if waiter.connection is None and not waiter.has_place:
                self._waiters.remove(waiter)
        if waiter.connection is None and not waiter.has_place:
            raise QueueTimeout(f"{self.name}: no connection became free in {self.settings.queue_timeout:g} s")
        return waiter

    # --- called by connections -------------------------------------------------------

    def put_back(self, connection: Http1Upstream) -> None:
        """Take back a connection that can carry another request."""
        settings = self.settings
        if (
            self._closed
            or (settings.max_requests and connection.served >= settings.max_requests)
            or self._network.deadlines.now >= connection.expires
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
        for origin in self._origins:
            if origin.idle:
                connection = origin.idle.pop(0)
                self._idle_count -= 1
                connection.is_idle = False
                connection.close()
                return True
        return False

    def close(self) -> None:
        """Close what is idle, and what is busy as soon as it is done; whoever waits is told that there is nothing."""
        self._closed = True
        for waiter in self._waiters:
            waiter.event.set()
        for origin in self._origins:
            while origin.idle:
                self.evict(origin.idle[-1])

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return self._idle_count

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiters)

    def __repr__(self) -> str:
        return f"<Pool {self.name} open {self.open} idle {self._idle_count} waiting {self.waiting}>"


def _authority(endpoint: Endpoint) -> bytes:
    """Return the Host that an endpoint is addressed by: the port is left out where it is 80 (behaviour 11.1)."""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host.removesuffix(".")
    return (host if endpoint.port == 80 else f"{host}:{endpoint.port}").encode("ascii")
