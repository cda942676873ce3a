"""The supervisor's part of several workers: it starts them, brings back those that die, and speaks to all of them as one.

It holds the listening socket, on which each worker accepts, so no connection that waits there is lost with a worker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import Process, TaskGroup

from gw.figures import Figures
from gw.limits import (
    CLOSING_GRACE,
    FIGURES_PATIENCE,
    MAX_SHARED_MEMORIES,
    MAX_WORKERS,
    WORKER_BACKOFF,
    WORKER_BACKOFF_MOST,
    WORKER_PATIENCE,
    WORKER_SOUND_TIME,
)
from gw.net.share import Share
from gw.ops.alone import OTHER_LOOP, count_of
from gw.ops.channel import COUNTS, Channel, Ended, new_memory, serve_memory
from gw.ops.failures import NotReloaded, reason
from gw.status import summed

if TYPE_CHECKING:
    from gw.config.load import Loaded

__all__ = ["Supervisor"]

log = logging.getLogger("gw.ops")


class _Worker:
    """One worker process, as the supervisor sees it."""

    def __init__(self, number: int, process: Process, channel: Channel) -> None:
        self.number, self.process, self.channel = number, process, channel
        self.began = time.time()
        self.state = "starting"
        self.why = ""
        """What kept it from serving."""
        self.is_dismissed = False
        """It was told to leave, because fewer are wanted."""
        self.addresses: dict[str, tuple[str, int]] = {}
        self.settled = anyio.Event()
        """It is ready, or it is gone."""
        self.heard = anyio.Event()
        """It has said all that it had to say."""
        self.gone = anyio.Event()
        self.counted: list[dict[str, Any]] = []
        """What it has counted, as it said last."""
        self._answers: dict[int, tuple[anyio.Event, dict[str, Any]]] = {}
        self._asked = 0

    async def listen(self, question: Callable[[_Worker, int, str], None]) -> None:
        """Take in what it says until it is gone. *question* is called when it asks about all workers."""
        try:
            while True:
                message = await self.channel.receive()
                what = message.what
                match what["is"]:
                    case "ready":
                        self.state = "ready"
                        self.addresses = {name: tuple(at) for name, at in what["addresses"].items()}
                        self.settled.set()
                    case "failed":
                        self.why = what["why"]
                    case "answer":
                        if (waiting := self._answers.get(what["id"])) is not None:
                            waiting[1].update(what, data=message.data)
                            waiting[0].set()
                    case "counted":
                        self.counted = json.loads(message.data)
                    case "question":
                        question(self, what["id"], what["about"])
        except Ended:
            self.heard.set()

    async def ask(
        self,
        do: str,
        data: bytes = b"",
        descriptors: tuple[int, ...] = (),
        *,
        patience: float = WORKER_PATIENCE,
        **what: Any,
    ) -> dict[str, Any]:
        """Say what to do and wait for the answer; raises `Ended` where it is gone, or takes too long to be of use."""
        self._asked = number = self._asked + 1
        event, answer = self._answers[number] = (anyio.Event(), {})
        try:
            with anyio.fail_after(patience):
                await self.channel.send({"do": do, "id": number, **what}, data, descriptors)
                await event.wait()
        except TimeoutError:
            raise Ended from None
        finally:
            del self._answers[number]
        if not answer:
            raise Ended
        return answer

    def over(self) -> None:
        """It has ended: whoever waits for it is told."""
        self.state = "gone"
        self.gone.set()
        self.settled.set()
        for event, _ in self._answers.values():
            event.set()
        self.channel.close()


class Supervisor:
    """The `gw.ops.alone.Crew` of several workers."""

    def __init__(self, loaded: Loaded, *, console: bool) -> None:
        self.loaded = loaded
        self.generation = 1
        self.restarts = 0
        self._console = console
        self._sockets: dict[str, socket.socket] = {}
        self._workers: dict[int, _Worker] = {}
        self._kept: set[int] = set()
        """Numbers that a task keeps a worker for."""
        self._restarted: dict[int, int] = {}
        self._gone = Figures()
        """What workers had counted that are gone: a sum never falls."""
        self._wanted = count_of(loaded)
        self._memories = {COUNTS: new_memory(COUNTS)}
        self._share = Share(self._memories[COUNTS], 1)
        for number in range(MAX_WORKERS):
            self._share.end(number + 1)
        self._changing = anyio.Lock()
        """Held while a worker starts and while a configuration is exchanged: no worker begins with an old one."""
        self._stopping = False
        self._started = False
        self._all_gone = anyio.Event()
        self._tasks: TaskGroup
        self._failure = ""

    # --- Crew ----------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        return not self._stopping and any(each.state == "ready" for each in self._workers.values())

    @property
    def addresses(self) -> Mapping[str, tuple[str, int]]:
        return {name: sock.getsockname()[:2] for name, sock in self._sockets.items() if sock.fileno() >= 0}

    @property
    def sockets(self) -> Iterable[socket.socket]:
        return self._sockets.values()

    async def serve(self, sockets: Mapping[str, socket.socket], ready: Callable[[], None]) -> None:
        self._sockets = {**sockets}
        try:
            async with anyio.create_task_group() as self._tasks:
                first = [await self._start(number) for number in range(1, self._wanted + 1)]
                for worker in first:
                    self._see_to(worker.number, worker)
                await self._first_ones(first, ready)
                await self._all_gone.wait()
                self._tasks.cancel_scope.cancel()
        finally:
            self._close_sockets(self._sockets)
            self._share.close()
            for descriptor in self._memories.values():
                os.close(descriptor)
        if self._failure:
            raise NotReloaded(self._failure)

    async def reload(self, loaded: Loaded, sockets: Mapping[str, socket.socket]) -> None:
        async with self._changing:
            for worker in tuple(self._workers.values()):
                await worker.settled.wait()
            workers = [each for each in self._workers.values() if each.state == "ready"]
            data, passed = loaded.pack(), tuple(sock.fileno() for sock in sockets.values())
            if loaded.config.loop != self.loaded.config.loop:
                raise NotReloaded(OTHER_LOOP)
            refusals: list[str] = []

            async def prepare(worker: _Worker) -> None:
                try:
                    answer = await worker.ask("prepare", data, passed, listeners=[*sockets])
                except Ended:
                    return  # it is brought back with whatever is in force then
                if why := answer.get("why"):
                    refusals.append(why)

            await self._each(workers, prepare)
            verdict = "discard" if refusals else "commit"
            if not refusals:
                self.loaded, self.generation = loaded, self.generation + 1
                gone = self._sockets.keys() - loaded.config.places().keys() | sockets.keys()
                self._close_sockets(gone)
                self._sockets = {**{k: v for k, v in self._sockets.items() if k not in gone}, **sockets}

            async def conclude(worker: _Worker) -> None:
                with contextlib.suppress(Ended):
                    await worker.ask(verdict)
                    return
                self._kill(worker)  # it may serve either: let it come back with the right one

            await self._each(workers, conclude)
            if refusals:
                raise NotReloaded(refusals[0])
        await self._resize()

    def stop(self, *, at_once: bool = False) -> None:
        self._stopping = True
        if not self._workers:
            self._all_gone.set()
        self._tasks.start_soon(self._close, 0 if at_once else self.loaded.config.drain_delay_sec)
        for worker in self._workers.values():
            worker.state = "draining"
            self._tasks.start_soon(self._end, worker, at_once)

    async def stats(self) -> dict[str, Any]:
        found: dict[int, dict[str, Any]] = {}

        async def ask(worker: _Worker) -> None:
            with contextlib.suppress(Ended):
                found[worker.number] = (await worker.ask("stats", patience=FIGURES_PATIENCE))["stats"]

        await self._each([each for each in self._workers.values() if each.settled.is_set()], ask)
        total = summed([*found.values()])
        total["workers"] = {
            "wanted": self._wanted,
            "serving": len(found),
            "restarts": self.restarts,
            "connections": {str(number): each["connections"]["active"] for number, each in sorted(found.items())},
        }
        return total

    async def figures(self) -> Figures:
        async def ask(worker: _Worker) -> None:
            with contextlib.suppress(Ended):
                worker.counted = json.loads((await worker.ask("figures", patience=FIGURES_PATIENCE))["data"])

        await self._each([each for each in self._workers.values() if each.settled.is_set()], ask)
        total = Figures()
        for worker in self._workers.values():
            total.add(worker.counted)
        total.add(family.packed() for family in self._gone)
        return total

    async def order(self, plugin: str, name: str, values: Mapping[str, str]) -> dict[str, Any]:
        answers: dict[str, dict[str, Any]] = {}

        async def order(worker: _Worker) -> None:
            with contextlib.suppress(Ended):
                answers[str(worker.number)] = await worker.ask("order", plugin=plugin, order=name, values={**values})

        await self._each([each for each in self._workers.values() if each.state == "ready"], order)
        for answer in answers.values():
            if "why" in answer:
                raise ValueError(answer["why"])
        return {number: answer["value"] for number, answer in sorted(answers.items())}

    def workers(self) -> list[Mapping[str, Any]]:
        now = time.time()
        return [
            {
                "number": number,
                "pid": worker.process.pid,
                "uptime_seconds": int(now - worker.began),
                "state": worker.state,
                "restarts": self._restarted.get(number, 0),
            }
            for number, worker in sorted(self._workers.items())
        ]

    async def set_level(self, level: str) -> None:
        await self._tell("level", level=level)

    async def reopen_logs(self) -> None:
        await self._tell("reopen")

    # --- inside ----------------------------------------------------------------------

    async def _tell(self, do: str, **what: Any) -> None:
        async def tell(worker: _Worker) -> None:
            with contextlib.suppress(Ended):
                await worker.ask(do, **what)

        await self._each([each for each in self._workers.values() if each.state == "ready"], tell)

    async def _each(self, workers: list[_Worker], do: Callable[[_Worker], Any]) -> None:
        async with anyio.create_task_group() as tasks:
            for worker in workers:
                tasks.start_soon(do, worker)

    async def _first_ones(self, workers: list[_Worker], ready: Callable[[], None]) -> None:
        """Wait until all of the first workers serve. If one cannot, none shall: it is the configuration's fault."""
        for worker in workers:
            await worker.settled.wait()
            if worker.state == "gone" and not self._stopping:
                self._failure = worker.why or "a worker ended while it started; its own lines say why"
                self.stop(at_once=True)
                return
        self._started = True
        if not self._stopping:
            ready()

    def _see_to(self, number: int, worker: _Worker | None = None) -> None:
        """Have a task that keeps a worker in place *number*, unless there is one: its last worker may still be draining."""
        if number not in self._kept:
            self._kept.add(number)
            self._tasks.start_soon(self._keep, number, worker)

    async def _keep(self, number: int, worker: _Worker | None) -> None:
        """Have a worker in place *number*, and another one when it dies, as long as one is wanted there."""
        pause = WORKER_BACKOFF
        while True:
            if worker is None:
                async with self._changing:
                    if self._stopping or number > self._wanted:
                        break
                    try:
                        worker = await self._start(number)
                    except OSError as error:  # no memory, or no descriptor: the others go on
                        log.error("worker %d cannot be started: %s", number, reason(error))  # noqa: TRY400
            if worker is None:
                pause = min(pause * 2, WORKER_BACKOFF_MOST)
                await self._pause(pause)
                continue
            await worker.gone.wait()
            del self._workers[number]
            self._share.end(number)
            self._keep_figures(worker)
            if self._stopping or not self._started:
                break
            if worker.is_dismissed:
                worker = None
                continue
            lived = time.time() - worker.began
            pause = WORKER_BACKOFF if lived > WORKER_SOUND_TIME else min(pause * 2, WORKER_BACKOFF_MOST)
            self.restarts += 1
            self._restarted[number] = self._restarted.get(number, 0) + 1
            how = _how(worker.process.returncode)
            log.error(
                "worker %d (pid %d) %s%s; another one follows", number, worker.process.pid, how, _colon(worker.why)
            )
            worker = None
            await self._pause(pause)
        self._kept.discard(number)
        if self._stopping and not self._workers:
            self._all_gone.set()

    @staticmethod
    async def _pause(seconds: float) -> None:
        await anyio.sleep(seconds * random.uniform(0.8, 1.2))  # noqa: S311 - so that not all come at once

    async def _start(self, number: int) -> _Worker:
        """Start a worker in place *number*. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        memory, their_memory = socket.socketpair()
        warnings = [f"-W{each}" for each in sys.warnoptions]
        descriptors = (theirs.fileno(), their_memory.fileno())
        with contextlib.ExitStack() as undo, theirs, their_memory:
            undo.enter_context(ours)
            undo.enter_context(memory)
            process = await anyio.open_process(
                [sys.executable, *warnings, "-m", "gw.ops.worker", *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=None,
                stderr=None,
                pass_fds=descriptors,
            )
            undo.pop_all()
        worker = self._workers[number] = _Worker(number, process, Channel(ours))
        self._tasks.start_soon(self._watch, worker)
        self._tasks.start_soon(self._lend, memory)
        if self._stopping:  # it came to that before this one could be told with the others
            process.kill()
            return worker
        with contextlib.suppress(Ended):
            start = {"do": "start", "number": number, "console": self._console, "listeners": [*self._sockets]}
            await worker.channel.send(
                start, self.loaded.pack(), tuple(each.fileno() for each in self._sockets.values())
            )
        return worker

    async def _lend(self, memory: socket.socket) -> None:
        with memory:
            await serve_memory(memory, self._memories, MAX_SHARED_MEMORIES)

    async def _watch(self, worker: _Worker) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.listen, self._question)
            await worker.process.wait()
            # Its last words are why it ended. A child of its own may hold the line, so nobody waits for long.
            with anyio.move_on_after(CLOSING_GRACE):
                await worker.heard.wait()
            tasks.cancel_scope.cancel()
        worker.over()

    def _keep_figures(self, worker: _Worker) -> None:
        total = Figures()
        total.add(worker.counted, levels=False)
        total.add(family.packed() for family in self._gone)
        self._gone = total

    def _question(self, worker: _Worker, number: int, about: str) -> None:
        self._tasks.start_soon(self._answer, worker, number, about)

    async def _answer(self, worker: _Worker, number: int, about: str) -> None:
        found: Any
        if about == "stats":
            found = await self.stats()
        else:
            found = [family.packed() for family in await self.figures()]
        with contextlib.suppress(Ended):
            await worker.channel.send({"do": "told", "id": number}, json.dumps(found).encode())

    async def _end(self, worker: _Worker, at_once: bool) -> None:
        """Let it drain; kill it if it takes longer than it may."""
        with contextlib.suppress(Ended):
            await worker.channel.send({"do": "stop", "at_once": at_once})
        patience = 0 if at_once else self.loaded.config.shutdown_drain_timeout_sec
        with anyio.move_on_after(patience + 2 * CLOSING_GRACE):
            await worker.gone.wait()
        self._kill(worker)

    async def _close(self, delay: float) -> None:
        """Stop listening, when the workers do: what came in between would wait for nobody."""
        await anyio.sleep(delay)
        self._close_sockets(self._sockets)

    def _close_sockets(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._sockets:
                self._sockets[name].close()

    def _kill(self, worker: _Worker) -> None:
        if not worker.gone.is_set():
            log.warning("worker %d (pid %d) is killed: it does not end by itself", worker.number, worker.process.pid)
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()

    async def _resize(self) -> None:
        """Have as many workers as the configuration says."""
        before, self._wanted = self._wanted, count_of(self.loaded)
        for number in range(before + 1, self._wanted + 1):
            self._see_to(number)
        for number, worker in self._workers.items():
            if number > self._wanted and not worker.is_dismissed:
                worker.is_dismissed = True
                self._share.end(number)
                worker.state = "draining"
                self._tasks.start_soon(self._end, worker, False)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by signal {-code}"
    return f"ended with code {code}"


def _colon(why: str) -> str:
    return f": {why}" if why else ""
