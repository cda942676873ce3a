"""What an operator does to a gateway under load, again and again, and what its clients notice of it: nothing.

Each trial starts gateways of two workers as processes, with wrk as the load and clients that stay: WebSockets that are
always talked on, and event streams. `scripts/storm` runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from started import Started, start_echo, start_gateway, until
from websockets.asyncio.client import connect as connect_websocket
from websockets.asyncio.server import serve as serve_websockets

from gw.ops.control import ask, beside

PATIENCE: Final = 60.0
"""Seconds that anything may take before a trial fails: much more than it takes on a machine that has other things to do."""
COMPANY: Final = 50
"""WebSockets, and as many event streams."""
MAX_GROWTH: Final = 3 << 20
"""Bytes, of all processes together, from after the first reloads to the end."""
T: Final = 3
GRACE: Final = 5.0
"""Seconds beyond T in which the processes end, on a machine that has other things to do."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    reloads: int
    memory: int
    upgrades: int
    kills: int


QUICK: Final = Scale(reloads=10, memory=12, upgrades=1, kills=1)
FULL: Final = Scale(reloads=100, memory=200, upgrades=5, kills=5)


class Wrk:
    """wrk, running beside; `failures` ends it and returns what it complains of."""

    def __init__(self, port: int, connections: int = 20) -> None:
        command = ["wrk", "-t1", f"-c{connections}", "-d600", f"http://127.0.0.1:{port}/"]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.requests = 0

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()

    def failures(self) -> list[str]:
        self._child.send_signal(signal.SIGINT)
        said = self._child.communicate(timeout=PATIENCE * 3)[0]
        done = re.search(r"(\d+) requests in", said)
        assert done is not None, said
        self.requests = int(done[1])
        assert self.requests > 100, said
        return [line.strip() for line in said.splitlines() if "Socket errors" in line or "Non-2xx" in line]


