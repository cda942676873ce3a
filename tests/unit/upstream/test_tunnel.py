"""WebSockets to upstreams over HTTP/2 (RFC 8441), from HTTP/1.1 and HTTP/2 clients, in memory, on both engines."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest
from frames import SETTINGS, frame as http2_frame
from http2_upstreams import ask, config, played, reasons
from websockets_in_memory import ACCEPT, answer, asks
from ws_frames import BINARY, CLOSE, PING, PONG, TEXT, close, frame, parsed

from gw.http.h2 import PREFACE, Code, FloodLimits, SessionSettings
from gw.limits import WRITE_HIGH_WATER, WS_CLOSE_TIME
from gw.testing import PATIENCE
from gw.testing.cuts import cut_everywhere
from gw.testing.gateway import in_memory, read_answer
from gw.testing.http2 import Http2Client, Http2Peer
from gw.testing.memory import Backlog

CALM = FloodLimits(*[100_000] * 6)
TUNNELS = SessionSettings(enable_connect_protocol=True, flood=CALM)
PLAIN = SessionSettings(flood=CALM)
CONNECT = [
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    (b":scheme", b"http"),
    (b":authority", b"example.test"),
    (b":path", b"/ws?a"),
    (b"sec-websocket-version", b"13"),
]


def sent(opcode, payload=b"", **how):
    return frame(opcode, payload, masked=True, **how)


class Http1Half:
    """A client that asked with ``Upgrade``."""

    def __init__(self, gateway, *lines):
        self.stream = gateway.connect()
        self.stream.write(asks("/ws?a", *lines))

    async def accepted(self):
        head = await self.stream.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"sec-websocket-accept: " + ACCEPT.encode() in head
        return head

    async def send(self, data):
        self.stream.write(data)

    def take(self):
        data = b""
        while self.stream.has_data:
            data += self.stream.take()
        return parsed(data)

    @property
    def is_over(self):
        return self.stream.at_eof or self.stream.lost

    def pump(self):
        pass

    def leave(self):
        self.stream.abort()

    def abort(self):
        self.stream.abort()


class Http2Half:
    """A client that asked with extended CONNECT."""

    def __init__(self, gateway, *lines):
        self._client = Http2Client(gateway.connect())
        fields = [tuple(part.encode() for part in line.lower().split(": ")) for line in lines]
        self._stream = self._client.session.request([*CONNECT, *fields], False)
        self._client.flush()

    async def accepted(self):
        while self._stream not in self._client.answers:
            await self._client.receive()
        got = self._client.answers[self._stream]
        assert got.status == 200
        return b"".join(name.encode() + b": " + value.encode() + b"\r\n" for name, value in got.headers)

    async def send(self, data):
        self._client.send(self._stream, data)

    def take(self):
        self._client.take_in()
        got = self._client.answers[self._stream]
        data, got.body = got.body, b""
        return parsed(data)

    @property
    def is_over(self):
        self._client.take_in()
        return self._stream in self._client.ended or self._stream in self._client.resets

    def pump(self):
        self._client.take_in()

    def leave(self):
        self._client.session.reset(self._stream, Code.CANCEL)
        self._client.flush()

    def abort(self):
        self._client.stream.abort()


class Opened:
    """A WebSocket that both sides have agreed to. *peer* is the upstream's end of the connection, *stream* which it is."""

    def __init__(self, gateway, client, peer, stream, accept):
        self.gateway, self.client, self.peer, self.stream, self.accept = gateway, client, peer, stream, accept

    async def settle(self):
        """Let all that can be sent arrive."""
        for _ in range(3):
            await self.gateway.network.settle()
            self.client.pump()

    async def take(self):
        """Return the frames that the upstream has been sent."""
        await self.settle()
        self.peer.take_in()
        asked = self.peer.asked[self.stream]
        data, asked.body = asked.body, b""
        return parsed(data, masked=True)

    def pool(self):
        return self.gateway.gateway._current.now.pools["up"]


