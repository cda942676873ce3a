"""The three families; alone, and in a gateway."""

from __future__ import annotations

import gc

from scenes import ERROR, breakers, config, exported, reload, statuses

from gw import Figures
from gw.testing.gateway import Upstream, in_memory
from gw_breaker.counts import Counts
from gw_breaker.machine import State, Transition


class Somebody:
    def states(self):
        return [("api", State.OPEN), ("api at 192.0.2.1:80", State.CLOSED)]


def rows(figures, family):
    (found,) = [each for each in figures if each.name == f"gw.circuit_breaker.{family}"]
    return {labels: row.value for labels, row in found.rows().items()}


def test_each_breaker_is_in_one_state():
    figures, somebody = Figures(), Somebody()
    counts = Counts(figures, somebody)
    assert rows(figures, "state") == {
        ("api", "closed"): 0,
        ("api", "open"): 1,
        ("api", "half_open"): 0,
        ("api at 192.0.2.1:80", "closed"): 1,
        ("api at 192.0.2.1:80", "open"): 0,
        ("api at 192.0.2.1:80", "half_open"): 0,
    }
    del somebody
    assert rows(figures, "state") == {}
    assert counts is not None


def test_what_happened_is_counted_and_a_successor_goes_on():
    figures = Figures()
    for _ in range(2):
        somebody = Somebody()
        counts = Counts(figures, somebody)
        counts.moved("api", Transition(0, State.CLOSED, State.OPEN, "rate"))
        counts.rejected("api", "open")
    assert rows(figures, "transitions") == {("api", "closed", "open", "rate"): 2}
    assert rows(figures, "rejected") == {("api", "open"): 2}
    assert rows(figures, "state")["api", "open"] == 1


async def test_states_rejections_and_transitions_are_exported_and_go_on_over_reloads(clock):
    async with in_memory(config(), Upstream(ERROR)) as gateway:
        assert exported(gateway, "state") == {("upstream", "closed"): 1}
        await statuses(gateway, 4)
        assert exported(gateway, "state") == {("upstream", "open"): 1}
        assert exported(gateway, "rejected") == {("upstream", "open"): 2}
        breakers(gateway).reset("upstream", "as new")
        off = {"enabled": False}
        await reload(gateway, config(off))
        assert exported(gateway, "state") == {}
        await reload(gateway, config())
        gc.collect()
        await statuses(gateway, 3)
        clock.move(5)
        await statuses(gateway, 1)
        assert exported(gateway, "state") == {("upstream", "open"): 1}
        assert exported(gateway, "rejected") == {("upstream", "open"): 3}
        assert exported(gateway, "transitions") == {
            ("upstream", "closed", "open", "consecutive"): 2,
            ("upstream", "open", "closed", "reset"): 1,
            ("upstream", "open", "half_open", "open_elapsed"): 1,
            ("upstream", "half_open", "open", "probe_fail"): 1,
        }
    gc.collect()
    assert exported(gateway, "state") == {}, "who stopped answering still answers"
