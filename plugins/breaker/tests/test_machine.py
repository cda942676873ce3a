"""The state machine: a table of every transition, and each rule by itself. `test_model` tries what comes of them together."""

from __future__ import annotations

import pytest

from gw_breaker.limits import MAX_RETRY_AFTER
from gw_breaker.machine import SECOND, UNCOUNTED, Breaker, Rejection, Rules, State, Transition, Verdict

OK, BAD, NEUTRAL = Verdict.SUCCESS, Verdict.FAILURE, Verdict.NEUTRAL
MS = SECOND // 1000
START = 1_000 * SECOND

SMALL = Rules(consecutive=3, failure_rate=50, volume=4, window=10, probes=2, base_open=5 * SECOND, max_open=15 * SECOND)


class Watch:
    """A breaker, its clock, and what it told."""

    def __init__(self, rules=SMALL):
        self.now = START
        self.moves: list[Transition] = []
        self.turned: list[tuple[str, bool]] = []
        self.breaker = Breaker(rules, self)

    def moved(self, transition):
        self.moves.append(transition)

    def rejected(self, reason, first):
        self.turned.append((reason, first))

    def call(self, verdict=OK, took=0):
        """Admit and report at once; return what admission said."""
        token = self.breaker.admit(self.now)
        if isinstance(token, int):
            self.breaker.report(token, verdict, self.now, took)
        return token

    def ask(self):
        return self.breaker.admit(self.now)

    def tell(self, token, verdict=OK, took=0):
        self.breaker.report(token, verdict, self.now, took)

    def trip(self):
        for _ in range(self.breaker.rules.consecutive):
            self.call(BAD)
        assert self.state is State.OPEN

    def half_open(self):
        """Open it and take the first probe."""
        self.trip()
        self.now = self.breaker.open_until
        return self.ask()

    @property
    def state(self):
        return self.breaker.state

    @property
    def said(self):
        return [(each.before.value, each.after.value, each.trigger) for each in self.moves]


# --- every transition --------------------------------------------------------


def consecutive(watch):
    watch.trip()


def rate(watch):
    for verdict in (BAD, OK, OK, BAD):
        watch.call(verdict)


def slow_rate(watch):
    watch.breaker.apply(Rules(volume=2, slow_call=100 * MS, slow_rate=50), watch.now)
    watch.call(took=99 * MS)
    watch.call(took=100 * MS)


def open_elapsed(watch):
    watch.half_open()


def probe_success(watch):
    first, second = watch.half_open(), watch.ask()
    watch.tell(first)
    watch.tell(second)


def probe_fail(watch):
    watch.tell(watch.half_open(), BAD)


def half_open_elapsed_well(watch):
    watch.tell(watch.half_open())
    watch.now += SMALL.half_open_time
    watch.ask()


def half_open_elapsed_ill(watch):
    watch.half_open()
    watch.now += SMALL.half_open_time
    watch.ask()


def dry_run_disabled(watch):
    watch.breaker.apply(Rules(dry_run=True), watch.now)
    watch.trip()
    watch.breaker.apply(SMALL, watch.now)


def opened_by_hand(watch):
    watch.breaker.open(watch.now, "maintenance")


def closed_by_hand(watch):
    watch.trip()
    watch.breaker.close(watch.now, "it is well")


def reset(watch):
    watch.half_open()
    watch.breaker.reset(watch.now)


