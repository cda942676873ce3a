"""Figures: series are found again, bounded, and read as they are written."""

from __future__ import annotations

import json

import pytest

from gw.figures import OVERFLOW, Figures
from gw.limits import MAX_LABEL_VALUES, MAX_SERIES
from gw.testing import Upstream, in_memory


def family(figures, name):
    return next(each for each in figures if each.name == name)


def values(figures, name):
    return {labels: series.value for labels, series in family(figures, name).rows().items()}


def test_a_series_is_the_same_for_the_same_labels():
    asked = Figures().counter("gw.asked", "{requests}", "Requests", ("zone", "decision"))
    asked.at("a", "allow").add()
    asked.at("a", "allow").add(2)
    asked.at("a", "deny").value += 1
    assert [(labels, series.value) for labels, series in asked.rows().items()] == [
        (("a", "allow"), 3),
        (("a", "deny"), 1),
    ]


def test_a_family_is_the_same_after_a_reload_and_cannot_be_two_things():
    figures = Figures()
    first = figures.counter("gw.asked", "{requests}", "Requests", ("zone",))
    assert figures.counter("gw.asked", "{requests}", "Requests", ("zone",)) is first
    with pytest.raises(ValueError, match=r"figure 'gw\.asked' is a counter in \{requests\} of \('zone',\) already"):
        figures.level("gw.asked", "{requests}", "Requests", ("zone",))


def test_labels_must_all_be_given():
    asked = Figures().counter("gw.asked", "{requests}", "Requests", ("zone",))
    with pytest.raises(ValueError, match=r"gw\.asked has the labels \('zone',\), not 2 of them"):
        asked.at("a", "b")


@pytest.mark.parametrize(
    ("value", "bucket"), [(-1, 0), (0, 0), (0.5, 1), (1, 1), (1.5, 2), (10, 2), (10.5, 3), (float("inf"), 3)]
)
def test_a_bound_belongs_to_the_bucket_below_it(value, bucket):
    series = Figures().histogram("gw.took", "s", "Time", bounds=(0, 1, 10)).at()
    series.record(value)
    assert series.counts.index(1) == bucket
    assert series.sum == value


def test_each_bucket_keeps_its_last_example():
    series = Figures().histogram("gw.took", "s", "Time", bounds=(1,)).at()
    series.record(0.5)
    assert series.exemplars is None
    for value, example in ((0.5, "a"), (0.6, "b"), (2, "c")):
        series.record(value, example)
    assert series.exemplars == ["b", "c"]


def test_other_bounds_begin_anew():
    figures = Figures()
    figures.histogram("gw.took", "s", "Time", bounds=(1,)).at().record(1)
    assert figures.histogram("gw.took", "s", "Time", bounds=(2,)).rows() == {}


def test_a_million_values_of_a_label_are_bounded_and_those_beyond_are_counted():
    figures = Figures()
    asked = figures.counter("gw.asked", "{requests}", "Requests", ("path",))
    for number in range(1_000_000):
        asked.at(str(number)).value += 1
    rows = values(figures, "gw.asked")
    assert len(rows) == MAX_LABEL_VALUES + 1
    assert rows[OVERFLOW,] == 1_000_000 - MAX_LABEL_VALUES
    assert values(figures, "gw.otel.cardinality_overflow") == {("path",): 1_000_000 - MAX_LABEL_VALUES}


def test_combinations_are_bounded_too():
    figures = Figures()
    asked = figures.counter("gw.asked", "{requests}", "Requests", ("one", "two"))
    for one in range(MAX_LABEL_VALUES):
        for two in range(MAX_LABEL_VALUES):
            asked.at(str(one), str(two)).value += 1
    rows = values(figures, "gw.asked")
    assert len(rows) == MAX_SERIES + 1
    assert rows[OVERFLOW, OVERFLOW] == MAX_LABEL_VALUES**2 - MAX_SERIES
    assert values(figures, "gw.otel.cardinality_overflow") == {("*",): MAX_LABEL_VALUES**2 - MAX_SERIES}