@pytest.fixture(params=[Http1Half, Http2Half], ids=["from-http1", "from-http2"])
def opened(engine, request):
    """Open a WebSocket from a client of each protocol."""

    @asynccontextmanager
    async def opens(*lines, answers=(), **settings):
        async with played(engine, **settings) as (gateway, accept):
            client = request.param(gateway, *lines)
            peer = await accept(TUNNELS)
            stream = await peer.head()
            peer.respond(stream, 200, answers, b"", more=True)
            opened = Opened(gateway, client, peer, stream, accept)
            opened.answered = await client.accepted()
            yield opened
            client.abort()
            assert await gateway.leftovers() == []

    return opens


class TestOpening:
    async def test_it_is_an_extended_connect(self, opened):
        lines = ("Sec-WebSocket-Protocol: a, b", "Origin: https://x", "X-Mine: 1")
        answers = [("sec-websocket-protocol", "b"), ("x-yours", "2"), ("sec-websocket-accept", "nonsense")]
        async with opened(*lines, answers=answers) as ws:
            asked = ws.peer.asked[ws.stream].head
            assert (asked.method, asked.upgrade, asked.target) == ("CONNECT", "websocket", "/ws?a")
            assert (asked.scheme, asked.host) == ("http", "192.0.2.1")
            fields = dict(asked.headers)
            assert fields["sec-websocket-version"] == "13"
            assert fields["sec-websocket-protocol"] == "a, b"
            assert (fields["origin"], fields["x-mine"], fields["via"]) == ("https://x", "1", "1.1 gw")
            assert {"sec-websocket-key", "connection", "upgrade", "content-length"}.isdisjoint(fields)
            assert b"sec-websocket-protocol: b\r\n" in ws.answered
            assert b"x-yours: 2\r\n" in ws.answered
            assert b"nonsense" not in ws.answered

    async def test_nothing_is_asked_before_the_upstream_has_said_that_it_may_be(self, engine):
        backlog = Backlog()
        async with in_memory(config(), backlog, engine=engine) as gateway:
            client = Http1Half(gateway)
            stream = await backlog.accept()
            assert (await stream.read_until(PREFACE)).startswith(PREFACE)
            await gateway.network.settle()
            early = stream.take() if stream.has_data else b""
            assert b"/ws" not in early
            assert not client.stream.has_data
            stream.write(http2_frame(SETTINGS, 0, 0, b"\0\x08\0\0\0\x01"))
            await gateway.network.settle()
            assert stream.has_data
            client.abort()
            stream.abort()

    async def test_one_that_does_not_speak_is_a_504(self, engine):
        backlog = Backlog()
        async with in_memory(config(proxy={"response_timeout_ms": 2000}), backlog, engine=engine) as gateway:
            told = await reasons(gateway)
            client = Http1Half(gateway)
            await backlog.accept()
            await gateway.network.settle()
            await gateway.network.advance(2.5)
            assert (await read_answer(client.stream)).status == 504
            assert told == ["gw.upstream_timeout"]

    async def test_one_that_leaves_before_it_spoke_is_a_502(self, engine):
        backlog = Backlog()
        async with in_memory(config(), backlog, engine=engine) as gateway:
            client = Http1Half(gateway)
            (await backlog.accept()).abort()
            assert (await read_answer(client.stream)).status == 502
            client.abort()
            assert await gateway.leftovers() == []

    @pytest.mark.parametrize("status", [302, 401, 404, 503])
    async def test_a_refusal_is_passed_on_and_costs_nothing(self, engine, status):
        async with played(engine) as (gateway, accept):
            client = Http1Half(gateway)
            peer = await accept(TUNNELS)
            stream = await peer.head()
            peer.respond(stream, status, [("x-why", "so")], b"no")
            got = await read_answer(client.stream)
            assert (got.status, got.headers.get("x-why"), got.body) == (status, "so", b"no")
            assert await peer.request() == stream, "our side is ended, not reset"
            assert peer.resets == {}
            other = ask(gateway)
            peer.respond(await peer.request())
            assert (await read_answer(other)).status == 200
            client.abort()
            other.abort()
            assert await gateway.leftovers() == []

    @pytest.mark.parametrize(
        ("fields", "body", "reason"),
        [
            ([("sec-websocket-protocol", "other")], b"", "gw.upstream_parse_error"),
            ([("sec-websocket-extensions", "permessage-deflate")], b"", "gw.upstream_parse_error"),
            ([], None, "gw.upstream_parse_error"),
        ],
        ids=["a subprotocol not offered", "an extension not offered", "accepted and ended"],
    )
    async def test_an_acceptance_that_is_none_is_a_502(self, engine, fields, body, reason):
        async with played(engine) as (gateway, accept):
            told = await reasons(gateway)
            client = Http1Half(gateway)
            peer = await accept(TUNNELS)
            stream = await peer.head()
            peer.respond(stream, 200, fields, body, more=body is not None)
            assert (await read_answer(client.stream)).status == 502
            assert told == [reason]
            client.abort()
            assert await gateway.leftovers() == []

    async def test_a_length_in_an_acceptance_means_nothing(self, opened):
        async with opened(answers=[("content-length", "3")]) as ws:
            assert b"content-length" not in ws.answered
            ws.peer.send(ws.stream, frame(TEXT, b"hello"))
            await ws.settle()
            assert ws.client.take() == [(TEXT, 1, b"hello")]

    async def test_a_refused_stream_is_asked_for_again(self, engine):
        async with played(engine) as (gateway, accept):
            client = Http1Half(gateway)
            peer = await accept(TUNNELS)
            peer.reset(await peer.head(), Code.REFUSED_STREAM)
            peer.respond(await peer.head(), 200, (), b"", more=True)
            await client.accepted()
            client.abort()
            assert await gateway.leftovers() == []