@pytest.mark.parametrize(
    ("play", "transition"),
    [
        (consecutive, ("closed", "open", "consecutive")),
        (rate, ("closed", "open", "rate")),
        (slow_rate, ("closed", "open", "slow_rate")),
        (open_elapsed, ("open", "half_open", "open_elapsed")),
        (probe_success, ("half_open", "closed", "probe_success")),
        (probe_fail, ("half_open", "open", "probe_fail")),
        (half_open_elapsed_well, ("half_open", "closed", "half_open_elapsed")),
        (half_open_elapsed_ill, ("half_open", "open", "half_open_elapsed")),
        (dry_run_disabled, ("open", "open", "dry_run_disabled")),
        (opened_by_hand, ("closed", "open", "manual")),
        (closed_by_hand, ("open", "closed", "manual")),
        (reset, ("half_open", "closed", "reset")),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "-".join(value),
)
def test_every_transition_has_its_trigger(play, transition):
    watch = Watch()
    play(watch)
    assert watch.said[-1] == transition
    assert watch.breaker.transitions.get(transition, 0) == (0 if play is reset else 1)


# --- closed ------------------------------------------------------------------


def test_a_success_ends_a_row_of_failures_and_a_neutral_answer_does_not():
    watch = Watch(Rules(consecutive=3))
    for verdict in (BAD, BAD, OK, BAD, BAD, NEUTRAL, NEUTRAL):
        watch.call(verdict)
    assert watch.state is State.CLOSED
    watch.call(BAD)
    assert watch.said == [("closed", "open", "consecutive")]


def test_rates_count_from_the_minimum_volume_on_and_are_looked_at_only_when_a_failure_comes():
    watch = Watch(Rules(consecutive=100, failure_rate=50, volume=4))
    for verdict in (BAD, BAD, OK, OK, OK):  # at four calls half had failed, but what came was a success
        watch.call(verdict)
    assert watch.state is State.CLOSED
    watch.call(BAD)
    assert watch.said == [("closed", "open", "rate")]


def test_a_rate_of_0_means_any_failure():
    watch = Watch(Rules(failure_rate=0, volume=3))
    for verdict in (OK, OK, OK, OK, BAD):
        watch.call(verdict)
    assert watch.said == [("closed", "open", "rate")]


def test_a_rate_of_100_means_nothing_but_failures():
    watch = Watch(Rules(consecutive=100, failure_rate=100, volume=3))
    for verdict in (OK, BAD, BAD, BAD):
        watch.call(verdict)
    assert watch.state is State.CLOSED


def test_what_is_older_than_the_window_does_not_count():
    watch = Watch(Rules(consecutive=100, failure_rate=50, volume=4, window=3))
    watch.call(BAD)
    watch.call(BAD)
    watch.now += 3 * SECOND
    watch.call(BAD)
    watch.call(BAD)
    assert watch.breaker.counts(watch.now)["calls"] == 2
    watch.now += 2 * SECOND
    watch.call(BAD)
    assert watch.state is State.CLOSED
    watch.call(BAD)
    assert watch.said == [("closed", "open", "rate")]


def test_what_was_admitted_before_it_opened_counts_for_nothing_later():
    watch = Watch()
    late = watch.ask()
    watch.trip()
    watch.tell(late, OK)
    watch.now = watch.breaker.open_until
    probe = watch.ask()
    watch.tell(late, BAD)
    assert watch.state is State.HALF_OPEN
    watch.tell(probe)
    watch.tell(watch.ask())
    watch.tell(late, BAD)
    assert (watch.state, watch.breaker.counts(watch.now)["failures"]) == (State.CLOSED, 0)


def test_a_slow_failure_is_both():
    watch = Watch(Rules(volume=2, slow_call=MS, failure_rate=100, slow_rate=100, consecutive=9))
    watch.call(OK)
    watch.call(BAD, took=MS)
    assert watch.breaker.counts(watch.now) == {
        "calls": 2,
        "failures": 1,
        "slow": 1,
        "consecutive_failures": 1,
        "trips": 0,
    }


# --- open --------------------------------------------------------------------


def test_it_lets_the_first_one_through_exactly_when_its_time_is_up():
    watch = Watch()
    watch.trip()
    watch.now += 5 * SECOND - 1
    assert watch.ask() == Rejection(State.OPEN, "open", 1)
    watch.now += 1
    assert isinstance(watch.ask(), int)


def test_its_time_doubles_with_each_trip_up_to_a_maximum_and_begins_anew_once_it_was_closed():
    watch = Watch()
    watch.trip()
    lengths = []
    for _ in range(4):
        lengths.append((watch.breaker.open_until - watch.now) // SECOND)
        watch.now = watch.breaker.open_until
        watch.call(BAD)
    assert lengths == [5, 10, 15, 15]
    watch.now = watch.breaker.open_until
    watch.call()
    watch.call()
    assert watch.state is State.CLOSED
    watch.trip()
    assert watch.breaker.open_until - watch.now == 5 * SECOND


def test_thousands_of_trips_overflow_nothing():
    watch = Watch()
    watch.trip()
    for _ in range(5000):
        watch.now = watch.breaker.open_until
        watch.call(BAD)
    assert watch.breaker.open_until - watch.now == 15 * SECOND


@pytest.mark.parametrize(
    ("left", "told"), [(1, 1), (SECOND, 1), (SECOND + 1, 2), (4_200 * MS, 5), (90_000 * SECOND, MAX_RETRY_AFTER)]
)
def test_retry_after_is_what_is_left_rounded_up(left, told):
    watch = Watch(Rules(base_open=100_000 * SECOND, max_open=100_000 * SECOND))
    watch.trip()
    watch.now = watch.breaker.open_until - left
    assert watch.ask() == Rejection(State.OPEN, "open", told)


def test_only_the_first_rejection_of_a_phase_is_the_first():
    watch = Watch()
    watch.trip()
    for _ in range(3):
        watch.ask()
    watch.now = watch.breaker.open_until
    watch.call(BAD)
    watch.ask()
    assert [first for _, first in watch.turned] == [True, False, False, True]


# --- half-open ---------------------------------------------------------------


def test_admissions_count_and_not_how_many_are_under_way():
    watch = Watch()
    watch.tell(watch.half_open())
    assert isinstance(watch.ask(), int)
    assert watch.ask() == Rejection(State.HALF_OPEN, "half_open_full", 10)


def test_after_one_failed_probe_nobody_is_admitted_until_the_others_are_back():
    watch = Watch()
    first, second = watch.half_open(), watch.ask()
    watch.tell(first, BAD)
    assert watch.ask() == Rejection(State.HALF_OPEN, "half_open_recovery_failing", 10)
    assert watch.state is State.HALF_OPEN
    watch.tell(second, OK)
    assert watch.said[-1] == ("half_open", "open", "probe_fail")


def test_a_neutral_probe_gives_its_place_back():
    watch = Watch()
    watch.tell(watch.half_open(), NEUTRAL)
    assert isinstance(watch.ask(), int)
    assert isinstance(watch.ask(), int)
    assert watch.ask() == Rejection(State.HALF_OPEN, "half_open_full", 10)


def test_a_failed_phase_ends_with_its_last_probe_even_if_that_is_neutral():
    watch = Watch()
    first, second = watch.half_open(), watch.ask()
    watch.tell(first, BAD)
    watch.tell(second, NEUTRAL)
    assert watch.state is State.OPEN


def test_a_slow_probe_has_failed():
    watch = Watch(Rules(consecutive=1, slow_call=MS))
    watch.tell(watch.half_open(), OK, took=MS)
    assert watch.said[-1] == ("half_open", "open", "probe_fail")


@pytest.mark.parametrize(
    ("verdicts", "after"),
    [
        ([OK, OK, OK], State.CLOSED),
        ([BAD, OK, BAD, OK, OK], State.CLOSED),
        ([BAD, BAD, BAD], State.OPEN),
        ([OK, BAD, OK, BAD], State.HALF_OPEN),
    ],
)
def test_a_share_of_the_probes_may_be_enough(verdicts, after):
    watch = Watch(Rules(consecutive=1, probes=5, success_share=60))
    watch.tell(watch.half_open(), verdicts[0])
    for verdict in verdicts[1:]:
        watch.call(verdict)
    assert watch.state is after


def test_at_the_end_of_its_time_the_probes_that_are_back_decide():
    rules = Rules(consecutive=1, probes=5, success_share=60, half_open_time=30 * SECOND)
    for verdicts, after in [([OK], "closed"), ([OK, BAD, OK], "closed"), ([OK, BAD], "open"), ([], "open")]:
        watch = Watch(rules)
        tokens = [watch.half_open(), *(watch.ask() for _ in range(4))]
        for token, verdict in zip(tokens, verdicts, strict=False):
            watch.tell(token, verdict)
        watch.now += 30 * SECOND - 1
        watch.ask()
        assert watch.state is State.HALF_OPEN
        watch.now += 1
        watch.ask()
        assert watch.said[-1] == ("half_open", after, "half_open_elapsed")


def test_a_report_can_be_what_ends_its_time():
    watch = Watch(Rules(consecutive=1, probes=5, half_open_time=SECOND))
    token = watch.half_open()
    watch.now += SECOND
    watch.tell(token, OK)
    assert watch.said[-1] == ("half_open", "closed", "half_open_elapsed")


def test_it_may_have_all_the_time_there_is():
    watch = Watch(Rules(consecutive=1, probes=1, half_open_time=0))
    watch.half_open()
    watch.now += 1_000_000 * SECOND
    assert watch.ask() == Rejection(State.HALF_OPEN, "half_open_full", 10)


# --- dry run -----------------------------------------------------------------


def test_a_dry_run_turns_nobody_away_and_counts_whom_it_would_have():
    watch = Watch(Rules(consecutive=2, probes=1, dry_run=True))
    watch.trip()
    assert [watch.ask() for _ in range(2)] == [UNCOUNTED] * 2
    watch.tell(UNCOUNTED, BAD)
    watch.now = watch.breaker.open_until
    probe = watch.ask()
    assert probe != UNCOUNTED
    assert watch.ask() == UNCOUNTED
    watch.tell(probe)
    assert watch.state is State.CLOSED
    assert watch.breaker.rejected == {
        "open": 0,
        "open_dry_run": 2,
        "half_open_full": 1,
        "half_open_recovery_failing": 0,
    }


def test_who_waits_while_it_opens_is_turned_away_but_not_in_a_dry_run():
    watch = Watch()
    watch.trip()
    assert watch.breaker.turn_away(watch.now + SECOND) == Rejection(State.OPEN, "open", 4)
    watch.breaker.apply(Rules(dry_run=True), watch.now)
    assert watch.breaker.turn_away(watch.now) is None


# --- by hand -----------------------------------------------------------------


def test_opened_by_hand_it_stays_open_until_it_is_closed_by_hand():
    watch = Watch()
    watch.breaker.open(watch.now, "maintenance")
    watch.now += 1_000_000 * SECOND
    assert watch.ask() == Rejection(State.OPEN, "open", 15)
    watch.breaker.close(watch.now, "done")
    assert isinstance(watch.ask(), int)
    assert [each.reason for each in watch.moves] == ["maintenance", "done"]


def test_a_reset_one_is_as_new():
    watch = Watch()
    watch.half_open()
    watch.breaker.reset(watch.now)
    assert watch.breaker.counts(watch.now) == dict.fromkeys(
        ("calls", "failures", "slow", "consecutive_failures", "trips"), 0
    )
    assert set(watch.breaker.rejected.values()) == {0}
    assert watch.breaker.transitions == {}


# --- reload ------------------------------------------------------------------


def test_another_window_begins_empty_and_ends_the_row():
    watch = Watch(Rules(consecutive=3))
    watch.call(BAD)
    watch.call(BAD)
    watch.breaker.apply(Rules(consecutive=3, window=60), watch.now)
    assert watch.breaker.counts(watch.now)["calls"] == 0
    watch.call(BAD)
    assert watch.state is State.CLOSED


def test_other_thresholds_hold_from_the_next_evaluation_on():
    watch = Watch(Rules(consecutive=9))
    for _ in range(4):
        watch.call(BAD)
    watch.breaker.apply(Rules(consecutive=2), watch.now)
    watch.call(OK)
    assert watch.state is State.CLOSED
    watch.call(BAD)
    watch.call(BAD)
    assert watch.state is State.OPEN


def test_a_running_phase_keeps_its_size_and_an_open_one_its_deadline():
    watch = Watch()
    watch.trip()
    until = watch.breaker.open_until
    watch.breaker.apply(Rules(base_open=SECOND, probes=2), watch.now)
    assert watch.breaker.open_until == until
    watch.now = until
    watch.ask()
    watch.breaker.apply(Rules(probes=9), watch.now)
    assert isinstance(watch.ask(), int)
    assert isinstance(watch.ask(), Rejection)


def test_a_breaker_says_what_it_is():
    watch = Watch()
    watch.call(BAD)
    assert repr(watch.breaker) == "<Breaker closed <Window 1 of 1 failed in 10 s>>"
    watch.breaker.open(watch.now)
    assert repr(watch.breaker) == "<Breaker open by hand <Window 1 of 1 failed in 10 s>>"
