"""Applications in this process behind the gateway: ASGI 3 over HTTP and WebSockets, and their lifespan.

An application is what a route sends to, in place of an upstream: a chain sees the connection of `gw.peers`, and one
chunk at a time changes hands in each direction. No sockets and no bytes of HTTP are between them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes

import anyio
from anyio.abc import TaskGroup

from gw.failures import Truncated, UpstreamFailure
from gw.filters import Attempt, Exchange, Headers, Outcome, Response
from gw.http.framing import Fields, Refusal, frame_response
from gw.http.h1 import ReaderLimits
from gw.http.handshake import OWN_FIELDS, answer_offers, known_offers, protocols_of
from gw.http.websocket import is_close_code
from gw.http.write import HOP_BY_HOP
from gw.limits import APP_LEAVES, APP_STARTS, MAX_HEADER_COUNT, MAX_RESPONSE_HEADER_SIZE, MAX_TRAILER_SIZE
from gw.websocket import Handler, WebSocket, WebSocketClosed

__all__ = ["App", "AppFailed", "AppTarget", "Application", "Mount"]

log = logging.getLogger("gw.applications")

Event: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Event]], Callable[[Event], Awaitable[None]]], Awaitable[None]
]

_VERSIONS: Final = {"version": "3.0", "spec_version": "2.4"}
_LIMITS: Final = ReaderLimits(MAX_RESPONSE_HEADER_SIZE, MAX_HEADER_COUNT, MAX_TRAILER_SIZE)
_DISCONNECT: Final = "http.disconnect"
_NOBODY: Final = "the client has gone"
_field = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+\x00[\t -~\x80-\xff]*").fullmatch


class AppFailed(UpstreamFailure):
    """The application raised, or returned without an answer."""

    status = 500
    reason = "gw.app_failed"


class _Gone(OSError):
    """What an application is told that says something to nobody."""


class App:
    """An application, and its lifespan."""

    def __init__(self, name: str, app: Application) -> None:
        self.name, self.app = name, app
        self.state: dict[str, Any] = {}
        """What its lifespan left for its requests."""
        self.tasks: TaskGroup
        self._closing = anyio.Event()
        self._ended = anyio.Event()
        self._living: anyio.CancelScope | None = None
        self._users = 0
        self._turn = anyio.Lock()
        self.active = self.answered = self.failed = 0
        """Requests and WebSockets that it has now, that it is done with, and those of them in which it raised."""

    def stats(self) -> dict[str, int]:
        """Return its row of ``/stats``."""
        return {"active": self.active, "answered": self.answered, "failed": self.failed}

    async def join(self, tasks: TaskGroup) -> None:
        """Have it start up if nobody else uses it; raises what `begin` raises. `leave` is due, even then."""
        self._users += 1
        async with self._turn:
            if self._living is None:
                await self.begin(tasks)

    async def leave(self) -> None:
        """Have it shut down if nobody else uses it, within APP_STARTS."""
        self._users -= 1
        if self._users > 0:
            return
        try:
            async with self._turn:
                if self._users == 0:
                    await self.end(anyio.current_time() + APP_STARTS)
        finally:
            if self._users == 0 and self._living is not None:  # we were cancelled before it was our turn
                self._living.cancel()
                self._living = None

    async def begin(self, tasks: TaskGroup) -> None:
        """Have it start up. Raises `ValueError` where it says that it cannot; one that knows no lifespan needs none."""
        self.tasks, self.state = tasks, {}
        told: dict[str, str] = {}
        began = anyio.Event()
        self._closing, self._ended = anyio.Event(), anyio.Event()
        self._living = living = anyio.CancelScope(
            shield=True
        )  # whoever cancels the gateway is no reason not to shut down
        asked = False

        async def receive() -> Event:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "lifespan.startup"}
            await self._closing.wait()
            return {"type": "lifespan.shutdown"}

        async def send(event: Event) -> None:
            told[event["type"]] = event.get("message", "")
            began.set()

        async def live() -> None:
            try:
                with living:
                    await self.app({"type": "lifespan", "asgi": _VERSIONS, "state": self.state}, receive, send)
            except Exception as error:
                if began.is_set():
                    log.exception("application %s: its lifespan ended in an error", self.name)
                else:
                    log.info("application %s has no lifespan: %s", self.name, str(error) or type(error).__name__)
            finally:
                began.set()
                self._ended.set()

        tasks.start_soon(live)
        with anyio.move_on_after(APP_STARTS):
            await began.wait()
        if not began.is_set():
            await self.end(anyio.current_time())
            raise ValueError(f"application {self.name} has not started within {APP_STARTS:g} seconds")
        if "lifespan.startup.failed" in told:
            why = told["lifespan.startup.failed"] or "its startup failed"
            raise ValueError(f"application {self.name} cannot start: {why}")

    async def end(self, until: float) -> None:
        """Have it shut down; it is cancelled at *until*, by `anyio.current_time`."""
        living, self._living = self._living, None
        if living is None:
            return
        self._closing.set()
        try:
            with anyio.CancelScope(deadline=until):
                await self._ended.wait()
        finally:
            living.cancel()


class Mount:
    """An application at *path* and below. It lives as long as the gateway, and outlives reloads."""

    def __init__(self, path: str, app: Application, name: str) -> None:
        self.path, self.name = path, name
        self.app = App(name, app)
        self.target = AppTarget(self.app, name, path.rstrip("/"))


class AppTarget:
    """Where a route sends to: *app*, by the *name* of its upstream.

    It is told that it stands at *root*, or at what *strips* takes off the path.
    """

    buffers = False

    def __init__(self, app: App, name: str, root: str = "", strips: Callable[[Exchange], str] | None = None) -> None:
        self.app, self._name, self._root, self._strips = app, name, root, strips

    def root(self, ex: Exchange) -> str:
        """Return the part of the path that leads to the application."""
        path = ex.request.path
        return self._root if self._strips is None else path.removesuffix(self._strips(ex)).rstrip("/")

    def holds(self, ex: Exchange, attempt: Attempt, *, sending: bool) -> int:
        return 0

    def choose(self, ex: Exchange, attempt: Attempt) -> None:
        attempt.upstream = self._name
        attempt._tunnel = ex.request.upgrade == "websocket"

    def divert(self, ex: Exchange, attempt: Attempt, upstream: str) -> None:
        raise LookupError(f"{self._name} is an application, which the upstream {upstream!r} cannot replace")

    def take(self, attempt: Attempt) -> _Call:
        return _Socket(self.app, self) if attempt._tunnel else _Call(self.app, self)

    async def connect(self, attempt: Attempt, *, fresh: bool) -> _Call:
        return self.take(attempt)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Call:
    """One request to an application, as a chain's `Connection`."""

    def __init__(self, app: App, target: AppTarget) -> None:
        self._app, self._target = app, target
        self._ex: Exchange
        self._scope = anyio.CancelScope()
        self._moved = anyio.Event()
        self._asked: tuple[bytes, bool] | None = None
        """Of the request's body, what the application has not taken yet."""
        self._is_sent = False
        """All of the request was taken."""
        self._awaits_body = False
        """The client waits to be told that it may send its body, and the application has asked for it."""
        self._head: Response | None = None
        self._is_shown = False
        """The head may be passed on: the body has begun, or there is none."""
        self._answered: tuple[bytes, bool] | None = None
        """Of the response's body, what nobody has taken yet."""
        self._said = 0
        self._is_said = False
        """All of the response was said."""
        self._is_over = False
        """The application has returned."""
        self._is_gone = False
        """Nobody wants the answer any more."""
        self._failure: Exception | None = None

    def _stir(self) -> None:
        self._moved.set()
        self._moved = anyio.Event()

    # --- the chain's side ----------------------------------------------------------

    def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        self._ex = ex
        if chunk or end:
            self._asked = (chunk, end)
        self._app.tasks.start_soon(self._run)

    async def send(self, chunk: bytes, end: bool) -> None:
        while self._asked is not None and not (self._is_over or self._is_gone):
            await self._moved.wait()
        self._asked = (chunk, end)
        self._stir()

    async def response(self) -> Response:
        while True:
            if self._failure is not None:
                raise self._failure
            if self._is_shown and self._head is not None:
                return self._head
            if self._is_over:
                raise AppFailed(f"application {self._app.name} gave no answer")
            if self._awaits_body:
                self._awaits_body, self._ex.request.expects_continue = False, False
                return Response(100, has_body=False)
            await self._moved.wait()

    def take(self) -> tuple[bytes, bool] | None:
        answered = self._answered
        if answered is not None:
            self._answered = None
            self._stir()
        return answered

    async def receive(self) -> tuple[bytes, bool]:
        while (answered := self.take()) is None:
            if self._failure is not None:
                raise self._failure
            if self._is_over:
                raise Truncated(f"application {self._app.name} returned in mid-answer")
            await self._moved.wait()
        return answered

    def hold(self) -> None:
        """It has no deadline of its own."""

    def fail(self, error: Exception | None) -> None:
        if error is not None:
            self._failure, self._is_gone = error, True
            self._stir()

    def tunnel(self) -> Handler:
        raise AppFailed("this was no WebSocket")

    def finish(self) -> None:
        self._is_gone = True
        if not self._is_over:
            self._scope.deadline = anyio.current_time() + APP_LEAVES
        self._stir()

    # --- the application's side ----------------------------------------------------

    async def _run(self) -> None:
        app = self._app
        app.active += 1
        try:
            with self._scope:
                await app.app(self._scope_of(), self._receive, self._send)
        except Exception as error:  # noqa: BLE001  # whatever it raises ends here
            if not _of_leaving(error):
                app.failed += 1
                self._raised(error)
        finally:
            app.active -= 1
            app.answered += 1
            self._is_over = True
            self._stir()

    def _scope_of(self) -> Event:
        return {"type": "http", "method": self._ex.request.method, **_place_of(self._ex, self._app, self._target)}

    def _raised(self, error: Exception) -> None:
        log.error("application %s raised in request %s", self._app.name, self._ex.request_id, exc_info=error)
        if not self._is_said:
            self._failure = self._failure or AppFailed(f"application {self._app.name} raised")

    async def _receive(self) -> Event:
        while not self._is_gone:
            if self._asked is not None:
                chunk, end = self._asked
                self._asked, self._is_sent = None, end
                self._stir()
                return {"type": "http.request", "body": chunk, "more_body": not end}
            if self._ex.request.expects_continue and not self._is_sent:
                self._awaits_body = True
                self._stir()
            await self._moved.wait()
        return {"type": _DISCONNECT}

    async def _send(self, event: Event) -> None:
        if self._is_gone:
            raise _Gone(_NOBODY)
        match event["type"]:
            case "http.response.start" if self._head is None:
                self._head = _head_of(self._ex, event["status"], event.get("headers", ()))
            case "http.response.body" if self._head is not None and not self._is_said:
                await self._say(self._head, bytes(event.get("body", b"")), end=not event.get("more_body", False))
            case other:
                raise RuntimeError(f"{other} does not come at this point of an answer")

    async def _say(self, head: Response, chunk: bytes, *, end: bool) -> None:
        if head.has_body:
            self._said += len(chunk)
            length = head.content_length
            if length is not None and (self._said > length or (end and self._said < length)):
                raise RuntimeError(f"the answer has {self._said} bytes, and its content-length is {length}")
            if chunk or end:
                self._answered = (chunk, end)
        self._is_said = end
        self._is_shown = True
        self._stir()
        while self._answered is not None and not self._is_gone:
            await self._moved.wait()


