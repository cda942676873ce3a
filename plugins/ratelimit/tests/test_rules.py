"""Calendars and paths."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, strategies as st

from gw_ratelimit.rules import calendar, matches

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia"]


def ms(text, zone):
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


@pytest.mark.parametrize(
    ("period", "zone", "now", "begin", "end"),
    [
        ("minute", "UTC", "2026-03-01T12:34:56", "2026-03-01T12:34", "2026-03-01T12:35"),
        ("hour", "Asia/Kolkata", "2026-03-01T12:34:56", "2026-03-01T12:00", "2026-03-01T13:00"),
        ("day", "Europe/Berlin", "2026-03-29T12:00", "2026-03-29T00:00", "2026-03-30T00:00"),  # has 23 hours
        ("day", "Europe/Berlin", "2026-10-25T12:00", "2026-10-25T00:00", "2026-10-26T00:00"),  # has 25
        ("month", "America/New_York", "2026-12-31T23:59:59", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("month", "UTC", "2028-02-29T00:00", "2028-02-01T00:00", "2028-03-01T00:00"),
    ],
)
def test_a_period_is_that_of_the_calendar(period, zone, now, begin, end):
    assert calendar(period, zone)(ms(now, zone)) == (ms(begin, zone), ms(end, zone))


@given(
    st.sampled_from(["minute", "hour", "day", "month"]),
    st.sampled_from(ZONES),
    st.lists(st.integers(1_600_000_000_000, 1_900_000_000_000), min_size=1, max_size=5),
)
def test_every_time_is_in_its_period_and_the_next_begins_where_it_ends(period, zone, times):
    periods = calendar(period, zone)
    for now in times:
        begin, end = periods(now)
        assert begin <= now < end
        assert periods(end)[0] == end
        assert end - begin <= timedelta(days=32) / timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("path", "applies"),
    [
        ("/api", True),
        ("/api/", True),
        ("/api/x", True),
        ("/apix", False),
        ("/", False),
        ("/v1/x", True),
        ("/v1", False),
    ],
)
def test_a_prefix_ends_where_a_segment_does(path, applies):
    assert matches(path, ("/api", "/v1/")) is applies
