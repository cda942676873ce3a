"""A process that is measured: started on its own CPU, read in /proc, stopped with all its children.

Nothing here knows what the process does.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
STARTS_WITHIN: Final = 15.0
STOPS_WITHIN: Final = 5.0
MAX_FILES: Final = 65536


class FailedToRunError(Exception):
    """Something of the benchmark did not run, or did not do its work."""


@dataclass(frozen=True, slots=True)
class Cpus:
    """Which CPUs carry what. The proxy has one to itself; with a single CPU there is nothing to divide."""

    proxy: frozenset[int]
    load: frozenset[int]

    @classmethod
    def divide(cls, available: Iterable[int]) -> Cpus:
        first, *rest = sorted(available)
        return cls(frozenset({first}), frozenset(rest or {first}))


def raise_file_limit() -> int:
    """Let this process and its children open as many files as the system allows; return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Process:
    """One program that listens on *port* of 127.0.0.1. What it prints goes to *log*."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        port: int,
        log: Path,
        cpus: frozenset[int],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.port = port
        self.log = log
        ours = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)  # a child inherits it, and so do the child's children
        try:
            with log.open("wb") as output:
                self.child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                )
        finally:
            os.sched_setaffinity(0, ours)

    def wait_until_open(self) -> None:
        """Return when it accepts connections; raises `FailedToRunError` with its last words if it never does."""
        give_up = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < give_up:
            if self.child.poll() is not None:
                raise FailedToRunError(f"{self.name} exited with {self.child.returncode}: {self.last_words()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise FailedToRunError(f"{self.name} did not listen within {STARTS_WITHIN:g} s: {self.last_words()}")

    def last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:]) or "it printed nothing"

    def cpu_seconds(self) -> float:
        """User and system time of the process and its children so far."""
        return sum(_cpu_ticks(pid) for pid in self.tree()) * TICK

    def resident(self) -> int:
        """Bytes of memory that the process and its children occupy (VmRSS)."""
        return sum(_resident(pid) for pid in self.tree())

    def tree(self) -> list[int]:
        """Return the process and everything that descends from it. Exited children are not in it."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (fields := _stat(int(entry.name))):
                children.setdefault(int(fields[1]), []).append(int(entry.name))
        found = [self.child.pid]
        for pid in found:
            found.extend(children.get(pid, ()))
        return found

    def stop(self) -> None:
        """End the process and its children: asked first, then made to."""
        if self.child.poll() is None:
            self.child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(STOPS_WITHIN)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on (man 5 proc_pid_stat); empty when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()  # the name before it may contain spaces and parentheses


def _cpu_ticks(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0


def _resident(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