class _Socket(_Call):
    """One WebSocket to an application. Until that accepts it, and where it does not, it is a request like any other."""

    def __init__(self, app: App, target: AppTarget) -> None:
        super().__init__(app, target)
        self._is_told = False
        """The application knows that somebody wants one."""
        self._ws: WebSocket | None = None
        self._has_failed = False

    def tunnel(self) -> Handler:
        return self._serve

    async def _serve(self, ws: WebSocket) -> None:
        """Be the handler of *ws*, as long as the application is there."""
        self._ws = ws
        self._stir()
        while not self._is_over:
            await self._moved.wait()
        if self._has_failed:
            self._ex.reason, self._ex.outcome = AppFailed.reason, Outcome.RESET
            await ws.close(1011, "Internal error")

    def _scope_of(self) -> Event:
        scope = _place_of(self._ex, self._app, self._target)
        scope["scheme"] = "wss" if scope["scheme"] == "https" else "ws"
        scope["extensions"] = {"websocket.http.response": {}}
        return {"type": "websocket", "subprotocols": protocols_of(self._ex.request), **scope}

    def _raised(self, error: Exception) -> None:
        super()._raised(error)
        self._has_failed = True

    async def _receive(self) -> Event:
        if not self._is_told:
            self._is_told = True
            return {"type": "websocket.connect"}
        while self._ws is None:
            if self._is_gone:
                return {"type": "websocket.disconnect", "code": 1006, "reason": ""}
            await self._moved.wait()
        try:
            message = await self._ws.receive()
        except WebSocketClosed as over:
            return {"type": "websocket.disconnect", "code": over.code, "reason": over.reason}
        return {"type": "websocket.receive", "text" if isinstance(message, str) else "bytes": message}

    async def _send(self, event: Event) -> None:
        kind = event["type"]
        if self._ws is not None:
            await self._speak(self._ws, event)
        elif kind == "websocket.accept" and self._head is None and not self._is_gone:
            await self._accept(event)
        elif kind == "websocket.close" and self._head is None:
            await super()._send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
            await super()._send({"type": "http.response.body"})
        elif kind.startswith("websocket.http.response."):
            if event.get("status", 403) < 300:
                raise ValueError(f"{event['status']} does not refuse a WebSocket")
            await super()._send({**event, "type": kind.removeprefix("websocket.")})
        else:
            await super()._send(event)

    async def _accept(self, event: Event) -> None:
        request = self._ex.request
        fields = [line for line in _fields_of(event.get("headers", ())) if line[0] not in OWN_FIELDS]
        protocol = event.get("subprotocol")
        if protocol:
            if protocol not in protocols_of(request):
                raise ValueError(f"the client does not offer the subprotocol {protocol!r}")
            fields.append((b"sec-websocket-protocol", protocol.encode("ascii")))
        compression = answer_offers(known_offers(request.headers.get_all("sec-websocket-extensions")))
        if compression is not None:
            fields.append((b"sec-websocket-extensions", compression.line))
        self._head = Response(101, Headers(fields), has_body=False)
        self._is_shown = True
        self._stir()
        while self._ws is None:
            if self._is_gone:
                raise _Gone(_NOBODY)
            await self._moved.wait()

    async def _speak(self, ws: WebSocket, event: Event) -> None:
        match event["type"]:
            case "websocket.send":
                text = event.get("text")
                try:
                    await ws.send(bytes(event["bytes"]) if text is None else text)
                except WebSocketClosed:
                    raise _Gone(_NOBODY) from None
            case "websocket.close":
                code = event.get("code", 1000)
                if not is_close_code(code):
                    raise ValueError(f"{code} is no code to close a WebSocket with")
                await ws.close(code, event.get("reason") or "")
            case other:
                raise RuntimeError(f"{other} does not come once a WebSocket is accepted")


