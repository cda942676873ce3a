"""Run one exchange through filters in memory, and say what both ends saw. No sockets, no bytes parsed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from gw.around import Placed
from gw.chain import Chain
from gw.failures import ConnectFailed, Disconnected
from gw.filters import Attempt, Exchange, Filter, Headers, Note, Outcome, Request, Response
from gw.keys import Client, Endpoint, RouteInfo
from gw.tunnel import End

__all__ = ["Played", "drive"]


@dataclass
class Played:
    """What a client and an upstream saw of one exchange, and every transport call in order."""

    exchange: Exchange
    status: int = 0
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""
    interim: list[int] = field(default_factory=list)
    ended: bool = False
    was_reset: bool = False
    upstream_request: Request | None = None
    """The request as the upstream got it, the last attempt's."""
    upstream_body: bytes = b""
    log: list[str] = field(default_factory=list)
    awaits: int = 0

    @property
    def outcome(self) -> Outcome | None:
        return self.exchange.outcome

    @property
    def reason(self) -> str:
        return self.exchange.reason

    @property
    def notes(self) -> list[Note]:
        return self.exchange.notes or []

    @property
    def upstream_headers(self) -> Headers | None:
        return self.upstream_request.headers if self.upstream_request else None


class _Peer:
    """One end of the exchange, reached through awaits that are counted and can be cut at."""

    def __init__(self, played: Played, chunks: Sequence[bytes], stop_at: int | None, stop: Callable[[], None]) -> None:
        self.played, self.chunks, self._stop_at, self._stop = played, list(chunks) or [b""], stop_at, stop

    async def _tick(self, what: str) -> None:
        played = self.played
        played.log.append(what)
        played.awaits += 1
        if played.awaits == self._stop_at:
            self._stop()
        await anyio.lowlevel.checkpoint()

    def take(self) -> tuple[bytes, bool] | None:
        return None

    def _next(self) -> tuple[bytes, bool]:
        chunk = self.chunks.pop(0)
        return chunk, not self.chunks


class _Down(_Peer):
    def __init__(self, tasks: anyio.abc.TaskGroup, *rest: object) -> None:
        super().__init__(*rest)  # type: ignore[arg-type]
        self._tasks = tasks

    async def receive(self) -> tuple[bytes, bool]:
        await self._tick("down.receive")
        return self._next()

    async def send_interim(self, response: Response) -> None:
        await self._tick(f"down.interim {response.status}")
        self.played.interim.append(response.status)

    async def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        assert ex.response is not None
        await self._tick(f"down.start {ex.response.status} {len(chunk)}{' end' if end else ''}")
        self.played.status, self.played.headers = ex.response.status, ex.response.headers.copy()
        self.played.body, self.played.ended = chunk, end

    async def send(self, chunk: bytes, end: bool) -> None:
        await self._tick(f"down.send {len(chunk)}{' end' if end else ''}")
        assert not self.played.ended, "body sent after its end"
        self.played.body += chunk
        self.played.ended = end

    def close_after(self) -> None:
        self.played.log.append("down.close_after")

    def reset(self) -> None:
        self.played.log.append("down.reset")
        self.played.was_reset = True

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.start_soon(run)

    def tunnel(self, go_away: Callable[[], None]) -> End:
        raise AssertionError("an upstream that answers 101 is played by gw.testing.talk")


class _Up(_Peer):
    def __init__(self, response: Response, *rest: object) -> None:
        super().__init__(*rest)  # type: ignore[arg-type]
        self._answer = response
        self._may_answer = anyio.Event()
        self._error: Exception | None = None
        self.early = False

    def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        self.played.log.append(f"up.start {len(chunk)}{' end' if end else ''}")
        request = ex.request
        self.played.upstream_request = copy = Request(request.method, request.target, request.headers.copy())
        copy.path, copy.query, copy.host, copy.has_body = request.path, request.query, request.host, request.has_body
        self.played.upstream_body = chunk
        if end or self.early:
            self._may_answer.set()

    async def send(self, chunk: bytes, end: bool) -> None:
        await self._tick(f"up.send {len(chunk)}{' end' if end else ''}")
        self.played.upstream_body += chunk
        if end:
            self._may_answer.set()

    async def response(self) -> Response:
        await self._may_answer.wait()
        await self._tick("up.response")
        if self._error is not None:
            raise self._error
        return self._answer

    async def receive(self) -> tuple[bytes, bool]:
        await self._tick("up.receive")
        if self._error is not None:
            raise self._error
        return self._next()

    def fail(self, error: Exception | None) -> None:
        self._error = error
        self._may_answer.set()

    def tunnel(self) -> End:
        raise AssertionError("an upstream that answers 101 is played by gw.testing.talk")

    def hold(self) -> None:
        raise AssertionError("nothing is held here: `holds` says 0")

    def finish(self) -> None:
        self.played.log.append("up.finish")


