"""Decisions that many machines share: one script in Redis or Valkey, one round trip, many decisions in it under load.

While one call is under way, what comes is gathered for the next one. Each decision waits for so long and no longer; a
store that fails again and again is left alone for a while. What is decided without it is the filter's business.
"""

from __future__ import annotations

import logging
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from importlib import import_module
from time import monotonic
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio

from gw_ratelimit.algorithms import FixedWindow, SlidingWindow, TokenBucket, Verdict
from gw_ratelimit.limits import BATCH, BREAKER_FAILURES, BREAKER_TIME, MAX_QUEUED
from gw_ratelimit.script import SCRIPT
from gw_ratelimit.settings import RedisSettings
from gw_ratelimit.stores import Ask, StoreAway, wall_ms

__all__ = ["RedisStore", "key_of", "tls_context"]

_DRY, _COUNTS, _CHARGED = 0, 1, 2


class _Pending:
    """One decision on its way."""

    __slots__ = ("abandoned", "asks", "charges", "done", "verdicts", "why")

    def __init__(self, asks: Sequence[Ask], charges: bool, done: anyio.Event | None) -> None:
        self.asks, self.charges, self.done = asks, charges, done
        self.verdicts: list[Verdict] | None = None
        self.why = "gave no answer in time"
        self.abandoned = False


class RedisStore:
    """The store at *url*. *timeout* is what a decision may take, in seconds; *prefix* begins every key.

    With *cluster* it is that of a node, and the others are learnt. *tls* gives how its certificate is verified, and is
    asked once for each connection. `run` makes the calls, and has to be running. One per event loop.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        prefix: str,
        log: logging.Logger,
        cluster: bool = False,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        self._url, self._timeout, self._prefix, self._log = url, timeout, prefix, log
        self._cluster, self._tls = cluster, tls
        self._queue: deque[_Pending] = deque()
        self._wake: anyio.Event | None = None
        self._sha = ""
        self._failures = 0
        self._open_until = 0.0
        self.calls = self.decisions = self.errors = 0
        self.microseconds = self.slowest = 0
        """Of all calls, and of the slowest."""

    @property
    def is_open(self) -> bool:
        """Whether the store is left alone: it failed `BREAKER_FAILURES` times in a row, `BREAKER_TIME` ago or less."""
        return self._open_until > monotonic()

    async def decide(self, asks: Sequence[Ask]) -> Sequence[Verdict]:
        """Charge all of *asks*, or none if one that counts denies; raises `StoreAway`."""
        if self._open_until and self.is_open:
            raise StoreAway("failed several times, and is left alone for a while")
        done = anyio.Event()
        pending = self._put(_Pending(asks, charges=False, done=done))
        try:
            with anyio.move_on_after(self._timeout):
                await done.wait()
        finally:
            pending.abandoned = True
        if pending.verdicts is None:
            raise StoreAway(pending.why)
        return pending.verdicts

    def charge(self, ask: Ask) -> None:
        """Take the tokens of *ask* some time soon, whether they are there or not; raises `StoreAway`."""
        if self.is_open:
            raise StoreAway("failed several times, and is left alone for a while")
        self._put(_Pending((ask,), charges=True, done=None))

    def _put(self, pending: _Pending) -> _Pending:
        if len(self._queue) >= MAX_QUEUED:
            raise StoreAway(f"is asked for more than {MAX_QUEUED} decisions at once")
        self._queue.append(pending)
        if self._wake is not None:
            self._wake.set()
        return pending

    # --- the calls --------------------------------------------------------------

    async def run(self) -> None:
        """Make the calls, until cancelled. Connects when something is asked, and anew after a failure."""
        while True:
            batch = await self._next()
            try:
                async with self._client() as client:
                    while await self._call(client, batch):
                        batch = await self._next()
            except Exception as error:  # noqa: BLE001  # the library's own tasks fail in groups, of anything
                self._failed(batch, error)

    def _client(self) -> Any:
        library = import_module("coredis")  # an extra: imported only where a configuration has a store
        options: dict[str, Any] = {
            "connect_timeout": self._timeout,
            "verify_version": False,
            "retry_policy": import_module("coredis.retry").NoRetryPolicy(),
        }
        where = urlsplit(self._url)
        if where.scheme == "rediss":
            options["ssl_context"] = self._tls()  # left to itself, the library would accept another host's certificate
        if not self._cluster:
            return library.Redis.from_url(self._url, max_connections=1, **options)
        return library.RedisCluster(
            startup_nodes=[library.connection.TCPLocation(where.hostname or "localhost", where.port or 6379)],
            username=unquote(where.username) if where.username else None,
            password=unquote(where.password) if where.password else None,
            ssl=where.scheme == "rediss",
            max_connections=1,
            max_connections_per_node=True,
            **options,
        )

    async def _next(self) -> list[_Pending]:
        """Wait for decisions that are wanted; return those whose keys stand together, `BATCH` of them at most."""
        while True:
            batch: list[_Pending] = []
            others: list[_Pending] = []
            while self._queue and len(batch) + len(others) < BATCH:
                pending = self._queue.popleft()
                if pending.abandoned:
                    continue
                same = not batch or _place(pending) == _place(batch[0])
                (batch if same else others).append(pending)
            self._queue.extendleft(reversed(others))
            if batch:
                return batch
            self._wake = anyio.Event()
            await self._wake.wait()
            self._wake = None

    async def _call(self, client: Any, batch: list[_Pending]) -> bool:
        """Make one call, and tell everyone what came of it; return whether the connection is still good."""
        began = monotonic()
        try:
            with anyio.fail_after(self._timeout):
                answer = await self._ask(client, batch)
        except Exception as error:  # noqa: BLE001  # whatever it is, these decisions are not to be had
            self._failed(batch, error)
            return False
        took = int((monotonic() - began) * 1e6)
        self.calls += 1
        self.decisions += len(batch)
        self.microseconds += took
        self.slowest = max(self.slowest, took)
        if self._failures:
            if self._open_until:
                self._log.info("the store answers again")
            self._failures, self._open_until = 0, 0.0
        _tell(batch, answer)
        return True

    async def _ask(self, client: Any, batch: list[_Pending]) -> list[int]:
        keys: list[str] = []
        arguments: list[str | int] = []
        for pending in batch:
            arguments.append(len(pending.asks))
            for ask in pending.asks:
                keys.append(key_of(self._prefix, ask))
                arguments += _numbers(ask, charges=pending.charges)
        if not self._sha:
            sha = await client.script_load(SCRIPT)
            self._sha = sha.decode() if isinstance(sha, bytes) else sha
        try:
            answer = await client.evalsha(self._sha, keys, arguments)
        except import_module("coredis.exceptions").NoScriptError:  # it was restarted, or flushed
            answer = await client.eval(SCRIPT, keys, arguments)
        return [int(each) for each in answer]

    def _failed(self, batch: list[_Pending], error: Exception) -> None:
        self.errors += 1
        self._failures += 1
        why = _words(error)
        if self._failures >= BREAKER_FAILURES:
            if not self._open_until:
                self._log.warning("the store fails: %s; rate limits go by on_store_error", why)
            self._open_until = monotonic() + BREAKER_TIME
        for pending in batch:
            pending.why = why
            if pending.done is not None:
                pending.done.set()

    def stats(self) -> dict[str, Any]:
        """Return the store's part of ``/stats``."""
        return {
            "state": "away" if self.is_open else "up",
            "calls": self.calls,
            "decisions": self.decisions,
            "errors": self.errors,
            "mean_ms": round(self.microseconds / self.calls / 1000, 3) if self.calls else 0.0,
            "slowest_ms": self.slowest / 1000,
        }

    def __repr__(self) -> str:
        return f"<RedisStore {'away' if self.is_open else 'up'}>"  # the url may hold a password


