"""Requests under way, counted by a real Redis: whoever has them, whoever dies, whatever the store forgets."""

from __future__ import annotations

import contextlib
import logging
import random
import signal
from time import monotonic

import anyio
import coredis
import pytest

from gw.testing import PATIENCE
from gw.testing.gateway import in_memory, read_answer
from gw_ratelimit import redis
from gw_ratelimit.algorithms import Concurrency, TokenBucket
from gw_ratelimit.limits import LEASE_TIME, MAX_SAID
from gw_ratelimit.redis import RedisStore
from gw_ratelimit.stores import Ask, Entry, StoreAway
from gw_ratelimit.zones import Zone

pytestmark = [
    pytest.mark.usefixtures("coredis_may_drop_streams"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]


def zone(name="z", place="gateway"):
    return Zone(place, name, f"{name}:client_ip:concurrency", 100)


def entry(key="k", limit=2, *, counts=True, of=None):
    return Entry(of or zone(), Concurrency(limit), key, counts)


def made(server, timeout=10.0, **options):
    url = server if isinstance(server, str) else server.url
    return RedisStore(url, timeout=timeout, prefix="gw:", log=logging.getLogger("test"), **options)


@contextlib.asynccontextmanager
async def running(*stores):
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(store.run)
        with anyio.fail_after(PATIENCE):
            yield
        tasks.cancel_scope.cancel()


async def enters(store, one=None):
    ((fits, *_),) = await store.decide([entry() if one is None else one])
    return fits


async def until_it_enters(store, one=None):
    while not await enters(store, one):
        pass


@pytest.fixture
def short(monkeypatch):
    """A time after which the store forgets, short enough to wait for, and too long for a machine to stand still."""
    monkeypatch.setattr(redis, "LEASE_TIME", 2.0)
    return 2.0


async def test_never_more_than_the_limit_and_as_many_when_there_is_room(server):
    stores = [made(server) for _ in range(3)]
    under_way = most = entered = 0

    async def client(store):
        nonlocal under_way, most, entered
        for _ in range(20):
            if await enters(store, entry(limit=7)):
                under_way += 1
                most, entered = max(most, under_way), entered + 1
                await anyio.lowlevel.checkpoint()
                under_way -= 1
                store.leave(entry(limit=7))

    async with running(*stores):
        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(client, stores[number % 3])
        assert 1 < most <= 7
        assert entered > 100
        for store in stores:
            await store.settle()
        assert [await enters(stores[number % 3], entry(limit=7)) for number in range(9)] == [True] * 7 + [False] * 2


@pytest.mark.parametrize("seed", range(3))
async def test_it_counts_as_a_dictionary_does(server, seed):
    chance, stores = random.Random(seed), [made(server), made(server)]
    held = []
    async with running(*stores):
        for _ in range(300):
            store, one = chance.choice(stores), entry(chance.choice("ab"), chance.randint(1, 5))
            if chance.random() < 0.6:
                many = sum(other.key == one.key for _, other in held)
                assert await enters(store, one) == (many < one.limit.limit)
                if many < one.limit.limit:
                    held.append((store, one))
            elif held:
                store, one = held.pop(chance.randrange(len(held)))
                store.leave(one)
                await store.settle()


async def test_what_a_gateway_had_that_died_is_free_again_in_time(server, short):
    dead, alive = made(server), made(server)
    async with running(dead):
        assert await enters(dead)
        assert await enters(dead)
        began = monotonic()
    async with running(alive):
        await until_it_enters(alive)
        assert monotonic() - began > short / 2
        assert await enters(alive), "one of two was forgotten"
        assert not await enters(alive)


async def test_what_takes_long_is_not_forgotten(server, short):
    slow, other = made(server), made(server)
    async with running(slow, other):
        assert await enters(slow, entry(limit=1))
        until = monotonic() + 2 * short
        while monotonic() < until:
            assert not await enters(other, entry(limit=1))
        slow.leave(entry(limit=1))
        await until_it_enters(other, entry(limit=1))


async def test_all_zones_or_none(server):
    store, bucket = made(server), TokenBucket(1, 1)
    full, free = entry("full", 1), entry("free", 1)
    token = Ask(zone("tokens"), bucket, "k", 1, True)
    async with running(store):
        assert [each[0] for each in await store.decide([full, token])] == [True, True]
        assert [each[0] for each in await store.decide([free, token])] == [True, False]
        assert await enters(store, free), "it entered although another zone denied"
        fresh = token._replace(key="other")
        assert [each[0] for each in await store.decide([full, fresh])] == [False, True]
        ((admitted, *_),) = await store.decide([fresh])
        assert admitted, "a token was taken although there was no room"


async def test_a_dry_run_counts_those_that_are_too_many(server):
    store, one = made(server), entry(limit=1, counts=False)
    async with running(store):
        assert [(await store.decide([one]))[0][:3:2] for _ in range(3)] == [(True, 1), (False, 2), (False, 3)]
        store.leave(one)
        await store.settle()
        assert (await store.decide([one]))[0][:3:2] == (False, 3)


async def test_who_is_gone_before_the_answer_has_not_entered(server):
    store = made(server)
    async with running(store):
        assert await enters(store, entry("other"))
        server.signal(signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(store.decide, [entry()])
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        server.signal(signal.SIGCONT)
        await until_it_enters(store, entry(limit=1))


async def test_a_call_whose_answer_is_lost_is_put_right(server):
    store = made(server, timeout=0.1)
    async with running(store):
        while True:  # connected
            with contextlib.suppress(StoreAway):
                assert await enters(store, entry("other"))
                break
        server.signal(signal.SIGSTOP)
        with pytest.raises(StoreAway):
            await store.decide([entry(limit=1)])  # it may enter as soon as the server goes on
        server.signal(signal.SIGCONT)
        while True:
            with contextlib.suppress(StoreAway):
                if await enters(store, entry(limit=1)):
                    break


async def test_a_store_that_forgot_everything_is_told_again(server, short):
    store, other = made(server), made(server)
    async with running(store, other):
        assert await enters(store, entry(limit=1))
        async with coredis.Redis.from_url(server.url, verify_version=False) as plain:
            await plain.flushall()
        while await enters(other, entry(limit=1)):
            other.leave(entry(limit=1))
            await other.settle()


async def test_what_entered_while_the_store_was_away_counts_when_it_is_back(server):
    store, other = made(server, timeout=0.5), made(server)
    server.kill()
    async with running(store):
        for _ in range(2):
            with pytest.raises(StoreAway):
                await store.decide([entry()])
            store.enter(entry())
        server.start()
        async with running(other):
            while await enters(other):
                other.leave(entry())
                await other.settle()


async def test_what_is_to_be_said_has_a_bound(server):
    store = made(server)
    for number in range(MAX_SAID + 10):
        store.enter(entry(f"k{number}"))
    for number in range(MAX_SAID + 10):
        store.leave(entry(f"k{number}"))
    assert len(store._unsaid) <= MAX_SAID + 10  # as many as were under way, which connections bound
    store._unsaid.clear()
    for number in range(MAX_SAID + 10):
        store.enter(entry(f"k{number}"))
        store._unsaid.pop(("gateway", redis.key_of("gw:", entry(f"k{number}"))))
        store.leave(entry(f"k{number}"))
    assert len(store._unsaid) == MAX_SAID


async def test_a_clock_that_goes_back_forgets_nobody_and_keeps_nobody_for_ever(server, monkeypatch):
    assert redis.SCRIPT.count("redis.call('TIME')") == 1
    clocked = redis.SCRIPT.replace("redis.call('TIME')", "{redis.call('GET', 'clock'), 0}")
    monkeypatch.setattr(redis, "SCRIPT", clocked)
    dead, alive = made(server), made(server)
    async with coredis.Redis.from_url(server.url, verify_version=False) as plain, running(alive):
        await plain.set("clock", "5000")
        async with running(dead):
            assert await enters(dead, entry(limit=1))
        await plain.set("clock", "1000")
        assert not await enters(alive, entry(limit=1))
        await plain.set("clock", str(1000 + int(LEASE_TIME) + 1))
        assert await enters(alive, entry(limit=1))


async def test_sections_on_several_nodes_of_a_cluster_all_get_their_turn(cluster, short):
    places = [f"route:{number}" for number in range(6)]
    stores = [made(f"redis://127.0.0.1:{cluster.ports[0]}", cluster=True) for _ in range(2)]
    one, other = stores
    async with running(*stores):
        for place in places:
            assert await enters(one, entry(limit=1, of=zone(place=place)))
        until = monotonic() + 2 * short
        while monotonic() < until:
            for place in places:
                assert not await enters(other, entry(limit=1, of=zone(place=place)))
        for place in places:
            one.leave(entry(limit=1, of=zone(place=place)))
        for place in places:
            await until_it_enters(other, entry(limit=1, of=zone(place=place)))


# --- through gateways ----------------------------------------------------------------------------------------------------


GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def config(url, limit=1, *, timeout_ms=5000, **more):
    store = {"redis": {"url": url, "timeout_ms": timeout_ms}}
    zones = [{"name": "under way", "algorithm": "concurrency", "limit": limit, "key_type": "client_ip"}]
    return {"rate_limit": {"enabled": True, "store": store, "zones": zones, **more}}


class Waiting:
    """An upstream that answers when it is told to."""

    def __init__(self):
        self.asked, self.go = anyio.Event(), anyio.Event()

    async def __call__(self, stream):
        while await stream.receive():
            self.asked.set()
            await self.go.wait()
            stream.write(OK)


async def test_two_gateways_count_together_and_whoever_leaves_makes_room(server):
    slow = Waiting()
    async with in_memory(config(server.url), slow) as first, in_memory(config(server.url)) as second:
        stream = first.connect()
        stream.write(GET)
        await slow.asked.wait()
        refused = await second.get("/")
        assert (refused.status, refused.headers.get("retry-after")) == (429, "1")
        slow.go.set()
        assert (await read_answer(stream)).status == 200
        with anyio.fail_after(PATIENCE):
            while (await second.get("/")).status != 200:
                pass


async def test_a_client_that_leaves_and_a_gateway_that_ends_leave_nothing(server):
    slow = Waiting()
    async with in_memory(config(server.url), slow) as first:
        stream = first.connect()
        stream.write(GET)
        await slow.asked.wait()
        stream.abort()
        with anyio.fail_after(PATIENCE):
            while (await first.get("/health")).status != 200:
                pass
    async with in_memory(config(server.url)) as second:
        with anyio.fail_after(PATIENCE):
            assert (await second.get("/")).status == 200, "the first one has settled before it ended"


@pytest.mark.parametrize(("on_error", "statuses"), [("local", [429, 429]), ("allow", [200, 200]), ("deny", [503, 503])])
async def test_without_the_store_it_is_as_on_store_error_says(on_error, statuses):
    slow = Waiting()
    settings = config("redis://127.0.0.1:1", timeout_ms=200, on_store_error=on_error)
    async with in_memory(settings, slow) as gateway:
        stream = gateway.connect()
        stream.write(GET)
        if on_error != "deny":
            await slow.asked.wait()
        slow.go = anyio.Event() if on_error == "local" else slow.go
        if on_error == "allow":
            slow.go.set()
        assert [(await gateway.get("/")).status for _ in range(2)] == statuses
        stream.abort()
        await gateway.network.settle()
        zone = gateway.gateway.stats()["rate_limit"]["zones"]["under way"]
        assert (zone["in_flight"], zone["degraded"]) == (0, 3)
