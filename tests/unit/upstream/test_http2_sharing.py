"""Which exchanges share an HTTP/2 connection, when another is opened, and what is spoken at all."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
from http2_upstreams import ask, config, played, reasons

from gw.http.h2 import Code, SessionSettings
from gw.testing.gateway import in_memory, read_answer
from gw.testing.http2 import Http2Peer
from gw.testing.memory import Backlog


class TestSharing:
    async def test_those_that_come_while_it_opens_wait_for_one_connection(self, engine):
        async with played(engine, max_concurrent_streams_pref=10) as (gateway, accept):
            clients = [ask(gateway) for _ in range(25)]
            peers = [await accept() for _ in range(3)]
            for peer in peers:
                await gateway.network.settle()
                peer.take_in()
            assert sorted(len(peer.asked) for peer in peers) == [5, 10, 10]
            for peer in peers:
                for stream in tuple(peer.asked):
                    peer.respond(stream)
            for client in clients:
                assert (await read_answer(client)).status == 200

    async def test_the_peer_s_limit_holds_and_more_connections_are_opened(self, engine):
        async with played(engine, pool={"max_connections": 2, "max_idle_connections": 2}) as (gateway, accept):
            few = SessionSettings(max_concurrent_streams=2)
            warm = ask(gateway)
            first = await accept(few)
            first.respond(await first.request())
            await read_answer(warm)
            clients = [ask(gateway) for _ in range(3)]
            second = await accept(few)
            await gateway.network.settle()
            clients += [ask(gateway) for _ in range(2)]
            await gateway.network.settle()
            first.take_in()
            second.take_in()
            open_now = [len(first.whole), len(second.whole)]
            assert open_now == [2, 2]
            pool = gateway.gateway._current.now.pools["up"]
            assert (pool.open, pool.waiting) == (2, 1)
            first.respond(first.whole.pop(0))  # and the one that waits gets its place
            await gateway.network.settle()
            first.take_in()
            assert len(first.whole) == 2
            for peer in (first, second):
                while peer.whole:
                    peer.respond(peer.whole.pop(0))
            for client in clients:
                assert (await read_answer(client)).status == 200
                client.abort()
            warm.abort()
            assert await gateway.leftovers() == []

    async def test_a_raised_limit_lets_the_waiting_go_on(self, engine):
        async with played(engine, pool={"max_connections": 1, "max_idle_connections": 1}) as (gateway, accept):
            one = SessionSettings(max_concurrent_streams=1)
            warm = ask(gateway)
            peer = await accept(one)
            peer.respond(await peer.request())
            await read_answer(warm)
            clients = [ask(gateway) for _ in range(3)]
            await gateway.network.settle()
            peer.take_in()
            assert len(peer.whole) == 1
            peer.session.configure(replace(one, max_concurrent_streams=10))
            peer.flush()
            await gateway.network.settle()
            peer.take_in()
            assert len(peer.whole) == 3
            for stream in peer.whole:
                peer.respond(stream)
            for client in clients:
                assert (await read_answer(client)).status == 200

    async def test_above_saturation_another_connection_is_opened_and_used(self, engine):
        settings = {"max_concurrent_streams_pref": 10, "saturation_open_pct": 50}
        async with played(engine, **settings) as (gateway, accept):
            for _ in range(6):
                ask(gateway)
            first, second = await accept(), await accept()
            for _ in range(3):
                ask(gateway)
                await gateway.network.settle()
            first.take_in()
            second.take_in()
            assert len(first.whole) + len(second.whole) == 9
            assert len(second.whole) >= 3

    async def test_one_is_opened_ahead(self, engine):
        settings = {"max_concurrent_streams_pref": 10, "saturation_open_pct": 80, "preconnect_watermark_pct": 30}
        async with played(engine, **settings) as (gateway, accept):
            ask(gateway)
            first = await accept()
            await first.request()
            pool = gateway.gateway._current.now.pools["up"]
            assert (pool.open, pool.preconnects) == (1, 0)
            for _ in range(3):
                ask(gateway)
                await gateway.network.settle()
            assert (pool.open, pool.preconnects) == (2, 1)
            first.take_in()
            assert len(first.whole) == 3, "it is used when it is needed"

    async def test_none_is_opened_ahead_of_the_limit(self, engine):
        settings = {"max_concurrent_streams_pref": 10, "saturation_open_pct": 80, "preconnect_watermark_pct": 10}
        async with played(engine, pool={"max_connections": 1, "max_idle_connections": 1}, **settings) as (
            gateway,
            accept,
        ):
            for _ in range(3):
                ask(gateway)
                await gateway.network.settle()
            await accept()
            pool = gateway.gateway._current.now.pools["up"]
            assert (pool.open, pool.preconnects) == (1, 0)
            assert pool.preconnects_skipped > 0

    async def test_a_failed_opening_fails_all_who_wait_for_it(self, engine):
        settings = config()
        settings["upstreams"][0]["host"] = "192.0.2.99"
        async with in_memory(settings, engine=engine) as gateway:
            clients = [ask(gateway) for _ in range(5)]
            assert [(await read_answer(client)).status for client in clients] == [502] * 5
            assert len(gateway.network.dialled) == 1
            assert await gateway.leftovers() == []

    async def test_a_client_that_leaves_while_it_opens_takes_nobody_with_it(self, engine):
        async with played(engine) as (gateway, accept):
            dial, may_go_on = gateway.network.dial, anyio.Event()

            async def late(*where, **rest):
                await may_go_on.wait()
                return await dial(*where, **rest)

            gateway.network.dial = late
            first, second = ask(gateway), ask(gateway)
            await gateway.network.settle()
            first.abort()
            await gateway.network.settle()
            may_go_on.set()
            peer = await accept()
            peer.respond(await peer.request())
            assert (await read_answer(second)).status == 200
            assert len(gateway.network.dialled) == 1

    async def test_a_full_queue_is_a_503(self, engine):
        pool = {"max_connections": 1, "max_idle_connections": 1, "max_queue": 1}
        async with played(engine, pool=pool, max_concurrent_streams_pref=1) as (gateway, accept):
            ask(gateway)
            await accept()
            await gateway.network.settle()
            waiting = ask(gateway)
            await gateway.network.settle()
            refused = ask(gateway)
            assert (await read_answer(refused)).status == 503
            await gateway.network.advance(6)
            assert (await read_answer(waiting)).status == 503


class TestAlpn:
    TLS = {"enabled": True, "sni_hostname": "up.test"}

    @asynccontextmanager
    async def over_tls(self, engine, agrees, **http2):
        backlog = Backlog()
        settings = config(tls=self.TLS, **({"prefer": "auto"} | http2))
        async with in_memory(settings, backlog, engine=engine) as gateway:
            gateway.network.agrees["192.0.2.1:80"] = agrees
            yield gateway, backlog

    async def test_what_the_upstream_chooses_is_spoken(self, engine):
        async with self.over_tls(engine, "h2") as (gateway, backlog):
            client = ask(gateway)
            peer = Http2Peer(await backlog.accept(), engine=engine)
            stream = await peer.request()
            assert (peer.asked[stream].head.scheme, peer.asked[stream].head.host) == ("https", "up.test:80")
            peer.respond(stream)
            assert (await read_answer(client)).status == 200

    async def test_http11_is_learned_and_not_probed_for_again(self, engine):
        async with self.over_tls(engine, "http/1.1") as (gateway, backlog):
            clients = [ask(gateway) for _ in range(3)]
            for _ in clients:
                peer = await backlog.accept()
                await peer.read_until(b"\r\n\r\n")
                peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            for client in clients:
                assert (await read_answer(client)).status == 200
                client.abort()
            assert len(gateway.network.dialled) == 3
            assert await gateway.leftovers() == []

    async def test_never_is_never(self, engine):
        async with self.over_tls(engine, "h2", prefer="never") as (gateway, backlog):
            client = ask(gateway)
            peer = await backlog.accept()
            assert (await peer.read_until(b"\r\n\r\n")).startswith(b"GET / HTTP/1.1\r\n")
            peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            assert (await read_answer(client)).status == 200

    async def test_always_refuses_anything_else(self, engine):
        async with self.over_tls(engine, "http/1.1", prefer="always") as (gateway, _):
            told = await reasons(gateway)
            answer = await gateway.get("/")
            assert (answer.status, answer.headers.get("x-h2-limitation")) == (502, "alpn-not-h2")
            assert told == ["gw.upstream_alpn"]
            assert await gateway.leftovers() == []

    async def test_http11_required_is_heeded_from_then_on(self, engine):
        async with self.over_tls(engine, "h2") as (gateway, backlog):
            told = await reasons(gateway)
            client = ask(gateway)
            peer = Http2Peer(await backlog.accept(), engine=engine)
            peer.reset(await peer.request(), Code.HTTP_1_1_REQUIRED)
            assert (await read_answer(client)).status == 502
            assert told == ["gw.upstream_http11_required"]
            await peer.until_closed()
            client = ask(gateway)
            plain = await backlog.accept()
            assert (await plain.read_until(b"\r\n\r\n")).startswith(b"GET / HTTP/1.1\r\n")
            plain.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            assert (await read_answer(client)).status == 200
