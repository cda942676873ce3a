"""Pushing: batches out of bounded queues, sent again where that makes sense, and what is left at the end (behaviour 17.7).

A request never waits for any of this: it puts something into a queue, and where there is no room the oldest is dropped
and counted. What the bytes look like is the business of the encoders.
"""

from __future__ import annotations

import gzip
import logging
import random
import time
from abc import abstractmethod
from collections import deque
from email.utils import parsedate_to_datetime
from typing import Final, Generic, Literal, TypeAlias, TypeVar

import anyio
from anyio.to_thread import run_sync

from gw import Answer, CallFailed, Count, Distribution, Family, Figures
from gw_otel.destination import Destination
from gw_otel.limits import MAX_ANSWER, MAX_RETRY_AFTER, SLICE
from gw_otel.records import METERS, Log, Resource, metrics_of
from gw_otel.rpc import asked_pause, may_be_sent_again
from gw_otel.settings import Retries
from gw_otel.spans import Scope, Span

__all__ = ["Batches", "LogBatches", "Push", "Readings", "SpanBatches"]

T = TypeVar("T")

Result: TypeAlias = Literal["success", "retryable_fail", "non_retryable_fail"]

_RETRYABLE: Final = frozenset({429, 502, 503, 504})
"""Statuses after which an export is sent again (OTLP specification, "Failures")."""

_LARGE: Final = 16384
"""A body that is larger is compressed in a thread: the loop has other things to do in a millisecond."""


class Push:
    """Sends one signal's bodies to its destination."""

    def __init__(
        self,
        signal: str,
        to: Destination,
        resource: Resource,
        retries: Retries,
        took: Distribution,
        log: logging.Logger,
    ) -> None:
        self.signal, self.to, self.resource = signal, to, resource
        self._attempts = max(1, retries.max_attempts)
        self._first_pause = retries.initial_backoff_ms / 1000
        self._longest_pause = retries.max_backoff_ms / 1000
        self._took, self._log = took, log
        self._headers = (*to.headers, ("user-agent", "gw-otel"))
        if not to.grpc:  # which names its content and its encoding itself
            self._headers += (("content-type", to.encoder.content_type),)
        if to.gzip:
            self._headers += (("grpc-encoding" if to.grpc else "content-encoding", "gzip"),)
        self._is_failing = False
        self.closing = anyio.Event()
        """Set when nothing more will come: then nobody waits for a better moment."""

    async def send(self, scopes: dict[Scope, list[bytes]]) -> tuple[Result, int]:
        """Send what encoders made; return what came of it, and how many items were rejected. Raises only cancellation."""
        body = self.to.encoder.request(self.signal, self.resource, scopes)
        if self.to.gzip:
            body = await run_sync(_compressed, body) if len(body) > _LARGE else _compressed(body)
        began = time.monotonic()
        try:
            return await self._until_sent(body)
        finally:
            self._took.record(time.monotonic() - began)

    async def _until_sent(self, body: bytes) -> tuple[Result, int]:
        pause = self._first_pause
        for attempt in range(1, self._attempts + 1):
            is_last = attempt == self._attempts or self.closing.is_set()
            result, why, rejected, asked = await self._once(body)
            self._tell(why)
            if result != "retryable_fail" or is_last:
                return result, rejected
            # Spread a little, so that a hundred gateways do not come back at once.
            wait = max(pause * random.uniform(0.8, 1), asked)  # noqa: S311  # nothing secret about it
            with anyio.move_on_after(wait):
                await self.closing.wait()
            pause = min(pause * 2, self._longest_pause)
        raise AssertionError("there is at least one attempt")

    async def _once(self, body: bytes) -> tuple[Result, str, int, float]:
        """Return what came of one attempt, why, how many items were rejected, and the pause asked for."""
        try:
            return await (self._called(body) if self.to.grpc else self._posted(body))
        except CallFailed as failure:
            return ("non_retryable_fail" if failure.kind == "too_large" else "retryable_fail"), str(failure), 0, 0

    async def _called(self, body: bytes) -> tuple[Result, str, int, float]:
        to = self.to
        answer = await to.caller.unary(
            to.url, body, headers=self._headers, compressed=to.gzip, timeout=to.timeout, most=MAX_ANSWER
        )
        if answer.status == 0:
            return self._succeeded(answer.body)
        why = f"gRPC status {answer.status}: {answer.message[:200]!r}"
        if may_be_sent_again(answer):
            return "retryable_fail", why, 0, asked_pause(answer)
        return "non_retryable_fail", why, 0, 0

    async def _posted(self, body: bytes) -> tuple[Result, str, int, float]:
        to = self.to
        answer = await to.caller.call(
            "POST", to.url, headers=self._headers, body=body, timeout=to.timeout, most=MAX_ANSWER
        )
        if 200 <= answer.status < 300:
            return self._succeeded(answer.body)
        why = f"status {answer.status}"
        if answer.status in _RETRYABLE:
            return "retryable_fail", why, 0, _pause(answer)
        return "non_retryable_fail", why, 0, 0

    def _succeeded(self, body: bytes) -> tuple[Result, str, int, float]:
        """Read a partial success. What cannot be read rejects nothing: the status said that all is well."""
        try:
            rejected, message = self.to.encoder.rejected(self.signal, body)
        except (ValueError, ArithmeticError, TypeError, RecursionError):
            rejected, message = 0, ""
        rejected = max(0, rejected)
        return "success", f"{rejected} rejected: {message[:200]!r}" if rejected else "", rejected, 0

    def _tell(self, why: str) -> None:
        """Log that exports fail, and that they no longer do; not each of them."""
        if why and not self._is_failing:
            self._log.warning("export of %s to %s fails: %s", self.signal, self.to.name, why)
        elif self._is_failing and not why:
            self._log.info("export of %s to %s works again", self.signal, self.to.name)
        self._is_failing = bool(why)

    def close(self) -> None:
        self.closing.set()


