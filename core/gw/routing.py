"""Which route a request takes: hosts, paths, methods, headers and query, compiled at load into dictionaries.

Nothing here knows what a route is made of: a `Router` maps requests to whatever
it was given. How patterns are read is in `gw.patterns`, how request paths are
spelled in `gw.http.paths`; the order in which routes are tried is explained in
docs/routing.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Generic, Literal, TypeAlias, TypeVar
from urllib.parse import unquote_plus

from gw.filters import Request
from gw.http.paths import PathPolicy, normalise_host
from gw.patterns import BadPattern, Pattern, parse_host, parse_pattern, parse_prefix, whole

__all__ = ["Condition", "Match", "Missing", "RouteConflict", "Router"]

R = TypeVar("R")

Condition: TypeAlias = tuple[str, Literal["exact", "regex", "present", "absent"], str]
"""A name, how its value is compared, and with what: ``("x-beta", "exact", "1")``."""

Captures: TypeAlias = Mapping[str, str]
Test: TypeAlias = Callable[[str], re.Match[str] | None]

_is_token: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+").fullmatch  # RFC 9110 section 5.6.2

NOTHING: Final[Captures] = MappingProxyType({})
"""What a route without parameters captures: one object for all requests, and nobody can write to it."""

METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
"""What a route for all methods adds to the answer to ``OPTIONS *``; it takes any other method too."""


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a route takes. Exactly one of *path*, *prefix* and *regex* is given."""

    hosts: tuple[str, ...] = ()
    """Names, addresses or ``*.names``, without port; empty means any."""
    path: str | None = None
    """A pattern, or ``*`` for ``OPTIONS *``."""
    prefix: str | None = None
    """A literal path and all below it, at segment boundaries."""
    regex: str | None = None
    """Matches a whole path; its named groups are captured."""
    methods: tuple[str, ...] = ()
    """Empty means all."""
    headers: tuple[Condition, ...] = ()
    """Each must hold. Several lines of a field count as one, joined by a comma (RFC 9110 section 5.3)."""
    query: tuple[Condition, ...] = ()
    """Each must hold, for the decoded value of the first parameter of that name."""
    head_as_get: bool = True
    """Whether a route for GET takes HEAD as well, where no other does."""
    gives_way: bool = False
    """Whether a route that matches the same takes its place; otherwise that is a `RouteConflict`."""

    def __post_init__(self) -> None:
        given = [kind for kind in ("path", "prefix", "regex") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"a match has one of path, prefix and regex, not {' and '.join(given) or 'none'}")

    def pattern(self, policy: PathPolicy) -> Pattern | None:
        """Return what *path* or *prefix* says; `None` for a regex or ``*``. Raises `BadPattern`."""
        if self.prefix is not None:
            return parse_prefix(self.prefix, policy)
        return None if self.path is None or self.path == "*" else parse_pattern(self.path, policy)

    @property
    def place(self) -> str:
        """Hosts and path, for people: ``api.example.com/v1/*rest``."""
        kind = "" if self.path is not None else " (prefix)" if self.prefix is not None else " (regex)"
        return f"{','.join(self.hosts)}{self.path or self.prefix or self.regex}{kind}"


@dataclass(frozen=True, slots=True)
class Missing:
    """No route takes the request. *allow* holds the methods, sorted, for which one would: 405, or 404 when empty.

    For the path ``*`` it holds the methods of all routes: the answer to ``OPTIONS *``.
    """

    allow: tuple[str, ...] = ()


NOT_FOUND: Final = Missing()


class RouteConflict(ValueError):
    """Two routes take the same requests, or leave open which of them does."""

    def __init__(self, name: str, other: str, message: str) -> None:
        super().__init__(f"routes {other!r} and {name!r} conflict: {message}")
        self.name = name
        self.other = other


# --- one place in the table --------------------------------------------------


class _Entry(Generic[R]):
    """A route at one place, with all that is known of it before a request comes."""

    __slots__ = ("found", "match", "name", "names", "route", "tests")

    def __init__(self, name: str, match: Match, route: R) -> None:
        self.name = name
        self.match = match
        self.route = route
        self.names: tuple[str, ...] = ()
        """Of what the path captures, from left to right; `_Paths.add` fills it in."""
        self.found: tuple[R, Captures] = (route, NOTHING)
        """The answer when it captures nothing, made once."""
        self.tests = (*map(_header_test, match.headers), *map(_query_test, match.query))

    def holds(self, request: Request) -> bool:
        return all(test(request) for test in self.tests)

    def takes(self, method: str) -> bool:
        methods = self.match.methods
        return not methods or method in methods or (method == "HEAD" and "GET" in methods and self.match.head_as_get)

    def rank(self, method: str) -> tuple[bool, bool, bool]:
        """Return the place among those that take *method*: lower goes first, the configuration's order decides ties."""
        borrowed = bool(self.match.methods) and method not in self.match.methods
        return self.match.gives_way, not self.tests, borrowed


