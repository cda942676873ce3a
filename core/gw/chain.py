"""A route's filters, compiled once at load, and the one way an exchange runs through them.

Backpressure needs no callbacks here: each direction reads one chunk, awaits
every filter, awaits the write, and only then reads again. What is held is one
chunk a direction, plus what a BUFFER filter was allowed to ask for.

No sockets, no parsing: both peers are the small interfaces below.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol as Interface, TypeAlias

import anyio

from gw.around import Placed, blame, explained, guarded
from gw.failures import ClientGone, Disconnected, Failure, ResponseTooLarge, UpstreamFailure
from gw.filters import Attempt, Body, Exchange, Filter, Headers, Outcome, Reply, Response, Retry
from gw.hookspecs import LocalRoute
from gw.http.replies import render
from gw.limits import MAX_ATTEMPTS, MAX_INTERIM_RESPONSES

__all__ = ["Chain", "ChainError", "Connection", "Downstream", "Target"]

log = logging.getLogger("gw.chain")


class ChainError(ValueError):
    """The filters of a route cannot stand in the order given."""


class Source(Interface):
    def take(self) -> tuple[bytes, bool] | None:
        """Return the next chunk and whether it is the last, if it is at hand."""

    async def receive(self) -> tuple[bytes, bool]:
        """Wait for the next chunk; raises a `Failure`."""


class Downstream(Source, Interface):
    """The client's side of one exchange."""

    async def send_interim(self, response: Response) -> None:
        """Pass on a 1xx head; not for clients that cannot take it."""

    async def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        """Send the head of ``ex.response`` and the first of its body in one write; raises `ClientGone`."""

    async def send(self, chunk: bytes, end: bool) -> None: ...

    def close_after(self) -> None:
        """Close the connection after this response, and say so in its head."""

    def reset(self) -> None:
        """Break the response off, so that the client can tell."""

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run *run*, which does not raise, beside the exchange; it is cancelled with the connection."""


class Connection(Source, Interface):
    """An upstream's side of one attempt."""

    def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        """Send the request's head and the first of its body in one write, without waiting."""

    async def send(self, chunk: bytes, end: bool) -> None: ...

    async def response(self) -> Response:
        """Wait for the next head, interim ones included; raises an `UpstreamFailure`, or what `fail` was given."""

    def fail(self, error: Exception | None) -> None:
        """No more of the request will come: *error* ends the attempt, `None` waits for what the upstream says."""

    def finish(self) -> None:
        """Return it to its pool if both messages are complete, else close it. Must not wait."""


class Target(Interface):
    """Where a route sends: it knows endpoints and connections."""

    def choose(self, ex: Exchange, attempt: Attempt) -> None:
        """Set the attempt's upstream and endpoint."""

    def take(self, attempt: Attempt) -> Connection | None:
        """Return a connection that is at hand."""

    async def connect(self, attempt: Attempt, *, fresh: bool) -> Connection:
        """Wait for a connection, not a reused one if *fresh*; raises an `UpstreamFailure`."""


class _Held:
    """A body already in memory, presented as a source."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self) -> tuple[bytes, bool] | None:
        return self.data, True

    async def receive(self) -> tuple[bytes, bool]:
        return self.data, True


class _Answered(Exception):
    """A filter replied from within a body."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})
"""RFC 9110 section 9.2.2: a proxy must not repeat others by itself."""

_ANSWERS: Final = frozenset({Reply, LocalRoute, type(None)})
"""Targets that need no upstream."""

BodyRow: TypeAlias = tuple[int, Filter, Callable[..., Awaitable[Any]], bool]


