"""Orders of the plugin; test_breaker of the integration tests gives them to a running gateway."""

from __future__ import annotations

import pytest

from gw import Figures
from gw_breaker.breakers import Breakers, Scope
from gw_breaker.machine import Rules
from gw_breaker.orders import orders


class Context:
    """Stands for a configuration."""

    def drain(self, upstream, guard):
        return 0


@pytest.fixture
def breakers():
    made = Breakers(Figures())
    made.want(Context(), Scope("api"), Rules())
    return made


def test_a_breaker_is_opened_closed_and_reset(breakers):
    given = orders(breakers)
    assert given["list"]({}) == {"api": "closed"}
    assert given["open"]({"breaker": "api", "reason": "maintenance"}) == {"api": "open"}
    (last,) = breakers.stats()["breakers"]["api"]["history"].values()
    assert last["reason"] == "maintenance"
    assert given["close"]({"breaker": "api"}) == {"api": "closed"}
    given["open"]({"breaker": "api"})
    assert given["reset"]({"breaker": "api"}) == {"api": "closed"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "say which: breaker=NAME; there are api"),
        ({"breaker": "other"}, "there is no breaker 'other'; there are api"),
    ],
)
def test_an_order_without_a_breaker_is_refused(breakers, values, said):
    with pytest.raises(ValueError, match=said):
        orders(breakers)["open"](values)
