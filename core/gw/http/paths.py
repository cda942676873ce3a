"""What a request asks for, in one spelling: targets, paths and hosts (RFC 3986, RFC 9112 section 3.2).

Everything that reads a target the client wrote lives here, and is applied once,
before anything looks at the path: what is matched is what is forwarded. Which
route a path belongs to is `gw.routing`'s business; the reasons for each rule
are in docs/paths.md.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Literal

from gw.limits import MAX_HOST_SIZE

__all__ = ["BadTarget", "PathPolicy", "normalise_host", "normalise_path", "parse_target", "valid_host"]


@dataclass(frozen=True, slots=True)
class PathPolicy:
    """What the gateway does where upstreams differ in how they read a path (`paths:` in the configuration)."""

    merge_slashes: bool = True
    """Read ``//`` as ``/``."""
    encoded_slash: Literal["keep", "reject"] = "keep"
    """``%2F``: an ordinary character of a segment, or 400."""
    backslash: Literal["keep", "reject"] = "reject"
    r"""``\`` and ``%5C``: an ordinary character, written ``%5C``, or 400."""
    nul: Literal["keep", "reject"] = "reject"
    """``%00``."""


class BadTarget(ValueError):
    """A request target that has no reading, or more than one. The message is for the client's 400."""


# Sub-delimiters, ":" and "@" mean themselves inside a segment (RFC 3986 section 3.3).
_PATH: Final = r"A-Za-z0-9\-._~!$&'()*+,;=:@/"
# A query is handed on as it came. Clients send more in it than RFC 3986 allows
# ("filter[name]=a|b"), so it may be any visible ASCII but the fragment's "#".
_QUERY: Final = r"!-\"$-~"

_ordinary: Final = re.compile(rf"(/[{_PATH}]*)(?:\?([{_QUERY}]*))?").fullmatch
_absolute: Final = re.compile(r"(?i:https?)://([^/?]*)([^?]*)(?:\?(.*))?", re.DOTALL).fullmatch
_foreign_to_path: Final = re.compile(rf"[^{_PATH}%\\]").search
_foreign_to_query: Final = re.compile(rf"[^{_QUERY}]").search
_escapes: Final = re.compile(r"%([0-9A-Fa-f]{2})?")
_slashes: Final = re.compile(r"/{2,}")

# A dot segment that only some servers see: those which decode %2F or %5C before they resolve dots, or which
# cut path parameters off first ("/..;/admin" passed many a proxy on its way to a servlet container).
_hidden_dots: Final = re.compile(r"(?:%2F|%5C)\.{1,2}(?=/|;|%2F|%5C|%3B|$)|/\.{1,2}(?=;|%2F|%5C|%3B)").search

_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def parse_target(target: str, policy: PathPolicy, method: str) -> tuple[str, str, str | None]:
    """Return ``(authority, path, query)`` of a request target; raise `BadTarget`.

    *authority* is empty unless the target names one (absolute-form), and then
    outranks the Host field (RFC 9112 section 3.2.2). *path* is normalised, or is
    ``*``; *query* is as sent, or `None`. *method* decides where ``*`` may stand.
    """
    ordinary = _ordinary(target)
    if ordinary is not None:
        path, query = ordinary.groups()
        if "//" not in path and "/." not in path:
            return "", path, query
    elif target == "*":
        if method != "OPTIONS":
            raise BadTarget("The request target * belongs to OPTIONS only")
        return "", "*", None
    return _parse_unusual(target, policy, method)


