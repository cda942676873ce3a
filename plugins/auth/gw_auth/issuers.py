"""Issuers whose tokens are verified here: RFC 7519 and RFC 9068, with the keys that the provider publishes.

A token that was verified is remembered under its digest, until it ends or the key set changes. What a policy thinks of
it is asked on every request, and is not here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final, Protocol

from gw import Identity
from gw_auth.keys import Key, KeySet
from gw_auth.providers import Clock, Provider
from gw_auth.settings import Issuer
from gw_auth.spans import Check
from gw_auth.tokens import (
    BadClaims,
    Token,
    audiences_of,
    bound_to,
    check_claims,
    check_issuer,
    check_times,
    scopes_of,
    shown,
)
from gw_auth.verdicts import Denied, Recognised, Undetermined, Verdict

__all__ = ["JwtIssuer", "Memory", "TokenIssuer", "invalid", "recognised"]

_NOT_READY: Final = 1.0
"""Behaviour 16.4: `Retry-After` of a JWT that cannot be judged."""


class TokenIssuer(Protocol):
    """What a policy's bearer tokens are judged by."""

    name: str
    url: str
    audiences: frozenset[str]
    required_claims: tuple[str, ...]
    provider: Provider

    def remembered(self, digest: bytes) -> Recognised | None:
        """Return who it was, if the token was good before and still is. Never waits."""

    async def recognise(self, check: Check, text: str, digest: bytes, token: Token | None) -> Verdict:
        """Find out about the token *text*; *token* is the same taken apart, where that is possible.

        *check* begins where that means to wait for the provider.
        """


def invalid(reason: str, text: str, detail: str, issuer: str, cache: str = "") -> Denied:
    """Return the refusal of a token: *text* for the client, *detail* for operators."""
    return Denied(reason, detail, text, issuer=issuer, cache=cache)


def recognised(source: Any, claims: dict[str, Any], method: str, keys: object = None) -> Recognised:
    """Return who *claims*, which were checked, are about. Raises `BadClaims` where it cannot be told what they are bound to."""
    scopes = scopes_of(claims)
    issuer = claims.get("iss") or source.name
    identity = Identity(claims.get("sub", ""), issuer, frozenset(scopes), MappingProxyType(claims), method)
    until = claims["exp"] + source.leeway if "exp" in claims else float("inf")
    bound = bound_to(claims) if source.provider.settings.certificate_binding else ""
    return Recognised(identity, scopes, audiences_of(claims), source, bound, until, keys)


class Memory(dict[bytes, Recognised]):
    """Verified tokens by digest: the oldest goes when there are *most*. Outlives a reload that keeps the issuer's rules."""

    def keep(self, digest: bytes, found: Recognised, most: int) -> None:
        if most < 1:
            return
        while len(self) >= most:
            del self[next(iter(self))]
        self[digest] = found