class Chain:
    """The compiled filters of one route. Immutable; shared by all its exchanges."""

    __slots__ = (
        "_explained",
        "_explains",
        "_last",
        "_on_body",
        "_on_complete",
        "_on_request_headers",
        "_on_response_headers",
        "_on_upstream_body",
        "_on_upstream_error",
        "_on_upstream_request",
        "_on_upstream_response",
        "placed",
    )

    def __init__(self, filters: Sequence[Filter | Placed], *, explain: bool = False) -> None:
        self.placed = tuple(f if isinstance(f, Placed) else Placed(f) for f in filters)
        _check_order([p.filter for p in self.placed])
        self._explained: Chain | None = None
        self._explains = explain
        self._last = len(self.placed) - 1

        bind = explained if explain else guarded

        def compiled(hook: str) -> list[tuple[int, Filter, Any]]:
            return [(i, p.filter, bind(p, hook)) for i, p in enumerate(self.placed) if p.has(hook)]

        # Requests run first to last, everything after runs last to first.
        heads: list[tuple[int, Filter, Any, bool]] = []
        for i, p in enumerate(self.placed):
            buffers = p.filter.body is Body.BUFFER and p.has("on_body")
            if buffers or p.has("on_request_headers"):
                heads.append((i, p.filter, bind(p, "on_request_headers"), buffers))
        self._on_request_headers = tuple(heads)
        self._on_body: tuple[BodyRow, ...] = tuple(
            (i, f, hook, f.body is not Body.OBSERVE) for i, f, hook in compiled("on_body") if f.body is not Body.NONE
        )
        self._on_upstream_request = tuple(hook for _, _, hook in compiled("on_upstream_request"))
        self._on_upstream_response = tuple(hook for _, _, hook in reversed(compiled("on_upstream_response")))
        self._on_upstream_error = tuple(hook for _, _, hook in reversed(compiled("on_upstream_error")))
        self._on_upstream_body: tuple[BodyRow, ...] = tuple(
            (i, f, hook, f.upstream_body is not Body.OBSERVE)
            for i, f, hook in reversed(compiled("on_upstream_body"))
            if f.upstream_body is not Body.NONE
        )
        self._on_response_headers = tuple((i, hook) for i, _, hook in reversed(compiled("on_response_headers")))
        self._on_complete = tuple((i, hook) for i, _, hook in reversed(compiled("on_complete")))

    async def run(self, ex: Exchange, down: Downstream, target: Target | LocalRoute | Reply | None) -> None:
        """Carry one exchange from its request head to its end. Raises only cancellation.

        The filters are asked first; then the *target* is sent to, or is the answer, or makes it. Without one
        an unanswered request is a 404.
        """
        if ex.notes is not None and not self._explains:
            if self._explained is None:
                self._explained = Chain(self.placed, explain=True)
            await self._explained.run(ex, down, target)
            return
        try:
            try:
                payload, reply = _EMPTY, None
                if self._on_request_headers or ex.request.has_body or target.__class__ in _ANSWERS:
                    payload, reply = await self._before(ex, down, target)
                ex._phase = "request body"
                if reply is None:
                    reply = await self._attempts(ex, down, target, payload)  # type: ignore[arg-type]
                if reply is not None:
                    await self._answer(ex, down, reply)
            except Exception as error:  # noqa: BLE001  # whatever a filter raises ends here
                await self._break_off(ex, down, error)
                error.__traceback__ = None
        finally:
            # Nothing waits from here on: cancellation cannot land in it.
            if ex.outcome is None:
                ex.outcome = Outcome.CANCELLED
            for i, hook in self._on_complete:
                if i <= ex._entered:
                    try:
                        hook(ex)
                    except Exception as error:  # noqa: BLE001  # the other filters still complete
                        _report(ex, error)

    async def _before(
        self, ex: Exchange, down: Downstream, target: Target | LocalRoute | Reply | None
    ) -> tuple[_Payload, Reply | None]:
        """Ask the filters about the head, and get the body ready to be sent. With a reply it ends here."""
        request = ex.request
        body: Source = down
        held_at = -1
        ex._entered = -1
        for i, f, hook, buffers in self._on_request_headers:
            ex._entered = i
            if hook is not None and (reply := await hook(ex)) is not None:
                return _EMPTY, reply
            if buffers and request.has_body and not (ex._skip and f in ex._skip):
                body, held_at = _Held(await self._hold(ex, down, f, held_at, i, body)), i
        ex._entered = self._last
        if target.__class__ in _ANSWERS:
            return _EMPTY, await _own_answer(ex, target)  # type: ignore[arg-type]
        ex._phase = "request body"
        if not request.has_body:
            return _EMPTY, None
        rows = _live(ex, self._on_body, held_at)
        if any(f.body is Body.STREAM for _, f, _, _ in rows):
            _set_length(request, None)
        first = body.take()
        whole = None
        if first is not None and first[1]:
            whole = await _pass(ex, rows, first[0], True) if rows else first[0]
        return _Payload(rows, first, whole), None

    async def _hold(self, ex: Exchange, down: Downstream, f: Filter, after: int, at: int, body: Source) -> bytes:
        """Collect the body for a BUFFER filter, through the streaming filters before it."""
        request = ex.request
        if request.expects_continue:  # nobody behind us will be asked before the body is here
            request.expects_continue = False
            request.headers.discard("expect")
            await down.send_interim(Response(100))
        rows = tuple(row for row in _live(ex, self._on_body, after) if row[0] < at)
        held, end = bytearray(), False
        ex._phase = "request body"
        while not end:
            chunk, end = body.take() or await body.receive()
            held += await _pass(ex, rows, chunk, end)
            if len(held) > f.buffer_limit:
                raise _Answered(Reply(413, reason="gw.body_too_large", close=True))
        own = tuple(row for row in self._on_body if row[0] == at)
        out = await _pass(ex, own, bytes(held), True)
        ex._phase = "request headers"
        _set_length(request, len(out))
        request.trailers = None
        return out

    async def _attempts(self, ex: Exchange, down: Downstream, target: Target, payload: _Payload) -> Reply | None:
        """Try endpoints until one answer is delivered; return a `Reply` when none was."""
        number = 0
        while True:
            number += 1
            attempt = Attempt(number)
            ex.attempts.append(attempt)
            target.choose(ex, attempt)
            for hook in self._on_upstream_request:
                if (reply := await hook(ex, attempt)) is not None:
                    return reply  # type: ignore[no-any-return]
            may_retry = payload.whole is not None and number < MAX_ATTEMPTS
            verdict: Reply | Retry | None
            try:
                connection = target.take(attempt)
                if connection is None:
                    connection = await target.connect(attempt, fresh=False)
                try:
                    verdict = await self._attempt(ex, down, attempt, connection, payload, may_retry)
                except Disconnected:
                    # A pooled connection that the upstream closed just as it was picked says nothing about the
                    # upstream: once, on a connection of its own, whatever the retry policy (RFC 9112 section 9.3.1).
                    if not attempt.reused or payload.whole is None or ex.request.method not in _IDEMPOTENT:
                        raise
                    connection = await target.connect(attempt, fresh=True)
                    verdict = await self._attempt(ex, down, attempt, connection, payload, may_retry)
            except UpstreamFailure as failure:
                attempt.error = failure
                if ex._started:
                    raise
                verdict = await self._failed(ex, attempt, failure, may_retry)
                # The attempt keeps its error, and the traceback would keep this frame, which keeps the attempt.
                failure.__traceback__ = None
            if not isinstance(verdict, Retry):
                return verdict
            ex.response = None
            if verdict.delay:
                await anyio.sleep(verdict.delay)

    async def _failed(self, ex: Exchange, attempt: Attempt, failure: UpstreamFailure, may_retry: bool) -> Reply | Retry:
        for hook in self._on_upstream_error:
            verdict: Reply | Retry | None = await hook(ex, attempt, failure)
            if verdict is not None and (may_retry or not isinstance(verdict, Retry)):
                return verdict
        return Reply(failure.status, headers=failure.headers, reason=failure.reason)

    async def _attempt(
        self,
        ex: Exchange,
        down: Downstream,
        attempt: Attempt,
        connection: Connection,
        payload: _Payload,
        may_retry: bool,
    ) -> Reply | Retry | None:
        """Send the request, relay the response. `None`: it was delivered."""
        upload: _Upload | None = None
        try:
            if payload.whole is not None:  # no body, or all of it here: no second task
                connection.start(ex, payload.whole, True)
            else:
                connection.start(ex, b"", False)
                upload = _Upload(ex, down, connection, payload)
                down.spawn(upload.run)
            response = await connection.response()
            interims = 0
            while response.status < 200:
                interims += 1
                if interims <= MAX_INTERIM_RESPONSES:
                    await down.send_interim(response)
                response = await connection.response()
            ex.response = attempt.response = response
            if self._on_upstream_response:
                ex._phase, ex._skip = "upstream headers", None
                for hook in self._on_upstream_response:
                    verdict: Reply | Retry | None = await hook(ex, attempt)
                    if verdict is not None and (may_retry or not isinstance(verdict, Retry)):
                        return verdict
            if self._on_upstream_body:
                await self._relay_through_filters(ex, down, connection, response)
            else:
                end = not response.has_body
                chunk = b""
                if not end and (first := connection.take()) is not None:
                    chunk, end = first
                self._before_start(ex)
                await down.start(ex, chunk, end)
                while not end:
                    chunk, end = connection.take() or await connection.receive()
                    await down.send(chunk, end)
            ex.outcome = Outcome.UPSTREAM
            return None
        finally:
            if upload is not None:
                await upload.stop()
            connection.finish()

    async def _relay_through_filters(
        self, ex: Exchange, down: Downstream, connection: Connection, response: Response
    ) -> None:
        rows = _live(ex, self._on_upstream_body, -1)
        if any(f.upstream_body is Body.STREAM for _, f, _, _ in rows):
            _set_length(response, None)
        buffers = [f for _, f, _, _ in rows if f.upstream_body is Body.BUFFER]
        end = not response.has_body
        if buffers and not end:
            # Each filter must see what the one before it made of the whole; so the whole goes through at once.
            limit = min(f.buffer_limit for f in buffers)
            held = bytearray()
            while not end:
                chunk, end = connection.take() or await connection.receive()
                held += chunk
                if len(held) > limit:
                    raise ResponseTooLarge(f"a filter takes at most {limit} bytes")
            out = await _pass(ex, rows, bytes(held), True)
            _set_length(response, len(out))
            response.trailers = None
            self._before_start(ex)
            await down.start(ex, out, True)
            return
        chunk = b""
        if not end and (first := connection.take()) is not None:
            chunk, end = await _pass(ex, rows, *first), first[1]
        self._before_start(ex)
        await down.start(ex, chunk, end)
        while not end:
            chunk, end = connection.take() or await connection.receive()
            chunk = await _pass(ex, rows, chunk, end)
            if chunk or end:
                await down.send(chunk, end)

    def _before_start(self, ex: Exchange) -> None:
        """Show the response to the filters: from here on it is under way."""
        if self._on_response_headers:
            ex._phase = "response headers"
            for i, hook in self._on_response_headers:
                if i <= ex._entered:
                    hook(ex)
        ex._phase = "upstream body"
        ex._started = True

    async def _answer(self, ex: Exchange, down: Downstream, reply: Reply) -> None:
        """Send a reply of our own, seen by the filters that were entered."""
        ex.outcome, ex.reason = Outcome.REPLY, reply.reason
        ex.response, body = _response_to(ex, reply)
        if reply.close:
            down.close_after()
        self._before_start(ex)
        await down.start(ex, body, True)

    async def _break_off(self, ex: Exchange, down: Downstream, error: Exception) -> None:
        """Something was raised: answer if that is still possible, else break off visibly."""
        if isinstance(error, _Answered):
            reply = error.reply
        elif isinstance(error, Failure):
            reply = Reply(error.status, headers=error.headers, reason=error.reason, close=True)
        else:
            _report(ex, error)
            reply = Reply(500, reason=f"gw.error.{type(error).__name__}")
        if isinstance(error, ClientGone):
            ex.outcome, ex.reason = Outcome.CANCELLED, error.reason
            down.reset()
        elif ex._started:
            ex.outcome, ex.reason = Outcome.RESET, reply.reason
            down.reset()
        elif ex._phase == "response headers":
            # The hook that sees every response is the one that failed: it does not see this one.
            ex.outcome, ex.reason, ex._started = Outcome.REPLY, reply.reason, True
            ex.response, body = _response_to(ex, reply)
            await self._try_start(ex, down, body)
        else:
            try:
                await self._answer(ex, down, reply)
            except Exception as again:  # noqa: BLE001  # on_response_headers raised, or the client left
                await self._break_off(ex, down, again)

    @staticmethod
    async def _try_start(ex: Exchange, down: Downstream, body: bytes) -> None:
        try:
            await down.start(ex, body, True)
        except Failure:
            down.reset()


