"""The application log: what the logger ``gw`` and those below it say, as text or JSON (behaviour 20).

Only that logger is touched, never the root: gw may run inside a program that
has a log of its own. Where lines go is `gw.logs.log_files`; the access log is no
part of this.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from gw.logs.log_files import LineSink

__all__ = ["LEVELS", "TRACE", "ApplicationLog", "configure", "settings"]

TRACE: Final = 5
"""More than debug: single events of a connection."""

LEVELS: Final = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
"""What `log.level` may be. The names stay ours: `logging.addLevelName` would change those of the whole program."""

_WORDS: Final = {number: word for word, number in LEVELS.items()}
_COLOURS: Final = {
    "trace": "\x1b[90m",
    "debug": "\x1b[36m",
    "info": "\x1b[32m",
    "warn": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[1;31m",
}
_PLAIN: Final = "\x1b[0m"
_NO_LEVELS: Final[Mapping[str, str]] = MappingProxyType({})


# --- lines -----------------------------------------------------------------------


class _TextFormatter(logging.Formatter):
    """``[2026-07-29 14:05:06.123+02:00] [gw.chain] [error] message``, a traceback indented under it.

    Local time, which the people beside the machine read, with the offset that the reference lacks.
    """

    def __init__(self, *, coloured: bool = False) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        word = _word(record)
        if self._coloured:
            word = f"{_COLOURS.get(word, '')}{word}{_PLAIN}"
        line = f"[{_local_time(record.created)}] [{_visible(record.name)}] [{word}] {_visible(record.getMessage())}"
        details = _details(self, record)
        return "\n    ".join([line, *map(_visible, details.splitlines())]) if details else line


class _JsonFormatter(logging.Formatter):
    """One object a line: time in UTC, level, logger, message, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        members = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{_milliseconds(record.created)}Z",
            "level": _word(record),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if details := _details(self, record):
            members["traceback"] = details
        return json.dumps(members)


def _word(record: logging.LogRecord) -> str:
    return _WORDS.get(record.levelno) or record.levelname.lower()


