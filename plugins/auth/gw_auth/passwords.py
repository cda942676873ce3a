"""HTTP Basic (RFC 7617) against a list of bcrypt hashes, as htpasswd writes it.

A check takes tens of milliseconds by design, so it runs in a thread, a few at a time, and a password that was right is
remembered for a while under a keyed digest. A user who does not exist costs as much as one who does.
"""

from __future__ import annotations

import hmac
import re
import secrets
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Final

import anyio
import bcrypt
from anyio.to_thread import run_sync

from gw import Exchange, Identity
from gw_auth.flights import Flights
from gw_auth.limits import (
    MAX_CREDENTIALS_SIZE,
    MAX_PASSWORD_CHECKS,
    MAX_PASSWORD_SIZE,
    MAX_PASSWORDS_WAITING,
    MAX_REMEMBERED_PASSWORDS,
    PASSWORD_MEMORY_TIME,
)
from gw_auth.providers import Clock
from gw_auth.settings import Basic
from gw_auth.verdicts import Denied, Judge, Recognised, Undetermined, Verdict
from gw_auth.ways import missing

__all__ = ["Passwords", "read_htpasswd"]

_LINE: Final = re.compile(r"([^:\s][^:]*):(\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53})")
_MAX_COST: Final = 14
"""2 to this power rounds: a second or so. Above it, a few logins keep every thread busy."""


def read_htpasswd(text: str) -> dict[str, bytes]:
    """Return user to hash; raise `ValueError` with the line that is none of `user:$2y$...`, and without its hash."""
    return dict(_users(text))


def _users(text: str) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"line {number} is not a user and a bcrypt hash; write it with htpasswd -B")
        user, hashed = found.groups()
        if not 4 <= int(hashed[4:6]) <= _MAX_COST:
            raise ValueError(f"line {number} has a bcrypt cost that is not between 4 and {_MAX_COST}")
        if user in seen:
            raise ValueError(f"line {number} has a user who is there already")
        seen.add(user)
        yield user, hashed.encode("ascii")


class Passwords:
    """A user and a password in ``Authorization``."""

    schemes = ("Basic",)

    def __init__(self, name: str, settings: Basic, clock: Clock) -> None:
        self._name, self._clock = name, clock
        self._users: Mapping[str, bytes] = read_htpasswd(settings.users.get_secret_value())
        cost = max((int(hashed[4:6]) for hashed in self._users.values()), default=4)
        self._nobody = bcrypt.hashpw(secrets.token_bytes(16), bcrypt.gensalt(cost))
        self._scopes = settings.scopes
        self._right: dict[bytes, float] = {}
        """Keyed digests of what was right lately, and until when."""
        self._key = secrets.token_bytes(32)
        self._checks: Flights[bool] = Flights(MAX_PASSWORDS_WAITING)
        self._threads: anyio.CapacityLimiter | None = None

    async def recognise(self, ex: Exchange, judge: Judge) -> Verdict:
        value = ex.request.headers.get("authorization")
        if value is None or value[:6].lower() != "basic ":
            return missing("user and password")
        pair = _pair(value[6:].strip())
        if pair is None:
            return Denied("malformed_token", "malformed user and password", scheme="Basic")
        user, password = pair
        digest = hmac.digest(self._key, value.encode("latin-1"), "sha256")
        now = self._clock.steady()
        if now >= self._right.get(digest, 0.0):
            right = await self._checks.share(digest, lambda: self._check(user, password))
            if right is None:
                return Undetermined(1.0, "other", f"too many passwords are being checked for basic.{self._name}")
            if not right:
                return Denied("signature_invalid", f"user or password is none of basic.{self._name}", scheme="Basic")
            while len(self._right) >= MAX_REMEMBERED_PASSWORDS:
                del self._right[next(iter(self._right))]
            self._right[digest] = self._clock.steady() + PASSWORD_MEMORY_TIME
        identity = Identity(user, self._name, frozenset(self._scopes), {"sub": user}, "basic")
        return Recognised(identity, self._scopes)

    async def _check(self, user: str, password: bytes) -> bool:
        if self._threads is None:  # it belongs to the loop it is used on
            self._threads = anyio.CapacityLimiter(MAX_PASSWORD_CHECKS)
        hashed = self._users.get(user)
        fits = await run_sync(bcrypt.checkpw, password, hashed or self._nobody, limiter=self._threads)
        return fits and hashed is not None


def _pair(text: str) -> tuple[str, bytes] | None:
    if len(text) > MAX_CREDENTIALS_SIZE:
        return None
    try:
        user, colon, password = b64decode(text, validate=True).partition(b":")
        name = user.decode("utf-8")
    except ValueError:
        return None
    if not colon or not name or not name.isprintable() or b"\0" in password or len(password) > MAX_PASSWORD_SIZE:
        return None
    return name, password
