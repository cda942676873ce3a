"""HTTP/2 with clients, in memory and on a virtual clock, on both engines."""

from __future__ import annotations

import contextlib
from types import ModuleType

import anyio
import pytest
from frames import (
    DATA,
    END_HEADERS,
    GET,
    GOAWAY,
    POST,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    START,
    codes,
    frame,
    head,
    parsed,
)

from gw import Filter, Headers, hookimpl
from gw.http.h2 import PREFACE, Code, GoAway, SessionSettings
from gw.limits import GOAWAY_NOTICE, RESET_DELAY
from gw.net.stream import StreamLost
from gw.plugins import PluginSet
from gw.testing.gateway import Upstream, in_memory, read_answer
from gw.testing.http2 import Http2Client, StreamReset
from gw.testing.memory import Backlog

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def client_of(gateway, **settings):
    return Http2Client(gateway.connect(), SessionSettings(**settings))


class TestExchanges:
    async def test_a_get_is_answered_and_its_fields_travel(self, engine):
        upstream = Upstream(
            b"HTTP/1.1 200 OK\r\nx-up: 1\r\nconnection: x-hop\r\nx-hop: 1\r\ncontent-length: 2\r\n\r\nok"
        )
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            answer = await client_of(gateway).get("/a//b/../c?d", [("x-mine", "1"), ("te", "trailers")])
            assert (answer.status, answer.body) == (200, b"ok")
            assert answer.headers.get("x-up") == "1"
            assert answer.headers.get("via") == "1.1 gw"
            assert {"connection", "x-hop", "keep-alive", "transfer-encoding"}.isdisjoint(n for n, _ in answer.headers)
            (asked,) = upstream.asked
            assert (asked.head.method, asked.head.target, asked.head.version) == ("GET", "/a/c?d", "1.1")
            assert asked.head.headers.get("x-mine") == "1"
            assert asked.head.headers.get("x-forwarded-host") == "example.test"
            assert await gateway.leftovers() == []

    async def test_many_streams_at_once_on_one_connection(self, engine):
        upstream = Upstream()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            streams = [client.request(f"/{number}") for number in range(100)]
            for stream in streams:
                assert (await client.answer(stream)).body == b"ok"
            assert {asked.head.target for asked in upstream.asked} == {f"/{number}" for number in range(100)}
            assert await gateway.leftovers() == []

    async def test_a_body_is_passed_on_with_its_length(self, engine):
        upstream = Upstream()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            await client.answer(
                client.request("/", method="POST", body=b"x" * 40_000, fields=[("content-length", "40000")])
            )
            (asked,) = upstream.asked
            assert asked.body == b"x" * 40_000
            assert asked.head.headers.get("content-length") == "40000"

    async def test_a_body_of_unknown_length_is_chunked_upstream(self, engine):
        upstream = Upstream()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            stream = client.request("/", method="POST", body=b"one", more=True)
            client.send(stream, b"two", end=True)
            await client.answer(stream)
            (asked,) = upstream.asked
            assert (asked.body, asked.head.headers.get("transfer-encoding")) == (b"onetwo", "chunked")

    async def test_trailers_travel_both_ways(self, engine):
        chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 2\r\n\r\n"
        upstream = Upstream(chunked)
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            stream = client.request("/", method="POST", body=b"body", more=True)
            client.session.trail(stream, [(b"x-mine", b"1")])
            client.flush()
            answer = await client.answer(stream)
            assert answer.trailers is not None
            assert (answer.body, answer.trailers.get("x-sum")) == (b"ok", "2")
            trailers = upstream.asked[0].trailers
            assert trailers is not None
            assert trailers.get("x-mine") == "1"

    async def test_a_head_gets_no_body(self, engine):
        upstream = Upstream(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            answer = await client.answer(client.request(method="HEAD"))
            assert (answer.status, answer.body, answer.headers.get("content-length")) == (200, b"", "1000")

    @pytest.mark.parametrize("status", [204, 304])
    async def test_an_answer_without_content_ends_with_its_head(self, status):
        async with in_memory(upstream=Upstream(b"HTTP/1.1 %d X\r\n\r\n" % status)) as gateway:
            assert (await client_of(gateway).get()).status == status

    async def test_early_hints_come_early(self, engine):
        early = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n" + OK
        async with in_memory(upstream=Upstream(early), engine=engine) as gateway:
            client = client_of(gateway)
            answer = await client.get()
            assert [(each.status, each.headers.get("link")) for each in answer.interim] == [(103, "</a.css>")]
            assert answer.status == 200

    async def test_an_expectation_is_answered_by_the_upstream(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            stream = client.request(method="POST", fields=[("expect", "100-continue")], more=True)
            peer = await upstream.accept()
            await peer.read_until(b"\r\n\r\n")
            peer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            while not client.answers:
                await client.receive()
            assert client.answers[stream].interim[0].status == 100
            client.send(stream, b"body", end=True)
            await peer.read_until(b"body")
            peer.write(OK)
            assert (await client.answer(stream)).status == 200

    async def test_cookies_come_together_again(self):
        upstream = Upstream()
        async with in_memory(upstream=upstream) as gateway:
            await client_of(gateway).get("/", [("cookie", "a=1"), ("cookie", "b=2")])
            assert upstream.asked[0].head.headers.get_all("cookie") == ["a=1; b=2"]

    async def test_our_own_answers_look_as_they_do_on_http1(self, engine):
        async with in_memory({"upstreams": []}, engine=engine) as gateway:
            answer = await client_of(gateway).get("/nowhere")
            assert (answer.status, answer.body) == (404, b"Not Found")
            assert await gateway.leftovers() == []


class TestRefusals:
    @pytest.mark.parametrize("pseudo", [GET[:2] + GET[3:], [*GET[:2], (":authority", "a b"), GET[3]]])
    async def test_so_does_one_without_a_host(self, engine, pseudo):
        async with in_memory(engine=engine) as gateway:
            stream = gateway.connect()
            stream.write(START + head(1, pseudo) + head(3, GET))
            await gateway.network.settle()
            assert codes(stream.take()) == [("reset", 1, Code.PROTOCOL_ERROR)]

    @pytest.mark.parametrize(
        ("why", "fields"),
        [
            ("connection", [("connection", "close")]),
            ("transfer-encoding", [("transfer-encoding", "chunked")]),
            ("te", [("te", "gzip")]),
            ("upper case", [("X-A", "1")]),
            ("two hosts", [("host", "other.test")]),
            ("two lengths", [("content-length", "1"), ("content-length", "2")]),
            ("control character", [("x-a", "a\0b")]),
            ("pseudo after", [(":path", "/")]),
        ],
    )
    async def test_a_malformed_head_costs_its_stream_and_no_other(self, engine, why, fields):
        upstream = Upstream()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            stream = gateway.connect()
            stream.write(START + head(1, [*GET, *fields]) + head(3, GET))
            await gateway.network.settle()
            said = codes(stream.take())
            if (why, engine) == ("two lengths", "pure"):  # h2 ends the connection, which RFC 9113 section 5.4.2 allows
                assert said == [("goaway", 0, Code.PROTOCOL_ERROR)]
            else:
                assert said == [("reset", 1, Code.PROTOCOL_ERROR)], why
                assert len(upstream.asked) == 1
            stream.abort()
            assert await gateway.leftovers() == []

    async def test_an_expectation_that_nobody_knows_is_a_417(self):
        async with in_memory() as gateway:
            client = client_of(gateway)
            answer = await client.answer(client.request(method="POST", body=b"", fields=[("expect", "miracles")]))
            assert answer.status == 417

    async def test_more_streams_than_allowed_are_refused_and_not_processed(self, engine):
        upstream = Backlog()
        settings = {"http2": {"max_concurrent_streams": 2}}
        async with in_memory(settings, upstream=upstream, engine=engine) as gateway:
            stream = gateway.connect()
            stream.write(START + b"".join(head(number, GET) for number in (1, 3, 5)))
            await gateway.network.settle()
            said = codes(stream.take())
            assert said == [("reset", 5, Code.REFUSED_STREAM)] or said[0][0] == "goaway"

    async def test_a_stream_that_was_reset_counts_until_its_work_has_ended(self, engine):
        """Rapid reset (CVE-2023-44487): resetting does not make room for more work than was allowed."""
        settings = {"http2": {"max_concurrent_streams": 10}}
        async with in_memory(settings, upstream=Backlog(), engine=engine) as gateway:
            stream = gateway.connect()
            burst = b"".join(head(n, GET) + frame(RST_STREAM, 0, n, b"\0\0\0\x08") for n in range(1, 150, 2))
            stream.write(START + burst)
            working = [gateway.gateway._current.now.users]
            for _ in range(50):
                await anyio.lowlevel.checkpoint()
                working.append(gateway.gateway._current.now.users)
            assert max(working) <= 10
            stream.abort()
            assert await gateway.leftovers() == []

    async def test_a_flood_of_resets_ends_the_connection(self, engine):
        async with in_memory(upstream=Backlog(), engine=engine) as gateway:
            stream = gateway.connect()
            burst = b"".join(head(n, GET) + frame(RST_STREAM, 0, n, b"\0\0\0\x08") for n in range(1, 300, 2))
            stream.write(START + burst)
            said = await stream.read_until_end()
            assert ("goaway", 0, Code.ENHANCE_YOUR_CALM) in codes(said)
            assert await gateway.leftovers() == []

    async def test_a_body_that_is_too_large_gets_a_413_and_then_a_reset(self, engine):
        async with in_memory({"max_body_size": 1000}, engine=engine) as gateway:
            client = client_of(gateway)
            stream = client.request(method="POST", body=b"x" * 1001, more=True)
            answer = await client.answer(stream)
            assert answer.status == 413
            assert answer.headers.get("x-request-body-limit-exceeded") == "true"
            assert client.resets == {}, "some clients lose an answer that a reset comes with"
            await gateway.network.advance(2 * RESET_DELAY)
            client.take_in()
            assert client.resets[stream] == Code.NO_ERROR
            assert (await client.get()).status == 200
            client.stream.abort()
            assert await gateway.leftovers() == []

    async def test_one_that_is_declared_too_large_is_not_read(self, engine):
        upstream = Upstream()
        async with in_memory({"max_body_size": 1000}, upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            stream = client.request(method="POST", fields=[("content-length", "1001")], more=True)
            assert (await client.answer(stream)).status == 413
            assert upstream.asked == []


class TestFlowControl:
    async def test_a_slow_upstream_stops_its_stream_and_no_other(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            slow = client.request("/slow", method="POST", body=b"x" * 10_000_000, more=True)
            peer = await upstream.accept()
            await gateway.network.settle()
            assert client.session.queued(slow) > 9_000_000, "its window is not given back, for nobody has read it"
            quick = client.request("/quick")
            other = await upstream.accept()
            await other.read_until(b"\r\n\r\n")
            other.write(OK)
            assert (await client.answer(quick)).body == b"ok"
            assert not peer.lost

    async def test_what_the_upstream_reads_the_client_may_send_again(self, engine):
        upstream = Upstream()
        async with in_memory({"max_body_size": 0}, upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            stream = client.request(method="POST", body=b"x" * 3_000_000)
            assert (await client.answer(stream)).status == 200
            assert len(upstream.asked[0].body) == 3_000_000

    async def test_a_client_that_reads_slowly_stops_the_upstream_and_not_the_others(self, engine):
        large = b"HTTP/1.1 200 OK\r\ncontent-length: 30000000\r\n\r\n" + b"x" * 30_000_000
        upstream = Upstream(large, OK)
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            client.gives_back = False
            slow = client.request("/large")
            await gateway.network.settle()
            client.take_in()
            assert gateway.network.peers[0].unsent > 20_000_000, "the upstream is not read on for it"
            client.session.give_back(0, 0)
            assert client.answers[slow].status == 200

    async def test_many_answers_that_nobody_reads_are_bounded_together(self, engine):
        large = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1_000_000
        settings = {"upstreams": [{"name": "u", "host": "192.0.2.1", "pool": {"max_connections": 100}}]}
        settings["routes"] = [{"upstream": "u"}]
        async with in_memory(settings, upstream=Upstream(large), engine=engine) as gateway:
            client = client_of(gateway)
            client.gives_back = False
            streams = [client.request() for _ in range(50)]
            await gateway.network.settle()
            (connection,) = gateway.gateway.connections
            waiting = sum(connection._session.queued(stream) for stream in streams)
            assert waiting < 50 * 160_000, "what came in one read, not the 256 KiB that a single one may have waiting"
            client.take_in()
            client.gives_back = True
            for stream in streams:
                client.session.give_back(stream, len(client.answers[stream].body))
            client.flush()
            for stream in streams:
                assert len((await client.answer(stream)).body) == 1_000_000
            assert connection.queued == 0
            client.stream.abort()
            assert await gateway.leftovers() == []

    async def test_one_that_takes_nothing_is_given_up(self, engine):
        large = b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n" + b"x" * 3_000_000
        async with in_memory({"send_timeout_sec": 10}, upstream=Upstream(large), engine=engine) as gateway:
            client = client_of(gateway)
            client.gives_back = False
            stream = client.request()
            await gateway.network.advance(11)
            client.take_in()
            assert client.resets[stream] == Code.CANCEL
            client.stream.abort()
            assert await gateway.leftovers() == []


class TestEndings:
    async def test_a_client_that_resets_a_stream_ends_the_work_for_it(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            stream = client.request()
            peer = await upstream.accept()
            client.session.reset(stream, Code.CANCEL)
            client.flush()
            await gateway.network.settle()
            assert peer.lost
            assert await gateway.leftovers() == []

    @pytest.mark.parametrize("turns", range(8))
    async def test_a_reset_that_meets_the_end_of_the_work_leaves_the_connection_as_it_was(self, engine, turns):
        """Whichever comes first: a task that was cancelled and had nothing left to do must not be given a stream."""
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            stream = client.request()
            peer = await upstream.accept()
            await peer.read_until(b"\r\n\r\n")
            client.session.reset(stream, Code.CANCEL)
            client.flush()
            for _ in range(turns):
                await anyio.lowlevel.cancel_shielded_checkpoint()
            with contextlib.suppress(StreamLost):
                peer.write(OK)
            await gateway.network.settle()
            again = client.request(method="POST", body=b"", fields=[("expect", "miracles")])
            await gateway.network.settle()
            client.take_in()
            assert client.answers[again].status == 417
            assert await gateway.leftovers() == []

    async def test_a_client_that_leaves_ends_all_of_its_work(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            for _ in range(3):
                client.request()
            peers = [await upstream.accept() for _ in range(3)]
            client.stream.abort()
            await gateway.network.settle()
            assert all(peer.lost for peer in peers)
            assert await gateway.leftovers() == []

    async def test_an_upstream_that_breaks_off_resets_the_stream(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            stream = client.request()
            peer = await upstream.accept()
            peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nsome")
            await gateway.network.settle()
            peer.abort()
            with pytest.raises(StreamReset, match="INTERNAL_ERROR"):
                await client.answer(stream)

    async def test_a_drain_gives_notice_serves_what_comes_and_then_refuses(self, engine):
        upstream = Backlog()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            client = client_of(gateway)
            first = client.request("/first")
            peer = await upstream.accept()
            (connection,) = gateway.gateway.connections
            connection.drain()
            late = client.request("/late")  # sent before the notice was read
            other = await upstream.accept()
            client.take_in()
            assert client.goaways == [GoAway(2**31 - 1, Code.NO_ERROR, b"")]
            client.flush()
            await gateway.network.advance(GOAWAY_NOTICE)
            client.take_in()
            assert client.goaways[1:] == [GoAway(late, Code.NO_ERROR, b"")]
            for each in (peer, other):
                await each.read_until(b"\r\n\r\n")
                each.write(OK)
            assert (await client.answer(first)).body == b"ok"
            assert (await client.answer(late)).body == b"ok"
            await gateway.network.advance(GOAWAY_NOTICE)
            await client.until_closed()

    async def test_a_connection_that_is_old_enough_is_drained(self, engine):
        async with in_memory({"http2": {"max_connection_age_sec": 100}}, engine=engine) as gateway:
            client = client_of(gateway)
            assert (await client.get()).status == 200
            await gateway.network.advance(112)
            await client.until_closed()
            assert [each.last for each in client.goaways] == [2**31 - 1, 1]

    async def test_one_without_a_stream_is_closed_when_its_time_is_up(self, engine):
        async with in_memory({"idle_timeout_sec": 60}, engine=engine) as gateway:
            client = client_of(gateway)
            assert (await client.get()).status == 200
            await gateway.network.advance(59)
            client.take_in()
            assert client.goaways == []
            await gateway.network.advance(2)
            await client.until_closed()
            assert [each.code for each in client.goaways] == [Code.NO_ERROR]

    async def test_one_that_asks_for_nothing_is_closed_after_the_request_timeout(self):
        async with in_memory({"request_timeout_sec": 5}) as gateway:
            client = client_of(gateway)
            await gateway.network.advance(6)
            await client.until_closed()

    async def test_a_body_that_stops_coming_is_a_408(self, engine):
        async with in_memory({"body_timeout_sec": 5}, engine=engine) as gateway:
            client = client_of(gateway)
            stream = client.request(method="POST", body=b"some", more=True)
            await gateway.network.advance(6)
            assert (await client.answer(stream)).status == 408

    async def test_an_error_of_the_connection_is_told_and_ends_it(self, engine):
        async with in_memory(upstream=Backlog(), engine=engine) as gateway:
            stream = gateway.connect()
            stream.write(START + head(1, POST, END_HEADERS) + frame(RST_STREAM, 0, 9, bytes(4)))
            said = parsed(await stream.read_until_end())
            assert [kind for kind, *_ in said][-1] == GOAWAY
            assert await gateway.leftovers() == []


class TestWhichProtocol:
    @pytest.mark.parametrize("cut", [1, 10, 24])
    async def test_the_preface_may_come_in_pieces(self, cut):
        async with in_memory() as gateway:
            stream = gateway.connect()
            data = START + head(1, GET)
            for at in range(0, len(data), cut):
                stream.write(data[at : at + cut])
                await gateway.network.settle()
            assert stream.take().startswith(b"\0\0")

    @pytest.mark.parametrize("first", [b"P", b"PR", b"PRI "])
    async def test_what_begins_like_it_and_is_not_is_http1(self, first):
        async with in_memory() as gateway:
            stream = gateway.connect()
            stream.write(first)
            await gateway.network.settle()
            stream.write(b"OPFIND / HTTP/1.1\r\nhost: a\r\n\r\n")
            answer = await read_answer(stream)
            assert answer.status == (200 if first == b"PR" else 400) or first == b"P"

    async def test_it_can_be_switched_off(self):
        async with in_memory({"http2": {"enabled": False}}) as gateway:
            stream = gateway.connect()
            stream.write(PREFACE)
            answer = await read_answer(stream)
            assert answer.status in (400, 505)

    async def test_a_client_that_says_nothing_is_closed(self):
        async with in_memory({"idle_timeout_sec": 5}) as gateway:
            stream = gateway.connect()
            await gateway.network.advance(6)
            with pytest.raises((anyio.EndOfStream, StreamLost)):
                await stream.receive()
            assert await gateway.leftovers() == []

    async def test_one_that_says_half_a_preface_gets_what_http1_says(self):
        async with in_memory({"request_timeout_sec": 5}) as gateway:
            stream = gateway.connect()
            stream.write(PREFACE[:10])
            await gateway.network.advance(11)
            await stream.read_until_end()
            assert await gateway.leftovers() == []


class Pushes(Filter):
    """Promises what the request asks for in ``x-push``, and says in the response whether it could."""

    name = "pushes"

    async def on_request_headers(self, ex):
        for path in ex.request.headers.get_all("x-push"):
            ex.request.headers.add("x-pushed", str(ex.push(path, Headers([(b"x-why", b"pushed")]))))

    def on_response_headers(self, ex):
        for told in ex.request.headers.get_all("x-pushed"):
            ex.response.headers.add("x-pushed", told)


def pushing():
    module = ModuleType("pushes")
    module.GW_API = 1
    module.gw_filters = hookimpl(lambda route, ctx: (Pushes(),), specname="gw_filters")
    plugins = PluginSet()
    plugins.add("pushes", module)
    return plugins


class TestPush:
    """Behaviour 7.5."""

    async def test_a_promise_is_made_before_the_answer_and_kept(self, engine):
        upstream = Upstream()
        settings = {"plugins": ["pushes"], "http2": {"enable_push": True}}
        async with in_memory(settings, upstream=upstream, plugins=pushing(), engine=engine) as gateway:
            stream = gateway.connect()
            stream.write(START + head(1, [*GET, ("x-push", "/style.css?a")]))
            await gateway.network.settle()
            frames = parsed(stream.take())
            promised = [
                number for kind, _, number, payload in frames if kind == PUSH_PROMISE and payload[:4] == b"\0\0\0\2"
            ]
            assert promised == [1]
            assert {number for kind, _, number, _ in frames if kind == DATA} == {1, 2}
            (pushed,) = [asked.head for asked in upstream.asked if asked.head.target == "/style.css?a"]
            assert (pushed.method, pushed.headers.get("x-why")) == ("GET", "pushed")
            assert pushed.headers.get("x-forwarded-host") == "a"
            stream.abort()
            assert await gateway.leftovers() == []

    @pytest.mark.parametrize(
        ("why", "enabled", "first", "path"),
        [
            ("off", False, START, "/a"),
            ("the client says no", True, PREFACE + frame(SETTINGS, 0, 0, b"\0\2\0\0\0\0"), "/a"),
            ("not a path", True, START, "a"),
        ],
    )
    async def test_a_refusal_harms_nothing(self, engine, why, enabled, first, path):
        settings = {"plugins": ["pushes"], "http2": {"enable_push": enabled}}
        upstream = Upstream()
        async with in_memory(settings, upstream=upstream, plugins=pushing(), engine=engine) as gateway:
            stream = gateway.connect()
            stream.write(first + head(1, [*GET, ("x-push", path)]))
            await gateway.network.settle()
            kinds = [kind for kind, *_ in parsed(stream.take())]
            assert PUSH_PROMISE not in kinds, why
            assert kinds.count(DATA) == 1
            assert upstream.asked[0].head.headers.get("x-pushed") == "False"

    async def test_promises_are_bounded(self, engine):
        settings = {"plugins": ["pushes"], "http2": {"enable_push": True, "max_concurrent_streams": 3}}
        async with in_memory(settings, upstream=Backlog(), plugins=pushing(), engine=engine) as gateway:
            stream = gateway.connect()
            stream.write(START + head(1, [*GET, *[("x-push", f"/{number}") for number in range(10)]]))
            await gateway.network.settle()
            kinds = [kind for kind, *_ in parsed(stream.take())]
            assert kinds.count(PUSH_PROMISE) == 3
            stream.abort()
            assert await gateway.leftovers() == []

    async def test_over_http1_there_is_none(self):
        settings = {"plugins": ["pushes"], "http2": {"enable_push": True}}
        async with in_memory(settings, plugins=pushing()) as gateway:
            answer = await gateway.get("/", {"x-push": "/a"})
            assert answer.headers.get("x-pushed") == "False"


UPGRADE = "GET /first HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: {}\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: h2c\r\n\r\n"


class TestUpgrade:
    """``Upgrade: h2c``, which RFC 9113 has dropped and some clients still use."""

    async def test_the_request_that_asked_is_answered_on_stream_1(self, engine):
        upstream = Upstream()
        async with in_memory(upstream=upstream, engine=engine) as gateway:
            stream = gateway.connect()
            stream.write(UPGRADE.format("AAMAAABkAAQAAP__").encode())
            assert await stream.read_until(b"\r\n\r\n") == SWITCHING
            stream.write(START + head(3, GET))
            await gateway.network.settle()
            answers = [number for kind, _, number, _ in parsed(stream.take()) if kind == 1]
            assert answers == [1, 3]
            first = upstream.asked[0].head
            assert (first.target, first.method) == ("/first", "GET")
            assert {"upgrade", "connection", "http2-settings"}.isdisjoint(name for name, _ in first.headers)
            stream.abort()
            assert await gateway.leftovers() == []

    async def test_stream_1_cannot_be_used_again(self, engine):
        async with in_memory(engine=engine) as gateway:
            stream = gateway.connect()
            stream.write(UPGRADE.format("").encode())
            await stream.read_until(b"\r\n\r\n")
            stream.write(START + head(1, GET))
            assert codes(await stream.read_until_end())[-1][0] == "goaway"

    async def test_settings_that_cannot_be_end_it(self, engine):
        async with in_memory(engine=engine) as gateway:
            stream = gateway.connect()
            stream.write(UPGRADE.format("AAT_____").encode())  # INITIAL_WINDOW_SIZE of 2^32-1
            await stream.read_until(b"\r\n\r\n")
            assert await stream.read_until_end() is not None
            assert await gateway.leftovers() == []

    @pytest.mark.parametrize(
        "request_text",
        [
            UPGRADE.format("?"),
            UPGRADE.format("AAM"),
            UPGRADE.format("").replace("Upgrade, HTTP2-Settings", "Upgrade"),
            UPGRADE.format("").replace("http2-settings: \r\n", ""),
            UPGRADE.format("")
            .replace("GET", "POST")
            .replace("host: a", "host: a\r\ncontent-length: 0")
            .replace(": 0", ": 1"),
        ],
        ids=["not base64", "not a payload", "not named", "not there", "a body"],
    )
    async def test_a_wish_that_is_not_in_order_is_ignored(self, request_text):
        async with in_memory() as gateway:
            stream = gateway.connect()
            stream.write(request_text.encode() + b"x")
            assert (await read_answer(stream)).status == 200

    async def test_it_is_ignored_where_http2_is_off(self):
        async with in_memory({"http2": {"enabled": False}}) as gateway:
            stream = gateway.connect()
            stream.write(UPGRADE.format("").encode())
            assert (await read_answer(stream)).status == 200
