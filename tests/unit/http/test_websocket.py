"""Frames: what is taken, what is refused with which code, however the network cuts them; wsproto is the oracle."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st
from ws_frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close, frame, parsed
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping as TheirPing, Pong as TheirPong, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from gw.filters import Close, Message
from gw.http.deflate import Deflater, Inflater
from gw.http.websocket import FrameReader, FrameWriter, Ping, Pong, apply_mask


def whole(reader, data):
    return reader.feed(data)


def byte_by_byte(reader, data):
    if len(data) > 2000:  # where the bytes in the middle have nothing new to say
        return reader.feed(data[:100]) + byte_by_byte(reader, data[100:200]) + reader.feed(data[200:])
    return b"".join(reader.feed(data[at : at + 1]) for at in range(len(data)))


def in_threes(reader, data):
    return b"".join(reader.feed(data[at : at + 3]) for at in range(0, len(data), 3))


ways = pytest.mark.parametrize("feed", [whole, byte_by_byte, in_threes])
sides = pytest.mark.parametrize("masked", [True, False], ids=["client", "server"])
"""Whose frames are read."""

GOOD = {
    "text": ([(TEXT, b"hello", {})], [Message("hello")]),
    "binary": ([(BINARY, b"\x00\xff", {})], [Message(b"\x00\xff")]),
    "nothing": ([(TEXT, b"", {}), (BINARY, b"", {})], [Message(""), Message(b"")]),
    "125 bytes": ([(BINARY, b"a" * 125, {})], [Message(b"a" * 125)]),
    "126 bytes": ([(BINARY, b"a" * 126, {})], [Message(b"a" * 126)]),
    "65,535 bytes": ([(BINARY, b"a" * 65535, {})], [Message(b"a" * 65535)]),
    "65,536 bytes": ([(BINARY, b"a" * 65536, {})], [Message(b"a" * 65536)]),
    "fragments": (
        [(TEXT, b"a", {"fin": False}), (CONTINUATION, b"", {"fin": False}), (CONTINUATION, b"b", {})],
        [Message("ab")],
    ),
    "a character over two fragments": (
        [(TEXT, b"\xce", {"fin": False}), (CONTINUATION, b"\xba", {})],
        [Message("κ")],
    ),
    "control frames between fragments": (
        [(BINARY, b"a", {"fin": False}), (PING, b"p", {}), (PONG, b"q", {}), (CONTINUATION, b"b", {})],
        [Ping(b"p"), Pong(b"q"), Message(b"ab")],
    ),
    "a ping of 125 bytes": ([(PING, b"p" * 125, {})], [Ping(b"p" * 125)]),
    "a pong that nobody asked for": ([(PONG, b"", {})], [Pong(b"")]),
    "text of every length in UTF-8": ([(TEXT, "aé€𝄞\U0010ffff".encode(), {})], [Message("aé€𝄞\U0010ffff")]),
}

LONG = b"\x7e\x00\x05"
BAD = {
    "RSV1 without an extension": ([frame(TEXT, b"a", rsv=4)], 1002),
    "RSV2": ([frame(TEXT, b"a", rsv=2)], 1002),
    "RSV3 of a ping": ([frame(PING, rsv=1)], 1002),
    "opcode 3": ([frame(3, b"a")], 1002),
    "opcode 7": ([frame(7, b"a")], 1002),
    "opcode 11": ([frame(11)], 1002),
    "opcode 15": ([frame(15)], 1002),
    "a fragmented ping": ([frame(PING, fin=False)], 1002),
    "a ping of 126 bytes": ([frame(PING, b"a" * 126)], 1002),
    "a Close of 126 bytes": ([frame(CLOSE, b"\x03\xe8" + b"a" * 124)], 1002),
    "16 bits for a short length": ([frame(TEXT, b"hello", length=LONG)], 1002),
    "64 bits for a short length": ([frame(TEXT, b"hello", length=b"\x7f" + (5).to_bytes(8))], 1002),
    "64 bits for a middling length": ([frame(BINARY, b"a" * 300, length=b"\x7f" + (300).to_bytes(8))], 1002),
    "a length with its highest bit": ([frame(BINARY, b"a", length=b"\x7f" + (1 << 63).to_bytes(8))], 1002),
    "a continuation of nothing": ([frame(CONTINUATION, b"a")], 1002),
    "a message inside of another": ([frame(TEXT, b"a", fin=False), frame(TEXT, b"b")], 1002),
    "a continuation after the end": ([frame(TEXT, b"a"), frame(CONTINUATION, b"b")], 1002),
    "a Close of one byte": ([frame(CLOSE, b"\x03")], 1002),
    **{
        f"close code {code}": ([close(code)], 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
    "a reason that is no UTF-8": ([close(1000, b"\xff")], 1007),
    "a reason that is cut": ([close(1000, b"\xce")], 1007),
    "text that is no UTF-8": ([frame(TEXT, b"a\xff")], 1007),
    "text that ends in a character": ([frame(TEXT, b"a\xce")], 1007),
    "a surrogate": ([frame(TEXT, b"\xed\xa0\x80")], 1007),
    "beyond Unicode": ([frame(TEXT, b"\xf4\x90\x80\x80")], 1007),
    "an overlong form": ([frame(TEXT, b"\xc0\xaf")], 1007),
    "a fragment that breaks a character": ([frame(TEXT, b"\xce", fin=False), frame(CONTINUATION, b"a")], 1007),
}


def masked_too(data):
    """Return the frames of BAD as a client sends them."""
    key = b"\x01\x02\x03\x04"
    at = {126: 4, 127: 10}.get(data[1], 2)
    return bytes((data[0], data[1] | 0x80)) + data[2:at] + key + apply_mask(data[at:], key)


@ways
@sides
@pytest.mark.parametrize("case", GOOD)
def test_good_frames_become_messages_however_they_are_cut(case, masked, feed):
    frames, events = GOOD[case]
    reader = FrameReader(masked=masked, gathers=True)
    feed(reader, b"".join(frame(opcode, payload, masked=masked, **how) for opcode, payload, how in frames))
    assert (reader.events, reader.fault, reader.closed) == (events, None, None)


@ways
@sides
@pytest.mark.parametrize("case", GOOD)
def test_a_relay_passes_on_what_it_was_given_byte_for_byte(case, masked, feed):
    data = b"".join(frame(opcode, payload, masked=masked, **how) for opcode, payload, how in GOOD[case][0])
    reader = FrameReader(masked=masked)
    assert feed(reader, data) == data
    assert (reader.fault, reader.in_frame) == (None, False)


@ways
@pytest.mark.parametrize("gathers", [True, False])
@sides
@pytest.mark.parametrize("case", BAD)
def test_a_bad_frame_is_refused_with_its_code_and_nothing_of_it_or_behind_it_is_passed_on(case, masked, gathers, feed):
    frames, code = BAD[case]
    if masked:
        frames = [masked_too(each) for each in frames]
    before = frame(TEXT, b"before", masked=masked)
    after = frame(TEXT, b"after", masked=masked)
    reader = FrameReader(masked=masked, gathers=gathers)
    out = feed(reader, before + b"".join(frames) + after)
    assert reader.fault is not None
    assert (reader.fault.code, reader.closed) == (code, None)
    assert b"after" not in out
    if gathers:
        assert [event for event in reader.events if isinstance(event, Message)][:1] == [Message("before")]
    else:
        assert out.startswith(before)
        if feed is whole:  # what is bad is known before any of its frame went on
            assert not reader.in_frame


@sides
def test_whose_frames_are_masked_is_fixed(masked):
    reader = FrameReader(masked=masked)
    assert reader.feed(frame(TEXT, b"a", masked=not masked)) == b""
    assert reader.fault.code == 1002


@ways
@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999])
def test_a_close_is_the_last_that_is_read(code, feed):
    reader = FrameReader(masked=True)
    out = feed(reader, close(code, "bye, κ".encode(), masked=True) + frame(TEXT, b"more", masked=True))
    assert (out, reader.closed, reader.fault) == (b"", Close(code, "bye, κ"), None)


def test_an_empty_close_is_told_apart():
    reader = FrameReader(masked=False)
    reader.feed(close())
    assert reader.closed == Close(1005)


class TestLimits:
    @ways
    @pytest.mark.parametrize("gathers", [True, False])
    def test_a_message_may_be_as_large_as_the_limit(self, feed, gathers):
        reader = FrameReader(masked=False, limit=10, gathers=gathers)
        feed(reader, frame(BINARY, b"a" * 10) + frame(TEXT, b"a" * 6, fin=False) + frame(CONTINUATION, b"a" * 4))
        assert reader.fault is None

    @pytest.mark.parametrize("gathers", [True, False])
    def test_a_larger_one_is_refused_by_its_head_alone(self, gathers):
        reader = FrameReader(masked=False, limit=10, gathers=gathers)
        out = reader.feed(frame(BINARY, b"a" * 11)[:2])
        assert (out, reader.fault.code) == (b"", 1009)

    def test_fragments_count_together(self):
        reader = FrameReader(masked=False, limit=10)
        first = frame(TEXT, b"a" * 6, fin=False)
        assert reader.feed(first + frame(CONTINUATION, b"a" * 5)) == first
        assert (reader.fault.code, reader.in_frame) == (1009, False)

    def test_each_message_counts_anew(self):
        reader = FrameReader(masked=False, limit=10)
        reader.feed(frame(BINARY, b"a" * 10) * 5)
        assert reader.fault is None

    def test_a_length_of_63_bits_takes_no_memory(self):
        reader = FrameReader(masked=False, gathers=True)
        reader.feed(b"\x82\x7f" + (2**63 - 1).to_bytes(8) + b"abc")
        assert reader.fault is None


class TestRelaying:
    def test_a_frame_goes_on_before_it_is_all_here(self):
        reader = FrameReader(masked=False)
        data = frame(BINARY, b"a" * 1000)
        assert reader.feed(data[:500]) == data[:500]
        assert (reader.in_frame, reader.boundary) == (True, -1)
        assert reader.feed(data[500:] + b"\x82") == data[500:]
        assert (reader.in_frame, reader.boundary) == (False, 504)

    def test_where_the_last_frame_ended_is_known(self):
        reader = FrameReader(masked=False)
        data = frame(BINARY, b"abc")
        reader.feed(data * 2 + data[:4])
        assert (reader.boundary, reader.in_frame) == (10, True)

    def test_the_pong_to_our_own_ping_is_kept_back(self):
        reader = FrameReader(masked=False)
        reader.own_ping = b"12345678"
        text, theirs = frame(TEXT, b"a"), frame(PONG, b"other")
        assert reader.feed(text + theirs + frame(PONG, b"12345678") + text) == text + theirs + text
        assert (reader.own_ping, reader.boundary, reader.in_frame) == (b"", 13, False)

    def test_text_that_goes_wrong_in_mid_frame_is_found_at_once(self):
        reader = FrameReader(masked=True)
        data = frame(TEXT, "κόσμε".encode() + b"\xf4\x90\x80\x80edited", masked=True)
        good = len(data) - 10
        assert reader.feed(data[:good]) == data[:good]
        assert reader.feed(data[good : good + 2]) == b""
        assert (reader.fault.code, reader.in_frame) == (1007, True)


class TestWriting:
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
    @pytest.mark.parametrize("masks", [True, False])
    def test_a_message_is_one_frame_with_the_shortest_length(self, size, masks):
        writer = FrameWriter(masks=masks)
        assert parsed(writer.message(b"x" * size), masked=masks) == [(BINARY, 1, b"x" * size)]
        assert parsed(writer.message("x" * size), masked=masks) == [(TEXT, 1, b"x" * size)]

    def test_a_mask_is_never_the_same(self):
        writer = FrameWriter(masks=True)
        assert len({writer.ping()[2:6] for _ in range(100)}) == 100

    @pytest.mark.parametrize(
        ("told", "payload"),
        [
            (Close(), b"\x03\xe8"),
            (Close(1001, "Going Away"), b"\x03\xe9Going Away"),
            (Close(1005, "what"), b""),
            (Close(4000, "é" * 100), b"\x0f\xa0" + "é".encode() * 61),
        ],
    )
    def test_a_reason_is_cut_at_a_character(self, told, payload):
        assert parsed(FrameWriter(masks=False).close(told)) == [(CLOSE, 1, payload)]

    @given(st.binary(max_size=300), st.binary(min_size=4, max_size=4), st.integers(0, 300))
    def test_masking_in_parts_is_masking(self, data, key, cut):
        expected = bytes(byte ^ key[at & 3] for at, byte in enumerate(data))
        assert apply_mask(data[:cut], key) + apply_mask(data[cut:], key, cut) == expected[:cut] + expected[cut:]


class TestCompression:
    def reader(self, *, gathers=True, limit=0, keeps=True):
        inflater = Inflater(keeps_context=keeps)
        return FrameReader(masked=False, inflater=inflater, gathers=gathers, limit=limit)

    def compressed(self, *messages, keeps=True):
        writer = FrameWriter(masks=False, deflater=Deflater(keeps_context=keeps))
        return b"".join(map(writer.message, messages))

    @ways
    @pytest.mark.parametrize("keeps", [True, False])
    def test_messages_are_inflated(self, feed, keeps):
        reader = self.reader(keeps=keeps)
        feed(reader, self.compressed("hello", b"\0" * 100_000, "", "hello", keeps=keeps))
        assert reader.events == [Message("hello"), Message(b"\0" * 100_000), Message(""), Message("hello")]

    @ways
    def test_they_are_relayed_as_they_are(self, feed):
        data = self.compressed("hello", b"\0" * 100_000, "")
        assert feed(self.reader(gathers=False), data) == data

    @ways
    def test_in_fragments_only_the_first_says_so(self, feed):
        (_first, _, payload) = parsed(self.compressed("hello hello hello"))[0]
        data = frame(TEXT, payload[:4], fin=False, rsv=4) + frame(PING) + frame(CONTINUATION, payload[4:])
        reader = self.reader()
        feed(reader, data)
        assert reader.events == [Ping(b""), Message("hello hello hello")]

    def test_one_that_is_not_compressed_may_be_among_them(self):
        reader = self.reader()
        reader.feed(frame(TEXT, b"plain") + self.compressed("packed"))
        assert reader.events == [Message("plain"), Message("packed")]

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (frame(CONTINUATION, b"", rsv=4), 1002),
            (frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"", rsv=4), 1002),
            (frame(PING, b"", rsv=4), 1002),
            (frame(TEXT, b"\xff\xff\xff", rsv=4), 1007),
        ],
    )
    def test_what_is_no_compression_is_refused(self, data, code):
        reader = self.reader(gathers=False)
        assert b"\xff" not in reader.feed(data)
        assert reader.fault.code == code

    @pytest.mark.parametrize("gathers", [True, False])
    def test_the_limit_is_for_what_it_inflates_to_and_a_bomb_is_not_unpacked(self, gathers):
        bomb = self.compressed(b"\0" * (8 << 20))
        assert len(bomb) < 10_000
        reader = self.reader(gathers=gathers, limit=1 << 20)
        out = reader.feed(bomb)
        assert (out, reader.fault.code) == (b"", 1009)
        assert sum(map(len, reader._parts)) <= 1 << 20

    @pytest.mark.parametrize("gathers", [True, False])
    def test_text_is_checked_when_it_is_inflated(self, gathers):
        deflated = Deflater(keeps_context=True).message(b"abc\xff")
        reader = self.reader(gathers=gathers)
        reader.feed(frame(TEXT, deflated, rsv=4))
        assert reader.fault.code == 1007


# --- the oracle ------------------------------------------------------------------------------------

payloads = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=8).map(str.encode),
    st.sampled_from(
        [b"\xce", b"\xba", b"\xff", b"x" * 126, b"y" * 125, b"\x03\xe8", b"\x03\xe8ok", b"\x03\xed", b"z" * 70000]
    ),
)
frames = st.builds(
    frame,
    st.sampled_from([TEXT] * 4 + [BINARY] * 3 + [CONTINUATION] * 4 + [PING, PONG, CLOSE, 3, 11]),
    payloads,
    fin=st.sampled_from([True, True, False]),
    rsv=st.sampled_from([0] * 9 + [1, 2, 4]),
    masked=st.just(True),
    key=st.binary(min_size=4, max_size=4),
)


def by_wsproto(data):
    """Return what wsproto makes of *data*: events, and the code that it ends with."""
    connection = Connection(ConnectionType.SERVER)
    found, parts = [], []
    try:
        connection.receive_data(data)
        for event in connection.events():
            if isinstance(event, TextMessage | BytesMessage):
                parts.append(event.data)
                if event.message_finished:
                    found.append(Message(type(event.data)().join(parts)))
                    parts = []
            elif isinstance(event, TheirPing):
                found.append(Ping(bytes(event.payload)))
            elif isinstance(event, TheirPong):
                found.append(Pong(bytes(event.payload)))
            elif isinstance(event, CloseConnection):
                return found, int(event.code)
    except RemoteProtocolError as error:
        return found, error.event_hint.code if error.event_hint else 1002
    except LocalProtocolError:
        return found, None
    return found, 0


@settings(max_examples=400, deadline=None)
@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 200), max_size=8))
def test_wsproto_sees_the_same_messages(sent, cuts):
    data = b"".join(sent)
    reader, at = FrameReader(masked=True, gathers=True), 0
    for cut in [*cuts, len(data)]:
        reader.feed(data[at : at + cut])
        at += cut
    mine = reader.closed or reader.fault
    theirs, code = by_wsproto(data)
    if reader.fault is None:
        assert reader.events == theirs
        assert code == (mine.code if mine else 0)
    else:  # we are the stricter one, if any: codes that wsproto lets pass, and faults it finds later
        assert reader.events == theirs[: len(reader.events)]
        assert code in {reader.fault.code, 1002, 1007} or reader.fault.code == 1002


@pytest.mark.parametrize("cut", range(9))
def test_the_end_of_a_text_that_breaks_off_in_a_character_is_not_passed_on(cut):
    data = bytes([0x81, 0x83, 0, 0, 0, 0]) + b"ab\xce"
    reader, again = FrameReader(masked=True), FrameReader(masked=True)
    out = reader.feed(data[:cut]) + reader.feed(data[cut:])
    assert reader.fault is not None
    assert again.feed(out) == out
    assert again.fault is None


@settings(max_examples=200, deadline=None)
@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 200), max_size=8))
def test_relaying_and_gathering_judge_alike(sent, cuts):
    data, at = b"".join(sent), 0
    relay, gather, out = FrameReader(masked=True), FrameReader(masked=True, gathers=True), b""
    for cut in [*cuts, len(data)]:
        piece = data[at : at + cut]
        out += relay.feed(piece) if not (relay.fault or relay.closed) else b""
        if not (gather.fault or gather.closed):
            gather.feed(piece)
        at += cut
    assert (relay.fault, relay.closed) == (gather.fault, gather.closed)
    assert data.startswith(out)
    again = FrameReader(masked=True, gathers=True)  # what was passed on is sound, as far as it goes
    again.feed(out)
    assert again.fault is None
    assert again.events == gather.events[: len(again.events)]
