"""Every kind of exchange, cut at every wait of the gateway: nothing may be left of it, on any loop."""

from __future__ import annotations

import gc
from contextlib import contextmanager

import anyio
import pytest

from gw.config.load import load
from gw.gateway import Gateway
from gw.net.network import Network
from gw.net.stream import StreamLost
from gw.testing import PATIENCE
from gw.testing.cuts import cut_everywhere
from gw.testing.gateway import Upstream, in_memory, read_answer

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
LONG = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1000\r\n%b\r\n" % (b"x" * 4096) * 40 + b"0\r\n\r\n"


async def ask_twice(gateway):
    client = gateway.connect()
    for _ in range(2):
        client.write(GET)
        await read_answer(client)


async def upload_in_pieces(gateway):
    client = gateway.connect()
    client.write(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(3):
        await gateway.network.settle()
        client.write(b"3\r\nabc\r\n")
    await gateway.network.settle()
    client.write(b"0\r\n\r\n")
    await read_answer(client)


async def read_slowly(gateway):
    client = gateway.connect()
    client._read_paused = True
    client.write(GET)
    await gateway.network.settle()
    client._read_paused = False
    client._resume_reading()
    await read_answer(client)


async def wait_for_a_connection(gateway):
    clients = [gateway.connect() for _ in range(3)]
    for client in clients:
        client.write(GET)
    for client in clients:
        await read_answer(client)


BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
]
"""Where speed is promised. On trio a stream is two tasks, and whoever has tasks has cycles."""

PLAYS = {
    "keep-alive": (ask_twice, lambda: Upstream(OK)),
    "stale": (ask_twice, lambda: Upstream(OK, None, OK)),
    "upload": (upload_in_pieces, lambda: Upstream(OK)),
    "slow reader": (read_slowly, lambda: Upstream(LONG)),
    "queue": (wait_for_a_connection, lambda: Upstream(OK)),
}
CONFIG = {
    "http1": {"streaming": {"high_water_bytes": 8192, "low_water_bytes": 4096}},
    "upstreams": [
        {
            "name": "up",
            "host": "192.0.2.1",
            "pool": {"max_connections": 1, "max_idle_connections": 1},
            "proxy": {"route_prefix": "/"},
        }
    ],
}


@pytest.mark.parametrize("side", ["client", "upstream"])
@pytest.mark.parametrize("kind", PLAYS)
async def test_whatever_is_cut_wherever_nothing_is_left(kind, side):
    play, upstream = PLAYS[kind]
    assert await cut_everywhere(play, upstream, side=side, config=CONFIG) >= 3


@contextmanager
def leaving_no_cycles():
    """Fail if what runs here leaves objects of ours that only the collector can free."""
    gc.collect()
    gc.disable()
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        yield
        gc.collect()
        ours = {type(each).__qualname__ for each in gc.garbage if type(each).__module__.startswith("gw")}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert ours == set()


async def answered(client):
    for _ in range(20):
        client.write(GET + b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc")
        assert [(await read_answer(client)).status for _ in range(2)] == [200, 200]


async def refused(client):
    for _ in range(20):
        client.write(GET.replace(b"/", b"/away", 1))
        assert (await read_answer(client)).status == 502


@pytest.mark.parametrize("burst", [answered, refused])
async def test_exchanges_leave_nothing_to_the_garbage_collector(burst):
    """The hot path relies on reference counting: `gw serve` lets the collector run rarely."""
    away = {"name": "away", "host": "192.0.2.9", "proxy": {"route_prefix": "/away"}}
    async with in_memory({"upstreams": [*CONFIG["upstreams"], away]}, Upstream(OK)) as gateway:
        client = gateway.connect()
        await burst(client)
        with leaving_no_cycles():
            await burst(client)
            await answered(client)  # the last exchange is kept until the next one


@pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True)
async def test_connections_over_sockets_leave_nothing_to_it_either():
    async def answer(stream):
        try:
            while await stream.receive():
                stream.write(OK)
        except (anyio.EndOfStream, StreamLost):
            stream.close()

    async def burst(network, address):
        for _ in range(5):
            client = await network.dial(*address)
            for _ in range(5):
                client.write(GET)
                assert (await client.receive()).startswith(b"HTTP/1.1 200 OK")
            client.abort()
        await anyio.wait_all_tasks_blocked()

    async with anyio.create_task_group() as tasks:
        network = Network(tasks)
        upstream = await network.listen(("127.0.0.1", 0), answer)
        up = {"name": "up", "host": "127.0.0.1", "port": upstream.address[1], "proxy": {"route_prefix": "/"}}
        gateway = Gateway(load({"bind_port": 0, "upstreams": [up]}, environ={}))
        listens, over = anyio.Event(), anyio.Event()

        async def serve():
            await gateway.serve(ready=listens.set)
            over.set()

        tasks.start_soon(serve)
        with anyio.fail_after(PATIENCE):
            await listens.wait()
            await burst(network, gateway.addresses["main"])
            with leaving_no_cycles():
                await burst(network, gateway.addresses["main"])
            gateway.stop()
            await over.wait()
        upstream.close()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
