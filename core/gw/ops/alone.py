"""One process that serves by itself: the `Crew` of ``workers: 1``."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol as Interface

from gw.gateway import Gateway
from gw.ops.failures import NotReloaded

if TYPE_CHECKING:
    from gw.config.load import Loaded
    from gw.figures import Figures

__all__ = ["OTHER_LOOP", "Alone", "Crew", "count_of"]


OTHER_LOOP: Final = "loop: a process that runs cannot change it; restart, or send SIGUSR2"
_OTHER_NUMBER: Final = "workers: this process serves alone, without a supervisor; restart, or send SIGUSR2"


class Crew(Interface):
    """Who serves, one process or several: what `gw.ops.operator` gives orders to."""

    @property
    def loaded(self) -> Loaded:
        """The configuration that is in force."""

    @property
    def is_ready(self) -> bool: ...

    @property
    def addresses(self) -> Mapping[str, tuple[str, int]]:
        """Where it listens, by the names of the listeners."""

    @property
    def sockets(self) -> Iterable[socket.socket]:
        """What it listens on."""

    @property
    def generation(self) -> int:
        """Number of the configuration that is in force: 1, and one more with each reload."""

    async def serve(self, sockets: Mapping[str, socket.socket], ready: Callable[[], None]) -> None:
        """Serve on *sockets*, which become its own, until it was stopped and has drained. Raises what `Gateway.serve` does."""

    async def reload(self, loaded: Loaded, sockets: Mapping[str, socket.socket]) -> None:
        """Go on with *loaded*, on *sockets* where they are new. Raises what `Gateway.reload` does; then nothing has changed."""

    def stop(self, *, at_once: bool = False) -> None:
        """Begin to drain, or (*at_once*) end what is under way."""

    async def stats(self) -> dict[str, Any]:
        """Return the figures of all of it."""

    async def figures(self) -> Figures:
        """Return what all of it has counted."""

    async def order(self, plugin: str, name: str, values: Mapping[str, str]) -> dict[str, Any]:
        """Have *plugin* do something in each process; return the answers by their numbers. Raises `ValueError`."""

    def workers(self) -> list[Mapping[str, Any]]:
        """Return what is known of each process: pid, uptime, state, restarts."""

    async def set_level(self, level: str) -> None:
        """Have each other process log from *level* on."""

    async def reopen_logs(self) -> None: ...


class Alone:
    """A gateway in this process."""

    def __init__(self, loaded: Loaded) -> None:
        self.gateway = Gateway(loaded)

    @property
    def loaded(self) -> Loaded:
        return self.gateway.loaded

    @property
    def is_ready(self) -> bool:
        return self.gateway.is_ready

    @property
    def addresses(self) -> Mapping[str, tuple[str, int]]:
        return self.gateway.addresses

    @property
    def sockets(self) -> Iterable[socket.socket]:
        return self.gateway.sockets

    @property
    def generation(self) -> int:
        return self.gateway.generation

    async def serve(self, sockets: Mapping[str, socket.socket], ready: Callable[[], None]) -> None:
        await self.gateway.serve(sockets=sockets, ready=ready)

    async def reload(self, loaded: Loaded, sockets: Mapping[str, socket.socket]) -> None:
        if loaded.config.loop != self.loaded.config.loop:
            raise NotReloaded(OTHER_LOOP)
        if count_of(loaded) != 1:
            raise NotReloaded(_OTHER_NUMBER)
        await self.gateway.reload(loaded, sockets=sockets)

    def stop(self, *, at_once: bool = False) -> None:
        self.gateway.stop(at_once=at_once)

    async def stats(self) -> dict[str, Any]:
        return self.gateway.stats()

    async def figures(self) -> Figures:
        return self.gateway.figures

    async def order(self, plugin: str, name: str, values: Mapping[str, str]) -> dict[str, Any]:
        return {"1": self.gateway.order(plugin, name, values)}

    def workers(self) -> list[Mapping[str, Any]]:
        gateway = self.gateway
        uptime = int(time.time() - gateway.started) if gateway.started else 0
        state = "ready" if gateway.is_ready else "draining" if gateway.started else "starting"
        return [{"number": 1, "pid": os.getpid(), "uptime_seconds": uptime, "state": state, "restarts": 0}]

    async def set_level(self, level: str) -> None:
        """Do nothing: there is no other process."""

    async def reopen_logs(self) -> None:
        self.gateway.reopen_logs()


def count_of(loaded: Loaded) -> int:
    """Return how many processes are to serve *loaded* on this machine."""
    return loaded.config.processes() or len(os.sched_getaffinity(0))
