"""Issuers that are asked about each token (RFC 7662), and what is remembered of their answers (behaviour 16.7).

However many requests bring one token, one call asks about it. A provider that fails again and again is left alone for a
while; tokens that were active a moment ago then still count, as long as `stale_grace_sec` says.
"""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b, sha256
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import quote_plus, urlencode

from gw import Answer as HttpAnswer, Caller, CallFailed
from gw_auth.flights import Flights
from gw_auth.issuers import invalid, recognised
from gw_auth.keys import KeySet
from gw_auth.limits import (
    BREAKER_FAILURES,
    BREAKER_MAX_TIME,
    BREAKER_TIME,
    MAX_DOCUMENT_SIZE,
    MAX_INTROSPECTIONS,
    MAX_KEPT_ANSWER,
)
from gw_auth.providers import USER_AGENT, Clock, Provider
from gw_auth.settings import Introspection
from gw_auth.spans import Check
from gw_auth.tokens import BadClaims, Malformed, Token, check_claims, check_issuer, check_times, loads, parse
from gw_auth.verdicts import Recognised, Undetermined, Verdict

__all__ = ["Answers", "IntrospectedIssuer"]

_SIGNED: Final = "application/token-introspection+jwt"

Outcome: TypeAlias = "dict[str, Any] | Literal['inactive'] | None"
"""The claims of an active token, ``inactive``, or nothing that says either."""

Answer: TypeAlias = "tuple[Outcome, bool]"
"""An outcome, and whether it is small enough to be kept."""


@dataclass(slots=True, eq=False)
class Kept:
    """What is remembered of one token."""

    found: Recognised | None
    """`None`: it was not active."""
    until: float
    """By the steady clock; a while after it, a positive one is stale but perhaps still of use."""


@dataclass(slots=True, eq=False)
class Answers:
    """What is remembered of one provider's answers. Outlives a reload that does not change whom it is about."""

    kept: dict[bytes, Kept] = field(default_factory=dict)
    """By keyed digest, least recently used first."""
    failures: int = 0
    """One after the other."""
    closed_until: float = 0.0
    """The provider is left alone until then."""
    probing: bool = False