class TestWithoutTheOffer:
    """The upstream's SETTINGS do not say ENABLE_CONNECT_PROTOCOL."""

    TLS = {"enabled": True, "sni_hostname": "up.test"}

    @pytest.mark.parametrize("prefer", ["h2c", "always"])
    async def test_where_http2_is_all_there_is_it_is_a_502(self, engine, prefer):
        backlog = Backlog()
        settings = config(prefer=prefer, tls={} if prefer == "h2c" else self.TLS)
        async with in_memory(settings, backlog, engine=engine) as gateway:
            gateway.network.agrees["192.0.2.1:80"] = "h2"
            told = await reasons(gateway)
            client = Http1Half(gateway)
            peer = Http2Peer(await backlog.accept(), engine=engine)
            assert (await read_answer(client.stream)).status == 502
            assert told == ["gw.upstream_websocket"]
            other = ask(gateway)
            peer.respond(await peer.request())
            assert (await read_answer(other)).status == 200
            client.abort()
            other.abort()
            assert await gateway.leftovers() == []

    @asynccontextmanager
    async def both_spoken(self, engine, **settings):
        """Run a gateway whose upstream takes HTTP/2, where it is offered, and else HTTP/1.1."""
        backlog = Backlog()
        async with in_memory(config(prefer="auto", tls=self.TLS, **settings), backlog, engine=engine) as gateway:
            gateway.network.agrees["192.0.2.1:80"] = "h2"
            with anyio.fail_after(PATIENCE):
                yield gateway, backlog

    async def test_http11_is_spoken_where_it_may_be_and_known_from_then_on(self, engine):
        async with self.both_spoken(engine) as (gateway, backlog):
            peer = None
            for half in (Http1Half, Http2Half):
                client = half(gateway)
                peer = peer or Http2Peer(await backlog.accept(), PLAIN, engine=engine)
                plain = await backlog.accept()
                head = await plain.read_until(b"\r\n\r\n")
                assert head.startswith(b"GET /ws?a HTTP/1.1\r\nhost: up.test:80\r\n")
                plain.write(answer(head))
                await client.accepted()
                plain.write(frame(TEXT, b"hello"))
                await gateway.network.settle()
                assert client.take() == [(TEXT, 1, b"hello")]
                client.abort()
            assert len(gateway.network.dialled) == 3
            assert peer.asked == {}
            # All else goes on over the shared connection.
            other = ask(gateway)
            peer.respond(await peer.request())
            assert (await read_answer(other)).status == 200
            other.abort()
            assert await gateway.leftovers() == []

    async def test_it_is_asked_again_once_the_upstream_offers_it(self, engine):
        async with self.both_spoken(engine) as (gateway, backlog):
            first = Http1Half(gateway)
            old = Http2Peer(await backlog.accept(), PLAIN, engine=engine)
            plain = await backlog.accept()
            plain.write(answer(await plain.read_until(b"\r\n\r\n")))
            await first.accepted()
            old.stream.close()  # it is replaced by one that can
            await gateway.network.settle()
            other = ask(gateway)
            new = Http2Peer(await backlog.accept(), TUNNELS, engine=engine)
            new.respond(await new.head())
            assert (await read_answer(other)).status == 200
            second = Http1Half(gateway)
            new.respond(await new.head(), 200, (), b"", more=True)
            await second.accepted()
            for client in (first, second, other):
                client.abort()
            assert await gateway.leftovers() == []

    async def test_http11_required_is_heeded_for_websockets_alone(self, engine):
        async with self.both_spoken(engine) as (gateway, backlog):
            client = Http1Half(gateway)
            peer = Http2Peer(await backlog.accept(), TUNNELS, engine=engine)
            peer.reset(await peer.head(), Code.HTTP_1_1_REQUIRED)
            plain = await backlog.accept()
            plain.write(answer(await plain.read_until(b"\r\n\r\n")))
            await client.accepted()
            other = ask(gateway)
            peer.respond(await peer.request())
            assert (await read_answer(other)).status == 200
            client.abort()
            other.abort()
            assert await gateway.leftovers() == []

    async def test_one_that_waits_for_a_place_is_not_handed_a_shared_connection(self, engine):
        pool = {"max_connections": 1, "max_idle_connections": 1}
        async with self.both_spoken(engine, pool=pool) as (gateway, backlog):
            busy = ask(gateway)
            peer = Http2Peer(await backlog.accept(), PLAIN, engine=engine)
            stream = await peer.request()
            client = Http1Half(gateway)
            await gateway.network.settle()
            pool = gateway.gateway._current.now.pools["up"]
            assert (pool.open, pool.waiting) == (1, 1)
            other = ask(gateway)
            peer.respond(await peer.request())
            assert (await read_answer(other)).status == 200
            assert pool.waiting == 1
            peer.goaway(stream)
            peer.respond(stream)
            assert (await read_answer(busy)).status == 200
            plain = await backlog.accept()
            plain.write(answer(await plain.read_until(b"\r\n\r\n")))
            await client.accepted()
            for each in (client, other, busy):
                each.abort()
            assert await gateway.leftovers() == []


