"""The block that workers share: what is said is read, once; and only one of them finds out."""

from __future__ import annotations

import os
import signal

import pytest

from gw import Figures
from gw_breaker import board as under_test
from gw_breaker.board import Board, Busy, Row
from gw_breaker.breakers import Breakers, Plan, Scope
from gw_breaker.machine import SECOND, Rejection, Rules, State, Verdict

NAME = "api"


@pytest.fixture
def memory():
    fd = os.memfd_create("board")
    yield lambda: fd
    os.close(fd)


@pytest.fixture
def boards(memory):
    made = [Board(memory, who) for who in (1, 2)]
    for each in made:
        each.open()
        each.open()
    yield made
    for each in made:
        each.close()


def test_what_one_says_another_reads(boards):
    one, other = boards
    assert (other.count, other.read(NAME)) == (0, Row(0, State.CLOSED, 0, 0, False, 0))
    assert one.write(NAME, State.OPEN, 5 * SECOND, 3, held=True) == 1
    assert one.write("other", State.OPEN, 1, 1, held=False) == 2
    assert (other.count, other.read(NAME)) == (2, Row(1, State.OPEN, 5 * SECOND, 3, True, 1))
    assert repr(other) == "<Board 2 said>"


def test_one_alone_may_find_out_until_its_time_is_up(boards):
    one, other = boards
    heard = one.write(NAME, State.OPEN, 10, 1, held=False)
    claimed = one.claim(NAME, heard, 70, 1)
    assert claimed == 2
    assert other.claim(NAME, heard, 71, 1) == 0, "somebody has said something since"
    assert other.read(NAME) == Row(2, State.HALF_OPEN, 70, 1, False, 1)
    assert other.claim(NAME, claimed, 130, 1) == 3


def test_there_are_only_so_many_rows(boards, monkeypatch):
    monkeypatch.setattr(under_test, "BOARD_ROWS", 3)
    one, other = boards
    for name in "abc":
        one.write(name, State.OPEN, 1, 1, held=False)
    with pytest.raises(Busy, match="has 3 rows, and all are taken"):
        other.read("d")
    assert [other.read(name).number for name in "abc"] == [1, 2, 3]


def test_of_processes_that_claim_at_once_one_succeeds_and_a_dead_one_blocks_nobody(memory, monkeypatch):
    monkeypatch.setattr(under_test, "LOCK_TRIES", 100_000)
    begin, go = os.pipe()
    told, tell = os.pipe()
    children = []
    for who in range(4):
        pid = os.fork()
        if pid == 0:
            os.close(go)
            made = Board(memory, who)
            made.open()
            os.read(begin, 1)
            won = sum(made.claim(f"{number}", 0, 1, 0) > 0 for number in range(200))
            os.write(tell, bytes([won]))
            os._exit(0)
        children.append(pid)
    holds, held = os.pipe()
    holder = os.fork()
    if holder == 0:
        made = Board(memory, 9)
        made.open()
        with made._locked():
            os.write(held, b"x")
            signal.pause()
    os.read(holds, 1)
    os.close(begin)
    os.close(go)
    os.kill(holder, signal.SIGKILL)
    won = b"".join(os.read(told, 1) for _ in children)
    for pid in [*children, holder]:
        os.waitpid(pid, 0)
    assert sum(won) == 200
    for fd in (told, tell, holds, held):
        os.close(fd)


def test_a_board_that_is_held_is_not_waited_for(boards, monkeypatch):
    def refused(fd, how, *place):
        raise BlockingIOError

    monkeypatch.setattr(under_test, "LOCK_TRIES", 2)
    with monkeypatch.context() as patched:
        patched.setattr(under_test.fcntl, "lockf", refused)
        with pytest.raises(Busy, match="another worker holds it"):
            boards[0].read(NAME)


# --- breakers of several workers -----------------------------------------------------------------------------


