"""What a configuration becomes, how one follows another, and what outlives it."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from types import ModuleType

import anyio
import pytest

from gw import Filter, Section, Sections, hookimpl
from gw.config.load import load
from gw.generation import Current, PluginContext, Shared, build, describe
from gw.http.engines import choose
from gw.limits import CLOSING_GRACE
from gw.plugins import PluginSet
from gw.testing.gateway import Upstream, in_memory
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


class TestContext:
    async def test_hooks_share_what_one_of_them_made(self):
        loaded = load({"upstreams": [UP]}, environ={})
        async with AsyncExitStack() as stack:
            first, second = (PluginContext("rewrite", loaded, Shared(), stack) for _ in range(2))
            made = first.once("key", list)
            assert first.once("key", list) is made
            assert second.once("key", list) is not made
            assert first.config is loaded.config
            assert first.position(("upstreams", 0)) == "configuration"


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

    def test_filters_stand_before_an_earlier_plugin_where_the_settings_say_so(self):
        def plugin(name, before=""):
            def gw_filters(route, ctx):
                return (named(name),)

            def gw_filters_before(route, ctx, plugin):
                return (named(f"{name} before {plugin}"),) if plugin == before else ()

            module = ModuleType(name)
            module.GW_API = 1
            module.gw_filters, module.gw_filters_before = hookimpl(gw_filters), hookimpl(gw_filters_before)
            plugins.add(name, module)

        def named(name):
            return type("Named", (Filter,), {"name": name, "on_complete": lambda self, ex: None})()

        plugins = PluginSet()
        plugin("a", before="c")  # which comes later: then its own place will do
        plugin("b")
        plugin("c", before="b")
        plugin("d", before="b")
        config = {"upstreams": [UP], "routes": [{"match": {"prefix": "/"}, "upstream": "up"}]}
        (row, *_) = describe(load(config, environ={}, plugins=plugins))
        assert [each.name for each in row.filters] == ["a", "c before b", "d before b", "b", "c", "d"]

    async def test_routes_come_from_both_places_and_in_this_order(self):
        config = {
            "upstreams": [{**UP, "proxy": {"route_prefix": "/legacy/:id"}}],
            "routes": [
                {"name": "one", "match": {"path": "/one", "host": "a.test"}, "upstream": "up"},
                {"match": {"prefix": "/two", "methods": ["GET"]}, "upstreams": [{"name": "up", "weight": 1}]},
                {"match": {"path": "/alone"}},
            ],
        }
        rows = describe(load(config, environ={}))
        assert [(row.hosts, row.path, row.methods, row.target) for row in rows[:3]] == [
            (("a.test",), "/one", (), "up"),
            ((), "/two/*", ("GET",), "up"),
            ((), "/alone", (), "none: a filter answers, or 404"),
        ]
        assert rows[0].name == "one"
        assert any(row.path.startswith("/legacy/:id") for row in rows[3:])
        assert {row.framing for row in rows} == {"unchanged"}


class TestServing:
    async def test_weights_decide_who_is_asked(self):
        config = {
            "upstreams": [UP, {"name": "other", "host": "192.0.2.2"}],
            "routes": [
                {
                    "match": {"prefix": "/"},
                    "upstreams": [{"name": "up", "weight": 0}, {"name": "other", "weight": 5}],
                },
            ],
        }
        async with in_memory(config, upstreams={"192.0.2.2:80": Upstream()}) as gateway:
            for _ in range(20):
                assert (await gateway.get("/")).status == 200
            assert set(gateway.network.dialled) == {"192.0.2.2:80"}

    async def test_endpoints_take_turns(self):
        both = {"endpoints": [{"host": "192.0.2.1"}, {"host": "192.0.2.2"}]}
        config = {"upstreams": [{"name": "up", **both, "proxy": {"route_prefix": "/"}}]}
        one, two = Upstream(), Upstream()
        async with in_memory(config, one, upstreams={"192.0.2.2:80": two}) as gateway:
            for _ in range(6):
                await gateway.get("/")
            assert (len(one.asked), len(two.asked)) == (3, 3)


def test_routes_that_conflict_are_refused_before_anything_is_opened():
    settings = {
        "plugins": [],
        "upstreams": [{"name": "a", "host": "127.0.0.1"}],
        "routes": [{"name": n, "match": {"path": "/a"}, "upstream": "a"} for n in "xy"],
    }
    with pytest.raises(ValueError, match="routes 'x' and 'y' conflict: both take all methods at /a"):
        describe(load(settings, environ={}))


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


async def test_a_plugin_cannot_call_a_service_of_the_dns():
    endpoints = [{"srv": "_http._tcp.a.example"}]
    upstreams = [{"name": "up", "endpoints": endpoints, "proxy": {"route_prefix": "/"}}]
    loaded = load({"dns": {"resolver": "dnspython"}, "upstreams": upstreams, "plugins": ["rewrite"]}, environ={})
    async with AsyncExitStack() as stack:
        context = PluginContext("rewrite", loaded, Shared(), stack, {})
        with pytest.raises(
            ValueError, match=r"^upstream 'up' is a service \(srv\), and the gateway's own calls need a host$"
        ):
            context.caller("up")
