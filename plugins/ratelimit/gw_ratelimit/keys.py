"""Whom a zone counts by: what `key_type` may say, and functions made of it.

A key is text. Its parts are joined by NUL, which no part contains, so that nobody can make his parts look like another's.
A part that a request does not have means that the zone does not apply to it, and the key is empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from ipaddress import ip_address
from socket import AF_INET6, inet_ntop, inet_pton
from typing import Final, TypeAlias

from gw import IDENTITY, Exchange

__all__ = ["SEPARATOR", "Read", "address", "claim_text", "key_parts", "key_reader", "reads_secrets"]

Read: TypeAlias = Callable[[Exchange], str]

SEPARATOR: Final = "\0"

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_ANY: Final = re.compile(r".+")


def _plain(text: str) -> str:
    return text.replace(SEPARATOR, " ") if SEPARATOR in text else text


def claim_text(value: object) -> str:
    """Return a claim as text: words joined by blanks where it is a list, nothing where it is a mapping or missing."""
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return " ".join(sorted(claim_text(each) for each in value))
    return ""


def _subject(ex: Exchange) -> str:
    identity = ex.get(IDENTITY, None)
    return "" if identity is None else _plain(identity.subject)


def _identity(ex: Exchange) -> str:
    """Whose subject it is counts too: two issuers may both have a user "1"."""
    identity = ex.get(IDENTITY, None)
    return "" if identity is None or not identity.subject else _plain(f"{identity.issuer} {identity.subject}")


def _scopes(ex: Exchange) -> str:
    identity = ex.get(IDENTITY, None)
    return "" if identity is None else _plain(" ".join(sorted(identity.scopes)))


def _claim(name: str) -> Read:
    def read(ex: Exchange) -> str:
        identity = ex.get(IDENTITY, None)
        return "" if identity is None else claim_text(identity.claims.get(name))

    return read


def _header(name: str) -> Read:
    return lambda ex: ex.request.headers.get(name, "")


def _cookie(name: str) -> Read:
    begins = f"{name}="

    def read(ex: Exchange) -> str:
        for line in ex.request.headers.get_all("cookie"):
            for pair in line.split(";"):
                if pair.strip().startswith(begins):
                    return pair.strip()[len(begins) :]
        return ""

    return read


def _param(name: str) -> Read:
    return lambda ex: ex.params.get(name, "")


_FIXED: Final[Mapping[str, Read]] = {
    "host": lambda ex: ex.asked_host,
    "identity": _identity,
    "identity.scopes": _scopes,
    "identity.sub": _subject,
    "method": lambda ex: ex.request.method,
    "path": lambda ex: ex.matched_path,
    "route": lambda ex: "" if ex.route is None else ex.route.name,
}

_FAMILIES: Final[Mapping[str, tuple[Callable[[str], Read], re.Pattern[str]]]] = {
    "cookie:": (_cookie, _TOKEN),
    "header:": (_header, _TOKEN),
    "identity.claim:": (_claim, _ANY),
    "param:": (_param, _NAME),
}

_SECRETS: Final = ("cookie:", "header:")


def address(prefix: int) -> Read:
    """Return a function for the client's address: of IPv6 the first *prefix* bits, since a client may have all of them."""
    whole, bits = divmod(prefix, 8)
    mask = bytes([255] * whole + ([256 - (1 << (8 - bits))] if bits else [])).ljust(16, b"\0")
    keep = int.from_bytes(mask, "big")

    def read(ex: Exchange) -> str:
        ip = ex.client.ip
        if ":" not in ip:
            return ip
        try:
            packed = inet_pton(AF_INET6, ip)
        except OSError:
            return ip  # no address at all, such as the name of a Unix socket
        if packed.startswith(_MAPPED):
            return str(ip_address(packed[12:]))
        network = (int.from_bytes(packed, "big") & keep).to_bytes(16, "big")
        return f"{inet_ntop(AF_INET6, network)}/{prefix}"

    return read


_MAPPED: Final = bytes(10) + b"\xff\xff"
"""How an IPv4 address looks to a socket that takes both (RFC 4291 section 2.5.5.2)."""


def key_parts(key_type: str) -> tuple[str, ...]:
    """Split *key_type* at its plus signs; raise `ValueError` for a part that is none."""
    parts = tuple(key_type.split("+"))
    for part in parts:
        _check(part)
    if len(set(parts)) < len(parts):
        raise ValueError(f"{key_type!r} names a part twice")
    return parts


def _check(part: str) -> None:
    if part == "client_ip" or part in _FIXED:
        return
    for family, (_, allowed) in _FAMILIES.items():
        if part.startswith(family):
            if not allowed.fullmatch(part.removeprefix(family)):
                raise ValueError(f"{part!r} needs a name after the colon, such as {family}name")
            return
    known = ["client_ip", *_FIXED, *_FAMILIES]
    near = get_close_matches(part, known, 1)
    listed = ", ".join(sorted(f"{each}NAME" if each.endswith(":") else each for each in known))
    hint = f"did you mean {near[0]!r}?" if near else f"the parts are {listed}, joined by +"
    raise ValueError(f"{part!r} is nothing to count by; {hint}")


def reads_secrets(key_type: str) -> bool:
    """Whether a key may hold what must not be shown, such as an API key."""
    return any(part.startswith(_SECRETS) for part in key_parts(key_type))


def key_reader(key_type: str, ipv6_prefix: int) -> Read:
    """Return the function for *key_type*; it gives the empty text where a part is missing."""
    readers = [_reader(part, ipv6_prefix) for part in key_parts(key_type)]
    if len(readers) == 1:
        return readers[0]

    def read(ex: Exchange) -> str:
        found = []
        for reader in readers:
            part = reader(ex)
            if not part:
                return ""
            found.append(part)
        return SEPARATOR.join(found)

    return read


def _reader(part: str, ipv6_prefix: int) -> Read:
    if part == "client_ip":
        return address(ipv6_prefix)
    if part in _FIXED:
        return _FIXED[part]
    family = next(family for family in _FAMILIES if part.startswith(family))
    return _FAMILIES[family][0](part.removeprefix(family))
