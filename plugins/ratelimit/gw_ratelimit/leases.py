"""Requests under way, counted by all workers of a gateway together. A count is the length of a lock, and nothing else.

A key has a range of bytes in a file, and each process a part of that range. As many requests as the process has under
way for the key, so many bytes of its part it has locked (fcntl), from the first one on. The files stay empty: their locks
are all there is, and the kernel has them. It takes them from a process that dies, however it dies. So nothing is left
behind that would have to be found, renewed or swept, no clock is asked, and neither a reload nor a table that grows has
anything to take along.

The locks of a file are a list, which the kernel walks through at every call; hence several files, and a bound.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from hashlib import blake2b
from struct import Struct
from typing import Final

from gw_ratelimit.limits import BREAKER_TIME, LEASE_FILES, LEASED, LEASED_KEYS, LEASING
from gw_ratelimit.stores import StoreAway, steady_ms
from gw_ratelimit.table import Busy, wait_for
from gw_ratelimit.zones import Zone

__all__ = ["Leases"]

_FLOCK: Final = Struct("hhqqi0q")
"""`struct flock`, as the machine has it: type, whence, start, length, pid."""
_HOLD: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
_RANGE: Final = (LEASING + 1) * LEASED
"""Bytes of a key. In place of a first part it has one byte that is held while it is decided about the key."""
_RANGES: Final = 1 << 36
"""Ranges of a file, after a first one whose bytes say who has which part, and are locked by him."""
_SECRET_AT: Final = LEASING
"""The byte that is held while the secret of digests is made, in the first file, which has no other contents."""


class Leases:
    """What this process has under way, and a view of what the others have. *find* gives the descriptor of each file.

    The descriptors are used as they are, and not duplicated: a process that closes any descriptor of a file loses its
    locks there. So is a second object for the same files in one process: it would count what the first has as its own.
    """

    __slots__ = ("_away_until", "_files", "_find", "_own", "_parts", "_pid", "_secret")

    def __init__(self, find: Callable[[int], int]) -> None:
        self._find: Callable[[int], int] | None = find
        self._files: list[int] = []
        self._secret = b""
        self._pid = 0
        self._own: dict[int, int] = {}
        self._parts: dict[int, int] = {}
        self._away_until = 0

    def open(self) -> None:
        """Find the files, if that is not done yet; raises `OSError`."""
        if self._find is not None:
            files = [self._find(number) for number in range(LEASE_FILES)]
            self._secret = _secret(files[0])
            self._files, self._find = files, None

    def place(self, zone: Zone, key: str) -> int:
        """Return where *key* of *zone* is counted. Two of 10,000 that are under way have the same place once in 20,000 times.

        Then they are counted as one. Nobody can choose them: the digest has a secret in it. Raises `StoreAway`.
        """
        try:
            self.open()
        except OSError as error:
            raise StoreAway(f"there is no memory to count requests in: {error.strerror}") from error
        name = f"{zone.place}\0{zone.identity}\0{key}".encode("utf-8", "surrogatepass")
        digest = blake2b(name, digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest, "little") % (LEASE_FILES * _RANGES)

    def enter(self, place: int, limit: int, *, counts: bool) -> bool:
        """Count one more at *place*; return whether fewer than *limit* were under way.

        Where they were not, it is not counted if that *counts*, which it does not in a dry run. Raises `StoreAway`, and
        nothing is counted.
        """
        if self._pid != os.getpid():  # a child inherits no locks
            self._pid, self._own, self._parts = os.getpid(), {}, {}
        own = self._own.get(place, 0)
        if own >= limit and counts:
            return False
        self._refuse_if_away()
        if own == LEASED or (not own and len(self._own) >= LEASED_KEYS):
            raise StoreAway("more requests are under way than workers count together")
        index, start = _at(place)
        file = self._files[index]
        try:
            self._hold(file, start)
            try:
                part = self._part(index)
                elsewhere = _elsewhere(file, start + LEASED, start + _RANGE, limit - own)
                if (fits := own + elsewhere < limit) or not counts:
                    fcntl.lockf(file, _HOLD, 1, start + part + own)
                    self._own[place] = own + 1
                return fits
            finally:
                fcntl.lockf(file, fcntl.LOCK_UN, 1, start)
        except OSError as error:
            raise StoreAway(f"requests under way cannot be counted: {error.strerror}") from error

    def leave(self, place: int) -> None:
        """Count one less at *place*, where this process has entered."""
        if self._pid != os.getpid():
            return
        own = self._own[place] - 1
        if own:
            self._own[place] = own
        else:
            del self._own[place]
        index, start = _at(place)
        fcntl.lockf(self._files[index], fcntl.LOCK_UN, 1, start + self._parts[index] + own)

    def _hold(self, file: int, at: int) -> None:
        try:
            fcntl.lockf(file, _HOLD, 1, at)
        except OSError:
            try:
                wait_for(file, at)
            except Busy as error:  # whoever holds it was stopped, and waiting stops us, too
                self._away_until = steady_ms() + int(BREAKER_TIME * 1000)
                raise StoreAway(str(error)) from error

    def _refuse_if_away(self) -> None:
        if not self._away_until:
            return
        if steady_ms() < self._away_until:
            raise StoreAway("a count was held by a process that does not run")
        self._away_until = 0

    def _part(self, index: int) -> int:
        """Return where in each range of a file our part begins. It is ours as long as this process lives."""
        part = self._parts.get(index)
        if part is None:
            part = self._parts[index] = LEASED * (1 + _first_free(self._files[index]))
        return part

    def __repr__(self) -> str:
        return f"<Leases, {sum(self._own.values())} for {len(self._own)} keys>"


def _at(place: int) -> tuple[int, int]:
    """Return the file of *place*, and where its range begins there."""
    return place % LEASE_FILES, (1 + place // LEASE_FILES) * _RANGE


def _first_free(file: int) -> int:
    for number in range(LEASING):
        try:
            fcntl.lockf(file, _HOLD, 1, number)
        except OSError:
            continue
        return number
    raise StoreAway(f"more than {LEASING} processes count requests together")


def _elsewhere(file: int, begin: int, end: int, most: int) -> int:
    """Return how many bytes from *begin* to *end* other processes have locked; *most*, or more, if there are that many."""
    found, unseen = 0, [(begin, end)]
    while unseen and found < most:
        begin, end = unseen.pop()
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, begin, end - begin, 0)
        kind, _, at, length, _ = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))
        if kind == fcntl.F_UNLCK:
            continue
        # Some lock there, not the first one: what lies on either side of it is asked about next.
        found += length
        if begin < at:
            unseen.append((begin, at))
        if at + length < end:
            unseen.append((at + length, end))
    return found


def _secret(file: int) -> bytes:
    """Return what digests of keys are made with, which whoever comes first writes down. Raises `OSError`."""
    fcntl.lockf(file, fcntl.LOCK_EX, 1, _SECRET_AT)
    try:
        secret = os.pread(file, 16, 0)
        if len(secret) < 16:
            secret = os.urandom(16)
            os.pwrite(file, secret, 0)
        return secret
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, _SECRET_AT)
