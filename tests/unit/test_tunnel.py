"""WebSockets between a client and an upstream, in memory and on a virtual clock: who is told what, and when."""

from __future__ import annotations

from types import ModuleType

import pytest
from websockets_in_memory import ACCEPT, KEY, Half, answer, asks, opened
from ws_frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close, frame

from gw.filters import Close, Filter, Message, Outcome
from gw.hookspecs import hookimpl
from gw.http.deflate import Inflater
from gw.http.websocket import FrameReader
from gw.limits import WS_CLOSE_TIME
from gw.plugins import PluginSet
from gw.testing.cuts import cut_everywhere
from gw.testing.memory import Backlog


def sent(opcode, payload=b"", **how):
    return frame(opcode, payload, masked=True, **how)


def closes(code=None, reason=b""):
    return close(code, reason, masked=True)


def told(code=None, reason=b""):
    return CLOSE, 1, b"" if code is None else code.to_bytes(2) + reason


class Watching(Filter):
    """What is done with a message is the test's; what came, and what became of the exchange, is kept."""

    name = "watching"

    def __init__(self, do=None):
        self.seen, self.do, self.exchange = [], do, None

    async def on_message(self, ex, message, from_client):
        self.seen.append((message.data, from_client))
        return message if self.do is None else self.do(message)

    def on_complete(self, ex):
        self.exchange = ex


class Ending(Filter):
    """Keeps what became of the exchange."""

    name = "ending"
    exchange = None

    def on_complete(self, ex):
        type(self).exchange = ex


def plugins(*filters):
    @hookimpl
    def gw_filters(route, ctx):
        return filters

    module = ModuleType("watching")
    module.GW_API, module.gw_filters = 1, gw_filters
    found = PluginSet()
    found.add("watching", module)
    return found


both_engines = pytest.mark.parametrize("engine", ["pure", "native"])


class TestOpening:
    @both_engines
    async def test_each_hop_has_a_handshake_of_its_own(self, engine):
        async with opened(asked=("X-Mine: 1", "Sec-WebSocket-Extensions: x-unknown"), engine=engine) as ws:
            asked = ws.upstream.head.decode()
            assert "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n" in asked
            assert asked.count("sec-websocket-key: ") == 1
            assert KEY not in asked
            assert "x-mine: 1" in asked
            assert "x-forwarded-for: 198.51.100.7" in asked
            assert "extensions" not in asked
            head = ws.client.head.decode()
            assert head.startswith("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n")
            assert head.lower().count("sec-websocket-accept: ") == 1
            assert f"sec-websocket-accept: {ACCEPT}\r\n" in head
            assert "via: 1.1 gw\r\n" in head
            assert ws.open == ws.gateway.gateway.websockets.accepted == 1

    async def test_a_subprotocol_is_chosen_by_the_upstream(self):
        async with opened(
            asked=("Sec-WebSocket-Protocol: a, b",), answered=("Sec-WebSocket-Protocol: b", "Set-Cookie: a=1")
        ) as ws:
            assert b"sec-websocket-protocol: a, b\r\n" in ws.upstream.head
            assert b"sec-websocket-protocol: b\r\n" in ws.client.head
            assert b"set-cookie: a=1\r\n" in ws.client.head

    async def test_frames_behind_either_head_are_not_lost(self):
        async with opened(early=frame(TEXT, b"welcome")) as ws:
            assert await ws.client.take() == [(TEXT, 1, b"welcome")]