def tls_context(settings: RedisSettings) -> ssl.SSLContext:
    """Return what verifies the server's certificate, and its name, and shows ours. Raises `OSError`."""
    context = ssl.create_default_context(cafile=settings.ca_file or None)
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


def key_of(prefix: str, ask: Ask) -> str:
    """Return the key of *ask* in the store. All zones of one section share a hash tag, and so stand on one node of a cluster."""
    zone = ask.zone
    return f"{prefix}{{{zone.place}}}:{zone.identity}:{zone.shown(ask.key)}"


def _place(pending: _Pending) -> str:
    return pending.asks[0].zone.place


def _numbers(ask: Ask, *, charges: bool) -> tuple[str | int, ...]:
    how = _CHARGED if charges else _COUNTS if ask.counts else _DRY
    limit = ask.limit
    if isinstance(limit, TokenBucket):
        return ("b", *limit.numbers, ask.cost, how)
    if isinstance(limit, SlidingWindow):
        return ("s", *limit.numbers, ask.cost, how)
    assert isinstance(limit, FixedWindow)
    return ("f", limit.limit, *limit.periods(wall_ms()), ask.cost, how)


def _tell(batch: list[_Pending], answer: list[int]) -> None:
    now, at = answer[0], 1
    for pending in batch:
        verdicts = []
        for ask in pending.asks:
            fits, *state = answer[at : at + 4]
            verdicts.append((fits == 1, state[0], state[1], state[2], now if ask.limit.steady else wall_ms()))
            at += 4
        pending.verdicts = verdicts
        if pending.done is not None:
            pending.done.set()


def _words(error: Exception) -> str:
    """Say what happened without what the library would quote: addresses are fine, an URL with its password is not."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "gave no answer in time"
    return f"{type(error).__name__}"