def test_what_is_watched_is_read_when_asked_and_adds_up():
    figures = Figures()
    queue = figures.level("gw.queue", "{requests}", "Waiting", ("service",))
    held = [3]
    end = queue.watch(lambda: [(("a",), held[0])])
    queue.watch(lambda: [(("a",), 10), (("b",), 1)])
    assert values(figures, "gw.queue") == {("a",): 13, ("b",): 1}
    held[0] = 4
    assert values(figures, "gw.queue")["a",] == 14
    end()
    assert values(figures, "gw.queue") == {("a",): 10, ("b",): 1}


def counted(*, code="200", bounds=(0.1, 1.0), unit="{requests}"):
    figures = Figures()
    figures.counter("gw.asked", unit, "Asked", ("code",)).at(code).add(3)
    figures.level("gw.open", "{connections}", "Open").at().value = 2
    took = figures.histogram("gw.took", "s", "Time", ("code",), bounds=bounds).at(code)
    took.record(0.05)
    took.record(0.5, ("trace", "span", 0.5, 1))
    return figures


def over_the_wire(figures):
    return json.loads(json.dumps([family.packed() for family in figures]))


def test_figures_of_several_processes_add_up():
    total = Figures()
    total.add(over_the_wire(counted()))
    total.add(over_the_wire(counted(code="404")))
    total.add(over_the_wire(counted()))
    assert values(total, "gw.asked") == {("200",): 6, ("404",): 3}
    assert values(total, "gw.open") == {(): 6}
    took = next(family for family in total if family.name == "gw.took").rows()
    assert {key: (each.counts, each.sum) for key, each in took.items()} == {
        ("200",): ([2, 2, 0], 1.1),
        ("404",): ([1, 1, 0], 0.55),
    }
    assert took["200",].exemplars == [None, ["trace", "span", 0.5, 1], None]


def test_of_a_process_that_is_gone_levels_are_no_more():
    total = Figures()
    total.add(over_the_wire(counted()), levels=False)
    assert values(total, "gw.asked") == {("200",): 3}
    assert "gw.open" not in {family.name for family in total}


def test_where_processes_disagree_the_first_is_right():
    total = Figures()
    total.add(over_the_wire(counted()))
    total.add(over_the_wire(counted(bounds=(5.0,), unit="{others}")))
    assert values(total, "gw.asked") == {("200",): 3}
    assert next(family for family in total if family.name == "gw.took").rows()["200",].counts == [1, 1, 0]


def test_counting_began_when_the_first_process_did():
    one, other = counted(), counted()
    total = Figures()
    total.add(over_the_wire(other))
    total.add(over_the_wire(one))
    assert (
        next(family for family in total if family.name == "gw.asked").since
        == next(family for family in one if family.name == "gw.asked").since
    )


def test_their_names_are_for_people():
    figures = Figures()
    took = figures.histogram("gw.took", "s", "Time", bounds=(1,))
    took.at().record(2)
    assert repr(figures) == "<Figures 2 families>"
    assert repr(took) == "<Family gw.took of 1 series>"
    assert repr(took.at()) == "<Distribution of 1, 2 in all>"
    assert repr(figures.counter("gw.n", "1", "N").at()) == "<Count 0>"


async def test_pools_and_connections_of_a_gateway_are_seen():
    async with in_memory(upstream=Upstream()) as gateway:
        stream = gateway.connect()
        stream.write(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
        await stream.read_until(b"ok")
        await gateway.network.settle()
        figures = gateway.gateway.figures
        assert values(figures, "gw.upstream.pool.connections.idle") == {("upstream",): 1}
        assert values(figures, "gw.upstream.pool.connections.active") == {("upstream",): 0}
        assert values(figures, "gw.net.connections.active") == {(): 1}
        assert values(figures, "gw.net.connections.accepted") == {(): 1}
        assert values(figures, "gw.http.connections.active") == {("http/1.1",): 1}
        assert values(figures, "gw.http.connections.accepted") == {("http/1.1",): 1}