class JwtIssuer:
    """One issuer in mode ``jwt``."""

    def __init__(self, provider: Provider, memory: Memory, clock: Clock) -> None:
        settings: Issuer = provider.settings
        self.name, self.url = provider.name, settings.issuer_url
        self.provider, self.memory, self._clock = provider, memory, clock
        self._keeping = provider.keeping
        self.audiences, self.required_claims = frozenset(settings.audiences), settings.required_claims
        self.leeway = settings.leeway_sec
        self._algorithms = frozenset(settings.algorithms)
        self._types = frozenset(map(_media_type, settings.token_types))
        self._most = settings.remembered_tokens

    def remembered(self, digest: bytes) -> Recognised | None:
        found = self.memory.get(digest)
        if found is None:
            return None
        keeping, clock = self._keeping, self._clock
        if found.keys is keeping.keys and clock.wall() < found.until and clock.steady() <= keeping.usable_until:
            found.source = self  # that of the newest configuration
            return found
        del self.memory[digest]
        return None

    async def recognise(self, check: Check, text: str, digest: bytes, token: Token | None) -> Verdict:
        if token is None:
            detail = "malformed token: it is no JSON Web Token"
            return Denied("malformed_token", detail, "malformed token", "invalid_request", issuer=self.name)
        wrong = self._wrong_header(token)
        if wrong is not None:
            return wrong
        algorithm, kid = token.header["alg"], token.header.get("kid")
        keys = self.provider.keys()
        if keys is None:
            check.begin()
            keys = await self.provider.first_keys()
        if keys is None:
            return Undetermined(
                _NOT_READY, "cache_miss_no_issuer", f"issuer {self.name} is not ready: it has no keys yet", self.name
            )
        if kid is None and len(keys) > 1:
            return self._invalid("jwt_verify_failed", "missing kid header")
        candidates = keys.named(kid)
        if not candidates:
            if not self.provider.is_cooling:
                check.begin()
            fresh = await self._unknown(kid)
            if not isinstance(fresh, KeySet):
                return fresh
            keys, candidates = fresh, fresh.named(kid)
        return self._verified(token, digest, keys, candidates, algorithm)

    def _wrong_header(self, token: Token) -> Denied | None:
        """Judge what can be judged without a key, in the order of behaviour 16.3."""
        if "exp" not in token.claims:
            return self._invalid("jwt_verify_failed", "missing exp claim")
        header = token.header
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str):
            return self._invalid("jwt_verify_failed", "missing alg header")
        if algorithm.lower() == "none":
            return self._invalid("jwt_verify_failed", "alg:none is not allowed")
        if algorithm not in self._algorithms:
            wanted = ", ".join(sorted(self._algorithms))
            return self._invalid(
                "jwt_verify_failed",
                "algorithm not allowed",
                f"token has {shown(algorithm)}, issuer wants one of {wanted}",
            )
        if "crit" in header or "b64" in header:  # RFC 7515 section 4.1.11: we understand no extension
            return self._invalid("jwt_verify_failed", "unsupported crit header")
        if kid is not None and not isinstance(kid, str):
            return self._invalid("malformed_token", "malformed kid header")
        if self._types:
            kind = header.get("typ")
            if not isinstance(kind, str) or _media_type(kind) not in self._types:
                wanted = ", ".join(sorted(self._types))
                return self._invalid(
                    "jwt_verify_failed",
                    "token type not accepted",
                    f"token has {shown(kind)}, issuer wants one of {wanted}",
                )
        return None

    async def _unknown(self, kid: str | None) -> KeySet | Denied | Undetermined:
        """Fetch the keys for one that we do not have; return the set, if it has it."""
        fresh = await self.provider.fresh_keys()
        if isinstance(fresh, KeySet):
            if fresh.named(kid):
                return fresh
            return self._invalid("signature_invalid", "unknown key", f"the provider has no key {shown(kid)!r}")
        if fresh == "cooldown":
            detail = f"issuer {self.name}: key {shown(kid)!r} is unknown, and the keys were fetched a moment ago"
            return Undetermined(self.provider.cooldown, "other", detail, self.name, firm=True)
        return Undetermined(
            _NOT_READY,
            "other",
            f"issuer {self.name}: key {shown(kid)!r} is unknown, and keys cannot be fetched",
            self.name,
        )

    def _verified(
        self, token: Token, digest: bytes, keys: KeySet, candidates: tuple[Key, ...], algorithm: str
    ) -> Verdict:
        if not any(key.verify(algorithm, token.signed, token.signature) for key in candidates):
            return self._invalid("signature_invalid", "signature invalid")
        claims = token.claims
        try:
            check_claims(claims)
            check_issuer(claims.get("iss"), self.url)
            check_times(claims, self._clock.wall(), self.leeway)
            found = recognised(self, claims, "jwt", keys)
        except BadClaims as error:
            return self._invalid(error.reason, str(error), error.detail)
        self.memory.keep(digest, found, self._most)
        return found

    def _invalid(self, reason: str, text: str, detail: str = "") -> Denied:
        return invalid(reason, text, f"{text}: {detail}" if detail and detail != text else text, self.name)


def _media_type(text: str) -> str:
    """Return a `typ` for comparing: RFC 7515 section 4.1.9 lets ``application/`` be left out."""
    return text.lower().removeprefix("application/")
