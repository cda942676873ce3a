"""What an upstream can do wrong, and what the client gets for it; when a connection is used again; what is tried anew."""

from __future__ import annotations

import pytest

from gw.net.stream import StreamLost
from gw.testing.gateway import Upstream, in_memory, read_answer
from gw.testing.memory import Backlog

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"


@pytest.fixture(params=["pure", "native"])
def engine(request):
    return request.param


class TestBadResponses:
    @pytest.mark.parametrize(
        "answer",
        [
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/2.0 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nname : value\r\n\r\n",
            b"HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nno",
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n",
        ],
        ids=lambda answer: answer[:40].decode("latin-1"),
    )
    async def test_what_is_not_http_is_a_502_and_the_connection_is_dropped(self, engine, answer):
        async with in_memory(upstream=Upstream(answer, OK), engine=engine) as gateway:
            client = gateway.connect()
            client.write(GET + GET)
            got = await read_answer(client)
            assert (got.status, got.body) == (502, b"Bad Gateway")
            assert (await read_answer(client)).body == b"ok"
            assert len(gateway.network.dialled) == 2

    @pytest.mark.parametrize(
        "answer", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\ncontent-le", b"HTTP/1.1 100 Continue\r\n\r\n"]
    )
    async def test_one_that_ends_before_its_body_is_a_502(self, engine, answer):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            client.write(GET)
            peer = await upstream.accept()
            peer.write(answer)
            peer.close()
            assert (await read_answer(client)).status == 502

    @pytest.mark.parametrize(
        "rest",
        [
            b"content-length: 1000000\r\n\r\n01234",
            b"transfer-encoding: chunked\r\n\r\n5\r\n01234\r\n",
            b"transfer-encoding: chunked\r\n\r\n5\r\n01234\r\nzz\r\n",
            b"transfer-encoding: chunked\r\n\r\n5\r\n01234\r\n0\r\ncontent-length: 3\r\n\r\n",
        ],
    )
    async def test_one_that_breaks_within_its_body_is_cut_so_that_the_client_can_tell(self, engine, rest):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            client.write(GET)
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 200 OK\r\n" + rest)
            peer.close()
            with pytest.raises(StreamLost):
                await client.read_until_end()
            assert await gateway.leftovers() == []

    async def test_one_that_is_reset_while_read_until_close_is_cut_too(self):
        upstream = Backlog()
        async with in_memory(upstream=upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 200 OK\r\n\r\nsome")
            await client.read_until(b"some")
            peer.abort()
            with pytest.raises(StreamLost):
                await client.read_until_end()


class TestFailures:
    async def test_an_upstream_that_refuses_is_a_502_and_the_client_may_go_on(self):
        async with in_memory(
            {"upstreams": [{"name": "up", "host": "192.0.2.9", "proxy": {"route_prefix": "/"}}]}
        ) as gateway:
            client = gateway.connect()
            for _ in range(2):
                client.write(GET)
                answer = await read_answer(client)
                assert (answer.status, answer.body, "connection" in answer.headers) == (502, b"Bad Gateway", False)

    async def test_a_full_pool_with_a_full_queue_is_a_503(self):
        pool = {"max_connections": 1, "max_idle_connections": 1, "max_queue": 1, "queue_timeout_ms": 1000}
        config = {"upstreams": [{"name": "up", "host": "192.0.2.1", "pool": pool, "proxy": {"route_prefix": "/"}}]}
        upstream = Backlog()
        async with in_memory(config, upstream) as gateway:
            first, second, third = (gateway.connect() for _ in range(3))
            for client in (first, second, third):
                client.write(GET)
                await gateway.network.settle()
            answer = await read_answer(third)
            assert (answer.status, answer.body) == (503, b"Service Unavailable")
            await gateway.network.advance(1.2)
            assert (await read_answer(second)).status == 503
            (await upstream.accept()).write(OK)
            assert (await read_answer(first)).body == b"ok"


class TestUsingAConnectionAgain:
    @pytest.mark.parametrize(
        ("answer", "again"),
        [
            (OK, True),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", True),
            (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", True),
            (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", False),
            (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", False),
            (OK + b"HTTP/1.1 200 OK\r\n", False),
            (OK + b"x", False),
        ],
    )
    async def test_only_if_both_messages_ended_and_nothing_more_came(self, engine, answer, again):
        upstream = Upstream(answer)
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            for _ in range(2):
                client.write(GET)
                assert (await read_answer(client)).body == b"ok"
            assert upstream.connections == (1 if again else 2)

    @pytest.mark.parametrize("request_bytes", [GET, GET.replace(b"GET", b"DELETE"), POST.replace(b"POST", b"PUT")])
    async def test_one_that_turns_out_dead_is_replaced_once_by_a_fresh_one(self, request_bytes):
        upstream = Upstream(OK, None, OK)
        async with in_memory(upstream=upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            await read_answer(client)
            client.write(request_bytes)
            assert (await read_answer(client)).status == 200
            assert (upstream.connections, len(upstream.asked)) == (2, 3)

    async def test_what_may_have_been_done_is_not_done_twice(self):
        upstream = Upstream(OK, None, OK)
        async with in_memory(upstream=upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            await read_answer(client)
            client.write(POST)
            assert (await read_answer(client)).status == 502
            assert len(upstream.asked) == 2

    async def test_a_fresh_one_that_dies_is_not_replaced(self):
        upstream = Upstream(OK, None)
        async with in_memory(upstream=upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            await read_answer(client)
            client.write(GET)
            assert (await read_answer(client)).status == 502
            assert (upstream.connections, len(upstream.asked)) == (2, 3)

    async def test_a_body_that_is_still_coming_cannot_be_sent_again(self):
        upstream = Backlog()
        async with in_memory(upstream=upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            peer = await upstream.accept()
            peer.write(OK)
            await read_answer(client)
            client.write(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabc")
            await peer.read_until(b"abc")
            peer.close()
            answer = await read_answer(client)
            assert (answer.status, answer.headers.get("connection")) == (502, "close")


async def test_an_answer_that_came_before_the_upstream_stopped_reading_is_delivered():
    upstream = Backlog()
    async with in_memory({"max_body_size": 0}, upstream) as gateway:
        client = gateway.connect()
        client.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n")
        peer = await upstream.accept()
        peer.write(b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 3\r\n\r\nbig")
        peer.close()
        client.write(b"x" * 500_000)
        answer = await read_answer(client)
        assert (answer.status, answer.body) == (413, b"big")
