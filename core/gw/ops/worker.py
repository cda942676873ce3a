"""A worker: a process of its own that serves on the sockets it was given, and does what the supervisor says.

It is started as ``python -m gw.ops.worker CHANNEL MEMORY``, two descriptors. When the supervisor is gone it drains and
ends, for nobody could reload or stop it any more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup

from gw.config.errors import ConfigError
from gw.config.load import Loaded, unpack
from gw.figures import Figures
from gw.gateway import Gateway, Prepared
from gw.limits import MAX_FIGURES_ASKED
from gw.logs import application_log
from gw.logs.application_log import ApplicationLog
from gw.logs.log_files import LogFileError
from gw.net.network import Network
from gw.net.share import Share
from gw.ops import memory
from gw.ops.channel import COUNTS, Channel, Ended, Memory, Message, first
from gw.ops.failures import CANNOT_SERVE, reason
from gw.ops.loops import run_on

__all__ = ["main"]

log = logging.getLogger("gw.ops")


class _Worker:
    """Obeys the channel."""

    def __init__(self, channel: Channel, gateway: Gateway, app_log: ApplicationLog, *, console: bool) -> None:
        self._channel, self._gateway, self._log, self._console = channel, gateway, app_log, console
        self._prepared: Prepared | None = None
        self._questions: dict[int, tuple[anyio.Event, list[bytes]]] = {}
        self._asked = 0
        self._room = anyio.Semaphore(MAX_FIGURES_ASKED)
        gateway.ask_stats = self._ask_stats
        gateway.sum_figures(self._ask_figures)

    async def obey(self) -> None:
        """Do what is said until the supervisor is gone; then drain."""
        try:
            while True:
                message = await self._channel.receive()
                await self._do(message)
        except Ended:
            if self._gateway.is_ready:
                log.warning("the supervisor is gone: draining")
            self._gateway.stop()
            for event, _ in self._questions.values():
                event.set()

    async def leave(self) -> None:
        """Leave what was counted to the supervisor."""
        with contextlib.suppress(Ended):
            await self._channel.send({"is": "counted"}, await self._packed())

    async def _do(self, message: Message) -> None:
        what, gateway = message.what, self._gateway
        match what["do"]:
            case "prepare":
                await self._prepare(message)
            case "commit":
                prepared, self._prepared = self._prepared, None
                assert prepared is not None
                await gateway.commit(prepared)
                configure(self._log, prepared.loaded, console=self._console)
                del prepared
                memory.collect()
                await self._answer(what, {})
            case "discard":
                prepared, self._prepared = self._prepared, None
                if prepared is not None:
                    await gateway.discard(prepared)
                await self._answer(what, {})
            case "stats":
                await self._answer(what, {"stats": gateway.stats()})
            case "figures":
                await self._answer(what, {}, await self._packed())
            case "told":
                if (waiting := self._questions.get(what["id"])) is not None:  # else who asked has left meanwhile
                    waiting[1].append(message.data)
                    waiting[0].set()
            case "order":
                await self._answer(what, self._obeyed(what))
            case "level":
                self._log.set_level(what["level"])
                await self._answer(what, {})
            case "reopen":
                self._log.reopen()
                gateway.reopen_logs()
                await self._answer(what, {})
            case "stop":
                gateway.stop(at_once=what["at_once"])

    def _obeyed(self, what: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"value": self._gateway.order(what["plugin"], what["order"], what["values"])}
        except ValueError as error:
            return {"why": str(error)}

    async def _prepare(self, message: Message) -> None:
        sockets = sockets_of(message)
        try:
            self._prepared = await self._gateway.prepare(unpack(message.data), sockets=sockets)
        except CANNOT_SERVE as error:
            _close(sockets)
            await self._answer(message.what, {"why": reason(error)})
        except Exception as error:
            _close(sockets)
            log.exception("a reload ended in an error that is a bug in gw or in a plugin; please report it")
            await self._answer(message.what, {"why": f"{type(error).__name__}: {error}"})
        else:
            await self._answer(message.what, {})

    async def _answer(self, to: Mapping[str, Any], what: dict[str, Any], data: bytes = b"") -> None:
        with contextlib.suppress(Ended):
            await self._channel.send({"is": "answer", "id": to["id"], **what}, data)

    async def _packed(self) -> bytes:
        """Return what we have counted, and let others have their turn in between: there may be much of it."""
        families = []
        for family in self._gateway.figures:
            families.append(json.dumps(family.packed()))
            await anyio.lowlevel.checkpoint()
        return f"[{','.join(families)}]".encode()

    async def _ask_stats(self) -> dict[str, Any]:
        """Return the stats of all workers, which only the supervisor can gather; our own if it is gone."""
        try:
            found: dict[str, Any] = json.loads(await self._ask("stats"))
        except Ended:
            return self._gateway.stats()
        return found

    async def _ask_figures(self) -> Figures:
        """Return what all workers have counted; what we have if the supervisor is gone."""
        try:
            packed = await self._ask("figures")
        except Ended:
            return self._gateway.figures
        total = Figures()
        total.add(json.loads(packed))
        return total

    async def _ask(self, about: str) -> bytes:
        async with self._room:  # a client may ask often, and each time all workers have work to do
            return await self._ask_now(about)

    async def _ask_now(self, about: str) -> bytes:
        self._asked = number = self._asked + 1
        event, found = self._questions[number] = (anyio.Event(), [])
        try:
            await self._channel.send({"is": "question", "id": number, "about": about})
            await event.wait()
        finally:
            del self._questions[number]
        if not found:
            raise Ended
        return found[0]


def sockets_of(message: Message) -> dict[str, socket.socket]:
    """Return the sockets that came with *message*, by the names that it gives."""
    return {
        name: socket.socket(fileno=descriptor)
        for name, descriptor in zip(message.what["listeners"], message.descriptors, strict=True)
    }


def _close(sockets: Mapping[str, socket.socket]) -> None:
    for sock in sockets.values():
        sock.close()


def configure(app_log: ApplicationLog, loaded: Loaded, *, console: bool) -> None:
    """Have the application log go on as *loaded* says; one that cannot be opened leaves the old one in use."""
    try:
        app_log.change(**application_log.settings(loaded.config.log), console=console)
    except LogFileError as error:
        log.error("%s; logging goes on as before", error)  # noqa: TRY400 - it is the message


async def _serve(channel: Channel, loaded: Loaded, start: Message, shared: Memory) -> int:
    console: bool = start.what["console"]
    app_log = application_log.configure(**application_log.settings(loaded.config.log), console=console)
    failed = 0
    try:
        async with anyio.create_task_group() as tasks:
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                try:
                    gateway = Gateway(loaded, memory=shared)
                    share = Share(shared(COUNTS), start.what["number"])
                    worker = _Worker(channel, gateway, app_log, console=console)
                    tasks.start_soon(_until_signal, signals, gateway)
                    listening = anyio.Event()
                    tasks.start_soon(_when_ready, channel, gateway, listening)
                    tasks.start_soon(worker.obey)
                    share.begin()
                    await gateway.serve(
                        sockets=sockets_of(start), ready=listening.set, network=partial(_network, share)
                    )
                    await worker.leave()
                except CANNOT_SERVE as error:
                    failed = 1
                    with contextlib.suppress(Ended):
                        await channel.send({"is": "failed", "why": reason(error)})
                tasks.cancel_scope.cancel()
    finally:
        app_log.close()
    return failed


def _network(share: Share, tasks: TaskGroup) -> Network:
    network = Network(tasks)
    network.share = share
    return network


async def _when_ready(channel: Channel, gateway: Gateway, listening: anyio.Event) -> None:
    await listening.wait()
    with contextlib.suppress(Ended):
        await channel.send({"is": "ready", "addresses": gateway.addresses})


async def _until_signal(signals: AsyncIterator[signal.Signals], gateway: Gateway) -> None:
    async for _ in signals:
        gateway.stop(at_once=not gateway.is_ready)


def main() -> int:
    """Serve as the first message says; return the exit code."""
    # These are for the supervisor: a terminal sends them to all processes in it.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    ends = [socket.socket(fileno=int(each)) for each in sys.argv[1:3]]
    for end in ends:
        os.set_inheritable(end.fileno(), False)
    start = first(ends[0])
    shared = Memory(ends[1])
    channel = Channel(ends[0])
    try:
        loaded = unpack(start.data)
    except ConfigError as error:
        anyio.run(channel.send, {"is": "failed", "why": str(error)})
        return 1
    memory.settle()
    try:
        return run_on(loaded.config.loop, _serve, channel, loaded, start, shared)
    finally:
        for end in ends:
            end.close()


if __name__ == "__main__":
    sys.exit(main())