class TestRelaying:
    @both_engines
    async def test_messages_go_both_ways(self, engine):
        async with opened(engine=engine) as ws:
            await ws.client.send(sent(TEXT, b"up"), sent(BINARY, b"\0" * 70_000))
            assert await ws.upstream.take() == [(TEXT, 1, b"up"), (BINARY, 1, b"\0" * 70_000)]
            await ws.upstream.send(frame(TEXT, b"down"))
            assert await ws.client.take() == [(TEXT, 1, b"down")]

    async def test_fragments_stay_fragments_and_pings_go_to_the_other_end(self):
        async with opened() as ws:
            await ws.client.send(sent(TEXT, b"a", fin=False), sent(PING, b"p"), sent(CONTINUATION, b"b"))
            assert await ws.upstream.take() == [(TEXT, 0, b"a"), (PING, 1, b"p"), (CONTINUATION, 1, b"b")]
            await ws.upstream.send(frame(PONG, b"p"))
            assert await ws.client.take() == [(PONG, 1, b"p")]

    @pytest.mark.parametrize("seen", [False, True], ids=["relayed", "seen by a filter"])
    async def test_frames_are_counted_by_what_they_are_and_where_they_go(self, seen):
        async with opened(plugins=plugins(Watching()) if seen else None) as ws:
            await ws.client.send(sent(TEXT, b"a", fin=False), sent(PING), sent(CONTINUATION, b"b"), sent(BINARY, b"c"))
            await ws.upstream.take()
            await ws.upstream.send(frame(PONG), frame(TEXT, b"d"), frame(TEXT, b"e"))
            await ws.client.send(closes(1000))
            await ws.upstream.send(close(1000))
            assert [each[0] for each in await ws.client.take()] == [PONG, TEXT, TEXT, CLOSE]
            family = next(each for each in ws.gateway.gateway.figures if each.name == "gw.websocket.frames")
            assert {labels: count.value for labels, count in family.rows().items()} == {
                ("text", "receive"): 1,
                ("continuation", "receive"): 1,
                ("binary", "receive"): 1,
                ("ping", "receive"): 1,
                ("close", "receive"): 1,
                ("text", "send"): 2,
                ("pong", "send"): 1,
                ("close", "send"): 1,
            }

    async def test_a_slow_side_stops_the_other_and_memory_stays_bounded(self):
        async with opened() as ws:
            peer = ws.upstream.stream
            peer._read_paused = True
            piece = sent(BINARY, b"x" * 60_000)
            for _ in range(100):
                ws.client.stream.write(piece)
                await ws.gateway.network.settle()
            held = sum(each.unsent for each in ws.gateway.network.peers) + peer.other.unsent
            assert held <= 262_144 + 2 * 65_536 + len(piece)
            assert ws.client.stream.unsent > 5_000_000
            peer._read_paused = False
            peer._resume_reading()
            got = 0
            while got < 100 * len(piece):
                got += len(await peer.receive())


