"""Which workers there are, and what becomes of them. They are played by the tests; `tests/integration` has real ones."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import asynccontextmanager

import anyio
import pytest

from gw.config.load import load
from gw.ops.channel import Channel, Ended
from gw.ops.supervisor import Supervisor
from gw.testing import PATIENCE


def loaded(workers):
    return load({"plugins": [], "bind_port": 0, "workers": workers}, environ={})


class Process:
    """A worker: it serves at once, agrees to everything, and ends when the test says so."""

    def __init__(self, pid, channel):
        self.pid, self.channel = pid, channel
        self.returncode = None
        self.told = []
        self._end = anyio.Event()

    async def run(self):
        try:
            while True:
                what = (await self.channel.receive()).what
                self.told.append(what["do"])
                if what["do"] == "start":
                    await self.channel.send({"is": "ready", "addresses": {}})
                elif "id" in what:
                    await self.channel.send({"is": "answer", "id": what["id"]})
        except Ended:
            return

    def end(self, code=0):
        self.returncode = code
        self.channel.close()
        self._end.set()

    def kill(self):
        self.end(-9)

    async def wait(self):
        await self._end.wait()


class Machine:
    """Where the processes are started."""

    def __init__(self):
        self.processes = []
        self.before_start = None
        """Called before each start; it may raise."""
        self.tasks = None

    async def open_process(self, _command, *, pass_fds, **_):
        await anyio.lowlevel.checkpoint()
        if self.before_start is not None:
            self.before_start()
        channel = Channel(socket.socket(fileno=os.dup(pass_fds[0])))
        process = Process(len(self.processes) + 1, channel)
        self.processes.append(process)
        self.tasks.start_soon(process.run)
        return process


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr("anyio.open_process", machine.open_process)
    monkeypatch.setattr("gw.ops.supervisor.WORKER_BACKOFF", 0.0)
    return machine


@asynccontextmanager
async def supervising(machine, workers):
    """Run a supervisor until the block ends, and its workers with it."""
    supervisor = Supervisor(loaded(workers), console=False)
    over = anyio.Event()

    async def run():
        await supervisor.serve({}, lambda: None)
        over.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as machine.tasks:
            machine.tasks.start_soon(run)
            await until(lambda: supervisor._started)
            yield supervisor
            if not supervisor._stopping:
                supervisor.stop()
            while not over.is_set():
                for process in machine.processes:
                    if "stop" in process.told and process.returncode is None:
                        process.end()
                await anyio.lowlevel.checkpoint()


async def until(condition):
    while not condition():
        await anyio.lowlevel.checkpoint()


async def test_a_worker_that_dies_is_followed_by_another(machine):
    async with supervising(machine, 2) as supervisor:
        machine.processes[1].end(1)
        await until(lambda: len(machine.processes) == 3 and all(w["state"] == "ready" for w in supervisor.workers()))
        assert [(w["number"], w["pid"], w["restarts"]) for w in supervisor.workers()] == [(1, 1, 0), (2, 3, 1)]


async def test_a_place_that_is_wanted_again_while_its_worker_drains_has_one_worker_after_it(machine):
    async with supervising(machine, 2) as supervisor:
        await supervisor.reload(loaded(1), {})
        await until(lambda: "stop" in machine.processes[1].told)
        await supervisor.reload(loaded(2), {})
        await anyio.wait_all_tasks_blocked()
        assert len(machine.processes) == 2, "the place is not free yet"
        machine.processes[1].end()
        await until(lambda: len(machine.processes) == 3 and len(supervisor.workers()) == 2)
        await until(lambda: all(w["state"] == "ready" for w in supervisor.workers()))
        await anyio.wait_all_tasks_blocked()
        assert [(w["number"], w["pid"], w["restarts"]) for w in supervisor.workers()] == [(1, 1, 0), (2, 3, 0)]
        assert supervisor.restarts == 0
        machine.processes[2].end(1)
        await until(lambda: len(machine.processes) == 4)
        await anyio.wait_all_tasks_blocked()
        assert [w["pid"] for w in supervisor.workers()] == [1, 4]


async def test_a_worker_that_is_being_started_when_all_shall_stop_ends_as_well(machine):
    async with supervising(machine, 2) as supervisor:
        machine.before_start = supervisor.stop
        machine.processes[1].end(1)
        await until(lambda: len(machine.processes) == 3 and machine.processes[2].returncode == -9)


async def test_a_worker_that_cannot_be_started_is_tried_again_and_the_others_go_on(machine, caplog):
    def refuse():
        machine.before_start = None
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    async with supervising(machine, 2) as supervisor:
        machine.before_start = refuse
        machine.processes[1].end(1)
        await until(lambda: len(machine.processes) == 3)
        await until(lambda: [w["state"] for w in supervisor.workers()] == ["ready"] * 2)
    assert "worker 2 cannot be started: Cannot allocate memory" in caplog.messages
