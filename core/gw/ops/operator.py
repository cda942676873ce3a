"""What is done to a running gateway, whoever asks: a signal, a `gw` command, or a request to the admin listener.

The one who serves is a `Crew`: this process itself, or its workers. What a question looks like on the wire is the
business of `gw.ops.control` and `gw.ops.admin`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from gw.config.changes import changes
from gw.described import describe
from gw.limits import MAX_RELOAD_HISTORY
from gw.logs import application_log
from gw.logs.application_log import LEVELS, ApplicationLog
from gw.logs.log_files import LogFileError
from gw.ops import memory
from gw.ops.admin import Admin
from gw.ops.alone import Crew
from gw.ops.control import Control, ControlError
from gw.ops.daemon import Readiness
from gw.ops.failures import CANNOT_SERVE, NotReloaded, reason
from gw.ops.notify import Notifier
from gw.ops.pid_file import PidFile
from gw.ops.sockets import Sockets
from gw.version import __version__

if TYPE_CHECKING:
    from gw.config.load import Loaded

__all__ = ["Operator"]

log = logging.getLogger("gw.ops")


class Operator:
    """Runs a crew from its start to its end."""

    def __init__(
        self,
        crew: Crew,
        app_log: ApplicationLog,
        pid_file: PidFile | None,
        sockets: Sockets,
        readiness: Readiness,
        *,
        console: bool,
    ) -> None:
        self.crew = crew
        self._log, self._console = app_log, console
        self._pid_file, self._sockets, self._readiness = pid_file, sockets, readiness
        self._notifier = Notifier()
        self._started = time.time()
        self._state = "starting"
        self._stopping = False
        self._changing = anyio.Lock()
        self._history: deque[dict[str, Any]] = deque(maxlen=MAX_RELOAD_HISTORY)
        self._unconfirmed: tuple[Loaded, anyio.CancelScope] | None = None
        self._control: Control | None = None
        self._control_at: Path | None = None
        self._admin = Admin(self)
        self._tasks: TaskGroup
        self._failed = 0

    async def run(self, control: Path | None) -> int:
        """Serve until told to stop; return the exit code. *control* is where the control socket is to be."""
        wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it: then it stays so
            wanted.append(signal.SIGHUP)
        # The receiver comes first: whoever reads that we listen may send the signal at once.
        with anyio.open_signal_receiver(*wanted) as signals:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._obey, signals)
                try:
                    sockets = self._sockets.listen(self.crew.loaded)
                    self._control_at = control
                    if not self._sockets.is_replacing:
                        self._listen_for_commands()
                    await self.crew.serve(sockets, self._ready)
                except CANNOT_SERVE as error:
                    log.critical("cannot serve: %s", reason(error))
                    self._readiness.fail(f"cannot serve: {reason(error)}")
                    self._failed = 1
                finally:
                    if self._control is not None:
                        self._control.close()
                self._tasks.cancel_scope.cancel()
        if self._state != "starting":
            self._log.mark("SERVER STOP")
        return self._failed

    def _listen_for_commands(self) -> None:
        """Have a control socket. Raises `OSError`."""
        if self._control_at is not None:
            self._control = Control(self._control_at, self.answer)
            self._tasks.start_soon(self._control.serve)

    def _ready(self) -> None:
        if self._sockets.is_replacing:  # until now commands were for the gateway that is replaced, which may go on
            self._listen_for_commands()
        self._state = "serving"
        self._log.mark("SERVER START")
        for each in self.crew.loaded.config.all_listeners():
            host, port = self.crew.addresses[each.name]
            scheme = "https" if each.tls.enabled else "http"
            log.info("listening on %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)
        if self._pid_file is not None:
            self._pid_file.write()
        self._readiness.tell()
        self._sockets.taken_over()
        self._notifier.ready("serving")
        self._tasks.start_soon(self._admin.run)
        if self._notifier.watchdog:
            self._tasks.start_soon(self._keep_watchdog)

    async def _keep_watchdog(self) -> None:
        while True:
            if self.crew.is_ready or self._stopping:
                self._notifier.alive()
            await anyio.sleep(self._notifier.watchdog)

    # --- signals -------------------------------------------------------------------------

    async def _obey(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for number in signals:
            match number:
                case signal.SIGTERM | signal.SIGINT:
                    self._stop(number.name)
                case signal.SIGHUP:
                    if self._state == "serving":
                        self._tasks.start_soon(self._reload_by_signal)
                    else:
                        log.warning("SIGHUP is ignored: the gateway is %s", self._state)
                case signal.SIGUSR1:
                    log.info("SIGUSR1: logs are opened anew")
                    self._tasks.start_soon(self.reopen_logs)
                case signal.SIGUSR2:
                    self._tasks.start_soon(self._upgrade_by_signal)

    def _stop(self, why: str) -> None:
        if self._stopping:
            log.warning("stopping now: %s came a second time", why)
            self.crew.stop(at_once=True)
            return
        log.info("stopping: %s", why)
        self.drain()

    async def _reload_by_signal(self) -> None:
        try:
            await self.reload("SIGHUP")
        except (NotReloaded, ControlError):
            return  # the log has it

    async def _upgrade_by_signal(self) -> None:
        try:
            await self.upgrade()
        except NotReloaded as error:
            log.error("not upgraded: %s", error)  # noqa: TRY400 - the message says it

    # --- orders ----------------------------------------------------------------------------

    def drain(self) -> None:
        """Stop in good order: `/ready` fails, listeners close, what is under way is finished; then the process ends."""
        if not self._stopping:
            self._stopping = True
            self._state = "draining"
            self._notifier.stopping()
            self.crew.stop()

    async def reopen_logs(self) -> None:
        self._log.reopen()
        await self.crew.reopen_logs()

    async def set_level(self, level: str) -> None:
        """Log from *level* on, in all processes, until the next reload. Raises `ControlError`."""
        if level not in LEVELS:
            raise ControlError(f"{level!r} is not a level; there are {', '.join(LEVELS)}")
        self._log.set_level(level)
        await self.crew.set_level(level)
        log.info("log level is %s until the next reload", level)

    async def plan(self, file: str | None) -> dict[str, Any]:
        """Say what a reload would change: to the configuration in *file*, or as its own source is now. Raises `NotReloaded`."""
        loaded = await self._load(file)
        stats = await self.crew.stats()
        return {
            "changes": changes(self.crew.loaded, loaded),
            "exchanges": stats.get("requests", {}).get("active", 0),
            "generation": self.crew.generation,
        }

    async def reload(self, by: str, *, confirm_within: float = 0) -> dict[str, Any]:
        """Read the configuration again and go on with it; return what changed.

        With *confirm_within* seconds it is taken back unless `confirm` comes in time. Raises `NotReloaded`: then nothing
        has changed.
        """
        async with self._changing:
            began = time.time()
            await self.reopen_logs()  # in any case (behaviour 21.2)
            try:
                self._check_may_reload()
                before = self.crew.loaded
                loaded = await self._load(None)
                found = changes(before, loaded)
                await self._go_on_with(loaded)
            except NotReloaded as error:
                log.error("not reloaded, nothing has changed: %s", error)  # noqa: TRY400 - the message says it
                self._history.append({"time": began, "by": by, "ok": False, "error": str(error)})
                raise
            self._remember(began, by, found)
            if confirm_within:
                scope = anyio.CancelScope()
                self._unconfirmed = (before, scope)
                self._tasks.start_soon(self._take_back, before, scope, confirm_within)
        return {
            "generation": self.crew.generation,
            "changes": found,
            "warnings": [str(each) for each in loaded.warnings],
        }

    def _check_may_reload(self) -> None:
        if self._state != "serving":
            raise NotReloaded(f"the gateway is {self._state}")
        if self._unconfirmed is not None:
            raise NotReloaded(
                "the last reload waits to be confirmed; run gw reload --confirm, or wait until it is undone"
            )

    def confirm(self) -> dict[str, Any]:
        """Keep what the last reload brought. Raises `ControlError` where nothing waits for that."""
        if self._unconfirmed is None:
            raise ControlError("no reload waits to be confirmed")
        self._unconfirmed[1].cancel()
        self._unconfirmed = None
        log.info("the reload is confirmed")
        return {"generation": self.crew.generation}

    async def _take_back(self, before: Loaded, scope: anyio.CancelScope, within: float) -> None:
        with scope:
            await anyio.sleep(within)
            async with self._changing:
                self._unconfirmed = None
                found = changes(self.crew.loaded, before)
                log.warning("the reload was not confirmed within %g s: it is undone", within)
                with anyio.CancelScope(shield=True):
                    try:
                        await self._go_on_with(before)
                    except NotReloaded as error:
                        log.error("the reload could not be undone: %s", error)  # noqa: TRY400 - the message says it
                    else:
                        self._remember(time.time(), "not confirmed", found)

    async def _load(self, file: str | None) -> Loaded:
        again = self.crew.loaded.again

        def load() -> Loaded:
            loaded = again() if file is None else again(Path(file))
            describe(loaded)  # routes that conflict show here, before any worker is asked
            return loaded

        try:
            return await anyio.to_thread.run_sync(load)
        except CANNOT_SERVE as error:
            raise NotReloaded(reason(error)) from error

    async def _go_on_with(self, loaded: Loaded) -> None:
        sockets: dict[str, socket.socket] = {}
        before = self.crew.loaded
        try:
            sockets = self._sockets.change(before, loaded)
            await self.crew.reload(loaded, sockets)
        except CANNOT_SERVE as error:
            for sock in sockets.values():
                sock.close()
            raise NotReloaded(reason(error)) from error
        try:
            self._log.change(**application_log.settings(loaded.config.log), console=self._console)
        except LogFileError as error:
            log.error("%s; logging goes on as before", error)  # noqa: TRY400 - the message says it
        self._admin.changed()
        memory.collect()

    def _remember(self, at: float, by: str, found: list[str]) -> None:
        generation = self.crew.generation
        took = time.time() - at
        log.info("reloaded by %s: generation %d, %d changes, %.2f s", by, generation, len(found), took)
        for line in found:
            log.info("  %s", line)
        self._history.append({"time": at, "by": by, "ok": True, "generation": generation, "changes": found})
        self._notifier.ready("serving")

    async def order(self, plugin: str, name: str, values: Mapping[str, str]) -> dict[str, Any]:
        """Have *plugin* do something, in all workers; return their answers by number. Raises `ControlError`."""
        try:
            return {"workers": await self.crew.order(plugin, name, values)}
        except ValueError as error:
            raise ControlError(str(error)) from error

    async def upgrade(self) -> None:
        """Start the program anew on the same sockets, and drain when the new one serves. Raises `NotReloaded`."""
        async with self._changing:
            if self._state != "serving":  # as after another one, which was under way when this was asked for
                raise NotReloaded(f"the gateway is {self._state}")
            self._notifier.reloading()
            try:
                await self._sockets.hand_over(self.crew.sockets, self._pid_file)
            except NotReloaded:
                self._notifier.ready("serving")
                raise
            if self._pid_file is not None:
                self._pid_file.is_ours = False
            if self._control is not None:
                self._control.is_ours = False
                self._control.close()
            log.info("the new program serves; this one finishes what is under way")
            self.drain()

    # --- questions -----------------------------------------------------------------------------

    async def stats(self) -> dict[str, Any]:
        return await self.crew.stats()

    def status(self) -> dict[str, Any]:
        """Return what `gw status` shows."""
        return {
            "pid": os.getpid(),
            "version": __version__,
            "state": self._state,
            "ready": self.crew.is_ready,
            "uptime_seconds": int(time.time() - self._started),
            "generation": self.crew.generation,
            "addresses": {name: f"{host}:{port}" for name, (host, port) in self.crew.addresses.items()},
            "workers": self.crew.workers(),
            "unconfirmed": self._unconfirmed is not None,
            "last_reload": self._history[-1] if self._history else None,
        }

    @property
    def history(self) -> list[dict[str, Any]]:
        """The last reloads, the oldest first."""
        return [*self._history]

    async def answer(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer a question of the control socket. Raises `ControlError`."""
        try:
            match question.get("do"):
                case "status":
                    return self.status()
                case "stats":
                    return await self.stats()
                case "reloads":
                    return {"reloads": self.history}
                case "plan":
                    return await self.plan(question.get("file"))
                case "reload":
                    within = question.get("confirm_within", 0)
                    return await self.reload("gw reload", confirm_within=float(within))
                case "confirm":
                    return self.confirm()
                case "log-level":
                    await self.set_level(str(question.get("level")))
                    return {}
                case "order":
                    values = {str(key): str(value) for key, value in dict(question.get("values", {})).items()}
                    return await self.order(str(question.get("plugin")), str(question.get("order")), values)
                case "reopen":
                    await self.reopen_logs()
                    return {}
                case "drain":
                    self.drain()
                    return {}
        except NotReloaded as error:
            raise ControlError(str(error)) from None
        raise ControlError(f"there is no {question.get('do')!r}; this gateway is gw {__version__}")