class TestClosing:
    @pytest.mark.parametrize("code", [None, 1000, 1001, 1010, 3000, 4999])
    async def test_the_close_handshake_is_that_of_the_two_ends(self, code):
        async with opened() as ws:
            await ws.client.send(closes(code))
            assert await ws.upstream.take() == [told(code)]
            assert not await ws.client.is_over()
            await ws.upstream.send(frame(TEXT, b"last words"), close(code))
            assert await ws.client.take() == [(TEXT, 1, b"last words"), told(code)]
            assert await ws.client.is_over()
            assert await ws.upstream.is_over()
            assert await ws.gateway.leftovers() == []

    async def test_the_upstream_may_begin_it(self):
        async with opened() as ws:
            await ws.upstream.send(close(1000, b"done"))
            assert await ws.client.take() == [told(1000, b"done")]
            await ws.client.send(sent(TEXT, b"on its way already"), closes(1000))
            assert await ws.upstream.take() == [(TEXT, 1, b"on its way already"), told(1000)]
            assert await ws.client.is_over()
            assert await ws.gateway.leftovers() == []

    @pytest.mark.parametrize(
        ("bad", "code"),
        [
            (frame(TEXT, b"unmasked"), 1002),
            (sent(3), 1002),
            (sent(TEXT, b"a\xff"), 1007),
            (sent(BINARY, b"x" * 101), 1009),
            (closes(1005), 1002),
        ],
    )
    async def test_a_client_that_breaks_a_rule_is_told_so_after_what_it_was_owed(self, bad, code):
        async with opened({"max_ws_message_size": 100}) as ws:
            await ws.client.send(sent(TEXT, b"good"), bad, sent(TEXT, b"unread"))
            (first, last) = await ws.upstream.take()
            assert first == (TEXT, 1, b"good")
            assert last[2][:2] == (1001).to_bytes(2)
            await ws.upstream.send(frame(TEXT, b"echo"), close(1001))
            echo, end = await ws.client.take()
            assert echo == (TEXT, 1, b"echo")
            assert (end[0], end[2][:2]) == (CLOSE, code.to_bytes(2))
            assert await ws.client.is_over()
            assert await ws.gateway.leftovers() == []

    async def test_an_upstream_that_breaks_a_rule_is_told_so_and_the_client_that_it_did(self):
        async with opened() as ws:
            await ws.upstream.send(frame(TEXT, b"\xff"))
            ((opcode, _, payload),) = await ws.client.take()
            assert (opcode, payload[:2]) == (CLOSE, (1014).to_bytes(2))
            await ws.client.send(closes(1014))
            ((opcode, _, payload),) = await ws.upstream.take()
            assert (opcode, payload[:2]) == (CLOSE, (1007).to_bytes(2))
            assert await ws.gateway.leftovers() == []

    async def test_what_goes_wrong_in_mid_frame_cuts_the_other_side_off(self):
        async with opened() as ws:
            bad = sent(TEXT, b"a" * 1000 + b"\xff" + b"a" * 1000)
            await ws.client.send(bad[:500])
            await ws.client.send(bad[500:])
            assert ws.upstream.stream.lost
            ((opcode, _, payload),) = await ws.client.take()
            assert (opcode, payload[:2]) == (CLOSE, (1007).to_bytes(2))
            assert await ws.gateway.leftovers() == []

    async def test_a_client_that_leaves_without_a_word_is_reported_to_the_upstream(self):
        async with opened() as ws:
            ws.client.stream.write_eof()
            ((opcode, _, payload),) = await ws.upstream.take()
            assert (opcode, payload[:2]) == (CLOSE, (1001).to_bytes(2))
            await ws.upstream.send(close(1001))
            assert await ws.upstream.is_over()
            assert await ws.gateway.leftovers() == []

    async def test_so_is_one_that_is_reset(self):
        async with opened() as ws:
            ws.client.stream.abort()
            ((opcode, _, payload),) = await ws.upstream.take()
            assert (opcode, payload[:2]) == (CLOSE, (1001).to_bytes(2))
            assert await ws.gateway.leftovers() == []

    async def test_an_upstream_that_leaves_is_a_bad_gateway(self):
        async with opened() as ws:
            ws.upstream.stream.close()
            ((opcode, _, payload),) = await ws.client.take()
            assert (opcode, payload[:2]) == (CLOSE, (1014).to_bytes(2))
            await ws.client.send(sent(PING, b"still here"))
            assert await ws.client.take() == [(PONG, 1, b"still here")]
            await ws.client.send(closes(1014))
            assert await ws.client.is_over()
            assert await ws.gateway.leftovers() == []

    async def test_a_close_that_is_not_answered_ends_in_time(self):
        async with opened() as ws:
            await ws.client.send(closes(1000))
            await ws.upstream.take()
            await ws.gateway.network.advance(WS_CLOSE_TIME - 0.2)
            assert not ws.upstream.stream.lost
            await ws.gateway.network.advance(0.4)
            assert ws.upstream.stream.lost
            ((opcode, _, _),) = await ws.client.take()
            assert opcode == CLOSE
            assert await ws.client.is_over()
            assert await ws.gateway.leftovers() == []

    @pytest.mark.parametrize(
        ("by", "outcome", "reason"),
        [
            ("handshake", Outcome.UPSTREAM, ""),
            ("client leaves", Outcome.CANCELLED, "gw.client_gone"),
            ("upstream leaves", Outcome.RESET, "gw.upstream_disconnect"),
            ("client errs", Outcome.RESET, "gw.websocket_1002"),
            ("nobody answers", Outcome.RESET, "gw.websocket_close_timeout"),
        ],
    )
    async def test_how_it_ended_is_on_the_exchange(self, by, outcome, reason):
        ending = Ending()
        async with opened(plugins=plugins(ending)) as ws:
            match by:
                case "handshake":
                    await ws.client.send(closes(1000))
                    await ws.upstream.send(close(1000))
                case "client leaves":
                    ws.client.stream.write_eof()
                    await ws.upstream.take()
                    await ws.upstream.send(close(1001))
                case "upstream leaves":
                    ws.upstream.stream.close()
                    await ws.client.take()
                    await ws.client.send(closes(1014))
                case "client errs":
                    await ws.client.send(sent(3))
                    await ws.upstream.send(close(1001))
                case "nobody answers":
                    await ws.client.send(closes(1000))
                    await ws.gateway.network.advance(6)
            await ws.gateway.network.settle()
            assert ending.exchange is not None
            assert (ending.exchange.outcome, ending.exchange.reason) == (outcome, reason)
            assert ending.exchange.response.status == 101


