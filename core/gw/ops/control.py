"""The control socket: one question, one answer, each a line of JSON, between `gw` commands and a running gateway.

It stands beside the pid file and is for its user and root only: for their commands, not for the network. What can be
asked is the business of `gw.ops.operator`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from gw.limits import CONTROL_PATIENCE, MAX_CONTROL_ANSWER, MAX_CONTROL_CALLS, MAX_CONTROL_QUESTION

__all__ = ["Control", "ControlError", "ask", "beside"]

log = logging.getLogger("gw.ops")

_PEER: Final = struct.Struct("3i")


class ControlError(Exception):
    """The gateway cannot be asked, or refused; the text says why."""


def beside(pid_file: Path) -> Path:
    """Return where the control socket of the gateway with *pid_file* is."""
    return pid_file.with_name(f"{pid_file.name}.sock")


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Give a name for *path* that is short enough: a socket's has 107 bytes at most."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class Control:
    """The gateway's side. *answer* is given each question and returns the answer; a `ControlError` is the answer too."""

    def __init__(self, path: Path, answer: Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]) -> None:
        """Listen. Raises `OSError`. Whatever stands at *path* is replaced: the lock on the pid file says that it is old."""
        self.path, self._answer = path, answer
        self.is_ours = True
        """Whether it is removed when we end: not once another process has taken over."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._calls = anyio.CapacityLimiter(MAX_CONTROL_CALLS)
        self._accepting: anyio.CancelScope | None = None
        try:
            with _reachable(path) as name:
                with contextlib.suppress(FileNotFoundError):
                    Path(name).unlink()
                before = os.umask(0o177)
                try:
                    self._socket.bind(name)
                finally:
                    os.umask(before)
            self._socket.listen(MAX_CONTROL_CALLS)
        except BaseException:
            self._socket.close()
            raise

    async def serve(self) -> None:
        """Answer until cancelled, or closed."""
        if self._socket.fileno() < 0:
            return
        try:
            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as self._accepting:
                    await self._accept(tasks)
        finally:
            self._socket.close()

    async def _accept(self, tasks: TaskGroup) -> None:
        while True:
            await anyio.wait_readable(self._socket)
            try:
                connection, _ = self._socket.accept()
            except OSError:  # it left before we came, or there is no descriptor left
                await anyio.sleep(0.01)
                continue
            connection.setblocking(False)
            tasks.start_soon(self._serve, connection)

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            if uid not in {0, os.geteuid()}:
                return
            try:
                async with self._calls:
                    with anyio.fail_after(CONTROL_PATIENCE):
                        question = await _line(connection, MAX_CONTROL_QUESTION)
                    answer = await self._answered(question)
                    with anyio.fail_after(CONTROL_PATIENCE):
                        await _send(connection, json.dumps(answer).encode() + b"\n")
            except (OSError, TimeoutError, ControlError):
                pass  # whoever asked has left, or never asked

    async def _answered(self, line: bytes) -> Mapping[str, Any]:
        try:
            question = json.loads(line)
            if not isinstance(question, dict):
                return {"error": "a question is a JSON object"}
            return await self._answer(question)
        except ControlError as error:
            return {"error": str(error)}
        except ValueError as error:
            return {"error": f"the question cannot be read: {error}"}
        except Exception:
            log.exception("a question to the control socket ended in an error that is a bug in gw; please report it")
            return {"error": "that went wrong; the log says why"}

    def close(self) -> None:
        """Stop listening, and remove the socket unless another process has put its own there. May be called again."""
        if self._accepting is None:
            self._socket.close()
        else:  # not before the loop has forgotten it: its number may be that of an upstream's connection next
            self._accepting.cancel()
        if self.is_ours:
            self.is_ours = False
            with contextlib.suppress(OSError), _reachable(self.path) as name:
                Path(name).unlink()


async def _line(connection: socket.socket, most: int) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        await anyio.wait_readable(connection)
        piece = connection.recv(65536)
        data += piece
        if not piece or len(data) > most:
            raise ControlError("no question came, or one that is too long")
    return data


async def _send(connection: socket.socket, data: bytes) -> None:
    left = memoryview(data)
    while left:
        await anyio.wait_writable(connection)
        left = left[connection.send(left) :]


def ask(path: Path, question: Mapping[str, Any], *, patience: float = CONTROL_PATIENCE) -> dict[str, Any]:
    """Ask the gateway whose control socket is *path*, and return its answer. Raises `ControlError`. Waits."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(patience)
    with connection:
        try:
            with _reachable(path) as name:
                connection.connect(name)
            _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            if uid not in {0, os.geteuid()} and os.geteuid() != 0:
                raise ControlError(f"{path} belongs to somebody else (uid {uid})")
            connection.sendall(json.dumps(question).encode() + b"\n")
            data = bytearray()
            while not data.endswith(b"\n"):
                piece = connection.recv(65536)
                data += piece
                if not piece or len(data) > MAX_CONTROL_ANSWER:
                    raise ControlError("the gateway ended without an answer")
        except TimeoutError:
            raise ControlError(f"the gateway did not answer within {patience:g} s") from None
        except OSError as error:
            raise ControlError(f"the gateway cannot be asked at {path}: {error.strerror}") from error
    answer: dict[str, Any] = json.loads(data)
    if "error" in answer:
        raise ControlError(answer["error"])
    return answer
