"""Second attempts beside slow first ones: when, where to, who wins, and what becomes of the other. Time is virtual."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from itertools import count

import anyio
import pytest
from http2_upstreams import ask, played

from gw.limits import HEDGE_LATENCIES
from gw.net.stream import StreamLost
from gw.testing.cuts import cut_everywhere
from gw.testing.gateway import Upstream, in_memory, read_answer
from gw.testing.http2 import StreamReset
from gw.testing.memory import Backlog
from gw.upstream.hedge import HedgePolicy, Hedges

FIRST = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst"
SECOND = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond"
ONE, OTHER = "192.0.2.1:80", "192.0.2.2:80"
GET = b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n"


def config(route=None, balance=None, health=None, hosts=("192.0.2.1", "192.0.2.2"), **proxy):
    proxy = {"hedging": {"delay_ms": 100}, **proxy}
    endpoints = [{"host": host, "port": 80} for host in hosts]
    upstream = {"name": "up", "endpoints": endpoints, "proxy": proxy, "balance": balance or {}, "health": health or {}}
    return {"upstreams": [upstream], "routes": [{"upstream": "up", **(route or {})}]}


class Bench:
    """A gateway in front of two endpoints that the test plays."""

    def __init__(self, gateway, one, other):
        self.gateway, self._one, self._other = gateway, one, other
        self.hedges = gateway.gateway._current.now.services["up"].hedges

    async def begun(self, data=GET):
        """Send a request and wait until the first attempt has arrived."""
        client = self.gateway.connect()
        client.write(data)
        self.first = await self._one.accept()
        await self.first.read_until(b"\r\n\r\n")
        return client

    async def hedged(self, data=GET):
        """Do so, and wait until the second one has arrived too."""
        client = await self.begun(data)
        await self.gateway.network.advance(0.2)
        self.second = await self._other.accept()
        await self.second.read_until(b"\r\n\r\n")
        return client

    async def left(self):
        await self.gateway.network.settle()
        return await self.gateway.leftovers(), self.hedges.under_way


@asynccontextmanager
async def bench(**settings):
    one, other = Backlog(), Backlog()
    async with in_memory(config(**settings), upstreams={ONE: one, OTHER: other}) as gateway:
        yield Bench(gateway, one, other)


async def test_the_second_goes_elsewhere_and_its_answer_counts():
    async with bench() as each:
        client = await each.hedged()
        each.second.write(SECOND)
        answer = await read_answer(client)
        assert answer.body == b"second"
        await each.gateway.network.settle()
        assert (each.first.lost, each.second.lost) == (True, False)
        assert (each.hedges.sent, each.hedges.won) == (1, 1)
        assert await each.left() == ([], 0)


async def test_the_first_may_still_win():
    async with bench() as each:
        client = await each.hedged()
        each.first.write(FIRST)
        assert (await read_answer(client)).body == b"first"
        await each.gateway.network.settle()
        assert (each.first.lost, each.second.lost) == (False, True)
        assert (each.hedges.sent, each.hedges.won) == (1, 0)
        assert await each.left() == ([], 0)


async def test_one_that_answers_in_time_is_left_alone():
    async with bench() as each:
        client = await each.begun()
        await each.gateway.network.advance(0.04)
        each.first.write(FIRST)
        assert (await read_answer(client)).body == b"first"
        await each.gateway.network.advance(1)
        assert (each.gateway.network.dialled, each.hedges.sent) == ([ONE], 0)


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
        b"PATCH / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi",
        b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nhi",  # still coming
    ],
)
async def test_what_may_not_be_done_twice_or_is_not_here_in_full_is_not_hedged(data):
    async with bench() as each:
        await each.begun(data)
        await each.gateway.network.advance(1)
        assert each.gateway.network.dialled == [ONE]


async def test_a_body_that_is_here_goes_to_both():
    async with bench() as each:
        client = await each.hedged(b"PUT /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello")
        await each.second.read_until(b"hello")
        each.second.write(SECOND)
        assert (await read_answer(client)).body == b"second"


async def test_an_upstream_of_one_endpoint_is_asked_there_again():
    backlog = Backlog()
    async with in_memory(config(hosts=["192.0.2.1"]), upstreams={ONE: backlog}) as gateway:
        each = Bench(gateway, backlog, backlog)
        client = await each.hedged()
        each.second.write(SECOND)
        assert (await read_answer(client)).body == b"second"


@pytest.mark.parametrize("other", [None, Upstream(None), Upstream(b"garbage\r\n\r\n")])
async def test_a_second_that_fails_is_forgotten(other):
    one = Backlog()
    scripts = {ONE: one} if other is None else {ONE: one, OTHER: other}
    async with in_memory(config(), upstreams=scripts) as gateway:
        each = Bench(gateway, one, None)
        client = await each.begun()
        await gateway.network.advance(0.5)
        assert gateway.network.dialled == [ONE, OTHER]
        each.first.write(FIRST)
        assert (await read_answer(client)).body == b"first"
        assert await each.left() == ([], 0)


async def test_a_first_that_fails_meanwhile_is_replaced():
    async with bench() as each:
        client = await each.hedged()
        each.first.abort()
        await each.gateway.network.settle()
        each.second.write(SECOND)
        assert (await read_answer(client)).body == b"second"
        assert await each.left() == ([], 0)


async def test_two_that_fail_are_one_failure():
    async with bench() as each:
        client = await each.hedged()
        each.second.write(b"garbage\r\n\r\n")
        each.first.abort()
        assert (await read_answer(client)).status == 502
        assert await each.left() == ([], 0)


async def test_neither_is_waited_for_longer_than_one():
    async with bench(response_timeout_ms=1000) as each:
        client = await each.hedged()
        await each.gateway.network.advance(2)
        assert (await read_answer(client)).status == 504
        assert await each.left() == ([], 0)


async def test_a_client_that_leaves_ends_both():
    async with bench() as each:
        client = await each.hedged()
        client.abort()
        assert await each.left() == ([], 0)
        assert (each.first.lost, each.second.lost) == (True, True)


async def test_they_are_retries_to_the_budget():
    async with bench(retry={"budget": {"percent": 0, "min_concurrency": 1}}) as each:
        account = each.gateway.gateway._current.now.services["up"].budget.account
        client = await each.hedged()
        assert (account.in_flight, account.retries) == (1, 1)
        late = each.gateway.connect()
        late.write(GET)
        await each.gateway.network.advance(0.5)
        assert (each.hedges.sent, each.hedges.refused, account.refused) == (1, 1, 1)
        each.second.write(SECOND)
        await read_answer(client)
        late.abort()
        await each.gateway.network.settle()
        assert (account.in_flight, account.retries) == (0, 0)


async def test_only_so_many_are_under_way(monkeypatch):
    monkeypatch.setattr("gw.upstream.hedge.MAX_HEDGED", 2)
    async with bench() as each:
        for _ in range(5):
            each.gateway.connect().write(GET)
        await each.gateway.network.advance(0.5)
        assert (each.hedges.under_way, each.hedges.refused) == (2, 3)
        assert len(each.gateway.network.dialled) == 7


@pytest.mark.parametrize(
    ("route", "proxy", "is_hedged"),
    [
        ({"hedging": {"delay_ms": 0}}, {}, False),
        ({"hedging": {"delay_ms": 100}}, {"hedging": None}, True),
        ({}, {"hedging": None}, False),
    ],
)
async def test_a_route_says_it_for_itself(route, proxy, is_hedged):
    async with bench(route=route, **proxy) as each:
        await each.begun()
        await each.gateway.network.advance(0.5)
        assert (len(each.gateway.network.dialled) == 2) is is_hedged


async def test_load_is_counted_where_it_is():
    async with bench(balance={"algorithm": "least_requests"}) as each:
        endpoints = each.gateway.gateway._current.now.services["up"].endpoints
        client = each.gateway.connect()
        client.write(GET)
        await each.gateway.network.advance(0.3)
        assert [member.active for member in endpoints.members] == [1, 1]
        for backlog in (each._one, each._other):
            (await backlog.accept()).write(FIRST)
        assert (await read_answer(client)).body == b"first"
        await each.gateway.network.settle()
        assert [member.active for member in endpoints.members] == [0, 0]
        assert sum(member.answered for member in endpoints.members) == 1


@pytest.fixture
def judged(monkeypatch):
    """Two endpoints that are judged, and a clock of theirs that goes with the virtual one."""
    balance = {"algorithm": "peak_ewma"}
    health = {"outliers": {"consecutive_5xx": 2, "consecutive_gateway_failures": 2, "max_ejection_percent": 100}}

    @asynccontextmanager
    async def run():
        async with bench(balance=balance, health=health) as each:
            now = each.gateway.network.clock
            for module in ("gw.chain", "gw.upstream.target", "gw.upstream.endpoints"):
                monkeypatch.setattr(f"{module}.monotonic", lambda: 1000 + now())
            members = each.gateway.gateway._current.now.services["up"].endpoints.members
            # Neither is known, and the one of them is asked first.
            monkeypatch.setattr("gw.upstream.balance._Sampled._two", lambda algorithm: algorithm._candidates[:2])
            yield each, *members

    return run


async def test_one_that_is_overtaken_has_taken_at_least_so_long(judged):
    async with judged() as (each, one, other):
        client = await each.hedged()
        await each.gateway.network.advance(0.3)
        each.second.write(SECOND)
        assert (await read_answer(client)).body == b"second"
        await each.gateway.network.settle()
        assert one.latency == pytest.approx(0.5, abs=0.06)
        assert other.latency == pytest.approx(0.4, abs=0.06)  # from when it was asked itself
        assert [(member.answered, member.failed, member.active) for member in (one, other)] == [(0, 0, 0), (1, 0, 0)]
        assert one.is_available


async def test_a_second_that_is_overtaken_is_judged_alike(judged):
    async with judged() as (each, one, other):
        client = await each.hedged()
        await each.gateway.network.advance(0.3)
        each.first.write(FIRST)
        await read_answer(client)
        await each.gateway.network.settle()
        assert (one.latency, other.latency) == (pytest.approx(0.5, abs=0.06), pytest.approx(0.4, abs=0.06))
        assert [(member.answered, member.failed, member.active) for member in (one, other)] == [(1, 0, 0), (0, 0, 0)]


async def test_one_that_is_known_to_take_longer_does_not_gain_by_being_overtaken(judged):
    async with judged() as (each, one, other):
        one.latency, other.latency = 3.0, 9.0
        client = await each.hedged()
        each.second.write(SECOND)
        await read_answer(client)
        await each.gateway.network.settle()
        assert one.latency == 3.0


async def test_one_that_always_loses_is_not_asked_first_any_more(judged):
    async with judged() as (each, _, other):
        client = await each.hedged()
        each.second.write(SECOND)
        await read_answer(client)
        await each.gateway.network.settle()
        other.latency = 0.05
        client.write(GET)
        await each.second.read_until(b"\r\n\r\n")
        each.second.write(SECOND)
        assert (await read_answer(client)).body == b"second"
        assert each.hedges.sent == 1


@pytest.mark.parametrize("which", ["first", "second"])
async def test_one_that_failed_before_the_other_answered_has_failed(judged, which):
    async with judged() as (each, *members):
        for _ in range(2):
            client = await each.hedged()
            failing, answering = (each.first, each.second) if which == "first" else (each.second, each.first)
            failing.write(b"garbage\r\n\r\n")
            await each.gateway.network.settle()
            answering.write(FIRST if which == "second" else SECOND)
            await read_answer(client)
            client.abort()
            await each.gateway.network.settle()
            answering.abort()
            for member in members:
                member.latency = 0.0
        bad, good = members if which == "first" else reversed(members)
        assert [(member.answered, member.failed, member.ejected) for member in (bad, good)] == [
            (0, 2, True),
            (2, 0, False),
        ]


async def test_two_that_fail_have_each_failed_once(judged):
    async with judged() as (each, *members):
        client = await each.hedged()
        each.second.write(b"garbage\r\n\r\n")
        each.first.write(b"garbage\r\n\r\n")
        assert (await read_answer(client)).status == 502
        assert [(member.failed, member.active) for member in members] == [(1, 0), (1, 0)]


async def test_a_client_that_leaves_tells_how_long_both_have_taken(judged):
    async with judged() as (each, *members):
        client = await each.hedged()
        client.abort()
        await each.gateway.network.settle()
        assert [member.latency for member in members] == [pytest.approx(0.2, abs=0.06), pytest.approx(0.1, abs=0.06)]
        assert [(member.failed, member.active) for member in members] == [(0, 0), (0, 0)]


async def test_the_load_is_the_winners_until_its_answer_is_passed_on(judged):
    async with judged() as (each, one, other):
        client = await each.hedged()
        each.second.write(SECOND[:-1])
        await each.gateway.network.settle()
        assert (one.active, other.active) == (0, 1)
        each.second.write(SECOND[-1:])
        await read_answer(client)
        await each.gateway.network.settle()
        assert (one.active, other.active) == (0, 0)


async def test_stats_tell_of_them():
    async with bench() as each:
        client = await each.hedged()
        each.second.write(SECOND)
        await read_answer(client)
        service = each.gateway.gateway._current.now.services["up"]
        assert service.stats()["hedging"] == {"sent": 1, "won": 1, "refused": 0}


def test_a_percentile_needs_enough_answers_and_follows_them():
    hedges, policy = Hedges(), HedgePolicy(0.5, 90)
    for _ in range(HEDGE_LATENCIES // 4 - 1):
        hedges.observe(0.1)
    assert hedges.delay(policy) == 0.5
    hedges.observe(0.1)
    assert hedges.delay(policy) == 0.1
    for _ in range(HEDGE_LATENCIES):
        hedges.observe(0.3)
    assert hedges.delay(policy) == 0.3
    assert hedges.delay(HedgePolicy(0.5)) == 0.5


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_whatever_is_cut_nothing_is_left(side):
    async def play(gateway):
        client = gateway.connect()
        client.write(GET)
        await gateway.network.advance(0.3)
        with suppress(StreamLost, StreamReset):
            await read_answer(client)
        client.close()

    def upstream():
        connections = count()

        async def script(stream):
            number = next(connections)
            with suppress(StreamLost, anyio.EndOfStream):
                while True:
                    await stream.read_until(b"\r\n\r\n")
                    if number:  # the first one never answers
                        stream.write(SECOND)

        return script

    settings = config(hosts=["192.0.2.1"], response_timeout_ms=1000)
    assert await cut_everywhere(play, upstream, side=side, config=settings) >= 3


class TestOverHttp2:
    async def test_they_share_a_connection_and_the_loser_is_cancelled(self, engine):
        async with played(engine, proxy={"hedging": {"delay_ms": 100}}) as (gateway, accept):
            client = ask(gateway)
            peer = await accept()
            first = await peer.request()
            await gateway.network.advance(0.2)
            second = await peer.request()
            peer.respond(second, body=b"second")
            assert (await read_answer(client)).body == b"second"
            await gateway.network.settle()
            peer.take_in()
            assert first in peer.resets
            client.abort()
            assert await gateway.leftovers() == []

    async def test_the_first_may_still_win(self, engine):
        async with played(engine, proxy={"hedging": {"delay_ms": 100}}) as (gateway, accept):
            client = ask(gateway)
            peer = await accept()
            first = await peer.request()
            await gateway.network.advance(0.2)
            second = await peer.request()
            peer.respond(first, body=b"first")
            assert (await read_answer(client)).body == b"first"
            await gateway.network.settle()
            peer.take_in()
            assert second in peer.resets
            client.abort()
            assert await gateway.leftovers() == []