class TestRelaying:
    async def test_frames_travel_both_ways_beside_other_streams(self, opened):
        async with opened() as ws:
            await ws.client.send(sent(TEXT, b"up"))
            assert await ws.take() == [(TEXT, 1, b"up")]
            other = ask(ws.gateway)
            ws.peer.respond(await ws.peer.request())
            assert (await read_answer(other)).status == 200
            ws.peer.send(ws.stream, frame(BINARY, b"x" * 10) + frame(PING, b"?"))
            await ws.settle()
            assert ws.client.take() == [(BINARY, 1, b"x" * 10), (PING, 1, b"?")]
            await ws.client.send(sent(PONG, b"?"))
            assert await ws.take() == [(PONG, 1, b"?")]
            assert len(ws.gateway.network.dialled) == 1
            other.abort()

    async def test_what_comes_with_the_acceptance_is_not_lost(self, engine):
        async with played(engine) as (gateway, accept):
            client = Http1Half(gateway)
            peer = await accept(TUNNELS)
            peer.respond(await peer.head(), 200, (), frame(TEXT, b"at once"), more=True)
            await client.accepted()
            await gateway.network.settle()
            assert client.take() == [(TEXT, 1, b"at once")]
            client.abort()

    async def test_an_upstream_that_takes_nothing_stops_the_client_and_then_the_websocket(self, opened):
        async with opened() as ws:
            told = await reasons(ws.gateway)
            ws.peer.gives_back = False
            for _ in range(40):
                await ws.client.send(sent(BINARY, b"x" * 60_000))
                await ws.settle()
                ws.peer.take_in()
            (session,) = ws.pool().origins[0].sessions
            ours = next(iter(session._streams))
            assert session._session.queued(ours) <= WRITE_HIGH_WATER + 4 * 65_536
            await ws.gateway.network.advance(130)
            ws.peer.take_in()
            assert ws.peer.resets == {ws.stream: Code.CANCEL}
            assert told == ["gw.websocket_stalled"]
            assert ws.client.is_over

    async def test_an_upstream_that_takes_it_slowly_gets_all_of_it(self, opened):
        async with opened() as ws:
            ws.peer.gives_back = False
            whole = bytes(range(256)) * 2000
            await ws.client.send(sent(BINARY, whole))
            for _ in range(100):
                await ws.settle()
                ws.peer.take_in()
                ws.peer.session.give_back(ws.stream, 8_192)
                ws.peer.flush()
                if len(ws.peer.asked[ws.stream].body) > len(whole):
                    break
            assert await ws.take() == [(BINARY, 1, whole)]

    async def test_a_client_that_takes_nothing_stops_its_own_stream_and_no_other(self, engine):
        async with played(engine, initial_window_size=100_000) as (gateway, accept):
            client = Http1Half(gateway)
            peer = await accept(TUNNELS)
            stream = await peer.head()
            peer.respond(stream, 200, (), b"", more=True)
            await client.accepted()
            client.stream._read_paused = True
            peer.send(stream, frame(BINARY, b"x" * 3_000_000))
            await gateway.network.settle()
            assert peer.session.queued(stream) > 2_000_000
            other = ask(gateway)
            peer.respond(await peer.request(), body=b"y" * 50_000)
            assert (await read_answer(other)).body == b"y" * 50_000
            client.abort()
            other.abort()
            assert await gateway.leftovers() == []


