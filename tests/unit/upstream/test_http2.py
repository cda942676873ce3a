"""HTTP/2 with upstreams, in memory and on a virtual clock, on both engines."""

from __future__ import annotations

from contextlib import suppress

import pytest
from frames import SETTINGS, frame, head
from http2_upstreams import GET, POST, ask, config, played, reasons

from gw.http.h2 import Code
from gw.limits import MAX_INTERIM_RESPONSES, MAX_UNPROCESSED
from gw.net.stream import StreamLost
from gw.testing.cuts import cut_everywhere
from gw.testing.gateway import in_memory, read_answer
from gw.testing.http2 import Http2Client, Http2Upstream, StreamReset
from gw.testing.memory import Backlog


class TestExchanges:
    async def test_a_get_is_answered_and_its_fields_travel(self, engine):
        async with played(engine) as (gateway, accept):
            client = ask(
                gateway, b"GET /a?b HTTP/1.1\r\nhost: gw.test\r\nX-Mine: 1\r\nte: trailers\r\nkeep-alive: 1\r\n\r\n"
            )
            peer = await accept()
            stream = await peer.request()
            asked = peer.asked[stream].head
            assert (asked.method, asked.target, asked.host, asked.scheme) == ("GET", "/a?b", "192.0.2.1", "http")
            fields = dict(asked.headers)
            del fields["x-request-id"]
            assert fields == {
                "x-mine": "1",
                "te": "trailers",
                "x-forwarded-for": "198.51.100.7",
                "x-forwarded-proto": "http",
                "x-forwarded-host": "gw.test",
                "via": "1.1 gw",
            }
            peer.respond(stream, 200, [("x-up", "1"), ("set-cookie", "a"), ("set-cookie", "b")], b"body")
            answer = await read_answer(client)
            assert (answer.status, answer.body) == (200, b"body")
            assert answer.headers.get_all("set-cookie") == ["a", "b"]
            assert answer.headers.get("x-up") == "1"
            client.abort()
            assert await gateway.leftovers() == []

    async def test_many_share_a_connection_and_finish_in_any_order(self, engine):
        async with played(engine) as (gateway, accept):
            clients = [ask(gateway, b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % number) for number in range(50)]
            peer = await accept()
            streams = [await peer.request() for _ in clients]
            for stream in reversed(streams):
                peer.respond(stream, body=peer.asked[stream].head.target.encode())
            for number, client in enumerate(clients):
                assert (await read_answer(client)).body == b"/%d" % number
            assert gateway.network.dialled == ["192.0.2.1:80"]

    async def test_a_body_goes_up_with_its_length_and_comes_back_whole(self, engine):
        def echo(peer, stream):
            peer.respond(stream, body=peer.asked[stream].body)

        upstream = Http2Upstream(echo, engine=engine)
        body = bytes(range(256)) * 4000
        async with in_memory(config(), upstream, engine=engine) as gateway:
            answer = await gateway.request(POST % len(body) + body)
            assert answer.body == body
            assert upstream.asked[0].head.headers.get("content-length") == str(len(body))
            assert await gateway.leftovers() == []

    async def test_a_body_of_unknown_length_and_its_trailers_go_up(self, engine):
        upstream = Http2Upstream(engine=engine)
        async with in_memory(config(), upstream, engine=engine) as gateway:
            head_lines = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
            await gateway.request(head_lines + b"5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n")
            client = ask(gateway, head_lines + b"5\r\nhello\r\n")
            await gateway.network.settle()
            client.write(b"0\r\nx-sum: 2\r\n\r\n")
            await read_answer(client)
            assert [(asked.body, asked.trailers.get("x-sum")) for asked in upstream.asked] == [
                (b"hello", "1"),
                (b"hello", "2"),
            ]
            assert upstream.asked[0].head.headers.get("content-length") is None

    async def test_trailers_and_interim_answers_come_down(self, engine):
        async with played(engine) as (gateway, accept):
            client = ask(gateway)
            peer = await accept()
            stream = await peer.request()
            peer.interim(stream, 103, [("link", "</a>")])
            peer.respond(stream, body=b"x", trailers=[("grpc-status", "0")])
            answer = await read_answer(client)
            assert [each.status for each in answer.interim] == [103]
            assert answer.trailers.get("grpc-status") == "0"

    async def test_trailers_stop_where_they_are_not_forwarded(self, engine):
        async with played(engine, proxy={"forward_trailers": False}) as (gateway, accept):
            client = ask(gateway, b"GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n")
            peer = await accept()
            stream = await peer.request()
            assert peer.asked[stream].head.headers.get("te") is None
            peer.respond(stream, body=b"x", trailers=[("x-sum", "0")])
            assert (await read_answer(client)).trailers is None

    @pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
    async def test_answers_without_a_body(self, engine, method, status):
        async with played(engine) as (gateway, accept):
            client = ask(gateway, f"{method} / HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            peer = await accept()
            peer.respond(await peer.request(), status, [] if status == 204 else [("content-length", "5")], None)
            answer = await read_answer(client, method)
            assert (answer.status, answer.body) == (status, b"")
            client.abort()
            assert await gateway.leftovers() == []

    async def test_a_post_without_a_body_says_so(self, engine):
        upstream = Http2Upstream(engine=engine)
        async with in_memory(config(), upstream, engine=engine) as gateway:
            await gateway.request(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
            assert upstream.asked[0].head.headers.get_all("content-length") == ["0"]

    async def test_both_directions_flow_at_once_from_http2_to_http2(self, engine):
        async with played(engine) as (gateway, accept):
            client = Http2Client(gateway.connect(), engine=engine)
            number = client.request(method="POST", more=True)
            peer = await accept()
            stream = await peer.head()
            peer.respond(stream, body=b"first ", more=True)
            for word in (b"second ", b"third "):
                client.send(number, word)
                while not peer.asked[stream].body.endswith(word):
                    await peer.receive()
                peer.send(stream, word)
                while not client.answers.get(number) or not client.answers[number].body.endswith(word):
                    await client.receive()
            client.send(number, b"", end=True)
            assert await peer.request() == stream
            peer.send(stream, b"end", end=True)
            assert (await client.answer(number)).body == b"first second third end"
            client.stream.abort()
            assert await gateway.leftovers() == []

    async def test_an_early_answer_is_the_answer(self, engine):
        async with played(engine) as (gateway, accept):
            client = Http2Client(gateway.connect(), engine=engine)
            number = client.request(method="POST", more=True)
            peer = await accept()
            stream = await peer.head()
            peer.respond(stream, 413, body=b"too much")
            assert (await client.answer(number)).status == 413
            await gateway.network.settle()
            peer.take_in()
            assert peer.resets == {stream: Code.CANCEL}
            # The connection is as good as before.
            again = client.request()
            peer.respond(await peer.request())
            assert (await client.answer(again)).status == 200
            client.stream.abort()
            assert await gateway.leftovers() == []

    async def test_an_upstream_that_answers_and_then_says_stop_is_believed(self, engine):
        async with played(engine) as (gateway, accept):
            client = Http2Client(gateway.connect(), engine=engine)
            number = client.request(method="POST", more=True)
            peer = await accept()
            stream = await peer.head()
            peer.respond(stream, 401, body=b"no")
            peer.reset(stream, Code.NO_ERROR)
            assert (await client.answer(number)).status == 401
            client.stream.abort()
            assert await gateway.leftovers() == []

    async def test_a_connection_whose_streams_are_used_up_costs_no_request(self, engine, monkeypatch):
        async with played(engine) as (gateway, accept):
            warm = ask(gateway)
            first = await accept()
            first.respond(await first.request())
            await read_answer(warm)
            (session,) = gateway.gateway._current.now.pools["up"].origins[0].sessions
            kind, used_up = type(session._session), session._session
            begin = kind.request

            def request(self, fields, end):
                return 0 if self is used_up else begin(self, fields, end)

            monkeypatch.setattr(kind, "request", request)
            client = ask(gateway, POST % 3 + b"abc")
            second = await accept()
            stream = await second.request()
            assert second.asked[stream].body == b"abc"
            second.respond(stream)
            assert (await read_answer(client)).status == 200
            warm.abort()
            client.abort()
            assert await gateway.leftovers() == []


class TestFailures:
    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test_a_refused_stream_is_asked_again_whatever_the_method(self, engine, method):
        async with played(engine) as (gateway, accept):
            client = ask(gateway, f"{method} / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab".encode())
            peer = await accept()
            peer.reset(await peer.request(), Code.REFUSED_STREAM)
            again = await peer.request()
            assert peer.asked[again].body == b"ab"
            peer.respond(again)
            assert (await read_answer(client)).status == 200

    async def test_it_is_asked_again_so_often(self, engine):
        async with played(engine) as (gateway, accept):
            told = await reasons(gateway)
            client = ask(gateway)
            peer = await accept()
            for _ in range(1 + MAX_UNPROCESSED):
                peer.reset(await peer.request(), Code.REFUSED_STREAM)
            assert (await read_answer(client)).status == 502
            assert told == ["gw.upstream_unprocessed"]
            client.abort()
            assert await gateway.leftovers() == []

    async def test_refusals_teach_how_many_it_takes(self, engine):
        async with played(engine) as (gateway, accept):
            clients = [ask(gateway) for _ in range(3)]
            first = await accept()
            streams = [await first.request() for _ in range(3)]
            first.reset(streams[2], Code.REFUSED_STREAM)
            second = await accept()  # the first is full at two
            second.respond(await second.request())
            for stream in streams[:2]:
                first.respond(stream)
            for client in clients:
                assert (await read_answer(client)).status == 200

    async def test_what_goaway_leaves_out_is_asked_again_elsewhere_and_the_rest_goes_on(self, engine):
        async with played(engine) as (gateway, accept):
            clients = []
            for number in range(3):
                post = f"POST /{number} HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx"
                clients.append(ask(gateway, post.encode()))
                await gateway.network.settle()
            first = await accept()
            streams = [await first.request() for _ in range(3)]
            first.goaway(streams[0])
            second = await accept()
            assert {second.asked[await second.request()].head.target for _ in range(2)} == {"/1", "/2"}
            for stream in second.asked:
                second.respond(stream)
            first.respond(streams[0])
            for client in clients:
                assert (await read_answer(client)).status == 200
                client.abort()
            assert len(gateway.network.dialled) == 2
            await first.until_closed()
            assert await gateway.leftovers() == []

    async def test_after_goaway_there_is_only_so_much_time(self, engine):
        async with played(engine, goaway_drain_timeout_sec=3) as (gateway, accept):
            told = await reasons(gateway)
            clients = [ask(gateway)]
            await gateway.network.settle()
            clients.append(ask(gateway))
            peer = await accept()
            streams = [await peer.request(), await peer.request()]
            peer.respond(streams[0], body=b"begun", more=True)
            peer.goaway(streams[1])
            await gateway.network.advance(4)
            with pytest.raises(StreamLost):
                await read_answer(clients[0])
            assert (await read_answer(clients[1])).status == 502
            assert sorted(told) == ["gw.upstream_maybe_processed", "gw.upstream_truncated"]
            assert await gateway.leftovers() == []

    async def test_a_dead_connection_that_was_used_before_costs_a_get_nothing(self, engine):
        async with played(engine) as (gateway, accept):
            client = ask(gateway)
            first = await accept()
            first.respond(await first.request())
            await read_answer(client)
            client.write(GET)
            await first.request()
            first.stream.abort()
            second = await accept()
            second.respond(await second.request())
            assert (await read_answer(client)).status == 200

    @pytest.mark.parametrize("cut", range(5))
    async def test_a_request_on_a_used_connection_that_dies_is_sent_once_more_until_its_answer_begins(
        self, engine, cut
    ):
        """As in HTTP/1.1: what matters is whether anything came of an answer, not how far the request had come."""
        async with played(engine) as (gateway, accept):
            told = await reasons(gateway)
            client = ask(gateway)
            first = await accept()
            first.respond(await first.request())
            await read_answer(client)
            if cut == 0:  # before the request is written, and nobody has seen it yet
                first.stream.abort()
                client.write(GET)
            else:
                client.write(GET)
                stream = await first.request()
                if cut == 2:  # frames that are no answer
                    first.session.ping(b"12345678")
                    first.flush()
                elif cut == 3:
                    first.interim(stream, 103)
                elif cut == 4:
                    first.respond(stream, more=True)
                await gateway.network.settle()
                first.stream.abort()
            if cut <= 2:
                second = await accept()
                second.respond(await second.request())
                assert (await read_answer(client)).status == 200
                assert told == ["", ""]
            else:
                with suppress(StreamLost):  # of an answer whose head was sent
                    assert (await read_answer(client)).status == 502
                assert told == ["", "gw.upstream_truncated"]
            client.abort()
            assert await gateway.leftovers() == []

    async def test_what_is_sent_once_more_goes_on_a_connection_that_is_new(self, engine):
        """All that were open may have died together, and one that is sent once more has no third try."""
        async with played(engine, max_concurrent_streams_pref=1) as (gateway, accept):
            clients = [ask(gateway), ask(gateway)]
            old = [await accept(), await accept()]
            for peer in old:
                peer.respond(await peer.request())
            for client in clients:
                await read_answer(client)
            clients[0].write(GET)
            await gateway.network.settle()
            for peer in old:
                peer.take_in()
            next(peer for peer in old if peer.whole).stream.abort()
            new = await accept()
            new.respond(await new.request())
            assert (await read_answer(clients[0])).status == 200

    async def test_those_that_are_sent_once_more_share_a_connection(self, engine):
        async with played(engine) as (gateway, accept):
            clients = [ask(gateway)]
            old = await accept()
            old.respond(await old.request())
            await read_answer(clients[0])
            clients = [ask(gateway) for _ in range(5)]
            for _ in clients:
                await old.request()
            old.stream.abort()
            new = await accept()
            for _ in clients:
                new.respond(await new.request())
            assert [(await read_answer(client)).status for client in clients] == [200] * 5
            assert len(gateway.network.dialled) == 2

    async def test_it_is_sent_once_more_and_not_twice_and_no_post_at_all(self, engine):
        async with played(engine) as (gateway, accept):
            for method, tries in ((GET, 2), (GET.replace(b"GET", b"POST"), 1)):
                client = ask(gateway)
                peer = await accept()
                peer.respond(await peer.request())
                await read_answer(client)
                client.write(method)
                for number in range(tries):
                    peer = peer if number == 0 else await accept()
                    await peer.request()
                    peer.stream.abort()
                assert (await read_answer(client)).status == 502

    async def test_one_that_was_opened_ahead_may_have_died_before_its_first_request(self, engine):
        async with played(engine, pool={"min_idle_connections": 1}) as (gateway, accept):
            await gateway.network.advance(5)
            warm = await accept()
            client = ask(gateway)
            await warm.request()
            warm.stream.abort()
            peer = await accept()
            peer.respond(await peer.request())
            assert (await read_answer(client)).status == 200

    async def test_a_reset_is_an_answer_on_a_used_connection_as_well(self, engine):
        async with played(engine) as (gateway, accept):
            client = ask(gateway)
            peer = await accept()
            peer.respond(await peer.request())
            await read_answer(client)
            client.write(GET)
            peer.reset(await peer.request(), Code.INTERNAL_ERROR)
            assert (await read_answer(client)).status == 502

    async def test_a_connection_that_dies_in_mid_answer_breaks_it_off(self, engine):
        async with played(engine) as (gateway, accept):
            told = await reasons(gateway)
            client = ask(gateway)
            peer = await accept()
            peer.respond(await peer.request(), body=b"some", more=True)
            await gateway.network.settle()
            peer.stream.abort()
            with pytest.raises(StreamLost):
                await read_answer(client)
            assert told == ["gw.upstream_truncated"]
            assert await gateway.leftovers() == []

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ([(":status", "20")], "gw.upstream_parse_error"),
            ([(":status", "abc")], "gw.upstream_parse_error"),
            ([(":status", "200"), ("connection", "close")], "gw.upstream_parse_error"),
            ([(":status", "101")], "gw.upstream_parse_error"),
            ([(":status", "200"), ("content-length", "x")], "gw.upstream_parse_error"),
        ],
    )
    async def test_a_head_that_is_none_is_a_502_and_costs_no_other_stream(self, engine, fields, reason):
        async with in_memory(config(), backlog := Backlog(), engine=engine) as gateway:
            told = await reasons(gateway)
            client = ask(gateway)
            await gateway.network.settle()
            other = ask(gateway)
            peer = await backlog.accept()
            peer.write(frame(SETTINGS))
            await gateway.network.settle()
            peer.write(head(1, fields))
            assert (await read_answer(client)).status == 502
            assert told[0] == reason
            if engine == "pure" and fields[-1] in {(":status", "101"), ("content-length", "x")}:
                return  # h2 ends the connection over these, which RFC 9113 section 5.4.2 allows
            assert told == [reason]
            peer.write(head(3, [(":status", "204")]))
            assert (await read_answer(other)).status == 204

    @pytest.mark.parametrize("length", ["3", "5"])
    async def test_a_body_of_another_length_than_declared_is_broken_off(self, engine, length):
        async with played(engine) as (gateway, accept):
            client = ask(gateway)
            peer = await accept()
            stream = await peer.request()
            peer.respond(stream, 200, [("content-length", length)], b"four")
            try:
                status = (await read_answer(client)).status
            except StreamLost:
                status = 502  # some of it had been passed on
            assert status == 502
            client.abort()
            assert await gateway.leftovers() == []

    async def test_something_that_is_not_http2_is_a_502(self, engine):
        async with in_memory(config(), backlog := Backlog(), engine=engine) as gateway:
            told = await reasons(gateway)
            client = ask(gateway)
            peer = await backlog.accept()
            await peer.receive()
            peer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            assert (await read_answer(client)).status == 502
            assert told == ["gw.upstream_parse_error"]
            assert await gateway.leftovers() == []

    async def test_interim_answers_that_nobody_reads_are_bounded(self, engine):
        async with played(engine) as (gateway, accept):
            told = await reasons(gateway)
            client = ask(gateway)
            peer = await accept()
            stream = await peer.request()
            for _ in range(MAX_INTERIM_RESPONSES * 3):
                peer.session.interim(stream, [(b":status", b"103")])
            peer.flush()
            await gateway.network.settle()
            peer.take_in()
            assert peer.resets == {stream: Code.ENHANCE_YOUR_CALM}
            assert told == ["gw.upstream_parse_error"]
            client.abort()

    @pytest.mark.parametrize("code", [Code.INTERNAL_ERROR, Code.CANCEL])
    async def test_a_reset_before_the_answer_is_a_502(self, engine, code):
        async with played(engine) as (gateway, accept):
            told = await reasons(gateway)
            client = ask(gateway)
            peer = await accept()
            peer.reset(await peer.request(), code)
            assert (await read_answer(client)).status == 502
            assert told == ["gw.upstream_disconnect"]

    async def test_a_reset_in_mid_answer_is_passed_on_as_one(self, engine):
        async with played(engine) as (gateway, accept):
            client = Http2Client(gateway.connect(), engine=engine)
            number = client.request()
            peer = await accept()
            stream = await peer.request()
            peer.respond(stream, body=b"some", more=True)
            await gateway.network.settle()
            peer.reset(stream, Code.INTERNAL_ERROR)
            with pytest.raises(StreamReset, match="INTERNAL_ERROR"):
                await client.answer(number)

    async def test_a_client_that_cancels_cancels_upstream(self, engine):
        async with played(engine) as (gateway, accept):
            client = Http2Client(gateway.connect(), engine=engine)
            number = client.request()
            peer = await accept()
            stream = await peer.request()
            client.session.reset(number, Code.CANCEL)
            client.flush()
            await gateway.network.settle()
            peer.take_in()
            assert peer.resets == {stream: Code.CANCEL}
            client.stream.abort()
            assert await gateway.leftovers() == []