class IntrospectedIssuer:
    """One issuer in mode ``introspection``."""

    def __init__(
        self,
        provider: Provider,
        caller: Caller,
        answers: Answers,
        secret: str | None,
        digest_key: bytes,
        clock: Clock,
        log: logging.Logger,
    ) -> None:
        assert provider.settings.introspection is not None
        settings = provider.settings
        self.name, self.url, self.provider = provider.name, settings.issuer_url, provider
        self.audiences, self.required_claims = frozenset(settings.audiences), settings.required_claims
        self.leeway = settings.leeway_sec
        self.answers = answers
        self._own: Introspection = provider.settings.introspection
        self._algorithms = frozenset(settings.algorithms)
        self._caller, self._secret, self._clock, self._log = caller, secret, clock, log
        self._keyed = blake2b(key=sha256(digest_key).digest(), digest_size=16)  # which takes no key over 64 bytes
        self._flights: Flights[Answer] = Flights(MAX_INTROSPECTIONS)
        self._counts = provider.keeping.counts
        self._warned = 0.0

    def _key(self, token: bytes) -> bytes:
        keyed = self._keyed.copy()  # at half of what HMAC-SHA256 costs (RFC 7693 section 2.9)
        keyed.update(token)
        return keyed.digest()

    def remembered(self, digest: bytes) -> Recognised | None:
        """Never: its digests have a key of their own; see `at_hand`."""

    def at_hand(self, token: bytes) -> Recognised | None:
        """Return who it is, where that was answered before and the answer is fresh."""
        key = self._key(token)
        kept = self.answers.kept.get(key)
        if kept is None or kept.found is None or self._clock.steady() >= kept.until:
            return None
        self._touch(key, kept)
        self._counts.cache_hit.value += 1
        kept.found.source, kept.found.cache = self, "hit"
        return kept.found

    def _touch(self, key: bytes, kept: Kept) -> None:
        del self.answers.kept[key]
        self.answers.kept[key] = kept

    async def recognise(self, check: Check, text: str, digest: bytes, token: Token | None) -> Verdict:
        key, now = self._key(text.encode("latin-1")), self._clock.steady()
        kept = self.answers.kept.get(key)
        if kept is not None and now < kept.until:
            self._touch(key, kept)
            if kept.found is None:
                self._counts.cache_negative_hit.value += 1
                return self._inactive("negative")
            self._counts.cache_hit.value += 1
            kept.found.source, kept.found.cache = self, "hit"
            return kept.found
        self._counts.cache_miss.value += 1
        check.begin()
        outcome, small = await self._flights.share(key, partial(self._asked, text, check.headers())) or (None, True)
        if outcome is None:
            return self._stale(key) or Undetermined(
                self._patience(),
                "introspection_error",
                f"issuer {self.name} did not say whether the token is active",
                self.name,
                cache="uncached",
            )
        if outcome == "inactive":
            if self._own.negative_cache_sec:
                self._keep(key, Kept(None, self._clock.steady() + self._own.negative_cache_sec))
            else:
                self.answers.kept.pop(key, None)
            return self._inactive("miss")
        return self._active(key, outcome, small=small)

    def _patience(self) -> float:
        if not self.provider.ready or self._secret is None:
            return self.provider.settings.discovery_retry_sec
        return max(self._own.timeout_sec, self.answers.closed_until - self._clock.steady())

    def _inactive(self, cache: str) -> Verdict:
        return invalid(
            "introspection_inactive",
            "token is not active",
            f"issuer {self.name} says that the token is not active",
            self.name,
            cache=cache,
        )

    def _active(self, key: bytes, claims: dict[str, Any], *, small: bool) -> Verdict:
        try:
            check_claims(claims)
            check_issuer(claims.get("iss", self.url), self.url)
            check_times(claims, self._clock.wall(), self.leeway)
            found = recognised(self, claims, "introspection")
        except BadClaims as error:
            self.answers.kept.pop(key, None)
            return invalid(error.reason, str(error), error.detail, self.name, cache="miss")
        lasts = min(self._own.cache_sec, found.until - self.leeway - self._clock.wall())
        if lasts > 0 and small:
            found.cache = "miss"
            self._keep(key, Kept(found, self._clock.steady() + lasts))
        else:
            found.cache = "uncached"
        return found

    def _stale(self, key: bytes) -> Recognised | None:
        kept = self.answers.kept.get(key)
        if kept is None or kept.found is None or self._clock.steady() >= kept.until + self._own.stale_grace_sec:
            return None
        if self._clock.wall() >= kept.found.until:
            return None
        self._counts.stale_served.value += 1
        kept.found.source, kept.found.cache = self, "stale"
        return kept.found

    def _keep(self, key: bytes, kept: Kept) -> None:
        all_kept = self.answers.kept
        all_kept.pop(key, None)
        while len(all_kept) >= self._own.max_entries:
            del all_kept[next(iter(all_kept))]
        all_kept[key] = kept

    # --- asking ----------------------------------------------------------------------------

    async def _asked(self, text: str, trace: Iterable[tuple[str, str]]) -> Answer:
        """Ask about a token, if the provider is not being left alone."""
        answers = self.answers
        endpoints = await self.provider.first_endpoints()
        url = "" if endpoints is None else endpoints.introspection or self._own.endpoint
        if not url or self._secret is None or not self._may_ask():
            return None, True
        try:
            result = await self._ask(url, self._secret, text, trace)
            if result[0] is None:
                self._failed()
            else:
                answers.failures, answers.closed_until = 0, 0.0
                self._counts.ok.value += 1
        finally:
            answers.probing = False
        return result

    def _may_ask(self) -> bool:
        """Tell whether the provider may be asked; while it is left alone, one call at a time finds out how it is."""
        answers = self.answers
        if answers.failures < BREAKER_FAILURES:
            return True
        if answers.probing or self._clock.steady() < answers.closed_until:
            return False
        answers.probing = True
        return True

    def _failed(self) -> None:
        answers = self.answers
        answers.failures += 1
        self._counts.fail.value += 1
        beyond = answers.failures - BREAKER_FAILURES
        if beyond >= 0:
            answers.closed_until = self._clock.steady() + min(BREAKER_MAX_TIME, BREAKER_TIME * 2 ** min(beyond, 16))

    async def _ask(self, url: str, secret: str, text: str, trace: Iterable[tuple[str, str]]) -> Answer:
        own = self._own
        fields, headers = [("token", text)], [("content-type", "application/x-www-form-urlencoded"), USER_AGENT, *trace]
        headers.append(("accept", _SIGNED if own.signed else "application/json"))
        if own.auth_style == "basic":
            pair = f"{quote_plus(own.client_id)}:{quote_plus(secret)}".encode()  # RFC 6749 section 2.3.1
            headers.append(("authorization", f"Basic {b64encode(pair).decode()}"))
        else:
            fields += [("client_id", own.client_id), ("client_secret", secret)]
        try:
            answer = await self._caller.call(
                "POST",
                url,
                headers=headers,
                body=urlencode(fields).encode(),
                timeout=own.timeout_sec,
                most=MAX_DOCUMENT_SIZE,
            )
            found = await self._said(answer)
        except (CallFailed, Malformed) as error:
            self._warn(url, error)
            return None, True
        if not found["active"]:
            return "inactive", True
        return found, len(answer.body) <= MAX_KEPT_ANSWER

    async def _said(self, answer: HttpAnswer) -> dict[str, Any]:
        if answer.status != 200:
            raise Malformed(f"status {answer.status}")
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        found = await self._signed(answer.body, kind) if self._own.signed else loads(answer.body)
        if not isinstance(found, dict) or not isinstance(found.get("active"), bool):
            raise Malformed("it does not say whether the token is active")
        return found

    async def _signed(self, body: bytes, kind: str) -> Any:
        """Return what a signed answer says (RFC 9701 section 5); raise `Malformed` unless it is the provider's, and for us."""
        if kind != _SIGNED:
            raise Malformed("it is not signed")
        token = parse(body.decode("latin-1").strip())
        algorithm, typ = token.header.get("alg"), token.header.get("typ")
        if algorithm not in self._algorithms or "crit" in token.header:
            raise Malformed("it is signed with an algorithm that is not allowed")
        if not isinstance(typ, str) or typ.lower().removeprefix("application/") != "token-introspection+jwt":
            raise Malformed("its typ is not token-introspection+jwt")
        keys = await self.provider.first_keys()
        kid = token.header.get("kid")
        candidates = () if keys is None or not isinstance(kid, str | None) else keys.named(kid)
        if not candidates and isinstance(kid, str):
            fresh = await self.provider.fresh_keys()
            candidates = fresh.named(kid) if isinstance(fresh, KeySet) else ()
        if not any(key.verify(str(algorithm), token.signed, token.signature) for key in candidates):
            raise Malformed("its signature is wrong")
        claims = token.claims
        try:
            check_claims(claims)
            check_times(claims, self._clock.wall(), self.leeway)
        except BadClaims as error:
            raise Malformed(error.detail) from None
        audience = claims.get("aud")
        if claims.get("iss") != self.url or self._own.client_id not in (
            [audience] if isinstance(audience, str) else audience or ()
        ):
            raise Malformed("it is not from this issuer, or not for this client")
        return claims.get("token_introspection")

    def _warn(self, url: str, error: Exception) -> None:
        now = self._clock.steady()
        if now >= self._warned:
            self._warned = now + self._own.cache_sec
            self._log.warning("issuer %s: introspection at %s failed: %s", self.name, url, error)
