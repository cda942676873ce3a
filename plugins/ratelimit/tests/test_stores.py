"""All stores against one oracle: in this process, in shared memory, in a real Redis."""

from __future__ import annotations

import random
from fractions import Fraction

import exact_limits as exact
import pytest

from gw_ratelimit.algorithms import FixedWindow, SlidingWindow, TokenBucket
from gw_ratelimit.stores import Ask, SharedStore, StoreAway
from gw_ratelimit.table import Busy, SharedTable, Table
from gw_ratelimit.zones import Zone


def bucket(rate, capacity):
    return TokenBucket(rate, capacity), exact.Bucket(Fraction(int(Fraction(str(rate)) * 1000), 1000), capacity)


def sliding(limit, length):
    return SlidingWindow(limit, length), exact.Sliding(limit, length)


def fixed(limit, length):
    periods = lambda now: (now - now % length, now - now % length + length)  # noqa: E731
    return FixedWindow(limit, "fixed", periods), exact.Fixed(limit, length)


def pairs(chance):
    """Return some limit and its oracle."""
    kind = chance.randrange(4)
    if kind == 0:
        return bucket(chance.choice([0.001, 0.29, 1, 7.5, 1000, 1e9]), chance.choice([1, 5, 20]))
    if kind == 1:
        return bucket(chance.randrange(1, 10**5) / 1000, chance.choice([3, 9_000_000_000]))
    return (sliding if kind == 2 else fixed)(chance.randrange(1, 20), chance.randrange(1, 3000))


@pytest.mark.parametrize("seed", range(40))
def test_a_store_decides_as_exact_arithmetic_does(subject, clock, seed):
    chance = random.Random(seed)
    limit, oracle = pairs(chance)
    zone = subject.zone()
    for _ in range(50):
        clock.move(chance.choice([0, 0, 1, chance.randrange(50), chance.randrange(4000)]))
        cost = chance.choice([1, 1, 1, 2, 3])
        (verdict,) = subject.decide(Ask(zone, limit, "k", cost, True))
        admitted, *state, now = verdict
        time = clock.steady if limit.steady else clock.wall
        assert now == time
        assert (admitted, limit.remaining(*state, now)) == oracle.ask(time, cost)


@pytest.mark.parametrize("seed", range(10))
def test_a_request_is_charged_in_all_zones_or_in_none(subject, clock, seed):
    chance = random.Random(seed)
    chosen = [pairs(chance) for _ in range(3)]
    zones = [subject.zone() for _ in chosen]
    for _ in range(30):
        clock.move(chance.randrange(500))
        asks = [Ask(zone, limit, "k", 1, True) for zone, (limit, _) in zip(zones, chosen, strict=True)]
        admitted = [verdict[0] for verdict in subject.decide(*asks)]
        # The oracle is asked for nothing first, and then, if all have it, for one.
        free = [oracle.ask(_time(limit, clock), 0)[1] >= 1 for limit, oracle in chosen]
        assert admitted == free
        if all(free):
            for limit, oracle in chosen:
                assert oracle.ask(_time(limit, clock), 1)[0]


def _time(limit, clock):
    return clock.steady if limit.steady else clock.wall


def test_a_zone_in_a_dry_run_denies_for_itself_alone(subject):
    tight, wide = TokenBucket(1, 1), TokenBucket(1, 10)
    dry, real = subject.zone(), subject.zone()
    for number in range(3):
        first, second = subject.decide(Ask(dry, tight, "k", 1, False), Ask(real, wide, "k", 1, True))
        assert (first[0], second[0]) == (number == 0, True)
        assert wide.remaining(*second[1:]) == 9 - number


def test_keys_do_not_share_what_they_have(subject):
    limit, zone, other = TokenBucket(1, 1), subject.zone(), subject.zone()
    assert subject.decide(Ask(zone, limit, "a", 1, True))[0][0]
    assert not subject.decide(Ask(zone, limit, "a", 1, True))[0][0]
    assert subject.decide(Ask(zone, limit, "b", 1, True))[0][0]
    assert subject.decide(Ask(other, limit, "a", 1, True))[0][0]


@pytest.mark.parametrize("key", ["", "a\udcff", "é" * 3000, "{x}", "a\0b", "1:2:3"])
def test_any_text_is_a_key(subject, key):
    limit, zone = TokenBucket(1, 1), subject.zone()
    assert [subject.decide(Ask(zone, limit, key, 1, True))[0][0] for _ in range(2)] == [True, False]


def test_two_zones_may_count_one_key(subject):
    zone = subject.zone()
    limit = TokenBucket(1, 3)
    verdicts = subject.decide(Ask(zone, limit, "a", 1, True), Ask(subject.zone(), limit, "a", 2, True))
    assert [limit.remaining(*verdict[1:]) for verdict in verdicts] == [2, 1]


def test_a_machine_whose_clock_went_back_lets_nothing_extra_through(subject, clock):
    limit, zone = TokenBucket(1, 1), subject.zone()
    assert subject.decide(Ask(zone, limit, "k", 1, True))[0][0]
    clock.wall -= 3_600_000  # the steady clock of a machine does not go back
    assert not subject.decide(Ask(zone, limit, "k", 1, True))[0][0]
    clock.move(1000)
    assert subject.decide(Ask(zone, limit, "k", 1, True))[0][0]


def test_a_table_that_is_held_by_who_does_not_run_is_left_alone(clock, tmp_path, monkeypatch):
    table = SharedTable(str(tmp_path / "t"), None, 100)
    zone = Zone("gateway", "z", "z:k:b", 100, table)
    store, asked = SharedStore(), []

    def lock(self, number):
        asked.append(number)
        raise Busy("held")

    monkeypatch.setattr(Table, "lock", lock)
    for _ in range(3):
        with pytest.raises(StoreAway):
            store.decide_one(Ask(zone, TokenBucket(1, 1), "k", 1, True))
        with pytest.raises(StoreAway):
            store.charge(Ask(zone, TokenBucket(1, 1), "k", 1, True))
    assert len(asked) == 1, "it waited again, although it had just waited in vain"
    table.open().close()