class TestTheGatewayEndsIt:
    async def test_a_shutdown_tells_both_sides(self):
        async with opened() as ws:
            ws.gateway.gateway.stop()
            await ws.gateway.network.advance(0.1)
            assert await ws.client.take() == [told(1001, b"Going Away")]
            assert await ws.upstream.take() == [told(1001, b"Going Away")]
            await ws.client.send(sent(TEXT, b"too late"), sent(PING, b"p"), closes(1001))
            assert await ws.client.take() == [(PONG, 1, b"p")]
            await ws.upstream.send(close(1001))
            assert await ws.upstream.take() == []
            assert ws.open == 0

    async def test_a_close_of_ours_waits_for_the_end_of_the_frame(self):
        async with opened() as ws:
            long = sent(BINARY, b"x" * 1000)
            await ws.client.send(long[:500])
            ws.gateway.gateway.stop()
            await ws.gateway.network.advance(0.1)
            got = ws.upstream.stream.take()
            assert got == long[:500]
            await ws.client.send(long[500:], sent(TEXT, b"not this"))
            assert ws.upstream.stream.take()[: len(long) - 500] == long[500:]

    async def test_silence_ends_it(self):
        async with opened({"websocket": {"idle_timeout_sec": 10}}) as ws:
            await ws.gateway.network.advance(8)
            await ws.client.send(sent(TEXT, b"a"))
            await ws.upstream.take()
            await ws.gateway.network.advance(8)
            assert await ws.client.take() == []
            await ws.gateway.network.advance(3)
            assert await ws.client.take() == [told(1001, b"Idle for too long")]
            assert await ws.upstream.take() == [told(1001, b"Idle for too long")]
            assert await ws.gateway.leftovers() == []

    async def test_the_idle_timeout_is_the_connections_unless_it_has_its_own(self):
        async with opened({"idle_timeout_sec": 5}) as ws:
            await ws.gateway.network.advance(6)
            assert await ws.client.take() == [told(1001, b"Idle for too long")]

    async def test_a_side_that_is_silent_is_sent_a_ping_whose_pong_goes_no_further(self):
        async with opened({"websocket": {"ping_interval_sec": 5, "idle_timeout_sec": 0}}) as ws:
            await ws.gateway.network.advance(6)
            ((opcode, _, payload),) = await ws.client.take()
            assert (opcode, len(payload)) == (PING, 8)
            ((opcode, _, theirs),) = await ws.upstream.take()
            await ws.client.send(sent(PONG, payload))
            await ws.upstream.send(frame(PONG, theirs))
            assert await ws.upstream.take() == []
            assert await ws.client.take() == []
            await ws.gateway.network.advance(4)
            assert ws.open == 1

    @pytest.mark.parametrize("side", ["client", "upstream"])
    async def test_one_that_answers_no_ping_is_gone(self, side):
        async with opened({"websocket": {"ping_interval_sec": 5, "ping_timeout_sec": 2}}) as ws:
            other = ws.upstream if side == "client" else ws.client
            for _ in range(20):
                await ws.gateway.network.advance(0.5)
                await other.send(frame(TEXT, b"I am", masked=not other.masked))
                if other.stream.lost or getattr(ws, side).stream.lost:
                    break
            assert getattr(ws, side).stream.lost
            assert (await other.take())[-1][0] == CLOSE
            assert await ws.gateway.leftovers() == []

    async def test_a_ping_of_ours_waits_for_the_end_of_a_frame(self):
        async with opened({"websocket": {"ping_interval_sec": 5}}) as ws:
            long = sent(BINARY, b"x" * 100)
            await ws.client.send(long[:50])
            await ws.gateway.network.advance(6)
            assert ws.upstream.stream.take() == long[:50]
            await ws.client.send(long[50:])
            got = ws.upstream.stream.take()
            assert got[:56] == long[50:]
            assert got[56] == 0x89


