"""The gateway as a whole, in memory: how it starts, drains and stops, and what it leaves."""

from __future__ import annotations

import asyncio
import os
import socket
from types import ModuleType

import anyio
import pytest
import uvloop

from gw.config.load import load
from gw.filters import Filter, Outcome, Reply
from gw.gateway import Gateway
from gw.hookspecs import hookimpl
from gw.limits import MAX_OLD_GENERATIONS
from gw.net.stream import StreamLost
from gw.plugins import PluginSet
from gw.testing import PATIENCE
from gw.testing.gateway import Upstream, in_memory, read_answer
from gw.testing.http2 import Http2Client
from gw.testing.memory import Backlog, MemoryNetwork

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
CONFIG = {"upstreams": [{"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/"}}]}


class Served:
    """A gateway whose end can be waited for."""

    def __init__(self, gateway, network, over):
        self.gateway, self.network, self._over = gateway, network, over

    async def is_over(self):
        with anyio.fail_after(PATIENCE):
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
            await served.network.advance(1)
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

    @pytest.mark.parametrize("speaks_http2", [False, True])
    async def test_what_is_cut_off_says_that_the_gateway_shut_down(self, speaks_http2):
        upstream, seen = Backlog(), []
        async with anyio.create_task_group() as tasks:
            served = await serving(tasks, upstream, shutdown_drain_timeout_sec=0)
            served.gateway._told = lambda ex: seen.append((ex.outcome, ex.reason))
            client = served.network.connect()
            if speaks_http2:
                Http2Client(client).request()
            else:
                client.write(GET)
            await upstream.accept()
            served.gateway.stop()
            await served.is_over()
        assert seen == [(Outcome.CANCELLED, "gw.shutdown")]

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
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:

                async def serve():
                    await gateway.serve(ready=ready.set)

                tasks.start_soon(serve)
                await ready.wait()
                address = gateway.addresses["main"]
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

    async def test_filters_of_the_program_stand_before_those_of_plugins_everywhere(self):
        seen = []

        class Sees(Filter):
            def __init__(self, name):
                self.name = name

            async def on_request_headers(self, ex):
                seen.append(self.name)
                return Reply(403, b"no") if ex.request.path == "/secret" else None

        def prepare(gateway):
            async def own(ex):
                return Reply(200, b"own")

            gateway.route("/own", own)
            gateway.use(Sees("first"), Sees("second"))
            gateway.use(Sees("third"))

        plugins, module = PluginSet(), ModuleType("later")
        module.GW_API = 1
        module.gw_filters = hookimpl(lambda route, ctx: [Sees("plugin")], specname="gw_filters")
        plugins.add("later", module)
        routes = [{"match": {"path": "/plain"}, "upstream": "up", "plugins": []}]
        config = {**CONFIG, "routes": routes}
        async with in_memory(config, Upstream(OK), plugins=plugins, prepare=prepare) as gateway:
            own = ["first", "second", "third"]
            for path, names, status in (
                ("/", [*own, "plugin"], 200),
                ("/own", [*own, "plugin"], 200),
                ("/plain", own, 200),
                ("/secret", own[:1], 403),
            ):
                seen.clear()
                assert ((await gateway.get(path)).status, seen) == (status, names)
            await gateway.gateway.reload(load(config, environ={}, plugins=plugins))
            seen.clear()
            assert ((await gateway.get("/own")).body, seen) == (b"own", [*own, "plugin"])

    async def test_a_path_of_the_program_goes_to_an_upstream(self):
        def prepare(gateway):
            gateway.proxy("/v1/*rest", "api", methods=("GET",))
            gateway.proxy("/v2/*rest", "whole")

        api, whole = Upstream(OK), Upstream(OK)
        config = {
            "upstreams": [
                {"name": "api", "host": "192.0.2.2", "proxy": {"strip_prefix": True}},
                {"name": "whole", "host": "192.0.2.3"},
            ]
        }
        upstreams = {"192.0.2.2:80": api, "192.0.2.3:80": whole}
        async with in_memory(config, upstreams=upstreams, prepare=prepare) as gateway:
            assert [(await gateway.get(path)).status for path in ("/v1/a?b", "/v2/a?b", "/v3")] == [200, 200, 404]
            assert [each.asked[0].head.target for each in (api, whole)] == ["/a?b", "/v2/a?b"]
            post = b"POST /%s/a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
            assert (await gateway.request(post % b"v1", method="POST")).status == 405
            assert (await gateway.request(post % b"v2", method="POST")).status == 200
            fewer = load({**config, "upstreams": config["upstreams"][:1]}, environ={})
            with pytest.raises(
                ValueError, match=r"the program sends /v2/[*]rest to the upstream 'whole', and there is none"
            ):
                await gateway.gateway.reload(fewer)
            assert (await gateway.get("/v2/a")).status == 200
            assert await gateway.leftovers() == []


