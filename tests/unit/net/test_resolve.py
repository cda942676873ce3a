"""Names: families, times, bounds, single flight; and which of several addresses a connection goes to. Time is virtual."""

from __future__ import annotations

import contextlib
import socket
from contextlib import asynccontextmanager

import anyio
import pytest

from gw.limits import MAX_RESOLVE_QUEUE
from gw.net.network import Network
from gw.net.resolve import NotResolved, Resolved, Resolver, ResolverSettings, first_of, is_literal
from gw.testing.memory import MemoryNetwork

BOTH = ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "192.0.2.1"]
V4, V6 = ("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")


@asynccontextmanager
async def resolving(names=None, told=None, **settings):
    async with anyio.create_task_group() as tasks:
        network = MemoryNetwork(tasks, {})
        network.names.update(names or {})
        resolver = Resolver(
            ResolverSettings(**settings),
            network.lookup,
            tasks,
            network.deadlines,
            ([] if told is None else told).append,
        )
        yield resolver, network
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("family", "found"),
    [
        ("v4_preferred", Resolved(V4, V6)),
        ("v6_preferred", Resolved(V6, V4)),
        ("v4_only", Resolved(V4)),
        ("v6_only", Resolved(V6)),
    ],
)
async def test_the_family_that_is_wanted_comes_first(family, found):
    async with resolving({"api.example": BOTH}, family=family) as (resolver, _):
        assert await resolver.resolve("api.example") == found


@pytest.mark.parametrize(("family", "addresses"), [("v4_preferred", V6), ("v6_preferred", V4)])
async def test_the_other_family_stands_in(family, addresses):
    async with resolving({"api.example": addresses}, family=family) as (resolver, _):
        assert await resolver.resolve("api.example") == Resolved(addresses)


