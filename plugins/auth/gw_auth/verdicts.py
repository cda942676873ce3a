"""What can be said about who is asking, and the answers that clients get for it (behaviour 16.4, RFC 6750 section 3).

A verdict knows two texts: what the client may be told, and the detail for operators, which never leaves the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Final, Protocol

from gw import Exchange, Headers, Identity, Reply
from gw_auth.limits import MAX_RETRY_AFTER

__all__ = ["Denied", "Judge", "Recognised", "Source", "Undetermined", "Verdict", "challenge", "quoted", "reply_to"]


class Judge(Protocol):
    """A policy, as far as ways in need it."""

    def unfit(self, ex: Exchange, found: Recognised) -> Denied | None: ...
    def lacks_scope(self, found: Recognised) -> Denied | None: ...


class Source(Protocol):
    """What a token of a provider must have, whichever policy lets it in."""

    name: str
    audiences: frozenset[str]
    required_claims: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Recognised:
    """Somebody who is known. Remembered and shared by requests, so what is made of it is made once."""

    identity: Identity
    scopes: tuple[str, ...] = ()
    """In the order that they came in."""
    audiences: frozenset[str] = frozenset()
    source: Source | None = None
    """The issuer that spoke for a token; `None` for other credentials."""
    bound: str = ""
    """SHA-256 of the only certificate with which it counts, in hexadecimal (RFC 8705); empty for any or none."""
    until: float = float("inf")
    """`time.time` from which on it counts no more, leeway included."""
    keys: object = None
    """The key set that the signature was checked with."""
    cache: str = ""
    """For `X-Auth-Cache`: hit, miss, stale or uncached."""
    extra: tuple[tuple[str, str], ...] = ()
    """More headers for the upstream."""
    lines: Headers | None = field(default=None, repr=False)
    """The identity headers, once they were made, ..."""
    lines_for: object = None
    """... and what they were made by."""

    @property
    def issuer_name(self) -> str:
        return "" if self.source is None else self.source.name


@dataclass(frozen=True, slots=True)
class Denied:
    """Known not to be let in."""

    reason: str
    """A word of behaviour 16.8, for metrics and the log."""
    detail: str
    """Why, for operators."""
    text: str = ""
    """Why, for the client: `error_description`."""
    error: str = "invalid_token"
    """A code of RFC 6750 section 3.1."""
    status: int = 401
    issuer: str = ""
    scheme: str = "Bearer"
    """The one that it is a challenge of; empty for none."""
    missing: bool = False
    """The request brought nothing to judge."""
    cache: str = ""
    answer: Reply | None = None
    """What somebody else wants the client to be told."""


@dataclass(frozen=True, slots=True)
class Undetermined:
    """Nobody can say."""

    retry_after: float
    """Seconds."""
    reason: str
    detail: str
    issuer: str = ""
    firm: bool = False
    """`on_undetermined: allow` does not let it pass: what is unknown is a key, which anybody can make up."""
    cache: str = ""


Verdict = Recognised | Denied | Undetermined

_NO_STORE: Final = (("cache-control", "no-store"), ("pragma", "no-cache"))
_PLAIN: Final = ("content-type", "text/plain")
_BODIES: Final[Mapping[int, bytes]] = {401: b"Unauthorized", 403: b"Forbidden", 503: b"Service Unavailable"}


def quoted(text: str) -> str:
    """Return *text* as a quoted string: quotes and backslashes escaped, what is not printable Latin-1 left out."""
    kept = "".join(c for c in text if c.isprintable() and c < "\u0100")
    return '"' + kept.replace("\\", "\\\\").replace('"', '\\"') + '"'


def challenge(scheme: str, realm: str, **parameters: str) -> str:
    """Return one value of `WWW-Authenticate`."""
    pairs: dict[str, str] = {"realm": realm, **parameters}
    return f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in pairs.items())


def reply_to(verdict: Denied | Undetermined, realm: str, scopes: str, bare: tuple[str, ...]) -> Reply:
    """Return the answer that a verdict is, byte for byte as behaviour 16.4 has it.

    *scopes* are those that the policy requires. Where nothing was sent that could be judged, *bare* are the challenges,
    without an error code (RFC 6750 section 3.1); where there are none to make, as with certificates alone, it is a 403.
    """
    if isinstance(verdict, Undetermined):
        seconds = ceil(min(MAX_RETRY_AFTER, max(1.0, verdict.retry_after)))
        return Reply(503, _BODIES[503], (_PLAIN, ("retry-after", str(seconds)), *_NO_STORE), reason="auth.undetermined")
    if verdict.answer is not None:
        return verdict.answer
    challenges = bare
    if not verdict.missing:
        challenges = ()
        if verdict.scheme == "Bearer":
            more = {"scope": scopes} if verdict.error == "insufficient_scope" else {}
            challenges = (challenge("Bearer", realm, error=verdict.error, error_description=verdict.text, **more),)
        elif verdict.scheme:
            challenges = (challenge(verdict.scheme, realm),)
    status = verdict.status if bare or not verdict.missing else 403
    headers = (_PLAIN, *(("www-authenticate", each) for each in challenges), *_NO_STORE)
    return Reply(status, _BODIES[status], headers, reason=f"auth.{verdict.reason}")