class _Leaf(Generic[R]):
    """The routes whose hosts and path are the same: they differ in methods, headers and query."""

    __slots__ = ("_entries", "_taken", "all_methods", "by_method", "displaced")

    def __init__(self) -> None:
        self.by_method: dict[str, tuple[_Entry[R], ...]] = {}
        self.all_methods: tuple[_Entry[R], ...] = ()
        """For the methods that no entry names."""
        self.displaced: list[tuple[str, str]] = []
        self._entries: list[_Entry[R]] = []
        self._taken: dict[tuple[frozenset[Condition], ...], dict[str, _Entry[R]]] = {}
        """Who takes which method, by conditions; the method ``""`` stands for all others."""

    def add(self, entry: _Entry[R]) -> None:
        """Add *entry*; raise `RouteConflict` if another one takes the same, and neither gives way."""
        match = entry.match
        taken = self._taken.setdefault((frozenset(match.headers), frozenset(match.query)), {})
        for method in dict.fromkeys(match.methods or ("", *taken)):
            other = taken.get(method) or taken.get("")
            if other is None:
                taken[method] = entry
            elif match.gives_way:
                self.displaced.append((entry.name, other.name))
            elif other.match.gives_way:
                self.displaced.append((other.name, entry.name))
                taken[method] = entry
            else:
                raise RouteConflict(
                    entry.name,
                    other.name,
                    f"both take {method or 'all methods'} at {match.place}; "
                    "give one of them other methods, hosts, headers or query, or remove it",
                )
        self._entries.append(entry)

    def seal(self) -> set[str]:
        """Prepare look-ups: nothing is added from here on. Return the methods that are taken."""
        self._taken.clear()
        named = {method for entry in self._entries for method in entry.match.methods}
        if "GET" in named:
            named.add("HEAD")
        self.by_method = {method: self._taking(method) for method in named}
        self.all_methods = self._taking("")
        return {method for method in named if self.by_method[method]} | set(METHODS if self.all_methods else ())

    def _taking(self, method: str) -> tuple[_Entry[R], ...]:
        taking = [entry for entry in self._entries if entry.takes(method)]
        return tuple(sorted(taking, key=lambda entry: entry.rank(method)))

    def choose(
        self, request: Request, values: tuple[str, ...], rest: list[str], at: int, allow: set[str] | None
    ) -> tuple[R, Captures] | None:
        """Return the first route that takes *request*, or else add to *allow* the methods that would be taken.

        *values* are what the path captured, from left to right, and ``rest[at:]`` the segments of a catch-all.
        """
        for entry in self.by_method.get(request.method, self.all_methods):
            if not entry.tests or entry.holds(request):
                names = entry.names
                if not names:
                    return entry.found
                if len(names) > len(values):
                    values = (*values, "/".join(rest[at:]))
                return entry.route, dict(zip(names, values))  # noqa: B905 (strict costs a third; tests hold the lengths)
        if allow is not None:
            for entry in self._entries:
                if entry.holds(request):
                    allow.update(entry.match.methods)
                    if entry.match.methods and entry.takes("HEAD"):
                        allow.add("HEAD")
        return None


def _header_test(condition: Condition) -> Callable[[Request], bool]:
    name, kind, expected = condition
    if not _is_token(name):
        raise BadPattern(f"{name!r} is no field name; no request can carry it")
    compare = _comparison(kind, expected)

    def test(request: Request) -> bool:
        values = request.headers.get_all(name)
        return compare(", ".join(values) if values else None)

    return test


def _query_test(condition: Condition) -> Callable[[Request], bool]:
    name, kind, expected = condition
    compare = _comparison(kind, expected)

    def test(request: Request) -> bool:
        for part in (request.query or "").split("&"):
            key, _, value = part.partition("=")
            if part and unquote_plus(key) == name:
                return compare(unquote_plus(value))
        return compare(None)

    return test


def _comparison(kind: str, expected: str) -> Callable[[str | None], bool]:
    if kind == "exact":
        return lambda value: value == expected
    if kind == "present":
        return lambda value: value is not None
    if kind == "absent":
        return lambda value: value is None
    if kind != "regex":
        raise BadPattern(f"{kind!r} is no condition; it is one of exact, regex, present and absent")
    matches = whole(expected)
    return lambda value: value is not None and matches(value) is not None