class _Target:
    """Hands out one scripted connection an attempt."""

    def __init__(self, played: Played, refuse: int, make: Callable[[], _Up]) -> None:
        self._played, self._refuse, self._make = played, refuse, make

    def choose(self, ex: Exchange, attempt: Attempt) -> None:
        attempt.upstream, attempt.endpoint = "upstream", Endpoint("192.0.2.1", 80)

    def divert(self, ex: Exchange, attempt: Attempt, upstream: str) -> None:
        attempt.upstream, attempt.endpoint = upstream, Endpoint("192.0.2.2", 80)

    buffers = False

    def holds(self, ex: Exchange, attempt: Attempt, *, sending: bool) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        self._played.log.append(f"sleep {seconds:g}")

    def take(self, attempt: Attempt) -> _Up | None:
        return None

    async def connect(self, attempt: Attempt, *, fresh: bool) -> _Up:
        self._played.log.append("dial")
        if self._refuse:
            self._refuse -= 1
            raise ConnectFailed("refused")
        return self._make()


async def drive(
    filters: Filter | Placed | Iterable[Filter | Placed],
    *,
    method: str = "GET",
    target: str = "/",
    headers: Mapping[str, str] | None = None,
    body: bytes | Sequence[bytes] = b"",
    upstream: bytes | Sequence[bytes] = b"ok",
    status: int = 200,
    upstream_headers: Mapping[str, str] | None = None,
    client: Client | None = None,
    route: RouteInfo | None = None,
    params: Mapping[str, str] | None = None,
    early: bool = False,
    refuse: bool | int = False,
    disconnect: bool = False,
    explain: bool = False,
    stop_at: int | None = None,
) -> Played:
    """Run one exchange through *filters* against an upstream that answers *status* and *upstream*.

    *body* and *upstream* may be lists, to say where the chunks are cut. *early*
    makes the upstream answer before it has read the request body. *refuse* is how many
    connections are refused (`True`: all), *disconnect* ends the first attempt before its response.
    *stop_at* cancels the exchange at its n-th await of the transport.
    """
    sent = [body] if isinstance(body, bytes) else list(body)
    back = [upstream] if isinstance(upstream, bytes) else list(upstream)
    request = Request(method, target, Headers.of((headers or {}).items()), has_body=any(sent))
    request.host = request.headers.get("host", "example.test")
    if request.has_body:
        request.content_length = sum(map(len, sent))
        request.headers.raw.append((b"content-length", b"%d" % request.content_length))
    request.expects_continue = request.has_body and request.headers.get("expect") == "100-continue"
    ex = Exchange(request, client or Client("198.51.100.7", "198.51.100.7"))
    ex.request_id = "request-1"
    ex.route = route or RouteInfo("test", path="/*")
    ex.params = dict(params or {})
    if explain:
        ex.notes = []
    played = Played(ex)
    chain = Chain([filters] if isinstance(filters, Filter | Placed) else list(filters))
    broken = [disconnect]
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            def connection() -> _Up:
                length = sum(map(len, back))
                answer = Headers.of((upstream_headers or {}).items())
                answer.raw.append((b"content-length", b"%d" % length))
                response = Response(status, answer, has_body=method != "HEAD" and status not in (204, 304))
                response.content_length = length
                up = _Up(response, played, back, stop_at, scope.cancel)
                up.early = early
                if broken[0]:
                    broken[0] = False
                    up._error = Disconnected("closed")
                return up

            down = _Down(tasks, played, sent, stop_at, scope.cancel)
            await chain.run(ex, down, _Target(played, 99 if refuse is True else refuse, connection))
    return played
