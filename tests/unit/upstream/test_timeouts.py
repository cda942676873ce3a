"""The time of a whole exchange: the route's, the client's, and what is passed on. The gateway is real, time is virtual."""

from __future__ import annotations

import pytest

from gw.filters import Exchange, Headers, Request
from gw.keys import Client
from gw.net.stream import StreamLost
from gw.testing.gateway import Upstream, in_memory, read_answer
from gw.testing.memory import Backlog
from gw.upstream.timeouts import Asked, asked_by

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
TRUSTED = "10.0.0.1"


def config(route=None, **proxy):
    upstream = {"name": "up", "host": "192.0.2.1", "proxy": proxy}
    return {"upstreams": [upstream], "routes": [{"upstream": "up", **(route or {})}], "trusted_proxies": ["10.0.0.0/8"]}


def exchange(**headers):
    lines = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Exchange(Request("GET", "/", Headers.of(lines)), Client("192.0.2.9", "192.0.2.9"))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x_request_timeout": "3"}, 3.0),
        ({"x_request_timeout": "1.5"}, 1.5),
        ({"x_request_timeout": "1.5s"}, 1.5),
        ({"x_request_timeout": "250ms"}, 0.25),
        ({"grpc_timeout": "2S"}, 2.0),
        ({"grpc_timeout": "1H"}, 3600.0),
        ({"grpc_timeout": "3M"}, 180.0),
        ({"grpc_timeout": "100m"}, 0.1),
        ({"grpc_timeout": "100000u"}, 0.1),
        ({"grpc_timeout": "99999999n"}, 0.099999999),
        ({"grpc_timeout": "1S", "x_request_timeout": "9"}, 1.0),
    ],
)
def test_a_client_says_how_long_it_waits(headers, seconds):
    assert asked_by(exchange(**headers)).seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x_request_timeout": ""},
        {"x_request_timeout": "-1"},
        {"x_request_timeout": "1e9"},
        {"x_request_timeout": "1234567890"},
        {"x_request_timeout": "²"},
        {"grpc_timeout": "123456789S"},
        {"grpc_timeout": "1s"},
        {"grpc_timeout": "1.5S", "x_request_timeout": "3"},
    ],
)
def test_what_is_not_legible_is_no_timeout(headers):
    assert asked_by(exchange(**headers)) is None


@pytest.mark.parametrize(
    ("asked", "left", "written"),
    [
        (Asked("grpc-timeout", 9, "S"), 1.2345, "1234m"),
        (Asked("grpc-timeout", 9, "S"), -1, "0m"),
        (Asked("grpc-timeout", 9e6, "H"), 123456.7, "123456S"),
        (Asked("x-request-timeout", 9, ""), 1.2345, "1.234"),
        (Asked("x-request-timeout", 9, "s"), 2.0, "2s"),
        (Asked("x-request-timeout", 9, "ms"), 1.2345, "1234ms"),
    ],
)
def test_what_is_left_is_written_as_it_came_and_never_more(asked, left, written):
    assert asked.left(left) == written


async def get(gateway, headers="", client="198.51.100.7"):
    stream = gateway.connect(client)
    stream.write(f"GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n".encode())
    await gateway.network.settle()
    return stream


@pytest.mark.parametrize(
    ("proxy", "route", "headers", "client", "after"),
    [
        ({"exchange_timeout_ms": 2000}, {}, "", "198.51.100.7", 2.0),
        ({"exchange_timeout_ms": 2000}, {"exchange_timeout_ms": 500}, "", "198.51.100.7", 0.5),
        ({"client_timeout": "trusted"}, {}, "x-request-timeout: 1\r\n", TRUSTED, 1.0),
        ({"client_timeout": "always"}, {}, "grpc-timeout: 300m\r\n", "198.51.100.7", 0.3),
        ({}, {"client_timeout": "always"}, "grpc-timeout: 300m\r\n", "198.51.100.7", 0.3),
        ({"client_timeout": "always", "exchange_timeout_ms": 500}, {}, "grpc-timeout: 9S\r\n", "198.51.100.7", 0.5),
    ],
)
async def test_an_exchange_that_takes_too_long_is_answered_504(proxy, route, headers, client, after):
    async with in_memory(config(route, **proxy), Backlog()) as gateway:
        stream = await get(gateway, headers, client)
        await gateway.network.advance(after - 0.1)
        assert not stream.has_data
        await gateway.network.advance(0.25)
        assert (await read_answer(stream)).status == 504
        assert await gateway.leftovers() == []


@pytest.mark.parametrize(
    ("proxy", "client"),
    [({}, TRUSTED), ({"client_timeout": "trusted"}, "198.51.100.7"), ({"client_timeout": "never"}, TRUSTED)],
)
async def test_who_is_not_to_be_heeded_is_not_and_is_passed_on_as_it_is(proxy, client):
    backlog = Backlog()
    async with in_memory(config(**proxy), backlog) as gateway:
        stream = await get(gateway, "x-request-timeout: 1\r\n", client)
        upstream = await backlog.accept()
        assert b"x-request-timeout: 1\r\n" in await upstream.read_until(b"\r\n\r\n")
        await gateway.network.advance(5)
        assert not stream.has_data


async def test_a_response_that_is_under_way_is_cut_off_visibly():
    backlog = Backlog()
    async with in_memory(config(exchange_timeout_ms=1000), backlog) as gateway:
        stream = await get(gateway)
        (await backlog.accept()).write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nok")
        await gateway.network.advance(1.2)
        with pytest.raises(StreamLost):
            await stream.read_until(b"what never comes")


async def test_each_attempt_is_told_what_is_left():
    retry = {"max_retries": 1, "retry_on": [503]}
    busy = b"HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
    upstream = Upstream(busy, OK)
    async with in_memory(config(client_timeout="always", retry=retry), upstream) as gateway:
        stream = await get(gateway, "grpc-timeout: 5S\r\n")
        await gateway.network.advance(1.3)
        assert (await read_answer(stream)).status == 200
    first, second = (int(each.head.headers.get("grpc-timeout").removesuffix("m")) for each in upstream.asked)
    assert 4900 <= first <= 5000
    assert 3700 <= second <= 4050


async def test_no_retry_begins_that_the_client_would_not_wait_for():
    retry = {"max_retries": 5, "retry_on": [503]}
    busy = b"HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 4\r\n\r\nbusy"
    upstream = Upstream(busy, OK)
    async with in_memory(config(client_timeout="always", retry=retry), upstream) as gateway:
        stream = await get(gateway, "grpc-timeout: 800m\r\n")
        assert (await read_answer(stream)).status == 503
        assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    ("proxy", "after"),
    [({"send_timeout_ms": 500}, 0.5), ({"response_timeout_ms": 2000}, 2.0), ({"response_timeout_ms": 0}, 30.0)],
)
async def test_an_upstream_that_takes_nothing_of_a_body_is_given_up(proxy, after):
    backlog = Backlog()
    async with in_memory({**config(**proxy), "max_body_size": 0}, backlog) as gateway:
        stream = gateway.connect()
        stream.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000\r\n\r\n")
        upstream = await backlog.accept()
        stream.write(b"x" * 5_000_000)
        await gateway.network.advance(after - 0.2)
        assert not stream.has_data
        assert not upstream.lost
        await gateway.network.advance(0.4)
        assert (await read_answer(stream)).status == 504
