"""Seconds are rounded up, whatever the style; test_filter has the fields themselves."""

from __future__ import annotations

import pytest

from gw_ratelimit.headers import seconds


@pytest.mark.parametrize(("milliseconds", "whole"), [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2)])
def test_nobody_who_waits_as_told_comes_too_early(milliseconds, whole):
    assert seconds(milliseconds) == whole
