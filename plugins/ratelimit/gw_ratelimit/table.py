"""A bounded table of states, in memory of one process or of all workers. What a state means is not its business.

It is one block of memory: sets of `WAYS` places, and the digest of a key says in which set it may stand. A state says
until when it means anything, so nothing is swept: a place whose time has come is free. Where all places of a set are
taken, **the key that will be forgotten soonest makes room**. That is the one that owes least, and that is the admission
rule: whoever sends endless keys, each once, replaces his own, and not the ones that were used up.

Of a table that workers share, one set is locked while it is looked at and written. The lock is a record lock of the
file (fcntl), which the kernel takes from a process that dies; what a killed writer leaves behind is either state or
the other, or a mixture that counts for less than either, and heals with time.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Final

from gw_ratelimit.limits import LOCK_TRIES, SAMPLED_SETS, WAYS

__all__ = ["LOCKS_AT", "NAMES_SIZE", "SET_SIZE", "Busy", "SharedTable", "Table", "TableError", "wait_for"]

_STATE: Final = Struct("=4q")
NAMES_SIZE: Final = WAYS * 8
"""Bytes of a set's digests, which stand before its states."""
SET_SIZE: Final = NAMES_SIZE + WAYS * _STATE.size
_HEADER: Final = Struct("=8sqq16s")
LOCKS_AT: Final = 4096
"""Bytes of a shared file before the first set, and the place of the lock of set 0; that of the next one is the next byte."""
_MAGIC: Final = b"gw-rl\x00\x00\x01"
_EMPTY: Final = bytes(8)
_NO_NAMES: Final = bytes(NAMES_SIZE)
_PAUSE: Final = 0.0001
"""Seconds between two tries to lock a set, which is held for some 5 us."""


class TableError(ValueError):
    """A shared table cannot be used."""


class Busy(Exception):
    """Another process holds the set, and has not let go of it in time."""


