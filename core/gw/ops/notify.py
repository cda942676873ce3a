"""What systemd is told, and the sockets that it hands over: sd_notify(3) and sd_listen_fds(3), without its library."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, MutableMapping

__all__ = ["Notifier", "listen_sockets"]

_FIRST = 3
"""Descriptors that are handed over begin here."""


class Notifier:
    """Tells the service manager how it goes; does nothing where there is none."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog = 0.0
        """Seconds between signs of life that it wants; 0.0 for none."""
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        if usec.isdecimal() and (not pid or pid == str(os.getpid())):
            self.watchdog = int(usec) / 2_000_000  # half the time, as sd_watchdog_enabled(3) asks

    def tell(self, *lines: str) -> None:
        """Send ``READY=1`` and the like. What cannot be delivered is dropped: it is not worth failing for."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return

    def ready(self, status: str) -> None:
        self.tell("READY=1", f"MAINPID={os.getpid()}", f"STATUS={status}")

    def reloading(self) -> None:
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self.tell("STOPPING=1")

    def alive(self) -> None:
        self.tell("WATCHDOG=1")


def listen_sockets(environ: MutableMapping[str, str] = os.environ) -> Iterator[socket.socket]:
    """Yield the listening sockets that were handed over, and forget the variables that say so: children have none."""
    count, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return
    for descriptor in range(_FIRST, _FIRST + int(count)):
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
        if sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.setblocking(False)
            yield sock
        else:
            sock.close()
