"""What a client is told when its request is refused, word for word, and that the connection is closed behind it."""

from __future__ import annotations

import pytest

from gw.testing.gateway import Upstream, in_memory, read_answer
from gw.testing.memory import Backlog

LONG = "x" * 9000


# A body of None: each engine says in its own words what is wrong with the grammar.
@pytest.mark.parametrize(
    ("head", "status", "body"),
    [
        ("GET / HTTP/1.1\n", 400, None),
        ("GET / HTTP/1.1\nhost: a\nhost: a\n", 400, None),
        ("GET / HTTP/1.1\nhost: a b\n", 400, b"Invalid Host header"),
        ("FETCH / HTTP/1.1\nhost: a\n", 400, None),
        ("GET / HTTP/2.0\nhost: a\n", 505, b"HTTP Version Not Supported"),
        ("GET /\\x HTTP/1.1\nhost: a\n", 400, None),
        ("GET /%00 HTTP/1.1\nhost: a\n", 400, None),
        ("GET * HTTP/1.1\nhost: a\n", 400, None),
        ("POST / HTTP/1.1\nhost: a\ncontent-length: 1\ntransfer-encoding: chunked\n", 400, None),
        ("POST / HTTP/1.1\nhost: a\ncontent-length: +1\n", 400, None),
        ("POST / HTTP/1.1\nhost: a\ncontent-length: 1048577\n", 413, b"Payload Too Large"),
        (f"GET /{LONG} HTTP/1.1\nhost: a\n", 431, b"Request Header Fields Too Large"),
        (f"GET / HTTP/1.1\nhost: a\nx: {LONG}\n", 431, b"Request Header Fields Too Large"),
        ("CONNECT a:443 HTTP/1.1\nhost: a:443\n", 501, b"CONNECT is not supported"),
    ],
)
async def test_a_bad_request_is_answered_and_the_connection_closed(engine, head, status, body):
    async with in_memory(engine=engine) as gateway:
        client = gateway.connect()
        client.write(head.replace("\n", "\r\n").encode() + b"\r\n")
        answer = await read_answer(client)
        assert (answer.status, answer.headers.get("connection")) == (status, "close")
        assert answer.headers.get("content-type", "").startswith("text/plain")
        assert answer.body == (body or answer.body) != b""
        client.write_eof()
        assert await client.read_until_end() == b""
        assert gateway.network.dialled == []


async def test_nothing_after_a_bad_request_is_served(engine):
    upstream = Upstream()
    async with in_memory(upstream=upstream, engine=engine) as gateway:
        client = gateway.connect()
        client.write(
            b"GET /good HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\n\r\nGET /after HTTP/1.1\r\nhost: a\r\n\r\n"
        )
        assert (await read_answer(client)).status == 200
        assert (await read_answer(client)).status == 400
        client.write_eof()
        assert await client.read_until_end() == b""
        assert [asked.head.target for asked in upstream.asked] == ["/good"]


@pytest.mark.parametrize(
    ("method", "path", "status", "body", "allowed"),
    [("GET", "/nowhere", 404, b"Not Found", set()), ("PUT", "/here", 405, b"Method Not Allowed", {"GET"})],
)
async def test_a_request_that_no_route_takes_leaves_the_connection_open(method, path, status, body, allowed):
    config = {
        "upstreams": [{"name": "up", "host": "192.0.2.1"}],
        "routes": [{"match": {"path": "/here", "methods": ["GET"]}, "upstream": "up"}],
    }
    async with in_memory(config) as gateway:
        client = gateway.connect()
        client.write(b"GET /here HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await read_answer(client)).headers.get("via") == "1.1 gw"
        client.write(f"{method} {path} HTTP/1.1\r\nhost: a\r\n\r\nGET /here HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        answer = await read_answer(client)
        assert (answer.status, answer.body) == (status, body)
        assert allowed <= set(answer.headers.get("allow", "").split(", "))
        assert "via" not in answer.headers, "nothing was forwarded, whatever the request before it was"
        assert (await read_answer(client)).status == 200


async def test_a_client_that_prefers_json_gets_a_problem_document():
    async with in_memory({"upstreams": []}) as gateway:
        answer = await gateway.get("/", {"accept": "application/json"})
        assert answer.headers.get("content-type") == "application/problem+json"
        assert answer.body.startswith(b'{"type": "about:blank", "title": "Not Found", "status": 404')


async def test_a_body_that_breaks_its_framing_is_refused_midway(engine):
    upstream = Backlog()
    async with in_memory(upstream=upstream, engine=engine) as gateway:
        client = gateway.connect()
        client.write(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        peer = await upstream.accept()
        await peer.read_until(b"one\r\n")
        client.write(b"zz\r\n")
        answer = await read_answer(client)
        assert (answer.status, answer.headers.get("connection")) == (400, "close")
        await gateway.network.settle()
        assert peer.lost, "the upstream must not take the half for the whole"


async def test_a_body_that_grows_too_large_is_refused_when_it_does(engine):
    upstream = Backlog()
    async with in_memory({"max_body_size": 5}, upstream, engine=engine) as gateway:
        client = gateway.connect()
        client.write(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        peer = await upstream.accept()
        await peer.read_until(b"one\r\n")
        client.write(b"3\r\ntwo\r\n")
        answer = await read_answer(client)
        assert (answer.status, answer.body) == (413, b"Payload Too Large")
        assert answer.headers.get("x-request-body-limit-exceeded") == "true"
        await gateway.network.settle()
        assert peer.lost


async def test_a_route_may_take_larger_bodies_than_the_gateway():
    config = {
        "max_body_size": 5,
        "upstreams": [{"name": "up", "host": "192.0.2.1"}],
        "routes": [
            {"match": {"path": "/large"}, "upstream": "up", "max_body_size": 10},
            {"match": {"path": "/small"}, "upstream": "up"},
        ],
    }
    async with in_memory(config) as gateway:
        client = gateway.connect()
        for path, status in (("/large", 200), ("/small", 413)):
            client.write(f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n123456789".encode())
            assert (await read_answer(client)).status == status


async def test_max_connections_turns_the_next_client_away():
    async with in_memory({"max_connections": 1}) as gateway:
        first = gateway.connect()
        await gateway.network.settle()
        turned_away = gateway.connect()
        answer = await read_answer(turned_away)
        assert (answer.status, answer.body) == (503, b"Service Unavailable")
        assert (answer.headers.get("connection"), answer.headers.get("retry-after")) == ("close", "1")
        assert gateway.gateway.rejected == 1
        first.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert (await read_answer(first)).status == 200
        await gateway.network.settle()
        assert (await gateway.get("/")).status == 200
