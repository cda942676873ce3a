"""A route's filters, compiled once at load, and the one way an exchange runs through them.

Backpressure needs no callbacks here: each direction reads one chunk, awaits
every filter, awaits the write, and only then reads again. What is held is one
chunk a direction, plus what a BUFFER filter was allowed to ask for.

No sockets, no parsing: both peers are the small interfaces of `gw.peers`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

from gw.around import Placed, blame, explained, guarded
from gw.bodies import EMPTY, Answered, BodyRow, Held, Payload, Upload, collect, filtered, live, set_length, whole_of
from gw.failures import (
    Cancelled,
    ClientGone,
    Disconnected,
    Failure,
    Overtaken,
    Unprocessed,
    UpstreamFailure,
)
from gw.filters import Attempt, Body, Elsewhere, Exchange, Filter, Outcome, Reply, Response, Retry
from gw.handlers import Asking, own_answer
from gw.hookspecs import LocalRoute, LocalWebSocket
from gw.http.replies import response_to
from gw.limits import MAX_ATTEMPTS, MAX_HELD_BODY, MAX_INTERIM_RESPONSES, MAX_OVERTAKEN, MAX_UNPROCESSED
from gw.peers import Connection, Downstream, Source, Target, Tries
from gw.upgrade import accept, agreed, ask, serve_here, upgrade

__all__ = ["Chain", "ChainError"]

log = logging.getLogger("gw.chain")


class ChainError(ValueError):
    """The filters of a route cannot stand in the order given."""


_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})
"""RFC 9110 section 9.2.2: a proxy must not repeat others by itself."""

_ANSWERS: Final = frozenset({Reply, LocalRoute, LocalWebSocket, type(None)})
"""Targets that need no upstream."""

_DENIED: Final = "x-proxy-retry-denied"
"""Tells a client that the failure it sees might have been retried (behaviour 11.4)."""


class Chain:
    """The compiled filters of one route. Immutable; shared by all its exchanges."""

    __slots__ = (
        "_always_explains",
        "_explained",
        "_explains",
        "_last",
        "_on_body",
        "_on_complete",
        "_on_message",
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
        self._always_explains = any(p.filter.explains for p in self.placed)
        self._explains = explain = explain or self._always_explains
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
        self._on_message = tuple(hook for _, _, hook in compiled("on_message"))
        self._on_response_headers = tuple((i, hook) for i, _, hook in reversed(compiled("on_response_headers")))
        self._on_complete = tuple((i, hook) for i, _, hook in reversed(compiled("on_complete")))

    async def run(
        self, ex: Exchange, down: Downstream, target: Target | LocalRoute | LocalWebSocket | Reply | None
    ) -> None:
        """Carry one exchange from its request head to its end. Raises only cancellation.

        The filters are asked first; then the *target* is sent to, or is the answer, or makes it. Without one
        an unanswered request is a 404.
        """
        if ex.notes is not None:
            if not self._explains:
                if self._explained is None:
                    self._explained = Chain(self.placed, explain=True)
                await self._explained.run(ex, down, target)
                return
        elif self._always_explains:
            ex.notes = []
        try:
            try:
                payload, reply = EMPTY, None
                if self._on_request_headers or ex.request.has_body or target.__class__ in _ANSWERS:
                    payload, reply = await self._before(ex, down, target)
                ex._phase = "request body"
                if reply is None and ex.request.upgrade is not None:
                    reply = ask(ex)
                if reply is None and target.__class__ is LocalWebSocket:
                    await self._serve_here(ex, down, target)
                elif reply is None:
                    attempt = Attempt(1, "", monotonic())
                    ex.attempts.append(attempt)
                    tries = target.choose(ex, attempt)  # type: ignore[union-attr]
                    if tries is None:
                        reply = await self._attempts(ex, down, target, payload, attempt, None)  # type: ignore[arg-type]
                    else:
                        with tries:
                            reply = await self._attempts(ex, down, target, payload, attempt, tries)  # type: ignore[arg-type]
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
        self, ex: Exchange, down: Downstream, target: Target | LocalRoute | LocalWebSocket | Reply | None
    ) -> tuple[Payload, Reply | None]:
        """Ask the filters about the head, and get the body ready to be sent. With a reply it ends here."""
        request = ex.request
        body: Source = down
        held_at = -1
        ex._entered = -1
        for i, f, hook, buffers in self._on_request_headers:
            ex._entered = i
            if hook is not None and (reply := await hook(ex)) is not None:
                return EMPTY, reply
            if buffers and request.has_body and not (ex._skip and f in ex._skip):
                body, held_at = Held(await self._hold(ex, down, f, held_at, i, body)), i
        ex._entered = self._last
        if target.__class__ in _ANSWERS:
            if target.__class__ is LocalRoute:
                ex._asking = Asking(ex, down, live(ex, self._on_body, held_at), body)
            return EMPTY, await own_answer(ex, target)  # type: ignore[arg-type]
        ex._phase = "request body"
        if not request.has_body:
            return EMPTY, None
        rows = live(ex, self._on_body, held_at)
        if any(f.body is Body.STREAM for _, f, _, _ in rows):
            set_length(request, None)
        if target.buffers and held_at < 0:  # type: ignore[union-attr]
            return Payload(rows, None, await self._collect(ex, down, rows)), None
        first = body.take()
        whole = None
        if first is not None and first[1]:
            whole = await filtered(ex, rows, first[0], True) if rows else first[0]
        return Payload(rows, first, whole), None

    async def _collect(self, ex: Exchange, down: Downstream, rows: tuple[BodyRow, ...]) -> bytes:
        """Read all of the body and pass it through the filters, before anything is sent upstream."""
        held = await collect(ex, down, rows, down, MAX_HELD_BODY)
        if ex.request.trailers is None:
            set_length(ex.request, len(held))
        return held

    async def _hold(self, ex: Exchange, down: Downstream, f: Filter, after: int, at: int, body: Source) -> bytes:
        """Collect the body for a BUFFER filter, through the streaming filters before it."""
        request = ex.request
        rows = tuple(row for row in live(ex, self._on_body, after) if row[0] < at)
        ex._phase = "request body"
        held = await collect(ex, down, rows, body, f.buffer_limit)
        own = tuple(row for row in self._on_body if row[0] == at)
        out = await filtered(ex, own, held, True)
        ex._phase = "request headers"
        set_length(request, len(out))
        request.trailers = None
        return out

    async def _attempts(
        self, ex: Exchange, down: Downstream, target: Target, payload: Payload, attempt: Attempt, tries: Tries | None
    ) -> Reply | None:
        """Try endpoints, the first with *attempt*, until one answer is delivered; return a `Reply` when none was."""
        for hook in self._on_upstream_request:
            if (reply := await hook(ex, attempt)) is not None:
                if reply.__class__ is not Elsewhere:
                    return reply  # type: ignore[no-any-return]
                target.divert(ex, attempt, reply.upstream)
        if tries is not None and payload.whole is None:
            payload.keep_up_to(tries.buffer)
        fresh, unprocessed = False, 0
        verdict: Reply | Attempt | None
        while True:
            try:
                if tries is None or (limit := tries.limit(ex, attempt)) is None:
                    verdict = await self._attempt(ex, down, target, attempt, payload, tries, fresh=fresh)
                else:
                    with limit:
                        verdict = await self._attempt(ex, down, target, attempt, payload, tries, fresh=fresh)
            except UpstreamFailure as failure:
                # The attempt keeps its error, and the traceback would keep this frame, which keeps the attempt.
                failure.__traceback__ = None
                # What surely was not processed is sent again whatever its method (RFC 9113 section 8.7).
                most = MAX_OVERTAKEN if isinstance(failure, Overtaken) else MAX_UNPROCESSED
                if isinstance(failure, Unprocessed) and not payload.lost and unprocessed < most:
                    unprocessed += 1
                    fresh = False
                    continue
                # A pooled connection that the upstream closed just as it was picked says nothing about the
                # upstream: once, on a connection of its own, whatever the retry policy (RFC 9112 section 9.3.1).
                if not (fresh or payload.lost) and attempt.reused and _is_stale(ex, failure):
                    fresh = True
                    continue
                attempt.error, attempt.ended = failure, monotonic()
                if ex._started:
                    raise
                verdict = await self._failed(ex, target, attempt, failure, payload, tries)
            if not isinstance(verdict, Attempt):
                return verdict
            attempt, fresh = verdict, False

    async def _failed(
        self,
        ex: Exchange,
        target: Target,
        attempt: Attempt,
        failure: UpstreamFailure,
        payload: Payload,
        tries: Tries | None,
    ) -> Reply | Attempt:
        for hook in self._on_upstream_error:
            verdict: Reply | Retry | None = await hook(ex, attempt, failure)
            if isinstance(verdict, Retry):
                if not payload.lost and attempt.number < MAX_ATTEMPTS:
                    return await self._again(ex, target, tries, verdict.delay)
            elif verdict is not None:
                return verdict
        headers = failure.headers
        if tries is not None:
            delay = tries.wants(ex, attempt, failure, payload.lost)
            if delay is not None:
                return await self._again(ex, target, tries, delay)
            if tries.denied:
                headers = (*headers, (_DENIED, tries.denied))
        return Reply(failure.status, headers=headers, reason=failure.reason)

    async def _again(self, ex: Exchange, target: Target, tries: Tries | None, delay: float) -> Reply | Attempt:
        """Get another attempt ready; a `Reply` says why there is none."""
        if tries is not None and (reply := tries.admit()) is not None:
            return reply
        if delay:
            await target.sleep(delay)
        attempt = Attempt(len(ex.attempts) + 1, "", monotonic())
        ex.attempts.append(attempt)
        target.choose(ex, attempt)
        for hook in self._on_upstream_request:
            if (reply := await hook(ex, attempt)) is not None:
                if reply.__class__ is Elsewhere:
                    target.divert(ex, attempt, reply.upstream)
                    continue
                if tries is not None:
                    tries.release()
                return reply  # type: ignore[no-any-return]
        return attempt

    async def _instead(
        self, ex: Exchange, target: Target, attempt: Attempt, tries: Tries | None, delay: float
    ) -> Attempt | None:
        """Get another attempt ready while the response at hand is kept: it is what is delivered if there is none."""
        again = await self._again(ex, target, tries, delay)
        if isinstance(again, Attempt):
            ex.response = None
            return again
        ex.note("kept", again.reason)
        del ex.attempts[attempt.number :]
        return None

    async def _attempt(
        self,
        ex: Exchange,
        down: Downstream,
        target: Target,
        attempt: Attempt,
        payload: Payload,
        tries: Tries | None,
        *,
        fresh: bool,
    ) -> Reply | Attempt | None:
        """Send the request, relay the response. `None`: it was delivered; an `Attempt`: that one comes instead."""
        connection = None if fresh else target.take(attempt)
        if connection is None:
            connection = await target.connect(attempt, fresh=fresh)
            attempt.connected = monotonic()
        upload: Upload | None = None
        try:
            if payload.whole is not None:  # no body, or all of it here: no second task
                connection.start(ex, payload.whole, True)
            else:
                connection.start(ex, payload.kept(), False)
                upload = Upload(ex, down, connection, payload)
                down.spawn(upload.run)
            response = await connection.response()
            interims = 0
            while response.status < 200 and response.status != 101:
                interims += 1
                if interims <= MAX_INTERIM_RESPONSES:
                    await down.send_interim(response)
                response = await connection.response()
            agreement = agreed(ex, response) if response.status == 101 else None
            attempt.answered = monotonic()
            ex.response = attempt.response = response
            if tries is not None:
                tries.answered(ex, attempt)
            if self._on_upstream_response:
                ex._phase, ex._skip = "upstream headers", None
                for hook in self._on_upstream_response:
                    verdict: Reply | Retry | None = await hook(ex, attempt)
                    if isinstance(verdict, Retry):
                        if upload is not None:
                            await upload.stop()
                        if not payload.lost and attempt.number < MAX_ATTEMPTS:
                            another = await self._instead(ex, target, attempt, tries, verdict.delay)
                            if another is not None:
                                return another
                    elif verdict is not None:
                        return verdict
            if tries is not None and response.status in tries.statuses:
                if upload is not None:
                    await upload.stop()
                delay = tries.wants(ex, attempt, None, payload.lost)
                if delay is not None:
                    another = await self._instead(ex, target, attempt, tries, delay)
                    if another is not None:
                        return another
                elif tries.denied:
                    response.headers.set(_DENIED, tries.denied)
            if agreement is not None:
                self._before_start(ex)
                await upgrade(ex, down, connection, agreement, self._on_message, _report)
            else:
                chunk, end = b"", not response.has_body
                if not end and (first := connection.take()) is not None:
                    chunk, end = first
                sending = upload is not None and not upload.done.is_set()
                if not end and (most := target.holds(ex, attempt, sending=sending)):
                    connection.hold()
                    chunk, end = await whole_of(connection, chunk, most), True
                    if response.content_length is None and response.trailers is None:
                        set_length(response, len(chunk))
                if self._on_upstream_body:
                    await self._relay_through_filters(ex, down, connection, response, chunk, end=end)
                else:
                    self._before_start(ex)
                    await down.start(ex, chunk, end)
                    while not end:
                        chunk, end = connection.take() or await connection.receive()
                        await down.send(chunk, end)
            ex.outcome = ex.outcome or Outcome.UPSTREAM
            return None
        finally:
            if upload is not None:
                await upload.stop()
            connection.finish()
            attempt.ended = monotonic()

    async def _relay_through_filters(
        self, ex: Exchange, down: Downstream, connection: Connection, response: Response, chunk: bytes, *, end: bool
    ) -> None:
        """Relay a body of which *chunk* was read already."""
        chunk = bytes(chunk)  # filters get no views: see `Connection`
        rows = live(ex, self._on_upstream_body, -1)
        if any(f.upstream_body is Body.STREAM for _, f, _, _ in rows):
            set_length(response, None)
        buffers = [f for _, f, _, _ in rows if f.upstream_body is Body.BUFFER]
        if buffers and response.has_body:
            # Each filter must see what the one before it made of the whole; so the whole goes through at once.
            limit = min(f.buffer_limit for f in buffers)
            if not end or len(chunk) > limit:
                chunk = await whole_of(connection, chunk, limit, end=end)
            out = await filtered(ex, rows, chunk, True)
            set_length(response, len(out))
            response.trailers = None
            self._before_start(ex)
            await down.start(ex, out, True)
            return
        if response.has_body and (chunk or end):
            chunk = await filtered(ex, rows, chunk, end)
        self._before_start(ex)
        await down.start(ex, chunk, end)
        while not end:
            chunk, end = connection.take() or await connection.receive()
            chunk = await filtered(ex, rows, chunk, end)
            if chunk or end:
                await down.send(chunk, end)

    async def _serve_here(self, ex: Exchange, down: Downstream, target: LocalWebSocket) -> None:
        agreement = accept(ex, target)
        self._before_start(ex)
        await serve_here(ex, down, target, agreement, self._on_message, _report)

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
        ex.response, body = response_to(ex.request, reply, ex.request_id)
        if reply.close:
            down.close_after()
        self._before_start(ex)
        await down.start(ex, body, True)

    async def _break_off(self, ex: Exchange, down: Downstream, error: Exception) -> None:
        """Something was raised: answer if that is still possible, else break off visibly."""
        if isinstance(error, Answered):
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
            ex.response, body = response_to(ex.request, reply, ex.request_id)
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


def _is_stale(ex: Exchange, failure: UpstreamFailure) -> bool:
    stale = isinstance(failure, Disconnected) and not isinstance(failure, Unprocessed | Cancelled)
    return stale and not ex._started and ex.request.method in _IDEMPOTENT


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
