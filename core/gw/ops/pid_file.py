"""The pid file: the lock on it is the only proof of life (behaviour 2.3)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

from gw.limits import MAX_LOCK_TRIES, MAX_PID_FILE

__all__ = ["AlreadyRunning", "PidFile", "PidFileError", "running"]


class PidFileError(Exception):
    """The pid file cannot be used; the text says why and what to do."""


class AlreadyRunning(PidFileError):
    """Somebody holds the lock."""


class PidFile:
    """A pid file whose lock we hold. The lock is the descriptor's: a process that inherits it holds it too."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        self.is_ours = True
        """Whether it is removed when we end: not once another process has taken over."""

    @classmethod
    def take(cls, path: Path) -> PidFile:
        """Lock the file, made if need be, and write our pid into it. Raises `PidFileError`."""
        while True:
            descriptor = _open(path, os.O_RDWR | os.O_CREAT)
            if not _lock(descriptor):
                pid = _read(descriptor)
                os.close(descriptor)
                who = f"as pid {pid}" if pid else "and is just starting"
                raise AlreadyRunning(
                    f"gw is running already {who} (pid file {path}); stop it, or give this one its own file with -P"
                )
            if _is_at(path, descriptor):
                break
            os.close(descriptor)  # whoever had it before removed it in this instant
        held = cls(path, descriptor)
        held.write()
        return held

    def write(self) -> None:
        """Say that it is this process."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Remove the file, unless another process goes on with it, and let go of the lock. May be called again."""
        if self.descriptor < 0:
            return
        if self.is_ours and _is_at(self.path, self.descriptor):
            with contextlib.suppress(OSError):  # its directory may be gone; the lock is what counts
                self.path.unlink()
        os.close(self.descriptor)
        self.descriptor = -1


def running(path: Path) -> int | None:
    """Return the pid of the gateway that holds *path*, `None` if nobody does. Raises `PidFileError`."""
    try:
        descriptor = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = _read(descriptor)
        if pid is None:
            raise PidFileError(f"the pid file {path} is locked, but has no pid in it yet; try again") from None
        return pid
    finally:
        os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool:
    """Lock it for us alone, and tell whether nobody else holds it.

    Those who only ask hold it for an instant, in `running`, and together: while they do, it can be had as they have it.
    """
    for _ in range(MAX_LOCK_TRIES):
        if _locks(descriptor, fcntl.LOCK_EX):
            return True
        if not _locks(descriptor, fcntl.LOCK_SH):
            break
    return False


def _locks(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:
        if flags & os.O_CREAT:
            raise PidFileError(
                f"the pid file {path} cannot be made: there is no such directory; choose one with -P"
            ) from None
        raise
    except OSError as error:
        why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise PidFileError(f"the pid file {path} cannot be opened: {why}; choose another with -P") from error
    seen = os.fstat(descriptor)
    if not stat.S_ISREG(seen.st_mode) or seen.st_uid not in {os.geteuid(), 0}:
        os.close(descriptor)
        raise PidFileError(f"the pid file {path} is not a regular file of this user; choose another with -P")
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> int | None:
    text = os.pread(descriptor, MAX_PID_FILE, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() else None
