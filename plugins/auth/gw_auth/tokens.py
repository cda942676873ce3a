"""Tokens as they come: JSON Web Tokens taken apart, strictly, before anything in them is believed.

What is not exactly what RFC 7515 and RFC 7519 say is refused: padding, loose bits at the end of base64, a member that is
there twice, numbers that are none. Signatures are checked in `gw_auth.keys`, by PyJWT; whether a token that is good
is good enough is for `gw_auth.policies` to say.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from gw_auth.limits import MAX_LOGGED_VALUE

__all__ = [
    "BadClaims",
    "Malformed",
    "Token",
    "audiences_of",
    "bound_to",
    "check_claims",
    "check_issuer",
    "check_times",
    "loads",
    "parse",
    "scopes_of",
    "shown",
]

_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)\.([A-Za-z0-9_-]*)")


class Malformed(ValueError):
    """It is no JSON Web Token at all, or one that nobody may send. The message is for operators and shows nothing of it."""


class BadClaims(ValueError):
    """A token whose claims refuse it. *reason* is a word of behaviour 16.8, the message may go to the client."""

    def __init__(self, reason: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.reason, self.detail = reason, detail or message


@dataclass(frozen=True, slots=True)
class Token:
    """A token taken apart; nothing of it is verified."""

    header: dict[str, Any]
    claims: dict[str, Any]
    signed: bytes
    """What the signature is over."""
    signature: bytes


# --- strict JSON ---------------------------------------------------------------


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Malformed("a member of a JSON object is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise Malformed(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise Malformed("a number is too large")
    return number


_decode: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite).decode


def loads(data: bytes) -> Any:
    """Return the value of a JSON document; raise `Malformed` for one that another parser might read otherwise."""
    try:
        return _decode(data.decode("utf-8"))
    except Malformed:
        raise
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of thousands of digits, nested without end
        raise Malformed("not JSON") from None


# --- taking apart -----------------------------------------------------------------


def _unbase64(text: str) -> bytes:
    if len(text) % 4 == 1:
        raise Malformed("not base64url")
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if urlsafe_b64encode(data).rstrip(b"=") != text.encode("ascii"):
        raise Malformed("base64url with bits left over")
    return data


def parse(text: str) -> Token:
    """Take a compact JWS apart (RFC 7515 section 3.1); raise `Malformed` where it is none with a set of claims in it."""
    found = _COMPACT.fullmatch(text)
    if found is None:
        raise Malformed("not three parts of base64url")
    head, body, signature = found.groups()
    header, claims = loads(_unbase64(head)), loads(_unbase64(body))
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise Malformed("header and claims are not both JSON objects")
    return Token(header, claims, text[: found.end(2)].encode("ascii"), _unbase64(signature))


# --- claims ---------------------------------------------------------------------------

_TEXTS: Final = ("iss", "sub", "jti")
_DATES: Final = ("exp", "nbf", "iat")
_LISTS: Final = ("aud", "scope", "scp", "scopes")


def check_claims(claims: Mapping[str, Any]) -> None:
    """Raise `BadClaims` where a registered claim has a type that RFC 7519 section 4.1 does not give it."""
    for name in _TEXTS:
        if name in claims and not isinstance(claims[name], str):
            raise BadClaims("malformed_token", f"malformed {name} claim")
    for name in _DATES:
        value = claims.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -(2**53) < value < 2**53:
            raise BadClaims("malformed_token", f"malformed {name} claim")
    for name in _LISTS:
        value = claims.get(name, "")
        is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not is_list and not isinstance(value, str):
            raise BadClaims("malformed_token", f"malformed {name} claim")


def check_issuer(issuer: object, wanted: str) -> None:
    """Raise `BadClaims` unless *issuer* is the one that is *wanted*, character by character."""
    if issuer != wanted:
        raise BadClaims("iss_mismatch", "issuer not accepted", f"it has issuer {shown(issuer)!r}, not {wanted!r}")


def check_times(claims: Mapping[str, Any], now: float, leeway: float) -> None:
    """Raise `BadClaims` unless *claims*, of the right types, hold at *now*; clocks may differ by *leeway* seconds."""
    if "exp" in claims and now >= claims["exp"] + leeway:
        raise BadClaims("expired_token", "token expired", f"token expired {now - claims['exp']:.0f} s ago")
    if "nbf" in claims and now < claims["nbf"] - leeway:
        raise BadClaims(
            "jwt_verify_failed", "token not yet valid", f"token not valid for {claims['nbf'] - now:.0f} s yet"
        )
    if "iat" in claims and now < claims["iat"] - leeway:
        raise BadClaims(
            "jwt_verify_failed", "token issued in the future", f"token issued in {claims['iat'] - now:.0f} s"
        )


def bound_to(claims: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the certificate that the token is bound to, in hexadecimal (RFC 8705 section 3.1); empty for none.

    Raises `BadClaims` where `cnf` is no such thing: what binds a token is not passed over.
    """
    if "cnf" not in claims:
        return ""
    confirmation = claims["cnf"]
    thumbprint = confirmation.get("x5t#S256", "") if isinstance(confirmation, dict) else None
    try:
        digest = _unbase64(thumbprint).hex() if isinstance(thumbprint, str) and thumbprint.isascii() else None
    except ValueError:
        digest = None
    if digest is None or len(digest) not in (0, 64) or (thumbprint == "" and "x5t#S256" in confirmation):
        raise BadClaims("malformed_token", "malformed cnf claim")
    return digest


def scopes_of(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the scopes: `scope` if it is text, else `scp`, else `scopes` (behaviour 16.3), in their order."""
    value: Any = claims.get("scope")
    if not isinstance(value, str):
        value = claims.get("scp", claims.get("scopes", ()))
    words = value.split() if isinstance(value, str) else value
    return tuple(dict.fromkeys(words))


def audiences_of(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return the audiences, of which there may be one or a list."""
    value = claims.get("aud", ())
    return frozenset((value,) if isinstance(value, str) else value)


def shown(value: object) -> str:
    """Return *value*, which somebody else wrote, as it may stand in a log line."""
    text = str(value)
    text = text if len(text) <= MAX_LOGGED_VALUE else text[:MAX_LOGGED_VALUE] + "..."
    return "".join(c if c.isprintable() else "?" for c in text)
