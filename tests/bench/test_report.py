"""The arithmetic of the benchmark: what is divided by what, and which figure is held against a budget."""

from __future__ import annotations

import dataclasses

import pytest
from report import Budget, Sample, cpu_difference, cpu_ratio, judge, median_ratio, ratios, table, tail_ratio


def sample(us: float, *, p50: float = 0.001, p99: float = 0.002) -> Sample:
    return Sample(requests=1000, seconds=2.0, cpu=us / 1000, p50=p50, p99=p99, resident=32 << 20)


def test_cpu_is_counted_per_request_and_requests_per_second():
    assert sample(50).cpu_per_request == pytest.approx(50e-6)
    assert sample(50).rate == 500


def test_a_ratio_is_taken_within_each_round_before_the_median():
    slow_round = {"gw": sample(400), "envoy": sample(800)}
    rounds = [slow_round, {"gw": sample(60), "envoy": sample(100)}, {"gw": sample(70), "envoy": sample(100)}]
    assert judge(cpu_ratio("gw", "envoy", 0.7), rounds).figure == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("budget", "figure"),
    [
        (cpu_ratio("gw", "floor", 1), 2.0),
        (cpu_difference("gw", "floor", 1), 30.0),
        (median_ratio("gw", "floor", 1), 4.0),
        (tail_ratio("gw", 1), 2.5),
    ],
)
def test_each_kind_of_budget_computes_its_figure(budget: Budget, figure: float):
    rounds = [{"gw": sample(60, p50=0.004, p99=0.010), "floor": sample(30, p50=0.001)}]
    assert judge(budget, rounds).figure == pytest.approx(figure)


def test_a_verdict_says_the_figure_the_limit_and_whether_it_was_met():
    rounds = [{"gw": sample(60), "envoy": sample(80)}]
    assert (
        str(judge(cpu_ratio("gw", "envoy", 0.8), rounds)) == "CPU per request, gw / envoy: 0.75 x (at most 0.8 x: met)"
    )
    assert (
        str(judge(cpu_ratio("gw", "envoy", 0.7), rounds))
        == "CPU per request, gw / envoy: 0.75 x (at most 0.7 x: MISSED)"
    )


def test_a_verdict_on_several_rounds_says_how_far_they_lie_apart():
    rounds = [{"gw": sample(us), "envoy": sample(100)} for us in (50, 90, 60)]
    verdict = str(judge(cpu_ratio("gw", "envoy", 0.7), rounds))
    assert verdict == "CPU per request, gw / envoy: 0.60 x (at most 0.7 x: met; 0.50 to 0.90 over 3 rounds)"


def test_a_figure_that_equals_the_limit_meets_it():
    assert judge(tail_ratio("gw", 2.0), [{"gw": sample(60, p50=0.5, p99=1.0)}]).met


def test_a_budget_whose_peer_did_not_run_is_neither_met_nor_left_out():
    verdict = judge(cpu_ratio("gw", "envoy", 0.7), [{"gw": sample(60)}])
    assert not verdict.met
    assert str(verdict) == "CPU per request, gw / envoy: not measured (at most 0.7 x)"


def test_a_round_in_which_one_side_failed_does_not_count():
    rounds = [{"gw": sample(10)}, {"gw": sample(60), "envoy": sample(60)}]
    assert judge(cpu_ratio("gw", "envoy", 1), rounds).figure == pytest.approx(1.0)


def test_the_table_has_a_row_for_each_proxy_and_medians_of_the_rounds():
    fast = dataclasses.replace(sample(20), resident=16 << 20)
    lines = list(table([{"gw": sample(60), "floor": fast}, {"gw": sample(80)}]))
    assert [line.split() for line in lines[1:]] == [
        ["gw", "70.0", "500", "1.000", "2.000", "32.0"],
        ["floor", "20.0", "500", "1.000", "2.000", "16.0"],
    ]


def test_ratios_are_shown_against_a_peer_only_if_it_ran():
    rounds = [{"gw": sample(60), "envoy": sample(80)}]
    assert ratios(rounds, "envoy") == "  CPU per request, envoy = 1: gw 0.75, envoy 1.00"
    assert ratios(rounds, "floor") == ""