def _never(segment: str) -> None:
    """Match nothing: the regex of a place that has none."""


# --- the paths of one host ---------------------------------------------------


class _Node(Generic[R]):
    """A place between two segments, in the tree of the patterns that are not literal throughout."""

    __slots__ = ("below", "captures", "children", "exact", "parameter", "prefix", "regex", "regex_of", "regex_test")

    def __init__(self) -> None:
        self.children: dict[str, _Node[R]] = {}
        self.captures = False
        """Whether there is a *regex* or a *parameter*."""
        self.regex: _Node[R] | None = None
        """Behind the one regex that may stand here, which *regex_test* compiled."""
        self.regex_test: Test = _never
        self.regex_of: tuple[str, str] = ("", "")
        """Its source, and the name of the route that brought it."""
        self.parameter: _Node[R] | None = None
        self.exact: _Leaf[R] | None = None
        """Patterns that end here."""
        self.prefix: _Leaf[R] | None = None
        """Prefixes that end here, for the path that ends here too."""
        self.below: _Leaf[R] | None = None
        """Catch-alls and prefixes, for whatever follows."""

    def find(
        self, request: Request, segments: list[str], at: int, values: tuple[str, ...], allow: set[str] | None
    ) -> tuple[R, Captures] | None:
        """Look for ``segments[at:]`` below this place, and choose as `_Leaf.choose` does.

        At each position a literal is tried first, then the regex, then the
        parameter, then the catch-all. No node is visited twice, so the work
        depends on the length of the path and on the alternatives along it, not
        on the size of the tree; `MAX_PATTERN_SEGMENTS` bounds the recursion.
        """
        if at == len(segments):
            for leaf in (self.exact, self.prefix):
                if leaf is not None:
                    found = leaf.choose(request, values, segments, at, allow)
                    if found is not None:
                        return found
            return None
        segment = segments[at]
        child = self.children.get(segment)
        if child is not None:
            found = child.find(request, segments, at + 1, values, allow)
            if found is not None:
                return found
        if self.captures and segment:
            if self.regex is not None and self.regex_test(segment):
                found = self.regex.find(request, segments, at + 1, (*values, segment), allow)
                if found is not None:
                    return found
            if self.parameter is not None:
                found = self.parameter.find(request, segments, at + 1, (*values, segment), allow)
                if found is not None:
                    return found
        return None if self.below is None else self.below.choose(request, values, segments, at, allow)

    def grow(self, pattern: Pattern, name: str) -> _Node[R]:
        """Return the node where *pattern*'s segments end, made if need be; *name* is the route's."""
        node = self
        for segment in pattern.segments:
            if isinstance(segment, str):
                node = node.children.setdefault(segment, _Node())
                continue
            node.captures = True
            if segment.regex is None:
                node.parameter = node.parameter or _Node()
                node = node.parameter
                continue
            if node.regex is None:
                node.regex, node.regex_test, node.regex_of = _Node(), whole(segment.regex), (segment.regex, name)
            regex, other = node.regex_of
            if regex != segment.regex:
                raise RouteConflict(
                    name,
                    other,
                    f"the regexes {regex!r} and {segment.regex!r} stand at the same place, and a segment "
                    "could match both; use one regex for both routes",
                )
            node = node.regex
        return node


