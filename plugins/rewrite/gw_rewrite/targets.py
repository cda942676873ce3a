"""Paths, hosts, queries and locations made from templates, and what none of them may become.

One rule holds for them all: a value of the request fills the place that the template gives it, and makes no other. It
cannot end a segment, leave the path for the query, climb with dots, or name another host. What it brings along is
percent-encoded; what encoding cannot disarm is refused with `Unfit`.

Nothing here changes a request: functions of an exchange return what `gw_rewrite.filter` then assigns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, TypeAlias
from urllib.parse import quote

from gw import Exchange
from gw_rewrite.templates import Fill, Kind, Part, Template, Variable, compiled, query_name

__all__ = [
    "Unfit",
    "as_host",
    "as_location",
    "as_path",
    "check_host",
    "check_path",
    "into_host",
    "into_location",
    "into_path",
    "into_query",
    "moved",
    "prefix_replaced",
    "regex_replaced",
]


class Unfit(ValueError):
    """What this request's values make is no path or no host. The message is for the explanation."""


# --- paths -------------------------------------------------------------------

_PATH: Final = r"A-Za-z0-9\-._~!$&'()*+,;=:@/"
_ESCAPE: Final = r"%(?!2[DE]|3[0-9]|[46][1-9A-F]|[57][0-9A]|5F|7E)[0-9A-F]{2}"
"""In the one spelling of docs/paths.md: upper case, and not of a character that means the same without."""

_path: Final = re.compile(rf"(?:[{_PATH}]++|{_ESCAPE})*+").fullmatch
_foreign: Final = re.compile(rf"[^{_PATH}%]").search

# Dot segments, those too that only servers see which decode %2F or cut off path parameters first (docs/paths.md).
# They cannot be disarmed: "%2E%2E" means the same as "..".
_dots: Final = re.compile(r"(?:/|%2F|%5C)\.{1,2}(?=/|;|%2F|%5C|%3B|\Z)").search

_BY_POLICY: Final = ("//", "%00", "%5C")
"""What the gateway's `paths:` decides on. Where a request may have it, it may stay; a rewrite adds none."""


def check_path(text: str) -> str:
    """Return *text*; raise `ValueError` unless it is a normalised path."""
    if not text.startswith("/"):
        raise ValueError(f"must start with '/', not {text!r}")
    _check_characters(text)
    _check_segments(text)
    return text


def as_path(template: Template) -> Template:
    """Return *template*; raise `ValueError` if what it says itself makes no path."""
    _check_path_parts(template.parts)
    return template


def _check_path_parts(parts: tuple[Part, ...]) -> None:
    if not _starts_path(parts[0]):
        raise ValueError("must start with '/' or '${path}'")
    for part in parts:
        _check_characters(part.default if isinstance(part, Variable) else part)
    # A variable is something; whether it is enough between two slashes shows when it has a value.
    _check_segments("".join("x" if isinstance(part, Variable) else part for part in parts))


def _starts_path(part: Part) -> bool:
    return part.startswith("/") if isinstance(part, str) else part.name == "path"


def _check_characters(text: str) -> None:
    if found := _foreign(text):
        hint = "; the query has settings of its own" if found[0] == "?" else ""
        raise ValueError(f"has {found[0]!r}, which a path cannot; write {quote(found[0])}{hint}")
    if not _path(text):
        raise ValueError(
            "has a '%' that begins no escape; escapes are two upper-case hexadecimal digits, and none stands for a"
            " letter, a digit or one of '-._~'"
        )


def _check_segments(path: str) -> None:
    if _dots(path) or "//" in path:
        raise ValueError("has an empty or a dot segment; write the path that is meant")


def _fit(path: str, before: str) -> str:
    """Return *path*, made from the normalised path *before*; raise `Unfit` if it is not normalised itself."""
    if not path.startswith("/") or not _path(path) or _dots(path):
        raise Unfit(f"{path!r} is no path")
    for mark in _BY_POLICY:
        if mark in path and mark not in before:
            raise Unfit(f"{path!r} is no path: it has {mark}")
    return path


def _component(value: str) -> str:
    return quote(value.encode("latin-1"), safe="")


def into_path(template: Template) -> Fill:
    """Make a path of *template*. Parts of the request's own path stay as they are, other values are encoded."""
    return _path_of(template.parts)


def _path_of(parts: tuple[Part, ...]) -> Fill:
    made = compiled(parts, {Kind.TEXT: _component, Kind.HOST: _component})
    if isinstance(made, str):
        return lambda _: made
    return lambda ex: _fit(made(ex), ex.request.path)


def prefix_replaced(prefix: str, by: str) -> Fill:
    """Replace *prefix*, at a segment boundary; other paths stay as they are. Neither ends with a slash, but for ``/``."""
    below, start = prefix.removesuffix("/") + "/", by.removesuffix("/")

    def path(ex: Exchange) -> str:
        now = ex.request.path
        if now == prefix:
            return by
        return start + now[len(below) - 1 :] if now.startswith(below) else now

    return path