class TestFilters:
    async def test_they_see_whole_messages_of_both_sides(self):
        watching = Watching()
        async with opened(plugins=plugins(watching)) as ws:
            await ws.client.send(sent(TEXT, b"one, ", fin=False), sent(PING, b"p"))
            assert await ws.upstream.take() == [(PING, 1, b"p")]
            await ws.client.send(sent(CONTINUATION, b"two"))
            assert await ws.upstream.take() == [(TEXT, 1, b"one, two")]
            await ws.upstream.send(frame(PONG, b"p"), frame(BINARY, b"\0"))
            assert await ws.client.take() == [(PONG, 1, b"p"), (BINARY, 1, b"\0")]
            assert watching.seen == [("one, two", True), (b"\0", False)]
            await ws.client.send(closes(1000))
            await ws.upstream.send(close(1000))
            assert await ws.gateway.leftovers() == []
            assert watching.exchange.outcome is Outcome.UPSTREAM

    async def test_they_see_them_in_the_order_of_the_chain_and_back(self):
        first = Watching(lambda message: Message(f"{message.data}1"))
        second = Watching(lambda message: Message(f"{message.data}2"))
        async with opened(plugins=plugins(first, second)) as ws:
            await ws.client.send(sent(TEXT, b"a"))
            assert await ws.upstream.take() == [(TEXT, 1, b"a12")]
            await ws.upstream.send(frame(TEXT, b"b"))
            assert await ws.client.take() == [(TEXT, 1, b"b21")]

    async def test_they_may_drop_one(self):
        async with opened(plugins=plugins(Watching(lambda message: message if message.data == "b" else None))) as ws:
            await ws.client.send(sent(TEXT, b"a"), sent(TEXT, b"b"))
            assert await ws.upstream.take() == [(TEXT, 1, b"b")]

    async def test_they_may_end_it(self):
        ends = Watching(lambda message: Close(1008, "not here"))
        async with opened(plugins=plugins(ends)) as ws:
            await ws.client.send(sent(TEXT, b"a"), sent(TEXT, b"b"), sent(PING, b"p"))
            assert await ws.client.take() == [told(1008, b"not here"), (PONG, 1, b"p")]
            assert await ws.upstream.take() == [told(1008, b"not here")]
            await ws.client.send(closes(1008))
            await ws.upstream.send(close(1008))
            assert ends.exchange.reason == "gw.websocket_filter"
            assert ends.seen == [("a", True)]
            assert await ws.gateway.leftovers() == []

    async def test_one_that_raises_is_an_internal_error(self, caplog):
        raises = Watching(lambda message: 1 / 0)
        async with opened(plugins=plugins(raises)) as ws:
            await ws.client.send(sent(TEXT, b"a"))
            assert await ws.client.take() == [told(1011, b"Internal error")]
            assert await ws.upstream.take() == [told(1011, b"Internal error")]
            await ws.client.send(closes(1011))
            await ws.upstream.send(close(1011))
            assert raises.exchange.reason == "gw.error.ZeroDivisionError"
            assert await ws.gateway.leftovers() == []
        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert record.getMessage().startswith(
            "plugin watching raised ZeroDivisionError in on_message (route upstream, "
        )

    async def test_compressed_messages_are_plain_for_them_and_compressed_again(self):
        watching = Watching(lambda message: Message(message.data * 2))
        extension = "Sec-WebSocket-Extensions: permessage-deflate"
        async with opened(asked=(extension,), answered=(extension,), plugins=plugins(watching)) as ws:
            hello = bytes.fromhex("f248cdc9c90700")
            await ws.client.send(sent(TEXT, hello, rsv=4))
            assert watching.seen == [("Hello", True)]
            data = ws.upstream.stream.take()
            reader = FrameReader(masked=True, gathers=True, inflater=Inflater(keeps_context=True))
            reader.feed(data)
            assert data[0] == 0xC1
            assert reader.events == [Message("HelloHello")]

    async def test_a_message_that_is_too_large_does_not_reach_them(self):
        watching = Watching()
        route = {"match": {"prefix": "/"}, "upstream": "up", "websocket": {"max_message_size": 10}}
        config = {"upstreams": [{"name": "up", "host": "192.0.2.1"}], "routes": [route]}
        async with opened(config, plugins=plugins(watching)) as ws:
            await ws.client.send(sent(TEXT, b"x" * 6, fin=False), sent(CONTINUATION, b"x" * 5))
            await ws.upstream.send(close(1001))
            ((_, _, payload),) = await ws.client.take()
            assert payload[:2] == (1009).to_bytes(2)
            assert watching.seen == []


