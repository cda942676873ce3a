"""What is compiled for most sections decides as everything else does: against exact arithmetic, and beside `decide`."""

from __future__ import annotations

import random
from fractions import Fraction

import exact_limits as exact
import pytest

from gw_ratelimit.algorithms import TokenBucket
from gw_ratelimit.limits import DIGESTS, MAX_KEY
from gw_ratelimit.stores import Ask, LocalStore, SharedStore
from gw_ratelimit.table import Busy, SharedTable, Table
from gw_ratelimit.zones import Zone


@pytest.fixture(params=["private", "shared"])
def place(request, clock, tmp_path):
    """Give a store, and what makes zones in it."""
    if request.param == "private":
        yield LocalStore(), lambda name: Zone("gateway", name, name, 1000)
        return
    table = SharedTable(str(tmp_path / "t"), None, 10_000)
    yield SharedStore(), lambda name: Zone("gateway", name, name, 1000, table)
    table.open().close()


@pytest.mark.parametrize("seed", range(40))
def test_it_admits_as_exact_arithmetic_does(place, clock, seed):
    store, zone_of = place
    chance = random.Random(seed)
    rate, capacity = chance.choice([0.001, 0.29, 1, 7.5, 1000, 1e9]), chance.choice([1, 5, 20, 10**12])
    limit, zone, cost = TokenBucket(rate, capacity), zone_of("z"), chance.choice([1, 1, 3])
    admit = store.admission(zone, limit, cost)
    oracle = exact.Bucket(Fraction(int(Fraction(str(rate)) * 1000), 1000), capacity)
    for _ in range(100):
        clock.move(chance.choice([0, 0, 1, chance.randrange(50), chance.randrange(4000)]))
        left = admit("k")
        admitted, remaining = oracle.ask(clock.steady, cost)
        assert (left is not None) == admitted
        if left is not None:
            assert left[3:] == (clock.steady, remaining)


@pytest.mark.parametrize("seed", range(20))
def test_it_and_decide_share_their_states_over_changes_of_the_numbers(place, clock, seed):
    store, zone_of = place
    chance = random.Random(seed)
    one, other = zone_of("one"), zone_of("other")
    for _ in range(100):
        limit = TokenBucket(chance.choice([1, 5, 1000]), chance.choice([1, 5, 100]))
        clock.move(chance.randrange(300))
        key = chance.choice(["", "a\udcff", "é" * 3000, "198.51.100.7", "a\0b"])
        (admitted, at, a, b, now) = store.decide([Ask(other, limit, key, 2, True)])[0]
        if chance.random() < 0.5:
            left = store.admission(one, limit, 2)(key)
            assert left == ((at, a, b, now, limit.remaining(at, a, b, now)) if admitted else None)
        else:
            assert store.decide([Ask(one, limit, key, 2, True)]) == [(admitted, at, a, b, now)]


def test_a_table_that_was_resized_is_the_one_that_counts(clock):
    zone = Zone("gateway", "z", "z", 1000)
    admit = LocalStore().admission(zone, TokenBucket(1, 2), 1)
    assert admit("k") is not None
    zone.resize(5000)
    assert [admit("k") is not None for _ in range(2)] == [True, False]


def test_who_is_held_up_is_left_to_decide(clock, tmp_path, monkeypatch):
    table = SharedTable(str(tmp_path / "t"), None, 100)
    zone = Zone("gateway", "z", "z", 100, table)
    store, limit = SharedStore(), TokenBucket(1, 1)
    admit, cells = store.admission(zone, limit, 1), zone.share()
    tried = []

    def lock(self, number):
        tried.append(number)
        raise Busy("held")

    def held(fd, how, *place):
        raise BlockingIOError

    with monkeypatch.context() as patched:
        patched.setattr("gw_ratelimit.quick.fcntl.lockf", held)
        assert store.admission(zone, limit, 1)("k") is None, "it waits, and nobody else runs"
        patched.setattr(Table, "lock", lock)
        with pytest.raises(Exception, match="held"):
            store.decide([Ask(zone, limit, "k", 1, True)])
        assert admit("k") is None, "it asks again although it was just in vain"
    clock.move(2000)
    assert admit("k") is None
    assert store.decide([Ask(zone, limit, "k", 1, True)])[0][0], "the table is used again after a while"
    clock.move(2000)
    assert admit("k") is not None
    assert cells.table.is_shared
    table.open().close()


def test_digests_are_remembered_within_bounds(clock, tmp_path):
    table = SharedTable(str(tmp_path / "t"), None, 100)
    zone = Zone("gateway", "z", "z", 100, table)
    admit, cells = SharedStore().admission(zone, TokenBucket(1, 1), 1), zone.share()
    for number in range(DIGESTS + 100):
        admit(f"key {number}")
        admit("k" * (MAX_KEY + 1) + str(number))
    remembered = cells.known.cache_info()
    assert (remembered.currsize, remembered.misses) == (DIGESTS, DIGESTS + 100)
    table.open().close()
