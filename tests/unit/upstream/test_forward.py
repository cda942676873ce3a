"""The header rules of behaviour 11.1: what an upstream is told, and what of the client's own words is believed."""

from __future__ import annotations

import pytest

from gw.testing.gateway import Upstream, in_memory

TRUSTED = {"trusted_proxies": ["198.51.100.0/24"]}


def upstream_config(proxy=None, /, **rewrite):
    return {
        "upstreams": [
            {
                "name": "up",
                "host": "192.0.2.1",
                "proxy": {"route_prefix": "/", "header_rewrite": rewrite, **(proxy or {})},
            },
        ]
    }


async def asked(fields="", /, *, line="GET /x?q HTTP/1.1", client="198.51.100.7", body=b"", **config):
    """Return the fields that the upstream got, in order, without the request id."""
    upstream = Upstream()
    async with in_memory({**upstream_config(), **config}, upstream) as gateway:
        head = f"{line}\nhost: example.test\n{fields}\n".replace("\n", "\r\n").encode()
        await gateway.request(head + body, client=client)
        return [(name, value) for name, value in upstream.asked[0].head.headers if name != "x-request-id"]


async def test_an_untrusted_client_is_described_in_our_words_only():
    said = "x-forwarded-for: 1.1.1.1\nx-forwarded-proto: https\nx-forwarded-host: bank.test\nforwarded: for=1.1.1.1\n"
    assert await asked(said) == [
        ("host", "192.0.2.1"),
        ("x-forwarded-for", "198.51.100.7"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "example.test"),
        ("via", "1.1 gw"),
    ]


async def test_what_a_trusted_proxy_says_is_continued():
    said = "x-forwarded-for: 203.0.113.9\nx-forwarded-proto: https\nx-forwarded-host: public.test\n"
    assert await asked(said, **TRUSTED) == [
        ("host", "192.0.2.1"),
        ("x-forwarded-for", "203.0.113.9, 198.51.100.7"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "public.test"),
        ("via", "1.1 gw"),
    ]


async def test_lines_of_a_trusted_proxy_are_joined_in_their_order():
    fields = dict(await asked("x-forwarded-for: 203.0.113.9\nx-forwarded-for: 203.0.113.10\n", **TRUSTED))
    assert fields["x-forwarded-for"] == "203.0.113.9, 203.0.113.10, 198.51.100.7"


@pytest.mark.parametrize(
    ("fields", "trusted", "expected"),
    [
        ("", {}, "for=198.51.100.7;host=example.test;proto=http"),
        ("forwarded: for=203.0.113.9\n", {}, "for=198.51.100.7;host=example.test;proto=http"),
        (
            "forwarded: for=203.0.113.9;proto=https\n",
            TRUSTED,
            "for=203.0.113.9;proto=https, for=198.51.100.7;host=example.test;proto=https",
        ),
    ],
)
async def test_forwarded_is_written_as_rfc_7239_wants_it(fields, trusted, expected):
    config = upstream_config(
        set_forwarded=True, set_x_forwarded_for=False, set_x_forwarded_proto=False, set_x_forwarded_host=False
    )
    told = dict(await asked(fields, **config, **trusted))["forwarded"]
    elements = [set(element.split(";")) for element in told.split(", ")]
    assert elements == [set(element.split(";")) for element in expected.split(", ")]


async def test_each_of_them_can_be_switched_off():
    config = upstream_config(
        set_x_forwarded_for=False, set_x_forwarded_proto=False, set_x_forwarded_host=False, set_via_header=False
    )
    said = "x-forwarded-for: 1.1.1.1\nx-forwarded-proto: https\nx-forwarded-host: bank.test\nforwarded: for=1.1.1.1\n"
    assert await asked(said, **config) == [("host", "192.0.2.1")]


async def test_via_is_added_behind_the_ones_before():
    assert [value for name, value in await asked("via: 1.0 cache\n") if name == "via"] == ["1.0 cache", "1.1 gw"]


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ({"host": "192.0.2.1", "port": 80}, "192.0.2.1"),
        ({"host": "192.0.2.1", "port": 8080}, "192.0.2.1:8080"),
        ({"host": "2001:db8::1", "port": 8080}, "[2001:db8::1]:8080"),
    ],
)
@pytest.mark.parametrize("rewritten", [True, False])
async def test_host_is_the_endpoints_or_the_clients(endpoint, host, rewritten):
    upstream = Upstream()
    config = upstream_config(rewrite_host=rewritten)
    config["upstreams"][0] |= endpoint
    async with in_memory(config, upstreams={f"{endpoint['host']}:{endpoint['port']}": upstream}) as gateway:
        await gateway.get("/")
    assert upstream.asked[0].head.headers.get("host") == (host if rewritten else "example.test")