_REFERENCE: Final = re.compile(r"\\(?:[1-9][0-9]?|g<\w+>)")


def regex_replaced(match: str, replace: str) -> Fill:
    r"""Replace all that *match* matches in a path by *replace*, where ``\1`` and ``\g<name>`` are groups.

    Raises `ValueError` if one of the two is wrong, whatever the path.
    """
    try:
        pattern = re.compile(match)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"match is no regular expression: {error}") from None
    for literal in _REFERENCE.split(replace):
        if "\\" in literal:
            raise ValueError("replace has a backslash that begins no group: write \\1 or \\g<name>")
        try:
            _check_characters(literal)
        except ValueError as error:
            raise ValueError(f"replace {error}") from None
    try:
        pattern.sub(replace, "")  # reads the references, matched or not
    except (re.error, IndexError) as error:
        raise ValueError(f"replace has a group that match does not have: {error}") from None

    def path(ex: Exchange) -> str:
        now = ex.request.path
        then = pattern.sub(replace, now)
        return now if then == now else _fit(then, now)

    return path


# --- hosts -------------------------------------------------------------------

# As strict as what the gateway takes from clients (docs/paths.md): a name that no resolver knows helps nobody.
_host: Final = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?").fullmatch
_host_part: Final = re.compile(r"[A-Za-z0-9_.:\[\]-]*").fullmatch
_PORT: Final = re.compile(r":[0-9]+\Z")
_MAX_HOST: Final = 261
"""A name of 255 (RFC 1035 section 2.3.4), a colon and a port."""


def _is_host(value: str) -> bool:
    found = _host(value)
    return found is not None and len(value) <= _MAX_HOST and ".." not in value and int(found[1] or 0) <= 65535


def as_host(template: Template) -> Template:
    """Return *template*; raise `ValueError` if what it says itself makes no host."""
    _check_host_parts(template.parts)
    return template


def check_host(text: str) -> str:
    """Return *text*; raise `ValueError` unless it is a host."""
    if not _is_host(text):
        raise ValueError(f"must be a host, perhaps with a port, not {text!r}")
    return text


def _check_host_parts(parts: tuple[Part, ...]) -> None:
    constant = compiled(parts, {})
    if isinstance(constant, str):
        check_host(constant)
        return
    for part in parts:
        literal = part.default if isinstance(part, Variable) else part
        if not _host_part(literal):
            raise ValueError(f"has {literal!r}, which a host cannot")


def into_host(template: Template) -> Fill:
    """Make a host of *template*: no value is encoded, and what is no host is `Unfit`."""
    return _host_of(template.parts)


def _host_of(parts: tuple[Part, ...]) -> Fill:
    made = compiled(parts, {})
    if isinstance(made, str):
        return lambda _: made

    def host(ex: Exchange) -> str:
        value = made(ex)
        if not _is_host(value):
            raise Unfit(f"{value!r} is no host")
        return value

    return host


# --- queries -----------------------------------------------------------------

_EVERYWHERE: Final = dict.fromkeys(Kind, _component)

Query: TypeAlias = Callable[[Exchange], str | None]


def _component_text(text: str) -> str:
    return quote(text, safe="")


def into_query(remove: Iterable[str], replace: Mapping[str, Template], add: Mapping[str, Template]) -> Query:
    """Edit a query: drop the names in *remove*, then put *replace* in the place of the first, then append *add*.

    All other parameters stay as the client wrote them. A parameter whose value is empty is not written.
    """
    removed = frozenset(name.encode() for name in remove)

    def rows(given: Mapping[str, Template]) -> dict[bytes, tuple[str, str | Fill]]:
        return {
            name.encode(): (_component_text(name), compiled(template.parts, _EVERYWHERE, _component_text))
            for name, template in given.items()
        }

    replaced, added = rows(replace), rows(add)

    def query(ex: Exchange) -> str | None:
        now = ex.request.query
        left = replaced.copy()
        pieces: list[str] = []
        for piece in now.split("&") if now else ():
            name = query_name(piece.partition("=")[0])
            if name in removed:
                continue
            if name not in replaced:
                pieces.append(piece)
            elif (row := left.pop(name, None)) is not None:
                pieces += _parameter(row, ex)
        for row in (*left.values(), *added.values()):
            pieces += _parameter(row, ex)
        return "&".join(pieces) if pieces or now == "" else None

    return query


def _parameter(row: tuple[str, str | Fill], ex: Exchange) -> list[str]:
    name, made = row
    value = made if isinstance(made, str) else made(ex)
    return [f"{name}={value}"] if value else []


# --- locations ---------------------------------------------------------------