async def test_one_end_is_told_for_each_exchange_whatever_ended_it():
    """The access log is called once for each: answered, refused, not found, left."""
    upstream = Backlog()
    async with in_memory(CONFIG, upstream) as gateway:
        told = []
        gateway.gateway._told = lambda ex: told.append((ex.outcome, ex.response and ex.response.status))
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


class TestReloading:
    async def test_new_exchanges_see_the_new_configuration_at_once(self):
        async with in_memory(CONFIG, Upstream(OK)) as gateway:
            client = gateway.connect()
            client.write(GET)
            assert (await read_answer(client)).status == 200
            await gateway.gateway.reload(load({**CONFIG, "upstreams": []}, environ={}))
            client.write(GET)
            assert (await read_answer(client)).status == 404
            assert gateway.gateway.generation == 2

    async def test_what_is_under_way_ends_as_it_began(self):
        upstream = Backlog()
        async with in_memory(CONFIG, upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            peer = await upstream.accept()
            await gateway.gateway.reload(load({**CONFIG, "upstreams": []}, environ={}))
            old = gateway.gateway._current.old[0]
            assert (old.number, old.users) == (1, 1)
            peer.write(OK)
            assert (await read_answer(client)).body == b"ok"
            await gateway.network.settle()
            assert gateway.gateway._current.old == []

    async def test_a_pool_whose_meaning_did_not_change_is_carried_over(self):
        upstream = Upstream(OK)
        async with in_memory(CONFIG, upstream) as gateway:
            await gateway.get("/")
            await gateway.gateway.reload(load({**CONFIG, "max_body_size": 5}, environ={}))
            await gateway.get("/")
            assert upstream.connections == 1
            changed = {"upstreams": [CONFIG["upstreams"][0] | {"pool": {"max_queue": 1}}]}
            await gateway.gateway.reload(load(changed, environ={}))
            await gateway.get("/")
            assert upstream.connections == 2
            assert await gateway.leftovers() == []

    async def test_one_that_fails_changes_nothing(self):
        broken = {
            **CONFIG,
            "bind_port": 8081,
            "routes": [{"name": n, "match": {"path": "/a"}, "upstream": "up"} for n in "xy"],
        }
        async with in_memory(CONFIG, Upstream(OK)) as gateway:
            before, held = gateway.gateway.loaded, len(gateway.gateway._shared)
            with pytest.raises(ValueError, match="routes 'x' and 'y' conflict"):
                await gateway.gateway.reload(load(broken, environ={}))
            assert gateway.gateway.loaded is before
            assert (await gateway.get("/")).status == 200
            assert len(gateway.gateway._shared) == held

    async def test_what_was_prepared_can_be_forgotten(self):
        async with in_memory(CONFIG, Upstream(OK)) as gateway:
            other = {"upstreams": [CONFIG["upstreams"][0] | {"name": "other"}], "bind_port": 8081}
            held = len(gateway.gateway._shared)
            prepared = await gateway.gateway.prepare(load(other, environ={}))
            assert len(gateway.gateway._shared) > held
            await gateway.gateway.discard(prepared)
            assert len(gateway.gateway._shared) == held
            assert gateway.gateway.generation == 1

    async def test_what_nobody_decides_on_is_forgotten_at_the_end(self):
        async with in_memory(CONFIG, Upstream(OK)) as gateway:
            with anyio.fail_after(PATIENCE):
                prepared = await gateway.gateway.prepare(load({**CONFIG, "bind_port": 8081}, environ={}))
        assert prepared.sockets["main"].fileno() == -1

    async def test_limits_are_for_connections_that_come_then(self):
        async with in_memory(CONFIG, Upstream(OK)) as gateway:
            old = gateway.connect()
            old.write(GET)
            await read_answer(old)
            await gateway.gateway.reload(load({**CONFIG, "max_header_size": 20}, environ={}))
            new = gateway.connect()
            statuses = []
            for client in (old, new):
                client.write(b"GET /a/path/that/is/longer HTTP/1.1\r\nhost: a\r\n\r\n")
                statuses.append((await read_answer(client)).status)
            assert statuses == [200, 431]

    async def test_listeners_move(self):
        async with in_memory(CONFIG, Upstream(OK)) as gateway:
            await gateway.gateway.reload(load({**CONFIG, "bind_port": 8081}, environ={}))
            assert (await gateway.get("/")).status == 200

    async def test_the_access_log_goes_on_elsewhere(self, tmp_path):
        def logging_to(name):
            access = {"enabled": True, "file": str(tmp_path / name), "format": "text", "template": "${path}"}
            return load({**CONFIG, "log": {"access": access}}, environ={})

        async with in_memory(CONFIG, Upstream(OK)) as gateway:
            await gateway.gateway.reload(logging_to("one"))
            await gateway.get("/a")
            await gateway.gateway.reload(logging_to("two"))
            await gateway.get("/b")
            await gateway.gateway.reload(load(CONFIG, environ={}))
            await gateway.get("/c")
        assert [(tmp_path / name).read_text() for name in ("one", "two")] == ["/a\n", "/b\n"]

    async def test_generations_in_use_are_bounded(self, caplog):
        upstream = Backlog()
        async with in_memory(CONFIG, upstream) as gateway:
            for number in range(MAX_OLD_GENERATIONS + 2):
                gateway.connect().write(GET)
                await upstream.accept()
                await gateway.gateway.reload(load({**CONFIG, "max_body_size": number}, environ={}))
            await gateway.network.settle()
            assert len(gateway.gateway._current.old) == MAX_OLD_GENERATIONS
            assert "generation 1 is closed with 1 exchanges on it" in caplog.text

    async def test_a_plugins_shared_memory_outlives_it(self):
        seen = []

        def gw_filters(route, ctx):
            seen.append(ctx.shared_memory("counts"))
            return ()

        plugins = PluginSet()
        module = ModuleType("sharing")
        module.GW_API, module.gw_filters = 1, hookimpl(gw_filters)
        plugins.add("sharing", module)
        async with in_memory(CONFIG, Upstream(OK), plugins=plugins) as gateway:
            os.pwrite(seen[0], b"x", 0)
            await gateway.gateway.reload(load(CONFIG, environ={}, plugins=plugins))
            assert os.pread(seen[-1], 1, 0) == b"x"
            assert len(set(seen)) == 1
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(seen[0])


async def test_an_order_that_goes_wrong_is_refused_with_a_reason(caplog):
    plugins, module = PluginSet(), ModuleType("doors")
    orders = {"close": lambda values: [values["door"]], "crash": lambda _: 1 / 0, "odd": lambda _: object()}
    module.GW_API = 1
    module.gw_orders = hookimpl(lambda ctx: orders, specname="gw_orders")
    plugins.add("doors", module)
    async with in_memory(plugins=plugins) as gateway:
        order = gateway.gateway.order
        assert order("doors", "close", {"door": "front"}) == ["front"]
        for name, why in (("crash", "doors raised ZeroDivisionError in crash; the log"), ("odd", "raised TypeError")):
            with pytest.raises(ValueError, match=why):
                order("doors", name, {})
        with pytest.raises(ValueError, match="there is no order doors open: it has close, crash, odd"):
            order("doors", "open", {})
    assert [record.getMessage() for record in caplog.records] == [
        "plugin doors raised in its order crash",
        "plugin doors raised in its order odd",
    ]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_it_accepts_connections_on_a_loop_that_anyio_did_not_start(run):
    async def main():
        gateway = Gateway(load({"bind_host": "127.0.0.1", "bind_port": 0}, environ={}))
        gateway.route("/", hello)
        listens = anyio.Event()
        async with asyncio.timeout(PATIENCE), anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: gateway.serve(ready=listens.set))
            await listens.wait()
            reader, writer = await asyncio.open_connection(*gateway.address)
            writer.write(GET)
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            writer.close()
            gateway.stop()

    async def hello(_ex):
        return Reply(200, b"hello")

    run(main())
