"""A whole gateway in memory, in front of scripted upstreams: what goes in as bytes comes out as bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import anyio
import h11

from gw.config.load import load
from gw.filters import Headers, Request, Response
from gw.gateway import Gateway
from gw.http.engines import choose
from gw.http.h1 import End, Malformed, ReaderLimits
from gw.net.stream import StreamLost
from gw.plugins import PluginSet
from gw.testing.memory import MemoryNetwork, MemoryStream

__all__ = ["Answer", "Asked", "InMemory", "Script", "Upstream", "in_memory", "read_answer"]

Script: TypeAlias = Callable[[MemoryStream], Coroutine[Any, Any, None]]
_NO_LIMITS = ReaderLimits(0, 0, 0)
_LONGER_THAN_ANY_TIMEOUT = 10_000.0


@dataclass
class Answer:
    """A response as the client read it."""

    status: int
    headers: Headers
    body: bytes
    trailers: Headers | None = None
    interim: list[Response] = field(default_factory=list)


@dataclass
class Asked:
    """A request as an upstream read it."""

    head: Request
    body: bytes
    trailers: Headers | None = None


class Upstream:
    """A scripted upstream: reads requests and answers each with the next of *answers*, the last one again and again.

    An answer is the bytes to send, as they are. `None` closes the connection instead. For more than that, write a
    script of your own, or take the connections from a `gw.testing.memory.Backlog`.
    """

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = list(answers) or [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"]
        self.asked: list[Asked] = []
        self.connections = 0

    async def __call__(self, stream: MemoryStream) -> None:
        self.connections += 1
        reader = choose("auto").request_reader(_NO_LIMITS)
        head: Request | None = None
        body = b""
        while True:
            while not reader.events:
                try:
                    reader.feed(await stream.receive())
                except (anyio.EndOfStream, StreamLost):
                    stream.close()
                    return
            event = reader.events.popleft()
            if isinstance(event, Request):
                head, body = event, b""
            elif isinstance(event, End):
                assert head is not None
                self.asked.append(Asked(head, body, event.trailers))
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                if answer is None:
                    stream.close()
                    return
                stream.write(answer)
            elif isinstance(event, Malformed):
                raise AssertionError(f"the gateway sent something malformed: {event.message}")  # noqa: TRY004  # a failed test
            else:
                body += event


class InMemory:
    """A running gateway, and the client's side of its network."""

    def __init__(self, gateway: Gateway, network: MemoryNetwork) -> None:
        self.gateway, self.network = gateway, network

    def connect(self, client: str = "198.51.100.7") -> MemoryStream:
        return self.network.connect(client)

    async def leftovers(self) -> list[str]:
        """Let everything idle time out, and say what is still there that should not be: nothing, in a sound gateway."""
        await self.network.advance(_LONGER_THAN_ANY_TIMEOUT)
        current = self.gateway._current.now
        assert current is not None
        found = [repr(pool) for pool in current.pools.values() if pool.open or pool.idle or pool.waiting]
        found += map(repr, self.gateway.connections)
        if current.users:
            found.append(f"{current.users} exchanges")
        if dues := sum(map(len, self.network.deadlines._slots.values())):
            found.append(f"{dues} deadlines")
        return found

    async def request(self, data: bytes, *, method: str = "GET", client: str = "198.51.100.7") -> Answer:
        """Send *data* on a new connection, return the first response to it, and close."""
        stream = self.connect(client)
        stream.write(data)
        try:
            return await read_answer(stream, method)
        finally:
            stream.abort()

    async def get(self, target: str, headers: Mapping[str, str] | None = None, **rest: Any) -> Answer:
        """GET *target* from ``example.test``."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        return await self.request(f"GET {target} HTTP/1.1\r\nhost: example.test\r\n{lines}\r\n".encode(), **rest)


async def read_answer(stream: MemoryStream, method: str = "GET") -> Answer:
    """Read one response from *stream* and leave what follows it; raises `AssertionError` if it is not HTTP.

    It is read by h11, whichever engine the gateway uses. Raises `StreamLost` if the gateway resets the connection.
    """
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    client.send(h11.Request(method=method, target="/", headers=[("host", "gateway")]))
    client.send(h11.EndOfMessage())
    answer = Answer(0, Headers(), b"")
    while True:
        try:
            event = client.next_event()
            if event is h11.NEED_DATA:
                try:
                    client.receive_data(await stream.receive())
                except anyio.EndOfStream:
                    client.receive_data(b"")
        except h11.RemoteProtocolError as error:
            raise AssertionError(f"the answer is malformed: {error}") from None
        if isinstance(event, h11.InformationalResponse):
            answer.interim.append(Response(event.status_code, _headers(event.headers)))
        elif isinstance(event, h11.Response):
            answer.status, answer.headers = event.status_code, _headers(event.headers)
        elif isinstance(event, h11.Data):
            answer.body += event.data
        elif isinstance(event, h11.EndOfMessage):
            answer.trailers = _headers(event.headers) if event.headers else None
            stream.unread(client.trailing_data[0])
            return answer


def _headers(lines: Iterable[tuple[bytes, bytes]]) -> Headers:
    return Headers([(bytes(name), bytes(value)) for name, value in lines])


@asynccontextmanager
async def in_memory(
    config: Mapping[str, Any] | None = None,
    upstream: Script | None = None,
    *,
    upstreams: Mapping[str, Script] | None = None,
    plugins: PluginSet | None = None,
    engine: Literal["auto", "pure", "native"] = "auto",
    prepare: Callable[[Gateway], None] | None = None,
) -> AsyncIterator[InMemory]:
    """Run a gateway with *config* in memory. Without upstreams in it, everything goes to *upstream*.

    *upstreams* maps ``host:port`` of the configuration's endpoints to scripts. *prepare* is what a program that embeds
    it does before it serves.
    """
    settings: dict[str, Any] = {"engine": engine, **(config or {})}
    if "upstreams" not in settings:
        settings["upstreams"] = [
            {"name": "upstream", "host": "192.0.2.1", "port": 80, "proxy": {"route_prefix": "/"}},
        ]
    scripts = {"192.0.2.1:80": Upstream() if upstream is None else upstream, **(upstreams or {})}
    gateway = Gateway(load(settings, environ={}, plugins=plugins))
    if prepare is not None:
        prepare(gateway)
    made: list[MemoryNetwork] = []
    failure: Exception | None = None

    def network(tasks: anyio.abc.TaskGroup) -> MemoryNetwork:
        made.append(MemoryNetwork(tasks, scripts))
        return made[0]

    async with anyio.create_task_group() as tasks:
        listening = anyio.Event()

        async def serve() -> None:
            await gateway.serve(ready=listening.set, network=network)

        tasks.start_soon(serve)
        await listening.wait()
        try:
            yield InMemory(gateway, made[0])
        except Exception as error:  # noqa: BLE001  # raised below, where no task group wraps it
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