class _Paths(Generic[R]):
    """All paths of one host, or of one host wildcard."""

    __slots__ = ("_by_regex", "_deepest", "leaves", "literal", "regexes", "root")

    def __init__(self) -> None:
        self.leaves: list[_Leaf[R]] = []
        self.literal: dict[str, _Leaf[R]] = {}
        """Patterns that are literal throughout. Literals come first at each position, so these come first of all."""
        self.root: _Node[R] | None = None
        self.regexes: list[tuple[Test, _Leaf[R]]] = []
        self._by_regex: dict[str, _Leaf[R]] = {}
        self._deepest = 0

    def add(self, entry: _Entry[R], pattern: Pattern | None) -> None:
        """Add *entry*, whose path is *pattern*, or, without one, a regex or ``*``."""
        if pattern is None:
            if entry.match.regex is None:
                self._literal("*").add(entry)
            else:
                leaf = self._regex(entry.match.regex)
                entry.names = tuple(re.compile(entry.match.regex).groupindex)
                leaf.add(entry)
            return
        entry.names = pattern.names
        if pattern.literal is not None:
            self._literal(pattern.literal).add(entry)
            return
        self.root = self.root or _Node()
        node = self.root.grow(pattern, entry.name)
        self._deepest = max(self._deepest, len(pattern.segments))
        if pattern.catch_all is None:
            node.exact = node.exact or self._leaf()
            node.exact.add(entry)
            return
        node.below = node.below or self._leaf()
        node.below.add(entry)
        if pattern.bare:
            node.prefix = node.prefix or self._leaf()
            node.prefix.add(entry)

    def _literal(self, path: str) -> _Leaf[R]:
        if path not in self.literal:
            self.literal[path] = self._leaf()
        return self.literal[path]

    def _regex(self, regex: str) -> _Leaf[R]:
        if regex not in self._by_regex:
            self._by_regex[regex] = self._leaf()
            self.regexes.append((whole(regex), self._by_regex[regex]))
        return self._by_regex[regex]

    def _leaf(self) -> _Leaf[R]:
        self.leaves.append(leaf := _Leaf[R]())
        return leaf

    def find(self, request: Request, allow: set[str] | None = None) -> tuple[R, Captures] | None:
        """Return the most specific route that takes *request*; see `_Leaf.choose` for *allow*."""
        path = request.path
        leaf = self.literal.get(path)
        if leaf is not None:
            found = leaf.choose(request, (), [], 0, allow)
            if found is not None:
                return found
        if not path.startswith("/"):
            return None  # "*" is no path, and only the literal "*" stands for it
        if self.root is not None:
            # Deeper than the deepest pattern nothing needs to be told apart: what is there belongs to catch-alls.
            found = self.root.find(request, path.split("/", self._deepest + 1), 1, (), allow)
            if found is not None:
                return found
        for test, leaf in self.regexes:
            match = test(path)
            if match is not None:
                found = leaf.choose(request, tuple(match.groupdict("").values()), [], 0, allow)
                if found is not None:
                    return found
        return None


# --- all of it ---------------------------------------------------------------


class Router(Generic[R]):
    """The compiled route table. Made once per generation; immutable after that, and safe to share."""

    def __init__(self, entries: Iterable[tuple[str, Match, R]], policy: PathPolicy) -> None:
        """Compile ``(name, match, route)`` triples; raise `BadPattern` or `RouteConflict`, naming the routes.

        *policy* is the one that request paths are normalised with: literals are spelled as they are.
        """
        by_host: dict[str, _Paths[R]] = {"*": _Paths()}
        for name, match, route in entries:
            try:
                pattern = match.pattern(policy)
                for host in dict.fromkeys(map(parse_host, match.hosts or ("*",))):
                    by_host.setdefault(host, _Paths()).add(_Entry(name, match, route), pattern)
            except BadPattern as error:
                raise BadPattern(f"route {name!r}: {error}") from None
        leaves = [leaf for paths in by_host.values() for leaf in paths.leaves]
        self._every_method = tuple(sorted({method for leaf in leaves for method in leaf.seal()}))
        self.displaced = tuple(dict.fromkeys(pair for leaf in leaves for pair in leaf.displaced))
        """Pairs of names: a route that gives way, and the one that takes its place, at least for some requests."""
        self._any = (by_host.pop("*"),)
        self._wildcards = {host[1:]: paths for host, paths in by_host.items() if host.startswith("*")}
        """By what follows the ``*``, the dot included."""
        self._exact = {
            host: (paths, *self._less_specific(host)) for host, paths in by_host.items() if not host.startswith("*")
        }
        self._hosts_matter = bool(by_host)

    def find(self, request: Request) -> tuple[R, Captures] | Missing:
        """Return the route that takes *request* and what its path captured, as it stands in the path."""
        tables = self._tables(request.host) if self._hosts_matter else self._any
        for paths in tables:
            found = paths.find(request)
            if found is not None:
                return found
        if request.path == "*":
            return Missing(self._every_method)
        allow: set[str] = set()
        for paths in tables:
            paths.find(request, allow)
        return Missing(tuple(sorted(allow))) if allow else NOT_FOUND

    def _tables(self, host: str) -> tuple[_Paths[R], ...]:
        """Return where to look for *host*: its own table, then those of `_less_specific`."""
        # Most clients write a host as it is configured; `normalise_host` is for the others.
        exact = self._exact.get(host)
        if exact is not None:
            return exact
        name = normalise_host(host)
        return self._exact.get(name) or self._less_specific(name)

    def _less_specific(self, name: str) -> tuple[_Paths[R], ...]:
        """Return the wildcards that *name* falls under, the longest first, then the table for any host."""
        if not self._wildcards:
            return self._any
        found: list[_Paths[R]] = []
        dot = name.find(".")
        while dot >= 0:
            wildcard = self._wildcards.get(name[dot:])
            if wildcard is not None:
                found.append(wildcard)
            dot = name.find(".", dot + 1)
        return (*found, *self._any)
