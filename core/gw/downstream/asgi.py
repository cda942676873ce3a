"""Drives one request that another server took and hands to the gateway: ASGI 3, seen from the application.

Connections, their parsing and most of their deadlines are that server's. What it says of a request is checked all the
same, as if it had come over a wire: which servers refuse what is not for us to know.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Protocol as Interface

import anyio
from anyio.abc import TaskGroup

from gw.downstream.http1 import Http1Settings
from gw.failures import BodyTimeout, BodyTooLarge, ClientGone
from gw.filters import Exchange, Outcome, Reply, Request, Response
from gw.http.framing import Fields, Refusal, frame_request
from gw.http.pseudo import trailer_fields
from gw.http.write import HOP_BY_HOP
from gw.keys import Client
from gw.net.deadlines import Deadlines

if TYPE_CHECKING:
    from gw.tunnel import End

__all__ = ["AsgiStream", "request_of"]

Event = MutableMapping[str, Any]
_VERSIONS: Final = frozenset({"1.0", "1.1"})
_TRAILERS: Final = "http.response.trailers"
_HINTS: Final = "http.response.early_hint"


class Host(Interface):
    """What a request is carried for: the gateway."""

    http1: Http1Settings

    @property
    def deadlines(self) -> Deadlines: ...

    async def handle(self, ex: Exchange, down: AsgiStream, refusal: Reply | None = None) -> None:
        """Carry *ex* to its end, or answer *refusal*. Raises only cancellation."""


class AsgiStream:
    """One request of another server, and its response: the `Downstream` of an exchange."""

    def __init__(
        self,
        host: Host,
        client: Client,
        receive: Callable[[], Awaitable[Event]],
        send: Callable[[Event], Awaitable[None]],
    ) -> None:
        self._host, self._client, self._receive, self._send = host, client, receive, send
        self.via = b""
        self.max_body_size = host.http1.max_body_size
        self._tasks: TaskGroup
        self._ex: Exchange
        self._moved = anyio.Event()
        self._waiting: tuple[bytes, bool] | None = None
        """Of the request's body, what nobody has taken yet."""
        self._reads = self._is_broken = self._discards = self._has_left = False
        self._has_trailers = self._has_hints = False
        """Whether the server takes trailers and early hints."""

    async def serve(self, scope: Event) -> None:
        """Answer the request that *scope* tells of. Raises `RuntimeError` to break an answer off."""
        refusal: Reply | None = None
        try:
            request = request_of(scope, self._host.http1)
        except Refusal as error:
            request, text = Request("", ""), (("content-type", "text/plain"),)
            refusal = Reply(error.status, str(error).encode(), text, "gw.bad_request", close=True)
        if scope["http_version"] not in _VERSIONS and request.content_length is None and refusal is None:
            await self._take_in()  # nothing in a head of HTTP/2 says whether there is a body
            request.has_body = self._waiting != (b"", True)
        extensions = scope.get("extensions") or {}
        self._has_trailers, self._has_hints = _TRAILERS in extensions, _HINTS in extensions
        self._ex = ex = Exchange(request, self._client)
        ex.started = time.monotonic()
        async with anyio.create_task_group() as self._tasks:
            if not request.expects_continue:
                self._read_on()
            await self._host.handle(ex, self, refusal)
            self._tasks.cancel_scope.cancel()
        if self._is_broken and not self._has_left:
            raise RuntimeError("the answer is broken off, so that the client can tell")

    # --- the request body ------------------------------------------------------------

    def _read_on(self) -> None:
        """Read what comes, one chunk at a time; and notice when the client leaves."""
        if not self._reads:
            self._reads = True
            self._tasks.start_soon(self._read)

    async def _read(self) -> None:
        while True:
            while self._waiting is not None and self._ex.request.has_body:
                await self._moved.wait()
            if not await self._take_in():
                self._tasks.cancel_scope.cancel()
                return

    async def _take_in(self) -> bool:
        """Wait for the next of the body; return whether the client is still there."""
        event = await self._receive()
        if event["type"] != "http.request":
            self._has_left = True
            return False
        self._waiting = bytes(event.get("body", b"")), not event.get("more_body", False)
        self._stir()
        return True

    def _stir(self) -> None:
        self._moved.set()
        self._moved = anyio.Event()

    def take(self) -> tuple[bytes, bool] | None:
        got = self._waiting
        if got is not None:
            self._waiting = None
            self._stir()
            self._ex.bytes_received += len(got[0])
            if self.max_body_size and self._ex.bytes_received > self.max_body_size:
                raise BodyTooLarge
        return got

    async def receive(self) -> tuple[bytes, bool]:
        self._read_on()
        while (got := self.take()) is None:
            with anyio.move_on_after(self._host.http1.body_timeout or None) as patience:
                await self._moved.wait()
            if patience.cancelled_caught:
                raise BodyTimeout
        return got

    # --- the response ------------------------------------------------------------------

    async def send_interim(self, response: Response) -> None:
        """Pass on the links of early hints, where the server can. Reading on makes servers say ``100 Continue``."""
        if response.status == 100:
            self._read_on()
        elif response.status == 103 and self._has_hints:
            links = [value for name, value in response.headers.raw if name == b"link"]
            await self._say({"type": _HINTS, "links": links})

    async def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        response = ex.response
        assert response is not None
        fields = [line for line in response.headers.raw if line[0] not in HOP_BY_HOP]
        if ex.request.method == "HEAD" or not response.has_body:
            self._discards = True
            if response.content_length is None and ex.request.method != "HEAD" and response.status not in {204, 304}:
                fields.append((b"content-length", b"0"))
        if self._host.http1.server and ex.outcome is Outcome.REPLY:
            fields.append((b"server", self._host.http1.server))
        if self.via:
            fields.append((b"via", self.via))
        self._has_trailers = self._has_trailers and not self._discards
        started = {"type": "http.response.start", "status": response.status, "headers": fields}
        await self._say(started | {"trailers": True} if self._has_trailers else started)
        if self._discards:
            await self._say({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self.send(chunk, end)

    async def send(self, chunk: bytes, end: bool) -> None:
        if not self._discards:
            self._ex.bytes_sent += len(chunk)
            await self._say({"type": "http.response.body", "body": bytes(chunk), "more_body": not end})
            if end and self._has_trailers:
                await self._say({"type": _TRAILERS, "headers": self._last_fields(), "more_trailers": False})

    def _last_fields(self) -> Fields:
        response = self._ex.response
        return [] if response is None else trailer_fields(response.trailers)

    async def _say(self, event: Event) -> None:
        try:
            await self._send(event)
        except OSError:
            self._has_left = True
            raise ClientGone from None

    def close_after(self) -> None:
        """Do nothing: connections are the server's."""

    def reset(self) -> None:
        self._is_broken = True

    def tunnel(self, go_away: Callable[[], None]) -> End:
        raise AssertionError("only what the server took as a WebSocket is one")

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.start_soon(run)


def request_of(scope: Event, settings: Http1Settings) -> Request:
    """Make the request that *scope* tells of; raises `Refusal`."""
    target: bytes = scope.get("raw_path") or b""
    if not target:
        raise Refusal("The server does not say what was asked for: raw_path is missing")
    if scope.get("query_string"):
        target += b"?" + scope["query_string"]
    fields = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
    told = scope["http_version"]
    version = told if told in _VERSIONS else "1.1"
    size = len(target) + sum(len(name) + len(value) + 4 for name, value in fields)
    request = frame_request(scope["method"].encode("ascii"), target, version, fields, settings.limits, size)
    request.version = told
    request.upgrade = None
    return request
