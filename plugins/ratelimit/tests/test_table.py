"""The table: what it holds, who makes room, and what is left of it when a process dies in the middle."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import stat
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from gw_ratelimit.limits import WAYS
from gw_ratelimit.table import Busy, Table, TableError


def name(number: int) -> bytes:
    return random.Random(number).randbytes(8)


def put(table, key, *state):
    digest = name(key)
    number = table.set_of(digest)
    place = table.find(number, digest)
    if place >= 0:
        table.write(place, *state)
    else:
        table.add(number, digest, *state)


def get(table, key):
    digest = name(key)
    place = table.find(table.set_of(digest), digest)
    return table.read(place) if place >= 0 else None


@pytest.fixture(params=["private", "file", "descriptor"])
def table(request, tmp_path):
    if request.param == "private":
        yield Table.private(1000)
    elif request.param == "file":
        made = Table.open(str(tmp_path / "t"), 1000)
        yield made
        made.close()
    else:
        fd = os.memfd_create("t")
        made = Table.attach(fd, 1000)
        os.close(fd)
        yield made
        made.close()


def test_it_holds_as_many_keys_as_it_was_made_for(table):
    for key in range(1000):
        put(table, key, key, -key, 1 << 62, 10**6 + key)
    kept = [key for key in range(1000) if get(table, key) == (key, -key, 1 << 62, 10**6 + key)]
    assert len(kept) >= 990  # a set of 16 is full once in a thousand
    assert 990 <= table.held(0) <= 1000
    assert table.held(10**7) == 0


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 100)), max_size=60))
def test_it_is_a_mapping_while_no_set_is_full(steps):
    table, model = Table.private(16 * 40), {}
    for key, value in steps:
        put(table, key, value, value, value, 1000)
        model[key] = (value, value, value, 1000)
        assert {each: get(table, each) for each in range(31) if get(table, each)} == model


def test_who_will_be_forgotten_soonest_makes_room():
    table = Table.private(1)
    assert table.sets == 1
    for key in range(WAYS):
        put(table, key, 1, 1, 1, 1000 + key)
    put(table, 99, 1, 1, 1, 5000)
    assert get(table, 0) is None
    assert all(get(table, key) for key in [*range(1, WAYS), 99])


def test_endless_keys_push_out_nobody_who_owes_more():
    table = Table.private(1000)
    honest = range(200)
    for key in honest:
        put(table, key, 1, 1, 1, 60_000)  # used up: full again in a minute
    for key in range(1000, 101_000):  # a hundred times its size, each of them once
        put(table, key, 1, 1, 1, 1000)
    assert sum(get(table, key) is not None for key in honest) == len(honest)


def test_a_key_whose_time_has_come_leaves_its_place_before_any_other(table):
    for key in range(100):
        put(table, key, 1, 1, 1, 50)
    for key in range(1000, 2000):
        put(table, key, 1, 1, 1, 1000)
    assert table.held(100) >= 985


def test_a_table_of_another_size_takes_over_what_there_is():
    old, larger, smaller = Table.private(100), Table.private(1000), Table.private(16)
    for key in range(100):
        put(old, key, key, 0, 0, 1000 + key)
    kept = [key for key in range(100) if get(old, key)]
    old.copy_to(larger)
    assert [key for key in range(100) if get(larger, key) == (key, 0, 0, 1000 + key)] == kept
    old.copy_to(smaller)
    assert 20 <= smaller.held(0) <= 32


def test_a_private_table_takes_no_memory_for_keys_that_are_not_there():
    tracemalloc.start()
    table = Table.private(100_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    put(table, 1, 1, 1, 1, 1)
    assert peak < 100_000


# --- shared -------------------------------------------------------------------------------------------------


def test_whoever_opens_it_sees_the_same(tmp_path):
    first, second = (Table.open(str(tmp_path / "t"), 100) for _ in range(2))
    put(first, 1, 1, 2, 3, 4)
    assert get(second, 1) == (1, 2, 3, 4)
    assert first.secret == second.secret != bytes(16)
    assert repr(first) == "<Table shared, 13 sets of 16>"
    first.close()
    second.close()


def test_its_file_is_for_its_user_alone(tmp_path):
    Table.open(str(tmp_path / "t"), 100).close()
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o600


def test_what_is_no_table_of_ours_is_refused(tmp_path):
    def refusal(path, keys=100):
        before = set(Path("/proc/self/fd").iterdir())
        with pytest.raises(TableError) as refused:
            Table.open(str(path), keys)
        assert set(Path("/proc/self/fd").iterdir()) == before
        return str(refused.value).replace(str(tmp_path), "")

    Table.open(str(tmp_path / "t"), 100).close()
    (tmp_path / "text").write_text("x" * 100)
    (tmp_path / "open").write_text("")
    (tmp_path / "text").chmod(0o600)
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "link").symlink_to(tmp_path / "t")
    assert refusal(tmp_path / "t", 1000) == "/t was made with another max_entries; stop who uses it and remove it"
    assert refusal(tmp_path / "text") == "/text is no table of this version of gw; remove it, or name another"
    assert refusal(tmp_path / "open") == "/open is not a file of this user's alone; remove it, or name another"
    assert refusal(tmp_path / "link") == "/link cannot be opened: Too many levels of symbolic links"
    assert refusal(tmp_path / "no" / "t") == "/no/t cannot be opened: No such file or directory"
    assert refusal(tmp_path) == " cannot be opened: Is a directory"
    with pytest.raises(TableError, match="descriptor 987654 is not open: Bad file descriptor"):
        Table.attach(987654, 100)


def test_a_file_that_was_left_half_made_is_made_again(tmp_path):
    table = Table.open(str(tmp_path / "t"), 100)
    size = (tmp_path / "t").stat().st_size
    table.close()
    (tmp_path / "t").write_bytes(bytes(size))
    made = Table.open(str(tmp_path / "t"), 100)
    put(made, 1, 1, 2, 3, 4)
    assert made.secret != bytes(16)
    made.close()


@pytest.fixture
def in_child():
    """Run something in a process of its own, which says when it is ready; whatever happens, it does not outlive the test."""
    pids = []

    def start(run) -> int:
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                run(lambda: os.write(tell, b"."))
            finally:
                os._exit(0)
        pids.append(pid)
        os.close(tell)
        assert os.read(ready, 1) == b".", "it ended before it was ready"
        os.close(ready)
        return pid

    yield start
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_who_is_killed_holding_a_set_lets_go_of_it(tmp_path, in_child):
    path = str(tmp_path / "t")
    table = Table.open(path, 100)

    def hold(ready):
        own = Table.open(path, 100)
        own.lock(3)
        ready()
        signal.pause()

    pid = in_child(hold)
    table.lock(4)  # another set is free
    table.unlock(4)
    with pytest.raises(Busy, match="is held by a process that does not run"):
        table.lock(3)
    os.kill(pid, signal.SIGKILL)
    with table.locked((3,)):
        pass
    table.close()


def test_a_lock_of_several_sets_is_undone_where_one_is_busy(tmp_path, in_child):
    path = str(tmp_path / "t")
    table, other = Table.open(path, 100), []

    def hold(ready):
        own = Table.open(path, 100)
        own.lock(5)
        ready()
        signal.pause()

    in_child(hold)
    with pytest.raises(Busy), table.locked((1, 5)):
        other.append("entered")
    assert not other

    def take(ready):
        own = Table.open(path, 100)
        own.lock(1)
        ready()

    in_child(take)
    table.close()


def test_a_table_that_takes_the_place_of_another_has_its_keys_and_its_secret(tmp_path):
    smaller, larger = os.memfd_create("smaller"), os.memfd_create("larger")
    before = Table.attach(smaller, 100)
    names = [name(each) for each in range(100)]
    for number, each in enumerate(names):
        before.add(before.set_of(each), each, number, 7, 0, 1 << 50)
    made = Table.attach(larger, 1000, before)
    assert (made.secret, made.held(0)) == (before.secret, 100)
    for number, each in enumerate(names):
        assert made.read(made.find(made.set_of(each), each)) == (number, 7, 0, 1 << 50)
    other = Table.attach(larger, 1000, before)  # of the next worker, which finds it made
    assert (other.secret, other.held(0)) == (before.secret, 100)
    for each in (before, made, other):
        each.close()
    for fd in (smaller, larger):
        os.close(fd)
