"""Where log lines go: a thread that writes them, and the files it writes to (behaviour 20).

What a line says is the business of `gw.logs.access_log` and `gw.logs.application_log`. What
lives here never makes its caller wait: lines that a slow disk cannot take are
lost, counted, and the count is written when it recovers.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import re
import select
import stat
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol as Interface

from gw.limits import LOG_CLOSE_TIME, MAX_LOG_BACKLOG

__all__ = ["DatedFiles", "LineSink", "LogFileError", "PlainFile", "StandardStream"]

log = logging.getLogger("gw.log")

_NEWLINE: Final = ord("\n")
_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o755


class LogFileError(Exception):
    """A log file cannot be opened."""


class _Place(Interface):
    """What a sink writes to. Its methods raise `OSError`."""

    def open(self) -> int:
        """Return a descriptor to append to."""

    def is_current(self, descriptor: int) -> bool:
        """Tell whether *descriptor* is still the one to write to; asked before each write."""

    def release(self, descriptor: int) -> None:
        """Give *descriptor* back."""


@dataclass(frozen=True, slots=True)
class StandardStream:
    """Standard output (1) or error (2): not ours to close or rotate."""

    descriptor: int

    def open(self) -> int:
        return self.descriptor

    def is_current(self, descriptor: int) -> bool:
        return True

    def release(self, descriptor: int) -> None:
        pass

    def __str__(self) -> str:
        return {1: "standard output", 2: "standard error"}.get(self.descriptor, f"descriptor {self.descriptor}")


class PlainFile:
    """One file of exactly that name, its directory made if need be. Moved away or removed, it is made anew."""

    __slots__ = ("path",)

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> int:
        self.path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        # Appending is atomic between processes: workers may share a file.
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)

    def is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def release(self, descriptor: int) -> None:
        os.close(descriptor)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True, order=True)
class _Dated:
    """A file of ours, ordered by age."""

    date: str
    number: int
    path: Path
    size: int


class DatedFiles:
    """``<base>-YYYY-MM-DD[-N]<ext>`` beside *path*: a new one each day, and after *max_size* bytes (0: whatever its size).

    At most *max_files* are kept: beyond that the empty ones go first, then the
    oldest, never the one being written. No other file is touched. Days are
    local ones, as the times in the text format are. Sizes are looked at before a
    write, so a file may be one write larger.
    """

    __slots__ = ("_clock", "_date", "_file", "_max_files", "_max_size", "_name", "path")

    def __init__(self, path: Path, max_size: int, max_files: int, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._max_size = max_size or sys.maxsize
        self._max_files = max_files
        self._clock = clock
        self._name = re.compile(
            rf"{re.escape(path.stem)}-([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})(?:-([1-9][0-9]{{0,8}}))?{re.escape(path.suffix)}"
        ).fullmatch
        self._date = ""
        self._file = PlainFile(path)

    def open(self) -> int:
        self.path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        today = self._today()
        files = self._files()
        # A restart, or another worker, goes on where the last one stopped.
        last = max((each for each in files if each.date == today), default=None)
        number = 0 if last is None else last.number if last.size < self._max_size else last.number + 1
        file = PlainFile(
            self.path.with_name(f"{self.path.stem}-{today}{f'-{number}' if number else ''}{self.path.suffix}")
        )
        descriptor = file.open()
        self._date, self._file = today, file
        self._prune()
        return descriptor

    def is_current(self, descriptor: int) -> bool:
        return (
            self._date == self._today()
            and os.fstat(descriptor).st_size < self._max_size
            and self._file.is_current(descriptor)
        )

    def release(self, descriptor: int) -> None:
        os.close(descriptor)

    def __str__(self) -> str:
        return str(self._file)

    def _today(self) -> str:
        return time.strftime("%Y-%m-%d", time.localtime(self._clock()))

    def _files(self) -> list[_Dated]:
        found = []
        with os.scandir(self.path.parent) as entries:
            for entry in entries:
                match = self._name(entry.name)
                if match is None or not _is_date(match[1]):
                    continue
                with contextlib.suppress(FileNotFoundError):  # another worker's pruning
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        found.append(_Dated(match[1], int(match[2] or 0), Path(entry.path), status.st_size))
        return found

    def _prune(self) -> None:
        files = self._files()
        others = [each for each in files if each.path != self._file.path]
        others.sort(key=lambda each: (each.size > 0, each))
        for each in others[: max(0, len(files) - self._max_files)]:
            with contextlib.suppress(OSError):  # what cannot be removed today is tried again at the next rotation
                each.path.unlink()


def _is_date(text: str) -> bool:
    try:
        dt.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _plain_notice(lost: int) -> bytes:
    return b"%d log lines were lost here: they came faster than they could be written\n" % lost


class LineSink:
    """Takes lines from any thread and has one thread of its own write them.

    *file* is a path, or empty for the standard stream *descriptor*; with
    *max_files* above 1 it is the pattern of `DatedFiles`. Made after a fork,
    not before: threads stay behind. Raises `LogFileError` if the file cannot be
    opened; later on a file that cannot be reopened leaves the old one in use.
    """

    def __init__(
        self,
        file: str = "",
        *,
        max_file_size: int = 0,
        max_files: int = 1,
        descriptor: int = 1,
        backlog: int = MAX_LOG_BACKLOG,
    ) -> None:
        self._place: _Place
        if not file:
            self._place = StandardStream(descriptor)
        elif max_files == 1:
            self._place = PlainFile(Path(file))
        else:
            self._place = DatedFiles(Path(file), max_file_size, max_files)
        try:
            self._descriptor = self._place.open()
        except OSError as error:
            raise LogFileError(
                f"cannot write the log file {file}: {error.strerror}; check the path and the rights on its directory"
            ) from error
        self.notice: Callable[[int], bytes] = _plain_notice
        """Makes the line that says how many were lost; whoever formats the other lines may set it."""
        self.lost = 0
        """Lines lost since the start."""
        self._backlog = backlog
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._size = 0  # of what waits and of what is being written
        self._unreported = 0
        self._busy = False
        self._reopens = False
        self._closed = False
        # The thread's own:
        self._troubled = False
        self._torn = False
        self._thread = threading.Thread(target=self._run, name="gw-log", daemon=True)
        self._thread.start()

    def write(self, lines: bytes) -> None:
        """Have *lines*, each with its newline, written some time; or lost, if too much waits. Never waits itself."""
        with self._changed:
            if self._closed or self._size + len(lines) > self._backlog:
                count = lines.count(b"\n")
                self.lost += count
                self._unreported += 0 if self._closed else count
                return
            self._waiting.append(lines)
            self._size += len(lines)
            self._changed.notify_all()

    def reopen(self) -> None:
        """Have the file opened anew, after somebody moved it (logrotate). Lines on their way are not lost."""
        with self._changed:
            self._reopens = True
            self._changed.notify_all()

    def wait_written(self, timeout: float) -> bool:
        """Wait until nothing waits, at most *timeout* seconds; tell whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._busy or self._waiting or self._reopens), timeout)

    def close(self, timeout: float = LOG_CLOSE_TIME) -> bool:
        """Write what waits and end, within *timeout* seconds; tell whether all was written. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive() and not self._unreported

    def __repr__(self) -> str:
        return f"<LineSink {self._place}: {self._size} bytes waiting, {self.lost} lines lost>"

    # --- the thread ------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(self._has_work)
                if self._closed and not (self._waiting or self._unreported):
                    break
                self._busy = True
                batch, self._waiting = self._waiting, []
                lost, self._unreported = self._unreported, 0
                reopens, self._reopens = self._reopens, False
                last = self._closed
            lines = b"".join(batch)
            lost_again = self._work(lines, lost, reopens=reopens)
            with self._changed:
                self._size -= len(lines)
                self._unreported += lost_again
                self.lost += max(0, lost_again - lost)
            if last:
                break
        self._place.release(self._descriptor)

    def _has_work(self) -> bool:
        # While the disk is in trouble a count alone is no reason to try: that would spin.
        return bool(self._waiting or self._reopens or self._closed or (self._unreported and not self._troubled))

    def _work(self, lines: bytes, lost: int, *, reopens: bool) -> int:
        """Write *lines* and then, since they came later, how many were *lost*. Return how many are lost unreported."""
        trouble = self._follow(reopens=reopens)
        written, failure = self._write_all(lines)
        if failure is not None:
            trouble, lost = failure, lost + lines.count(b"\n", written)
        elif lost:
            _, failure = self._write_all(self.notice(lost))
            trouble, lost = (failure, lost) if failure else (trouble, 0)
        if trouble is None:
            self._troubled = False
        elif not self._troubled:  # once, not for every line
            self._troubled = True
            log.error("cannot write to %s: %s; until that is mended, lines may be lost", self._place, trouble.strerror)
        return lost

    def _follow(self, *, reopens: bool) -> OSError | None:
        """Move to the file that is to be written to now, if it is another one."""
        try:
            if not reopens and self._place.is_current(self._descriptor):
                return None
            descriptor = self._place.open()
        except OSError as error:
            return error
        if descriptor != self._descriptor:
            self._place.release(self._descriptor)
            self._descriptor, self._torn = descriptor, False
        return None

    def _write_all(self, lines: bytes) -> tuple[int, OSError | None]:
        """Return how many bytes of *lines* were written, and what stopped it."""
        left = memoryview(lines)
        try:
            if self._torn and left:
                os.write(self._descriptor, b"\n")
                self._torn = False
            while left:
                left = left[self._write_some(left) :]
        except OSError as error:
            written = len(lines) - len(left)
            self._torn = self._torn or (written > 0 and lines[written - 1] != _NEWLINE)
            return written, error
        return len(lines), None

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # a standard stream that somebody made non-blocking
            select.select((), (self._descriptor,), ())
            return 0
