"""The process of ``gw serve``: from a configuration to an exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gw.http.engines import EngineMissing, choose
from gw.logs import application_log
from gw.logs.log_files import LogFileError
from gw.ops import control, memory
from gw.ops.alone import Alone, Crew, count_of
from gw.ops.daemon import Readiness, daemonize
from gw.ops.descriptors import raise_limit
from gw.ops.loops import LoopMissing, loop_name, run_on
from gw.ops.operator import Operator
from gw.ops.pid_file import PidFile, PidFileError
from gw.ops.sockets import Sockets
from gw.ops.supervisor import Supervisor

if TYPE_CHECKING:
    from gw.config.load import Loaded

__all__ = ["run"]


def run(loaded: Loaded, *, pid_file: str = "", daemon: bool = False) -> int:
    """Serve *loaded* until a signal says to stop; return the process's exit code. Without a *pid_file* nobody can ask it."""
    config = loaded.config
    sockets = Sockets()
    readiness = Readiness()
    if daemon and not sockets.is_replacing:
        readiness = daemonize()
    held: PidFile | None = None
    try:
        loop_name(config.loop)
        choose(config.engine)
        if pid_file:
            held = _take(Path(pid_file), sockets)
        return _logged(loaded, held, sockets, readiness, console=not daemon)
    except (EngineMissing, LoopMissing, PidFileError, LogFileError) as error:
        sys.stderr.write(f"cannot serve: {error}\n")
        readiness.fail(f"cannot serve: {error}")
        return 1
    finally:
        readiness.fail("")
        sockets.close()
        if held is not None:
            held.release()


def _logged(loaded: Loaded, held: PidFile | None, sockets: Sockets, readiness: Readiness, *, console: bool) -> int:
    """Serve, with the application log set up. Raises `LogFileError`."""
    config = loaded.config
    app_log = application_log.configure(**application_log.settings(config.log), console=console)
    try:
        raise_limit(config.max_connections, sum(each.pool.max_connections for each in config.upstreams))
        alone = count_of(loaded) == 1
        if alone:
            memory.settle()

        async def serve() -> int:
            crew: Crew = Alone(loaded) if alone else Supervisor(loaded, console=console)
            operator = Operator(crew, app_log, held, sockets, readiness, console=console)
            return await operator.run(None if held is None else control.beside(held.path))

        return run_on(config.loop if alone else "asyncio", serve)
    finally:
        app_log.close()


def _take(path: Path, sockets: Sockets) -> PidFile:
    # The one that we replace holds the lock, and so do we: its descriptor was inherited.
    if sockets.pid_file is None:
        return PidFile.take(path)
    os.set_inheritable(sockets.pid_file, False)
    return PidFile(path, sockets.pid_file)
