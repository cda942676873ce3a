"""What a worker does at the supervisor's word. Whole workers are started by `tests/integration/test_operations.py`."""

from __future__ import annotations

import json
import socket

import anyio
import pytest

from gw.figures import Figures
from gw.ops.channel import Channel
from gw.ops.worker import _Worker
from gw.testing import PATIENCE


class Gateway:
    """Has figures, and is asked for those of all."""

    is_ready = True
    ask_stats = None

    def __init__(self):
        self.stopped = anyio.Event()
        self.figures = Figures()
        self.figures.counter("gw.asked", "{requests}", "Asked").at().add(5)

    def sum_figures(self, ask):
        self.ask_figures = ask

    def stats(self):
        return {"requests": 1}

    def stop(self, *, at_once=False):
        self.stopped.set()


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), Channel(theirs)


async def test_the_figures_of_all_are_the_supervisors_to_give(ends):
    supervisor, channel = ends
    gateway = Gateway()
    worker = _Worker(channel, gateway, None, console=False)
    found = []

    async def ask():
        found.append(await gateway.ask_stats())
        found.append(await gateway.ask_figures())

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.obey)
            tasks.start_soon(ask)
            question = (await supervisor.receive()).what
            assert question["about"] == "stats"
            await supervisor.send({"do": "told", "id": question["id"]}, b'{"requests": 7}')
            question = (await supervisor.receive()).what
            await supervisor.send({"do": "figures", "id": 1})
            packed = json.loads((await supervisor.receive()).data) * 2
            await supervisor.send({"do": "told", "id": question["id"]}, json.dumps(packed).encode())
            await anyio.wait_all_tasks_blocked()
            supervisor.close()
            await gateway.stopped.wait()
    assert found[0] == {"requests": 7}
    assert {family.name: family.rows()[()].value for family in found[1] if family.rows()} == {"gw.asked": 10}


async def test_without_a_supervisor_its_own_figures_are_all_there_are(ends):
    supervisor, channel = ends
    gateway = Gateway()
    _Worker(channel, gateway, None, console=False)
    supervisor.close()
    assert await gateway.ask_stats() == {"requests": 1}
    assert await gateway.ask_figures() is gateway.figures


async def test_who_waits_for_a_supervisor_that_goes_has_its_own_figures(ends):
    supervisor, channel = ends
    gateway = Gateway()
    worker = _Worker(channel, gateway, None, console=False)
    found = []

    async def ask():
        found.append(await gateway.ask_stats())

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.obey)
            tasks.start_soon(ask)
            await supervisor.receive()
            supervisor.close()
    assert found == [{"requests": 1}]


async def test_so_many_at_most_ask_for_the_figures_of_all_at_once(ends, monkeypatch):
    monkeypatch.setattr("gw.ops.worker.MAX_FIGURES_ASKED", 2, raising=False)
    supervisor, channel = ends
    gateway = Gateway()
    worker = _Worker(channel, gateway, None, console=False)
    asked, found = [], []

    async def ask():
        found.append(await gateway.ask_stats())

    async def listen():
        while True:
            asked.append((await supervisor.receive()).what["id"])

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.obey)
            tasks.start_soon(listen)
            for _ in range(3):
                tasks.start_soon(ask)
            while len(asked) < 2:
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            assert asked == [1, 2]
            await supervisor.send({"do": "told", "id": 1}, b"{}")
            while len(asked) < 3:
                await anyio.lowlevel.checkpoint()
            for number in (2, 3):
                await supervisor.send({"do": "told", "id": number}, b"{}")
            while len(found) < 3:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()


async def test_figures_that_nobody_waits_for_any_more_are_dropped(ends):
    supervisor, channel = ends
    gateway = Gateway()
    worker = _Worker(channel, gateway, None, console=False)
    leaves = anyio.CancelScope()

    async def ask():
        with leaves:
            await gateway.ask_stats()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.obey)
            tasks.start_soon(ask)
            question = (await supervisor.receive()).what
            leaves.cancel()
            await anyio.wait_all_tasks_blocked()
            await supervisor.send({"do": "told", "id": question["id"]})
            await supervisor.send({"do": "stats", "id": 5})
            assert (await supervisor.receive()).what == {"is": "answer", "id": 5, "stats": {"requests": 1}}
            supervisor.close()
