"""The arithmetic alone, against exact fractions. That the stores do the same is test_stores' business."""

from __future__ import annotations

from fractions import Fraction

import exact_limits as exact
import pytest
from hypothesis import given, strategies as st

from gw_ratelimit.algorithms import FixedWindow, SlidingWindow, TokenBucket

RATES = st.one_of(
    st.integers(1, 10**6).map(lambda thousandths: thousandths / 1000), st.sampled_from([0.001, 0.29, 1.001, 1e9])
)
STEPS = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 4)), min_size=1, max_size=40)
NOW = 1_000_000


@given(RATES, st.one_of(st.integers(1, 50), st.just(10**12)), STEPS)
def test_a_bucket_is_exact_and_what_it_says_is_true(rate, capacity, steps):
    limit, oracle = TokenBucket(rate, capacity), exact.Bucket(Fraction(int(Fraction(str(rate)) * 1000), 1000), capacity)
    state, now = limit.fresh, NOW
    for passed, cost in steps:
        now += passed
        admitted, *state, at = limit.take(*state, now, cost)
        assert (admitted, limit.remaining(*state, now), at) == (*oracle.ask(now, cost), now)
        if cost <= capacity:
            wait = limit.wait(*state, now, cost)
            assert wait == oracle.wait(cost)
            assert limit.take(*state, now + wait, cost)[0]
            assert wait == 0 or not limit.take(*state, now + wait - 1, cost)[0]
        lasts = limit.lasts(*state, now)
        assert limit.take(*state, now + lasts, capacity)[0]
        assert lasts == 0 or not limit.take(*state, now + lasts - 1, capacity)[0]


@given(st.integers(1, 50), st.integers(1, 3000), STEPS)
def test_a_sliding_window_is_exact_and_what_it_says_is_true(limit_, length, steps):
    limit, oracle = SlidingWindow(limit_, length), exact.Sliding(limit_, length)
    state, now = limit.fresh, NOW
    for passed, cost in steps:
        now += passed
        admitted, *state, _ = limit.take(*state, now, cost)
        assert (admitted, limit.remaining(*state, now)) == oracle.ask(now, cost)
        if cost <= limit_:
            assert limit.wait(*state, now, cost) == oracle.wait(cost, now)
        lasts = limit.lasts(*state, now)
        assert limit.take(*state, now + lasts, limit_)[0]


@given(st.integers(1, 50), st.integers(1, 3000), STEPS)
def test_a_fixed_window_is_exact_and_what_it_says_is_true(limit_, length, steps):
    limit = FixedWindow(limit_, "fixed", lambda now: (now - now % length, now - now % length + length))
    oracle = exact.Fixed(limit_, length)
    state, now = limit.fresh, NOW
    for passed, cost in steps:
        now += passed
        admitted, *state, _ = limit.take(*state, now, cost)
        assert (admitted, limit.remaining(*state, now)) == oracle.ask(now, cost)
        wait = limit.wait(*state, now, cost)
        if cost <= limit_:
            assert limit.take(*state, now + wait, cost)[0]
            assert wait == 0 or not limit.take(*state, now + wait - 1, cost)[0]


@given(RATES, st.integers(1, 50), st.lists(st.integers(-5000, 5000), max_size=40))
def test_no_bucket_gives_more_than_its_capacity_and_its_rate_whatever_the_clock_does(rate, capacity, steps):
    limit = TokenBucket(rate, capacity)
    state, now, given_out, ran = limit.fresh, NOW, 0, 0
    for step in steps:
        now += step
        ran += max(0, step)
        admitted, *state, _ = limit.take(*state, now, 1)
        given_out += admitted
        assert given_out <= capacity + Fraction(str(rate)) * ran / 1000


def test_a_bucket_whose_clock_went_back_goes_on_from_there():
    limit = TokenBucket(1, 1)
    _, *state, _ = limit.take(*limit.fresh, NOW, 1)
    admitted, *state, _ = limit.take(*state, NOW - 3_600_000, 1)
    assert not admitted
    assert limit.take(*state, NOW - 3_599_000, 1)[0]


def test_a_rate_keeps_its_thousandths_and_no_more():
    assert [TokenBucket(rate, 1).numbers[1] for rate in (0.001, 0.29, 1.001, 1.0019, 1e9)] == [
        1,
        290,
        1001,
        1001,
        10**12,
    ]


@pytest.mark.parametrize(
    ("rate", "capacity", "window"), [(10, 20, 2), (10, 1, 1), (3, 10, 4), (0.001, 1, 1000), (1e9, 1, 1), (0.3, 1, 4)]
)
def test_the_window_of_a_bucket_is_what_it_takes_to_fill_it(rate, capacity, window):
    assert TokenBucket(rate, capacity).window(NOW) == window


@pytest.mark.parametrize(
    ("old", "new", "left"), [((1, 100), (1, 50), 50), ((1, 100), (1, 200), 60), ((1, 100), (5, 100), 65)]
)
def test_other_numbers_count_from_the_next_request(old, new, left):
    before, after = TokenBucket(*old), TokenBucket(*new)
    _, *state, _ = before.take(*before.fresh, NOW, 40)
    later = NOW + (1000 if old[0] != new[0] else 0)
    _, *state, _ = after.take(*state, later, 0)
    assert after.remaining(*state, later) == left


def test_a_bucket_is_charged_more_than_it_has_and_pays_it_back():
    limit = TokenBucket(10, 10)
    state = limit.charge(*limit.fresh, NOW, 25)
    assert (limit.remaining(*state, NOW), limit.wait(*state, NOW, 1)) == (0, 1600)
    assert not limit.take(*state, NOW + 1599, 1)[0]
    assert limit.take(*state, NOW + 1600, 1)[0]


def test_a_debt_has_a_bound():
    limit = TokenBucket(1, 10)
    state = limit.charge(*limit.fresh, NOW, 10**15)
    assert state[1] == -9_000_000_000_000_000


def test_windows_are_charged_in_any_case():
    sliding, fixed = (
        SlidingWindow(10, 1000),
        FixedWindow(10, "f", lambda now: (now - now % 1000, now - now % 1000 + 1000)),
    )
    for limit in (sliding, fixed):
        state = limit.charge(*limit.fresh, NOW, 25)
        assert not limit.take(*state, NOW, 1)[0]
        assert limit.remaining(*state, NOW) == 0


@pytest.mark.parametrize(("step", "admitted"), [(-1, False), (-3_600_000, False), (-7_200_000, True)])
def test_a_period_is_not_begun_anew_by_a_clock_that_went_back_a_little(step, admitted):
    length = 3_600_000
    limit = FixedWindow(1, "f", lambda now: (now - now % length, now - now % length + length))
    at = length * 10
    _, *state, _ = limit.take(*limit.fresh, at, 1)
    assert limit.take(*state, at + step, 1)[0] is admitted
