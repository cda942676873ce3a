"""Requests under way, counted by several processes: exact, and a process that dies has none."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
from pathlib import Path

import pytest

from gw_ratelimit import leases, table
from gw_ratelimit.leases import Leases
from gw_ratelimit.limits import LEASE_FILES
from gw_ratelimit.stores import StoreAway
from gw_ratelimit.zones import Zone


class Worker:
    """A process that enters and leaves when it is told to, and says what came of it."""

    def __init__(self, files):
        theirs, self._tell = os.pipe()
        self._answers, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._tell)  # of the workers before, too, but nobody waits for an end of those
                _obey(Leases(files.__getitem__), theirs, answer)
            finally:
                os._exit(1)
        os.close(theirs)
        os.close(answer)

    def ask(self, what, place, limit=0, counts=True):
        os.write(self._tell, f"{what} {place} {limit} {counts:d}".encode().ljust(64))
        return os.read(self._answers, 200).decode()

    def enter(self, place, limit, *, counts=True):
        return self.ask("enter", place, limit, counts) == "True"

    def leave(self, place):
        self.ask("leave", place)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._tell)
        os.close(self._answers)


def _obey(own, told, answer):
    own.open()
    while line := os.read(told, 64):
        what, place, limit, counts = line.decode().split()
        try:
            enters = what == "enter"
            said = own.enter(int(place), int(limit), counts=counts == "1") if enters else own.leave(int(place))
        except StoreAway as error:
            said = error
        os.write(answer, str(said).encode())


@pytest.fixture
def files():
    made = [os.memfd_create(f"under-way-{number}") for number in range(LEASE_FILES)]
    yield made
    for fd in made:
        os.close(fd)


@pytest.fixture
def own(files):
    made = Leases(files.__getitem__)
    made.open()
    return made


@pytest.fixture
def start(files):
    with contextlib.ExitStack() as stack:

        def worker():
            made = Worker(files)
            stack.callback(lambda: made.kill() if made.pid else None)
            return made

        yield worker


def kill(worker):
    worker.kill()
    worker.pid = 0


def zone(name="z"):
    return Zone("gateway", name, f"{name}:client_ip:concurrency", 16)


def test_no_more_than_the_limit_are_under_way_whoever_has_them(start):
    first, second = start(), start()
    assert [each.enter(7, 3) for each in (first, second, first, second, first)] == [True, True, True, False, False]
    assert first.enter(8, 3), "another key has its own"
    second.leave(7)
    assert [each.enter(7, 3) for each in (first, second)] == [True, False]


def test_what_a_killed_process_had_under_way_is_free_again(start):
    first, second = start(), start()
    assert [first.enter(7, 3), first.enter(7, 3), second.enter(7, 3), second.enter(7, 3)] == [True, True, True, False]
    kill(first)
    third = start()  # takes the part of the dead one
    assert [each.enter(7, 3) for each in (second, third, second, third)] == [True, True, False, False]
    kill(second)
    kill(third)
    assert [start().enter(7, 3) for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("seed", range(10))
def test_it_counts_as_a_dictionary_does_whoever_dies(start, seed):
    chance = random.Random(seed)
    limits = {5: 2, 5 + LEASE_FILES: 7, 6: 3}  # two in one file, side by side
    workers = [start() for _ in range(4)]
    under_way = {place: [0] * len(workers) for place in limits}
    for _ in range(300):
        index, place = chance.randrange(len(workers)), chance.choice([*limits])
        held = under_way[place]
        what = chance.random()
        if what < 0.02:
            kill(workers[index])
            workers[index] = start()
            for each in under_way.values():
                each[index] = 0
        elif what < 0.6:
            limit, counts = limits[place] - chance.randrange(2), chance.random() < 0.9
            fits = sum(held) < limit
            assert workers[index].enter(place, limit, counts=counts) == fits
            held[index] += fits or not counts
        elif held[index]:
            workers[index].leave(place)
            held[index] -= 1


def test_of_many_that_enter_at_once_exactly_as_many_as_may_do(files):
    begin, go = os.pipe()
    answer, tell = os.pipe()
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(go)
                mine = Leases(files.__getitem__)
                mine.open()
                os.read(begin, 1)  # until every write end is closed
                entered = 0
                for _ in range(500):
                    if mine.enter(7, 100, counts=True):
                        entered += 1
                        if entered % 3 == 0:  # some come and go
                            mine.leave(7)
                            entered -= 1
                while mine.enter(7, 100, counts=True):
                    entered += 1
                os.write(tell, bytes([entered]))
                signal.pause()
            finally:
                os._exit(1)
        pids.append(pid)
    os.close(go)
    try:
        assert sum(os.read(answer, 1)[0] for _ in pids) == 100
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in (begin, answer, tell):
            os.close(fd)


def test_a_dry_run_counts_those_that_are_too_many(start):
    first, second = start(), start()
    assert [first.enter(7, 1, counts=False) for _ in range(3)] == [True, False, False]
    assert not second.enter(7, 3)
    first.leave(7)
    assert second.enter(7, 3)


def test_a_limit_that_becomes_smaller_counts_those_above_it(own, start):
    assert all(own.enter(7, 10, counts=True) for _ in range(6))
    other = start()
    for still in (5, 4, 3):
        assert not other.enter(7, 4)
        own.leave(7)
        assert sum(own._own.values()) == still
    assert other.enter(7, 4)


def test_a_key_has_its_place_in_every_process_and_another_one_in_every_gateway(files, own):
    same = Leases(files.__getitem__)  # which is never used to count
    assert own.place(zone(), "a\udcff") == same.place(zone(), "a\udcff")
    assert len({own.place(zone(name), key) for name in "xy" for key in ("a", "b", "é" * 3000, "")}) == 8
    others = [os.memfd_create("other") for _ in range(LEASE_FILES)]
    assert Leases(others.__getitem__).place(zone(), "a") != own.place(zone(), "a")
    for fd in others:
        os.close(fd)


def test_a_child_has_nothing_under_way_and_gives_nothing_back(own, start):
    assert own.enter(7, 1, counts=True)
    pid = os.fork()
    if pid == 0:
        own.leave(7)
        os._exit(own.enter(7, 1, counts=True))
    assert os.waitpid(pid, 0)[1] == 0
    assert not start().enter(7, 1)


def test_what_is_over_leaves_nothing(files, own):
    for place in range(100):
        assert own.enter(place, 1, counts=True)
        own.leave(place)
    assert repr(own) == "<Leases, 0 for 0 keys>"
    assert [os.fstat(fd).st_size for fd in files] == [16] + [0] * (LEASE_FILES - 1)
    locked = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    inodes = {str(os.fstat(fd).st_ino) for fd in files}
    ours = [line[-2:] for line in locked if line[5].rpartition(":")[2] in inodes and line[4] == str(os.getpid())]
    assert ours == [["0", "0"]] * LEASE_FILES, "not just which part is ours"


# --- bounds and failures --------------------------------------------------------------------------------------------------


def test_so_many_keys_and_requests_are_counted_and_no_more(own, monkeypatch):
    monkeypatch.setattr(leases, "LEASED_KEYS", 2)
    monkeypatch.setattr(leases, "LEASED", 3)
    assert own.enter(1, 9, counts=True)
    assert all(own.enter(2, 9, counts=True) for _ in range(3))
    for place in (2, 3):
        with pytest.raises(StoreAway, match="more requests are under way than workers count together"):
            own.enter(place, 9, counts=True)
    own.leave(1)
    assert own.enter(3, 9, counts=True)


def test_so_many_processes_count_together_and_no_more(own, start, monkeypatch):
    monkeypatch.setattr(leases, "LEASING", 2)
    first, second = start(), start()
    assert [first.enter(7, 9), second.enter(7, 9)] == [True, True]
    with pytest.raises(StoreAway, match="more than 2 processes count requests together"):
        own.enter(7, 9, counts=True)
    kill(first)
    assert own.enter(7, 9, counts=True)


def test_a_count_that_is_held_by_who_does_not_run_is_left_alone_for_a_while(files, own, clock, monkeypatch):
    tries = []
    monkeypatch.setattr(table, "LOCK_TRIES", 3)
    monkeypatch.setattr(table.time, "sleep", tries.append)
    index, at = leases._at(7)
    held, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        fcntl.lockf(files[index], fcntl.LOCK_EX, 1, at)
        os.write(tell, b"x")
        signal.pause()
    os.read(held, 1)
    for _ in range(3):
        with pytest.raises(StoreAway, match="held by a process that does not run"):
            own.enter(7, 9, counts=True)
    assert len(tries) == 3, "it waited again, although it had just waited in vain"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    clock.move(1000)
    assert own.enter(7, 9, counts=True)
    for fd in (held, tell):
        os.close(fd)


def test_files_that_are_not_there_are_a_store_that_is_away(files, own, monkeypatch):
    def find(number):
        raise OSError(5, "no more memories")

    with pytest.raises(StoreAway, match="there is no memory to count requests in: no more memories"):
        Leases(find).place(zone(), "a")
    own._files = [1_000_000] * LEASE_FILES  # which is not open
    monkeypatch.setattr(leases, "wait_for", lambda file, at: None)
    with pytest.raises(StoreAway, match="requests under way cannot be counted"):
        own.enter(7, 9, counts=True)
