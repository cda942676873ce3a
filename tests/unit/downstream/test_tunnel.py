"""WebSockets from HTTP/2 clients (RFC 8441), in memory, on both engines."""

from __future__ import annotations

import pytest
from websockets_in_memory import answer
from ws_frames import BINARY, CLOSE, PING, PONG, TEXT, close, frame, parsed

from gw.http.h2 import Code, SessionSettings
from gw.testing.cuts import cut_everywhere
from gw.testing.gateway import Upstream, in_memory
from gw.testing.http2 import Http2Client, StreamReset
from gw.testing.memory import Backlog


def sent(opcode, payload=b"", **how):
    return frame(opcode, payload, masked=True, **how)


def closes(code=None, reason=b""):
    return close(code, reason, masked=True)


def asks(client, *fields, target="/ws"):
    stream = client.session.request(
        [
            (name.encode(), value.encode())
            for name, value in [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":authority", "example.test"),
                (":path", target),
                ("sec-websocket-version", "13"),
                *fields,
            ]
        ],
        False,
    )
    client.flush()
    return stream


async def opened(gateway, backlog, *fields, answered=(), settings=None):
    client = Http2Client(gateway.connect(), settings or SessionSettings())
    await gateway.network.settle()
    client.take_in()
    stream = asks(client, *fields)
    peer = await backlog.accept()
    head = await peer.read_until(b"\r\n\r\n")
    peer.write(answer(head, *answered))
    await gateway.network.settle()
    client.take_in()
    return client, stream, peer, head


def taken(client, stream):
    client.take_in()
    data, client.answers[stream].body = client.answers[stream].body, b""
    return parsed(data)


async def test_it_is_an_http1_handshake_for_the_upstream_and_a_200_for_the_client(engine):
    backlog = Backlog()
    async with in_memory(upstream=backlog, engine=engine) as gateway:
        client, stream, _, head = await opened(
            gateway,
            backlog,
            ("sec-websocket-protocol", "a, b"),
            ("origin", "https://x"),
            answered=("Sec-WebSocket-Protocol: b",),
        )
        assert head.startswith(b"GET /ws HTTP/1.1\r\nhost: 192.0.2.1\r\n")
        assert b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: " in head
        assert b"origin: https://x\r\n" in head
        got = client.answers[stream]
        assert (got.status, got.headers.get("sec-websocket-protocol")) == (200, "b")
        assert {"sec-websocket-accept", "connection", "upgrade", "content-length"}.isdisjoint(n for n, _ in got.headers)


async def test_frames_travel_both_ways_beside_other_streams(engine):
    backlog = Backlog()
    async with in_memory(upstream=backlog, engine=engine) as gateway:
        client, stream, peer, _ = await opened(gateway, backlog)
        client.send(stream, sent(TEXT, b"up"))
        await gateway.network.settle()
        assert parsed(peer.take(), masked=True) == [(TEXT, 1, b"up")]
        other = client.request("/plain")
        plain = await backlog.accept()
        await plain.read_until(b"\r\n\r\n")
        plain.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert (await client.answer(other)).body == b"ok"
        peer.write(frame(BINARY, b"x" * 10))
        await gateway.network.settle()
        assert taken(client, stream) == [(BINARY, 1, b"x" * 10)]


async def test_the_close_handshake_ends_the_stream_in_good_order(engine):
    backlog = Backlog()
    async with in_memory(upstream=backlog, engine=engine) as gateway:
        client, stream, peer, _ = await opened(gateway, backlog)
        client.send(stream, closes(1000))
        await gateway.network.settle()
        assert parsed(peer.take(), masked=True) == [(CLOSE, 1, b"\x03\xe8")]
        peer.write(close(1000))
        await gateway.network.settle()
        assert taken(client, stream) == [(CLOSE, 1, b"\x03\xe8")]
        assert stream in client.ended
        assert client.resets.get(stream) in {None, Code.NO_ERROR}
        client.stream.abort()
        assert await gateway.leftovers() == []


async def test_a_stream_that_is_reset_is_a_client_that_left(engine):
    backlog = Backlog()
    async with in_memory(upstream=backlog, engine=engine) as gateway:
        client, stream, peer, _ = await opened(gateway, backlog)
        client.session.reset(stream, Code.CANCEL)
        client.flush()
        await gateway.network.settle()
        ((opcode, _, payload),) = parsed(peer.take(), masked=True)
        assert (opcode, payload[:2]) == (CLOSE, (1001).to_bytes(2))
        client.stream.abort()
        assert await gateway.leftovers() == []


async def test_a_stream_that_just_ends_is_one_too(engine):
    backlog = Backlog()
    async with in_memory(upstream=backlog, engine=engine) as gateway:
        client, stream, peer, _ = await opened(gateway, backlog)
        client.send(stream, sent(TEXT, b"last"), end=True)
        await gateway.network.settle()
        text, end = parsed(peer.take(), masked=True)
        assert (text[2], end[0]) == (b"last", CLOSE)
        peer.write(close(1001))
        await gateway.network.settle()
        client.take_in()
        assert stream in client.ended
        client.stream.abort()
        assert await gateway.leftovers() == []