def _compressed(body: bytes) -> bytes:
    return gzip.compress(body, 5, mtime=0)


def _pause(answer: Answer) -> float:
    """Return the seconds that ``Retry-After`` asks for, within reason (RFC 9110 section 10.2.3)."""
    said = answer.headers.get("retry-after", "").strip()
    if said.isdecimal() and said.isascii():
        seconds = float(said[:9])
    else:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0
    return min(max(seconds, 0), MAX_RETRY_AFTER)


# --- spans and log records -------------------------------------------------------------


class Batches(Generic[T]):
    """A bounded queue, and the task that sends what is in it."""

    def __init__(
        self, push: Push, *, most: int, at_once: int, delay: float, dropped: Count, exported: Family[Count]
    ) -> None:
        self.push = push
        self._queue: deque[T] = deque()
        self._most, self._at_once, self._delay = most, at_once, delay
        self._dropped, self._exported = dropped, exported
        self._is_due = anyio.Event()

    def put(self, item: T) -> None:
        """Queue *item*; where there is no room, the oldest goes."""
        queue = self._queue
        if len(queue) >= self._most:
            queue.popleft()
            self._dropped.value += 1
        queue.append(item)
        if len(queue) == self._at_once:
            self._is_due.set()

    def __len__(self) -> int:
        return len(self._queue)

    async def run(self) -> None:
        """Send batches until `close`, and then what is left. Raises only cancellation."""
        try:
            while True:
                if len(self._queue) < self._at_once and not self.push.closing.is_set():
                    self._is_due = anyio.Event()
                    with anyio.move_on_after(self._delay):
                        await self._is_due.wait()
                if self._queue and not await self._send() and self.push.closing.is_set():
                    return  # nobody takes it, and there is no time left to ask again
                if not self._queue and self.push.closing.is_set():
                    return
        finally:
            if self._queue:
                self._dropped.value += len(self._queue)
                self._queue.clear()

    async def _send(self) -> bool:
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._at_once))]
        result: Result = "retryable_fail"
        rejected = 0
        try:
            scopes: dict[Scope, list[bytes]] = {}
            for number, item in enumerate(batch, 1):
                scope, data = self._encoded(item)
                scopes.setdefault(scope, []).append(data)
                if number % SLICE == 0:
                    await anyio.lowlevel.checkpoint()
            result, rejected = await self.push.send(scopes)
        finally:
            rejected = min(rejected, len(batch))
            self._exported.at(result).value += len(batch) - rejected
            if rejected:
                self._exported.at("non_retryable_fail").value += rejected
        return result == "success"

    @abstractmethod
    def _encoded(self, item: T) -> tuple[Scope, bytes]:
        """Return what made *item*, and its bytes."""

    def close(self) -> None:
        """Let `run` send what is left and end."""
        self.push.close()
        self._is_due.set()


class SpanBatches(Batches[Span]):
    """Spans that wait to be sent."""

    def _encoded(self, item: Span) -> tuple[Scope, bytes]:
        return item.scope, self.push.to.encoder.span(item)


class LogBatches(Batches[Log]):
    """Log records that wait to be sent."""

    def _encoded(self, item: Log) -> tuple[Scope, bytes]:
        return METERS, self.push.to.encoder.log(item)


# --- metrics ---------------------------------------------------------------------------------


class Readings:
    """Reads the figures again and again, and sends them: cumulative, so that a lost push loses nothing."""

    def __init__(
        self, push: Push, figures: Figures, *, interval: float, timeout: float, skipped: Count, killed: Count
    ) -> None:
        self.push = push
        self._figures, self._interval, self._timeout = figures, interval, timeout
        self._skipped, self._killed = skipped, killed

    async def run(self) -> None:
        """Push every *interval*, and once more after `close`. Raises only cancellation."""
        while True:
            closing = self.push.closing
            with anyio.move_on_after(self._interval):
                await closing.wait()
            is_last = closing.is_set()
            await self._push()
            if is_last:
                return

    async def _push(self) -> None:
        with anyio.move_on_after(self._timeout) as scope:
            result, _ = await self.push.send({METERS: await self._encoded()})
            if result != "success":
                self._skipped.value += 1
        if scope.cancelled_caught:
            self._killed.value += 1

    async def _encoded(self) -> list[bytes]:
        encoder, now, parts = self.push.to.encoder, time.time_ns(), []
        for metric in metrics_of(self._figures, SLICE):
            parts.append(encoder.metric(metric, now))
            await anyio.lowlevel.checkpoint()
        return parts

    def close(self) -> None:
        self.push.close()
