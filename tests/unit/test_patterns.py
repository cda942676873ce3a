"""Reading patterns: what each form means, and what is said about those that mean nothing."""

from __future__ import annotations

import pytest

from gw.http.paths import PathPolicy
from gw.limits import MAX_PATTERN_SEGMENTS
from gw.patterns import (
    BadPattern,
    Parameter,
    Pattern,
    kept_path,
    parse_host,
    parse_pattern,
    parse_prefix,
    reference_patterns,
)

POLICY = PathPolicy()


@pytest.mark.parametrize(
    ("text", "segments", "catch_all", "names"),
    [
        ("/", ("",), None, ()),
        ("/a/b", ("a", "b"), None, ()),
        ("/a/", ("a", ""), None, ()),
        ("/:id", (Parameter("id"),), None, ("id",)),
        ("/:id/", (Parameter("id"), ""), None, ("id",)),
        ("/:id([0-9]+)/x", (Parameter("id", "[0-9]+"), "x"), None, ("id",)),
        ("/:a([^/)]+)", (Parameter("a", "[^/)]+"),), None, ("a",)),
        ("/:a([]/)]x)", (Parameter("a", "[]/)]x"),), None, ("a",)),
        (r"/:a((x|\)|y)+)/:b", (Parameter("a", r"(x|\)|y)+"), Parameter("b")), None, ("a", "b")),
        ("/*", (), "", ()),
        ("/*rest", (), "rest", ("rest",)),
        ("/a/:id([0-9]+)/*rest", ("a", Parameter("id", "[0-9]+")), "rest", ("id", "rest")),
        ("/a:b/c*d", ("a:b", "c*d"), None, ()),
        ("/%7euser/%2f", ("~user", "%2F"), None, ()),
        ("/größe/a b", ("gr%C3%B6%C3%9Fe", "a%20b"), None, ()),
    ],
)
def test_a_pattern_is_taken_apart(text, segments, catch_all, names):
    pattern = parse_pattern(text, POLICY)
    assert pattern == Pattern(text, segments, catch_all)
    assert pattern.names == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'': a path begins with a slash; write '/'"),
        ("a", "'a': a path begins with a slash; write '/a'"),
        ("//a", "'//a': has an empty segment (//); remove one of the slashes"),
        ("/a//b", "'/a//b': has an empty segment (//); remove one of the slashes"),
        ("/:", "'/:': ':' needs a name of letters, digits and '_'; to match ':' itself, use `regex`"),
        ("/:1", "'/:1': ':' needs a name of letters, digits and '_'; to match ':' itself, use `regex`"),
        ("/:a-b", "'/:a-b': after ':a' comes '/' or '(regex)', not '-'"),
        ("/:a([0-9]+", "'/:a([0-9]+': the regex of ':a' is never closed; add ')'"),
        ("/:a([)])x", "'/:a([)])x': after the regex of ':a' comes '/', not 'x'"),
        ("/:a([)", "'/:a([)': the regex of ':a' is never closed; add ')'"),
        ("/:a([]", "'/:a([]': the regex of ':a' is never closed; add ')'"),
        ("/:a(*)", "'/:a(*)': '*' is no regular expression: nothing to repeat at position 0"),
        ("/*a/b", "'/*a/b': '*' matches all that follows; nothing can come after it"),
        ("/*a-b", "'/*a-b': 'a-b' is no name of letters, digits and '_'; to match '*' itself, use `regex`"),
        ("/:a/:a", "'/:a/:a': the name 'a' is given twice; rename one of them"),
        ("/:a/*a", "'/:a/*a': the name 'a' is given twice; rename one of them"),
        ("/a/{id}", "'/a/{id}': '{id}' is no parameter here; write ':id'"),
        ("/a?b", "'/a?b': a path has no '?' and no '#'; match the query with `query`"),
        ("/a/../b", "'/a/../b': dot segments are resolved before matching; write the path they lead to"),
        ("/%2e", "'/%2e': dot segments are resolved before matching; write the path they lead to"),
        (
            "/50%",
            (
                "'/50%': no request can match '50%': The path has a % that two hexadecimal digits do not follow; "
                "write %25 for the character"
            ),
        ),
        (
            "/a\\b",
            (
                r"'/a\\b': no request can match 'a\\b': "
                "The path contains a backslash (%5C), which this gateway does not accept"
            ),
        ),
        (
            "/a" * (MAX_PATTERN_SEGMENTS + 1),
            f"{'/a' * (MAX_PATTERN_SEGMENTS + 1)!r}: has more than 128 segments; end it in a catch-all",
        ),
    ],
)
def test_a_pattern_that_means_nothing_says_why(text, message):
    with pytest.raises(BadPattern) as caught:
        parse_pattern(text, POLICY)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "segments", "bare"),
    [("/", (), False), ("/api", ("api",), True), ("/api/", ("api",), False), ("/%7Ea/b:c", ("~a", "b:c"), True)],
)
def test_a_prefix_is_a_catch_all_that_may_match_bare(text, segments, bare):
    assert parse_prefix(text, POLICY) == Pattern(text, segments, "", bare)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("api", "'api': a path begins with a slash; write '/api'"),
        ("/:id/x", "'/:id/x': a prefix is literal, and takes no ':id/x'; write it as a path"),
        ("/a/*", "'/a/*': a prefix is literal, and takes no '*'; write it as a path"),
        ("/a//", "'/a//': has an empty segment (//); remove one of the slashes"),
        (
            "/a" * (MAX_PATTERN_SEGMENTS + 1),
            f"{'/a' * (MAX_PATTERN_SEGMENTS + 1)!r}: has more than 128 segments; end it sooner",
        ),
    ],
)
def test_a_prefix_that_means_nothing_says_why(text, message):
    with pytest.raises(BadPattern) as caught:
        parse_prefix(text, POLICY)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("*", "*"),
        ("API.example.com.", "api.example.com"),
        ("*.Example.com", "*.example.com"),
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("[2001:DB8::0:1]", "2001:db8::1"),
    ],
)
def test_a_host_pattern_has_one_spelling(text, host):
    assert parse_host(text) == host


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "host '': is neither a name nor an address"),
        ("a b", "host 'a b': is neither a name nor an address"),
        ("1:2:3", "host '1:2:3': is neither a name nor an address"),
        ("*.[::1]", "host '*.[::1]': is neither a name nor an address"),
        ("a.com:80", "host 'a.com:80': hosts are matched without their port; remove it"),
        ("[::1]:80", "host '[::1]:80': hosts are matched without their port; remove it"),
        ("a.*.com", "host 'a.*.com': '*' stands for whole labels, once and first, as in '*.example.com'"),
        ("*a.com", "host '*a.com': '*' stands for whole labels, once and first, as in '*.example.com'"),
        ("bücher.de", "host 'bücher.de': has letters beyond ASCII; write it as clients send it, beginning with 'xn--'"),
    ],
)
def test_a_host_that_no_request_has_is_refused(text, message):
    with pytest.raises(BadPattern) as caught:
        parse_host(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("route_prefix", "patterns"),
    [
        ("/api", ["/api", "/api/*proxy_path"]),
        ("/api/", ["/api/", "/api/*proxy_path"]),
        ("/", ["/", "/*proxy_path"]),
        ("/api/*rest", ["/api/*rest", "/api"]),
        ("/*rest", ["/*rest"]),
        ("/u/:id", ["/u/:id", "/u/:id/*proxy_path"]),
        ("/u/:id([^/*]+)/*", ["/u/:id([^/*]+)/*", "/u/:id([^/*]+)"]),
    ],
)
def test_a_route_prefix_stands_for_the_references_patterns(route_prefix, patterns):
    assert reference_patterns(route_prefix, POLICY) == patterns


@pytest.mark.parametrize(
    ("pattern", "path", "kept"),
    [
        ("/api/*rest", "/api/x/y", "/x/y"),
        ("/api/*rest", "/api/", "/"),
        ("/api/*rest", "/api", "/"),
        ("/u/:id/*rest", "/u/7/x", "/x"),
        ("/*rest", "/x/y", "/x/y"),
        ("/api", "/api", "/"),
        ("/api/", "/api/", "/"),
    ],
)
def test_stripping_keeps_what_the_catch_all_matched(pattern, path, kept):
    assert kept_path(path, parse_pattern(pattern, POLICY).strips) == kept
