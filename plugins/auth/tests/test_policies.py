"""Which policy a request falls under, and what it thinks of who was recognised."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from scripted import URL, claims, jwt_issuer

from gw import Client, Exchange, Headers, Request
from gw_auth.counts import Rows
from gw_auth.covered import Covered
from gw_auth.issuers import recognised
from gw_auth.policies import Ambiguous, Rule, Table
from gw_auth.settings import GatewayPolicy


def rule(name="p", **policy):
    made = GatewayPolicy.model_validate({"name": name, "public": "issuers" not in policy, **policy}, strict=False)
    return Rule.of(made, name, None, "gw.yaml:41:3", Rows())


def asking(path, host="example.test", method="GET"):
    request = Request(method, path, Headers())
    request.host = host
    return Exchange(request, Client("192.0.2.9", "192.0.2.9"))


def found(table, *args, **rest):
    one = table.find(asking(*args, **rest))
    return None if one is None else one.name


TABLE = Table(
    [
        Covered("", rule("all")),
        Covered("/api", rule("api")),
        Covered("/api/admin", rule("admin")),
        Covered("/api/admin/health", rule("health")),
        Covered("/host", rule("host"), hosts=("a.test", "*.b.test", "[::1]")),
        Covered("/write", rule("write"), methods=("POST", "PUT")),
        Covered("/read", rule("read"), methods=("GET",)),
        Covered("/both", rule("for-a"), hosts=("a.test",)),
        Covered("/both", rule("anywhere")),
        Covered("/both", rule("posts"), methods=("POST",)),
    ]
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "all"),
        ("*", "all"),
        ("/api", "api"),
        ("/api/", "api"),
        ("/api/x", "api"),
        ("/apis", "all"),
        ("/API", "all"),
        ("/api/admin", "admin"),
        ("/api/admins", "api"),
        ("/api/admin/health", "health"),
        ("/api/admin/health/x", "health"),
        ("/api/admin/healthy", "admin"),
    ],
)
def test_the_longest_prefix_counts_from_segment_to_segment(path, name):
    assert found(TABLE, path) == name


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.test", "host"),
        ("A.Test:8080", "host"),
        ("a.test.", "host"),
        ("x.b.test", "host"),
        ("b.test", "all"),
        ("xb.test", "all"),
        ("a.test.evil", "all"),
        ("[::1]:80", "host"),
        ("", "all"),
    ],
)
def test_a_policy_may_be_for_some_hosts(host, name):
    assert found(TABLE, "/host/x", host) == name


def test_a_policy_may_be_for_some_methods():
    assert [found(TABLE, "/write", method=each) for each in ("POST", "PUT", "GET", "post")] == [
        "write",
        "write",
        "all",
        "all",
    ]


def test_what_is_for_get_is_for_head_too():
    assert [found(TABLE, "/read", method=each) for each in ("GET", "HEAD", "POST")] == ["read", "read", "all"]


def test_of_one_prefix_the_more_particular_counts():
    assert found(TABLE, "/both", "a.test") == "for-a"
    assert found(TABLE, "/both", "a.test", "POST") == "for-a"
    assert found(TABLE, "/both", "c.test", "POST") == "posts"
    assert found(TABLE, "/both", "c.test") == "anywhere"


@pytest.mark.parametrize(
    "path", ["/api%2Fadmin", "/api;x/admin", "/x;/api", "//api", "/api%5Cadmin", "/api/admin;v=1", "/api//admin"]
)
def test_a_path_with_two_readings_under_two_policies_is_refused(path):
    expected = found(TABLE, path) if path == "/x;/api" else None
    if expected is None:
        with pytest.raises(Ambiguous):
            TABLE.find(asking(path))


@pytest.mark.parametrize(
    ("path", "name"), [("/api/a%2Fb", "api"), ("/api/x;y", "api"), ("/else%2Fapi", "all"), ("/api//x", "api")]
)
def test_a_path_with_two_readings_under_one_policy_passes(path, name):
    assert found(TABLE, path) == name


def test_without_a_policy_there_is_none():
    assert found(Table([Covered("/a", rule())]), "/b") is None
    assert len(Table([])) == 0


prefixes = st.lists(st.sampled_from(["", "/a", "/a/b", "/a/b/c", "/ab", "/b"]), unique=True)


@given(prefixes, st.text("ab/", min_size=1).map(lambda text: "/" + text.strip("/").replace("//", "/")))
def test_the_table_agrees_with_three_lines_of_arithmetic(chosen, path):
    if "//" in path:
        return
    table = Table([Covered(prefix, rule(prefix or "root")) for prefix in chosen])
    fits = [prefix for prefix in chosen if path == prefix or path.startswith(prefix + "/")]
    assert found(table, path) == (max(fits, key=len) or "root" if fits else None)


# --- judging -----------------------------------------------------------------------------------------


def judged(policy, issuer=None, **changed):
    source = jwt_issuer(**(issuer or {}))
    who = recognised(source, claims(**changed), "jwt")
    return rule("api-read", issuers=["main"], **policy).unfit(asking("/"), who)


@pytest.mark.parametrize(
    ("policy", "issuer", "aud", "passes"),
    [
        ({}, {}, None, True),
        ({}, {}, "a", True),
        ({}, {"audiences": ["a", "b"]}, "a", True),
        ({}, {"audiences": ["a", "b"]}, ["x", "b"], True),
        ({}, {"audiences": ["a"]}, None, False),
        ({}, {"audiences": ["a"]}, [], False),
        ({}, {"audiences": ["a"]}, "A", False),
        ({"required_audience": "c"}, {"audiences": ["a"]}, "a", False),
        ({"required_audience": "c"}, {"audiences": ["a"]}, "c", True),
        ({"required_audience": "c"}, {}, ["c", "d"], True),
    ],
)
def test_a_policy_s_audience_stands_for_the_issuer_s(policy, issuer, aud, passes):
    assert (judged(policy, issuer, aud=aud) is None) is passes


def test_operators_are_told_exactly_why():
    refused = judged({"required_audience": "b"}, aud=["a", "x\x1b[2J"])
    assert refused.detail == "audience mismatch: token has [a, x?[2J], policy api-read wants [b] (gw.yaml:41:3)"
    assert (refused.text, refused.reason, refused.issuer) == ("audience mismatch", "aud_mismatch", "main")


def test_required_claims_must_be_there_whatever_they_are():
    issuer = {"required_claims": ["tenant"]}
    refused = judged({}, issuer)
    assert (refused.text, refused.detail) == ("missing required claim", "missing required claim: token has no tenant")
    assert judged({}, issuer, tenant=["a"]) is None
    assert judged({}, issuer, tenant="") is None


@pytest.mark.parametrize(
    ("changed", "passes"),
    [
        ({"scope": "a b"}, True),
        ({"scope": " b\ta  c "}, True),
        ({"scope": "a"}, False),
        ({"scope": "ab"}, False),
        ({"scope": None}, False),
        ({"scope": None, "scp": ["a", "b"]}, True),
        ({"scope": None, "scp": "a b"}, True),
        ({"scope": None, "scopes": ["b", "a"]}, True),
        ({"scope": "a", "scp": ["a", "b"]}, False),
        ({"scope": ["a", "b"], "scp": ["c"]}, False),
    ],
)
def test_all_scopes_are_needed(changed, passes):
    who = recognised(jwt_issuer(), claims(**changed), "jwt")
    refused = rule("p", issuers=["main"], required_scopes=["a", "b"]).lacks_scope(who)
    assert (refused is None) is passes
    if refused is not None:
        assert (refused.status, refused.error) == (403, "insufficient_scope")


def test_an_introspected_token_is_told_in_other_words():
    who = recognised(jwt_issuer(), {"sub": "a", "iss": URL}, "introspection")
    assert rule("p", issuers=["main"], required_scopes=["a"]).lacks_scope(who).text == "insufficient scope"
