"""How long a WebSocket may be quiet: the idle timeout, and pings for a side that says nothing (behaviour 8.2).

Used by both that carry one, `gw.tunnel` and `gw.websocket`; what a ping looks like, and how it ends, is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol as Interface

from gw.net.deadlines import NEVER, Deadlines

__all__ = ["Heard", "Silence"]


class Heard(Interface):
    """One side, as far as it is listened to."""

    heard: float
    """When it last sent anything."""

    @property
    def is_read(self) -> bool:
        """Whether its silence is its own: a side that is not read cannot be heard."""

    def ask(self) -> None:
        """Send it a ping."""


_NEVER_ASKED: Final = -NEVER


class Silence:
    """Looks after one WebSocket, from `look` until `forget`. Seconds; 0 is no bound.

    *on_idle* is called when nothing was said for *idle*, *on_gone* with a side that sent nothing for *timeout* after
    the ping that it got for *interval* of silence. Either is the last call.
    """

    __slots__ = ("_asked", "_deadlines", "_due", "_idle", "_interval", "_on_gone", "_on_idle", "_timeout", "moved")

    def __init__(
        self,
        deadlines: Deadlines,
        sides: Iterable[Heard],
        *,
        idle: float,
        interval: float,
        timeout: float,
        on_idle: Callable[[], None],
        on_gone: Callable[[Any], None],
    ) -> None:
        self._deadlines, self._idle, self._interval, self._timeout = deadlines, idle, interval, timeout
        self._on_idle, self._on_gone = on_idle, on_gone
        self._asked = dict.fromkeys(sides, _NEVER_ASKED)
        """When each side was last sent a ping."""
        self._due = deadlines.due(self.look)
        self.moved = deadlines.now
        """When a frame, other than our pings and their answers, last passed."""

    def look(self) -> None:
        """See how long it has been quiet, send pings, and set when to look next."""
        now, nearest = self._deadlines.now, NEVER
        if self._idle:
            nearest = self.moved + self._idle - now
            if nearest <= 0:
                self._on_idle()
                return
        if self._interval:
            for side, asked in self._asked.items():
                if not side.is_read:
                    side.heard = now
                waits = asked > side.heard
                left = (asked + self._timeout if waits else side.heard + self._interval) - now
                if left <= 0 and waits:
                    self._on_gone(side)
                    return
                if left <= 0:
                    self._asked[side] = now
                    side.ask()
                    left = self._timeout
                nearest = min(nearest, left)
        if nearest != NEVER:
            self._due.after(nearest)

    def off(self) -> None:
        """Look no more: it is being closed."""
        self._due.off()

    def forget(self) -> None:
        """Look no more, and hold nothing of it: else all of it would wait for the garbage collector."""
        self._due.forget()
        self._asked.clear()
        self._on_idle = self._on_gone = _nothing


def _nothing(*_: object) -> None:
    """Stand in for what was forgotten."""
