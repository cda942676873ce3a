"""The kit that plugin authors test with: what it shows must be what a socket would show."""

from __future__ import annotations

import anyio
import pytest

from gw.filters import Exchange, Filter, Reply
from gw.net.deadlines import Deadlines
from gw.net.stream import StreamLost
from gw.testing import check_filter, drive
from gw.testing.cuts import cut_everywhere
from gw.testing.gateway import Upstream, in_memory, read_answer
from gw.testing.memory import Backlog, pair

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


def ends():
    return pair(Deadlines(), ("192.0.2.1", 1), ("192.0.2.2", 2))


class TestStreams:
    async def test_each_end_knows_the_others_address(self):
        near, far = ends()
        assert (near.peer, far.peer) == (("192.0.2.2", 2), ("192.0.2.1", 1))

    async def test_read_until_leaves_what_follows(self):
        near, far = ends()
        far.write(b"one\r\ntwo")
        assert (await near.read_until(b"\r\n"), near.take()) == (b"one\r\n", b"two")
        far.close()
        with pytest.raises(anyio.EndOfStream):
            await near.read_until(b"\r\n")

    async def test_sending_to_an_end_that_is_closed_is_answered_by_a_reset(self):
        near, far = ends()
        far.write(b"last words")
        far.close()
        near.write(b"too late")
        assert near.lost
        assert await near.receive() == b"last words"

    async def test_the_end_and_a_reset_are_told_apart(self):
        near, far = ends()
        far.write(b"whole")
        far.close()
        assert await near.read_until_end() == b"whole"
        near, far = ends()
        far.write(b"half")
        far.abort()
        with pytest.raises(StreamLost):
            await near.read_until_end()


class TestAnswers:
    @pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n123"])
    async def test_what_is_not_a_whole_answer_fails_the_test(self, answer):
        near, far = ends()
        far.write(answer)
        far.close()
        with pytest.raises(AssertionError, match="the answer is malformed"):
            await read_answer(near)

    async def test_one_is_read_and_the_next_is_left(self):
        near, far = ends()
        far.write(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx")
        assert ((await read_answer(near)).status, (await read_answer(near)).body) == (204, b"x")


class TestGateway:
    async def test_an_upstream_gives_its_answers_in_turn_and_the_last_one_for_ever(self):
        texts = [b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % number for number in range(2)]
        async with in_memory(upstream=Upstream(*texts)) as gateway:
            assert [(await gateway.get("/")).body for _ in range(3)] == [b"0", b"1", b"1"]

    async def test_an_address_without_a_script_refuses(self):
        config = {"upstreams": [{"name": "up", "host": "192.0.2.9", "proxy": {"route_prefix": "/"}}]}
        async with in_memory(config) as gateway:
            assert (await gateway.get("/")).status == 502
            assert gateway.network.dialled == ["192.0.2.9:80"]

    async def test_leftovers_name_what_is_left(self):
        upstream = Backlog()
        async with in_memory({"upstreams": [slow()]}, upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            await upstream.accept()
            left = await gateway.leftovers()
            assert left[0] == "<Pool up open 1 idle 0 waiting 0>"
            assert left[-1] == "1 exchanges"
            client.abort()
            assert await gateway.leftovers() == []

    async def test_time_passes_only_when_it_is_told_to(self):
        async with in_memory({"idle_timeout_sec": 300}) as gateway:
            client = gateway.connect()
            await gateway.network.advance(299)
            assert not client.at_eof
            await gateway.network.advance(1.1)
            assert client.at_eof


def slow():
    return {
        "name": "up",
        "host": "192.0.2.1",
        "proxy": {"route_prefix": "/", "response_timeout_ms": 0},
    }


class TestCuts:
    async def test_every_wait_is_cut_once(self):
        upstreams = []

        def upstream():
            upstreams.append(Upstream())
            return upstreams[-1]

        async def play(gateway):
            client = gateway.connect()
            client.write(GET)
            await read_answer(client)

        waits = await cut_everywhere(play, upstream)
        assert (len(upstreams), waits >= 3) == (waits + 1, True)

    async def test_what_is_left_is_told_with_the_wait(self):
        left = []

        async def play(gateway):
            client = gateway.connect()
            client.write(GET)
            left.append(gateway.gateway)
            gateway.gateway.connections.add("<connection>")
            await read_answer(client)

        with pytest.raises(AssertionError, match="left when the client was cut at wait None of"):
            await cut_everywhere(play, Upstream)


class Remembers(Filter):
    """Breaks the first rule: it keeps something about a request on itself."""

    name = "remembers"
    chunks = 0

    async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes | Reply:
        self.chunks += 1
        return chunk + b"%d" % self.chunks


class TestCheckingFilters:
    async def test_one_that_depends_on_where_chunks_are_cut_is_found(self):
        with pytest.raises(AssertionError, match=r"depends on chunking \(cut=1\)"):
            await check_filter(Remembers)

    async def test_one_that_does_nothing_passes(self):
        await check_filter(Filter)

    async def test_driving_tells_what_both_ends_saw(self):
        played = await drive(Filter(), method="POST", body=[b"a", b"b"], upstream=b"cd")
        assert (played.status, played.body, played.upstream_body, played.ended) == (200, b"cd", b"ab", True)
