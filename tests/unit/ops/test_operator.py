"""Orders to a running gateway: what a reload does, what is remembered of it, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
from contextlib import asynccontextmanager

import anyio
import pytest

from gw.config.load import load
from gw.figures import Figures
from gw.logs.application_log import configure
from gw.ops.control import ControlError
from gw.ops.daemon import Readiness
from gw.ops.failures import NotReloaded
from gw.ops.operator import Operator
from gw.ops.sockets import INHERITED, Sockets
from gw.testing import PATIENCE


class Crew:
    """Serves nothing, and does as it is told."""

    def __init__(self, loaded):
        self.loaded, self.generation = loaded, 1
        self.addresses = {"main": ("127.0.0.1", 80)}
        self.sockets = ()
        self.is_ready = False
        self.refuses = None
        self.levels, self.reopened, self.stops = [], 0, []
        self._end = anyio.Event()

    async def serve(self, sockets, ready):
        self.is_ready = True
        ready()
        await self._end.wait()
        for sock in sockets.values():
            sock.close()

    async def reload(self, loaded, sockets):
        if self.refuses:
            raise NotReloaded(self.refuses)
        self.loaded, self.generation = loaded, self.generation + 1

    def stop(self, *, at_once=False):
        self.is_ready = False
        self.stops.append(at_once)
        self._end.set()

    async def stats(self):
        return {"requests": {"active": 2}}

    async def figures(self):
        return Figures()

    def workers(self):
        return []

    async def set_level(self, level):
        self.levels.append(level)

    async def reopen_logs(self):
        self.reopened += 1


@asynccontextmanager
async def operating(file, text="max_connections: 5"):
    file.write_text(f"plugins: []\nbind_port: 0\n{text}\n")
    loaded = load(file, environ={})
    crew, app_log, sockets = Crew(loaded), configure(console=False), Sockets({})
    operator = Operator(crew, app_log, None, sockets, Readiness(), console=False)
    codes = []

    async def run():
        codes.append(await operator.run(None))

    try:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                while not crew.is_ready:
                    await anyio.lowlevel.checkpoint()
                yield operator, crew
                operator.drain()
        assert codes == [0]
    finally:
        app_log.close()
        sockets.close()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "gw.yaml"


async def test_a_reload_reads_the_source_again_and_says_what_changed(file):
    async with operating(file) as (operator, crew):
        file.write_text("plugins: []\nbind_port: 0\nmax_connections: 6\n")
        assert (await operator.answer({"do": "plan"}))["changes"] == ["max_connections 5 -> 6"]
        assert crew.generation == 1
        answer = await operator.answer({"do": "reload"})
        assert answer == {"generation": 2, "changes": ["max_connections 5 -> 6"], "warnings": []}
        assert crew.loaded.config.max_connections == 6
        assert operator.history[0] | {"time": 0} == {
            "time": 0,
            "by": "gw reload",
            "ok": True,
            "generation": 2,
            "changes": ["max_connections 5 -> 6"],
        }


async def test_a_reload_that_fails_is_remembered_and_changes_nothing(file):
    async with operating(file) as (operator, crew):
        before = crew.loaded
        crew.refuses = "not today"
        with pytest.raises(ControlError, match=r"^not today$"):
            await operator.answer({"do": "reload"})
        file.write_text("nonsense: 1")
        with pytest.raises(ControlError, match="nonsense: is not a known key"):
            await operator.answer({"do": "reload"})
        assert crew.loaded is before
        assert [each["ok"] for each in operator.history] == [False, False]
        assert crew.reopened == 2, "logs are opened anew in any case"


async def test_a_reload_to_be_confirmed_holds_up_the_next_one(file):
    async with operating(file) as (operator, crew):
        with pytest.raises(ControlError, match="no reload waits to be confirmed"):
            await operator.answer({"do": "confirm"})
        await operator.answer({"do": "reload", "confirm_within": 100})
        with pytest.raises(ControlError, match="the last reload waits to be confirmed"):
            await operator.answer({"do": "reload"})
        assert (await operator.answer({"do": "confirm"}))["generation"] == 2
        await operator.answer({"do": "reload"})
        assert crew.generation == 3


async def test_what_is_not_confirmed_is_undone(file):
    async with operating(file) as (operator, crew):
        before = crew.loaded
        file.write_text("plugins: []\nbind_port: 0\nmax_connections: 6\n")
        await operator.answer({"do": "reload", "confirm_within": 0.01})
        while crew.generation < 3:
            await anyio.lowlevel.checkpoint()
        assert crew.loaded is before
        assert not operator.status()["unconfirmed"]


async def test_levels_are_changed_everywhere(file):
    async with operating(file) as (operator, crew):
        await operator.answer({"do": "log-level", "level": "debug"})
        assert crew.levels == ["debug"]
        with pytest.raises(ControlError, match="'loud' is not a level; there are trace"):
            await operator.answer({"do": "log-level", "level": "loud"})


async def test_its_status_can_be_sent(file):
    async with operating(file) as (operator, _):
        status = await operator.answer({"do": "status"})
        assert (status["state"], status["ready"], status["generation"]) == ("serving", True, 1)
        json.dumps(status)
        assert await operator.answer({"do": "stats"}) == {"requests": {"active": 2}}
        assert await operator.answer({"do": "reloads"}) == {"reloads": []}
        assert await operator.answer({"do": "reopen"}) == {}


async def test_what_it_does_not_know_is_refused(file):
    async with operating(file) as (operator, _):
        with pytest.raises(ControlError, match="there is no 'dance'; this gateway is gw"):
            await operator.answer({"do": "dance"})


async def test_while_it_drains_it_is_not_reloaded(file):
    async with operating(file) as (operator, crew):
        operator.drain()
        operator.drain()
        assert crew.stops == [False]
        with pytest.raises(NotReloaded, match="the gateway is draining"):
            await operator.reload("test")


async def test_a_second_signal_ends_it_at_once(file):
    async with operating(file) as (operator, crew):
        operator._stop(signal.SIGTERM.name)
        operator._stop(signal.SIGTERM.name)
        assert crew.stops == [False, True]


@pytest.mark.parametrize("serves", [True, False])
async def test_a_successor_leaves_the_control_socket_to_the_one_before_until_it_serves(file, tmp_path, serves):
    file.write_text("plugins: []\nbind_port: 0\n")
    control = tmp_path / "gw.pid.sock"
    control.write_text("the one before listens here")
    ours, theirs = os.pipe()
    seen = []

    class Successor(Crew):
        async def serve(self, sockets, ready):
            await anyio.wait_all_tasks_blocked()
            seen.append(control.is_socket())
            for sock in sockets.values():
                sock.close()
            if not serves:
                raise OSError(errno.EADDRINUSE, "in use")
            ready()
            seen.append(control.is_socket())

    app_log, sockets = configure(console=False), Sockets({INHERITED: json.dumps({"ready": theirs})})
    operator = Operator(Successor(load(file, environ={})), app_log, None, sockets, Readiness(), console=False)
    try:
        with anyio.fail_after(PATIENCE):
            assert await operator.run(control) == (not serves)
    finally:
        app_log.close()
        os.close(ours)
        if not serves:
            os.close(theirs)
    assert seen == ([False, True] if serves else [False])
    assert control.exists() is not serves
