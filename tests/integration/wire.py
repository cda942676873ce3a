"""Both ends of raw sockets: a client that sends any bytes at all, and an upstream that remembers what it was sent.

Nothing here checks what it sends: that is the point.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from typing import Any

from gw.testing import PATIENCE

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes, or resets."""
    received = bytearray()
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """Read until *mark* has come; whatever comes with it is returned too."""
    received = bytearray()
    while mark not in received:
        data = connection.recv(65536)
        assert data, f"closed before {mark!r} came: {bytes(received)!r}"
        received += data
    return bytes(received)


def ask(port: int, *pieces: bytes) -> bytes:
    """Send *pieces*, one write each, and return everything that comes until the other side closes."""
    with connect(port) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have heard enough
        return read_all(connection)


def statuses(received: bytes) -> list[int]:
    """Return the status of each response in *received*. Bodies must not look like status lines."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", received)]


class Upstream:
    """A server that runs *serve* in a thread for each connection. What *serve* raises is kept for the test."""

    def __init__(self, serve: Callable[[socket.socket], Any]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        self.accepted = 0

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE)
            with self._lock:
                self._open.add(connection)
                self.accepted += 1
            thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._serve(connection)
        except OSError:
            pass  # the gateway closed it
        finally:
            with self._lock:
                self._open.discard(connection)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        with self._lock:
            return len(self._open)

    def close(self) -> None:
        with self._lock:
            for connection in (self._listener, *self._open):
                with contextlib.suppress(OSError):  # it may have been closed by either side
                    connection.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)


class Recorder(Upstream):
    """Answers `OK` to every request, and keeps the heads and bodies it was sent, as they came."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        super().__init__(self._record)

    def _record(self, connection: socket.socket) -> None:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                received = connection.recv(65536)
                if not received:
                    if data:
                        self.requests.append(data)
                    return
                data += received
            head, _, rest = data.partition(b"\r\n\r\n")
            size = _body_size(head, rest)
            while size is None or len(rest) < size:
                received = connection.recv(65536)
                if not received:
                    self.requests.append(head + b"\r\n\r\n" + rest)
                    return
                rest += received
                size = _body_size(head, rest)
            self.requests.append(head + b"\r\n\r\n" + rest[:size])
            data = rest[size:]
            connection.sendall(OK)

    @property
    def lines(self) -> list[bytes]:
        """The request line of each."""
        return [request.partition(b"\r\n")[0] for request in self.requests]


def _body_size(head: bytes, rest: bytes) -> int | None:
    """Return how long the body is; `None` while that is not known yet. The gateway writes names in lower case."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b": ")
        if name == b"content-length":
            return int(value)
        if name == b"transfer-encoding":
            end = rest.find(b"0\r\n\r\n")
            return None if end < 0 else end + 5
    return 0
