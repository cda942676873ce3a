"""Decisions that many machines share: one script in Redis or Valkey, one round trip, many decisions in it under load.

While one call is under way, what comes is gathered for the next one. Each decision waits for so long and no longer; a
store that fails again and again is left alone for a while. What is decided without it is the filter's business.

Of requests under way the store knows how many of a key each gateway has, and until when to believe it. A gateway says it
again in time, always as a whole number: that puts right whatever was lost, on the way or by a store that was started
again. What a gateway had that died is forgotten.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from importlib import import_module
from math import inf
from time import monotonic
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import anyio

from gw_ratelimit.algorithms import FixedWindow, SlidingWindow, TokenBucket, Verdict
from gw_ratelimit.limits import BATCH, BREAKER_FAILURES, BREAKER_TIME, LEASE_TIME, MAX_QUEUED, MAX_SAID
from gw_ratelimit.script import SCRIPT
from gw_ratelimit.settings import RedisSettings
from gw_ratelimit.stores import Ask, Entry, StoreAway, wall_ms

__all__ = ["RedisStore", "key_of", "tls_context"]

_DRY, _COUNTS, _CHARGED, _SAID = 0, 1, 2, 3

_Key: TypeAlias = tuple[str, str]
"""The section that a zone stands in, and a key in the store: those of one section stand on one node."""


class _Pending:
    """One decision on its way."""

    __slots__ = ("abandoned", "asks", "charges", "done", "entries", "verdicts", "why")

    def __init__(self, asks: Sequence[Ask | Entry], charges: bool, done: anyio.Event | None) -> None:
        self.asks, self.charges, self.done = asks, charges, done
        self.entries = [ask for ask in asks if isinstance(ask, Entry)]
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
        self._holder = os.urandom(8).hex()
        """What the store knows us by."""
        self._under_way: dict[_Key, int] = {}
        """How many requests have entered and not left."""
        self._unsaid: dict[_Key, None] = {}
        """Where that has to be said."""
        self._saying = False
        self._said_at = -inf
        self._all_said: anyio.Event | None = None
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

    async def decide(self, asks: Sequence[Ask | Entry]) -> Sequence[Verdict]:
        """Charge all of *asks*, or none if one that counts denies; raises `StoreAway`. What has entered has to `leave`."""
        if self._open_until and self.is_open:
            raise StoreAway("failed several times, and is left alone for a while")
        done = anyio.Event()
        pending = self._put(_Pending(asks, charges=False, done=done))
        try:
            with anyio.move_on_after(self._timeout):
                await done.wait()
        except BaseException:
            if pending.verdicts is not None:  # nobody will hear of it
                self._give_back(pending)
            raise
        finally:
            pending.abandoned = True
        if pending.verdicts is None:
            raise StoreAway(pending.why)
        return pending.verdicts

    def enter(self, entry: Entry) -> None:
        """Count one more, whose entry was decided while the store was away."""
        self._count(self._key(entry), 1)

    def leave(self, entry: Entry) -> None:
        """Count one less."""
        self._count(self._key(entry), -1)

    async def settle(self) -> None:
        """Wait until the store knows who has left, but not longer than for a decision."""
        with anyio.move_on_after(self._timeout):
            while (self._unsaid or self._saying) and not self.is_open:
                self._all_said = anyio.Event()
                await self._all_said.wait()

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

    # --- requests under way --------------------------------------------------

    def _key(self, entry: Entry) -> _Key:
        return entry.zone.place, key_of(self._prefix, entry)

    def _count(self, key: _Key, more: int) -> None:
        many = self._under_way.get(key, 0) + more
        if many:
            self._under_way[key] = many
        else:
            del self._under_way[key]
        self._say(key)

    def _say(self, key: _Key) -> None:
        """Have the store told how many have entered, some time soon."""
        if key in self._under_way or len(self._unsaid) < MAX_SAID:
            self._unsaid[key] = None
            if self._wake is not None:
                self._wake.set()

    def _say_all_in_time(self) -> None:
        if self._under_way and monotonic() >= self._said_at + LEASE_TIME / 3:
            self._said_at = monotonic()
            self._unsaid |= dict.fromkeys(self._under_way)

    def _patience(self) -> float:
        """Return how long nothing has to be said, in seconds."""
        until = self._said_at + LEASE_TIME / 3 if self._under_way else inf
        if self._unsaid:
            until = min(until, self._open_until)
        return max(0.0, until - monotonic())

    def _told(self, pending: _Pending) -> None:
        """Count what has entered."""
        assert pending.verdicts is not None
        for entry in _entered(pending):
            key = self._key(entry)
            self._under_way[key] = self._under_way.get(key, 0) + 1
        if pending.abandoned:
            self._give_back(pending)

    def _give_back(self, pending: _Pending) -> None:
        for entry in _entered(pending):
            self.leave(entry)

    # --- the calls --------------------------------------------------------------

    async def run(self) -> None:
        """Make the calls, until cancelled. Connects when something is asked, and anew after a failure."""
        import_module("coredis")  # now, and not while the first request waits
        while True:
            batch, said = await self._next()
            try:
                async with self._client() as client:
                    while await self._call(client, batch, said):
                        batch, said = await self._next()
            except Exception as error:  # noqa: BLE001  # the library's own tasks fail in groups, of anything
                self._failed(batch, said, error)
            self._said_at = -inf  # it may have been started again, and know of nobody

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

    async def _next(self) -> tuple[list[_Pending], list[_Key]]:
        """Wait for decisions that are wanted, and for what has to be said; return what stands together, `BATCH` of each at most."""
        while True:
            self._say_all_in_time()
            speaks = bool(self._unsaid) and not self.is_open
            place = next(iter(self._unsaid))[0] if speaks and self.calls % 2 else ""
            batch: list[_Pending] = []
            others: list[_Pending] = []
            while self._queue and len(batch) + len(others) < BATCH:
                pending = self._queue.popleft()
                if pending.abandoned:
                    continue
                place = place or _place(pending)
                (batch if self._together(place, _place(pending)) else others).append(pending)
            self._queue.extendleft(reversed(others))
            said: list[_Key] = []
            if speaks:
                place = place or next(iter(self._unsaid))[0]
                said = [key for key in self._unsaid if self._together(place, key[0])][:BATCH]
                for key in said:
                    del self._unsaid[key]
            self._saying = bool(said)
            if batch or said:
                return batch, said
            self._wake = anyio.Event()
            with anyio.move_on_after(self._patience()):
                await self._wake.wait()
            self._wake = None

    def _together(self, one: str, other: str) -> bool:
        """Tell whether keys of two sections may go into one call."""
        return one == other or not self._cluster

    async def _call(self, client: Any, batch: list[_Pending], said: list[_Key]) -> bool:
        """Make one call, and tell everyone what came of it; return whether the connection is still good."""
        began = monotonic()
        try:
            with anyio.fail_after(self._timeout):
                answer = await self._ask(client, batch, said)
        except Exception as error:  # noqa: BLE001  # whatever it is, these decisions are not to be had
            self._failed(batch, said, error)
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
        now, at = answer[0], 1 + 4 * len(said)
        for pending in batch:
            pending.verdicts = _verdicts(pending.asks, now, answer, at)
            at += 4 * len(pending.asks)
            if pending.entries:
                self._told(pending)
            if pending.done is not None:
                pending.done.set()
        self._saying = False
        if self._all_said is not None and not self._unsaid:
            self._all_said.set()
        return True

    async def _ask(self, client: Any, batch: list[_Pending], said: list[_Key]) -> list[int]:
        # What is said comes first: it counts what has entered by the calls before, and not what enters by this one.
        keys = [key for _, key in said]
        arguments: list[str | int] = []
        for each in said:
            arguments += (1, "c", self._under_way.get(each, 0), int(LEASE_TIME * 1000), self._holder, _SAID)
        for pending in batch:
            arguments.append(len(pending.asks))
            for ask in pending.asks:
                keys.append(key_of(self._prefix, ask))
                arguments += self._numbers(ask, charges=pending.charges)
        if not self._sha:
            sha = await client.script_load(SCRIPT)
            self._sha = sha.decode() if isinstance(sha, bytes) else sha
        try:
            answer = await client.evalsha(self._sha, keys, arguments)
        except import_module("coredis.exceptions").NoScriptError:  # it was restarted, or flushed
            answer = await client.eval(SCRIPT, keys, arguments)
        return [int(each) for each in answer]

    def _numbers(self, ask: Ask | Entry, *, charges: bool) -> tuple[str | int, ...]:
        how = _CHARGED if charges else _COUNTS if ask.counts else _DRY
        limit = ask.limit
        if isinstance(ask, Entry):
            return ("c", ask.limit.limit, int(LEASE_TIME * 1000), self._holder, how)
        if isinstance(limit, TokenBucket):
            return ("b", *limit.numbers, ask.cost, how)
        if isinstance(limit, SlidingWindow):
            return ("s", *limit.numbers, ask.cost, how)
        assert isinstance(limit, FixedWindow)
        return ("f", limit.limit, *limit.periods(wall_ms()), ask.cost, how)

    def _failed(self, batch: list[_Pending], said: list[_Key], error: Exception) -> None:
        self.errors += 1
        self._failures += 1
        for key in said:
            self._say(key)
        why = _words(error)
        if self._failures >= BREAKER_FAILURES:
            if not self._open_until:
                self._log.warning("the store fails: %s; rate limits go by on_store_error", why)
            self._open_until = monotonic() + BREAKER_TIME
        for pending in batch:
            pending.why = why
            for entry in pending.entries:
                self._say(self._key(entry))  # it may have entered, for all we know
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


def key_of(prefix: str, ask: Ask | Entry) -> str:
    """Return the key of *ask* in the store. All zones of one section share a hash tag, and so stand on one node of a cluster."""
    zone = ask.zone
    return f"{prefix}{{{zone.place}}}:{zone.identity}:{zone.shown(ask.key)}"


def _place(pending: _Pending) -> str:
    return pending.asks[0].zone.place


def _entered(pending: _Pending) -> Sequence[Entry]:
    """Return what has entered with an answered decision: all in it, or nothing."""
    assert pending.verdicts is not None
    denied = any(ask.counts and not verdict[0] for ask, verdict in zip(pending.asks, pending.verdicts, strict=True))
    return () if denied else pending.entries


def _verdicts(asks: Sequence[Ask | Entry], now: int, answer: Sequence[int], begin: int) -> list[Verdict]:
    """Return what *answer* says of *asks*, from *begin* on."""
    found: list[Verdict] = []
    for ask in asks:
        fits, at, a, b = answer[begin : begin + 4]
        begin += 4
        found.append((fits == 1, at, a, b, now if isinstance(ask, Entry) or ask.limit.steady else wall_ms()))
    return found


def _words(error: Exception) -> str:
    """Say what happened without what the library would quote: addresses are fine, an URL with its password is not."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "gave no answer in time"
    return f"{type(error).__name__}"
