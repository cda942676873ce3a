"""Path and host patterns as people write them: reading one, and saying what is wrong with it.

What a pattern means on its own lives here. Which of several patterns wins is
decided in `gw.routing`; how a request's path is spelled, in `gw.http.paths`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from gw.http.paths import BadTarget, PathPolicy, normalise_host, normalise_path, valid_host
from gw.limits import MAX_PATTERN_SEGMENTS

__all__ = [
    "BadPattern",
    "Parameter",
    "Pattern",
    "kept_path",
    "parse_host",
    "parse_pattern",
    "parse_prefix",
    "reference_patterns",
    "whole",
]


class BadPattern(ValueError):
    """A pattern or a condition that means nothing, or nothing that a request could be."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A segment that is captured: any non-empty one, or one that *regex* matches in full."""

    name: str
    regex: str | None = None


@dataclass(frozen=True, slots=True)
class Pattern:
    """A path pattern, taken apart. Literal segments are normalised as request paths are."""

    text: str
    """As written."""
    segments: tuple[str | Parameter, ...]
    """Before the catch-all. The last is ``""`` where the pattern ends with a slash."""
    catch_all: str | None = None
    """Name of what follows the segments and a slash; ``""`` where it has no name, `None` where there is no catch-all."""
    bare: bool = False
    """Whether a catch-all also matches without its slash, as a prefix does."""

    @property
    def literal(self) -> str | None:
        """The only path that matches, if there is only one."""
        segments = [segment for segment in self.segments if isinstance(segment, str)]
        if self.catch_all is not None or len(segments) < len(self.segments):
            return None
        return "/" + "/".join(segments)

    @property
    def names(self) -> tuple[str, ...]:
        """What is captured, from left to right; an unnamed catch-all is not."""
        names = tuple(segment.name for segment in self.segments if isinstance(segment, Parameter))
        return (*names, self.catch_all) if self.catch_all else names

    @property
    def strips(self) -> int:
        """How many segments ``strip_prefix`` removes, for `kept_path`: all before the catch-all, if there is one."""
        slash_ends = self.catch_all is None and self.segments[-1] == ""
        return len(self.segments) - slash_ends


_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What a literal may hold as it is; the rest is escaped, so that people can write "/größe". "%" begins an escape.
_AS_WRITTEN: Final = "!$&'()*+,;=:@%\\"


def parse_pattern(text: str, policy: PathPolicy) -> Pattern:
    """Read ``/a/:id([0-9]+)/*rest``; raise `BadPattern`."""
    _check_start(text)
    segments: list[str | Parameter] = []
    catch_all: str | None = None
    at = 1
    while at <= len(text):
        first = text[at : at + 1]
        if first == "*":
            catch_all = _catch_all(text, at)
            break
        segment, end = _parameter(text, at) if first == ":" else _literal(text, at, policy)
        segments.append(segment)
        at = end + 1
    pattern = Pattern(text, tuple(segments), catch_all)
    if len(segments) > MAX_PATTERN_SEGMENTS:
        raise BadPattern(f"{text!r}: has more than {MAX_PATTERN_SEGMENTS} segments; end it in a catch-all")
    names = pattern.names
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise BadPattern(f"{text!r}: the name {name!r} is given twice; rename one of them")
    return pattern


def parse_prefix(text: str, policy: PathPolicy) -> Pattern:
    """Read a prefix: a catch-all below a literal path, and that path itself; raise `BadPattern`.

    ``/api`` matches ``/api``, ``/api/`` and ``/api/x``; ``/api/`` does not match ``/api``.
    """
    _check_start(text)
    segments: list[str] = []
    at = 1
    while at < len(text):
        if text[at] in ":*":
            raise BadPattern(f"{text!r}: a prefix is literal, and takes no {text[at:]!r}; write it as a path")
        segment, end = _literal(text, at, policy)
        segments.append(segment)
        at = end + 1
    if len(segments) > MAX_PATTERN_SEGMENTS:
        raise BadPattern(f"{text!r}: has more than {MAX_PATTERN_SEGMENTS} segments; end it sooner")
    return Pattern(text, tuple(segments), catch_all="", bare=not text.endswith("/"))


def _check_start(text: str) -> None:
    if not text.startswith("/"):
        raise BadPattern(f"{text!r}: a path begins with a slash; write {'/' + text!r}")


