"""A real Redis: shared by gateways, killed, started again, frozen. The arithmetic is test_stores' business."""

from __future__ import annotations

import contextlib
import logging
import signal
from time import monotonic

import anyio
import coredis
import pytest

from gw.testing import PATIENCE
from gw_ratelimit import redis
from gw_ratelimit.algorithms import FixedWindow, SlidingWindow, TokenBucket
from gw_ratelimit.limits import BREAKER_FAILURES, MAX_QUEUED
from gw_ratelimit.redis import RedisStore
from gw_ratelimit.settings import RedisSettings
from gw_ratelimit.stores import Ask, StoreAway
from gw_ratelimit.zones import Zone

pytestmark = [
    pytest.mark.usefixtures("coredis_may_drop_streams"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]

FOREVER = FixedWindow(100, "fixed", lambda now: (1, 1 << 45))


def zone(name="z", place="gateway", **more):
    return Zone(place, name, f"{name}:client_ip:kind", 100, **more)


def ask(key="k", limit=FOREVER, of=None, cost=1):
    return Ask(of or zone(), limit, key, cost, True)


@contextlib.asynccontextmanager
async def running(*stores):
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(store.run)
        yield
        tasks.cancel_scope.cancel()


def made(server, timeout=10.0):
    return RedisStore(server.url, timeout=timeout, prefix="gw:", log=logging.getLogger("test"))


async def test_of_requests_through_two_gateways_exactly_the_limit_passes(server):
    first, second = made(server), made(server)
    passed = 0

    async def client(store):
        nonlocal passed
        for _ in range(10):
            ((admitted, *_),) = await store.decide([ask()])
            passed += admitted

    async with running(first, second), anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(client, (first, second)[number % 2])
    assert passed == 100
    assert first.decisions + second.decisions == 1000
    assert first.calls + second.calls < 300, "what came at once did not go together"


async def test_states_are_forgotten_when_they_mean_nothing_any_more(server):
    store = made(server)
    limits = {
        "b": (TokenBucket(1, 10), 3000),
        "s": (SlidingWindow(10, 1000), 2000),
        "f": (FixedWindow(10, "f", lambda now: (now - now % 1000, now - now % 1000 + 1000)), 61_000),
    }
    async with running(store):
        for name, (limit, _) in limits.items():
            await store.decide([ask(limit=limit, of=zone(name), cost=3)])
    async with coredis.Redis.from_url(server.url, decode_responses=True) as plain:
        for name, (_, most) in limits.items():
            left = await plain.pttl(f"gw:{{gateway}}:{name}:client_ip:kind:k")
            assert 0 < left <= most


async def test_keys_of_one_section_stand_together_and_secrets_do_not_stand_there_at_all():
    plain = ask("1.2.3.4\0/a", of=zone("one", "route:users"))
    secret = ask("s3cret", of=zone("two", "route:users", hides=True))
    assert redis.key_of("gw:", plain) == "gw:{route:users}:one:client_ip:kind:1.2.3.4|/a"
    assert redis.key_of("gw:", secret).startswith("gw:{route:users}:two:client_ip:kind:#")
    assert "s3cret" not in redis.key_of("gw:", secret)


async def test_what_responses_cost_is_charged_without_waiting(server):
    store, limit, of = made(server), TokenBucket(0.001, 10), zone()
    async with running(store):
        store.charge(ask(limit=limit, of=of, cost=25))
        ((admitted, *_),) = await store.decide([ask(limit=limit, of=of)])
    assert not admitted


async def test_a_server_that_was_restarted_or_flushed_is_used_again(server):
    store = made(server)
    async with running(store):
        assert (await store.decide([ask()]))[0][0]
        server.kill()
        with pytest.raises(StoreAway):
            await store.decide([ask()])
        server.start()
        for _ in range(2):  # the first may meet the connection that is broken
            with contextlib.suppress(StoreAway):
                await store.decide([ask()])
        assert (await store.decide([ask()]))[0][0]
        async with coredis.Redis.from_url(server.url) as plain:
            await plain.script_flush()
        assert (await store.decide([ask()]))[0][0]


async def test_a_server_that_is_frozen_costs_its_deadline_a_few_times_and_then_nothing(server):
    store = made(server, timeout=0.1)
    async with running(store):
        server.signal(signal.SIGSTOP)
        began = monotonic()
        for _ in range(BREAKER_FAILURES):
            with pytest.raises(StoreAway, match="in time"):
                await store.decide([ask()])
            await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(PATIENCE):
            while not store.is_open:
                with contextlib.suppress(StoreAway):
                    await store.decide([ask()])
        assert monotonic() - began < PATIENCE / 2
        for _ in range(1000):
            with pytest.raises(StoreAway, match="left alone"):
                await store.decide([ask()])
        with pytest.raises(StoreAway, match="left alone"):
            store.charge(ask())
        assert store.stats()["state"] == "away"
        server.signal(signal.SIGCONT)
        store._open_until = monotonic()  # its time is over
        with anyio.fail_after(PATIENCE):
            while True:
                with contextlib.suppress(StoreAway):
                    await store.decide([ask()])
                    break
        assert (store.stats()["state"], store._failures) == ("up", 0)


async def test_a_decision_that_nobody_waits_for_any_more_is_not_made(server):
    store = made(server)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.decide([ask()])
    async with running(store):
        ((_, _, used, _, _),) = await store.decide([ask()])
    assert used == 1


async def test_what_waits_for_a_store_has_a_bound(server):
    store = made(server)
    for _ in range(MAX_QUEUED):
        store.charge(ask())
    with pytest.raises(StoreAway, match="4096 decisions at once"):
        store.charge(ask())


async def test_no_store_says_its_password(caplog):
    store = RedisStore("redis://u:s3cret@127.0.0.1:1", timeout=0.5, prefix="", log=logging.getLogger("test"))
    async with running(store):
        for _ in range(BREAKER_FAILURES):
            with pytest.raises(StoreAway) as error:
                await store.decide([ask()])
            assert "s3cret" not in str(error.value)
    assert "s3cret" not in repr(store)
    assert "s3cret" not in caplog.text
    assert "on_store_error" in caplog.text


async def test_a_store_with_a_password_is_entered_with_it(guarded_server):
    url = f"unix://:s3cret@{guarded_server.path}"
    store = RedisStore(url, timeout=10, prefix="", log=logging.getLogger("test"))
    async with running(store):
        assert (await store.decide([ask()]))[0][0]


# --- TLS -------------------------------------------------------------------------------------------------------


def encrypted(server, **files):
    settings = RedisSettings.model_validate({"url": f"rediss://localhost:{server.port}", **files})
    url, log = settings.url.get_secret_value(), logging.getLogger("test")
    return RedisStore(url, timeout=10, prefix="", log=log, tls=lambda: redis.tls_context(settings))


async def test_a_store_behind_tls_is_verified_and_shown_our_certificate(encrypted_server):
    store = encrypted(encrypted_server, **encrypted_server.files)
    async with running(store):
        assert (await store.decide([ask()]))[0][0]


@pytest.mark.parametrize("what", ["of another authority", "of another host", "that we have not shown ours"])
async def test_a_store_is_not_used(encrypted_server, what):
    files = dict(encrypted_server.files)
    store = encrypted(encrypted_server, **files)
    if what == "of another authority":
        store = encrypted(encrypted_server, **files | {"ca_file": encrypted_server.stranger})
    elif what == "of another host":
        store._url = store._url.replace("localhost", "127.0.0.1")
    else:
        store = encrypted(encrypted_server, ca_file=files["ca_file"])
    async with running(store):
        with pytest.raises(StoreAway):
            await store.decide([ask()])
    assert (store.errors, store.decisions) == (1, 0)


# --- a cluster --------------------------------------------------------------------------------------------------


def places_on_each(cluster):
    """Return a place, as of a section, for each node: one whose keys stand there."""
    found = {}
    for number in range(1000):
        of = zone("z", f"route:r{number}")
        slot = int(cluster.ask(cluster.ports[0], "cluster", "keyslot", redis.key_of("gw:", ask(of=of))))
        found.setdefault(slot * 3 // 16384, of)
        if len(found) == 3:
            return [found[third] for third in range(3)]
    raise AssertionError("no three nodes in 1000 slots")


async def test_a_cluster_counts_each_section_on_one_node_and_exactly(cluster):
    stores = [
        RedisStore(f"redis://127.0.0.1:{port}", timeout=10, prefix="gw:", log=logging.getLogger("test"), cluster=True)
        for port in cluster.ports
    ]
    zones = places_on_each(cluster)
    passed = dict.fromkeys(range(3), 0)

    async def client(store, which):
        for _ in range(60):
            ((admitted, *_), _) = await store.decide(
                [ask(of=zones[which]), ask("other", TokenBucket(1, 1000), zones[which])]
            )
            passed[which] += admitted

    async with running(*stores), anyio.create_task_group() as tasks:
        for store in stores:
            for which in range(3):
                tasks.start_soon(client, store, which)
    assert passed == {0: 100, 1: 100, 2: 100}
    assert [int(cluster.ask(port, "dbsize")) for port in cluster.ports] == [2, 2, 2]
    assert [store.errors for store in stores] == [0, 0, 0]


async def test_slots_that_move_to_another_node_take_their_states_along(cluster):
    (of, _, _), (first, second, _) = places_on_each(cluster), cluster.ports
    store = RedisStore(
        f"redis://127.0.0.1:{first}", timeout=10, prefix="gw:", log=logging.getLogger("test"), cluster=True
    )
    async with running(store):
        for _ in range(40):
            assert (await store.decide([ask(of=of)]))[0][0]
        key = redis.key_of("gw:", ask(of=of))
        slot = cluster.ask(first, "cluster", "keyslot", key)
        ids = {port: cluster.ask(port, "cluster", "myid") for port in (first, second)}
        cluster.ask(second, "cluster", "setslot", slot, "importing", ids[first])
        cluster.ask(first, "cluster", "setslot", slot, "migrating", ids[second])
        cluster.ask(first, "migrate", "127.0.0.1", str(second), key, "0", "5000")
        for port in (second, first):
            cluster.ask(port, "cluster", "setslot", slot, "node", ids[second])
        admitted = 0
        for _ in range(100):
            with contextlib.suppress(StoreAway):
                admitted += (await store.decide([ask(of=of)]))[0][0]
    assert admitted == 60
