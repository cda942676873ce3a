"""A clock that the tests move, in place of the one that the plugin reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # lets the tests import the module beside them

from gw_breaker.machine import SECOND


class Hand:
    """Nanoseconds, as `time.monotonic_ns` has them."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Hand:
    hand = Hand()
    for module in ("gw_breaker", "gw_breaker.breakers", "gw_breaker.filter"):
        monkeypatch.setattr(f"{module}.monotonic_ns", hand)
    return hand
