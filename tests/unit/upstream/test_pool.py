"""The pool: who gets which connection, how many there are, who waits, and what a cancelled task leaves. Time is virtual."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import cycle

import anyio
import pytest
from hypothesis import given, settings, strategies as st

from gw.failures import ConnectFailed, ConnectTimeout, QueueDrained, QueueFull, QueueTimeout
from gw.filters import Attempt
from gw.http.engines import choose
from gw.http.h1 import ReaderLimits
from gw.keys import Endpoint
from gw.testing.memory import Backlog, MemoryNetwork
from gw.upstream.forward import Forwarding
from gw.upstream.http1 import Patience
from gw.upstream.pool import Pool, PoolSettings

FIRST, SECOND = Endpoint("192.0.2.1", 80), Endpoint("192.0.2.2", 8080)
SMALL = PoolSettings(max_connections=2, max_idle=2, max_queue=2, queue_timeout=5, idle_timeout=90)


class Bench:
    """A pool on a network in memory, and what its users do: `get` and `give_back`."""

    def __init__(self, network, backlog, pool):
        self.network, self.backlog, self.pool = network, backlog, pool
        self.turns = cycle(pool.origins)

    async def get(self, *, fresh=False):
        origin = next(self.turns)
        connection = None if fresh else self.pool.take(origin)
        if connection is None:
            connection = await self.pool.connect(origin, fresh=fresh)
        return connection.begin(Attempt(1), Forwarding(), Patience())

    def give_back(self, connection):
        self.pool.put_back(connection)

    @property
    def counts(self):
        return self.pool.open, self.pool.idle, self.pool.waiting


@asynccontextmanager
async def pool_of(settings=SMALL, endpoints=(FIRST,), reachable=True):
    async with anyio.create_task_group() as tasks:
        backlog = Backlog()
        network = MemoryNetwork(tasks, {str(each): backlog for each in endpoints} if reachable else {})
        pool = Pool("up", endpoints, settings, network, choose("auto"), ReaderLimits(0, 0, 0))
        yield Bench(network, backlog, pool)
        tasks.cancel_scope.cancel()


class TestWhichConnection:
    async def test_the_one_used_last_is_used_next(self):
        async with pool_of() as bench:
            one, two = await bench.get(), await bench.get()
            bench.give_back(two)
            bench.give_back(one)
            assert await bench.get() is one
            assert await bench.get() is two

    async def test_one_that_has_ended_is_not_used(self):
        async with pool_of() as bench:
            bench.give_back(await bench.get())
            assert bench.counts == (1, 1, 0)
            (await bench.backlog.accept()).close()
            assert bench.counts == (0, 0, 0)

    async def test_one_on_which_something_came_unasked_is_not_used(self):
        async with pool_of() as bench:
            one = await bench.get()
            bench.give_back(one)
            (await bench.backlog.accept()).write(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            assert await bench.get() is not one
            assert bench.counts == (1, 0, 0)

    async def test_one_that_was_idle_too_long_is_closed(self):
        async with pool_of() as bench:
            bench.give_back(await bench.get())
            await bench.network.advance(89.9)
            assert bench.counts == (1, 1, 0)
            await bench.network.advance(0.2)
            assert bench.counts == (0, 0, 0)

    async def test_one_that_is_too_old_takes_no_further_request(self):
        async with pool_of(replace(SMALL, max_lifetime=100)) as bench:
            one = await bench.get()
            await bench.network.advance(50)
            bench.give_back(one)
            assert await bench.get() is one
            await bench.network.advance(51)
            assert not one.stream.lost, "a running request is not cut off"
            bench.give_back(one)
            assert (one.stream.lost, bench.counts) == (True, (0, 0, 0))

    async def test_those_of_one_moment_need_not_end_together(self):
        async with pool_of(replace(SMALL, max_connections=50, max_lifetime=100, lifetime_jitter=0.4)) as bench:
            now = bench.network.deadlines.now
            lives = [(await bench.get()).expires - now for _ in range(50)]
            assert 60 <= min(lives) < 80 < max(lives) <= 100

    async def test_one_that_has_served_enough_is_closed(self):
        async with pool_of(replace(SMALL, max_requests=2)) as bench:
            one = await bench.get()
            bench.give_back(one)
            assert await bench.get() is one
            bench.give_back(one)
            assert (one.stream.lost, bench.counts) == (True, (0, 0, 0))

    async def test_only_so_many_stay_idle(self):
        async with pool_of(replace(SMALL, max_idle=1)) as bench:
            one, two = await bench.get(), await bench.get()
            bench.give_back(one)
            bench.give_back(two)
            assert (two.stream.lost, bench.counts) == (True, (1, 1, 0))

    async def test_a_full_pool_makes_room_by_closing_an_idle_connection_to_another_endpoint(self):
        async with pool_of(replace(SMALL, max_connections=1), (FIRST, SECOND)) as bench:
            one = await bench.get()
            bench.give_back(one)
            two = await bench.get()
            assert (one.stream.lost, two.origin.endpoint, bench.counts) == (True, SECOND, (1, 0, 0))


class TestQueue:
    async def test_whoever_waits_longest_is_served_first(self):
        async with pool_of() as bench:
            busy = [await bench.get(), await bench.get()]
            served: list[int] = []

            async def wait(number):
                connection = await bench.get()
                served.append(number)
                bench.give_back(connection)

            async with anyio.create_task_group() as tasks:
                for number in range(2):
                    tasks.start_soon(wait, number)
                    await bench.network.settle()
                assert bench.counts == (2, 0, 2)
                bench.give_back(busy[0])
                await bench.network.settle()
                assert served == [0, 1]
            assert bench.counts == (2, 1, 0)

    async def test_a_place_that_becomes_free_is_a_new_connection_for_who_waits(self):
        async with pool_of() as bench:
            one, _ = await bench.get(), await bench.get()
            got = []

            async def wait():
                got.append(await bench.get())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await bench.network.settle()
                one.close()
            assert got[0] is not one
            assert (bench.counts, len(bench.network.dialled)) == ((2, 0, 0), 3)

    async def test_a_full_queue_is_an_error_at_once(self):
        async with pool_of(replace(SMALL, max_queue=0)) as bench:
            await bench.get()
            await bench.get()
            with pytest.raises(QueueFull, match="up: 0 requests wait for a connection already"):
                await bench.get()

    async def test_waiting_has_an_end(self):
        async with pool_of() as bench:
            await bench.get()
            await bench.get()
            async with anyio.create_task_group() as tasks:

                async def wait():
                    with pytest.raises(QueueTimeout, match="up: no connection became free in 5 s"):
                        await bench.get()

                tasks.start_soon(wait)
                await bench.network.advance(5.2)
                assert bench.counts == (2, 0, 0)

    @pytest.mark.parametrize("leaves", [False, True], ids=["stays", "is cancelled"])
    async def test_whoever_waits_under_a_guard_can_be_sent_away(self, leaves):
        async with pool_of(replace(SMALL, max_queue=3)) as bench:
            busy = [await bench.get(), await bench.get()]
            ours, theirs, told = object(), object(), []

            async def wait(guard):
                try:
                    await bench.pool.connect(next(bench.turns), guard=guard)
                except QueueDrained as error:
                    told.append(str(error))
                else:
                    told.append("connected")

            async with anyio.create_task_group() as tasks:
                for guard in (ours, theirs, ours):
                    tasks.start_soon(wait, guard)
                await bench.network.settle()
                if leaves:
                    tasks.cancel_scope.cancel()
                assert (bench.pool.drain(ours), bench.pool.drain(ours), bench.pool.waiting) == (2, 0, 1)
                await bench.network.settle()
                bench.give_back(busy[0])
            sent_away = "up: the requests that waited for a connection were sent away"
            assert told == ([] if leaves else [sent_away, sent_away, "connected"])
            bench.give_back(busy[1])
            assert bench.pool.waiting == 0

    async def test_closing_the_pool_ends_the_waiting(self):
        async with pool_of() as bench:
            busy = [await bench.get(), await bench.get()]
            async with anyio.create_task_group() as tasks:

                async def wait():
                    with pytest.raises(QueueTimeout):
                        await bench.get()

                tasks.start_soon(wait)
                await bench.network.settle()
                bench.pool.close()
            for connection in busy:
                bench.give_back(connection)
            assert bench.counts == (0, 0, 0)

    @pytest.mark.parametrize("gets", ["connection", "place"])
    @pytest.mark.parametrize("moment", ["before", "after"])
    async def test_one_that_leaves_the_queue_leaves_its_turn_to_the_next(self, gets, moment):
        async with pool_of(replace(SMALL, max_connections=1)) as bench:
            busy = await bench.get()
            leaving = anyio.CancelScope()
            got = []

            async def leave():
                with leaving:
                    bench.give_back(await bench.get())

            async def stay():
                got.append(await bench.get())

            async with anyio.create_task_group() as tasks:
                for waits in (leave, stay):
                    tasks.start_soon(waits)
                    await bench.network.settle()
                if moment == "before":
                    leaving.cancel()
                    await bench.network.settle()
                if gets == "connection":
                    bench.give_back(busy)
                else:
                    busy.close()
                leaving.cancel()
            assert (len(got), bench.counts) == (1, (1, 0, 0))

    async def test_a_connection_that_ends_on_its_way_to_who_waits_is_replaced(self):
        async with pool_of(replace(SMALL, max_connections=1)) as bench:
            busy = await bench.get()
            got = []

            async def wait():
                got.append(await bench.get())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await bench.network.settle()
                bench.give_back(busy)
                (await bench.backlog.accept()).close()
            assert (got[0] is not busy, bench.counts) == (True, (1, 0, 0))

    async def test_a_fresh_connection_never_is_one_that_was_used(self):
        async with pool_of(replace(SMALL, max_connections=1)) as bench:
            busy = await bench.get()
            got = []

            async def wait():
                got.append(await bench.get(fresh=True))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await bench.network.settle()
                bench.give_back(busy)
            assert (got[0] is not busy, got[0].served, bench.counts) == (True, 1, (1, 0, 0))


class TestConnecting:
    async def test_a_refusal_gives_the_place_back(self):
        async with pool_of(reachable=False) as bench:
            with pytest.raises(ConnectFailed, match=r"cannot connect to 192\.0\.2\.1:80: connection refused"):
                await bench.get()
            assert bench.counts == (0, 0, 0)

    async def test_it_takes_only_so_long(self):
        async with pool_of(replace(SMALL, connect_timeout=0.01)) as bench:

            async def never(host, port, tls, name):
                await anyio.sleep_forever()

            bench.network.dial = never
            with pytest.raises(ConnectTimeout, match=r"no connection to 192\.0\.2\.1:80 within 0\.01 s"):
                await bench.get()
            assert bench.counts == (0, 0, 0)

    async def test_a_cancelled_one_gives_the_place_back(self):
        async with pool_of() as bench:
            with anyio.CancelScope() as scope:
                bench.network.on_wait = scope.cancel
                await bench.get()
            assert (scope.cancelled_caught, bench.counts) == (True, (0, 0, 0))


STEPS = st.lists(
    st.tuples(st.sampled_from(["get", "give back", "break", "leave", "peer ends", "time"]), st.integers(0, 7)),
    max_size=40,
)


@settings(deadline=None, max_examples=60)
@given(steps=STEPS)
def test_whatever_happens_no_place_is_lost_and_turns_are_kept(steps):
    """Against a model of three lists: who holds a connection, who waits, in order, and how many are idle."""
    anyio.run(_run_against_the_model, steps)


async def _run_against_the_model(steps):
    limits = replace(SMALL, max_connections=3, max_queue=4)
    async with pool_of(limits) as bench:
        holding: list[tuple[int, object]] = []
        waiting: deque[tuple[int, anyio.CancelScope]] = deque()
        outcomes: dict[int, object] = {}

        async def ask(number, scope):
            try:
                with scope:
                    outcomes[number] = await bench.get()
                if scope.cancelled_caught:
                    outcomes[number] = "left"
            except (QueueFull, QueueTimeout) as error:
                outcomes[number] = type(error)

        async with anyio.create_task_group() as tasks:
            for number, (step, which) in enumerate(steps):
                free = limits.max_connections - len(holding)
                if step == "get":
                    scope = anyio.CancelScope()
                    tasks.start_soon(ask, number, scope)
                    await bench.network.settle()
                    if free > 0:
                        holding.append((number, outcomes.pop(number)))
                    elif len(waiting) == limits.max_queue:
                        assert outcomes.pop(number) is QueueFull
                    else:
                        waiting.append((number, scope))
                elif step in ("give back", "break", "peer ends") and holding:
                    _, connection = holding.pop(which % len(holding))
                    if step == "peer ends":
                        connection.stream.other.close()
                    if step == "give back":
                        bench.give_back(connection)
                    else:
                        connection.close()
                    await bench.network.settle()
                    if waiting:
                        first, _ = waiting.popleft()
                        holding.append((first, outcomes.pop(first)))
                elif step == "leave" and waiting:
                    at = which % len(waiting)
                    leaving, scope = waiting[at]
                    del waiting[at]
                    scope.cancel()
                    await bench.network.settle()
                    assert outcomes.pop(leaving) == "left"
                elif step == "time":
                    await bench.network.advance(5.2)
                    assert all(outcomes.pop(late) is QueueTimeout for late, _ in waiting)
                    waiting.clear()
                assert not outcomes, "somebody was served out of turn"
                assert all(hasattr(connection, "stream") for _, connection in holding)
                assert len({id(connection) for _, connection in holding}) == len(holding)
                assert bench.pool.waiting == len(waiting)
                assert bench.pool.open == len(holding) + bench.pool.idle <= limits.max_connections
            tasks.cancel_scope.cancel()


async def test_a_pool_shows_its_counts():
    async with pool_of() as bench:
        bench.give_back(await bench.get())
        await bench.get()
        await bench.get()
        assert repr(bench.pool) == "<Pool up open 2 idle 0 waiting 0>"