def _literal(text: str, at: int, policy: PathPolicy) -> tuple[str, int]:
    """Return the normalised segment that begins at *at*, and where it ends."""
    end = text.find("/", at)
    end = len(text) if end < 0 else end
    written = text[at:end]
    if not written:
        if end < len(text):
            raise BadPattern(f"{text!r}: has an empty segment (//); remove one of the slashes")
        return "", end
    if "?" in written or "#" in written:
        raise BadPattern(f"{text!r}: a path has no '?' and no '#'; match the query with `query`")
    if written[0] == "{" and written[-1] == "}":
        raise BadPattern(f"{text!r}: {written!r} is no parameter here; write ':{written[1:-1]}'")
    if re.fullmatch(r"(?i:\.|%2e){1,2}", written):
        raise BadPattern(f"{text!r}: dot segments are resolved before matching; write the path they lead to")
    try:
        return normalise_path("/" + quote(written, safe=_AS_WRITTEN), policy)[1:], end
    except BadTarget as error:
        raise BadPattern(f"{text!r}: no request can match {written!r}: {error}") from None


def _parameter(text: str, at: int) -> tuple[Parameter, int]:
    """Return the ``:name`` or ``:name(regex)`` that begins at *at*, and where it ends."""
    found = _NAME.match(text, at + 1)
    if found is None:
        raise BadPattern(f"{text!r}: ':' needs a name of letters, digits and '_'; to match ':' itself, use `regex`")
    name, end = found[0], found.end()
    if text[end : end + 1] != "(":
        if text[end : end + 1] not in {"", "/"}:
            raise BadPattern(f"{text!r}: after ':{name}' comes '/' or '(regex)', not {text[end]!r}")
        return Parameter(name), end
    start, end = end + 1, _closing(text, end)
    regex = text[start:end]
    if end == len(text):
        raise BadPattern(f"{text!r}: the regex of ':{name}' is never closed; add ')'")
    if text[end + 1 : end + 2] not in {"", "/"}:
        raise BadPattern(f"{text!r}: after the regex of ':{name}' comes '/', not {text[end + 1]!r}")
    try:
        whole(regex)
    except BadPattern as error:
        raise BadPattern(f"{text!r}: {error}") from None
    return Parameter(name, regex), end + 1


def _closing(text: str, opening: int) -> int:
    """Return where the parenthesis at *opening* is closed, or the length of *text*. Escapes and sets do not count."""
    depth, at, in_set = 0, opening, False
    while at < len(text):
        character = text[at]
        if character == "\\":
            at += 1
        elif in_set:
            in_set = character != "]"
        elif character == "[":
            in_set = True
            if text.startswith(("]", "^]"), at + 1):  # the first one is a member, and does not close the set
                at = text.index("]", at)
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if not depth:
                return at
        at += 1
    return len(text)


def _catch_all(text: str, at: int) -> str:
    """Return the name of the ``*name`` or ``*`` that begins at *at*."""
    name = text[at + 1 :]
    if "/" in name:
        raise BadPattern(f"{text!r}: '*' matches all that follows; nothing can come after it")
    if name and not _NAME.fullmatch(name):
        raise BadPattern(f"{text!r}: {name!r} is no name of letters, digits and '_'; to match '*' itself, use `regex`")
    return name


def whole(regex: str) -> Callable[[str], re.Match[str] | None]:
    """Return the test whether *regex* matches a whole string; raise `BadPattern`."""
    try:
        return re.compile(regex).fullmatch
    except (re.error, OverflowError, RecursionError) as error:
        raise BadPattern(f"{regex!r} is no regular expression: {error}") from None


def parse_host(text: str) -> str:
    """Return the one spelling of a host, of ``*.`` and a host, or of ``*``; raise `BadPattern`."""
    if text == "*":
        return text
    star, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    if name.count(":") > 1 and not name.startswith("["):
        name = f"[{name}]"
    if not name.isascii():
        raise BadPattern(f"host {text!r}: has letters beyond ASCII; write it as clients send it, beginning with 'xn--'")
    if "*" in name:
        raise BadPattern(f"host {text!r}: '*' stands for whole labels, once and first, as in '*.example.com'")
    if not valid_host(name) or (star and name.startswith("[")):
        raise BadPattern(f"host {text!r}: is neither a name nor an address")
    if ":" in name.rpartition("]")[2]:
        raise BadPattern(f"host {text!r}: hosts are matched without their port; remove it")
    return star + normalise_host(name)


# --- the reference's route_prefix --------------------------------------------


def reference_patterns(route_prefix: str, policy: PathPolicy) -> list[str]:
    """Return the patterns that ``upstreams[].proxy.route_prefix`` stands for (behaviour 10.3); raise `BadPattern`."""
    pattern = parse_pattern(route_prefix, policy)
    if pattern.catch_all is None:
        return [route_prefix, route_prefix.removesuffix("/") + "/*proxy_path"]
    companion = route_prefix[: route_prefix.rindex("/*")]
    return [route_prefix, companion] if companion else [route_prefix]


def kept_path(path: str, segments: int) -> str:
    """Return what ``strip_prefix`` keeps of *path*: a slash and all that follows its first *segments* segments.

    That is what a catch-all after so many segments matched, and ``/`` where the path has no more.
    """
    parts = path.split("/", segments + 1)
    return "/" + parts[-1] if len(parts) > segments + 1 else "/"
