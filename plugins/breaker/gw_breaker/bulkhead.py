"""The bulkhead: how many exchanges may be with an upstream at once, and how many may wait for their turn.

It counts whole exchanges, retries and their pauses included. Whoever leaves, however that comes about, makes room:
the place goes to who waits longest, or is free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

import anyio

from gw import Attempt, Exchange, Filter, Key, Order, Reply

__all__ = ["Bulkhead", "BulkheadFilter"]


class _Waiting:
    __slots__ = ("event", "has_place")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.has_place = False


class Bulkhead:
    """Places for *size* exchanges, and a queue for them."""

    def __init__(self, size: int, queue: int, patience: float) -> None:
        self.size, self.queue, self.patience = size, queue, patience
        self.taken = 0
        """Places that are taken."""
        self.full = self.late = 0
        """Exchanges that found the queue full, and that waited in vain."""
        self._waiting: deque[_Waiting] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def resize(self, size: int, queue: int, patience: float) -> None:
        """Go on with other bounds; who is in stays in."""
        self.size, self.queue, self.patience = size, queue, patience
        while self._waiting and self.taken < self.size:
            self.taken += 1
            self._admit_next()

    async def enter(self) -> str:
        """Take a place, waiting for one if that is allowed; return why not, or nothing. Who is in has to `leave`."""
        if self.taken < self.size:
            self.taken += 1
            return ""
        if len(self._waiting) >= self.queue:
            self.full += 1
            return "bulkhead_full"
        waiting = _Waiting()
        self._waiting.append(waiting)
        try:
            with anyio.move_on_after(self.patience):
                await waiting.event.wait()
        except BaseException:
            if waiting.has_place:
                self.leave()
            raise
        finally:
            if not waiting.has_place:
                self._waiting.remove(waiting)
        if waiting.has_place:
            return ""
        self.late += 1
        return "bulkhead_timeout"

    def leave(self) -> None:
        if self._waiting and self.taken <= self.size:
            self._admit_next()
        else:
            self.taken -= 1

    def _admit_next(self) -> None:
        """Hand a place that is counted already to who waits longest."""
        waiting = self._waiting.popleft()
        waiting.has_place = True
        waiting.event.set()

    def __repr__(self) -> str:
        return f"<Bulkhead {self.taken} of {self.size}, {self.waiting} waiting>"


_IN: Final[Key[Bulkhead | None]] = Key("breaker.bulkhead")


class BulkheadFilter(Filter):
    """Bulkheads of the upstreams of one route, by name of the upstream."""

    name = "breaker.bulkhead"
    order = Order(unique=True, before=("breaker",))

    def __init__(self, bulkheads: Mapping[str, Bulkhead]) -> None:
        self._bulkheads = bulkheads

    async def on_upstream_request(self, ex: Exchange, attempt: Attempt) -> Reply | None:
        bulkhead, before = self._bulkheads.get(attempt.upstream), ex.get(_IN, None)
        if bulkhead is before:
            return None  # a retry keeps its place
        if before is not None:
            ex[_IN] = None
            before.leave()
        if bulkhead is None:
            return None
        refused = await bulkhead.enter()
        if not refused:
            ex[_IN] = bulkhead
            return None
        return Reply(503, headers=(("retry-after", "1"),), reason=f"breaker.{refused}")

    def on_complete(self, ex: Exchange) -> None:
        bulkhead = ex.get(_IN, None)
        if bulkhead is not None:
            bulkhead.leave()
