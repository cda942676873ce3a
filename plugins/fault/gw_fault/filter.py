"""The filter: waits, answers, or lets pass."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import anyio

from gw import Body, Exchange, Filter, Reply
from gw_fault.settings import Fault

__all__ = ["Active", "FaultFilter"]


class Active:
    """How many requests wait because of a fault. Shared by all routes, and outlives a reload."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class FaultFilter(Filter):
    """Delays and aborts as one section says. *sleep* and *chance*, a number from 0 to 1, are for tests."""

    name = "fault"
    body = Body.NONE
    upstream_body = Body.NONE

    def __init__(
        self,
        settings: Fault,
        active: Active,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._active, self._sleep, self._chance = active, sleep, chance
        self._headers = tuple(settings.headers.items())
        delay, abort = settings.delay, settings.abort
        self._most = settings.max_active
        self._delay = (delay.ms / 1000, delay.jitter_ms / 1000, delay.percent / 100) if delay is not None else None
        self._abort: tuple[Reply, float] | None = None
        if abort is not None:
            headers = () if abort.retry_after is None else (("retry-after", str(abort.retry_after)),)
            body = None
            if abort.body is not None:
                body, headers = abort.body.encode(), (*headers, ("content-type", "text/plain; charset=utf-8"))
            self._abort = Reply(abort.status, body, headers, "fault.abort"), abort.percent / 100

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        headers = ex.request.headers
        for name, wanted in self._headers:
            value = headers.get(name)
            if value is None or (wanted is not None and value != wanted):
                return None
        if self._delay is not None:
            seconds, jitter, share = self._delay
            if self._chance() < share:
                await self._wait(ex, seconds + jitter * self._chance() if jitter else seconds)
        if self._abort is not None and self._chance() < self._abort[1]:
            return self._abort[0]
        return None

    async def _wait(self, ex: Exchange, seconds: float) -> None:
        active = self._active
        if active.count >= self._most:
            ex.note("no delay", "fault.max_active")
            return
        ex.note("delay", f"{seconds:g} s")
        active.count += 1
        try:
            await self._sleep(seconds)
        finally:
            active.count -= 1