@pytest.mark.parametrize(
    ("line", "fields", "body", "framing"),
    [
        ("GET / HTTP/1.1", "", b"", None),
        ("DELETE / HTTP/1.1", "", b"", None),
        ("POST / HTTP/1.1", "", b"", ("content-length", "0")),
        ("PUT / HTTP/1.0", "", b"", ("content-length", "0")),
        ("PATCH / HTTP/1.1", "content-length: 0\n", b"", ("content-length", "0")),
        ("GET / HTTP/1.1", "content-length: 3\n", b"abc", ("content-length", "3")),
        ("POST / HTTP/1.1", "transfer-encoding: chunked\n", b"3\r\nabc\r\n0\r\n\r\n", ("transfer-encoding", "chunked")),
    ],
)
async def test_the_framing_is_ours(line, fields, body, framing):
    found = [
        each for each in await asked(fields, line=line, body=body) if each[0] in ("content-length", "transfer-encoding")
    ]
    assert found == ([framing] if framing else [])


@pytest.mark.parametrize(
    "said",
    [
        "te: gzip, trailers\n",
        "te: gzip, trailers\nconnection: te\n",
    ],
)
async def test_te_trailers_is_said_anew(said):
    fields = dict(await asked(said))
    assert (fields.get("te"), fields.get("connection")) == ("trailers", "te")


@pytest.mark.parametrize(
    ("prefix", "target", "sent"),
    [("/api", "/api/users?x=1", "/users?x=1"), ("/api", "/api", "/"), ("/api/:version", "/api/v1/users", "/users")],
)
async def test_a_prefix_can_be_stripped(prefix, target, sent):
    upstream = Upstream()
    async with in_memory(upstream_config({"route_prefix": prefix, "strip_prefix": True}), upstream) as gateway:
        await gateway.get(target)
    assert upstream.asked[0].head.target == sent


class TestRequestIds:
    @pytest.mark.parametrize(
        ("settings", "client", "kept"),
        [
            ({}, "198.51.100.7", True),
            ({}, "203.0.113.1", False),
            ({"trust": "always"}, "203.0.113.1", True),
            ({"trust": "never"}, "198.51.100.7", False),
        ],
    )
    async def test_whose_own_identifier_is_kept(self, settings, client, kept):
        upstream = Upstream()
        async with in_memory({**TRUSTED, "request_id": settings}, upstream) as gateway:
            await gateway.get("/", {"x-request-id": "theirs"}, client=client)
        told = upstream.asked[0].head.headers.get_all("x-request-id")
        assert len(told) == 1
        assert (told[0] == "theirs") is kept
        assert kept or len(told[0]) == 32

    @pytest.mark.parametrize("theirs", ["x" * 129, "caf\xe9"])
    async def test_one_that_could_do_harm_is_replaced(self, theirs):
        upstream = Upstream()
        async with in_memory({"request_id": {"trust": "always"}}, upstream) as gateway:
            head = f"GET / HTTP/1.1\r\nhost: a\r\nx-request-id: {theirs}\r\n\r\n".encode("latin-1")
            await gateway.request(head)
        assert len(upstream.asked[0].head.headers.get("x-request-id")) == 32

    async def test_no_two_are_alike(self):
        upstream = Upstream()
        async with in_memory(upstream=upstream) as gateway:
            for _ in range(300):
                await gateway.get("/")
        assert len({each.head.headers.get("x-request-id") for each in upstream.asked}) == 300

    async def test_the_field_has_the_name_it_is_given_or_is_left_out(self):
        for settings, told in (({"header": "x-trace"}, True), ({"enabled": False}, False)):
            upstream = Upstream()
            async with in_memory({"request_id": settings}, upstream) as gateway:
                await gateway.get("/")
            headers = upstream.asked[0].head.headers
            assert ("x-trace" in headers, "x-request-id" in headers) == (told, False)
