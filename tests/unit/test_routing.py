"""The route table: each rule of precedence by example, and all of them against an oracle that tries every route."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from gw.filters import Headers, Request
from gw.http.paths import PathPolicy
from gw.patterns import BadPattern, parse_pattern, parse_prefix
from gw.routing import METHODS, Match, Missing, RouteConflict, Router

POLICY = PathPolicy()
NOT_FOUND = Missing()


def router(*matches, **named):
    """A router whose routes are their own names: r0, r1, ... or the keywords."""
    names = {f"r{number}": match for number, match in enumerate(matches)} | named
    return Router([(name, match, name) for name, match in names.items()], POLICY)


def paths(*patterns):
    return Router([(pattern, Match(path=pattern), pattern) for pattern in patterns], POLICY)


def ask(table, target, method="GET", host="", headers=()):
    request = Request(method, target, Headers.of(headers))
    request.host = host
    return table.find(request)


TABLE = (
    *("/", "/a", "/a/b", "/a/:x", "/a/:x([0-9]+)", "/a/*rest", "/a/b/", "/:x/c", "/:x/c/*", "/d/:x/e", "/d/f/*rest"),
    *("/g/:x/h", "/g/:y/i", "/~u/%2F"),
)


@pytest.mark.parametrize(
    ("path", "pattern", "captured"),
    [
        ("/", "/", {}),
        ("/a", "/a", {}),
        ("/a/", "/a/*rest", {"rest": ""}),
        ("/a/b", "/a/b", {}),
        ("/a/b/", "/a/b/", {}),
        ("/a/7", "/a/:x([0-9]+)", {"x": "7"}),
        ("/a/7x", "/a/:x", {"x": "7x"}),
        ("/a/7/8/", "/a/*rest", {"rest": "7/8/"}),
        ("/a/c", "/a/:x", {"x": "c"}),
        ("/z/c", "/:x/c", {"x": "z"}),
        ("/z/c/d/e", "/:x/c/*", {"x": "z"}),
        ("/d/f/e", "/d/f/*rest", {"rest": "e"}),
        ("/d/g/e", "/d/:x/e", {"x": "g"}),
        ("/d/c", "/:x/c", {"x": "d"}),
        ("/g/1/i", "/g/:y/i", {"y": "1"}),
        ("/~u/%2F", "/~u/%2F", {}),
        ("/a/%41%2F", "/a/:x", {"x": "%41%2F"}),
    ],
)
def test_the_most_specific_pattern_wins(path, pattern, captured):
    assert ask(paths(*TABLE), path) == (pattern, captured)


@pytest.mark.parametrize("path", ["/z", "/A", "//c", "/d", "/d/", "/d//e", "/g/1", "", "a"])
def test_a_path_without_a_pattern_is_not_found(path):
    assert ask(paths(*TABLE), path) == NOT_FOUND


def test_a_literal_that_leads_nowhere_gives_way_to_a_parameter():
    table = paths("/a/b/c", "/a/:x/d", "/:y/b/e", "/*z")
    assert ask(table, "/a/b/d") == ("/a/:x/d", {"x": "b"})
    assert ask(table, "/a/b/e") == ("/:y/b/e", {"y": "a"})
    assert ask(table, "/a/b/f") == ("/*z", {"z": "a/b/f"})


@pytest.mark.parametrize(
    ("prefix", "matching", "other"),
    [
        ("/", ["/", "/a", "/a/b"], []),
        ("/api", ["/api", "/api/", "/api/x/y"], ["/apix", "/", "/ap"]),
        ("/api/", ["/api/", "/api/x"], ["/api", "/apix"]),
        ("/a/b", ["/a/b", "/a/b/c"], ["/a", "/a/bc"]),
    ],
)
def test_a_prefix_matches_at_segment_boundaries(prefix, matching, other):
    table = router(Match(prefix=prefix))
    assert [ask(table, path) for path in matching] == [("r0", {})] * len(matching)
    assert [ask(table, path) for path in other] == [NOT_FOUND] * len(other)


def test_a_prefix_ranks_as_a_catch_all():
    table = router(Match(prefix="/"), Match(prefix="/a"), Match(path="/a"), Match(path="/a/:x"))
    assert [ask(table, path)[0] for path in ("/", "/a", "/a/", "/a/b", "/a/b/c")] == ["r0", "r2", "r1", "r3", "r1"]


def test_regexes_come_after_patterns_in_the_order_of_the_configuration():
    table = router(
        Match(regex="/(?P<kind>a|b)/.*"),
        Match(regex="/a/(?P<rest>.*)(?P<none>x)?"),
        Match(regex="/.*"),
        Match(path="/a/b"),
    )
    assert ask(table, "/a/b") == ("r3", {})
    assert ask(table, "/a/c") == ("r0", {"kind": "a"})
    assert ask(table, "/c") == ("r2", {})
    assert ask(router(Match(regex="/a/(?P<rest>.*)(?P<none>x)?")), "/a/b") == ("r0", {"rest": "b", "none": ""})


def test_a_regex_matches_the_whole_path_or_not_at_all():
    table = router(Match(regex="/a"))
    assert ask(table, "/a/b") == ask(table, "/b/a") == NOT_FOUND


def test_hosts_are_tried_from_the_most_to_the_least_specific():
    table = router(
        Match(hosts=("a.example.com", "::1"), path="/x"),
        Match(hosts=("*.example.com",), path="/:p"),
        Match(hosts=("*.a.example.com",), path="/:p"),
        Match(path="/*p"),
    )
    found = {
        host: ask(table, "/x", host=host)[0]
        for host in (
            "A.example.com:80",
            "a.example.com.",
            "[::1]:80",
            "b.example.com",
            "c.a.example.com",
            "b.c.example.com",
        )
    }
    assert list(found.values()) == ["r0", "r0", "r0", "r1", "r2", "r1"]
    assert [ask(table, "/x", host=host)[0] for host in ("example.com", "aexample.com", "")] == ["r3"] * 3


def test_what_a_host_does_not_have_is_looked_for_under_the_next():
    table = router(Match(hosts=("a.b",), path="/x"), Match(hosts=("*.b",), path="/y"), Match(hosts=("*",), path="/z"))
    assert [ask(table, path, host="a.b")[0] for path in ("/x", "/y", "/z")] == ["r0", "r1", "r2"]
    assert ask(table, "/x", host="c.b") == NOT_FOUND


def test_another_method_is_answered_with_those_that_would_do():
    table = router(
        Match(path="/a", methods=("POST", "GET")),
        Match(path="/:x", methods=("PUT",)),
        Match(regex="/a", methods=("X",)),
    )
    assert ask(table, "/a", "PUT") == ("r1", {"x": "a"})
    assert ask(table, "/a", "DELETE") == Missing(("GET", "HEAD", "POST", "PUT", "X"))
    assert ask(table, "/b", "GET") == Missing(("PUT",))
    assert ask(table, "/b/c", "GET") == NOT_FOUND


def test_the_methods_of_every_host_that_would_do_are_allowed():
    table = router(Match(hosts=("a.b",), path="/x", methods=("GET",)), Match(path="/x", methods=("PUT",)))
    assert ask(table, "/x", "POST", host="a.b") == Missing(("GET", "HEAD", "PUT"))
    assert ask(table, "/x", "POST", host="c") == Missing(("PUT",))


def test_a_route_whose_conditions_fail_allows_nothing():
    table = router(Match(path="/a", methods=("GET",), headers=(("x", "present", ""),)))
    assert ask(table, "/a", "POST") == NOT_FOUND
    assert ask(table, "/a", "POST", headers=[("x", "1")]) == Missing(("GET", "HEAD"))


def test_head_takes_the_route_of_get_unless_it_has_its_own():
    table = router(
        Match(path="/a", methods=("GET",)),
        Match(path="/b", methods=("GET",)),
        Match(path="/b", methods=("HEAD",)),
        Match(path="/c", methods=("GET",), head_as_get=False),
        Match(path="/*p"),
    )
    assert [ask(table, path, "HEAD")[0] for path in ("/a", "/b", "/c")] == ["r0", "r2", "r4"]


def test_a_route_for_get_alone_can_refuse_head():
    table = router(Match(path="/c", methods=("GET",), head_as_get=False))
    assert ask(table, "/c", "HEAD") == Missing(("GET",))


def test_an_unknown_method_takes_a_route_for_all():
    assert ask(router(Match(path="/a")), "/a", "PURGE") == ("r0", {})


def test_the_asterisk_is_matched_by_itself_only():
    catch_alls = (Match(path="/*"), Match(regex=".*"))
    assert ask(router(*catch_alls), "*", "OPTIONS") == Missing(METHODS)
    assert ask(router(*catch_alls, Match(path="*")), "*", "OPTIONS") == ("r2", {})
    some = router(Match(path="/a", methods=("GET",)), Match(hosts=("b",), path="/b", methods=("PURGE",)))
    assert ask(some, "*", "OPTIONS") == Missing(("GET", "HEAD", "PURGE"))


@pytest.mark.parametrize(
    ("condition", "lines", "holds"),
    [
        (("X-Env", "exact", "beta"), [("x-env", "beta")], True),
        (("x-env", "exact", "beta"), [("x-env", "Beta")], False),
        (("x-env", "exact", "a, b"), [("x-env", "a"), ("y", ""), ("x-env", "b")], True),
        (("x-env", "exact", "a"), [("x-env", "a"), ("x-env", "b")], False),
        (("x-env", "exact", ""), [], False),
        (("x-env", "regex", "b.*"), [("x-env", "beta")], True),
        (("x-env", "regex", "b"), [("x-env", "beta")], False),
        (("x-env", "regex", ".*"), [], False),
        (("x-env", "present", ""), [("x-env", "")], True),
        (("x-env", "present", ""), [], False),
        (("x-env", "absent", ""), [("y", "")], True),
        (("x-env", "absent", ""), [("x-env", "")], False),
    ],
)
def test_a_header_condition(condition, lines, holds):
    assert ask(router(Match(path="/", headers=(condition,))), "/", headers=lines) == (
        ("r0", {}) if holds else NOT_FOUND
    )


@pytest.mark.parametrize(
    ("condition", "target", "holds"),
    [
        (("v", "exact", "2"), "/?a&v=2", True),
        (("v", "exact", "2"), "/?v=1&v=2", False),
        (("v", "exact", "2"), "/?w=2", False),
        (("v", "exact", "a b&c"), "/?%76=a+b%26c", True),
        (("v", "exact", "é"), "/?v=%C3%A9", True),
        (("v", "regex", "[0-9]+"), "/?v=12", True),
        (("v", "regex", "[0-9]+"), "/?v=1x", False),
        (("v", "present", ""), "/?v", True),
        (("v", "present", ""), "/", False),
        (("", "present", ""), "/?", False),
        (("v", "absent", ""), "/?", True),
        (("v", "absent", ""), "/?v=", False),
    ],
)
def test_a_query_condition(condition, target, holds):
    assert ask(router(Match(path="/", query=(condition,))), target) == (("r0", {}) if holds else NOT_FOUND)


def test_conditions_are_tried_in_order_and_the_route_without_any_last():
    beta, new = ("x-env", "exact", "beta"), ("v", "present", "")
    table = router(
        Match(path="/"),
        Match(path="/", headers=(beta,)),
        Match(path="/", headers=(beta,), query=(new,)),
        Match(path="/", query=(new,)),
    )
    header = [("x-env", "beta")]
    assert ask(table, "/") == ("r0", {})
    assert ask(table, "/", headers=header) == ("r1", {})
    assert ask(table, "/?v", headers=header) == ("r1", {})
    assert ask(table, "/?v") == ("r3", {})


def test_conditions_that_fail_let_a_less_specific_path_have_it():
    table = router(Match(path="/a", headers=(("x", "present", ""),)), Match(path="/:p"))
    assert ask(table, "/a") == ("r1", {"p": "a"})


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            Match(path="/a"),
            Match(path="/%61"),
            "both take all methods at /%61; give one of them other methods, hosts, headers or query, or remove it",
        ),
        (
            Match(path="/:x", methods=("GET", "PUT")),
            Match(path="/:y", methods=("POST", "PUT")),
            "both take PUT at /:y; give one of them other methods, hosts, headers or query, or remove it",
        ),
        (
            Match(path="/a", methods=("GET",)),
            Match(path="/a"),
            "both take GET at /a; give one of them other methods, hosts, headers or query, or remove it",
        ),
        (
            Match(hosts=("A.b", "c"), path="/a"),
            Match(hosts=("a.B.",), path="/a"),
            "both take all methods at a.B./a; give one of them other methods, hosts, headers or query, or remove it",
        ),
        (
            Match(prefix="/a"),
            Match(path="/a/*x"),
            "both take all methods at /a/*x; give one of them other methods, hosts, headers or query, or remove it",
        ),
        (
            Match(prefix="/a/"),
            Match(prefix="/a"),
            "both take all methods at /a (prefix); give one of them other methods, hosts, headers or query, or remove it",
        ),
        (
            Match(regex="/a"),
            Match(regex="/a"),
            "both take all methods at /a (regex); give one of them other methods, hosts, headers or query, or remove it",
        ),
        (
            Match(path="/a", headers=(("x", "present", ""), ("y", "present", ""))),
            Match(path="/a", headers=(("y", "present", ""), ("x", "present", ""))),
            "both take all methods at /a; give one of them other methods, hosts, headers or query, or remove it",
        ),
        (
            Match(path="/:x([a-z]+)/b"),
            Match(path="/:y([0-9]+)/c"),
            (
                "the regexes '[a-z]+' and '[0-9]+' stand at the same place, and a segment could match both; "
                "use one regex for both routes"
            ),
        ),
    ],
)
def test_two_routes_for_the_same_requests_are_refused(one, other, message):
    with pytest.raises(RouteConflict) as caught:
        router(one=one, other=other)
    assert str(caught.value) == f"routes 'one' and 'other' conflict: {message}"
    assert (caught.value.name, caught.value.other) == ("other", "one")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Match(path="/a", methods=("GET",)), Match(path="/a", methods=("POST",))),
        (Match(path="/a", hosts=("a",)), Match(path="/a", hosts=("b",))),
        (Match(path="/a", hosts=("a",)), Match(path="/a")),
        (Match(path="/a", headers=(("x", "exact", "1"),)), Match(path="/a", headers=(("x", "exact", "2"),))),
        (Match(path="/a"), Match(path="/a/")),
        (Match(path="/a"), Match(prefix="/a")),
        (Match(path="/:x/a"), Match(path="/:y/b")),
        (Match(path="/:x([a-z]+)/a"), Match(path="/:y([a-z]+)/b")),
        (Match(path="/:x([a-z]+)"), Match(path="/:x([0-9]+)", hosts=("a",))),
    ],
)
def test_routes_that_can_be_told_apart_are_accepted(one, other):
    assert router(one=one, other=other).displaced == ()


def test_a_route_with_a_host_or_method_named_twice_is_no_conflict():
    assert ask(router(Match(path="/", hosts=("a", "A"), methods=("GET", "GET"))), "/", host="a") == ("r0", {})


@pytest.mark.parametrize("order", [("one", "way", "late"), ("way", "late", "one")])
def test_a_route_that_gives_way_keeps_what_is_left(order):
    matches = {
        "way": Match(path="/a", gives_way=True),
        "late": Match(path="/a", methods=("GET", "PUT"), gives_way=True),
        "one": Match(path="/a", methods=("GET",)),
    }
    table = router(**{name: matches[name] for name in order})
    assert [ask(table, "/a", method)[0] for method in ("GET", "HEAD", "PUT", "POST")] == ["one", "one", "way", "way"]
    assert ("late", "way") in table.displaced or ("late", "one") in table.displaced


def test_who_gives_way_to_whom_is_told():
    one, way = Match(path="/a"), Match(path="/a", gives_way=True)
    assert router(one=one, way=way).displaced == router(way=way, one=one).displaced == (("way", "one"),)


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (Match(path="a"), "route 'r0': 'a': a path begins with a slash; write '/a'"),
        (
            Match(regex="("),
            "route 'r0': '(' is no regular expression: missing ), unterminated subpattern at position 0",
        ),
        (Match(path="/", hosts=("a:1",)), "route 'r0': host 'a:1': hosts are matched without their port; remove it"),
        (Match(path="/", headers=(("ä", "present", ""),)), "route 'r0': 'ä' is no field name; no request can carry it"),
        (
            Match(path="/", query=(("v", "regex", "*"),)),
            "route 'r0': '*' is no regular expression: nothing to repeat at position 0",
        ),
        (
            Match(path="/", query=(("v", "like", ""),)),
            "route 'r0': 'like' is no condition; it is one of exact, regex, present and absent",
        ),
    ],
)
def test_a_route_that_cannot_be_compiled_is_named(match, message):
    with pytest.raises(BadPattern) as caught:
        router(match)
    assert str(caught.value) == message


@pytest.mark.parametrize(("given_paths", "what"), [({}, "none"), ({"path": "/", "regex": "/"}, "path and regex")])
def test_a_match_has_exactly_one_path(given_paths, what):
    with pytest.raises(ValueError, match=f"a match has one of path, prefix and regex, not {what}"):
        Match(**given_paths)


def test_what_nothing_captured_cannot_be_written_to():
    _, captured = ask(paths("/a"), "/a")
    with pytest.raises(TypeError):
        captured["x"] = "1"


def test_a_path_of_many_segments_is_cut_no_deeper_than_the_patterns():
    path = "/a" * 4000
    assert ask(paths("/:x/*rest", "/b/c"), path) == ("/:x/*rest", {"x": "a", "rest": path[3:]})


# --- the oracle --------------------------------------------------------------


def as_regex(pattern):
    """What *pattern* matches, in other words."""
    parts = [
        re.escape(segment)
        if isinstance(segment, str)
        else f"(?P<{segment.name}>(?=[^/]+)(?:{segment.regex or '[^/]+'}))"
        for segment in pattern.segments
    ]
    if pattern.catch_all is None:
        return "/" + "/".join(parts)
    rest = f"(?P<{pattern.catch_all}>.*)" if pattern.catch_all else ".*"
    whole = "".join(f"/{part}" for part in parts)
    return f"{whole}(?:/{rest})?" if pattern.bare else f"{whole}/{rest}"


def specificity(pattern):
    kinds = [0 if isinstance(s, str) else 2 if s.regex is None else 1 for s in pattern.segments]
    return kinds if pattern.catch_all is None else [*kinds, 3]


def naive(entries, request):
    """Try every route, the best first; return as `Router.find` does."""
    ranked = []
    for index, (name, match, _) in enumerate(entries):
        host = match.hosts[0] if match.hosts else ""
        if match.regex is None:
            pattern = parse_prefix(match.prefix, POLICY) if match.prefix else parse_pattern(match.path, POLICY)
            regex, place = as_regex(pattern), (0, specificity(pattern))
        else:
            # Routes with the same regex stand where the first of them does on its host.
            same = [(other.regex, other.hosts) == (match.regex, match.hosts) for _, other, _ in entries]
            regex, place = match.regex, (1, [same.index(True)])
        found = re.fullmatch(regex, request.path)
        host_fits = request.host.endswith(host[1:]) if host.startswith("*") else host in {"", request.host}
        wanted = all(request.headers.get(header) == value for header, _, value in match.headers)
        if found and host_fits and wanted:
            host_rank = 100 if not host else 50 - len(host) if host.startswith("*") else 0
            borrowed = request.method == "HEAD" and bool(match.methods) and "HEAD" not in match.methods
            rank = (host_rank, place, not match.headers, borrowed, index)
            ranked.append((rank, name, match.methods, found.groupdict()))
    ranked.sort()
    for _, name, methods, captured in ranked:
        if not methods or request.method in methods or (request.method == "HEAD" and "GET" in methods):
            return name, captured
    allow = {method for _, _, methods, _ in ranked for method in methods}
    return Missing(tuple(sorted(allow | {"HEAD"} if "GET" in allow else allow)))


SEGMENTS = st.sampled_from(["a", "b", "1", ":x", ":y([0-9]+)", ":z"])
PATTERNS = st.builds(
    lambda segments, end: "".join(f"/{s}" for s in segments) + end,
    st.lists(SEGMENTS, max_size=3, unique_by=lambda s: s[:2]),
    st.sampled_from(["", "/", "/*", "/*rest"]),
).filter(bool)
PREFIXES = st.lists(st.sampled_from("ab1"), max_size=2).map(lambda s: "/" + "/".join(s))
WHERE = st.one_of(
    PATTERNS.map(lambda path: {"path": path}),
    PREFIXES.map(lambda prefix: {"prefix": prefix}),
    st.sampled_from(["/a.*", "/(?P<x>.)/b", "/.*"]).map(lambda regex: {"regex": regex}),
)
MATCHES = st.builds(
    lambda where, host, methods, headers: Match(hosts=host, methods=methods, headers=headers, **where),
    WHERE,
    st.sampled_from([(), (), ("a.b.c",), ("*.b.c",), ("*.c",)]),
    st.sampled_from([(), (), ("GET",), ("POST",), ("HEAD",), ("GET", "PUT")]),
    st.sampled_from([(), (), (("x", "exact", "1"),), (("x", "exact", "2"),)]),
)
REQUESTS = st.builds(
    lambda segments, method, host, header: (segments, method, host, header),
    st.lists(st.sampled_from(["a", "b", "1", "22", ""]), min_size=1, max_size=4).map(lambda s: "/" + "/".join(s)),
    st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE"]),
    st.sampled_from(["a.b.c", "x.b.c", "c", "d"]),
    st.sampled_from([(), (("x", "1"),), (("x", "2"),)]),
)


@given(st.lists(MATCHES, max_size=8), st.lists(REQUESTS, min_size=1, max_size=8))
def test_the_table_finds_what_trying_every_route_finds(matches, requests):
    entries = []
    for match in matches:
        entry = (f"r{len(entries)}", match, f"r{len(entries)}")
        try:
            Router([*entries, entry], POLICY)
        except RouteConflict:
            continue
        entries.append(entry)
    table = Router(entries, POLICY)
    for path, method, host, headers in requests:
        request = Request(method, path, Headers.of(headers))
        request.host = host
        assert table.find(request) == naive(entries, request)