class _Payload:
    """The request body of one exchange, as far as it is known before the first attempt."""

    __slots__ = ("first", "rows", "whole")

    def __init__(self, rows: tuple[BodyRow, ...], first: tuple[bytes, bool] | None, whole: bytes | None) -> None:
        self.rows = rows
        """The filters it still has to pass."""
        self.first = first
        """A chunk taken already, not yet passed through them."""
        self.whole = whole
        """All of it, filtered: what makes a second attempt possible. `None` while it is still coming."""


_EMPTY: Final = _Payload((), None, b"")
"""Of a request without a body."""


class _Upload:
    """A request body that is still coming, sent on beside the response."""

    __slots__ = ("connection", "done", "down", "ex", "payload", "scope")

    def __init__(self, ex: Exchange, down: Downstream, connection: Connection, payload: _Payload) -> None:
        self.ex, self.down, self.connection, self.payload = ex, down, connection, payload
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()

    async def run(self) -> None:
        ex, down, connection, rows = self.ex, self.down, self.connection, self.payload.rows
        chunk, end = self.payload.first or (b"", False)
        try:
            with self.scope:
                while True:
                    if chunk or end:
                        if rows:
                            chunk = await _pass(ex, rows, chunk, end)
                        if chunk or end:
                            await connection.send(chunk, end)
                    if end:
                        break
                    chunk, end = down.take() or await down.receive()
        except Disconnected:
            connection.fail(None)  # the upstream may have answered before it stopped listening
        except Exception as error:  # noqa: BLE001  # raised again where the response is awaited
            connection.fail(error)
        finally:
            self.done.set()

    async def stop(self) -> None:
        """End it, and wait until it touches nothing any more."""
        if not self.done.is_set():
            self.scope.cancel()
            with anyio.CancelScope(shield=True):
                await self.done.wait()


