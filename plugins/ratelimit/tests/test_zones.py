"""Counters, and the sketch of who was denied most."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, strategies as st

from gw_ratelimit.limits import TOP_KEYS, TOP_SHOWN
from gw_ratelimit.zones import TopKeys, Zone


@given(st.lists(st.integers(0, 200), max_size=400))
def test_no_count_is_too_low_and_none_too_high_by_more_than_it_says(denied):
    top, exact = TopKeys(), Counter(denied)
    for key in denied:
        top.count(str(key))
    for key, count, error in top.top():
        assert exact[int(key)] <= count <= exact[int(key)] + error
        assert error <= len(denied) / TOP_KEYS


def test_who_is_denied_most_is_known_whatever_else_is_denied():
    top = TopKeys()
    for number in range(10_000):
        top.count(f"once {number}")
        if number % 10 == 0:
            top.count("again and again")
    assert top.top()[0][0] == "again and again"
    assert len(top.top()) == TOP_SHOWN
    assert len(top._counts) == TOP_KEYS


def test_a_key_is_shown_short_and_a_secret_not_at_all():
    plain, hiding = Zone("gateway", "a", "a", 16), Zone("gateway", "b", "b", 16, hides=True)
    assert plain.shown("1.2.3.4\0/a") == "1.2.3.4|/a"
    assert plain.shown("half a pair \udcff") == "half a pair ?"
    assert len(plain.shown("x" * 10_000)) == 33
    assert hiding.shown("s3cret") == hiding.shown("s3cret") != hiding.shown("other")
    assert "s3cret" not in hiding.shown("s3cret")
