"""A wait with a deadline, for one of the many tasks around a connection whose own deadlines are its reader's."""

from __future__ import annotations

from gw.net.stream import Signal, Stream

__all__ = ["Wait"]


class Wait:
    """What one side of a stream waits with: an event and a deadline."""

    __slots__ = ("_event", "_is_late", "_stream", "due")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.due = stream.deadlines.due(self._late)
        self._event: Signal | None = None
        self._is_late = False

    async def in_time(self, seconds: float) -> bool:
        """Wait to be woken, for so long (0: for ever); tell whether that was in time."""
        self._is_late = False
        self._event = self._stream.signal()
        self.due.after(seconds)
        try:
            await self._event.wait()
        finally:
            self._event = None
            self.due.off()
        return not self._is_late

    def wake(self) -> None:
        if self._event is not None:
            self._event.set()

    def _late(self) -> None:
        self._is_late = True
        self.wake()
