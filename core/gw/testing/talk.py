"""Let two ends talk through filters in memory: what a filter does with WebSocket messages, without a socket."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import anyio

from gw.around import Placed
from gw.chain import Chain
from gw.filters import Attempt, Close, Exchange, Filter, Headers, Message, Outcome, Request, Response
from gw.http.websocket import FrameReader, FrameWriter
from gw.keys import Client, Endpoint, RouteInfo
from gw.net.deadlines import Deadlines
from gw.testing.memory import Clock, MemoryStream, pair
from gw.tunnel import Live, Terms

__all__ = ["Said", "talk"]

Line: TypeAlias = tuple[Literal["client", "upstream"], str | bytes]

_TURNS = 10
"""Of the loop, that a message takes to the other end in memory."""


@dataclass
class Said:
    """What each end was told, in order."""

    exchange: Exchange
    status: int = 0
    """What the client was answered; 101 when it became a WebSocket."""
    to_client: list[str | bytes] = field(default_factory=list)
    to_upstream: list[str | bytes] = field(default_factory=list)
    client_closed: Close | None = None
    """What the client was told at the end; `None` if it was not."""
    upstream_closed: Close | None = None

    @property
    def outcome(self) -> Outcome | None:
        return self.exchange.outcome

    @property
    def reason(self) -> str:
        return self.exchange.reason


class _End:
    """One of the two ends: a script's, with the gateway's end of the same connection."""

    def __init__(self, deadlines: Deadlines, *, is_client: bool) -> None:
        self.stream, self.far = pair(deadlines, ("192.0.2.1", 1), ("192.0.2.2", 2))
        self.reader = FrameReader(masked=not is_client, gathers=True)
        self.writer = FrameWriter(masks=is_client)
        self.closed: Close | None = None

    def say(self, data: str | bytes) -> None:
        self.stream.write(self.writer.message(data))

    def close(self, close: Close) -> None:
        self.stream.write(self.writer.close(close))

    def heard(self) -> list[str | bytes]:
        """Return the messages that have come; answer a Close."""
        while self.stream.has_data:
            self.reader.feed(self.stream.take())
        if self.reader.closed is not None and self.closed is None:
            self.closed = self.reader.closed
            self.close(self.closed)
        events, self.reader.events = self.reader.events, []
        return [event.data for event in events if isinstance(event, Message)]


class _Down:
    """The client's side, as the chain sees it."""

    def __init__(self, said: Said, end: _End, tasks: anyio.abc.TaskGroup) -> None:
        self._said, self._end, self._tasks = said, end, tasks

    def take(self) -> tuple[bytes, bool] | None:
        return b"", True

    async def receive(self) -> tuple[bytes, bool]:
        return b"", True

    async def send_interim(self, response: Response) -> None: ...

    async def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        assert ex.response is not None
        self._said.status = ex.response.status

    async def send(self, chunk: bytes, end: bool) -> None: ...

    def close_after(self) -> None: ...

    def reset(self) -> None:
        self._end.far.abort()

    def tunnel(self, go_away: Callable[[], None]) -> MemoryStream:
        return self._end.far

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.start_soon(run)


class _Up:
    """The upstream's side: it accepts the WebSocket."""

    buffers = False

    def __init__(self, end: _End) -> None:
        self._end = end

    def choose(self, ex: Exchange, attempt: Attempt) -> None:
        attempt.upstream, attempt.endpoint = "upstream", Endpoint("192.0.2.1", 80)

    def divert(self, ex: Exchange, attempt: Attempt, upstream: str) -> None:
        attempt.upstream, attempt.endpoint = upstream, Endpoint("192.0.2.2", 80)

    def take(self, attempt: Attempt | None = None) -> Any:
        return self

    async def connect(self, attempt: Attempt, *, fresh: bool) -> Any:
        return self

    async def sleep(self, seconds: float) -> None: ...

    def holds(self, ex: Exchange, attempt: Attempt, *, sending: bool) -> int:
        return 0

    def start(self, ex: Exchange, chunk: bytes, end: bool) -> None: ...

    async def response(self) -> Response:
        return Response(101, Headers(), has_body=False)

    def tunnel(self) -> MemoryStream:
        return self._end.far

    def hold(self) -> None: ...

    def finish(self) -> None:
        self._end.far.close()


async def talk(
    filters: Filter | Placed | Iterable[Filter | Placed],
    lines: Sequence[Line],
    *,
    target: str = "/",
    headers: Mapping[str, str] | None = None,
    client: Client | None = None,
    route: RouteInfo | None = None,
) -> Said:
    """Open a WebSocket through *filters* and let its ends say *lines*, one after another; then the client closes.

    A line is who says it, ``"client"`` or ``"upstream"``, and what: text or bytes.
    """
    request = Request("GET", target, Headers.of((headers or {}).items()))
    request.host, request.upgrade = "example.test", "websocket"
    handshake = {"sec-websocket-version": "13", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
    request.headers.raw += [(name.encode(), value.encode()) for name, value in handshake.items()]
    ex = Exchange(request, client or Client("198.51.100.7", "198.51.100.7"))
    ex.request_id, ex.route, ex._terms = "request-1", route or RouteInfo("test", path="/*"), Terms(Live())
    said = Said(ex)
    chain = Chain([filters] if isinstance(filters, Filter | Placed) else list(filters))
    deadlines = Deadlines(Clock())
    ends = {"client": _End(deadlines, is_client=True), "upstream": _End(deadlines, is_client=False)}

    async def listen() -> None:
        for _ in range(_TURNS):
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        said.to_client += ends["client"].heard()
        said.to_upstream += ends["upstream"].heard()

    async with anyio.create_task_group() as tasks:
        over = anyio.Event()

        async def run() -> None:
            await chain.run(ex, _Down(said, ends["client"], tasks), _Up(ends["upstream"]))
            over.set()

        tasks.start_soon(run)
        await listen()
        for who, what in lines:
            ends[who].say(what)
            await listen()
        if not over.is_set() and ends["client"].closed is None:
            ends["client"].close(Close())
        while not over.is_set():
            await listen()
    said.to_client += ends["client"].heard()
    said.client_closed, said.upstream_closed = ends["client"].closed, ends["upstream"].closed
    return said