def _parse_unusual(target: str, policy: PathPolicy, method: str) -> tuple[str, str, str | None]:
    authority = ""
    query: str | None
    if "#" in target:
        raise BadTarget(
            "The request target has a fragment (#), which is not sent over HTTP; write %23 for the character"
        )
    if target.startswith("/"):
        path, mark, rest = target.partition("?")
        query = rest if mark else None
    else:
        absolute = _absolute(target)
        if absolute is None:
            raise BadTarget("The request target must begin with /, http:// or https://")
        authority, path, query = absolute.groups()
        if "@" in authority:
            raise BadTarget("The request target must not carry user information (@)")
        if not valid_host(authority):
            raise BadTarget("The request target names an invalid host or port")
        if not path and query is None and method == "OPTIONS":
            return authority, "*", None  # RFC 9112 section 3.2.4
        path = path or "/"
    if query and (foreign := _foreign_to_query(query)):
        raise BadTarget(_not_allowed(foreign[0], "query"))
    return authority, normalise_path(path, policy), query


def normalise_path(path: str, policy: PathPolicy) -> str:
    """Return the one spelling of *path*, which begins with ``/``; raise `BadTarget` where it has none.

    In this order: escapes are brought to one form, ``//`` is merged, dot segments
    are resolved (RFC 3986 section 5.2.4). Doing it again changes nothing.
    """
    if foreign := _foreign_to_path(path):
        raise BadTarget(_not_allowed(foreign[0], "path"))
    if "%" in path:
        path = _escapes.sub(_respell, path)
    if "\\" in path:
        path = path.replace("\\", "%5C")
    if policy.backslash == "reject" and "%5C" in path:
        raise BadTarget("The path contains a backslash (%5C), which this gateway does not accept")
    if policy.encoded_slash == "reject" and "%2F" in path:
        raise BadTarget("The path contains an encoded slash (%2F), which this gateway does not accept")
    if policy.nul == "reject" and "%00" in path:
        raise BadTarget("The path contains an encoded NUL (%00), which this gateway does not accept")
    if policy.merge_slashes and "//" in path:
        path = _slashes.sub("/", path)
    if "." in path:
        if _hidden_dots(path):
            raise BadTarget("The path has a dot segment beside an encoded slash, a backslash or a semicolon")
        if "/." in path:
            path = _resolve_dots(path)
    return path


def _respell(escape: re.Match[str]) -> str:
    digits = escape[1]
    if digits is None:
        raise BadTarget("The path has a % that two hexadecimal digits do not follow; write %25 for the character")
    character = chr(int(digits, 16))
    return character if character in _UNRESERVED else f"%{digits.upper()}"


def _resolve_dots(path: str) -> str:
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            if not kept:
                # RFC 3986 would stay at the root. Nobody sends this by accident, and servers differ: nginx refuses too.
                raise BadTarget("The path leaves the root: it has more .. segments than there are segments to leave")
            kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")  # what is left is a directory: "/a/b/.." is "/a/"
    return "/" + "/".join(kept)


def _not_allowed(character: str, where: str) -> str:
    escaped = "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
    return f"The {where} contains U+{ord(character):04X}, which must be percent-encoded ({escaped})"


# --- hosts -------------------------------------------------------------------

# RFC 3986 would allow sub-delimiters and escapes in a name; no resolver knows such a name, and
# "a,b" or "%61" in a Host field is read differently by whoever comes next. An empty port ("a:") likewise.
_named_host: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(?::([0-9]{1,5}))?").fullmatch
_bracketed_host: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?").fullmatch


def valid_host(value: str) -> bool:
    """Return whether *value* is a host with or without a port: a name, an IPv4 address or an IPv6 one in brackets."""
    if len(value) > MAX_HOST_SIZE or ".." in value:
        return False
    found = _named_host(value)
    if found is not None:
        port = found[1]
    else:
        found = _bracketed_host(value)
        if found is None:
            return False
        address, port = found.groups()
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            return False
    return port is None or int(port) <= 65535


def normalise_host(host: str) -> str:
    """Return the one spelling of a valid *host*, for comparing: lower case, no port, no final dot, no brackets."""
    if host.startswith("["):
        return ipaddress.IPv6Address(host[1 : host.index("]")]).compressed
    name, _, _ = host.partition(":")
    return name.lower().removesuffix(".")