@pytest.mark.parametrize(
    ("name", "known", "outcome"),
    [
        ("192.0.2.9", None, "cache_hit"),
        ("api.example", ["192.0.2.1"], "success"),
        ("api.example", socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "nxdomain"),
        ("api.example", socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "servfail"),
        ("api.example", socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"), "servfail"),
        ("api.example", socket.gaierror(socket.EAI_MEMORY, "Memory"), "other_error"),
        ("api.example", OSError("no threads"), "other_error"),
        ("api.example", [], "other_error"),
    ],
)
async def test_somebody_hears_how_each_look_up_ended(name, known, outcome):
    told = []
    async with resolving({"api.example": known}, told) as (resolver, _):
        with contextlib.suppress(NotResolved):
            await resolver.resolve(name)
    assert told == [outcome]


async def test_an_address_is_not_looked_up():
    async with resolving() as (resolver, network):
        assert await resolver.resolve("192.0.2.9") == Resolved(("192.0.2.9",))
        assert await resolver.resolve("2001:db8::9") == Resolved(("2001:db8::9",))
        assert network.lookups == []


@pytest.mark.parametrize(
    ("known", "told", "again"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known", 0),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "Temporary failure", 1),
        ([], "it has no address of the family that is wanted", 0),
    ],
)
async def test_what_cannot_be_resolved_says_why_and_is_counted(known, told, again):
    async with resolving({"api.example": known}) as (resolver, _):
        with pytest.raises(NotResolved, match=f"cannot resolve api.example: {told}"):
            await resolver.resolve("api.example")
        assert (resolver.total, resolver.failed, resolver.again, resolver.timeouts) == (1, 1, again, 0)


async def test_one_look_up_serves_all_who_ask_and_goes_on_without_them():
    async with (
        resolving({"slow.example": None}, timeout=2.0) as (resolver, network),
        anyio.create_task_group() as tasks,
    ):
        late = []

        async def ask():
            try:
                await resolver.resolve("slow.example")
            except NotResolved as error:
                late.append(error.late)

        for _ in range(5):
            tasks.start_soon(ask)
        await network.advance(1.9)
        assert (late, network.lookups, resolver.in_flight) == ([], ["slow.example"], 1)
        await network.advance(0.2)
        assert late == [True] * 5
        assert resolver.timeouts == 5
        tasks.start_soon(ask)
        await network.advance(2.2)
        assert (network.lookups, resolver.in_flight, len(late)) == (["slow.example"], 1, 6)


async def test_only_so_many_look_ups_run_at_once_and_only_so_many_wait():
    names = {f"n{number}.example": None for number in range(MAX_RESOLVE_QUEUE + 2)}
    async with resolving(names, max_inflight=2) as (resolver, network):
        async with anyio.create_task_group() as tasks:
            for name in list(names)[:5]:
                tasks.start_soon(resolver.resolve, name)
            await network.settle()
            assert (resolver.in_flight, resolver.queued, len(network.lookups)) == (2, 3, 2)
            tasks.cancel_scope.cancel()
        resolver.queued = MAX_RESOLVE_QUEUE
        with pytest.raises(NotResolved, match="the resolver is saturated"):
            await resolver.resolve("one-more.example")
        resolver.queued = 3


async def test_the_systems_resolver_is_asked(anyio_backend):
    async with anyio.create_task_group() as tasks:
        network = Network(tasks)
        resolver = Resolver(ResolverSettings(), network.lookup, tasks, network.deadlines)
        assert "127.0.0.1" in (await resolver.resolve("localhost")).addresses
        for name in ("no-such-name.invalid", "a" * 70 + ".example", "a..b"):
            with pytest.raises(NotResolved):
                await resolver.resolve(name)
        tasks.cancel_scope.cancel()


def test_what_is_an_address():
    assert [is_literal(each) for each in ("192.0.2.1", "::1", "api.example", "1.2.3", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]


class Line:
    """A stream, as far as a race is concerned."""

    def __init__(self):
        self.aborted = False

    def abort(self):
        self.aborted = True


@asynccontextmanager
async def racing():
    async with anyio.create_task_group() as tasks:
        network = MemoryNetwork(tasks, {})
        yield network, tasks
        tasks.cancel_scope.cancel()


def dial(network, log, number, after, result):
    async def run():
        log.append(number)
        if after is None:
            await anyio.sleep_forever()
        if after:
            late = anyio.Event()
            network.deadlines.due(late.set).after(after)
            await late.wait()
        if isinstance(result, Exception):
            raise result
        return result

    return run


@pytest.mark.parametrize(
    ("plan", "dialled", "wins", "takes"),
    [
        ([(0, True), (0, True)], [0], 0, 0.0),
        ([(0, False), (0, True)], [0, 1], 1, 0.0),
        ([(None, True), (0, True)], [0, 1], 1, 0.3),
        ([(0.4, True), (0.6, True)], [0, 1], 0, 0.5),
        ([(None, True), (0, False), (0, True)], [0, 1, 2], 2, 0.3),
        ([(None, True), (None, True), (0, True)], [0, 1, 2], 2, 0.6),
    ],
)
async def test_the_first_to_connect_wins(plan, dialled, wins, takes):
    async with racing() as (network, tasks):
        lines, log, won = [Line() for _ in plan], [], []

        async def race():
            dials = [
                dial(network, log, number, after, lines[number] if good else OSError("refused"))
                for number, (after, good) in enumerate(plan)
            ]
            won.append(await first_of(dials, network.deadlines))

        tasks.start_soon(race)
        began = network.clock.now
        await network.settle()
        while not won and network.clock.now < began + 5:
            await network.advance(0.05)
        assert won == [lines[wins]]
        assert log == dialled
        assert network.clock.now - began <= takes + 0.11
        assert not any(line.aborted for line in lines)


async def test_when_nothing_connects_the_first_error_is_told():
    async with racing() as (network, _):
        log = []
        dials = [dial(network, log, number, 0, OSError(f"no {number}")) for number in range(3)]
        with pytest.raises(OSError, match="no 0"):
            await first_of(dials, network.deadlines)
        assert log == [0, 1, 2]


async def test_who_gives_up_leaves_nothing_open():
    async with racing() as (network, _):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await first_of([dial(network, [], number, None, Line()) for number in range(2)], network.deadlines)
        assert not any(network.deadlines._slots.values())
