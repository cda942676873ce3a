"""How connections end: who left, who was too slow, and what the other side still gets. Time is virtual."""

from __future__ import annotations

import anyio
import pytest

from gw.net.stream import StreamLost
from gw.testing.gateway import in_memory, read_answer
from gw.testing.memory import Backlog

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n"


class TestHalfClose:
    async def test_a_client_that_has_finished_speaking_still_gets_its_answer(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            client.write(GET)
            client.write_eof()
            peer = await upstream.accept()
            await gateway.network.advance(4)
            peer.write(OK)
            assert (await read_answer(client)).body == b"ok"
            assert await client.read_until_end() == b""

    @pytest.mark.parametrize("request_bytes", [GET, POST + b"0123456789"])
    async def test_after_five_seconds_of_nothing_it_counts_as_gone(self, request_bytes):
        upstream = Backlog()
        async with in_memory(upstream=upstream) as gateway:
            client = gateway.connect()
            client.write(request_bytes)
            client.write_eof()
            peer = await upstream.accept()
            await gateway.network.advance(4.9)
            assert not peer.lost
            await gateway.network.advance(0.3)
            assert peer.lost
            assert client.lost

    async def test_the_end_may_come_with_the_last_of_the_body(self):
        upstream = Backlog()
        async with in_memory(upstream=upstream) as gateway:
            client = gateway.connect()
            client.write(POST)
            peer = await upstream.accept()
            client.write(b"0123456789")
            client.write_eof()
            await peer.read_until(b"0123456789")
            await gateway.network.advance(5.2)
            assert peer.lost, "nothing was sent to it for 5 s"

    async def test_as_long_as_something_is_sent_to_it_it_is_there(self):
        upstream = Backlog()
        async with in_memory(upstream=upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            client.write_eof()
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(5):
                peer.write(b"1\r\nx\r\n")
                await gateway.network.advance(3)
            peer.write(b"0\r\n\r\n")
            assert (await read_answer(client)).body == b"xxxxx"

    async def test_pipelined_requests_before_it_are_all_answered(self, engine):
        async with in_memory(engine=engine) as gateway:
            client = gateway.connect()
            client.write(GET * 3)
            client.write_eof()
            for _ in range(3):
                assert (await read_answer(client)).body == b"ok"
            assert await client.read_until_end() == b""

    @pytest.mark.parametrize("sent", [b"", b"GET / HT", POST + b"01234"])
    async def test_an_incomplete_request_gets_no_answer(self, engine, sent):
        async with in_memory(engine=engine, upstream=Backlog()) as gateway:
            client = gateway.connect()
            client.write(sent)
            await gateway.network.settle()
            client.write_eof()
            try:
                assert await client.read_until_end() == b""
            except StreamLost:
                assert sent.startswith(b"POST")
            assert await gateway.leftovers() == []


class TestLeaving:
    @pytest.mark.parametrize("request_bytes", [GET, POST, POST + b"0123456789"])
    async def test_a_client_that_leaves_ends_the_work_for_it_at_once(self, request_bytes):
        upstream = Backlog()
        async with in_memory(upstream=upstream) as gateway:
            client = gateway.connect()
            client.write(request_bytes)
            peer = await upstream.accept()
            client.abort()
            await gateway.network.settle()
            assert peer.lost
            assert await gateway.leftovers() == []

    async def test_one_that_leaves_in_mid_response_is_no_trouble_to_the_others(self):
        upstream = Backlog()
        async with in_memory(upstream=upstream) as gateway:
            leaving, staying = gateway.connect(), gateway.connect()
            leaving.write(GET)
            first = await upstream.accept()
            staying.write(GET)
            second = await upstream.accept()
            first.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n01234")
            await leaving.read_until(b"01234")
            leaving.abort()
            await gateway.network.settle()
            second.write(OK)
            assert (first.lost, (await read_answer(staying)).body) == (True, b"ok")


class TestEarlyAnswers:
    async def test_an_answer_before_the_body_is_passed_on_and_the_rest_is_read_and_dropped(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            client.write(POST + b"012")
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 4\r\n\r\nmuch")
            answer = await read_answer(client)
            assert (answer.status, answer.headers.get("connection")) == (413, "close")
            await gateway.network.settle()
            assert peer.lost, "a connection with half a request on it is of no use"
            assert (client.at_eof, client.lost) == (True, False)
            client.write(b"3456789")
            await gateway.network.settle()
            assert not client.lost, "a reset could destroy the answer on its way"
            client.close()
            assert await gateway.leftovers() == []

    async def test_the_lingering_ends_after_five_seconds_of_nothing(self):
        upstream = Backlog()
        async with in_memory(upstream=upstream) as gateway:
            client = gateway.connect()
            client.write(POST)
            (await upstream.accept()).write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            await read_answer(client)
            await gateway.network.advance(4.8)
            assert len(gateway.gateway.connections) == 1
            await gateway.network.advance(0.4)
            assert not gateway.gateway.connections

    async def test_the_lingering_ends_after_thirty_seconds_of_anything(self):
        upstream = Backlog()
        async with in_memory(upstream=upstream) as gateway:
            client = gateway.connect()
            client.write(POST)
            (await upstream.accept()).write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            await read_answer(client)
            for _ in range(10):
                await gateway.network.advance(2.9)
                client.write(b"x")
            assert len(gateway.gateway.connections) == 1
            await gateway.network.advance(1.5)
            assert not gateway.gateway.connections

    async def test_an_early_answer_to_a_body_that_is_here_already_keeps_the_connection(self):
        config = {"upstreams": [{"name": "up", "host": "192.0.2.1"}], "routes": [{"match": {"path": "/x"}}]}
        async with in_memory(config) as gateway:
            client = gateway.connect()
            for _ in range(2):
                client.write(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc")
                answer = await read_answer(client)
                assert (answer.status, "connection" in answer.headers) == (404, False)

    async def test_both_directions_flow_at_once(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = gateway.connect()
            client.write(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
            peer = await upstream.accept()
            await peer.read_until(b"\r\n\r\n")
            peer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            await client.read_until(b"\r\n\r\n")
            for number in range(5):
                chunk = b"1\r\n%d\r\n" % number
                client.write(chunk)
                peer.write(await peer.read_until(chunk))
                assert await client.read_until(chunk) == chunk
            client.write(b"0\r\n\r\n")
            peer.write(await peer.read_until(b"0\r\n\r\n"))
            assert await client.read_until(b"0\r\n\r\n") == b"0\r\n\r\n"
            client.write(GET)
            assert (await peer.read_until(b"\r\n\r\n")).startswith(b"GET / ")


class TestClientDeadlines:
    async def test_a_silent_connection_is_closed_without_a_word(self):
        async with in_memory({"idle_timeout_sec": 20}) as gateway:
            client = gateway.connect()
            await gateway.network.advance(19.9)
            assert not client.at_eof
            await gateway.network.advance(0.2)
            assert await client.read_until_end() == b""

    @pytest.mark.parametrize("before", [b"", GET], ids=["first", "second"])
    async def test_a_head_that_does_not_end_is_answered_408(self, engine, before):
        async with in_memory({"request_timeout_sec": 3, "idle_timeout_sec": 20}, engine=engine) as gateway:
            client = gateway.connect()
            client.write(before + b"GET / HTTP/1.1\r\n")
            if before:
                assert (await read_answer(client)).status == 200
            for _ in range(4):
                await gateway.network.advance(0.7)
                client.write(b"x: y\r\n")
            assert not client.has_data
            await gateway.network.advance(0.4)
            answer = await read_answer(client)
            assert (answer.status, answer.body) == (408, b"Request Timeout")
            assert answer.headers.get("connection") == "close"

    async def test_after_a_408_the_client_may_still_read_it(self):
        async with in_memory({"request_timeout_sec": 3}) as gateway:
            client = gateway.connect()
            client.write(b"GET / HT")
            await gateway.network.advance(3.2)
            client.write(b"TP/1.1\r\n")
            await gateway.network.settle()
            assert not client.lost, "a reset could destroy the answer on its way"
            assert (await read_answer(client)).status == 408

    async def test_a_pause_in_the_body_is_answered_408(self):
        upstream = Backlog()
        async with in_memory({"body_timeout_sec": 2}, upstream) as gateway:
            client = gateway.connect()
            client.write(POST)
            peer = await upstream.accept()
            for _ in range(3):
                await gateway.network.advance(1.8)
                client.write(b"x")
            await gateway.network.advance(2.2)
            answer = await read_answer(client)
            assert (answer.status, answer.headers.get("connection")) == (408, "close")
            assert peer.lost

    async def test_a_body_that_drips_is_answered_408(self):
        upstream = Backlog()
        async with in_memory({"body_timeout_sec": 30, "min_body_rate": 100}, upstream) as gateway:
            client = gateway.connect()
            client.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n")
            await upstream.accept()
            for _ in range(4):
                await gateway.network.advance(1)
                client.write(b"x")
            assert not client.has_data
            await gateway.network.advance(1.5)
            assert (await read_answer(client)).status == 408

    async def test_a_response_must_be_taken_at_a_pace(self):
        upstream = Backlog()
        config = {
            "send_timeout_sec": 10,
            "min_send_rate": 100,
            "http1": {"streaming": {"high_water_bytes": 2000, "low_water_bytes": 1000}},
        }
        async with in_memory(config, upstream) as gateway:
            client = gateway.connect()
            client._read_paused = True
            client.write(GET)
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 5000)
            await gateway.network.advance(9.8)
            assert not peer.lost
            await gateway.network.advance(0.5)
            assert peer.lost
            assert await gateway.leftovers() == []

    async def test_a_client_that_takes_enough_may_take_its_time(self):
        upstream = Backlog()
        config = {
            "send_timeout_sec": 10,
            "http1": {"streaming": {"high_water_bytes": 2000, "low_water_bytes": 1000}},
        }
        async with in_memory(config, upstream) as gateway:
            client = gateway.connect()
            client._read_paused = True
            client.write(GET)
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + b"x" * 5000)
            await gateway.network.advance(9)
            client._read_paused = False
            client._resume_reading()
            assert len((await read_answer(client)).body) == 5000


class TestUpstreamDeadlines:
    def config(self, **proxy):
        return {"upstreams": [{"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/", **proxy}}]}

    async def test_no_response_in_time_is_a_504_and_the_client_may_go_on(self):
        upstream = Backlog()
        async with in_memory(self.config(response_timeout_ms=2000), upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            peer = await upstream.accept()
            await gateway.network.advance(2.2)
            answer = await read_answer(client)
            assert (answer.status, answer.body, "connection" in answer.headers) == (504, b"Gateway Timeout", False)
            assert peer.lost
            client.write(GET)
            (await upstream.accept()).write(OK)
            assert (await read_answer(client)).status == 200

    async def test_the_time_for_the_response_begins_when_the_request_has_been_sent(self):
        upstream = Backlog()
        async with in_memory(self.config(response_timeout_ms=2000), upstream) as gateway:
            client = gateway.connect()
            client.write(POST)
            peer = await upstream.accept()
            await gateway.network.advance(4)
            client.write(b"0123456789")
            await gateway.network.advance(1.5)
            peer.write(OK)
            assert (await read_answer(client)).status == 200

    async def test_an_upload_on_a_connection_that_was_idle_is_not_bound_by_how_long_it_could_have_been(self):
        upstream = Backlog()
        config = {"min_body_rate": 0, **self.config()}
        config["upstreams"][0]["pool"] = {"idle_timeout_sec": 5}
        async with in_memory(config, upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            peer = await upstream.accept()
            peer.write(OK)
            await read_answer(client)
            client.write(POST)
            await gateway.network.advance(8)
            client.write(b"0123456789")
            await peer.read_until(b"0123456789")
            peer.write(OK)
            assert (await read_answer(client)).status == 200

    async def test_a_pause_in_the_response_breaks_it_off(self):
        upstream = Backlog()
        async with in_memory(self.config(stream_idle_timeout_sec=3), upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
            await gateway.network.advance(2.5)
            peer.write(b"1\r\ny\r\n")
            await gateway.network.advance(3.2)
            assert (peer.lost, client.lost) == (True, True)
            assert (await client.receive()).endswith(b"y\r\n")

    async def test_an_event_stream_may_be_silent(self):
        upstream = Backlog()
        async with in_memory(self.config(stream_idle_timeout_sec=3), upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
            await gateway.network.advance(60)
            peer.write(b"data: 2\n\n")
            peer.close()
            assert (await read_answer(client)).body == b"data: 1\n\ndata: 2\n\n"

    async def test_a_response_may_take_only_so_long_however_it_flows(self):
        upstream = Backlog()
        async with in_memory(self.config(stream_max_duration_sec=5), upstream) as gateway:
            client = gateway.connect()
            client.write(GET)
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(5):
                peer.write(b"1\r\nx\r\n")
                await gateway.network.advance(0.9)
            assert not client.lost
            await gateway.network.advance(0.7)
            assert (peer.lost, client.lost) == (True, True)

    async def test_an_upstream_that_stops_taking_the_request_is_given_up_on(self):
        upstream = Backlog()
        async with in_memory({"max_body_size": 0, "min_body_rate": 0}, upstream) as gateway:
            client = gateway.connect()
            client.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n")
            peer = await upstream.accept()
            peer._read_paused = True
            client.write(b"x" * 500_000)
            await gateway.network.advance(29)
            assert not peer.lost
            await gateway.network.advance(1.5)
            assert peer.lost
            assert (await read_answer(client)).status == 504


async def test_what_is_broken_off_cannot_be_taken_for_the_whole():
    upstream = Backlog()
    async with in_memory(upstream=upstream) as gateway:
        client = gateway.connect()
        client.write(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n")
        peer = await upstream.accept()
        peer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await client.read_until(b"hello")
        peer.close()
        with pytest.raises(StreamLost):
            await client.receive()


async def test_a_body_is_read_no_faster_than_the_upstream_takes_it():
    upstream = Backlog()
    async with in_memory({"max_body_size": 0}, upstream) as gateway:
        client = gateway.connect()
        client.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\n")
        peer = await upstream.accept()
        peer._read_paused = True
        sent = 0
        while not client.paused and sent < 10_000_000:
            client.write(b"x" * 50_000)
            sent += 50_000
            await anyio.lowlevel.checkpoint()
        await gateway.network.settle()
        assert sent < 2_000_000
        assert client.unsent
