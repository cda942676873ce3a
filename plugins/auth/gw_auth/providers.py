"""What a provider publishes: where its endpoints are, and its keys. Fetched ahead of need, kept across reloads.

All fetching is done by one task, `Provider.run`. A request that needs a key which is not there says so and waits for that
task; it never fetches by itself, so a client that leaves interrupts nothing, and a wave of requests is one call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

import anyio

from gw import Caller, CallFailed
from gw_auth.counts import IssuerCounts
from gw_auth.keys import KeySet, read_key_set
from gw_auth.limits import DISCOVERY_TIME, MAX_DOCUMENT_SIZE, MAX_KEY_SET_SIZE, MAX_WAITING
from gw_auth.settings import Issuer, is_loopback
from gw_auth.tokens import Malformed, loads, shown

__all__ = ["Clock", "Endpoints", "Keeping", "Provider", "read_discovery"]

USER_AGENT: Final = ("user-agent", "gw")
_AHEAD: Final = 0.8
"""The part of their time after which keys are fetched again."""
_NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Clock:
    """What time it is; tests have their own."""

    wall: Callable[[], float] = time.time
    """As tokens count it, in seconds."""
    steady: Callable[[], float] = time.monotonic
    """For everything else."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What discovery found."""

    jwks_uri: str = ""
    introspection: str = ""


@dataclass(slots=True, eq=False)
class Keeping:
    """What is known of a provider. Outlives a reload that does not change whom it is about."""

    counts: IssuerCounts
    endpoints: Endpoints | None = None
    keys: KeySet | None = None
    raw: bytes = b""
    """The key set as it came."""
    fetched: float = -_NEVER
    """When, by the steady clock."""
    usable_until: float = -_NEVER
    """Until when the keys may be used, though they cannot be fetched any more."""
    next_keys: float = -_NEVER
    next_discovery: float = -_NEVER
    next_miss: float = -_NEVER
    """Until then no unknown key makes us fetch."""
    keys_epoch: int = 0
    """`time.time` of the last success; 0 means never."""
    discovery_epoch: int = 0
    fetches: int = 0
    """Key sets that were fetched and are good."""


def read_discovery(data: bytes, issuer_url: str, *, wants_introspection: bool, wants_keys: bool) -> Endpoints:
    """Read a discovery document; raise `Malformed` where it is none, or another issuer's, or lacks what is wanted."""
    found = loads(data)
    if not isinstance(found, dict):
        raise Malformed("not a JSON object")
    if found.get("issuer") != issuer_url:
        raise Malformed(f"it is about issuer {shown(found.get('issuer'))!r}, not {issuer_url!r}")
    endpoints = Endpoints(_safe(found.get("jwks_uri")), _safe(found.get("introspection_endpoint")))
    if wants_introspection and not endpoints.introspection:
        raise Malformed("it has no introspection_endpoint with https")
    if wants_keys and not endpoints.jwks_uri:
        raise Malformed("it has no jwks_uri with https")
    return endpoints


def _safe(url: object) -> str:
    """Return *url* if calls may go there: https, or this machine itself; a value that is not counts as absent."""
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        return ""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return ""
    if not host or parts.username is not None or parts.fragment:
        return ""
    return url if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)) else ""


