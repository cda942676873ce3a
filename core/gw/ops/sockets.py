"""The listening sockets of a gateway: bound here, handed over by systemd or by the program that this one replaces."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

import anyio

from gw.limits import UPGRADE_TIME
from gw.net.network import bind
from gw.ops.failures import NotReloaded
from gw.ops.notify import listen_sockets

if TYPE_CHECKING:
    from gw.config.load import Loaded
    from gw.ops.pid_file import PidFile

__all__ = ["INHERITED", "Sockets"]

INHERITED: Final = "GW_INHERITED"
"""Set by a gateway for the one that replaces it: descriptors of its sockets, its pid file, and a pipe."""


class Sockets:
    """Finds the socket for an address. Whoever is given one closes it; workers get copies."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        found = json.loads(environ.pop(INHERITED, "{}"))
        self.pid_file: int | None = found.get("pid_file")
        """Descriptor of the pid file that was inherited, locked."""
        self._pipe: int | None = found.get("ready")
        self._inherited = [socket.socket(fileno=each) for each in found.get("sockets", ())]
        self._inherited += listen_sockets(environ)
        for sock in self._inherited:
            os.set_inheritable(sock.fileno(), False)
            sock.setblocking(False)
        self.is_replacing = self._pipe is not None
        """Whether another gateway waits for this one to serve."""
        self._found: dict[str, socket.socket] = {}

    def listen(self, loaded: Loaded) -> dict[str, socket.socket]:
        """Return a socket for each listener: one that was handed over, or a new one. Raises `OSError`."""
        places = loaded.config.places()
        try:
            for name, place in places.items():
                self._found[name] = self._take(*place, only=len(places) == 1) or bind(*place)
        except BaseException:
            self.close()
            raise
        return {**self._found}

    def change(self, old: Loaded, new: Loaded) -> dict[str, socket.socket]:
        """Return a socket for each listener of *new* that *old* has not, or at another address. Raises `OSError`."""
        before, opened = old.config.places(), {}
        try:
            for name, place in new.config.places().items():
                if place != before.get(name):
                    opened[name] = bind(*place)
        except BaseException:
            for sock in opened.values():
                sock.close()
            raise
        return opened

    def _take(self, host: str, port: int, *, only: bool) -> socket.socket | None:
        """Return the inherited socket that listens at *host* and *port*; if only one is wanted, the one there is."""
        for sock in self._inherited:
            at = sock.getsockname()
            if sock.family != socket.AF_UNIX and (at[0], at[1]) == (host, port):
                self._inherited.remove(sock)
                return sock
        return self._inherited.pop() if only and len(self._inherited) == 1 else None

    def taken_over(self) -> None:
        """Tell the gateway that is replaced that we serve, and close what nobody asked for."""
        for sock in self._inherited:
            sock.close()
        self._inherited.clear()
        if self._pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended meanwhile: there is nobody else to serve
                os.write(self._pipe, b"\x01")
            os.close(self._pipe)
            self._pipe = None

    async def hand_over(self, sockets: Iterable[socket.socket], pid_file: PidFile | None) -> None:
        """Start this program anew with *sockets*, and wait until it serves. Raises `NotReloaded`."""
        ours, theirs = os.pipe()
        listening = [sock.fileno() for sock in sockets]
        descriptors = [*listening, theirs]
        what: dict[str, Any] = {"sockets": listening, "ready": theirs}
        if pid_file is not None:
            what["pid_file"] = pid_file.descriptor
            descriptors.append(pid_file.descriptor)
        arguments = [sys.executable, *sys.orig_argv[1:]]
        try:
            for descriptor in descriptors:
                os.set_inheritable(descriptor, True)
            # The new one is nobody's child for long, so there is no Popen that would want to hear of its end.
            pid = _spawn(arguments, {**os.environ, INHERITED: json.dumps(what)})
        except OSError as error:
            os.close(ours)
            raise NotReloaded(f"{arguments[0]} cannot be started: {error.strerror}") from error
        finally:
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            os.close(theirs)
        serves = False
        os.set_blocking(ours, False)
        try:
            with anyio.move_on_after(UPGRADE_TIME):
                await anyio.wait_readable(ours)
            serves = _read(ours) == b"\x01"
        finally:
            os.close(ours)
            if not serves:
                _end(pid)
        if not serves:
            raise NotReloaded("the new program ended, or did not serve in time; its own lines say why")

    def close(self) -> None:
        """Close what is still open. May be called again."""
        for sock in (*self._found.values(), *self._inherited):
            sock.close()


def _spawn(arguments: list[str], environ: dict[str, str]) -> int:
    return os.posix_spawn(arguments[0], arguments, environ)  # it forks and returns


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1)
    except BlockingIOError:
        return b""


def _end(pid: int) -> None:
    """End a new program that is of no use. It is our child still."""
    try:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, os.WNOHANG)
    except (ProcessLookupError, ChildProcessError):
        return