class Company:
    """Clients that stay, and their upstream: a loop in a thread of its own. *cut* has what ended before it was to."""

    def __init__(self) -> None:
        self.cut: list[str] = []
        self.heard: dict[str, int] = {}
        self.upstream = 0
        self.websockets = 0
        self._gateway = 0
        self._loop = asyncio.new_event_loop()
        self._is_over = False
        self._begun = threading.Event()
        self._visited = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._begun.wait(PATIENCE)

    def visit(self, port: int) -> None:
        """Open the connections, to a gateway, and wait until each has heard something."""
        self._gateway = port
        self._loop.call_soon_threadsafe(self._visited.set)
        until(lambda: len(self.heard) == 2 * COMPANY, "everybody is there", PATIENCE)

    def all_hear_more(self) -> None:
        """Wait until each has heard more."""
        before = {**self.heard}
        until(
            lambda: bool(self.cut) or all(self.heard[name] > before[name] for name in before), "all hear more", PATIENCE
        )
        assert not self.cut, self.cut

    def leave(self) -> None:
        """End all of them. May be called again."""
        if self._is_over:
            return
        self._is_over = True
        self._loop.call_soon_threadsafe(self._visited.set)
        self._thread.join(PATIENCE)
        self._loop.close()

    async def _run(self) -> None:
        events = await asyncio.start_server(self._send_events, "127.0.0.1", 0)
        self.upstream = events.sockets[0].getsockname()[1]
        async with serve_websockets(self._echo, "127.0.0.1", 0) as server, events:
            self.websockets = next(iter(server.sockets)).getsockname()[1]
            self._begun.set()
            await self._visited.wait()
            if not self._is_over:
                names = [f"WebSocket {number}" for number in range(COMPANY)]
                clients = [self._guarded(self._talk, name) for name in names]
                names = [f"event stream {number}" for number in range(COMPANY)]
                clients += [self._guarded(self._listen, name) for name in names]
                await asyncio.gather(*clients)

    async def _guarded(self, client: Callable[[str], Any], name: str) -> None:
        try:
            await client(name)
        except Exception as error:  # noqa: BLE001 - whatever it was, it was cut
            self.cut.append(f"{name}: {error!r}")

    async def _talk(self, name: str) -> None:
        async with connect_websocket(f"ws://127.0.0.1:{self._gateway}/ws", open_timeout=PATIENCE) as client:
            while not self._is_over:
                said = f"{name} {self.heard.get(name, 0)}"
                await client.send(said)
                assert await asyncio.wait_for(client.recv(), PATIENCE) == said
                self.heard[name] = self.heard.get(name, 0) + 1
                await asyncio.sleep(0.1)

    async def _listen(self, name: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._gateway)
        writer.write(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        while not self._is_over:
            line = await asyncio.wait_for(reader.readline(), PATIENCE)
            assert line, "it ended"
            self.heard[name] = self.heard.get(name, 0) + line.startswith(b"data:")
        writer.close()

    async def _echo(self, connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    async def _send_events(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            while not self._is_over:
                writer.write(b"9\r\ndata: 1\n\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.1)
        writer.close()


class Stage:
    """An upstream, a folder, and gateways in it."""

    def __init__(self, folder: Path, echo: Started, scale: Scale) -> None:
        self.folder, self.scale, self._echo = folder, scale, echo
        self._pid_file = folder / "gw.pid"
        self._loads: list[Wrk] = []

    def configuration(self, company: Company | None = None, **settings: Any) -> dict[str, Any]:
        upstreams = [{"name": "all", "host": "127.0.0.1", "port": self._echo.port, "proxy": {"route_prefix": "/"}}]
        routes: list[dict[str, Any]] = []
        if company is not None:
            upstreams.append({"name": "events", "host": "127.0.0.1", "port": company.upstream})
            upstreams.append({"name": "talk", "host": "127.0.0.1", "port": company.websockets})
            routes = [
                {"name": "events", "match": {"path": "/events"}, "upstream": "events"},
                {"name": "talk", "match": {"path": "/ws"}, "upstream": "talk"},
            ]
        return {"bind_port": 0, "workers": 2, "upstreams": upstreams, "routes": routes, **settings}

    @contextlib.contextmanager
    def gateway(self, configuration: dict[str, Any]) -> Iterator[Started]:
        started = start_gateway(configuration, "-P", str(self._pid_file), folder=self.folder)
        try:
            yield started
            self.stop()
        finally:
            for load in self._loads:
                load.close()
            with contextlib.suppress(Exception):  # after an upgrade it is another one
                os.kill(self.ask("status")["pid"], signal.SIGKILL)
            started.child.kill()
            started.child.wait()

    def load(self, port: int) -> Wrk:
        """Start wrk, which ends with the gateway at the latest."""
        self._loads.append(Wrk(port))
        return self._loads[-1]

    def write(self, configuration: dict[str, Any]) -> None:
        (self.folder / "gw.yaml").write_text(json.dumps(configuration), encoding="utf-8")

    def ask(self, do: str) -> dict[str, Any]:
        return ask(beside(self._pid_file), {"do": do}, patience=PATIENCE * 3)

    def stop(self) -> None:
        if self._pid_file.exists():
            self.ask("drain")
            until(lambda: not self._pid_file.exists(), "it has ended", PATIENCE)

    def is_whole(self) -> bool:
        return [each["state"] for each in self.ask("status")["workers"]] == ["ready", "ready"]

    def memory(self) -> int:
        status = self.ask("status")
        pages = 0
        for pid in [status["pid"], *(each["pid"] for each in status["workers"])]:
            pages += int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


# --- trials ------------------------------------------------------------------------------------------


def kill(stage: Stage) -> str:
    """kill -9 of a worker loses its own requests and nothing else, and another one follows"""
    with stage.gateway(stage.configuration()) as started:
        load = stage.load(started.port)
        most = 0
        for _ in range(stage.scale.kills):
            until(stage.is_whole, "both workers serve", PATIENCE)
            enough = stage.ask("stats")["requests"]["total"] + 200
            until(lambda enough=enough: stage.ask("stats")["requests"]["total"] > enough, "the load runs", PATIENCE)
            victim = stage.ask("status")["workers"][0]
            most += stage.ask("stats")["workers"]["connections"][str(victim["number"])]
            os.kill(victim["pid"], signal.SIGKILL)
            started.wait_for(rf"pid {victim['pid']}\) was killed by signal 9; another one follows")
        until(stage.is_whole, "both workers serve", PATIENCE)
        said = " ".join(load.failures())
    lost = sum(int(number) for number in re.findall(r"(?:connect|read|write|timeout) (\d+)", said))
    assert "Non-2xx" not in said, said
    assert lost <= most, f"{lost} requests lost of {most} connections: {said}"
    return f"{stage.scale.kills} killed, {lost} requests cut on {most} connections, {load.requests} requests"


def reload(stage: Stage) -> str:
    """reloads cut nothing and fail nothing"""
    company = Company()
    kinds = [
        lambda number: {"max_body_size": 2_000_000 + number},
        lambda number: {"server_header": f"gw-{number}"},
        lambda number: {"max_connections": 10_000 + number},
        lambda number: {"dns": {"refresh_sec": 10 + number}},  # each upstream anew
    ]
    try:
        configuration = stage.configuration(company)
        with stage.gateway(configuration) as started:
            company.visit(started.port)
            load = stage.load(started.port)
            for number in range(stage.scale.reloads):
                stage.write(configuration | kinds[number % len(kinds)](number))
                assert stage.ask("reload")["changes"]
                company.all_hear_more()
            failures = load.failures()
            assert failures == [], failures
            assert stage.ask("status")["generation"] == stage.scale.reloads + 1
            assert not company.cut, company.cut
            company.leave()
    finally:
        company.leave()
    heard = sum(company.heard.values())
    return f"{stage.scale.reloads} reloads, {load.requests} requests, {2 * COMPANY} that stay heard {heard} messages"


def upgrade(stage: Stage) -> str:
    """a new program on the same sockets loses no request"""
    with stage.gateway(stage.configuration()) as started:
        load = stage.load(started.port)
        for _ in range(stage.scale.upgrades):
            before = stage.ask("status")["pid"]
            os.kill(before, signal.SIGUSR2)
            until(lambda before=before: _pid(stage) not in {0, before}, "the new one has taken over", PATIENCE)
            until(lambda before=before: _is_gone(before), "the old one has ended", PATIENCE)
        failures = load.failures()
        assert failures == [], failures
    return f"{stage.scale.upgrades} upgrades, {load.requests} requests"


def _pid(stage: Stage) -> int:
    with contextlib.suppress(Exception):
        return int(stage.ask("status")["pid"])
    return 0


def _is_gone(pid: int) -> bool:
    """A child of ours that nobody has waited for is a zombie, and gone."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return True


def stuck(stage: Stage) -> str:
    """clients that are stuck hold nothing up for longer than T"""
    with stage.gateway(stage.configuration(shutdown_drain_timeout_sec=T)) as started, contextlib.ExitStack() as stack:
        asked = [
            b"GET /slow?ms=600000 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /bytes?n=300000000 HTTP/1.1\r\nHost: a\r\n\r\n",  # and nobody reads it
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf of",
            b"GET / HTTP/1.1\r\nHo",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
            b"",
        ]
        for head in asked * 5:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", started.port), PATIENCE))
            connection.sendall(head)
        until(lambda: stage.ask("stats")["requests"]["active"] >= 15, "they are under way", PATIENCE)
        began = time.monotonic()
        started.child.terminate()
        code = started.child.wait(PATIENCE + T)
        took = time.monotonic() - began
    assert code == 0, started.log
    assert took < T + GRACE, f"{took:.1f} s, and T is {T} s"
    return f"T is {T} s, and it took {took:.1f} s with {len(asked) * 5} of them"


def memory(stage: Stage) -> str:
    """memory is flat over reloads"""
    configuration = stage.configuration()
    with stage.gateway(configuration):
        first = stage.scale.memory // 3
        before = 0
        for number in range(stage.scale.memory):
            if number == first:
                before = stage.memory()
            stage.write(configuration | {"max_body_size": 2_000_000 + number, "dns": {"refresh_sec": 10 + number}})
            stage.ask("reload")
        until(lambda: len(stage.ask("stats")["generations"]) == 1, "the old generations are gone", PATIENCE)
        grown = stage.memory() - before
    assert grown < MAX_GROWTH, f"{grown / 1024:.0f} KiB more after {stage.scale.memory - first} reloads"
    return f"{stage.scale.memory} reloads, {grown / 1024:+.0f} KiB since number {first}"


TRIALS: Final = {each.__name__: each for each in (kill, reload, upgrade, stuck, memory)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Disturb gateways under load; see that clients notice nothing.")
    parser.add_argument("--quick", action="store_true", help="less of everything: a minute at most")
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"of {', '.join(TRIALS)}; without any, all of them")
    chosen = parser.parse_args()
    if unknown := set(chosen.trials) - TRIALS.keys():
        parser.error(f"there is no trial {', '.join(sorted(unknown))}; there are {', '.join(TRIALS)}")
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed: apt-get install wrk")
    failed = 0
    with contextlib.closing(start_echo()) as echo:
        for name in chosen.trials or TRIALS:
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    told = TRIALS[name](Stage(Path(folder), echo, QUICK if chosen.quick else FULL))
                except AssertionError as error:
                    failed, told = failed + 1, f"FAILED: {TRIALS[name].__doc__}: {error}"
            print(f"{name:8} {told} ({time.monotonic() - began:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
