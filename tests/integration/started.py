"""Processes under test: a gateway, an echo upstream, nginx. Started, listened to, looked at in /proc, and ended.

What is sent over their sockets is `wire`'s business.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gw.testing import PATIENCE

_listening = re.compile(r"listening on https?://(?:\[.*\]|[^:/]+):([0-9]+)")
_PAUSE = threading.Event()


def until(claim: Callable[[], bool], what: str, within: float = PATIENCE) -> None:
    """Return as soon as *claim* holds. Another process cannot wake us, so it is asked again and again."""
    give_up = time.monotonic() + within
    while not claim():
        assert time.monotonic() < give_up, f"not within {within:g} s: {what}"
        _PAUSE.wait(0.02)


def accepts(child: subprocess.Popen[bytes], port: int) -> bool:
    """Tell whether *child*, which must not have ended, accepts connections on *port*."""
    assert child.poll() is None
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def environment() -> dict[str, str]:
    """Return ours, without what would configure a gateway."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("GW_", "REACTOR_"))}


class Started:
    """A process that says on its standard error or output where it listens."""

    def __init__(self, command: Sequence[str], *, cwd: Path | None = None, may_fail: bool = False) -> None:
        self.child = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self.child.pid
        self.port = 0
        self._lines: list[str] = []
        self._said = threading.Condition()
        self._ended = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        if not may_fail:
            self.port = int(self.wait_for(_listening)[1])

    def _listen(self) -> None:
        assert self.child.stdout is not None
        with self.child.stdout as output:
            for line in output:
                with self._said:
                    self._lines.append(line)
                    self._said.notify_all()
        with self._said:
            self._ended = True
            self._said.notify_all()

    @property
    def log(self) -> str:
        """Everything it has said."""
        with self._said:
            return "".join(self._lines)

    def wait_for(self, pattern: re.Pattern[str] | str) -> re.Match[str]:
        """Wait until it has said something that *pattern* is found in."""
        found: list[re.Match[str]] = []

        def is_said() -> bool:
            match = re.search(pattern, "".join(self._lines))
            if match is not None:
                found.append(match)
            return match is not None or self._ended

        with self._said:
            in_time = self._said.wait_for(is_said, PATIENCE)
        assert found, f"{'it ended' if in_time else 'too late'} without saying {pattern!r}:\n{self.log}"
        return found[0]

    def files(self) -> int:
        """Return how many descriptors it has open."""
        return len([*Path(f"/proc/{self.pid}/fd").iterdir()])

    def memory(self) -> int:
        """Return the bytes that it has in memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> int:
        """Ask it to stop; return its exit code."""
        if self.child.poll() is None:
            self.child.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended; return its exit code."""
        try:
            code = self.child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"it did not stop within {PATIENCE:g} s:\n{self.log}") from None
        self._listener.join(PATIENCE)
        return code

    def close(self) -> None:
        """End it, and see that it ended well."""
        code = self.end()
        assert "Traceback" not in self.log, self.log
        assert "is a bug in gw" not in self.log, self.log
        assert code == 0, f"exit code {code}:\n{self.log}"


def start_echo(*arguments: str) -> Started:
    return Started([sys.executable, "-m", "gw.echo", "--port", "0", *arguments])


def start_gateway(
    configuration: Mapping[str, Any] | None,
    *arguments: str,
    folder: Path,
    name: str = "gw",
    python: str = sys.executable,
    may_fail: bool = False,
) -> Started:
    """Run ``gw serve`` with *configuration* written to a file in *folder*, or with the arguments only."""
    chosen: list[str] = []
    if configuration is not None:
        file = folder / f"{name}.yaml"
        file.write_text(json.dumps(configuration))  # JSON is YAML
        chosen = ["-c", str(file)]
    # One process and its own pid file, unless a test is about that.
    if "-w" not in arguments and not {"workers", "worker_threads"} & set(configuration or {}):
        chosen += ["-w", "1"]
    if "-P" not in arguments:
        chosen += ["-P", str(folder / f"{name}.pid")]
    # -X dev would be stricter still, but it is three times as slow; warnings must not come either way.
    command = [python, "-W", "error", "-m", "gw", "serve", *chosen, *arguments]
    return Started(command, cwd=folder, may_fail=may_fail)