class TestLiveness:
    async def test_a_silent_upstream_is_asked_and_given_up(self, engine):
        async with played(engine, ping_idle_sec=5, ping_timeout_sec=2, proxy=None) as (gateway, accept):
            told = await reasons(gateway)
            client = ask(gateway)
            peer = await accept()
            await peer.request()
            await gateway.network.advance(6)
            assert told == []
            await gateway.network.advance(2)
            assert (await read_answer(client)).status == 502
            assert told == ["gw.upstream_maybe_processed"]
            assert await gateway.leftovers() == []

    async def test_one_that_answers_goes_on(self, engine):
        async with played(engine, ping_idle_sec=5, ping_timeout_sec=2) as (gateway, accept):
            client = ask(gateway)
            peer = await accept()
            stream = await peer.request()
            for _ in range(4):
                await gateway.network.advance(5.5)
                peer.take_in()  # and the session answers the PING
            peer.respond(stream)
            assert (await read_answer(client)).status == 200

    async def test_an_idle_connection_is_closed_in_good_order(self, engine):
        async with played(engine, pool={"idle_timeout_sec": 10}, ping_idle_sec=0) as (gateway, accept):
            client = ask(gateway)
            peer = await accept()
            peer.respond(await peer.request())
            await read_answer(client)
            await gateway.network.advance(9.5)
            assert not peer.stream.at_eof
            await gateway.network.advance(1)
            await peer.until_closed()
            assert [each.code for each in peer.goaways] == [Code.NO_ERROR]

    async def test_an_old_connection_takes_no_further_request(self, engine):
        async with played(engine, pool={"max_lifetime_sec": 60}) as (gateway, accept):
            client = ask(gateway)
            first = await accept()
            stream = await first.request()
            await gateway.network.advance(20)
            first.respond(stream, body=b"long", more=True)
            await gateway.network.advance(25)
            first.send(stream, b"er")
            await gateway.network.advance(20)
            other = ask(gateway)
            second = await accept()
            second.respond(await second.request())
            assert (await read_answer(other)).status == 200
            first.send(stream, b"!", end=True)
            assert (await read_answer(client)).body == b"longer!"
            await first.until_closed()

    async def test_one_that_has_served_enough_is_closed(self, engine):
        upstream = Http2Upstream(engine=engine)
        async with in_memory(config(pool={"max_requests_per_conn": 2}), upstream, engine=engine) as gateway:
            for _ in range(5):
                assert (await gateway.get("/")).status == 200
            assert len(upstream.peers) == 3
            assert await gateway.leftovers() == []

    async def test_a_stopping_gateway_says_goaway(self, engine):
        async with played(engine) as (gateway, accept):
            client = ask(gateway)
            peer = await accept()
            peer.respond(await peer.request())
            await read_answer(client)
            await gateway.gateway._current.switch(None)
            await peer.until_closed()
            assert [each.code for each in peer.goaways] == [Code.NO_ERROR]


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_a_cut_at_any_wait_leaves_nothing(side, engine):
    async def play(gateway):
        client = gateway.connect()
        client.write(POST % 300_000)
        client.write(b"x" * 300_000)
        try:
            answer = await read_answer(client)
            assert answer.status in {200, 502}
        finally:
            client.abort()

    def echo(peer, stream):
        peer.respond(stream, body=peer.asked[stream].body, trailers=[("x-sum", "1")])

    waits = await cut_everywhere(
        play, lambda: Http2Upstream(echo, engine=engine), side=side, config=config(), engine=engine
    )
    assert waits > 3


async def test_an_http2_connection_says_what_it_is():
    async with played("auto") as (gateway, accept):
        ask(gateway)
        await (await accept()).request()
        (session,) = gateway.gateway._current.now.pools["up"].origins[0].sessions
        assert repr(session) == "<Http2Upstream 192.0.2.1:80 open active 1 served 1>"
        session.draining = True
        assert repr(session) == "<Http2Upstream 192.0.2.1:80 draining active 1 served 1>"
        assert repr(next(iter(session._streams.values()))) == f"<UpstreamStream 1 of {session!r}>"
