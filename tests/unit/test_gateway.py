"""The gateway as a whole, in memory: how it starts, drains and stops, and what it leaves."""

from __future__ import annotations

import socket

import anyio
import pytest

from gw.config.load import load
from gw.filters import Outcome
from gw.gateway import Gateway, loop_name
from gw.net.stream import StreamLost
from gw.testing.gateway import Upstream, in_memory, read_answer
from gw.testing.memory import Backlog, MemoryNetwork

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
CONFIG = {"upstreams": [{"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/"}}]}


class Served:
    """A gateway whose end can be waited for."""

    def __init__(self, gateway, network, over):
        self.gateway, self.network, self._over = gateway, network, over

    async def is_over(self):
        with anyio.fail_after(5):
            await self._over.wait()


async def serving(tasks, upstream, **config):
    """Start a gateway in *tasks* and return it once it listens."""
    gateway = Gateway(load({**CONFIG, **config}, environ={}))
    made, listens, over = [], anyio.Event(), anyio.Event()

    def network(group):
        made.append(MemoryNetwork(group, {"192.0.2.1:80": upstream}))
        return made[0]

    async def serve():
        await gateway.serve(ready=listens.set, network=network)
        over.set()

    tasks.start_soon(serve)
    await listens.wait()
    return Served(gateway, made[0], over)


class TestDraining:
    async def test_idle_connections_are_closed_and_new_ones_refused(self):
        async with anyio.create_task_group() as tasks:
            served = await serving(tasks, Upstream(OK))
            client = served.network.connect()
            client.write(GET)
            await read_answer(client)
            served.gateway.stop()
            assert await client.read_until_end() == b""
            with pytest.raises(ConnectionRefusedError):
                served.network.connect()
            await served.is_over()

    async def test_what_is_under_way_is_finished_and_the_client_told_to_go(self):
        upstream = Backlog()
        async with anyio.create_task_group() as tasks:
            served = await serving(tasks, upstream)
            client = served.network.connect()
            client.write(GET)
            peer = await upstream.accept()
            served.gateway.stop()
            await served.network.settle()
            peer.write(OK)
            answer = await read_answer(client)
            assert (answer.body, answer.headers.get("connection")) == (b"ok", "close")
            await served.is_over()

    async def test_what_takes_too_long_is_cut_off(self):
        upstream = Backlog()
        async with anyio.create_task_group() as tasks:
            served = await serving(tasks, upstream, shutdown_drain_timeout_sec=0)
            client = served.network.connect()
            client.write(GET)
            peer = await upstream.accept()
            served.gateway.stop()
            with pytest.raises(StreamLost):
                await client.receive()
            await served.is_over()
            assert peer.lost

    async def test_a_connection_that_comes_while_the_last_are_cut_off_is_cut_off_too(self):
        async with in_memory() as gateway:
            client = gateway.connect()
            await gateway.network.settle()
            await gateway.gateway._current.switch(None)
            client.write(GET)
            with pytest.raises(StreamLost):
                await client.receive()


class TestEmbedding:
    @pytest.mark.parametrize("how", ["stop", "cancel"])
    async def test_a_real_gateway_leaves_no_socket_open(self, how):
        gateway = Gateway(load({**CONFIG, "bind_port": 0}, environ={}))
        ready = anyio.Event()
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:

                async def serve():
                    await gateway.serve(ready=ready.set)

                tasks.start_soon(serve)
                await ready.wait()
                address = gateway.address
                async with await anyio.connect_tcp(*address) as client:
                    await client.send(b"GET / HTTP/1.1\r\n\r\n")
                    assert (await client.receive()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
                if how == "stop":
                    gateway.stop()
                else:
                    tasks.cancel_scope.cancel()
        with pytest.raises(OSError, match=r"."):
            socket.create_connection(address, timeout=1)

    async def test_a_port_that_is_taken_is_an_error_of_its_own_kind(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            gateway = Gateway(load({**CONFIG, "bind_port": taken.getsockname()[1]}, environ={}))
            with pytest.raises(OSError, match="in use"):
                await gateway.serve()

    @pytest.mark.parametrize(
        ("setting", "name"), [("auto", "uvloop"), ("asyncio", "asyncio"), ("trio", "trio"), ("uvloop", "uvloop")]
    )
    def test_auto_is_the_fast_loop_where_it_is_installed(self, setting, name):
        assert loop_name(setting) == name


async def test_one_end_is_told_for_each_exchange_whatever_ended_it():
    """The access log is called once for each: answered, refused, not found, left."""
    upstream = Backlog()
    async with in_memory(CONFIG, upstream) as gateway:
        told = []
        gateway.gateway._access_log = lambda ex: told.append((ex.outcome, ex.response and ex.response.status))
        client = gateway.connect()
        client.write(GET)
        peer = await upstream.accept()
        peer.write(OK)
        await read_answer(client)
        client.write(GET)
        await peer.read_until(b"\r\n\r\n")
        client.abort()
        await gateway.network.settle()
        await gateway.request(b"GET / HTTP/1.1\r\n\r\n")
        assert told == [(Outcome.UPSTREAM, 200), (Outcome.CANCELLED, None), (Outcome.REPLY, 400)]
