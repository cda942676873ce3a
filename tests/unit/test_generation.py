"""What a configuration becomes, how one follows another, and what outlives it."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from gw.config.load import load
from gw.generation import Current, Shared, build, describe
from gw.http.engines import choose
from gw.testing.gateway import Upstream, in_memory
from gw.testing.memory import MemoryNetwork

UP = {"name": "up", "host": "192.0.2.1"}


@asynccontextmanager
async def network():
    async with anyio.create_task_group() as tasks:
        yield MemoryNetwork(tasks, {"192.0.2.1:80": Upstream()})
        tasks.cancel_scope.cancel()


class Stub:
    """Stands for a generation: all that `Current` knows of one."""

    def __init__(self):
        self.users, self.idle, self.closed = 0, None, False

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
            connection = await pool.connect(pool.choose())
            pool.put_back(connection)
            await generation.aclose()
            assert (pool.open, connection.stream.lost) == (0, True)

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