async def _pass(ex: Exchange, rows: tuple[BodyRow, ...], chunk: bytes, end: bool) -> bytes:
    for _, _, hook, changes in rows:
        if not chunk and not end:
            break  # an earlier filter is holding it back
        out = await hook(ex, chunk, end)
        if out.__class__ is Reply:
            raise _Answered(out)
        if changes:
            chunk = out
    return chunk


async def _own_answer(ex: Exchange, target: LocalRoute | Reply | None) -> Reply:
    if isinstance(target, LocalRoute):
        return await target.handler(ex)
    return Reply(404, reason="gw.no_upstream") if target is None else target


def _live(ex: Exchange, rows: tuple[BodyRow, ...], after: int) -> tuple[BodyRow, ...]:
    skip = ex._skip
    if skip is None and after < 0:
        return rows
    return tuple(row for row in rows if row[0] > after and not (skip and row[1] in skip))


def _set_length(message: Any, length: int | None) -> None:
    """Make content-length say *length*, on the fields and on the message."""
    raw = message.headers.raw
    raw[:] = [line for line in raw if line[0] != b"content-length"]
    if length is not None:
        raw.append((b"content-length", b"%d" % length))
    message.content_length = length


def _response_to(ex: Exchange, reply: Reply) -> tuple[Response, bytes]:
    request = ex.request
    headers = Headers()
    for name, value in reply.headers:
        headers.add(name, value)
    body = reply.body
    if body is None:
        body, content_type = render(reply, request.headers.get("accept"), ex.request_id)
        headers.raw.append((b"content-type", content_type))
    response = Response(reply.status, headers, has_body=reply.status not in (204, 304))
    if response.has_body:
        _set_length(response, len(body))
    return response, body if response.has_body else b""


def _report(ex: Exchange, error: Exception) -> None:
    """Log what a filter raised: one record, with everything that finds the culprit."""
    plugin, hook = blame(error)
    log.error(
        "plugin %s raised %s in %s (route %s, request %s)",
        plugin,
        type(error).__name__,
        hook,
        ex.route.name if ex.route else "-",
        ex.request_id,
        exc_info=error,
    )


def _check_order(filters: Sequence[Filter]) -> None:
    at: dict[str, int] = {}
    for i, f in enumerate(filters):
        if f.name in at and f.order.unique:
            raise ChainError(f"{f.name!r} is listed twice, and may be used once in a route")
        at[f.name] = i
    for i, f in enumerate(filters):
        for other in f.order.before:
            if at.get(other, i) < i:
                raise ChainError(f"{f.name!r} must come before {other!r}; move it up the list")
        for other in f.order.after:
            if at.get(other, i) > i:
                raise ChainError(f"{f.name!r} must come after {other!r}; move it down the list")
