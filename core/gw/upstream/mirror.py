"""Shadow traffic: a copy of a route's requests goes to another upstream, and what it answers is thrown away.

The client waits for none of it, and no failure of it is seen by anyone but the counters here. What is under way is
bounded; what is beyond the bound is not sent.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import anyio

from gw.failures import UpstreamFailure
from gw.filters import Attempt, Body, Exchange, Filter, Key, Request
from gw.limits import MAX_MIRRORED, MIRROR_BYTES, MIRROR_TIME
from gw.net.network import Network
from gw.upstream.target import RouteTarget

__all__ = ["Mirror"]

log = logging.getLogger("gw.upstream")

_HELD: Key[bytearray | None] = Key("gw.mirror.body")
"""What came of a body that is to be copied; `None` once it is on its way, or too long."""


class Mirror(Filter):
    """Stands last in a route's chain, so that it copies what the upstream really gets. *most* is bytes of a body that it keeps."""

    name = "gw.mirror"
    body = Body.OBSERVE
    upstream_body = Body.NONE

    def __init__(
        self,
        target: RouteTarget,
        network: Network,
        share: float,
        most: int,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._target, self._network, self._share, self._most, self._chance = target, network, share, most, chance
        self._counts = _Counts()

    @property
    def counts(self) -> _Counts:
        return self._counts

    async def on_request_headers(self, ex: Exchange) -> None:
        request = ex.request
        # Half of a WebSocket is of no use to anybody.
        if request.upgrade or self._chance() >= self._share or not self._has_room():
            ex.skip_body(self)
        elif request.has_body:  # what is kept of it takes a place, however slowly it comes
            ex[_HELD] = bytearray()
        else:
            self._send(ex, b"")

    async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
        held = ex.get(_HELD, None)
        if held is None:
            return chunk
        if len(held) + len(chunk) <= self._most:
            held += chunk
            if end:
                ex[_HELD] = None
                self._send(ex, bytes(held))
        else:
            self._counts.dropped += 1
            self._counts.under_way -= 1
            ex[_HELD] = None
        return chunk

    def on_complete(self, ex: Exchange) -> None:
        if ex.get(_HELD, None) is not None:  # the rest of the body never came
            self._counts.under_way -= 1

    def _has_room(self) -> bool:
        """Take a place for one more copy; count it as dropped where there is none."""
        counts = self._counts
        if counts.under_way >= MAX_MIRRORED:
            counts.dropped += 1
            return False
        counts.under_way += 1
        return True

    def _send(self, ex: Exchange, body: bytes) -> None:
        self._counts.sent += 1
        self._network.tasks.start_soon(self._run, _twin(ex, body), body)

    async def _run(self, twin: Exchange, body: bytes) -> None:
        counts = self._counts
        scope = anyio.CancelScope()
        due = self._network.deadlines.due(scope.cancel)
        due.after(MIRROR_TIME)
        try:
            with scope:
                await self._exchange(twin, body)
            if scope.cancelled_caught:
                counts.failed += 1
        except UpstreamFailure:
            counts.failed += 1
        except Exception:  # it must not end the task group that the gateway runs in
            counts.failed += 1
            log.exception("mirroring failed in a way that is a bug in gw; please report it")
        finally:
            due.forget()
            counts.under_way -= 1

    async def _exchange(self, twin: Exchange, body: bytes) -> None:
        target, attempt = self._target, Attempt(1)
        twin.attempts.append(attempt)
        tries = target.choose(twin, attempt)
        if tries is not None:  # it is counted by nobody: neither retried, nor judged
            with tries:
                pass
        connection = target.take(attempt) or await target.connect(attempt, fresh=False)
        try:
            connection.start(twin, body, True)
            response = await connection.response()
            while response.status < 200:
                response = await connection.response()
            end, size = not response.has_body, 0
            while not end and size <= MIRROR_BYTES:
                chunk, end = connection.take() or await connection.receive()
                size += len(chunk)
        finally:
            connection.finish()


class _Counts:
    """What became of the copies."""

    __slots__ = ("dropped", "failed", "sent", "under_way")

    def __init__(self) -> None:
        self.sent = self.failed = self.dropped = self.under_way = 0


def _twin(ex: Exchange, body: bytes) -> Exchange:
    """Return an exchange with a copy of the request as it is now."""
    request = ex.request
    copy = Request(request.method, request.target, request.headers.copy(), has_body=request.has_body)
    copy.scheme, copy.host, copy.path, copy.query = request.scheme, request.host, request.path, request.query
    copy.headers.raw = [line for line in copy.headers.raw if line[0] not in {b"content-length", b"expect"}]
    if request.has_body:
        copy.content_length = len(body)
        copy.headers.raw.append((b"content-length", b"%d" % len(body)))
    twin = Exchange(copy, ex.client)
    twin.route, twin.params, twin.request_id, twin.started = ex.route, ex.params, ex.request_id, ex.started
    twin.asked_host, twin.matched_path = ex.asked_host, ex.matched_path
    return twin
