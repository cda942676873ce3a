"""What is counted, and what is not, wherever the bytes are cut."""

from __future__ import annotations

import pytest
from frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    START,
    WINDOW_UPDATE,
    frame,
    head,
)

from gw.http.flood import FloodWatch
from gw.http.h2 import Code, FloodLimits
from gw.limits import FLOOD_PERIOD, MAX_GONE_STREAMS

FEW = FloodLimits(settings=2, ping=2, reset=2, empty_data=2, priority=2, window_update=2)
CALM = Code.ENHANCE_YOUR_CALM


class Counted:
    """A watch with a clock that the test sets."""

    def __init__(self, *, preface: bool = True) -> None:
        self.now = 100.0
        self.watch = FloodWatch(FEW, lambda: self.now, preface=preface)

    def see(self, data: bytes, cut: int = 1 << 20):
        verdicts = [self.watch.see(data[at : at + cut]) for at in range(0, len(data), cut)]
        return next((verdict for verdict in verdicts if verdict is not None), None)


@pytest.mark.parametrize(
    ("kind", "frames"),
    [
        ("PING", frame(PING, 0, 0, bytes(8))),
        ("SETTINGS", frame(SETTINGS, 0, 0, b"\0\3\0\0\0\1")),
        ("reset streams", frame(RST_STREAM, 0, 1, bytes(4))),
        ("empty DATA", frame(DATA, 0, 1)),
        ("PRIORITY", frame(PRIORITY, 0, 1, bytes(5))),
        ("PRIORITY", frame(0xFA, 0, 1, b"unknown")),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1")),
    ],
)
@pytest.mark.parametrize("cut", [1, 9, 1 << 20])
def test_the_third_of_two_is_too_many(kind, frames, cut):
    counted = Counted(preface=False)
    assert counted.see(frames * 2, cut) is None
    assert counted.see(frames, cut) == (CALM, f"too many: {kind}")


@pytest.mark.parametrize(
    "frames",
    [
        head(1, GET),
        frame(DATA, 0, 1, b"x"),
        frame(DATA, 1, 1),
        frame(PING, 1, 0, bytes(8)),
        frame(SETTINGS, 1),
    ],
    ids=["heads", "data", "an empty end", "answers to PING", "acknowledged SETTINGS"],
)
def test_what_is_work_or_an_answer_is_not_counted(frames):
    assert Counted(preface=False).see(frames * 1000) is None


def test_each_period_begins_at_nothing():
    counted = Counted(preface=False)
    for _ in range(5):
        assert counted.see(frame(PING, 0, 0, bytes(8)) * 2) is None
        counted.now += FLOOD_PERIOD


def test_what_was_sent_earns_window_updates():
    counted = Counted(preface=False)
    counted.see(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1"))
    counted.watch.sent(16384)
    assert counted.see(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 21) is None
    assert counted.see(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1")) == (CALM, "too many: WINDOW_UPDATE")


def test_what_is_in_a_frame_is_not_taken_for_frames():
    hidden = frame(PING, 0, 0, bytes(8)) * 100
    assert Counted(preface=False).see(frame(DATA, 0, 1, hidden), cut=7) is None


class TestStreams:
    """Which streams a client may still send on."""

    def test_streams_may_be_left_out(self):
        assert Counted().see(START + head(1, GET) + head(9, GET) + head(11, GET)) is None

    @pytest.mark.parametrize("late", [head(3, GET), frame(DATA, 0, 3, b"x")], ids=["head", "data"])
    def test_one_that_was_left_out_cannot_be_used_any_more(self, late):
        counted = Counted()
        counted.see(START + head(9, GET))
        assert counted.see(late) == (Code.PROTOCOL_ERROR, "a frame on a stream that was left out")

    @pytest.mark.parametrize("late", [head(1, GET), frame(DATA, 0, 1, b"x"), frame(DATA, 1, 1)])
    @pytest.mark.parametrize(
        "ended",
        [
            head(1, GET),
            head(1, GET, END_HEADERS) + frame(DATA, END_STREAM, 1, b"x"),
            head(1, GET, END_HEADERS) + frame(DATA, END_STREAM, 1),
            head(1, GET, END_HEADERS) + head(1, [("a", "b")]),
            head(1, GET, END_HEADERS) + frame(RST_STREAM, 0, 1, bytes(4)),
        ],
        ids=["head", "data", "empty data", "trailers", "reset"],
    )
    def test_nothing_comes_after_the_end(self, ended, late):
        counted = Counted()
        assert counted.see(START + ended) is None
        assert counted.see(late) == (Code.STREAM_CLOSED, "a frame on a stream that its sender has closed")

    def test_a_body_and_trailers_come_on_a_stream_that_is_open(self):
        counted = Counted()
        opened = head(5, GET, END_HEADERS) + head(7, GET)
        assert counted.see(START + opened + frame(DATA, 0, 5, b"x") * 9 + frame(HEADERS, 5, 5)) is None

    def test_so_many_gaps_are_remembered_and_no_more(self):
        counted = Counted()
        counted.see(START + b"".join(head(number, GET) for number in range(3, 4 * MAX_GONE_STREAMS + 8, 4)))
        assert len(counted.watch._skipped) == MAX_GONE_STREAMS

    def test_so_many_open_streams_are_remembered_and_no_more(self):
        counted = Counted()
        counted.see(START + b"".join(head(number, GET, END_HEADERS) for number in range(1, 1001, 2)))
        assert len(counted.watch._sending) == MAX_GONE_STREAMS + 100

    def test_a_server_answers_on_the_streams_that_it_is_asked_on(self):
        assert Counted(preface=False).see(frame(HEADERS, 5, 3) + frame(HEADERS, 5, 1)) is None


def test_the_reserved_bit_makes_no_stream_of_a_server_that_it_could_open():
    counted = Counted(preface=False)
    reserved = frame(HEADERS, END_HEADERS | END_STREAM, 0, b"\x88")[:5] + b"\x80\0\0\0\x88"
    assert counted.see(reserved) is None
    assert counted.see(head(1, GET)) is None