async def test_an_upstream_that_stalls_stops_its_stream_and_no_other(engine):
    backlog = Backlog()
    async with in_memory(upstream=backlog, engine=engine) as gateway:
        client, stream, peer, _ = await opened(gateway, backlog)
        peer._read_paused = True
        for _ in range(40):
            client.send(stream, sent(BINARY, b"x" * 60_000))
            await gateway.network.settle()
        client.take_in()
        assert client.session.queued(stream) > 1_000_000
        assert peer.other.unsent < 600_000
        other = client.request("/plain")
        plain = await backlog.accept()
        await plain.read_until(b"\r\n\r\n")
        plain.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert (await client.answer(other)).body == b"ok"


async def test_a_client_that_takes_nothing_stops_the_upstream(engine):
    backlog = Backlog()
    async with in_memory(upstream=backlog, engine=engine) as gateway:
        client, stream, peer, _ = await opened(gateway, backlog)
        client.gives_back = False
        for _ in range(40):
            peer.write(frame(BINARY, b"x" * 60_000))
            await gateway.network.settle()
        client.take_in()
        assert peer.unsent > 1_000_000
        await gateway.network.advance(130)
        client.take_in()
        assert client.resets[stream] == Code.CANCEL
        client.stream.abort()
        assert await gateway.leftovers() == []


@pytest.mark.parametrize("status", [200, 204, 299])
async def test_a_2xx_that_is_no_101_does_not_open_a_tunnel(engine, status):
    body = b"" if status == 204 else b"content-length: 2\r\n"
    upstream = Upstream(b"HTTP/1.1 %d OK\r\n%b\r\n%b" % (status, body, b"ok" if body else b""))
    async with in_memory(upstream=upstream, engine=engine) as gateway:
        client = Http2Client(gateway.connect())
        assert (await client.answer(asks(client))).status == 502


@pytest.mark.parametrize("status", [302, 403, 503])
async def test_a_refusal_is_passed_on(engine, status):
    upstream = Upstream(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % status)
    async with in_memory(upstream=upstream, engine=engine) as gateway:
        client = Http2Client(gateway.connect())
        got = await client.answer(asks(client))
        assert (got.status, got.body) == (status, b"no")


async def test_the_handshake_is_checked_but_for_its_key(engine):
    async with in_memory(engine=engine) as gateway:
        client = Http2Client(gateway.connect())
        assert (await client.answer(asks(client, ("sec-websocket-version", "13")))).status == 400
    async with in_memory({"websocket": {"enabled": False}}, engine=engine) as gateway:
        client = Http2Client(gateway.connect())
        assert (await client.answer(asks(client))).status == 404


async def test_a_shutdown_tells_it(engine):
    backlog = Backlog()
    async with in_memory(upstream=backlog, engine=engine) as gateway:
        client, stream, peer, _ = await opened(gateway, backlog)
        gateway.gateway.stop()
        await gateway.network.advance(0.1)
        assert taken(client, stream) == [(CLOSE, 1, b"\x03\xe9Going Away")]
        assert parsed(peer.take(), masked=True) == [(CLOSE, 1, b"\x03\xe9Going Away")]
        client.send(stream, sent(PING, b"p"), end=False)
        await gateway.network.settle()
        assert taken(client, stream) == [(PONG, 1, b"p")]


async def test_so_does_the_connections_age(engine):
    backlog = Backlog()
    config = {"http2": {"max_connection_age_sec": 100}, "idle_timeout_sec": 0}
    async with in_memory(config, upstream=backlog, engine=engine) as gateway:
        client, stream, _, _ = await opened(gateway, backlog)
        await gateway.network.advance(112)
        assert taken(client, stream) == [(CLOSE, 1, b"\x03\xe9Going Away")]


async def test_silence_ends_the_stream_and_not_the_connection(engine):
    backlog = Backlog()
    async with in_memory({"websocket": {"idle_timeout_sec": 5}}, upstream=backlog, engine=engine) as gateway:
        client, stream, _peer, _ = await opened(gateway, backlog)
        await gateway.network.advance(6)
        ((opcode, _, payload),) = taken(client, stream)
        assert (opcode, payload[:2]) == (CLOSE, (1001).to_bytes(2))
        await gateway.network.advance(6)
        client.take_in()
        with pytest.raises(StreamReset):
            await client.answer(stream)
        other = client.request("/plain")
        plain = await backlog.accept()
        await plain.read_until(b"\r\n\r\n")
        plain.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert (await client.answer(other)).body == b"ok"
        client.stream.abort()
        assert await gateway.leftovers() == []


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_whatever_is_cut_wherever_nothing_is_left(side, engine):
    backlogs = []

    def upstream():
        backlogs.append(Backlog())
        return backlogs[-1]

    async def converse(gateway):
        backlog = backlogs[-1]
        client = Http2Client(gateway.connect())
        stream = asks(client)
        settle = gateway.network.settle
        await settle()
        if not backlog._waiting:
            return
        peer = await backlog.accept()
        peer.write(answer(await peer.read_until(b"\r\n\r\n")))
        await settle()
        client.take_in()
        client.send(stream, sent(TEXT, b"one") + sent(BINARY, b"x" * 100_000))
        await settle()
        peer.write(frame(TEXT, b"two"))
        await settle()
        client.take_in()
        client.send(stream, closes(1000))
        await settle()
        peer.write(close(1000))
        await settle()
        client.take_in()

    assert await cut_everywhere(converse, upstream, side=side, engine=engine) >= 5