class TestCompression:
    OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-foo"

    async def test_what_both_ends_agree_on_is_passed_on(self):
        async with opened(
            asked=(self.OFFER,), answered=("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=12",)
        ) as ws:
            assert b"sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n" in ws.upstream.head
            assert b"sec-websocket-extensions: permessage-deflate; client_max_window_bits=12\r\n" in ws.client.head
            hello = bytes.fromhex("f248cdc9c90700")  # RFC 7692 section 7.2.3.1
            await ws.client.send(sent(TEXT, hello, rsv=4))
            assert ws.upstream.stream.take() == sent(TEXT, hello, rsv=4)

    async def test_it_may_be_kept_from_them(self):
        async with opened({"websocket": {"compression": "off"}}, asked=(self.OFFER,)) as ws:
            assert b"extensions" not in ws.upstream.head
            await ws.client.send(sent(TEXT, b"", rsv=4))
            await ws.upstream.send(close(1001))
            ((_, _, payload),) = await ws.client.take()
            assert payload[:2] == (1002).to_bytes(2)


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_whatever_is_cut_wherever_nothing_is_left(side):
    async def converse(gateway):
        backlog = backlogs[-1]
        client = gateway.connect()
        client.write(asks())
        settle = gateway.network.settle
        await settle()
        if not backlog._waiting:
            return
        peer = await backlog.accept()
        peer.write(answer(await peer.read_until(b"\r\n\r\n")))
        await client.read_until(b"\r\n\r\n")
        near, far = Half(client, masked=False, settle=settle), Half(peer, masked=True, settle=settle)
        await near.send(sent(TEXT, b"one"), sent(BINARY, b"x" * 100_000))
        await far.send(frame(TEXT, b"two"))
        await near.send(closes(1000))
        await far.send(close(1000))

    backlogs = []

    def upstream():
        backlogs.append(Backlog())
        return backlogs[-1]

    assert await cut_everywhere(converse, upstream, side=side) >= 5
