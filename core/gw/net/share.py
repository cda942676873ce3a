"""Fair shares of connections: processes that accept on one socket, and see in shared memory how many each has.

Left to themselves, whoever is woken first takes all that wait. Measured with two workers and 64 keep-alive
connections that came at once: 47 and 17, 65 and none. Here whoever has more than the others lets them go first, for
TURN_PAUSE at most, so that a process that hangs keeps nobody waiting.
"""

from __future__ import annotations

import mmap
import os

from gw.limits import MAX_WORKERS

__all__ = ["Share"]

_SIZE = 8 * MAX_WORKERS


class Share:
    """The connections of process *number*, and of the others. A process that does not serve has -1."""

    def __init__(self, memory: int, number: int) -> None:
        """*memory* is the descriptor of a file that all of them share, empty at first; *number* begins at 1."""
        if os.fstat(memory).st_size < _SIZE:
            os.ftruncate(memory, _SIZE)
        self._map = mmap.mmap(memory, _SIZE)
        self._counts = memoryview(self._map).cast("q")
        self._at = number - 1

    def begin(self) -> None:
        """Serve from now on, with none yet."""
        self._counts[self._at] = 0

    def end(self, number: int | None = None) -> None:
        """Serve no more, this process or *number*: nobody lets it go first."""
        self._counts[self._at if number is None else number - 1] = -1

    @property
    def is_ours(self) -> bool:
        """Whether the next connection is for this process: it has no more than the others, give or take a few."""
        mine = self._counts[self._at]
        return mine <= min((count for count in self._counts if count >= 0), default=mine) + (mine >> 4)

    def add(self, count: int) -> None:
        """Have *count* more."""
        self._counts[self._at] += count

    def close(self) -> None:
        self._counts.release()
        self._map.close()
