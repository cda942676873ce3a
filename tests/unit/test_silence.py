"""The idle timeout and the pings of a WebSocket, on a virtual clock."""

from __future__ import annotations

import gc
import weakref

from gw.net.deadlines import Deadlines
from gw.silence import Silence


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Side:
    def __init__(self, name, now):
        self.name, self.heard, self.is_read, self.asked = name, now, True, 0

    def ask(self):
        self.asked += 1


class Watched:
    """A WebSocket of two sides; *said* is what became of it."""

    def __init__(self, **terms):
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)
        self.sides = [Side(name, self.clock.now) for name in ("client", "upstream")]
        self.said = []
        self.silence = Silence(
            self.deadlines,
            self.sides,
            **{"idle": 0, "interval": 0, "timeout": 0, **terms},
            on_idle=lambda: self.said.append("idle"),
            on_gone=lambda side: self.said.append(side.name),
        )
        self.silence.look()

    def after(self, seconds):
        """Let time pass; return how often each side was asked."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(self.clock.now + 0.05, end)
            self.deadlines.turn()
        return [side.asked for side in self.sides]


def test_without_terms_nothing_is_looked_at():
    watched = Watched()
    assert watched.after(100) == [0, 0]
    assert watched.deadlines._slots == {}
    assert watched.said == []


def test_what_moves_is_not_idle():
    watched = Watched(idle=10)
    watched.after(8)
    watched.silence.moved = watched.clock.now
    watched.after(9)
    assert watched.said == []
    watched.after(2)
    assert watched.said == ["idle"]


def test_a_silent_side_is_asked_once_and_then_gone():
    watched = Watched(interval=5, timeout=2)
    watched.sides[1].heard = watched.clock.now + 4
    assert watched.after(5.5) == [1, 0]
    assert watched.after(1) == [1, 0]
    watched.after(1)
    assert watched.said == ["client"]


def test_an_answer_begins_the_interval_again():
    watched = Watched(interval=5, timeout=2)
    watched.after(5.5)
    for side in watched.sides:
        side.heard = watched.clock.now
    assert watched.after(4.5) == [1, 1]
    assert watched.after(1) == [2, 2]
    assert watched.said == []


def test_a_side_that_is_not_read_is_neither_asked_nor_gone():
    watched = Watched(interval=5, timeout=2)
    watched.sides[0].is_read = False
    watched.after(5.5)
    watched.sides[1].heard = watched.clock.now + 100
    watched.after(50)
    assert watched.said == []
    assert watched.sides[0].asked == 0


def test_the_nearer_of_both_bounds_counts():
    watched = Watched(idle=3, interval=5, timeout=2)
    watched.after(3.5)
    assert watched.said == ["idle"]


def test_off_is_the_end_of_it_and_forgetting_leaves_nothing():
    watched = Watched(idle=3)
    watched.silence.off()
    watched.after(10)
    assert watched.said == []
    gone = weakref.ref(watched.sides[0])
    watched.silence.forget()
    gc.disable()
    try:
        watched.sides.clear()
        assert gone() is None
    finally:
        gc.enable()