class Worker:
    """One worker's breakers, of which one is shared."""

    def __init__(self, memory, who, rules=None):
        self.board = Board(memory, who)
        self.board.open()
        self.breakers = Breakers(Figures(), self.board)
        self.context = Context()
        scope = Scope(NAME, machine=True)
        self.rules = rules or Rules(consecutive=2, probes=1, base_open=5 * SECOND)
        self.breaker = self.breakers.want(self.context, scope, self.rules).only

    def fail(self, now, times=1):
        for _ in range(times):
            self.breaker.report(self.breaker.admit(now), Verdict.FAILURE, now)


class Context:
    """Stands for a configuration."""

    def drain(self, upstream, guard):
        return 0


@pytest.fixture
def workers(memory):
    made = [Worker(memory, who) for who in range(3)]
    yield made
    for each in made:
        each.board.close()


def states(workers):
    return [each.breaker.state.value for each in workers]


def listen(workers, now):
    for each in workers:
        each.breakers.listen(now)


def test_what_opens_in_one_worker_opens_in_all_and_one_of_them_finds_out(workers):
    one, other, third = workers
    one.fail(0, 2)
    assert states(workers) == ["open", "closed", "closed"]
    listen(workers, 1)
    assert states(workers) == ["open"] * 3
    assert third.breaker.admit(2) == Rejection(State.OPEN, "open", 5)
    # Its time is up: whoever comes first finds out, for as long as that may take.
    now = 5 * SECOND
    probe = other.breaker.admit(now)
    assert isinstance(probe, int)
    assert one.breaker.admit(now).reason == third.breaker.admit(now).reason == "open"
    other.breaker.report(probe, Verdict.FAILURE, now)
    listen(workers, now)
    assert {each.breaker.open_until for each in workers} == {15 * SECOND}, "each knows that it was the second time"
    now = 15 * SECOND
    third.breaker.report(third.breaker.admit(now), Verdict.SUCCESS, now)
    assert one.breaker.admit(now) == one.breaker.generation, "it heard that it is well when it wanted to find out"
    listen(workers, now)
    assert states(workers) == ["closed"] * 3
    assert [sum(each.breaker.counts(now).values()) for each in workers] == [0] * 3


def test_one_that_dies_while_it_finds_out_is_followed_by_another(workers):
    one, other, _ = workers
    one.fail(0, 2)
    listen(workers, 0)
    assert isinstance(one.breaker.admit(5 * SECOND), int)
    listen(workers, 5 * SECOND)
    assert isinstance(other.breaker.admit(64 * SECOND), Rejection)
    assert isinstance(other.breaker.admit(65 * SECOND), int), "the time for finding out is 60 s"


def test_a_worker_that_comes_later_begins_with_what_the_others_know(workers, memory):
    workers[0].fail(0, 2)
    late = Worker(memory, 9)
    listen([late], 1)
    assert late.breaker.state is State.OPEN
    late.board.close()


def test_what_is_done_by_hand_is_done_in_all(workers):
    one, other, _ = workers
    one.breakers.open(NAME, "maintenance")
    listen(workers, 0)
    assert [each.breaker.held for each in workers] == [True] * 3
    other.breakers.close(NAME, "done")
    listen(workers, 0)
    assert (states(workers), [each.breaker.held for each in workers]) == (["closed"] * 3, [False] * 3)


def test_one_that_nobody_wants_any_more_is_forgotten_by_all(workers):
    one, other, _ = workers
    one.fail(0, 2)
    nothing = Context()
    one.breakers.take_over(nothing, 0)
    listen([other], 0)
    assert other.breaker.state is State.CLOSED
    assert isinstance(one.breakers.plan(nothing), Plan)


def test_without_the_board_a_breaker_goes_by_itself(workers, monkeypatch, caplog):
    def busy(self):
        raise Busy("held")

    one, other, _ = workers
    with monkeypatch.context() as patched:
        patched.setattr(Board, "_locked", busy)
        one.fail(0, 2)
        assert isinstance(one.breaker.admit(5 * SECOND), int)
    assert states([one, other]) == ["half_open", "closed"]
    assert "circuit breaker api goes by itself: the board of the workers cannot be used, held" in caplog.text