Where: TypeAlias = Callable[[Exchange], str | None]
"""Returns the URL that a client is sent to, or `None` if it is there already."""

_url_text: Final = re.compile(r"[!\"$-~]*").fullmatch  # visible, and no second "#"


class _Pieces:
    """A location taken apart, so that each value is written as its place demands (RFC 3986 section 3)."""

    __slots__ = ("authority", "fragment", "path", "query", "scheme")

    def __init__(self, parts: tuple[Part, ...]) -> None:
        parts, self.fragment = _cut(parts, "#")
        parts, self.query = _cut(parts, "?")
        for part in (*self.query, *self.fragment):
            literal = part.default if isinstance(part, Variable) else part
            if not _url_text(literal):
                raise ValueError(f"has {literal!r}, which a URL cannot; percent-encode it")
        self.scheme: tuple[Part, ...] = ()
        self.authority: tuple[Part, ...] = ()
        if after := _after_scheme(parts):
            self.scheme, rest = after
            end = next((i for i, part in enumerate(rest) if _has_path(part)), len(rest))
            self.authority, parts = rest[:end], rest[end:]
            if parts and isinstance(parts[0], str):
                name, slash, path = parts[0].partition("/")
                self.authority, parts = (*self.authority, *_given(name)), (slash + path, *parts[1:])
            _check_host_parts(self.authority)
        elif not parts or not _starts_path(parts[0]):
            raise ValueError("must start with 'http://', 'https://', '${client.scheme}://', '/' or '${path}'")
        self.path = parts or ("/",)
        _check_path_parts(self.path)


def _has_path(part: Part) -> bool:
    return "/" in part if isinstance(part, str) else part.name == "path"


def _given(text: str) -> tuple[str, ...]:
    return (text,) if text else ()


def _cut(parts: tuple[Part, ...], mark: str) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Return what stands before and after the first *mark* that the configuration wrote."""
    for i, part in enumerate(parts):
        if isinstance(part, str) and mark in part:
            before, _, after = part.partition(mark)
            return (*parts[:i], *_given(before)), (*_given(after), *parts[i + 1 :])
    return parts, ()


def _after_scheme(parts: tuple[Part, ...]) -> tuple[tuple[Part, ...], tuple[Part, ...]] | None:
    """Return the scheme, colon and slashes included, and what follows; `None` if there is no scheme."""
    scheme: tuple[Part, ...] = ()
    if parts and isinstance(parts[0], Variable) and parts[0].name == "client.scheme":
        scheme, parts = parts[:1], parts[1:]
    if not parts or not isinstance(parts[0], str):
        return None
    for mark in ("://",) if scheme else ("http://", "https://"):
        if parts[0].startswith(mark):
            return (*scheme, mark), (*_given(parts[0].removeprefix(mark)), *parts[1:])
    return None


def as_location(template: Template) -> Template:
    """Return *template*; raise `ValueError` if what it says itself makes no URL."""
    _Pieces(template.parts)
    return template


def into_location(template: Template, *, keep_query: bool) -> Where:
    """Make a URL of *template*, followed by the request's own query if *keep_query*."""
    pieces = _Pieces(template.parts)
    scheme, host, path = compiled(pieces.scheme, {}), None, _path_of(pieces.path)
    if pieces.authority:
        host = _host_of(pieces.authority)
    query, fragment = compiled(pieces.query, _EVERYWHERE), compiled(pieces.fragment, _EVERYWHERE)

    def where(ex: Exchange) -> str:
        def text(made: str | Fill) -> str:
            return made if isinstance(made, str) else made(ex)

        to = path(ex)
        if host is not None:
            to = text(scheme) + host(ex) + to
        elif to.startswith("//"):  # it would name a host (RFC 3986 section 4.2)
            raise Unfit(f"{to!r} is no path to be sent to")
        queries = [each for each in (text(query), ex.request.query if keep_query else None) if each]
        to += "?" + "&".join(queries) if queries else ""
        return f"{to}#{end}" if (end := text(fragment)) else to

    return where


def moved(scheme: Literal["http", "https"] | None, host: str | None, *, keep_query: bool) -> Where:
    """Send to the same path under another *scheme* or *host*, unless the request came that way.

    Without *host* the request's is kept, its port only if the scheme stays. A *host* without a port is any port's.
    """

    def where(ex: Exchange) -> str | None:
        request, now = ex.request, ex.client.scheme
        then = scheme or now
        asked = request.host.lower()
        bare = _PORT.sub("", asked)
        if then == now and (host is None or host in {asked, bare}):
            return None
        to = host or (asked if then == now else bare)
        if not _is_host(to):
            raise Unfit(f"{to!r} is no host")
        query = f"?{request.query}" if keep_query and request.query else ""
        return f"{then}://{to}{request.path}{query}"

    return where
