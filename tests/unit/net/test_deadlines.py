"""The wheel of deadlines, against a list that is looked through every time."""

from __future__ import annotations

from math import inf

import anyio
import pytest
from hypothesis import given, strategies as st

from gw.net.deadlines import RESOLUTION, Deadlines
from gw.testing import PATIENCE
from gw.testing.memory import Clock

SECONDS = st.floats(0.001, 5.0)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("after"), st.integers(0, 4), st.one_of(st.just(0.0), SECONDS)),
        st.tuples(st.just("off"), st.integers(0, 4)),
        st.tuples(st.just("forget"), st.integers(0, 4)),
        st.tuples(st.just("pass"), st.floats(0.0, 3.0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_each_fires_once_when_it_is_due_and_at_most_two_looks_late(steps):
    clock = Clock()
    wheel = Deadlines(clock)
    fired: list[int] = []
    dues = [wheel.due(lambda number=number: fired.append(number)) for number in range(5)]
    set_for = [inf] * 5
    forgotten: set[int] = set()
    for step, *arguments in steps:
        if step == "after":
            number, seconds = arguments
            dues[number].after(seconds)
            if number not in forgotten:
                set_for[number] = clock.now + seconds if seconds else inf
        elif step == "pass":
            until = clock.now + arguments[0]
            while clock.now < until:
                clock.now = min(until, clock.now + RESOLUTION)
                wheel.turn()
                for number in fired:
                    assert clock.now - 2 * RESOLUTION <= set_for[number] + RESOLUTION, "late"
                    assert set_for[number] <= clock.now, "early, or although it was off"
                    set_for[number] = inf
                fired.clear()
        else:
            number = arguments[0]
            getattr(dues[number], step)()
            set_for[number] = inf
            if step == "forget":
                forgotten.add(number)
    assert all(when > clock.now - 2 * RESOLUTION for when in set_for), "missed"


def test_one_may_move_stop_or_forget_another_of_the_same_moment():
    clock = Clock()
    wheel = Deadlines(clock)
    fired: list[str] = []

    def first():
        fired.append("first")
        stopped.off()
        forgotten.forget()
        moved.after(1)

    wheel.due(first).after(0.5)
    stopped, forgotten, moved = (wheel.due(lambda name=name: fired.append(name)) for name in ("off", "gone", "moved"))
    for due in (stopped, forgotten, moved):
        due.after(0.5)
    clock.now += 0.6
    wheel.turn()
    assert fired == ["first"]
    clock.now += 1.1
    wheel.turn()
    assert fired == ["first", "moved"]
    assert not wheel._slots


def test_one_may_set_itself_again():
    clock = Clock()
    wheel = Deadlines(clock)
    fired: list[float] = []

    def again():
        fired.append(clock.now)
        due.after(1)

    due = wheel.due(again)
    due.after(1)
    for _ in range(45):
        clock.now += 0.1
        wheel.turn()
    assert len(fired) == 4


def test_moving_one_later_does_not_move_it_in_the_wheel():
    wheel = Deadlines(Clock())
    due = wheel.due(lambda: None)
    due.after(1)
    before = dict(wheel._slots)
    due.after(100)
    assert wheel._slots == before


def test_a_long_stop_is_passed_over_quickly():
    clock = Clock()
    wheel = Deadlines(clock)
    fired: list[int] = []
    for number in (3, 1, 2):
        wheel.due(lambda number=number: fired.append(number)).after(number)
    clock.now += 1e9
    wheel.turn()
    assert fired == [1, 2, 3]


def test_what_is_called_at_each_turn_is_called_at_each_turn():
    wheel = Deadlines(Clock())
    turns: list[int] = []
    wheel.every_tick(lambda: turns.append(1))
    wheel.turn()
    wheel.turn()
    assert len(turns) == 2


async def test_it_turns_by_itself():
    wheel = Deadlines()
    fired = anyio.Event()
    wheel.due(fired.set).after(0.01)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wheel.run)
            await fired.wait()
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["off", "forget"])
def test_what_is_off_does_not_fire(how):
    clock = Clock()
    wheel = Deadlines(clock)
    fired: list[int] = []
    due = wheel.due(lambda: fired.append(1))
    due.after(1)
    getattr(due, how)()
    clock.now += 5
    wheel.turn()
    assert fired == []
