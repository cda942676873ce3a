"""Both HTTP/2 engines behind one interface: nghttp2 and hyper, in every pairing, and against frames by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    PADDED,
    PING,
    POST,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    START,
    WINDOW_UPDATE,
    codes,
    frame,
    head,
)
from hypothesis import given, settings as hypothesis_settings, strategies as st

from gw.http.h1 import ReaderLimits
from gw.http.h2 import (
    Code,
    Data,
    Ended,
    GoAway,
    Head,
    Interim,
    Pong,
    Reset,
    SessionSettings,
    Trailers,
    WindowOpened,
)
from gw.http.hyper import HyperSession
from gw.http.nghttp2 import Nghttp2Session
from gw.http.pseudo import RequestHeads, StreamError

ENGINES = [Nghttp2Session, HyperSession]
SETTINGS_OF_OURS = SessionSettings()
REQUEST = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]
OK = [(b":status", b"200")]
LOTS = 1 << 24


def pump(*sessions) -> None:
    """Carry bytes between two sessions until neither has any."""
    left, right = sessions
    while True:
        out, back = left.outgoing(LOTS), right.outgoing(LOTS)
        if not out and not back:
            return
        right.feed(out)
        left.feed(back)


def events(session) -> list:
    """Take the events that say something about streams."""
    found = [e for e in session.events if not isinstance(e, WindowOpened) and type(e).__name__ != "SettingsChanged"]
    session.events.clear()
    return found


@pytest.fixture(params=ENGINES)
def server_engine(request):
    return request.param


@pytest.fixture(params=ENGINES)
def client_engine(request):
    return request.param


@pytest.fixture
def client(client_engine):
    return client_engine(SETTINGS_OF_OURS, client=True)


@pytest.fixture
def server(server_engine):
    return server_engine(SETTINGS_OF_OURS, client=False)


@pytest.fixture
def met(client, server):
    pump(client, server)
    events(client)
    events(server)
    return client, server


def plain(event):
    """Make events comparable: engines hand over lists or tuples of fields."""
    if isinstance(event, (Head, Interim, Trailers)):
        return replace(event, fields=list(event.fields))
    return event


class TestConversations:
    def test_a_whole_exchange(self, met):
        client, server = met
        stream = client.request(REQUEST, False)
        client.send(stream, b"ask", False)
        client.trail(stream, [(b"x-end", b"1")])
        pump(client, server)
        assert [plain(e) for e in events(server)] == [
            Head(1, REQUEST, False),
            Data(1, b"ask", False, 3),
            Trailers(1, [(b"x-end", b"1")]),
        ]
        server.interim(stream, [(b":status", b"103"), (b"link", b"</a>")])
        server.respond(stream, OK, False)
        server.send(stream, b"answer", True)
        pump(client, server)
        assert [plain(e) for e in events(client)] == [
            Interim(1, [(b":status", b"103"), (b"link", b"</a>")]),
            Head(1, OK, False),
            Data(1, b"answer", True, 6),
        ]

    def test_a_body_goes_as_far_as_the_window_and_on_when_it_is_given_back(self, met):
        client, server = met
        stream = client.request(REQUEST, False)
        client.send(stream, b"x" * 100_000, True)
        pump(client, server)
        got = [e for e in events(server) if isinstance(e, Data)]
        assert sum(len(e.data) for e in got) == 65_535
        assert client.queued(stream) == 100_000 - 65_535
        for each in got:
            server.give_back(stream, each.flow)
        pump(client, server)
        assert client.queued(stream) == 0
        rest = events(server)
        assert sum(len(e.data) for e in rest) == 100_000 - 65_535
        assert rest[-1].end

    def test_a_stream_that_nobody_reads_stops_no_other(self, met):
        client, server = met
        for _ in range(20):
            client.send(client.request(REQUEST, False), b"x" * 65_535, True)
        pump(client, server)
        assert sum(isinstance(e, Data) and e.end for e in events(server)) == 20

    def test_window_of_a_stream_that_is_over_is_still_given_back(self, met):
        client, server = met
        for _ in range(200):  # twice as much as the whole connection's window
            stream = client.request(REQUEST, False)
            client.send(stream, b"x" * 65_535, False)
            pump(client, server)
            client.reset(stream, Code.CANCEL)
            pump(client, server)
            found = events(server)
            assert sum(len(e.data) for e in found if isinstance(e, Data)) == 65_535
            server.give_back(stream, 65_535)
            pump(client, server)
            server._watch._counts.clear()

    def test_what_is_sent_on_a_stream_that_is_over_is_dropped(self, met):
        client, server = met
        stream = client.request(REQUEST, True)
        pump(client, server)
        client.reset(stream, Code.CANCEL)
        pump(client, server)
        assert events(server)[-1] == Reset(stream, Code.CANCEL, by_peer=True)
        server.interim(stream, OK)
        server.respond(stream, OK, False)
        server.send(stream, b"late", False)
        server.trail(stream, [(b"a", b"b")])
        server.reset(stream, Code.CANCEL)
        assert server.queued(stream) == 0
        pump(client, server)
        assert events(client) == []

    def test_streams_share_the_wire(self, met):
        client, server = met
        streams = [client.request(REQUEST, True) for _ in range(3)]
        pump(client, server)
        for stream in streams:
            server.respond(stream, OK, False)
            server.send(stream, b"x" * 40_000, True)
        client.feed(server.outgoing(LOTS))
        assert {e.stream for e in events(client) if isinstance(e, Data)} == set(streams)

    def test_outgoing_comes_in_pieces(self, met):
        client, server = met
        stream = client.request(REQUEST, True)
        pump(client, server)
        server.respond(stream, OK, False)
        server.send(stream, b"x" * 60_000, True)
        pieces = []
        while piece := server.outgoing(20_000):
            pieces.append(len(piece))
        assert len(pieces) > 2
        assert max(pieces) < 40_000

    def test_a_ping_makes_the_round(self, met):
        client, server = met
        server.ping(b"12345678")
        pump(client, server)
        assert events(server) == [Pong(b"12345678")]

    def test_a_shutdown_lets_what_is_open_finish(self, met):
        client, server = met
        stream = client.request(REQUEST, False)
        pump(client, server)
        server.shutdown_notice()
        pump(client, server)
        assert events(client) == [GoAway(2**31 - 1, 0, b"")]
        server.goaway(Code.NO_ERROR)
        pump(client, server)
        assert events(client) == [GoAway(stream, 0, b"")]
        client.send(stream, b"the rest", True)
        pump(client, server)
        server.respond(stream, OK, False)
        server.send(stream, b"answer", True)
        pump(client, server)
        assert [plain(e) for e in events(client)][:2] == [Head(stream, OK, False), Data(stream, b"answer", True, 6)]


def answer(engine, *frames: bytes) -> list:
    """What a server says against a client that sends *frames*; its own verdict after that of the wire."""
    session = engine(SETTINGS_OF_OURS, client=False, clock=lambda: 0.0)
    session.feed(START + b"".join(frames))
    return codes(session.outgoing(LOTS))


NAMES = {"goaway": "connection", "reset": "stream"}


@pytest.mark.parametrize("engine", ENGINES)
class TestErrors:
    """RFC 9113, section by section. A stream error may be answered as one of the connection (section 5.4.2)."""

    @pytest.mark.parametrize(
        ("why", "frames", "code"),
        [
            ("4.2 a frame over MAX_FRAME_SIZE", [frame(DATA, 0, 1, bytes(16_385))], Code.FRAME_SIZE_ERROR),
            (
                "4.3 a head that cannot be decompressed",
                [frame(HEADERS, 5, 1, b"\xff\xff\xff\xff")],
                Code.COMPRESSION_ERROR,
            ),
            ("5.1 DATA on an idle stream", [frame(DATA, 0, 1, b"x")], Code.PROTOCOL_ERROR),
            ("5.1 RST_STREAM on an idle stream", [frame(RST_STREAM, 0, 1, bytes(4))], Code.PROTOCOL_ERROR),
            ("5.1 WINDOW_UPDATE on an idle stream", [frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1")], Code.PROTOCOL_ERROR),
            ("5.1 CONTINUATION out of nowhere", [frame(CONTINUATION, 4, 1, b"")], Code.PROTOCOL_ERROR),
            ("5.1.1 an even stream", [head(2, GET)], Code.PROTOCOL_ERROR),
            ("6.1 DATA on stream 0", [frame(DATA, 0, 0, b"x")], Code.PROTOCOL_ERROR),
            (
                "6.1 more padding than payload",
                [head(1, POST, 4), frame(DATA, PADDED, 1, b"\x05x")],
                Code.PROTOCOL_ERROR,
            ),
            ("6.2 HEADERS on stream 0", [head(0, GET)], Code.PROTOCOL_ERROR),
            (
                "6.2 something between HEADERS and CONTINUATION",
                [head(1, GET, 1), frame(PING, 0, 0, bytes(8))],
                Code.PROTOCOL_ERROR,
            ),
            ("6.3 PRIORITY on stream 0", [frame(PRIORITY, 0, 0, bytes(5))], Code.PROTOCOL_ERROR),
            ("6.4 RST_STREAM on stream 0", [frame(RST_STREAM, 0, 0, bytes(4))], Code.PROTOCOL_ERROR),
            (
                "6.4 RST_STREAM of a wrong size",
                [head(1, POST, 4), frame(RST_STREAM, 0, 1, bytes(3))],
                Code.FRAME_SIZE_ERROR,
            ),
            ("6.5 SETTINGS on a stream", [frame(SETTINGS, 0, 1)], Code.PROTOCOL_ERROR),
            ("6.5 an ACK with a payload", [frame(SETTINGS, 1, 0, bytes(6))], Code.FRAME_SIZE_ERROR),
            ("6.5 SETTINGS of a wrong size", [frame(SETTINGS, 0, 0, bytes(5))], Code.FRAME_SIZE_ERROR),
            ("6.5.2 ENABLE_PUSH neither 0 nor 1", [frame(SETTINGS, 0, 0, b"\0\2\0\0\0\2")], Code.PROTOCOL_ERROR),
            ("6.5.2 a window over 2^31-1", [frame(SETTINGS, 0, 0, b"\0\4\x80\0\0\0")], Code.FLOW_CONTROL_ERROR),
            ("6.5.2 MAX_FRAME_SIZE too small", [frame(SETTINGS, 0, 0, b"\0\5\0\0\0\1")], Code.PROTOCOL_ERROR),
            (
                "6.6 PUSH_PROMISE from a client",
                [head(1, POST, 4), frame(PUSH_PROMISE, 4, 1, b"\0\0\0\2")],
                Code.PROTOCOL_ERROR,
            ),
            ("6.7 PING on a stream", [frame(PING, 0, 1, bytes(8))], Code.PROTOCOL_ERROR),
            ("6.7 PING of a wrong size", [frame(PING, 0, 0, bytes(6))], Code.FRAME_SIZE_ERROR),
            ("6.8 GOAWAY on a stream", [frame(7, 0, 1, bytes(8))], Code.PROTOCOL_ERROR),
            ("6.9 WINDOW_UPDATE of 0", [frame(WINDOW_UPDATE, 0, 0, bytes(4))], Code.PROTOCOL_ERROR),
            ("6.9 WINDOW_UPDATE of a wrong size", [frame(WINDOW_UPDATE, 0, 0, bytes(3))], Code.FRAME_SIZE_ERROR),
            ("6.9.1 a window over 2^31-1", [frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff")], Code.FLOW_CONTROL_ERROR),
        ],
    )
    def test_an_error_of_the_connection(self, engine, why, frames, code):
        assert ("goaway", 0, code) in answer(engine, *frames)

    @pytest.mark.parametrize(
        ("why", "frames", "code"),
        [
            ("5.1 DATA after the end", [head(1, GET), frame(DATA, 0, 1, b"x")], Code.STREAM_CLOSED),
            ("6.9 WINDOW_UPDATE of 0", [head(1, POST, 4), frame(WINDOW_UPDATE, 0, 1, bytes(4))], Code.PROTOCOL_ERROR),
            (
                "6.9.1 a window over 2^31-1",
                [head(1, POST, 4), frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff")],
                Code.FLOW_CONTROL_ERROR,
            ),
            ("8.1 trailers without an end", [head(1, POST, 4), head(1, [("a", "b")], 4)], Code.PROTOCOL_ERROR),
            (
                "8.1.1 a shorter body than declared",
                [head(1, [*POST, ("content-length", "2")], 4), frame(DATA, END_STREAM, 1, b"x")],
                Code.PROTOCOL_ERROR,
            ),
            (
                "8.1.1 a longer body than declared",
                [head(1, [*POST, ("content-length", "2")], 4), frame(DATA, 0, 1, b"xxx")],
                Code.PROTOCOL_ERROR,
            ),
        ],
    )
    def test_an_error_of_a_stream(self, engine, why, frames, code):
        said = answer(engine, *frames)
        assert said == [("reset", 1, code)] or ("goaway", 0, code) in said

    def test_what_is_no_preface_is_refused(self, engine):
        session = engine(SETTINGS_OF_OURS, client=False)
        session.outgoing(LOTS)
        session.feed(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert isinstance(session.events[-1], Ended)
        assert codes(session.outgoing(LOTS)) == [("goaway", 0, Code.PROTOCOL_ERROR)]
        session.feed(START)  # and nothing after it is listened to
        assert len(session.events) == 1

    def test_after_the_end_nothing_is_read_any_more(self, engine):
        session = engine(SETTINGS_OF_OURS, client=False)
        session.feed(START + frame(DATA, 0, 1, bytes(20_000)))
        session.outgoing(LOTS)
        session.feed(frame(PING, 0, 0, bytes(8)) * 1000)
        assert [type(event) for event in events(session)].count(Ended) == 1

    @pytest.mark.parametrize("end", [frame(PING, 0, 1, bytes(8)), frame(HEADERS, 5, 1, b"\xff" * 9), b"\xff" * 99])
    def test_after_the_end_nothing_can_be_done_wrong(self, engine, end):
        session = engine(SETTINGS_OF_OURS, client=False)
        session.feed(START + head(1, POST, END_HEADERS) + end)
        for _ in range(2):
            session.ping(bytes(8))
            session.configure(SETTINGS_OF_OURS)
            session.respond(1, OK, False)
            session.send(1, b"x", True)
            session.give_back(1, 1)
            session.give_back(3, 1)
            session.reset(1, Code.CANCEL)
            session.refuse(3, Code.CANCEL)
            session.shutdown_notice()
            session.goaway(Code.NO_ERROR)
            assert session.queued(1) >= 0
            session.push(1, REQUEST)
            session.outgoing(LOTS)

    def test_what_came_before_the_error_is_not_lost(self, engine):
        session = engine(SETTINGS_OF_OURS, client=False)
        session.feed(START + head(1, GET) + frame(PING, 0, 1, bytes(8)))
        session.outgoing(LOTS)
        found = events(session)
        assert (type(found[0]), type(found[-1])) == (Head, Ended)

    def test_a_head_that_grows_beyond_all_measure_ends_the_connection(self, engine):
        session = engine(replace(SETTINGS_OF_OURS, max_header_list_size=4096), client=False)
        session.feed(START + head(1, [*GET, *[(f"a{i}", "0" * 4000) for i in range(3)]]))
        assert isinstance(events(session)[-1], Head)  # over the limit, which gw.http.pseudo holds it to
        session.feed(head(3, [*GET, *[(f"a{i}", "0" * 4000) for i in range(5)]]))
        assert events(session)[-1].code == Code.ENHANCE_YOUR_CALM
        assert codes(session.outgoing(LOTS))[-1] == ("goaway", 0, Code.ENHANCE_YOUR_CALM)


@pytest.mark.parametrize("engine", ENGINES)
class TestFloods:
    @pytest.mark.parametrize(
        ("what", "frames", "limit"),
        [
            ("SETTINGS", frame(SETTINGS), 99),  # the first came with the preface
            ("PING", frame(PING, 0, 0, bytes(8)), 50),
            ("empty DATA", frame(DATA, 0, 1), 100),
            ("PRIORITY", frame(PRIORITY, 0, 3, bytes(5)), 1000),
            ("PRIORITY", frame(0xBA, 0, 0, b"?"), 1000),
            ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"), 1000),
        ],
    )
    def test_frames_that_cost_only_us_are_counted(self, engine, what, frames, limit):
        session = engine(SETTINGS_OF_OURS, client=False, clock=lambda: 0.0)
        session.feed(START + head(1, POST, END_HEADERS))
        session.outgoing(LOTS)
        session.feed(frames * limit)
        assert not any(isinstance(e, Ended) for e in session.events)
        session.outgoing(LOTS)
        session.feed(frames)
        assert session.events[-1] == Ended(Code.ENHANCE_YOUR_CALM, f"too many: {what}", by_peer=False)
        assert codes(session.outgoing(LOTS))[-1] == ("goaway", 0, Code.ENHANCE_YOUR_CALM)

    def test_streams_that_are_reset_are_counted_whoever_resets_them(self, engine):
        session = engine(SETTINGS_OF_OURS, client=False, clock=lambda: 0.0)
        session.feed(START)
        for number in range(1, 101):
            stream = 2 * number - 1
            session.feed(head(stream, POST, END_HEADERS))
            if number % 2:
                session.feed(frame(RST_STREAM, 0, stream, bytes(4)))
            else:
                session.refuse(stream, Code.PROTOCOL_ERROR)
            session.outgoing(LOTS)
        assert not any(isinstance(e, Ended) for e in session.events)
        session.feed(head(201, POST, END_HEADERS) + frame(RST_STREAM, 0, 201, bytes(4)))
        assert isinstance(session.events[-1], Ended)

    def test_continuations_are_counted(self, engine):
        session = engine(SETTINGS_OF_OURS, client=False)
        session.feed(START + head(1, GET, END_STREAM) + frame(CONTINUATION, 0, 1) * 9)
        assert session.events[-1] == Ended(Code.ENHANCE_YOUR_CALM, "too many: CONTINUATION", by_peer=False)

    def test_a_new_period_begins_anew(self, engine):
        now = 0.0
        session = engine(SETTINGS_OF_OURS, client=False, clock=lambda: now)
        session.feed(START)
        for _ in range(4):
            session.feed(frame(PING, 0, 0, bytes(8)) * 50)
            session.outgoing(LOTS)
            now += 10.0
        assert not any(isinstance(e, Ended) for e in session.events)

    def test_windows_may_be_opened_for_what_is_sent(self, engine):
        session = engine(SETTINGS_OF_OURS, client=False, clock=lambda: 0.0)
        session.feed(START + head(1, GET))
        session.respond(1, OK, False)
        session.send(1, b"x" * 16_384 * 100, True)
        session.feed(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 2000)
        assert not any(isinstance(e, Ended) for e in session.events)


FRAMES = st.sampled_from(
    [
        head(1, GET),
        head(3, POST, END_HEADERS),
        head(3, [("x-end", "1")]),
        head(5, [*GET, ("cookie", "a=b"), ("cookie", "c=d")]),
        frame(DATA, 0, 3, b"some"),
        frame(DATA, END_STREAM, 3, b"end"),
        frame(DATA, PADDED, 3, b"\x02xx\0\0"),
        frame(PING, 0, 0, b"pingping"),
        frame(SETTINGS, 0, 0, b"\0\4\0\0\x20\0"),
        frame(WINDOW_UPDATE, 0, 0, b"\0\0\1\0"),
        frame(WINDOW_UPDATE, 0, 3, b"\0\0\1\0"),
        frame(RST_STREAM, 0, 3, b"\0\0\0\x08"),
        frame(PRIORITY, 0, 7, bytes(5)),
        frame(0xBA, 0, 0, b"unknown"),
    ]
)


@hypothesis_settings(max_examples=1000, deadline=None)
@given(frames=st.lists(FRAMES, max_size=12), cut=st.integers(1, 40))
def test_both_engines_see_the_same_wherever_it_is_cut(frames, cut):
    """Up to the first error: after it, one may end the connection where the other ends the stream (section 5.4.2)."""
    data = START + b"".join(frames)
    seen = []
    for engine in ENGINES:
        session = engine(SETTINGS_OF_OURS, client=False, clock=lambda: 0.0)
        for at in range(0, len(data), cut):
            session.feed(data[at : at + cut])
        found = []
        for event in events(session):
            if isinstance(event, (Reset, Ended)):
                found.append("error" if isinstance(event, Ended) or not event.by_peer else event)
                break
            if isinstance(event, Head):
                try:
                    request = RequestHeads(ReaderLimits(8192, 100, 8192), 65_536).request_of(event.fields, event.end)
                except StreamError:
                    found.append("error")
                    break
                event.fields = request.headers.raw
            found.append(plain(event))
        if codes(session.outgoing(LOTS)) and "error" not in found:
            found.append("error")
        seen.append(found)
    one, other = seen
    assert ("error" in one) == ("error" in other)
    if "error" in one:  # nghttp2 tells of a stream that it resets when it sends the reset: after what came behind it
        one.remove("error")
        other.remove("error")
        shorter = min(len(one), len(other))
        one, other = one[:shorter], other[:shorter]
    assert one == other


class TestSettings:
    @pytest.mark.parametrize("window", [100, 1_000_000])
    def test_they_are_said_as_they_were_made(self, server_engine, window):
        ours = SessionSettings(
            initial_window_size=window, max_frame_size=20_000, header_table_size=100, max_concurrent_streams=7
        )
        said = server_engine(ours, client=False).outgoing(LOTS)
        size = int.from_bytes(said[:3])
        values = {
            int.from_bytes(said[at : at + 2]): int.from_bytes(said[at + 2 : at + 6]) for at in range(9, 9 + size, 6)
        }
        wanted = {1: 100, 3: 7, 4: window, 5: 20_000, 6: 65_536}
        assert {key: values.get(key) for key in wanted} == wanted

    @pytest.mark.parametrize("window", [100, 1_000_000])
    def test_a_body_goes_as_far_as_the_window_that_was_said(self, client_engine, server_engine, window):
        client = client_engine(SETTINGS_OF_OURS, client=True)
        server = server_engine(SessionSettings(initial_window_size=window), client=False)
        pump(client, server)
        stream = client.request(REQUEST, False)
        client.send(stream, b"x" * 900_000, True)
        pump(client, server)
        assert 900_000 - client.queued(stream) == min(window, 900_000)

    def test_what_was_on_its_way_before_they_were_heard_is_no_error(self, client_engine, server_engine):
        few = SessionSettings(initial_window_size=10, max_concurrent_streams=1, header_table_size=0)
        client, server = client_engine(SETTINGS_OF_OURS, client=True), server_engine(few, client=False)
        streams = [client.request(REQUEST, False) for _ in range(3)]
        client.send(streams[0], b"x" * 50_000, True)
        server.feed(client.outgoing(LOTS))
        pump(client, server)
        assert not any(isinstance(event, Ended) for event in [*server.events, *client.events])
