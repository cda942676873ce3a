"""Where the workers of a machine tell each other what became of a breaker: a block of memory that they share.

Each breaker has a row, written under a lock of the whole block (a record lock, which the kernel takes from a process that
dies). A number that grows with each writing says whether there is anything to be read. One worker finds out for all of
them whether the upstream is well again: the one that claims that first.

What a breaker does with what it is told is the business of `gw_breaker.machine`.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from struct import Struct
from typing import Final, NamedTuple

from gw_breaker.limits import BOARD_ROWS, LOCK_TRIES
from gw_breaker.machine import State

__all__ = ["Board", "Busy", "Row"]

_COUNT: Final = Struct("=q")
_NAME: Final = 8
_REST: Final = Struct("=6q")
_ROW_SIZE: Final = 64
"""A digest of the breaker's name, the fields of a `Row`, and nothing."""
_SIZE: Final = _ROW_SIZE * (1 + BOARD_ROWS)
_NOBODY: Final = bytes(_NAME)
_STATES: Final = tuple(State)
_PAUSE: Final = 0.0001


class Busy(Exception):
    """The block cannot be had: another worker holds it and does not run, or there is no row left."""


class Row(NamedTuple):
    """What became of a breaker. Times are those of `time.monotonic_ns`, which all processes of a machine share."""

    number: int
    """Of the writing; 0 where nobody has written."""
    state: State
    until: int
    """When an open one lets somebody through; of a half-open one, when another worker may find out in place of *who*."""
    trips: int
    held: bool
    who: int


class Board:
    """The block. *find* gives its descriptor, which stays open; *who* tells one worker from another."""

    def __init__(self, find: Callable[[], int], who: int) -> None:
        self._find, self._who = find, who
        self._fd = -1
        self._memory: mmap.mmap | None = None

    def open(self) -> None:
        """Map the block, made if need be; raises `OSError`. May be called again."""
        if self._memory is None:
            self._fd = os.dup(self._find())
            os.ftruncate(self._fd, _SIZE)  # of zeros, whoever comes first
            self._memory = mmap.mmap(self._fd, _SIZE)

    @property
    def count(self) -> int:
        """The number of the last writing."""
        return 0 if self._memory is None else int(_COUNT.unpack_from(self._memory)[0])

    def read(self, name: str) -> Row:
        """Return what was last said of the breaker *name*; raises `Busy`."""
        with self._locked() as memory:
            return _row(memory, _place(memory, name))

    def write(self, name: str, state: State, until: int, trips: int, *, held: bool) -> int:
        """Say what became of it; return the number of this writing. Raises `Busy`."""
        with self._locked() as memory:
            return self._put(memory, _place(memory, name), state, until, trips, held)

    def claim(self, name: str, heard: int, until: int, trips: int) -> int:
        """Claim to find out whether the upstream is well again, until then; return the number of this writing.

        0, and nothing is written, if anybody has said anything after *heard*. Raises `Busy`.
        """
        with self._locked() as memory:
            place = _place(memory, name)
            if _row(memory, place).number > heard:
                return 0
            return self._put(memory, place, State.HALF_OPEN, until, trips, held=False)

    def _put(self, memory: mmap.mmap, place: int, state: State, until: int, trips: int, held: bool) -> int:
        number = self.count + 1
        _REST.pack_into(memory, place + _NAME, number, _STATES.index(state), until, trips, held, self._who)
        _COUNT.pack_into(memory, 0, number)
        return number

    @contextlib.contextmanager
    def _locked(self) -> Iterator[mmap.mmap]:
        if self._memory is None:
            raise Busy("it is not open")
        for _ in range(LOCK_TRIES):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            except OSError:
                time.sleep(_PAUSE)  # it is held for some 10 us
                continue
            break
        else:
            raise Busy("another worker holds it and does not run")
        try:
            yield self._memory
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, 0)

    def close(self) -> None:
        """Let go of the memory."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
            os.close(self._fd)

    def __del__(self) -> None:
        self.close()  # it goes with the breakers, when no configuration has any

    def __repr__(self) -> str:
        return f"<Board {self.count} said>"


def _place(memory: mmap.mmap, name: str) -> int:
    """Return where the row of *name* is, taken if need be; raises `Busy` if there is none left."""
    digest = blake2b(name.encode(), digest_size=_NAME).digest()
    first = int.from_bytes(digest, "little")
    for step in range(BOARD_ROWS):
        place = _ROW_SIZE * (1 + (first + step) % BOARD_ROWS)
        there = memory[place : place + _NAME]
        if there == digest:
            return place
        if there == _NOBODY:
            memory[place : place + _NAME] = digest
            return place
    raise Busy(f"it has {BOARD_ROWS} rows, and all are taken")


def _row(memory: mmap.mmap, place: int) -> Row:
    number, state, until, trips, held, who = _REST.unpack_from(memory, place + _NAME)
    return Row(number, _STATES[state], until, trips, bool(held), who)