class TestItsEnd:
    async def test_a_close_from_the_client_ends_both_in_good_order(self, opened):
        async with opened() as ws:
            await ws.client.send(close(1000, b"done", masked=True))
            assert await ws.take() == [(CLOSE, 1, b"\x03\xe8done")]
            ws.peer.send(ws.stream, close(1000), end=True)
            await ws.settle()
            assert ws.client.take() == [(CLOSE, 1, b"\x03\xe8")]
            assert await ws.peer.request() == ws.stream, "our side is ended"
            assert ws.peer.resets == {}
            await ws.settle()
            assert ws.pool().origins[0].sessions[0].active == 0

    async def test_a_close_from_the_upstream_too_and_its_place_is_taken_until_it_ends(self, opened):
        async with opened() as ws:
            ws.peer.send(ws.stream, close(4000, b"go"))
            await ws.settle()
            assert ws.client.take() == [(CLOSE, 1, b"\x0f\xa0go")]
            await ws.client.send(close(4000, masked=True))
            assert await ws.take() == [(CLOSE, 1, b"\x0f\xa0")]
            assert await ws.peer.request() == ws.stream
            (session,) = ws.pool().origins[0].sessions
            assert session.active == 1
            ws.peer.send(ws.stream, b"what nobody reads")
            ws.peer.send(ws.stream, b"", end=True)
            await ws.settle()
            assert session.active == 0
            assert ws.peer.resets == {}

    async def test_one_that_does_not_end_its_side_is_cut_off(self, opened):
        async with opened() as ws:
            await ws.client.send(close(1000, masked=True))
            ws.peer.send(ws.stream, close(1000))
            await ws.settle()
            (session,) = ws.pool().origins[0].sessions
            assert session.active == 1
            await ws.gateway.network.advance(WS_CLOSE_TIME + 1)
            ws.peer.take_in()
            assert ws.peer.resets == {ws.stream: Code.CANCEL}
            assert session.active == 0

    async def test_an_upstream_that_resets_the_stream_has_left(self, opened):
        async with opened() as ws:
            told = await reasons(ws.gateway)
            ws.peer.reset(ws.stream, Code.CANCEL)
            await ws.settle()
            assert [(opcode, payload[:2]) for opcode, _, payload in ws.client.take()] == [(CLOSE, (1014).to_bytes(2))]
            await ws.client.send(close(1014, masked=True))
            await ws.settle()
            assert ws.client.is_over
            assert told == ["gw.upstream_disconnect"]

    async def test_one_that_just_ends_it_has_too_and_what_it_said_is_delivered(self, opened):
        async with opened() as ws:
            ws.peer.send(ws.stream, frame(TEXT, b"last"), end=True)
            await ws.settle()
            text, end = ws.client.take()
            assert (text[2], end[0], end[2][:2]) == (b"last", CLOSE, (1014).to_bytes(2))

    async def test_a_client_that_leaves_is_told_to_the_upstream(self, opened):
        async with opened() as ws:
            ws.client.leave()
            ((opcode, _, payload),) = await ws.take()
            assert (opcode, payload[:2]) == (CLOSE, (1001).to_bytes(2))
            ws.peer.send(ws.stream, close(1001), end=True)
            await ws.settle()
            assert ws.pool().origins[0].sessions[0].active == 0

    async def test_the_connection_s_end_is_the_end_of_all(self, opened):
        async with opened() as ws:
            ws.peer.stream.abort()
            await ws.settle()
            assert [opcode for opcode, _, _ in ws.client.take()] == [CLOSE]
            assert ws.pool().open == 0

    async def test_a_goaway_gives_it_time_and_no_more(self, opened):
        async with opened(goaway_drain_timeout_sec=30) as ws:
            ws.peer.goaway(ws.stream)
            await ws.settle()
            ws.peer.send(ws.stream, frame(TEXT, b"still here"))
            await ws.settle()
            assert ws.client.take() == [(TEXT, 1, b"still here")]
            await ws.gateway.network.advance(31)
            assert [opcode for opcode, _, _ in ws.client.take()] == [CLOSE]

    async def test_a_side_that_breaks_the_rules_is_told_so(self, opened):
        async with opened() as ws:
            ws.peer.send(ws.stream, sent(TEXT, b"masked"))
            await ws.settle()
            assert [(opcode, payload[:2]) for opcode, _, payload in ws.client.take()] == [(CLOSE, (1014).to_bytes(2))]
            await ws.client.send(close(1014, masked=True))
            assert [(opcode, payload[:2]) for opcode, _, payload in await ws.take()] == [(CLOSE, (1002).to_bytes(2))]


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_whatever_is_cut_wherever_nothing_is_left(side, engine):
    backlogs = []

    def upstream():
        backlogs.append(Backlog())
        return backlogs[-1]

    async def converse(gateway):
        backlog = backlogs[-1]
        client = Http1Half(gateway)
        settle = gateway.network.settle
        await settle()
        if not backlog._waiting:
            return
        peer = Http2Peer(await backlog.accept(), TUNNELS, engine=engine)
        await settle()
        peer.take_in()
        if not peer.asked:
            return
        (stream,) = peer.asked
        peer.respond(stream, 200, (), frame(TEXT, b"one"), more=True)
        await settle()
        await client.send(sent(TEXT, b"two") + sent(BINARY, b"x" * 100_000))
        await settle()
        peer.take_in()
        await client.send(close(1000, masked=True))
        await settle()
        peer.take_in()
        peer.send(stream, close(1000), end=True)
        await settle()

    assert await cut_everywhere(converse, upstream, side=side, config=config(), engine=engine) >= 5
