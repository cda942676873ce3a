"""The bulkhead: never more than its places, first come first served, and no place is lost, whoever leaves when."""

from __future__ import annotations

import anyio
import pytest

from gw import Filter, Outcome, Retry
from gw.testing import check_filter, drive
from gw.testing.gateway import in_memory
from gw_breaker import breakers_of
from gw_breaker.bulkhead import Bulkhead, BulkheadFilter

GET = b"GET / HTTP/1.1\r\nhost: example.test\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def test_who_finds_every_place_taken_and_no_queue_is_refused_at_once():
    bulkhead = Bulkhead(2, 0, 1)
    assert [await bulkhead.enter() for _ in range(3)] == ["", "", "bulkhead_full"]
    bulkhead.leave()
    assert await bulkhead.enter() == ""
    assert (bulkhead.taken, bulkhead.full) == (2, 1)


async def test_who_waits_longest_comes_first():
    bulkhead, order = Bulkhead(1, 3, 60), []
    await bulkhead.enter()

    async def wait(name):
        order.append((name, await bulkhead.enter()))

    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(wait, name)
            await anyio.wait_all_tasks_blocked()
        assert await bulkhead.enter() == "bulkhead_full"
        for _ in range(3):
            bulkhead.leave()
            await anyio.wait_all_tasks_blocked()
    assert order == [("a", ""), ("b", ""), ("c", "")]
    assert (bulkhead.taken, bulkhead.waiting) == (1, 0)


async def test_waiting_has_an_end():
    bulkhead = Bulkhead(1, 1, 0)
    await bulkhead.enter()
    assert await bulkhead.enter() == "bulkhead_timeout"
    assert (bulkhead.taken, bulkhead.waiting, bulkhead.late) == (1, 0, 1)


@pytest.mark.parametrize("first", ["leaves", "is cancelled"])
async def test_who_is_cancelled_on_the_way_in_loses_no_place(first):
    bulkhead = Bulkhead(1, 1, 60)
    await bulkhead.enter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bulkhead.enter)
        await anyio.wait_all_tasks_blocked()
        if first == "leaves":
            bulkhead.leave()
            tasks.cancel_scope.cancel()
        else:
            tasks.cancel_scope.cancel()
            bulkhead.leave()
    # On some loops the place was taken before the cancellation came: then it is the task's to give back.
    assert bulkhead.waiting == 0
    assert bulkhead.taken in {0, 1}


async def test_another_size_lets_those_in_who_wait_and_sends_nobody_out():
    bulkhead, entered = Bulkhead(1, 9, 60), []

    async def wait():
        entered.append(await bulkhead.enter())

    await bulkhead.enter()
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        bulkhead.resize(3, 9, 60)
        await anyio.wait_all_tasks_blocked()
        assert (len(entered), bulkhead.taken, bulkhead.waiting) == (2, 3, 2)
        bulkhead.resize(1, 9, 60)
        bulkhead.leave()
        bulkhead.leave()
        await anyio.wait_all_tasks_blocked()
        assert (len(entered), bulkhead.taken) == (2, 1)
        bulkhead.leave()
        await anyio.wait_all_tasks_blocked()
        bulkhead.leave()
    assert (len(entered), bulkhead.taken, bulkhead.waiting) == (4, 1, 0)
    assert repr(bulkhead) == "<Bulkhead 1 of 1, 0 waiting>"


@pytest.mark.parametrize("how", [{}, {"refuse": True}, {"disconnect": True}, {"status": 500}])
async def test_an_exchange_gives_its_place_back_however_it_ends(how):
    bulkhead = Bulkhead(1, 0, 1)
    await drive(BulkheadFilter({"upstream": bulkhead}), **how)
    assert bulkhead.taken == 0
    for stop_at in range(1, 6):
        await drive(BulkheadFilter({"upstream": bulkhead}), stop_at=stop_at, **how)
        assert bulkhead.taken == 0


async def test_a_retry_keeps_its_place():
    class Again(Filter):
        name = "again"

        async def on_upstream_response(self, ex, attempt):
            assert bulkhead.taken == 1
            return Retry() if attempt.number < 3 else None

    bulkhead = Bulkhead(1, 0, 1)
    played = await drive([BulkheadFilter({"upstream": bulkhead}), Again()])
    assert (played.outcome, bulkhead.taken, bulkhead.full) == (Outcome.UPSTREAM, 0, 0)


async def test_it_keeps_the_promises_of_filters():
    await check_filter(lambda: BulkheadFilter({"upstream": Bulkhead(8, 0, 1)}))


async def test_the_upstream_never_sees_more_at_once_than_there_are_places():
    at_once = most = 0
    gates = [anyio.Event() for _ in range(12)]
    waiting = list(gates)

    async def upstream(stream):
        nonlocal at_once, most
        try:
            while True:
                await stream.read_until(b"\r\n\r\n")
                at_once += 1
                most = max(most, at_once)
                await waiting.pop(0).wait()
                at_once -= 1
                stream.write(OK)
        except anyio.EndOfStream:
            pass

    section = {"bulkhead": {"max_concurrent": 3, "max_queue": 9, "queue_timeout_ms": 60_000}}
    config = {
        "plugins": ["breaker"],
        "upstreams": [{"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/"}, "circuit_breaker": section}],
    }
    async with in_memory(config, upstream) as gateway:
        answers = []

        async def ask():
            answers.append((await gateway.get("/")).status)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
            await gateway.network.settle()
            assert answers == [503] * 8
            stats = breakers_of(gateway.gateway._current.now.contexts["breaker"]).stats()
            assert stats["breakers"] == {}
            assert stats["bulkheads"]["up"] == {
                "size": 3,
                "taken": 3,
                "waiting": 9,
                "rejected": {"bulkhead_full": 8, "bulkhead_timeout": 0},
            }
            for gate in gates:
                gate.set()
                await gateway.network.settle()
        assert answers == [503] * 8 + [200] * 12
        assert most == 3


async def test_in_a_shadow_nobody_waits_and_nobody_is_refused():
    gate = anyio.Event()

    async def upstream(stream):
        await stream.read_until(b"\r\n\r\n")
        await gate.wait()
        stream.write(OK)

    section = {"mode": "shadow", "bulkhead": {"max_concurrent": 1, "max_queue": 9, "queue_timeout_ms": 60_000}}
    config = {
        "plugins": ["breaker"],
        "upstreams": [{"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/"}, "circuit_breaker": section}],
    }
    async with in_memory(config, upstream) as gateway:
        streams = [gateway.connect() for _ in range(3)]
        for stream in streams:
            stream.write(GET)
        await gateway.network.settle()
        assert len(gateway.network.peers) == 3
        gate.set()
        for stream in streams:
            await stream.read_until(b"\r\n\r\nok")
        stats = breakers_of(gateway.gateway._current.now.contexts["breaker"]).stats()
        assert stats["bulkheads"]["up"]["rejected"] == {"bulkhead_full": 2, "bulkhead_timeout": 0}
        assert stats["bulkheads"]["up"]["taken"] == 0
