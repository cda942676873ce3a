"""Windows and deadlines of one HTTP/2 stream to an upstream, in memory and on a virtual clock, on both engines."""

from __future__ import annotations

import pytest
from http2_upstreams import POST, ask, played, reasons

from gw.http.h2 import Code, SessionSettings
from gw.limits import WRITE_HIGH_WATER
from gw.net.stream import StreamLost
from gw.testing.gateway import read_answer
from gw.testing.http2 import Http2Client


class TestWindows:
    async def test_a_slow_client_stops_its_own_stream_and_no_other(self, engine):
        """What the gateway holds of a response is bounded by the window and the marks, whatever the upstream sends."""
        async with played(engine, initial_window_size=100_000) as (gateway, accept):
            slow = Http2Client(gateway.connect(), SessionSettings(initial_window_size=1), engine=engine)
            slow.gives_back = False
            slow.request("/slow")
            peer = await accept()
            stream = await peer.request()
            sent = 3_000_000
            peer.respond(stream, body=b"x" * sent)
            await gateway.network.settle()
            peer.take_in()
            taken = sent - peer.session.queued(stream)
            assert taken <= 100_000 + WRITE_HIGH_WATER + 65536
            other = ask(gateway)
            peer.respond(await peer.request(), body=b"y" * 50_000)
            assert (await read_answer(other)).body == b"y" * 50_000
            slow.stream.abort()
            other.abort()
            assert await gateway.leftovers() == []

    async def test_an_upstream_that_takes_nothing_stops_the_client_s_body_and_then_the_exchange(self, engine):
        async with played(engine, proxy={"response_timeout_ms": 2000}) as (gateway, accept):
            told = await reasons(gateway)
            client = ask(gateway, POST % 900_000 + b"x" * 900_000)
            peer = await accept()
            peer.gives_back = False
            await peer.head()
            await gateway.network.settle()
            assert gateway.network.clients[0].unsent > 0, "the client was told to wait"
            await gateway.network.advance(5)
            assert (await read_answer(client)).status == 504
            assert told == ["gw.upstream_send_stalled"]

    async def test_progress_renews_the_time_to_send(self, engine):
        async with played(engine, proxy={"response_timeout_ms": 2000}) as (gateway, accept):
            client = ask(gateway, POST % 900_000 + b"x" * 900_000)
            peer = await accept(SessionSettings(initial_window_size=65535, max_concurrent_streams=1))
            peer.gives_back = False
            stream = await peer.head()
            for _ in range(20):
                await gateway.network.advance(1.5)
                peer.take_in()
                if peer.whole:
                    break
                peer.session.give_back(stream, 50_000)
                peer.flush()
            assert len(peer.asked[stream].body) == 900_000
            peer.respond(stream)
            assert (await read_answer(client)).status == 200

    async def test_a_whole_body_that_is_not_taken_is_a_stall_too(self, engine):
        async with played(engine, proxy={"response_timeout_ms": 2000}) as (gateway, accept):
            warm = ask(gateway)
            peer = await accept(SessionSettings(initial_window_size=1000, max_concurrent_streams=1))
            peer.gives_back = False
            peer.respond(await peer.request())
            await read_answer(warm)
            told = await reasons(gateway)
            client = ask(gateway, POST % 50_000 + b"x" * 50_000)
            await peer.head()
            await gateway.network.advance(5)
            assert (await read_answer(client)).status == 504
            assert told == ["gw.upstream_send_stalled"]

    async def test_what_came_of_an_answer_that_was_reset_does_not_stay_in_the_window(self, engine):
        async with played(engine, initial_window_size=65_535, max_concurrent_streams_pref=4) as (gateway, accept):
            peer = None
            for _ in range(8):  # twice the window of the connection
                slow = ask(gateway)
                peer = peer or await accept()
                stream = await peer.request()
                slow._read_paused = True
                peer.respond(stream, body=b"x" * 2_000_000, more=True)
                for _ in range(20):
                    await gateway.network.settle()
                    peer.take_in()
                assert peer.session.queued(stream) > 1_000_000, "the stream's window is full"
                peer.reset(stream, Code.INTERNAL_ERROR)
                await gateway.network.settle()
                slow.abort()
                await gateway.network.settle()
                peer.take_in()
            client = ask(gateway)
            peer.respond(await peer.request(), body=b"y" * 60_000)
            assert (await read_answer(client)).body == b"y" * 60_000
            client.abort()
            assert await gateway.leftovers() == []


class TestDeadlines:
    async def test_no_head_in_time_is_a_504(self, engine):
        async with played(engine, proxy={"response_timeout_ms": 2000}) as (gateway, accept):
            told = await reasons(gateway)
            client = ask(gateway)
            peer = await accept()
            stream = await peer.request()
            await gateway.network.advance(1)
            peer.interim(stream, 103)  # buys no time
            await gateway.network.advance(1.5)
            answer = await read_answer(client)
            assert (answer.status, told) == (504, ["gw.upstream_timeout"])
            peer.take_in()
            assert peer.resets == {stream: Code.CANCEL}

    async def test_a_pause_in_the_body_breaks_it_off(self, engine):
        async with played(engine, proxy={"stream_idle_timeout_sec": 3}) as (gateway, accept):
            told = await reasons(gateway)
            client = ask(gateway)
            peer = await accept()
            stream = await peer.request()
            peer.respond(stream, body=b"some", more=True)
            await gateway.network.advance(4)
            with pytest.raises(StreamLost):
                await read_answer(client)
            assert told == ["gw.upstream_idle"]

    async def test_event_streams_may_pause(self, engine):
        async with played(engine, proxy={"stream_idle_timeout_sec": 3}) as (gateway, accept):
            client = ask(gateway)
            peer = await accept()
            stream = await peer.request()
            peer.respond(stream, 200, [("content-type", "text/event-stream")], b"data: 1\n\n", more=True)
            await gateway.network.advance(30)
            peer.send(stream, b"data: 2\n\n", end=True)
            assert (await read_answer(client)).body == b"data: 1\n\ndata: 2\n\n"

    async def test_a_response_may_take_only_so_long(self, engine):
        async with played(engine, proxy={"stream_max_duration_sec": 5, "stream_idle_timeout_sec": 2}) as (
            gateway,
            accept,
        ):
            told = await reasons(gateway)
            client = ask(gateway)
            peer = await accept()
            stream = await peer.request()
            peer.respond(stream, body=b"x", more=True)
            for _ in range(6):
                await gateway.network.advance(1)
                peer.send(stream, b"x")
            with pytest.raises(StreamLost):
                await read_answer(client)
            assert told == ["gw.upstream_too_long"]
