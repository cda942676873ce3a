"""Several processes and one table: exact to the request, whoever dies in the middle."""

from __future__ import annotations

import contextlib
import os
import random
import signal

import pytest

from gw_ratelimit.algorithms import FixedWindow, TokenBucket
from gw_ratelimit.stores import Ask, SharedStore, StoreAway
from gw_ratelimit.table import SharedTable
from gw_ratelimit.zones import Zone

FOREVER = FixedWindow(100, "fixed", lambda now: (1, 1 << 50))


def zone(table):
    return Zone("gateway", "z", "z:client_ip:kind", 16, table)


def workers(count, work, *, waiting=()):
    """Fork *count* processes that all begin at once; return what each of them wrote. *waiting* gets their pids first."""
    start, go = os.pipe()
    children = []
    for index in range(count):
        answer, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(go)
                os.close(answer)
                os.read(start, 1)  # until every write end is closed
                os.write(tell, str(work(index)).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(tell)
        children.append((pid, answer))
    os.close(start)
    os.close(go)
    try:
        for each in waiting:
            each([pid for pid, _ in children])
        found = []
        for _, answer in children:
            with os.fdopen(answer, "rb") as stream:
                found.append(stream.read().decode())
        return found
    finally:
        for pid, _ in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("limit", [FOREVER, TokenBucket(0.001, 100)], ids=["window", "bucket"])
def test_of_10000_requests_to_4_workers_exactly_the_capacity_passes(tmp_path, limit):
    path = str(tmp_path / "t")

    def work(index):
        table = SharedTable(path, None, 1000)
        store, own = SharedStore(), zone(table)
        return sum(store.decide_one(Ask(own, limit, "one", 1, True))[0] for _ in range(2500))

    assert sum(map(int, workers(4, work))) == 100


def test_workers_that_inherit_the_descriptor_are_as_exact(tmp_path):
    fd = os.memfd_create("table")
    os.set_inheritable(fd, True)

    def work(index):
        store, own = SharedStore(), zone(SharedTable("", lambda: fd, 1000))
        return sum(store.decide_one(Ask(own, FOREVER, "one", 1, True))[0] for _ in range(500))

    assert sum(map(int, workers(4, work))) == 100
    os.close(fd)


def test_requests_with_two_zones_in_opposite_order_end_and_are_exact(tmp_path):
    path = str(tmp_path / "t")

    def work(index):
        table = SharedTable(path, None, 1000)
        store = SharedStore()
        zones = [Zone("gateway", each, each, 16, table) for each in "ab"]
        asks = [Ask(each, FOREVER, "one", 1, True) for each in (zones if index % 2 else reversed(zones))]
        return sum(all(verdict[0] for verdict in store.decide(asks)) for _ in range(500))

    assert sum(map(int, workers(4, work))) == 100


def test_workers_that_are_killed_in_the_middle_neither_stop_the_others_nor_give_more_away(tmp_path):
    path = str(tmp_path / "t")
    keys = [f"k{number}" for number in range(50)]

    def endless(index):
        store, own = SharedStore(), zone(SharedTable(path, None, 100))
        chance = random.Random(index)
        while True:
            store.decide_one(Ask(own, FOREVER, chance.choice(keys), 1, True))

    for _ in range(5):

        def kill_all(pids):
            table = SharedTable(path, None, 100)
            store, own = SharedStore(), zone(table)
            for pid in pids:
                for number in range(200):  # in between, so that they are somewhere in the middle
                    store.decide_one(Ask(own, FOREVER, f"other{number % 7}", 1, True))
                os.kill(pid, signal.SIGKILL)
            table.open().close()

        workers(4, endless, waiting=(kill_all,))

    table = SharedTable(path, None, 100)
    own, store = zone(table), SharedStore()
    for key in keys:
        for _ in range(101):
            admitted, _, used, _, _ = store.decide_one(Ask(own, FOREVER, key, 1, True))
            assert 0 <= used <= 100
        assert not admitted
    table.open().close()


def test_a_worker_that_is_frozen_holds_up_nobody_for_long(tmp_path):
    path = str(tmp_path / "t")

    def endless(index):
        store, own = SharedStore(), zone(SharedTable(path, None, 100))
        while True:
            store.decide_one(Ask(own, FOREVER, "one", 1, True))

    def freeze(pids):
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            os.waitpid(pid, os.WUNTRACED)
        table = SharedTable(path, None, 100)
        store, own = SharedStore(), zone(table)
        for number in range(50):
            with contextlib.suppress(StoreAway):
                store.decide_one(Ask(own, FOREVER, "one" if number % 2 else "two", 1, True))
        table.open().close()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    workers(2, endless, waiting=(freeze,))