class Table:
    """Places for *keys* keys: twice as many as that, so that a set seldom is full."""

    __slots__ = ("_numbers", "_start", "buffer", "fd", "secret", "sets", "taken")

    def __init__(self, buffer: mmap.mmap, sets: int, *, fd: int = -1, secret: bytes = b"") -> None:
        self.buffer, self.sets, self.fd, self.secret = buffer, sets, fd, secret
        self._start = 0 if fd < 0 else LOCKS_AT
        self._numbers = memoryview(buffer)[self._start :].cast("q")
        self.taken = 0
        """Places that this object has put a key on for the first time."""

    @classmethod
    def private(cls, keys: int) -> Table:
        """Make one for this process alone. Pages that are never touched take no memory."""
        sets = _sets(keys)
        return cls(mmap.mmap(-1, sets * SET_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), sets)

    @classmethod
    def open(cls, path: str, keys: int) -> Table:
        """Open the shared table that is the file *path*, or make it; raise `TableError` if that cannot be done.

        The file is ours alone (mode 0600). Whoever comes first makes it; one with another size is refused.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TableError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            _check_owner(fd, path)
            return cls._over(fd, keys, path)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, keys: int, before: Table | None = None) -> Table:
        """Use the file behind *fd*, such as a memfd that the workers inherited. It is duplicated, and stays open.

        Whoever makes the table takes into it what is in the one *before*, which is shared, too.
        """
        try:
            own = os.dup(fd)
        except OSError as error:
            raise TableError(f"descriptor {fd} is not open: {error.strerror}") from error
        try:
            return cls._over(own, keys, f"descriptor {fd}", before)
        except BaseException:
            os.close(own)
            raise

    @classmethod
    def _over(cls, fd: int, keys: int, name: str, before: Table | None = None) -> Table:
        sets = _sets(keys)
        size = LOCKS_AT + sets * SET_SIZE
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
        try:
            there = os.fstat(fd).st_size
            header = os.pread(fd, _HEADER.size, 0)
            if there == 0 or (there == size and header == bytes(_HEADER.size)):
                # The header comes last: a process that dies before that leaves a file that is still empty or unmarked.
                os.ftruncate(fd, 0)
                os.ftruncate(fd, size)
                secret = os.urandom(16) if before is None else before.secret  # what digests of keys are made with
                made = cls(mmap.mmap(fd, size), sets, fd=fd, secret=secret)
                if before is not None:
                    before.copy_to(made)
                os.pwrite(fd, _HEADER.pack(_MAGIC, sets, WAYS, secret), 0)
                return made
            magic, *shape, secret = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
            if magic != _MAGIC:
                raise TableError(f"{name} is no table of this version of gw; remove it, or name another")
            if shape != [sets, WAYS] or os.fstat(fd).st_size != size:
                raise TableError(f"{name} was made with another max_entries; stop who uses it and remove it")
            return cls(mmap.mmap(fd, size), sets, fd=fd, secret=secret)
        finally:
            fcntl.lockf(fd, fcntl.LOCK_UN, 1, 0)

    @property
    def is_shared(self) -> bool:
        return self.fd >= 0

    def set_of(self, name: bytes) -> int:
        """Return the number of the set in which the key with the digest *name*, of 8 bytes, may stand."""
        return int.from_bytes(name, "little", signed=True) % self.sets

    def find(self, number: int, name: bytes) -> int:
        """Return the place of *name* in the set *number*, -1 if it is not there."""
        start = self._start + number * SET_SIZE
        at = self.buffer.find(name, start, start + NAMES_SIZE)
        if at < 0:
            return -1
        if (at - start) & 7:  # eight bytes across two digests that look like it: once in 2^57
            numbers = range(start, start + NAMES_SIZE, 8)
            at = next((each for each in numbers if self.buffer[each : each + 8] == name), -1)
            if at < 0:
                return -1
        return start + NAMES_SIZE + ((at - start) << 2)

    def read(self, place: int) -> tuple[int, int, int, int]:
        """Return the state and until when it means anything."""
        return _STATE.unpack_from(self.buffer, place)

    def write(self, place: int, at: int, a: int, b: int, until: int) -> None:
        _STATE.pack_into(self.buffer, place, at, a, b, until)

    def add(self, number: int, name: bytes, at: int, a: int, b: int, until: int) -> None:
        """Put *name* into the set *number*, where it is not: on a free place, else on that of the key to be forgotten soonest."""
        start = self._start + number * SET_SIZE
        first = ((number * SET_SIZE + NAMES_SIZE) >> 3) + 3
        untils = self._numbers[first : first + 4 * WAYS : 4].tolist()
        soonest = min(untils)
        way = untils.index(soonest)
        if soonest == 0:
            self.taken += 1
        name_at, place = start + 8 * way, start + NAMES_SIZE + (way << 5)
        # Without a name while the state changes: a writer that is killed in between leaves a place that nobody finds.
        self.buffer[name_at : name_at + 8] = _EMPTY
        _STATE.pack_into(self.buffer, place, at, a, b, until)
        self.buffer[name_at : name_at + 8] = name

    @contextlib.contextmanager
    def locked(self, numbers: Sequence[int]) -> Iterator[None]:
        """Hold the sets *numbers*, without repetition and in order, so that nobody waits in a circle. Raises `Busy`."""
        held = 0
        try:
            for number in numbers:
                self.lock(number)
                held += 1
            yield
        finally:
            for number in numbers[:held]:
                self.unlock(number)

    def lock(self, number: int) -> None:
        """Hold one set until `unlock`, or until this process is no more. Raises `Busy` after `LOCK_TRIES`."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, LOCKS_AT + number)
        except OSError:
            wait_for(self.fd, LOCKS_AT + number)

    def unlock(self, number: int) -> None:
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, LOCKS_AT + number)

    def copy_to(self, other: Table) -> None:
        """Put every key into *other*, which nobody else uses yet: for one that is to be larger or smaller."""
        for number in range(self.sets):
            start = self._start + number * SET_SIZE
            if self.buffer[start : start + NAMES_SIZE] == _NO_NAMES:
                continue
            for way in range(WAYS):
                name = self.buffer[start + 8 * way : start + 8 * way + 8]
                if name != _EMPTY:
                    other.add(other.set_of(name), name, *self.read(start + NAMES_SIZE + (way << 5)))

    def held(self, now: int) -> int:
        """Return how many keys it holds that still mean something at *now*; from a sample where it is large."""
        step = max(1, self.sets // SAMPLED_SETS)
        looked = found = 0
        for number in range(0, self.sets, step):
            first = ((number * SET_SIZE + NAMES_SIZE) >> 3) + 3
            looked += 1
            found += sum(until > now for until in self._numbers[first : first + 4 * WAYS : 4].tolist())
        return found * self.sets // looked

    def close(self) -> None:
        """Let go of the memory and the file."""
        self._numbers.release()
        self.buffer.close()
        self._leave_file()

    def __del__(self) -> None:
        self._leave_file()  # state that a reload has left behind is dropped, not closed

    def _leave_file(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        return f"<Table {'shared' if self.is_shared else 'private'}, {self.sets} sets of {WAYS}>"


class SharedTable:
    """A shared table that is opened when it is needed: the file *path*, or what is behind the descriptor that *fd* gives."""

    __slots__ = ("__weakref__", "_before", "_fd", "_keys", "_path", "_table")

    def __init__(self, path: str, fd: Callable[[], int] | None, keys: int, before: SharedTable | None = None) -> None:
        self._path, self._fd, self._keys, self._before = path, fd, keys, before
        self._table: Table | None = None

    def open(self) -> Table:
        """Return the table, opened if it is not yet; raises `TableError` and `OSError`."""
        if self._table is None:
            if self._fd is not None:
                before = None if self._before is None else self._before.open()
                self._table = Table.attach(self._fd(), self._keys, before)
            else:
                self._table = Table.open(self._path, self._keys)
            self._fd = self._before = None
        return self._table


def wait_for(fd: int, at: int) -> None:
    """Lock the byte *at* of a file, which another process holds. Raises `Busy` after `LOCK_TRIES`."""
    # Not F_SETLKW: it has no end where the holder was stopped. Tries are counted, and not the time: on a machine
    # that is busy it is we who do not run.
    for _ in range(LOCK_TRIES):
        time.sleep(_PAUSE)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
        except OSError:
            continue
        return
    raise Busy("what is shared is held by a process that does not run")


def _sets(keys: int) -> int:
    return max(1, -(-2 * keys // WAYS))


def _check_owner(fd: int, path: str) -> None:
    seen = os.fstat(fd)
    if not stat.S_ISREG(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
        raise TableError(f"{path} is not a file of this user's alone; remove it, or name another")
