"""Ways in: each looks for its own credentials in a request and says whose they are. Policies combine them.

A way that finds nothing of its kind says so, so that another one may be tried. What needs a thread, a call to somebody
else or a table of its own is in a module of its own: `gw_auth.passwords`, `gw_auth.asking`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Final, Protocol

from gw import Exchange, Identity
from gw_auth.introspection import IntrospectedIssuer
from gw_auth.issuers import JwtIssuer
from gw_auth.limits import MAX_CREDENTIALS_SIZE, MAX_TOKEN_SIZE
from gw_auth.settings import ApiKeys
from gw_auth.spans import Check
from gw_auth.tokens import Malformed, Token, parse
from gw_auth.verdicts import Denied, Judge, Recognised, Undetermined, Verdict

__all__ = ["All", "Any", "Bearer", "Keyed", "Way", "missing"]


class Way(Protocol):
    """How a client may show who it is."""

    @property
    def schemes(self) -> tuple[str, ...]:
        """What it is challenged with when it sends nothing."""

    async def recognise(self, ex: Exchange, judge: Judge) -> Verdict:
        """Return who is asking, as far as *judge* accepts the token; or why not."""


def missing(what: str, issuer: str = "") -> Denied:
    """Return the verdict on a request that brings nothing of the kind."""
    return Denied(
        "missing_token", f"no {what} was sent", "authorization required", "invalid_request", issuer=issuer, missing=True
    )


# --- bearer tokens ---------------------------------------------------------------------

_TOKEN68: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*", re.ASCII)
_TOO_LARGE: Final = Denied(
    "malformed_token", f"token has more than {MAX_TOKEN_SIZE} bytes", "token too large", "invalid_request"
)
_MALFORMED: Final = Denied(
    "malformed_token", "malformed token: it has characters that no token has", "malformed token", "invalid_request"
)
_BEARER: Final = frozenset({b"Bearer ", b"bearer "})
"""How nearly everybody writes it; other spellings take the longer way."""
_NOTHING: Final = missing("bearer token")


class Bearer:
    """A token in ``Authorization`` (RFC 6750 section 2.1), of one of several issuers."""

    schemes = ("Bearer",)

    def __init__(self, issuers: Sequence[JwtIssuer | IntrospectedIssuer]) -> None:
        self._first = issuers[0]
        self._verifying = tuple(each for each in issuers if isinstance(each, JwtIssuer))
        self._asking = tuple(each for each in issuers if isinstance(each, IntrospectedIssuer))
        self._by_url: dict[str, JwtIssuer | IntrospectedIssuer] = {}
        for each in issuers:
            self._by_url.setdefault(each.url, each)

    def quick(self, ex: Exchange) -> Recognised | None:
        """Return who brings this token, where that is known from before. Never waits."""
        value = ex.request.headers.find(b"authorization")
        if value is None or value[:7] not in _BEARER:
            return None
        token = value[7:].strip()
        if self._verifying:
            digest = sha256(token).digest()
            for verifying in self._verifying:
                found = verifying.remembered(digest)
                if found is not None:
                    return found
        if len(self._asking) == 1:
            return self._asking[0].at_hand(token)
        return None

    async def recognise(self, ex: Exchange, judge: Judge) -> Verdict:
        text = _bearer(ex)
        if isinstance(text, Denied):
            return text
        if _TOKEN68.fullmatch(text) is None:
            return _MALFORMED
        token: Token | None
        try:
            token = parse(text)
        except Malformed:
            token = None
        iss = None if token is None else token.claims.get("iss")
        candidates: Iterable[JwtIssuer | IntrospectedIssuer]
        if isinstance(iss, str):
            issuer = self._by_url.get(iss)
            if issuer is None:
                detail = f"issuer not accepted: token has {iss[:200]!r}"
                return Denied("iss_mismatch", detail, "issuer not accepted")
            candidates = (issuer,)
        elif self._asking:
            candidates = sorted(self._asking, key=lambda each: not each.provider.ready)
        else:
            candidates = (self._first,)
        digest = sha256(text.encode("latin-1")).digest()
        verdicts = []
        for each in candidates:
            check = Check(ex, each.name)
            found = await each.recognise(check, text, digest, token)
            if isinstance(found, Recognised):
                refused = judge.unfit(ex, found)
                check.end(refused or judge.lacks_scope(found) or found)
                return refused or found
            check.end(found)
            verdicts.append(found)
        # Somebody who did not answer may have known it; otherwise what the first one said stands.
        return next((each for each in verdicts if isinstance(each, Undetermined)), verdicts[0])


def _bearer(ex: Exchange) -> str | Denied:
    value = ex.request.headers.get("authorization")
    if value is None or value[:7].lower() != "bearer ":
        return _NOTHING
    text = value[7:].strip()
    if not text:
        return _NOTHING
    return text if len(text) <= MAX_TOKEN_SIZE else _TOO_LARGE


# --- keys ----------------------------------------------------------------------------------


class Keyed:
    """A key in a header of its own, known by its digest."""

    schemes = ("ApiKey",)

    def __init__(self, name: str, settings: ApiKeys) -> None:
        self._name, self._header = name, settings.header
        self._keys: Mapping[bytes, tuple[float, Recognised]] = {
            bytes.fromhex(key.sha256.get_secret_value()): (
                float("inf") if key.expires is None else key.expires.timestamp(),
                Recognised(Identity(key.name, name, frozenset(key.scopes), {"sub": key.name}, "api_key"), key.scopes),
            )
            for key in settings.keys
        }

    async def recognise(self, ex: Exchange, judge: Judge) -> Verdict:
        values = ex.request.headers.get_all(self._header)
        if not values:
            return missing(f"key in {self._header}")
        ex.request.headers.discard(self._header)  # it is for us, not for the upstream
        if len(values) > 1 or len(values[0]) > MAX_CREDENTIALS_SIZE:
            return Denied(
                "malformed_token", f"{self._header} has more than one key, or a very long one", scheme="ApiKey"
            )
        expires, found = self._keys.get(sha256(values[0].encode("latin-1")).digest(), (0.0, None))
        if found is None:
            return Denied("signature_invalid", f"the key is none of api_keys.{self._name}", scheme="ApiKey")
        if time.time() >= expires:
            return Denied("expired_token", f"the key of {found.identity.subject} has expired", scheme="ApiKey")
        return found


# --- several of them -------------------------------------------------------------------------


class Any:
    """The first of several ways that leads in. *final* where nothing else is asked for, so that scopes can decide too."""

    def __init__(self, ways: Sequence[Way], *, final: bool) -> None:
        self._ways, self._final = tuple(ways), final
        self.schemes = tuple(dict.fromkeys(scheme for way in ways for scheme in way.schemes))

    async def recognise(self, ex: Exchange, judge: Judge) -> Verdict:
        refused: list[Denied | Undetermined] = []
        for way in self._ways:
            found = await way.recognise(ex, judge)
            if not isinstance(found, Recognised):
                refused.append(found)
            elif self._final and (lacks := judge.lacks_scope(found)) is not None:
                refused.append(lacks)
            else:
                return found
        unknown = [each for each in refused if isinstance(each, Undetermined)]
        if unknown:
            return next((each for each in unknown if each.firm), unknown[0])
        return next((each for each in refused if isinstance(each, Denied) and not each.missing), refused[0])


class All:
    """Every one of several ways. Who is asking is whom the first one names; scopes are those of all."""

    def __init__(self, ways: Sequence[Way]) -> None:
        self._ways = tuple(ways)
        self.schemes = tuple(dict.fromkeys(scheme for way in ways for scheme in way.schemes))

    async def recognise(self, ex: Exchange, judge: Judge) -> Verdict:
        found: list[Recognised] = []
        for way in self._ways:
            verdict = await way.recognise(ex, judge)
            if not isinstance(verdict, Recognised):
                return verdict
            found.append(verdict)
        first = found[0]
        scopes = tuple(dict.fromkeys(scope for each in found for scope in each.scopes))
        method = "+".join(each.identity.method for each in found)
        identity = replace(first.identity, scopes=frozenset(scopes), method=method)
        extra = tuple(line for each in found for line in each.extra)
        return Recognised(identity, scopes, first.audiences, first.source, cache=first.cache, extra=extra)
