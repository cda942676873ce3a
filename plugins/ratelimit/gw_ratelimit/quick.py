"""The case that most sections are, as one function: a token bucket and a table, and no request that costs more than another.

It admits, and nothing else. What it does not admit is decided once more by `gw_ratelimit.stores`, which finds the same and
has the rest to say. Nothing is called here that can be written out: a call costs as much as the arithmetic.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from struct import Struct
from typing import Final, TypeAlias

from gw_ratelimit.algorithms import TOKEN, Left, TokenBucket
from gw_ratelimit.limits import MAX_KEY
from gw_ratelimit.table import LOCKS_AT, NAMES_SIZE, SET_SIZE, Table
from gw_ratelimit.zones import Zone

__all__ = ["Admit", "private", "shared"]

Admit: TypeAlias = Callable[[str], Left | None]
"""Charges a key and returns what is left; `None`, and nothing is charged, where the tokens are not there."""

_NAME: Final = Struct("<q")
_LEVEL: Final = Struct("=2q")
_STATE: Final = Struct("=4q")


def private(zone: Zone, bucket: TokenBucket, cost: int) -> Admit:
    """Return what admits the keys of *zone* by the table of this process."""
    size, refill = bucket.numbers
    token, asked, names = TOKEN, cost * TOKEN, NAMES_SIZE
    name_of, level_of, write = _NAME.pack, _LEVEL.unpack_from, _STATE.pack_into
    clock = time.monotonic_ns

    def admit(key: str) -> Left | None:
        table = zone.local.table  # another one after a reload
        buffer = table.buffer
        name = name_of(hashed := hash(key) or 1)
        start = hashed % table.sets * SET_SIZE
        now = clock() // 1_000_000
        at = buffer.find(name, start, start + names)
        if at < 0:
            return _first(table, name, size, refill, asked, now)
        if (at - start) & 7:
            return None
        place = start + names + ((at - start) << 2)
        last, level = level_of(buffer, place)
        if now > last:
            level += refill * (now - last)
        if level > size:  # noqa: PLR1730  # min() would be a call
            level = size
        level -= asked
        if level < 0:
            return None
        write(buffer, place, now, level, 0, now - (level - size) // refill)
        return now, level, 0, now, level // token

    return admit


def shared(zone: Zone, bucket: TokenBucket, cost: int) -> Admit:
    """Return what admits the keys of *zone* by the table of all workers. Whom another worker holds up, it does not admit."""
    size, refill = bucket.numbers
    token, asked, names = TOKEN, cost * TOKEN, NAMES_SIZE
    level_of, write = _LEVEL.unpack_from, _STATE.pack_into
    clock, lock = time.monotonic_ns, fcntl.lockf
    hold, release = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN

    def admit(key: str) -> Left | None:
        cells = zone.shared or zone.share()
        table = cells.table
        buffer, fd = table.buffer, table.fd
        name = cells.known(key) if len(key) <= MAX_KEY else cells.digest(key)
        number = table.set_of(name)
        start = LOCKS_AT + number * SET_SIZE
        try:
            lock(fd, hold, 1, LOCKS_AT + number)
        except OSError:
            return None
        try:
            now = clock() // 1_000_000
            at = buffer.find(name, start, start + names)
            if at < 0:
                return _first(table, name, size, refill, asked, now)
            if (at - start) & 7:
                return None
            place = start + names + ((at - start) << 2)
            last, level = level_of(buffer, place)
            if now > last:
                level += refill * (now - last)
            if level > size:  # noqa: PLR1730  # min() would be a call
                level = size
            level -= asked
            if level < 0:
                return None
            write(buffer, place, now, level, 0, now - (level - size) // refill)
            return now, level, 0, now, level // token
        finally:
            lock(fd, release, 1, LOCKS_AT + number)

    return admit


def _first(table: Table, name: bytes, size: int, refill: int, asked: int, now: int) -> Left | None:
    """Admit a key that is not there: its bucket is full."""
    level = size - asked
    if level < 0:
        return None
    table.add(table.set_of(name), name, now, level, 0, now - (level - size) // refill)
    return now, level, 0, now, level // TOKEN
