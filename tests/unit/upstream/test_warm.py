"""Connections that wait before a request wants them: how many, where to, and what happens when they go. Time is virtual."""

from __future__ import annotations

import pytest
from http2_upstreams import H2C

from gw.config.upstream import PoolConfig
from gw.testing.gateway import Upstream, in_memory, read_answer
from gw.testing.http2 import Http2Upstream
from gw.testing.memory import Backlog

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
ONE, OTHER = "192.0.2.1:80", "192.0.2.2:80"


def config(least=2, hosts=("192.0.2.1", "192.0.2.2"), http2=None, health=None, **pool):
    upstream = {
        "name": "up",
        "endpoints": [{"host": host, "port": 80} for host in hosts],
        "pool": {"min_idle_connections": least, **pool},
        "http2": http2 or {},
        "health": health or {},
        "balance": {"panic_threshold_percent": 0},
        "proxy": {"route_prefix": "/"},
    }
    return {"upstreams": [upstream]}


def pool_of(gateway):
    return gateway.gateway._current.now.pools["up"]


async def test_they_are_there_before_anybody_asks_and_at_all_endpoints():
    async with in_memory(config(4), upstreams={ONE: Upstream(OK), OTHER: Upstream(OK)}) as gateway:
        await gateway.network.settle()
        assert sorted(gateway.network.dialled) == [ONE, ONE, OTHER, OTHER]
        assert (pool_of(gateway).open, pool_of(gateway).idle) == (4, 4)
        assert (await gateway.get("/")).status == 200
        assert len(gateway.network.dialled) == 4


async def test_those_that_are_used_or_lost_are_replaced():
    backlog = Backlog()
    async with in_memory(config(2, hosts=["192.0.2.1"]), upstreams={ONE: backlog}) as gateway:
        first, second = await backlog.accept(), await backlog.accept()
        first.close()
        client = gateway.connect()
        client.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await second.read_until(b"\r\n\r\n")
        await gateway.network.advance(1.2)
        assert (pool_of(gateway).open, pool_of(gateway).idle) == (3, 2)
        second.write(OK)
        assert (await read_answer(client)).status == 200


async def test_one_that_died_unused_costs_the_client_nothing():
    backlog = Backlog()
    async with in_memory(config(1, hosts=["192.0.2.1"]), upstreams={ONE: backlog}) as gateway:
        warm = await backlog.accept()
        client = gateway.connect()
        client.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await warm.read_until(b"\r\n\r\n")
        warm.close()
        (await backlog.accept()).write(OK)
        assert (await read_answer(client)).status == 200


async def test_there_are_never_more_than_the_pool_may_have():
    settings = config(3, hosts=["192.0.2.1"], max_connections=3, max_idle_connections=3)
    backlog = Backlog()
    async with in_memory(settings, upstreams={ONE: backlog}) as gateway:
        for _ in range(2):
            gateway.connect().write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await gateway.network.advance(5)
        assert (pool_of(gateway).open, pool_of(gateway).idle, len(gateway.network.dialled)) == (3, 1, 3)


async def test_an_upstream_that_is_away_is_tried_less_and_less_often():
    async with in_memory(config(2, hosts=["192.0.2.1"]), upstreams={"192.0.2.9:80": Backlog()}) as gateway:
        gateway.network._upstreams = {}
        await gateway.network.advance(120)
        assert 5 <= len(gateway.network.dialled) <= 10
        gateway.network._upstreams = {ONE: Upstream(OK)}
        await gateway.network.advance(31)
        assert pool_of(gateway).idle == 2


async def test_the_ill_get_none():
    health = {"active": {"interval_ms": 1000}}
    ill, well = Upstream(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"), Upstream(OK)
    async with in_memory(config(4, health=health), upstreams={ONE: ill, OTHER: well}) as gateway:
        await gateway.network.settle()
        before = gateway.network.dialled.count(ONE)
        for origin in pool_of(gateway).origins:
            pool_of(gateway)._empty(origin)
        await gateway.network.advance(1.5)
        ill_one, well_one = pool_of(gateway).origins
        assert (len(ill_one.idle), len(well_one.idle)) == (0, 4)
        assert before


async def test_connections_that_are_shared_count_while_they_take_more(engine):
    one, other = Http2Upstream(engine=engine), Http2Upstream(engine=engine)
    async with in_memory(config(2, http2=H2C), upstreams={ONE: one, OTHER: other}, engine=engine) as gateway:
        await gateway.network.settle()
        assert sorted(gateway.network.dialled) == [ONE, OTHER]
        for _ in range(4):
            assert (await gateway.get("/")).status == 200
        await gateway.network.advance(5)
        assert (len(gateway.network.dialled), pool_of(gateway).open) == (2, 2)
        one.peers[0].goaway(2**31 - 1)
        await gateway.network.advance(1.5)
        assert (len(gateway.network.dialled), pool_of(gateway).open) == (3, 2)


async def test_it_ends_with_its_upstream():
    async with in_memory(config(2), upstreams={ONE: Upstream(OK), OTHER: Upstream(OK)}) as gateway:
        await gateway.network.settle()
        pool = pool_of(gateway)
    assert pool.open == 0


@pytest.mark.parametrize("least", [17, -1])
def test_what_makes_no_sense_is_refused(least):
    with pytest.raises(ValueError, match=r"max_idle_connections|greater than or equal"):
        PoolConfig(min_idle_connections=least)
