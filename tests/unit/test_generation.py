"""What a configuration becomes, how one follows another, and what outlives it."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from types import ModuleType

import anyio
import pytest

from gw import Section, Sections, hookimpl
from gw.config.load import load
from gw.context import Shared
from gw.generation import Current, build
from gw.http.engines import choose
from gw.limits import CLOSING_GRACE
from gw.plugins import PluginSet
from gw.testing.gateway import Upstream
from gw.testing.memory import MemoryNetwork
from gw.tunnel import Live

UP = {"name": "up", "host": "192.0.2.1"}


@asynccontextmanager
async def network():
    async with anyio.create_task_group() as tasks:
        yield MemoryNetwork(tasks, {"192.0.2.1:80": Upstream()})
        tasks.cancel_scope.cancel()


class Stub:
    """Stands for a generation: all that `Current` knows of one."""

    def __init__(self):
        self.users, self.idle, self.closed, self.took_over = 0, None, False, 0
        self.number, self.live = 1, Live()

    def take_over(self):
        self.took_over += 1

    async def aclose(self):
        self.closed = True


class TestSwitching:
    async def test_the_old_one_is_closed_when_its_last_exchange_is_over(self):
        current, old, new = Current(30), Stub(), Stub()
        await current.switch(old)
        old.users = 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(current.switch, new)
            await anyio.wait_all_tasks_blocked()
            assert (current.now, old.closed) == (new, False)
            old.idle.set()
        assert (old.closed, new.closed) == (True, False)

    async def test_it_is_not_waited_for_longer_than_it_may_take(self):
        current, old = Current(0), Stub()
        await current.switch(old)
        old.users = 1
        await current.switch(None)
        assert (current.now, old.closed) == (None, True)

    async def test_one_that_nobody_uses_is_closed_at_once(self):
        current, old = Current(30), Stub()
        await current.switch(old)
        await current.switch(Stub())
        assert old.closed

    async def test_each_is_told_once_that_it_took_over(self):
        current, old, new = Current(30), Stub(), Stub()
        await current.switch(old)
        assert (old.took_over, new.took_over) == (1, 0)
        await current.switch(new)
        await current.switch(None)
        assert (old.took_over, new.took_over) == (1, 1)


class TestShared:
    async def test_state_lives_as_long_as_some_generation_asks_for_it(self):
        shared = Shared()
        async with AsyncExitStack() as new:
            async with AsyncExitStack() as old:
                first = shared.use("buckets", dict, old)
                assert shared.use("buckets", dict, new) is first
            assert len(shared) == 1
        assert len(shared) == 0
        async with AsyncExitStack() as later:
            assert shared.use("buckets", list, later) == []

    async def test_what_could_not_be_made_is_not_kept(self):
        shared = Shared()
        async with AsyncExitStack() as stack:
            with pytest.raises(ZeroDivisionError):
                shared.use("key", lambda: 1 / 0, stack)
            assert len(shared) == 0
            assert shared.use("key", lambda: 1, stack) == 1


class TestBuilding:
    async def test_closing_one_closes_its_pools(self):
        async with network() as net:
            loaded = load({"upstreams": [{**UP, "proxy": {"route_prefix": "/"}}]}, environ={})
            generation = await build(1, loaded, net, choose("auto"), Shared())
            pool = generation.pools["up"]
            connection = await pool.connect(pool.origins[0])
            pool.put_back(connection)
            await generation.aclose()
            assert (pool.open, connection.stream.lost) == (0, True)

    async def test_a_plugin_hears_of_it_and_may_fail_without_doing_harm(self, caplog):
        module, seen = ModuleType("told"), []
        module.GW_API = 1

        class Words(Section):
            word: str = ""

        def gw_sections():
            return Sections("told", upstream=Words)

        def gw_lifespan(ctx):
            ctx.shared("key", dict)

        def gw_takeover(ctx):
            assert ctx.shared("key", dict) is ctx.shared("key", list)
            seen.append(
                (
                    ctx.upstream_section("up"),
                    ctx.upstream_section("none"),
                    ctx.drain("up", self),
                    ctx.drain("none", self),
                )
            )
            raise ZeroDivisionError

        for each in (gw_sections, gw_lifespan, gw_takeover):
            setattr(module, each.__name__, hookimpl(each))
        plugins = PluginSet()
        plugins.add("told", module)
        async with network() as net:
            loaded = load({"upstreams": [{**UP, "told": {"word": "a"}}]}, environ={}, plugins=plugins)
            shared = Shared()
            generation = await build(1, loaded, net, choose("auto"), shared)
            assert seen == []
            current = Current(0)
            await current.switch(generation)
            assert seen == [(Words(word="a"), None, 0, 0)]
            assert [record.getMessage() for record in caplog.records] == [
                "plugin told raised in gw_takeover; what it shares may be as it was before"
            ]
            await current.switch(None)
            assert len(shared) == 0


class TestLifespans:
    @staticmethod
    def plugin(lifespan):
        module = ModuleType("worker")
        module.GW_API = 1

        def gw_lifespan(ctx):
            return lifespan(ctx)

        module.gw_lifespan = hookimpl(gw_lifespan)
        plugins = PluginSet()
        plugins.add("worker", module)
        return load({"upstreams": [UP]}, environ={}, plugins=plugins)

    async def test_generations_that_overlap_may_each_hold_a_task_group(self):
        log = []

        @asynccontextmanager
        async def work(ctx):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                log.append("in")
                yield
                log.append("out")
                tasks.cancel_scope.cancel()

        loaded = self.plugin(work)
        current = Current(30)
        async with network() as net:
            for number in (1, 2):
                await current.switch(await build(number, loaded, net, choose("auto"), Shared()))
            await current.switch(None)
        assert log == ["in", "in", "out", "out"]

    async def test_what_entering_raises_is_raised_and_nothing_stays_open(self):
        @asynccontextmanager
        async def work(ctx):
            raise OSError(1, "no such collector")
            yield

        async with network() as net:
            shared = Shared()
            with pytest.raises(OSError, match="no such collector"):
                await build(1, self.plugin(work), net, choose("auto"), shared)
            assert [family.rows() for family in shared.figures if "pool" in family.name] == [{}, {}, {}]

    async def test_background_work_that_fails_is_logged_and_the_gateway_goes_on(self, caplog):
        async def fail():
            raise ZeroDivisionError

        @asynccontextmanager
        async def work(ctx):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fail)
                yield

        async with network() as net:
            generation = await build(1, self.plugin(work), net, choose("auto"), Shared())
            await anyio.wait_all_tasks_blocked()
            await generation.aclose()
        assert [record.getMessage() for record in caplog.records] == [
            "plugin worker: its background work ended in an error"
        ]

    async def test_one_that_does_not_end_in_time_is_cancelled(self):
        log = []

        @asynccontextmanager
        async def work(ctx):
            yield
            try:
                await anyio.sleep_forever()
            finally:
                log.append("cancelled")

        async with network() as net:
            current = Current(30)
            await current.switch(await build(1, self.plugin(work), net, choose("auto"), Shared()))
            await current.switch(None, until=anyio.current_time() - CLOSING_GRACE)
            await anyio.wait_all_tasks_blocked()
        assert log == ["cancelled"]
