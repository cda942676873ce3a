"""Messages between the supervisor and a worker: a mapping, bytes, and descriptors, over a pair of sockets.

Both ends are our own processes; nobody else can reach the sockets. What is said is the business of `gw.ops.supervisor`
and `gw.ops.worker`.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import anyio

from gw.limits import MAX_MEMORY_NAME, MAX_PASSED_DESCRIPTORS

__all__ = ["COUNTS", "Channel", "Ended", "Memory", "Message", "first", "new_memory", "serve_memory"]

COUNTS: Final = "gw/connections"
"""Name of the memory with the connections of each worker, for `gw.net.share`."""

_HEAD: Final = struct.Struct(">II")
_READ: Final = 1 << 18
_LOST: Final = (OSError, ValueError, anyio.ClosedResourceError)
"""What a socket raises that is closed: a `ValueError` where it was before anybody waited."""


class Ended(Exception):
    """The other end is gone."""


@dataclass(slots=True)
class Message:
    """What was said: *what*, what came with it, and descriptors that belong to whoever takes them."""

    what: dict[str, Any]
    data: bytes = b""
    descriptors: tuple[int, ...] = ()


class Channel:
    """One end. Messages arrive whole and in order; one task receives, several may send."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._data = bytearray()
        self._descriptors: deque[int] = deque()
        self._sending = anyio.Lock()

    async def send(self, what: dict[str, Any], data: bytes = b"", descriptors: tuple[int, ...] = ()) -> None:
        """Send; raises `Ended`. The descriptors stay open here."""
        if descriptors:
            what = {**what, "descriptors": len(descriptors)}
        head = json.dumps(what).encode()
        async with self._sending:
            left = memoryview(_HEAD.pack(len(head), len(data)) + head + data)
            whole = len(left)
            try:
                while left:
                    await anyio.wait_writable(self._socket)
                    try:
                        if descriptors:
                            sent = socket.send_fds(self._socket, [left], descriptors)
                            descriptors = ()
                        else:
                            sent = self._socket.send(left)
                    except BlockingIOError:
                        continue
                    left = left[sent:]
            except _LOST as error:
                raise Ended from error
            finally:
                if 0 < len(left) < whole:  # given up in the middle: what followed would be taken for the rest
                    self.close()

    async def receive(self) -> Message:
        """Wait for the next message; raises `Ended`."""
        while (message := self._next()) is None:
            try:
                await anyio.wait_readable(self._socket)
                data, descriptors, _, _ = socket.recv_fds(self._socket, _READ, MAX_PASSED_DESCRIPTORS)
            except BlockingIOError:
                continue
            except _LOST as error:
                raise Ended from error
            self._descriptors += descriptors
            if not data:
                raise Ended
            self._data += data
        return message

    def _next(self) -> Message | None:
        if len(self._data) < _HEAD.size:
            return None
        head, rest = _HEAD.unpack_from(self._data)
        end = _HEAD.size + head + rest
        if len(self._data) < end:
            return None
        what = json.loads(self._data[_HEAD.size : _HEAD.size + head])
        data = bytes(self._data[_HEAD.size + head : end])
        del self._data[:end]
        count = what.pop("descriptors", 0)
        return Message(what, data, tuple(self._descriptors.popleft() for _ in range(count)))

    def close(self) -> None:
        """Close this end, and what came and nobody took; whoever sends is told. May be called again."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())


def first(sock: socket.socket) -> Message:
    """Wait for the first message, before there is a loop, and leave what follows it. Raises `Ended`."""
    descriptors: list[int] = []

    def exactly(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece, found, _, _ = socket.recv_fds(sock, min(size - len(data), _READ), MAX_PASSED_DESCRIPTORS)
            descriptors.extend(found)
            if not piece:
                raise Ended
            data += piece
        return bytes(data)

    head, rest = _HEAD.unpack(exactly(_HEAD.size))
    what = json.loads(exactly(head))
    what.pop("descriptors", None)
    return Message(what, exactly(rest), tuple(descriptors))


# --- memory that workers share ----------------------------------------------------------------


class Memory:
    """A worker's way to the memory that it shares with the others. It waits: plugins ask while they are loaded."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __call__(self, name: str) -> int:
        """Return the descriptor of the memory called *name*. Raises `OSError`."""
        self._socket.sendall(name.encode())
        data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 1)
        if not descriptors:
            raise OSError(f"no shared memory {name!r}: {data.decode() or 'the supervisor is gone'}")
        return descriptors[0]


def new_memory(name: str) -> int:
    """Return the descriptor of a new memory."""
    return os.memfd_create(name.replace("/", ":")[:MAX_MEMORY_NAME], os.MFD_CLOEXEC)


async def serve_memory(sock: socket.socket, memories: dict[str, int], most: int) -> None:
    """Hand out the descriptors in *memories*, made as they are asked for, until the worker is gone."""
    sock.setblocking(False)
    while True:
        await anyio.wait_readable(sock)
        try:
            name = sock.recv(4096).decode()
            if not name:
                return
            if name not in memories and len(memories) < most:
                memories[name] = new_memory(name)
            if name in memories:
                sock.sendmsg([b"ok"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memories[name]]))])
            else:
                sock.send(f"there are {most} already".encode())
        except BlockingIOError:
            continue
        except OSError:
            return
