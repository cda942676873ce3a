"""Samplers and their overrides, and that identifiers are random enough to be told apart."""

from __future__ import annotations

import pytest

from gw_otel.sampling import Ids, compile_overrides, sampler
from gw_otel.settings import Override, Sampler

HIGH, LOW = "f" * 32, "0" * 31 + "1"


@pytest.mark.parametrize(
    ("kind", "ratio", "trace_id", "parent", "decision"),
    [
        ("always_on", 0, HIGH, False, True),
        ("always_off", 1, LOW, True, False),
        ("trace_id_ratio", 1, HIGH, None, True),
        ("trace_id_ratio", 0, LOW, None, False),
        ("trace_id_ratio", 0.5, "7fffffffffffffff" + "f" * 16, None, True),
        ("trace_id_ratio", 0.5, "8000000000000000" + "0" * 16, None, False),
        ("trace_id_ratio", 0.5, HIGH, True, False),  # it does not ask the parent
        ("parent_based", 0, HIGH, True, True),
        ("parent_based", 1, LOW, False, False),
        ("parent_based", 0.5, LOW, None, True),
        ("parent_based", 0.5, HIGH, None, False),
        ("consistent", 0.5, "0" * 18 + "80000000000000", None, True),
        ("consistent", 0.5, "f" * 18 + "7fffffffffffff", None, False),
        ("consistent", 0, HIGH, None, False),
        ("consistent", 1, LOW, None, True),
        ("consistent", 0, HIGH, True, True),
    ],
)
def test_a_sampler_decides(kind, ratio, trace_id, parent, decision):
    assert sampler(Sampler(type=kind, ratio=ratio))(trace_id, parent) is decision


def test_a_ratio_is_about_the_share_that_it_says():
    ids, decide = Ids(), sampler(Sampler(type="trace_id_ratio", ratio=0.25))
    kept = sum(decide(ids.trace(), None) for _ in range(20_000))
    assert 4_500 < kept < 5_500  # sixteen times the standard deviation


def test_a_larger_ratio_keeps_all_that_a_smaller_one_keeps():
    ids = Ids()
    for kind in ("trace_id_ratio", "consistent"):
        few, many = (sampler(Sampler(type=kind, ratio=ratio)) for ratio in (0.1, 0.6))
        for trace_id in [ids.trace() for _ in range(2000)]:
            assert many(trace_id, None) or not few(trace_id, None)


@pytest.mark.parametrize(
    ("path", "decision"),
    [
        ("/a", True),
        ("/a/", True),
        ("/a/b", True),
        ("/ab", False),
        ("/a/secret", True),  # the first that fits counts
        ("/dir/x", True),
        ("/dir/", True),
        ("/dir", False),
        ("/health", False),
        ("/stats", True),  # listed by the operator
        ("/", False),
    ],
)
def test_the_first_entry_at_or_above_a_path_replaces_the_sampler(path, decision):
    asked = Sampler(
        type="always_off",
        routes=(
            Override(path="/a", sampler="always_on"),
            Override(path="/a/secret", sampler="always_off"),
            Override(path="/dir/", sampler="always_on"),
            Override(path="/stats", sampler="always_on"),
        ),
    )
    assert compile_overrides(asked, ("/health", "/stats"))(path, HIGH, None) is decision


@pytest.mark.parametrize(
    ("kind", "ratio", "state"),
    [
        ("consistent", 1, "ot=th:0"),
        ("consistent", 0.5, "ot=th:8"),
        ("consistent", 0.25, "ot=th:c"),
        ("consistent", 1 / 3, "ot=th:aaaaaaaaaaaaac"),
        ("parent_based", 0.5, ""),
        ("trace_id_ratio", 0.5, ""),
    ],
)
def test_a_trace_that_was_sampled_consistently_says_how_likely_that_was(kind, ratio, state):
    asked = Sampler(type=kind, ratio=ratio, routes=(Override(path="/a", sampler="consistent", ratio=0.5),))
    decide = compile_overrides(asked, ())
    assert decide.state("/b") == state
    assert decide.state("/a/c") == "ot=th:8"


def test_a_sampled_parent_does_not_protect_from_an_override():
    decide = compile_overrides(Sampler(routes=(Override(path="/quiet"),)), ())
    assert decide("/quiet/now", HIGH, True) is False
    assert decide("/other", HIGH, True) is True


def test_identifiers_are_all_different_and_of_the_right_size():
    ids = Ids()
    traces, spans = [ids.trace() for _ in range(2000)], [ids.span() for _ in range(2000)]
    assert len({*traces, *spans}) == 4000
    assert {len(each) for each in traces} == {32}
    assert {len(each) for each in spans} == {16}
    assert set("".join(traces)) <= set("0123456789abcdef")