def _of_leaving(error: BaseException | None) -> bool:
    """Tell whether *error* is what an application was told of a client that has gone, however it passes that on."""
    while error is not None and not isinstance(error, _Gone):
        if isinstance(error, BaseExceptionGroup) and all(map(_of_leaving, error.exceptions)):
            return True
        error = error.__cause__ or error.__context__
    return error is not None


def _place_of(ex: Exchange, app: App, target: AppTarget) -> Event:
    """Return what requests and WebSockets are told alike."""
    request, client = ex.request, ex.client
    fields = [line for line in request.headers.raw if line[0] not in HOP_BY_HOP and line[0] not in {b"host", b"expect"}]
    if request.host:
        fields.insert(0, (b"host", request.host.encode("latin-1")))
    name, _, port = request.host.rpartition(":")
    if not port.isdecimal():
        name, port = request.host, "443" if request.scheme == "https" else "80"
    return {
        "asgi": _VERSIONS,
        "http_version": request.version,
        "scheme": request.scheme,
        "path": _text(request.path),
        "raw_path": request.path.encode("latin-1"),
        "query_string": (request.query or "").encode("latin-1"),
        "root_path": _text(target.root(ex)),
        "headers": fields,
        "client": (client.ip, client.port),
        "server": (name, int(port)),
        "state": app.state.copy(),
        "extensions": {},
    }


def _text(path: str) -> str:
    return unquote_to_bytes(path).decode("utf-8", "replace")


def _head_of(ex: Exchange, status: int, headers: Any) -> Response:
    """Make the head of what an application answers; raises `ValueError` for what would split a message."""
    fields = _fields_of(headers)
    if not 200 <= status <= 599:
        raise ValueError(f"{status} is no status of an answer")
    try:
        response, _ = frame_response(status, b"", "1.1", fields, _LIMITS, 0, ex.request.method)
    except Refusal as error:
        raise ValueError(str(error)) from None
    return response


def _fields_of(headers: Any) -> Fields:
    fields: Fields = []
    for name, value in headers:
        line = (bytes(name).lower(), bytes(value).strip(b" \t"))
        if _field(b"\0".join(line)) is None:
            raise ValueError(f"{bytes(name)!r}: {bytes(value)!r} is no header")
        if line[0] not in HOP_BY_HOP:
            fields.append(line)
    return fields
