"""Daemon mode: two forks, a session of its own, and a parent that waits to hear how it went (behaviour 2.4)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gw.hookspecs import Problem

if TYPE_CHECKING:
    from gw.config.load import Loaded

__all__ = ["Readiness", "daemonize", "problems"]

_READY = b"\x01"


def problems(loaded: Loaded, pid_file: str) -> Iterator[Problem]:
    """Yield what daemon mode asks for beyond a good configuration: its working directory is ``/``."""
    log = loaded.config.log
    if not log.file:
        yield Problem(("log", "file"), "must be set for a daemon, which has no terminal to write to")
    for path, value in ((("log", "file"), log.file), (("log", "access", "file"), log.access.file)):
        if value and not Path(value).is_absolute():
            yield Problem(path, f"must be an absolute path for a daemon, not {value!r}")
    if log.access.enabled and not log.access.file:
        yield Problem(("log", "access", "file"), "must be set for a daemon, which has no standard output")
    if pid_file and not Path(pid_file).is_absolute():
        yield Problem((), f"the pid file must be an absolute path for a daemon, not {pid_file!r}")


class Readiness:
    """The child's end of the pipe on which the parent waits."""

    def __init__(self, descriptor: int = -1) -> None:
        self._descriptor = descriptor

    def tell(self) -> None:
        """Say that it serves. Says nothing where nobody waits, and nothing a second time."""
        if self._descriptor >= 0:
            os.write(self._descriptor, _READY)
            os.close(self._descriptor)
            self._descriptor = -1

    def fail(self, why: str) -> None:
        """Say why it does not."""
        if self._descriptor >= 0:
            os.write(self._descriptor, why.encode())
            os.close(self._descriptor)
            self._descriptor = -1


def daemonize() -> Readiness:
    """Go on in the background. Only the child returns: the parent exits with 0 when it serves, else with 1 and the reason.

    Call it before anything is started: threads and loops do not survive a fork.
    """
    ours, theirs = os.pipe()
    if os.fork():
        os.close(theirs)
        said = b""
        while piece := os.read(ours, 65536):
            said += piece
        if said == _READY:
            os._exit(0)
        sys.stderr.write(
            f"{said.decode(errors='replace').rstrip() or 'gw ended before it was ready; the log says why'}\n"
        )
        sys.stderr.flush()
        os._exit(1)
    os.close(ours)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.umask(0o027)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)
    return Readiness(theirs)
