"""Targets, paths and hosts: one table per rule, and the properties that hold for all of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from gw.http.paths import BadTarget, PathPolicy, normalise_host, normalise_path, parse_target, valid_host
from gw.limits import MAX_HOST_SIZE

DEFAULT = PathPolicy()
UNMERGED = PathPolicy(merge_slashes=False)
STRICT = PathPolicy(encoded_slash="reject")
LENIENT = PathPolicy(backslash="keep", nul="keep")

HIDDEN = "The path has a dot segment beside an encoded slash, a backslash or a semicolon"
ABOVE = "The path leaves the root: it has more .. segments than there are segments to leave"
HALF = "The path has a % that two hexadecimal digits do not follow; write %25 for the character"
FORM = "The request target must begin with /, http:// or https://"
HOST = "The request target names an invalid host or port"
BACKSLASH = "The path contains a backslash (%5C), which this gateway does not accept"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", ("", "/", None)),
        ("/a/b", ("", "/a/b", None)),
        ("/a/b/", ("", "/a/b/", None)),
        ("/a?", ("", "/a", "")),
        ("/a?b=c", ("", "/a", "b=c")),
        ("/a?b?c//d/../%zz", ("", "/a", "b?c//d/../%zz")),
        ("/a/../b?filter[x]=1|2&q={}", ("", "/b", "filter[x]=1|2&q={}")),
        ("/a;v=1,2/b:c@d!$&'()*+=~_-.", ("", "/a;v=1,2/b:c@d!$&'()*+=~_-.", None)),
        ("/.well-known/acme", ("", "/.well-known/acme", None)),
        ("/a/..b/...", ("", "/a/..b/...", None)),
        ("*", ("", "*", None)),
        ("http://a.example", ("a.example", "*", None)),
        ("http://a.example?", ("a.example", "/", "")),
        ("http://a.example/", ("a.example", "/", None)),
        ("http://a.example:8080/x/./y?z", ("a.example:8080", "/x/y", "z")),
        ("HTTPS://[::1]:443/", ("[::1]:443", "/", None)),
        ("http://A.example?b=/c", ("A.example", "/", "b=/c")),
    ],
)
def test_a_target_is_taken_apart(target, expected):
    assert parse_target(target, DEFAULT, "OPTIONS") == expected


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", FORM),
        ("a/b", FORM),
        ("?a", FORM),
        ("example.com:443", FORM),
        ("**", FORM),
        ("ftp://a/b", FORM),
        ("http:/a", FORM),
        ("http:///a", HOST),
        ("http://:80/", HOST),
        ("http://a:99999/", HOST),
        ("http://a b/", HOST),
        ("http://%61/", HOST),
        ("http://me@a/", "The request target must not carry user information (@)"),
        ("/a#b", "The request target has a fragment (#), which is not sent over HTTP; write %23 for the character"),
        ("/a?b#c", "The request target has a fragment (#), which is not sent over HTTP; write %23 for the character"),
        ("/a b", "The path contains U+0020, which must be percent-encoded (%20)"),
        ("/a\x00", "The path contains U+0000, which must be percent-encoded (%00)"),
        ("/a\r\n", "The path contains U+000D, which must be percent-encoded (%0D)"),
        ("/{a}", "The path contains U+007B, which must be percent-encoded (%7B)"),
        ("/ä", "The path contains U+00E4, which must be percent-encoded (%C3%A4)"),
        ("/a?b c", "The query contains U+0020, which must be percent-encoded (%20)"),
        ("/a?b\n", "The query contains U+000A, which must be percent-encoded (%0A)"),
        ("http://a/?\x7f", "The query contains U+007F, which must be percent-encoded (%7F)"),
    ],
)
def test_a_target_of_no_known_form_is_refused(target, message):
    with pytest.raises(BadTarget) as caught:
        parse_target(target, DEFAULT, "GET")
    assert str(caught.value) == message


def test_the_asterisk_belongs_to_options():
    with pytest.raises(BadTarget, match=re.escape("The request target * belongs to OPTIONS only")):
        parse_target("*", DEFAULT, "GET")


def test_an_absolute_target_without_a_path_asks_for_the_root():
    assert parse_target("http://a.example", DEFAULT, "GET") == ("a.example", "/", None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/%41%7a%2d%5F%7E", "/Az-_~"),
        ("/%2a%3f%e2%82%ac", "/%2A%3F%E2%82%AC"),
        ("/%252e%252E/x", "/%252e%252E/x"),
        ("/a%2fb", "/a%2Fb"),
        ("//a///b//", "/a/b/"),
        ("/./a/./b/.", "/a/b/"),
        ("/a/b/..", "/a/"),
        ("/a/b/../", "/a/"),
        ("/a/b/../../c", "/c"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/a//../b", "/b"),
        ("/a/..", "/"),
        ("/.", "/"),
        ("/a;x=..", "/a;x=.."),
        ("/a%2F..b", "/a%2F..b"),
    ],
)
def test_a_path_has_one_spelling(path, expected):
    assert normalise_path(path, DEFAULT) == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/%", HALF),
        ("/%4", HALF),
        ("/%zz", HALF),
        ("/%4g", HALF),
        ("/%%41", HALF),
        ("/..", ABOVE),
        ("/a/../../b", ABOVE),
        ("/%2e%2e/etc/passwd", ABOVE),
        ("/..;/admin", HIDDEN),
        ("/a/..;x=1/b", HIDDEN),
        ("/a/.;/b", HIDDEN),
        ("/a/%2e%2e%3b/b", HIDDEN),
        ("/a%2f..%2fb", HIDDEN),
        ("/a/..%2fb", HIDDEN),
        ("/a%2f../b", HIDDEN),
        ("/a%2F..", HIDDEN),
        ("/a%2F.;b", HIDDEN),
        ("/a\\b", BACKSLASH),
        ("/a%5cb", BACKSLASH),
        ("/a%00", "The path contains an encoded NUL (%00), which this gateway does not accept"),
    ],
)
def test_a_path_with_no_reading_or_with_two_is_refused(path, message):
    with pytest.raises(BadTarget) as caught:
        normalise_path(path, DEFAULT)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("policy", "path", "expected"),
    [
        (UNMERGED, "//a//b//", "//a//b//"),
        (UNMERGED, "/a//../b", "/a/b"),
        (UNMERGED, "/a/..//b", "//b"),
        (LENIENT, "/a\\b%5cc", "/a%5Cb%5Cc"),
        (LENIENT, "/a%00b", "/a%00b"),
    ],
)
def test_a_policy_decides_where_upstreams_differ(policy, path, expected):
    assert normalise_path(path, policy) == expected


@pytest.mark.parametrize("path", ["/a\\..\\b", "/a/..%5cb", "/a\\.."])
def test_a_kept_backslash_hides_no_dot_segment(path):
    with pytest.raises(BadTarget, match=HIDDEN):
        normalise_path(path, LENIENT)


def test_an_encoded_slash_can_be_refused():
    message = "The path contains an encoded slash (%2F), which this gateway does not accept"
    with pytest.raises(BadTarget, match=re.escape(message)):
        normalise_path("/a%2fb", STRICT)


POLICIES = st.builds(
    PathPolicy,
    merge_slashes=st.booleans(),
    encoded_slash=st.sampled_from(["keep", "reject"]),
    backslash=st.sampled_from(["keep", "reject"]),
    nul=st.sampled_from(["keep", "reject"]),
)
PIECES = ["/", "//", ".", "..", "a", "b", ";", "%2e", "%2E", "%2f", "%5C", "\\", "%00", "%41", "%25", "%", "%3b", "?"]
PATHS = st.lists(st.sampled_from(PIECES), max_size=12).map(lambda pieces: "/" + "".join(pieces))


@given(PATHS, POLICIES)
def test_an_accepted_path_is_normal_for_good(target, policy):
    try:
        _, path, query = parse_target(target, policy, "GET")
    except BadTarget:
        return
    assert parse_target(path, policy, "GET") == ("", path, None)
    assert query == (target.partition("?")[2] if "?" in target else None)


@given(PATHS, POLICIES)
def test_an_accepted_path_hides_nothing(target, policy):
    try:
        _, path, _ = parse_target(target, policy, "GET")
    except BadTarget:
        return
    assert path.startswith("/")
    # As a careless server reads it: escapes decoded once, backslashes as slashes, parameters cut off.
    decoded = re.sub("%(2F|5C|3B|00)", lambda e: chr(int(e[1], 16)), path).replace("\\", "/")
    segments = [segment.partition(";")[0] for segment in decoded.split("/")[1:]]
    assert not {".", ".."} & set(segments)
    if policy.merge_slashes:
        assert "//" not in path
    for setting, hidden in ((policy.encoded_slash, "%2F"), (policy.backslash, "%5C"), (policy.nul, "%00")):
        assert setting == "keep" or hidden not in path


@given(st.text(max_size=40), POLICIES)
def test_no_text_can_do_worse_than_be_refused(target, policy):
    try:
        _, path, _ = parse_target(target, policy, "OPTIONS")
    except BadTarget:
        return
    assert path == "*" or re.fullmatch(r"/[!-~]*", path)


@pytest.mark.parametrize(
    ("host", "normal"),
    [
        ("a", "a"),
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("example.com:8080", "example.com"),
        ("example.com.:8080", "example.com"),
        ("my_service-1:80", "my_service-1"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("[::1]", "::1"),
        ("[::1]:8080", "::1"),
        ("[2001:DB8:0:0::1]", "2001:db8::1"),
        ("a:65535", "a"),
        ("a" * (MAX_HOST_SIZE - 3) + ":80", "a" * (MAX_HOST_SIZE - 3)),
    ],
)
def test_a_valid_host_has_one_spelling(host, normal):
    assert valid_host(host)
    assert normalise_host(host) == normal


@pytest.mark.parametrize(
    "host",
    [
        *("", ":80", ".", ".a", "a..b", "a:", "a:b", "a:65536", "a:123456", "a:1:2", "a b", "a\n", "a/b", "a@b", "a,b"),
        *("%61", "ä", "a?b", "a#b", "::1", "[::1", "[]", "[a]", "[::1]x", "[::1]:", "[fe80::1%25eth0]", "[v1.a]"),
        *("[1.2.3.4]", "a\x00", "a'b", "٣", "a" * (MAX_HOST_SIZE + 1)),
    ],
)
def test_anything_else_is_no_host(host):
    assert not valid_host(host)
