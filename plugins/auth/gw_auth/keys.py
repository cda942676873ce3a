"""The keys of a provider: read from a key set (RFC 7517), bound to their algorithms, and used to check signatures.

A key is good for the algorithms that its type, its curve, its `alg`, its `use` and its `key_ops` all allow, and for no
others. There are no symmetric keys here, so a public key cannot be taken for a shared secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import Algorithm, ECAlgorithm, OKPAlgorithm, RSAAlgorithm, RSAPSSAlgorithm
from jwt.exceptions import PyJWTError

from gw_auth.limits import MAX_KEYS, MAX_RSA_BITS, MIN_RSA_BITS
from gw_auth.tokens import Malformed, loads

__all__ = ["Key", "KeySet", "UnusableKey", "read_key_set"]

_ALGORITHMS: Final[Mapping[str, Algorithm]] = {
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
    "RS384": RSAAlgorithm(RSAAlgorithm.SHA384),
    "RS512": RSAAlgorithm(RSAAlgorithm.SHA512),
    "PS256": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA256),
    "PS384": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA384),
    "PS512": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA512),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256),
    "ES384": ECAlgorithm(ECAlgorithm.SHA384),
    "ES512": ECAlgorithm(ECAlgorithm.SHA512),
    "EdDSA": OKPAlgorithm(),
}
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class UnusableKey(ValueError):
    """A member of a key set that signatures cannot be checked with. The message says why."""


class Key:
    """One public key, and what it may be used for."""

    __slots__ = ("_public", "algorithms", "kid")

    def __init__(self, jwk: Mapping[str, Any]) -> None:
        """Make one from a JWK; raise `UnusableKey`."""
        kid = jwk.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise UnusableKey("its kid is no text")
        self.kid: str | None = kid
        if not _PRIVATE.isdisjoint(jwk):
            raise UnusableKey("it is a private or a symmetric key, which nobody should publish")
        if jwk.get("use", "sig") != "sig":
            raise UnusableKey("its use is not sig")
        operations = jwk.get("key_ops", ["verify"])
        if not isinstance(operations, list) or "verify" not in operations:
            raise UnusableKey("its key_ops do not have verify")
        try:
            self._public, algorithms = _material(jwk)
        except (PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, UnusableKey):
                raise
            raise UnusableKey("it is malformed") from None
        only = jwk.get("alg")
        if only is not None:
            algorithms = algorithms & {only} if isinstance(only, str) else frozenset()
        if not algorithms:
            raise UnusableKey("its alg does not fit its type")
        self.algorithms = algorithms

    def verify(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Tell whether *signature* over *signed* is this key's. An algorithm that the key is not bound to is never right."""
        if algorithm not in self.algorithms:
            return False
        try:
            return bool(_ALGORITHMS[algorithm].verify(signed, self._public, signature))
        except (ValueError, TypeError):  # a signature of a length that none has
            return False

    def __repr__(self) -> str:
        return f"<Key {self.kid} for {' '.join(sorted(self.algorithms))}>"


def _material(jwk: Mapping[str, Any]) -> tuple[Any, frozenset[str]]:
    kty, members = jwk.get("kty"), dict(jwk)
    if kty == "RSA":
        rsa = RSAAlgorithm.from_jwk(members)
        if not isinstance(rsa, RSAPublicKey) or not MIN_RSA_BITS <= rsa.key_size <= MAX_RSA_BITS:
            raise UnusableKey(f"it has not between {MIN_RSA_BITS} and {MAX_RSA_BITS} bits")
        return rsa, _RSA
    if kty == "EC":
        curve = jwk.get("crv")
        if not isinstance(curve, str) or curve not in _CURVES:
            raise UnusableKey("its curve is none of P-256, P-384 and P-521")
        ec = ECAlgorithm.from_jwk(members)
        if not isinstance(ec, EllipticCurvePublicKey):
            raise UnusableKey("it is no public key")
        return ec, frozenset({_CURVES[curve]})
    if kty == "OKP":
        okp = OKPAlgorithm.from_jwk(members)
        if not isinstance(okp, Ed25519PublicKey | Ed448PublicKey):
            raise UnusableKey("it is no public key")
        return okp, frozenset({"EdDSA"})
    raise UnusableKey("its type is none of RSA, EC and OKP")


class KeySet:
    """The usable keys of a provider. Never changes; another set takes its place."""

    __slots__ = ("_by_kid", "keys", "skipped")

    def __init__(self, keys: Iterable[Key], skipped: Iterable[str] = ()) -> None:
        self.keys = tuple(keys)
        self.skipped = tuple(skipped)
        """Why others are not among them."""
        self._by_kid: dict[str, tuple[Key, ...]] = {}
        for key in self.keys:
            if key.kid is not None:
                self._by_kid[key.kid] = (*self._by_kid.get(key.kid, ()), key)

    def named(self, kid: str | None) -> tuple[Key, ...]:
        """Return the keys that are called *kid*; without it, the only key there is."""
        if kid is None:
            return self.keys if len(self.keys) == 1 else ()
        return self._by_kid.get(kid, ())

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"<KeySet of {len(self.keys)}>"


def read_key_set(data: bytes) -> KeySet:
    """Read a JWK set; raise `Malformed` where it is none or has no key that is of use."""
    found = loads(data)
    members = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(members, list):
        raise Malformed("not a key set")
    skipped: list[str] = []
    usable = list(_usable(members[:MAX_KEYS], skipped))
    if len(members) > MAX_KEYS:
        skipped.append(f"there are more than {MAX_KEYS} keys; the others are not used")
    if not usable:
        raise Malformed(f"no key in it is of use{f': {skipped[0]}' if skipped else ''}")
    return KeySet(usable, skipped)


def _usable(members: list[Any], skipped: list[str]) -> Iterator[Key]:
    for index, member in enumerate(members):
        if not isinstance(member, dict):
            skipped.append(f"keys[{index}]: it is no JSON object")
            continue
        try:
            yield Key(member)
        except UnusableKey as error:
            skipped.append(f"keys[{index}]: {error}")
