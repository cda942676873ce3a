"""Deadlines as numbers: setting one is an assignment, and a coarse ticker looks at them.

A timer object or a cancel scope per wait costs 10 us and more; this costs a
tenth of one. A `Due` lives as long as the stream that owns it. It sits in at
most one slot of the wheel: moving it later only changes its number, and the
slot, when its turn comes, hands it on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Final

import anyio

__all__ = ["NEVER", "RESOLUTION", "Deadlines", "Due"]

NEVER: Final = inf

RESOLUTION: Final = 0.05
"""Seconds between two looks; a deadline fires at most two of these late."""


class Due:
    """One deadline that is set again and again. *when* is in `time.monotonic` seconds."""

    __slots__ = ("_deadlines", "_fire", "_slot", "when")

    def __init__(self, deadlines: Deadlines, fire: Callable[[], None]) -> None:
        self.when = NEVER
        self._deadlines = deadlines
        self._fire = fire
        self._slot: float = NEVER

    def after(self, seconds: float) -> None:
        """Fire in *seconds* from now, instead of whenever it was due before; 0 means never."""
        self.when = when = self._deadlines.now + seconds if seconds else NEVER
        if when + RESOLUTION < self._slot:
            self._deadlines.place(self)

    def off(self) -> None:
        """Do not fire. Costs an assignment: the wheel forgets lazily."""
        self.when = NEVER

    def forget(self) -> None:
        """Never fire again, and leave the wheel: for when the owner goes away."""
        self.when = NEVER
        self._deadlines.remove(self)
        self._fire = _nothing  # the owner's own method: together they would wait for the garbage collector


def _nothing() -> None:
    """Stand in for the callback of a deadline that was forgotten."""


class Deadlines:
    """The wheel. One per event loop, turned by `run`; *now* is its clock, as coarse as it is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.now = clock()
        self._slots: dict[int, dict[Due, None]] = {}
        self._turned = int(self.now / RESOLUTION)
        self._each: list[Callable[[], None]] = []

    def due(self, fire: Callable[[], None]) -> Due:
        """Make a deadline that calls *fire*, which must not raise, each time it is reached."""
        return Due(self, fire)

    def every_tick(self, call: Callable[[], None]) -> None:
        """Have *call* called at every turn, such as to flush a batch. It must be quick and must not raise."""
        self._each.append(call)

    def place(self, due: Due) -> None:
        self.remove(due)
        slot = max(int(due.when / RESOLUTION), self._turned) + 1
        due._slot = slot * RESOLUTION
        self._slots.setdefault(slot, {})[due] = None

    def remove(self, due: Due) -> None:
        if due._slot != NEVER:
            slot = round(due._slot / RESOLUTION)
            due._slot = NEVER
            held = self._slots[slot]
            del held[due]
            if not held:
                del self._slots[slot]

    def turn(self) -> None:
        """Fire what is due. Called by `run`; by tests with a clock of their own."""
        self.now = now = self._clock()
        upto = int(now / RESOLUTION)
        # After a long stop (a suspended machine) there may be more slots to pass than slots in use.
        passed = range(self._turned + 1, upto + 1)
        slots = passed if len(passed) <= len(self._slots) else sorted(s for s in self._slots if s <= upto)
        self._turned = upto
        for slot in slots:
            reached = self._slots.pop(slot, ())
            for due in reached:
                due._slot = NEVER  # all of them first: what one does may move or forget another
            for due in reached:
                if due.when <= now:
                    due.when = NEVER
                    due._fire()
                elif due.when != NEVER:
                    self.place(due)
        for call in self._each:
            call()

    async def run(self) -> None:
        """Turn the wheel for ever."""
        while True:
            await anyio.sleep(RESOLUTION)
            self.turn()
