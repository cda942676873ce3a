"""Whom a zone counts by."""

from __future__ import annotations

import pytest

from gw import IDENTITY, Client, Exchange, Headers, Identity, Request, RouteInfo
from gw_ratelimit.keys import SEPARATOR, key_reader, reads_secrets

CLAIMS = {"plan": "gold", "n": 7, "ok": True, "l": ["b", "a"], "d": {"a": 1}, "nul": "a\0b"}


def exchange(ip="198.51.100.7", **headers):
    lines = [(name.replace("_", "-"), value) for name, value in headers.items()]
    request = Request("GET", "/a/b?c", Headers.of(lines))
    request.path = "/a/b"
    ex = Exchange(request, Client(ip, "192.0.2.1"))
    ex.asked_host, ex.route, ex.params = "example.test", RouteInfo("users"), {"id": "7"}
    ex[IDENTITY] = Identity("ann", "https://idp", frozenset({"w", "r"}), CLAIMS)
    request.path, request.host = "/rewritten", "other.test"
    return ex


@pytest.mark.parametrize(
    ("key_type", "key"),
    [
        ("client_ip", "198.51.100.7"),
        ("path", "/a/b"),
        ("host", "example.test"),
        ("method", "GET"),
        ("route", "users"),
        ("header:X-Key", "k"),
        ("header:x-none", ""),
        ("cookie:sid", "s1=2"),
        ("cookie:si", ""),
        ("param:id", "7"),
        ("param:none", ""),
        ("identity", "https://idp ann"),
        ("identity.sub", "ann"),
        ("identity.scopes", "r w"),
        ("identity.claim:plan", "gold"),
        ("identity.claim:n", "7"),
        ("identity.claim:ok", "true"),
        ("identity.claim:l", "a b"),
        ("identity.claim:d", ""),
        ("identity.claim:nul", "a b"),
        ("identity.claim:none", ""),
        ("client_ip+path", "198.51.100.7|/a/b"),
        ("client_ip+header:x-none", ""),
        ("method+route+header:x-key", "GET|users|k"),
    ],
)
def test_a_key_is_what_its_parts_are(key_type, key):
    ex = exchange(x_key="k", cookie="a=b; sid=s1=2")
    assert key_reader(key_type, 64)(ex) == key.replace("|", SEPARATOR)


@pytest.mark.parametrize("key_type", ["identity", "identity.sub", "identity.scopes", "identity.claim:plan"])
def test_without_an_identity_there_is_no_key(key_type):
    ex = Exchange(Request("GET", "/"), Client("a", "a"))
    assert key_reader(key_type, 64)(ex) == ""


@pytest.mark.parametrize(
    ("ip", "prefix", "key"),
    [
        ("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3:4:5:6", 128, "2001:db8:1:2:3:4:5:6/128"),
        ("2001:db8:1:2:3:4:5:6", 41, "2001:db8::/41"),
        ("::ffff:192.0.2.9", 64, "192.0.2.9"),
        ("192.0.2.9", 64, "192.0.2.9"),
        ("unix:", 64, "unix:"),
    ],
)
def test_an_address_of_ipv6_is_its_network(ip, prefix, key):
    assert key_reader("client_ip", prefix)(exchange(ip)) == key


def test_no_client_can_make_his_key_look_like_anothers():
    read = key_reader("header:a+header:b", 64)
    assert read(exchange(a="x|y", b="z")) != read(exchange(a="x", b="y|z"))


def test_what_may_be_a_secret_is_known():
    assert [reads_secrets(each) for each in ("client_ip", "header:x", "path+cookie:x", "identity")] == [
        False,
        True,
        True,
        False,
    ]
