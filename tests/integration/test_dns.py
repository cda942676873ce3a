"""A gateway over sockets whose names a name server of ours answers: it follows them by their TTL, through reloads too."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest
from dns.rcode import Rcode
from name_server import name_server

from gw.config.load import load
from gw.gateway import Gateway
from gw.testing import PATIENCE

GET = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


@pytest.fixture
def soon(monkeypatch):
    """Let an answer hold for a tenth of a second at least, where five would be waited for."""
    monkeypatch.setattr("gw.upstream.names.TTL_LEAST", 0.1)


def settings(server, port=1, **dns):
    return {
        "bind_port": 0,
        "dns": {"resolver": "dnspython", "servers": [server.address]} | dns,
        "upstreams": [{"name": "up", "host": "api.example", "port": port, "proxy": {"route_prefix": "/"}}],
    }


@asynccontextmanager
async def upstream(text, ill=()):
    """Run an upstream that answers *text*, with 503 while that is among *ill*; gives its port."""

    async def serve(stream):
        async with stream:
            await stream.receive()
            status = b"503 Service Unavailable" if text in ill else b"200 OK"
            head = b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (status, len(text))
            await stream.send(head + text)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def serving(configuration):
    gateway, ready = Gateway(load(configuration, environ={})), anyio.Event()
    with anyio.fail_after(3 * PATIENCE):
        async with anyio.create_task_group() as tasks:

            async def serve():
                await gateway.serve(ready=ready.set)

            tasks.start_soon(serve)
            await ready.wait()
            yield gateway
            gateway.stop()


async def get(gateway, cookie=b""):
    got = b""
    async with await anyio.connect_tcp(*gateway.addresses["main"]) as client:
        await client.send(GET[:-2] + (b"cookie: %b\r\n" % cookie if cookie else b"") + b"\r\n")
        try:
            while True:
                got += await client.receive()
        except anyio.EndOfStream:
            return got


def addresses(gateway):
    return [str(member.endpoint) for member in gateway._current.now.services["up"].endpoints.members]


async def come(gateway, *wanted):
    """Wait until the upstream's endpoints are *wanted*; the time of `serving` bounds it."""
    endpoints = gateway._current.now.services["up"].endpoints
    while addresses(gateway) != list(wanted):
        changed = anyio.Event()
        endpoints.on_change.append(changed.set)
        await changed.wait()


@pytest.mark.usefixtures("soon")
async def test_an_upstream_follows_its_name_by_its_ttl_and_stays_while_the_server_fails():
    zone = {"api.example": ["0 A 127.0.0.1"]}
    async with upstream(b"here") as port:
        with name_server(zone) as server:
            async with serving(settings(server, port)) as gateway:
                assert (await get(gateway)).endswith(b"here")
                zone["api.example"] = ["0 A 192.0.2.1", "0 A 192.0.2.2"]
                await come(gateway, f"192.0.2.1:{port}", f"192.0.2.2:{port}")
                zone["api.example"] = ["300 A 127.0.0.1"]
                await come(gateway, f"127.0.0.1:{port}")
                zone["api.example"] = Rcode.SERVFAIL
                await gateway._current.now.services["up"].names.resolve()
                assert (await get(gateway)).endswith(b"here")


async def test_a_reload_looks_nothing_up_that_is_known():
    zone = {"api.example": ["300 A 127.0.0.1"]}
    async with upstream(b"here") as port:
        with name_server(zone) as server:
            configuration = settings(server, port)
            async with serving(configuration) as gateway:
                due = dict(gateway._current.now.services["up"].names._due)
                asked = list(server.asked)
                zone["api.example"] = None
                await gateway.reload(load(configuration | {"max_body_size": 5}, environ={}))
                assert (gateway.generation, server.asked) == (2, asked)
                assert gateway._current.now.services["up"].names._due == due
                assert (await get(gateway)).endswith(b"here")


async def test_a_name_that_is_not_there_is_502_until_it_is():
    zone = {}
    async with upstream(b"here") as port:
        with name_server(zone) as server:
            async with serving(settings(server, port)) as gateway:
                assert (await get(gateway)).startswith(b"HTTP/1.1 502 ")
                zone["api.example"] = ["60 A 127.0.0.1"]
                assert (await get(gateway)).endswith(b"here")


async def test_a_name_server_that_cannot_be_reached_does_not_keep_the_gateway_from_starting():
    with name_server({}) as server:
        pass
    async with serving(settings(server, resolve_timeout_ms=200, overall_timeout_ms=300)) as gateway:
        assert (await get(gateway)).startswith(b"HTTP/1.1 502 ")


def service(server, **more):
    configuration = settings(server, lookup_family="v4_only")
    configuration["upstreams"][0] |= {"endpoints": [{"srv": "_http._tcp.api.example"}], **more}
    del configuration["upstreams"][0]["host"], configuration["upstreams"][0]["port"]
    return configuration


async def test_a_service_is_followed_to_its_ports(soon):
    async with upstream(b"one") as one, upstream(b"other") as other:
        zone = {"_http._tcp.api.example": [f"0 SRV 0 1 {one} a.example."], "a.example": ["0 A 127.0.0.1"]}
        with name_server(zone) as server:
            async with serving(service(server)) as gateway:
                assert (await get(gateway)).endswith(b"one")
                zone["_http._tcp.api.example"] = [f"0 SRV 0 1 {other} a.example."]
                while not (await get(gateway)).endswith(b"other"):
                    await anyio.lowlevel.checkpoint()


async def test_a_client_stays_with_its_endpoint_of_a_service_until_that_is_ejected():
    sticky = {"cookie": "at", "secret": "at-least-16-characters"}
    outliers = {"consecutive_gateway_failures": 2, "consecutive_5xx": 0}
    ill = set()
    async with upstream(b"-one", ill) as one, upstream(b"-two", ill) as two:
        records = [f"5 SRV 0 1 {port} a.example." for port in (one, two)]
        zone = {"_http._tcp.api.example": records, "a.example": ["5 A 127.0.0.1"]}
        with name_server(zone) as server:
            more = {"balance": {"sticky": sticky}, "health": {"outliers": outliers}}
            async with serving(service(server, **more)) as gateway:
                first = await get(gateway)
                cookie = first.partition(b"set-cookie: ")[2].partition(b";")[0]
                mine = first[-4:]
                assert {(await get(gateway, cookie))[-4:] for _ in range(10)} == {mine}
                ill.add(mine)
                assert [(await get(gateway, cookie))[9:12] for _ in range(2)] == [b"503", b"503"]
                moved = await get(gateway, cookie)
                assert (moved[9:12], moved[-4:] != mine, b"set-cookie: at=" in moved) == (b"200", True, True)