class Provider:
    """Keeps what is known of one provider fresh, for one configuration."""

    def __init__(
        self, name: str, settings: Issuer, keeping: Keeping, caller: Caller, clock: Clock, log: logging.Logger
    ) -> None:
        self.name, self.settings, self.keeping = name, settings, keeping
        self._caller, self._clock, self._log = caller, clock, log
        own = settings.introspection
        self._introspects = settings.mode == "introspection"
        self.needs_keys = not self._introspects or (own is not None and own.signed)
        self._wanted = anyio.Event()
        self._turned = anyio.Event()
        """Set at the end of the turn that is under way, or of the next; another one takes its place."""
        self._turning = False
        self._asked: anyio.Event | None = None
        """Set at the end of the turn that fetches keys because somebody asked for one that we do not have."""
        self._waiting = 0
        self._warned = -_NEVER
        if not settings.discovery:
            keeping.endpoints = Endpoints(settings.jwks_uri, "" if own is None else own.endpoint)

    # --- looked at by requests ---------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether it has what its tokens need."""
        return self.keeping.endpoints is not None and (not self.needs_keys or self.keys() is not None)

    def keys(self) -> KeySet | None:
        """Return the keys, while they may be used."""
        keeping = self.keeping
        if keeping.keys is None:
            return None
        now = self._clock.steady()
        if now > keeping.usable_until:
            keeping.keys, keeping.raw = None, b""
            return None
        if now > keeping.fetched + self.settings.jwks_cache_sec:
            keeping.counts.stale_keys.value += 1
        return keeping.keys

    async def first_keys(self) -> KeySet | None:
        """Return the keys; where there are none yet, wait for the attempt to fetch them that is due or under way."""
        keys = self.keys()
        if keys is None and await self._attempt():
            keys = self.keys()
        return keys

    async def first_endpoints(self) -> Endpoints | None:
        """Return the endpoints; where they are not known yet, wait for the attempt to find them likewise."""
        if self.keeping.endpoints is None:
            await self._attempt()
        return self.keeping.endpoints

    async def _attempt(self) -> bool:
        return (self._turning or self._clock.steady() >= self._due()) and await self._wait(self._turned)

    async def fresh_keys(self) -> KeySet | Literal["cooldown", "failed"]:
        """Return a key set fetched now, because a token names a key that is not in the one we have.

        ``cooldown``: somebody was here for the same reason a moment ago. ``failed``: the provider gave none.
        """
        keeping, now = self.keeping, self._clock.steady()
        if self.is_cooling:
            return "cooldown"
        if self._asked is None:
            keeping.next_miss = now + self.settings.jwks_cooldown_sec
            self._asked = anyio.Event()
            self._wanted.set()
        before = keeping.fetches
        if not await self._wait(self._asked) or keeping.fetches == before:
            return "failed"
        return self.keys() or "failed"

    @property
    def is_cooling(self) -> bool:
        """Whether an unknown key is answered at once, without asking."""
        return self._asked is None and self._clock.steady() < self.keeping.next_miss

    @property
    def cooldown(self) -> float:
        """Seconds until an unknown key may make us fetch again."""
        return max(0.0, self.keeping.next_miss - self._clock.steady())

    async def _wait(self, event: anyio.Event) -> bool:
        """Wait for the turn that sets *event*; tell whether it did so in time."""
        if self._waiting >= MAX_WAITING:
            return False
        self._waiting += 1
        try:
            with anyio.move_on_after(self.settings.jwks_refresh_timeout_sec + DISCOVERY_TIME):
                await event.wait()
                return True
        finally:
            self._waiting -= 1
        return False

    # --- the task -------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep it fresh until cancelled."""
        while True:
            self._wanted = anyio.Event()
            try:
                delay = await self.turn()
            except Exception:  # noqa: BLE001  # a fault of ours must not keep keys from being fetched ever again
                self._log.exception("issuer %s: keys and endpoints could not be looked after; trying again", self.name)
                delay = float(self.settings.discovery_retry_sec)
            with anyio.move_on_after(delay):
                await self._wanted.wait()

    async def turn(self) -> float:
        """Do what is due; return in how many seconds the next thing is."""
        asked, keeping, self._turning = self._asked, self.keeping, True
        try:
            if self.settings.discovery and self._clock.steady() >= keeping.next_discovery:
                await self._discover()
            url = keeping.endpoints.jwks_uri if self.needs_keys and keeping.endpoints is not None else ""
            if url and (asked is not None or self._clock.steady() >= keeping.next_keys):
                await self._fetch_keys(url)
        finally:
            self._turning = False
            if asked is not None:
                self._asked = None
                asked.set()
            turned, self._turned = self._turned, anyio.Event()
            turned.set()
        return max(0.0, self._due() - self._clock.steady())

    def _due(self) -> float:
        keeping = self.keeping
        due = keeping.next_discovery if self.settings.discovery else _NEVER
        if self.needs_keys and keeping.endpoints is not None and keeping.endpoints.jwks_uri:
            due = min(due, keeping.next_keys)
        return due

    async def _discover(self) -> None:
        keeping, settings = self.keeping, self.settings
        url = f"{settings.issuer_url.removesuffix('/')}/.well-known/openid-configuration"
        keeping.next_discovery = self._clock.steady() + settings.discovery_retry_sec
        try:
            body = await self._get(url, "application/json", DISCOVERY_TIME, MAX_DOCUMENT_SIZE)
            endpoints = read_discovery(
                body, settings.issuer_url, wants_introspection=self._introspects, wants_keys=self.needs_keys
            )
        except (CallFailed, Malformed) as error:
            self._warn("discovery", url, error)
            return
        if keeping.endpoints is not None and keeping.endpoints.jwks_uri != endpoints.jwks_uri:
            keeping.next_keys = -_NEVER
        keeping.endpoints, keeping.discovery_epoch = endpoints, int(self._clock.wall())
        keeping.next_discovery = self._clock.steady() + settings.discovery_cache_sec

    async def _fetch_keys(self, url: str) -> None:
        keeping, settings = self.keeping, self.settings
        retry = min(settings.discovery_retry_sec, settings.jwks_cache_sec)
        keeping.next_keys = self._clock.steady() + retry
        try:
            accept = "application/json, application/jwk-set+json"
            body = await self._get(url, accept, settings.jwks_refresh_timeout_sec, MAX_KEY_SET_SIZE)
            keys = keeping.keys if keeping.keys is not None and body == keeping.raw else read_key_set(body)
        except CallFailed as error:
            keeping.counts.network_error.value += 1
            self._warn("fetching keys", url, error)
            return
        except Malformed as error:
            keeping.counts.parse_error.value += 1
            self._warn("fetching keys", url, error)
            return
        if keys is not keeping.keys:
            for reason in keys.skipped:
                self._log.warning("issuer %s: a key of %s is not used: %s", self.name, url, reason)
            self._log.info("issuer %s: %d keys from %s", self.name, len(keys), url)
        keeping.keys, keeping.raw = keys, body
        keeping.fetched, keeping.keys_epoch = self._clock.steady(), int(self._clock.wall())
        keeping.usable_until = keeping.fetched + settings.jwks_cache_sec + settings.jwks_max_stale_sec
        keeping.next_keys = keeping.fetched + settings.jwks_cache_sec * _AHEAD
        keeping.fetches += 1
        keeping.counts.refresh_ok.value += 1

    async def _get(self, url: str, accept: str, timeout: float, most: int) -> bytes:  # noqa: ASYNC109  # handed on to the call
        answer = await self._caller.call(
            "GET", url, headers=(("accept", accept), USER_AGENT), timeout=timeout, most=most
        )
        if answer.status != 200:
            raise Malformed(f"status {answer.status}")
        return answer.body

    def _warn(self, what: str, url: str, error: Exception) -> None:
        """Log a failure, not more than once in the time that keys are good for (behaviour 16.6)."""
        now = self._clock.steady()
        if now >= self._warned:
            self._warned = now + self.settings.jwks_cache_sec
            self._log.warning("issuer %s: %s from %s failed: %s", self.name, what, url, error)