def _details(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Return the traceback and the stack of *record*, or nothing."""
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    elif record.exc_text:  # a record that was pickled
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _milliseconds(at: float) -> str:
    return f"{int(at * 1000) % 1000:03d}"


def _local_time(at: float) -> str:
    local = time.localtime(at)
    minutes = local.tm_gmtoff // 60
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', local)}.{_milliseconds(at)}{sign}{hours:02d}:{rest:02d}"


def _visible(text: str) -> str:
    r"""Escape what would end a line or steer a terminal: ``\x1b``, ``\n``, and U+202E, which turns text around."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


# --- where they go -----------------------------------------------------------------


class _SinkHandler(logging.Handler):
    """Hands records, formatted, to a `LineSink`: the caller never waits for a disk or a terminal."""

    def __init__(self, sink: LineSink, formatter: logging.Formatter, *, is_file: bool) -> None:
        super().__init__()
        self.sink, self.is_file = sink, is_file
        self.setFormatter(formatter)
        sink.notice = self._lost

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.sink.write(self._line(record))
        except Exception:  # noqa: BLE001 - a message that does not format must not take down who logs it
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode()

    def _lost(self, count: int) -> bytes:
        said: dict[str, Any] = {
            "name": "gw.log",
            "levelno": logging.WARNING,
            "msg": "%d lines were lost: they came faster than they could be written",
            "args": (count,),
        }
        return self._line(logging.makeLogRecord(said))


class ApplicationLog:
    """What `configure` set up, until `close` undoes it."""

    __slots__ = ("_before", "_handlers", "_logger", "_own_levels", "_places")

    def __init__(self) -> None:
        self._logger = logging.getLogger("gw")
        self._before: tuple[int, bool] | None = (self._logger.level, self._logger.propagate)
        self._handlers: list[_SinkHandler] = []
        self._places: tuple[str, str, int, int, bool] | None = None
        self._own_levels: tuple[str, ...] = ()

    def change(
        self,
        level: str,
        *,
        file: str = "",
        format: str = "text",  # noqa: A002 - the configuration's word for it
        max_file_size: int = 10_485_760,
        max_files: int = 3,
        levels: Mapping[str, str] = _NO_LEVELS,
        console: bool = True,
    ) -> None:
        """Go on with other settings. Raises `LogFileError`, and leaves all as it was, if the file cannot be opened."""
        places = (file, format, max_file_size, max_files, console)
        if places != self._places:
            self._open(places)
        self.set_level(level)
        for name in self._own_levels:
            logging.getLogger(f"gw.{name}").setLevel(logging.NOTSET)
        for name, own in levels.items():
            logging.getLogger(f"gw.{name}").setLevel(LEVELS[own])
        self._own_levels = tuple(levels)
        self._logger.propagate = False  # the program around us would write each line a second time

    def set_level(self, level: str) -> None:
        """Write from *level* on, until `change` says otherwise."""
        self._logger.setLevel(LEVELS[level])

    def _open(self, places: tuple[str, str, int, int, bool]) -> None:
        file, form, max_file_size, max_files, console = places
        handlers = []
        if file:
            sink = LineSink(file, max_file_size=max_file_size, max_files=max_files)
            handlers.append(_SinkHandler(sink, _JsonFormatter() if form == "json" else _TextFormatter(), is_file=True))
        if console:
            coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
            formatter = _JsonFormatter() if form == "json" else _TextFormatter(coloured=coloured)
            handlers.append(_SinkHandler(LineSink(descriptor=2), formatter, is_file=False))
        for handler in handlers:
            self._logger.addHandler(handler)
        self._drop(self._handlers)
        self._handlers, self._places = handlers, places

    def mark(self, text: str) -> None:
        """Write a line that is easy to find into the file, whatever the level (behaviour 2.5)."""
        record = logging.makeLogRecord(
            {"name": "gw", "levelno": logging.INFO, "msg": "======== %s ========", "args": (text,)}
        )
        for handler in self._handlers:
            if handler.is_file:
                handler.emit(record)

    def reopen(self) -> None:
        """Open the file anew, after somebody moved it; one that cannot be opened leaves the old one in use."""
        for handler in self._handlers:
            handler.sink.reopen()

    def close(self) -> None:
        """Write what waits, and leave the logger as it was found. May be called again."""
        if self._before is not None:
            level, self._logger.propagate = self._before
            self._logger.setLevel(level)
            self._before = None
        for name in self._own_levels:
            logging.getLogger(f"gw.{name}").setLevel(logging.NOTSET)
        self._own_levels, self._places = (), None
        self._drop(self._handlers)
        self._handlers = []

    @property
    def lost(self) -> int:
        """Lines lost to a disk or terminal too slow."""
        return sum(handler.sink.lost for handler in self._handlers)

    def _drop(self, handlers: list[_SinkHandler]) -> None:
        for handler in handlers:
            self._logger.removeHandler(handler)
            handler.sink.close()
            handler.close()


def configure(
    level: str = "info",
    *,
    file: str = "",
    format: str = "text",  # noqa: A002 - the configuration's word for it
    max_file_size: int = 10_485_760,
    max_files: int = 3,
    levels: Mapping[str, str] = _NO_LEVELS,
    console: bool = True,
) -> ApplicationLog:
    """Set the application log up: *file* as in `LineSink`, and standard error if *console*.

    Close what is returned. Raises `LogFileError` if the file cannot be opened.
    """
    application_log = ApplicationLog()
    application_log.change(
        level,
        file=file,
        format=format,
        max_file_size=max_file_size,
        max_files=max_files,
        levels=levels,
        console=console,
    )
    return application_log


def settings(config: Any) -> dict[str, Any]:
    """Return the section `log` of a configuration as the arguments of `configure`."""
    return {
        "level": config.level,
        "file": config.file,
        "format": config.format,
        "max_file_size": config.max_file_size,
        "max_files": config.max_files,
        "levels": config.levels,
    }
