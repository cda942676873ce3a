"""The filter: whom it asks, what it answers, and that it reports each admission once, however an exchange ends."""

from __future__ import annotations

import pytest

from gw import Attempt, Body, Endpoint, Filter, Headers, Outcome, Reply, Response, Retry
from gw.testing import check_filter, drive
from gw_breaker.filter import BreakerFilter, Guard
from gw_breaker.machine import UNCOUNTED, Rejection, Rules, State, Verdict
from gw_breaker.settings import Failures
from gw_breaker.verdicts import Verdicts

BAD, NEUTRAL, OK = Verdict.FAILURE, Verdict.NEUTRAL, Verdict.SUCCESS


class Ledger:
    """Stands for a group and its breaker: hands out numbers, and writes down what comes back."""

    def __init__(self, *says):
        self.says = list(says)
        self.given = 0
        self.reports = []
        self.asked_for = []
        self.took = []
        self.rules = Rules(slow_call=1)

    state = State.HALF_OPEN
    only = None

    def of(self, endpoint):
        self.asked_for.append(endpoint)
        return self

    def admit(self, now):
        if self.says and (said := self.says.pop(0)) is not None:
            return said
        self.given += 1
        return self.given

    def report(self, token, verdict, now, took):
        self.reports.append((token, verdict))
        self.took.append(took)

    def turn_away(self, now):
        return Rejection(State.OPEN, "open", 3)


def made(ledger, **failures):
    return BreakerFilter({"upstream": Guard(ledger, Verdicts(Failures(**failures)))})


# --- what counts as what -----------------------------------------------------


@pytest.mark.parametrize(
    ("status", "failures", "verdict"),
    [
        (200, {}, OK),
        (304, {}, OK),
        (399, {}, OK),
        (400, {}, NEUTRAL),
        (404, {}, NEUTRAL),
        (499, {}, NEUTRAL),
        (500, {}, BAD),
        (599, {}, BAD),
        (600, {}, NEUTRAL),
        (999, {}, NEUTRAL),
        (429, {"statuses": (429, "5xx")}, BAD),
        (503, {"statuses": (503,)}, BAD),
        (500, {"statuses": (503,)}, NEUTRAL),
        (404, {"statuses": ("4xx",)}, BAD),
        (200, {"statuses": (200,)}, BAD),
    ],
)
async def test_a_status_is_a_success_a_failure_or_neither(status, failures, verdict):
    ledger = Ledger()
    played = await drive(made(ledger, **failures), status=status)
    assert (played.status, played.outcome) == (status, Outcome.UPSTREAM)
    assert ledger.reports == [(1, verdict)]
    assert ledger.asked_for == [Endpoint("192.0.2.1", 80)]


@pytest.mark.parametrize(
    ("grpc", "headers", "trailers", "verdict"),
    [
        (("UNAVAILABLE",), {}, {"grpc-status": "14"}, BAD),
        (("UNAVAILABLE",), {}, {"grpc-status": "0"}, OK),
        (("UNAVAILABLE",), {}, {}, OK),
        (("UNAVAILABLE", "INTERNAL"), {"grpc-status": "13"}, None, BAD),
        ((), {"grpc-status": "13"}, None, OK),
    ],
)
def test_a_grpc_status_counts_where_the_settings_say_so(grpc, headers, trailers, verdict):
    response = Response(200, Headers.of(headers.items()))
    response.trailers = None if trailers is None else Headers.of(trailers.items())
    assert Verdicts(Failures(grpc=grpc)).of_whole(response) is verdict


class Failed(Exception):
    def __init__(self, reason):
        self.reason = reason


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [
        ("gw.connect_failure", BAD),
        ("gw.connect_timeout", BAD),
        ("gw.upstream_disconnect", BAD),
        ("gw.upstream_timeout", BAD),
        ("gw.per_try_timeout", BAD),
        ("gw.attempts_timeout", BAD),
        ("gw.upstream_send_stalled", BAD),
        ("gw.upstream_parse_error", BAD),
        ("gw.upstream_truncated", BAD),
        ("gw.upstream_idle", BAD),
        ("gw.upstream_too_long", NEUTRAL),
        ("gw.response_too_large", NEUTRAL),
        ("gw.pool_queue_full", NEUTRAL),
        ("gw.pool_queue_timeout", NEUTRAL),
        ("gw.pool_drained", NEUTRAL),
        ("gw.whatever_is_new", NEUTRAL),
    ],
)
def test_ways_to_fail_are_failures_or_neutral(reason, verdict):
    assert Verdicts(Failures()).of_error(Failed(reason)) is verdict
    assert Verdicts(Failures(kinds=())).of_error(Failed(reason)) is NEUTRAL


def test_an_error_that_is_no_failure_of_an_upstream_is_neutral():
    assert Verdicts(Failures()).of_error(ZeroDivisionError()) is NEUTRAL


# --- once, and at the right time ---------------------------------------------


async def test_a_success_is_reported_when_all_of_it_has_passed_and_a_failure_at_its_head():
    for status, at_the_body in [(200, []), (500, [(1, BAD)]), (404, [(1, NEUTRAL)])]:
        ledger, seen = Ledger(), []

        class Looks(Filter):
            name = "looks"
            upstream_body = Body.OBSERVE

            async def on_upstream_body(self, ex, chunk, end, ledger=ledger, seen=seen):
                seen.append(list(ledger.reports))
                return chunk

        await drive([Looks(), made(ledger)], status=status, upstream=[b"a", b"b"])
        assert seen == [at_the_body] * 2
        assert len(ledger.reports) == 1


@pytest.mark.parametrize("content_type", ["text/event-stream", "Text/Event-Stream; charset=utf-8"])
async def test_an_event_stream_succeeds_when_it_begins(content_type):
    ledger = Ledger()
    attempt = Attempt(1, "upstream")
    attempt.response = Response(200, Headers.of([("content-type", content_type)]))
    played = await drive(made(Ledger()))
    ex = played.exchange
    the_filter = made(ledger)
    await the_filter.on_upstream_request(ex, attempt)
    await the_filter.on_upstream_response(ex, attempt)
    assert ledger.reports == [(1, OK)]
    the_filter.on_complete(ex)
    assert ledger.reports == [(1, OK)]


@pytest.mark.parametrize("how", [{"refuse": True}, {"disconnect": True}], ids=["refused", "disconnected"])
async def test_a_failed_attempt_is_reported_once(how):
    ledger = Ledger()
    played = await drive(made(ledger), **how)
    assert played.status == 502
    assert ledger.reports == [(1, BAD)]


async def test_how_long_the_head_took_is_reported_in_nanoseconds():
    ledger = Ledger()
    the_filter = made(ledger)
    ex = (await drive(made(Ledger()))).exchange
    attempt = Attempt(1, "upstream", started=10.0)
    attempt.answered = 12.5
    attempt.response = Response(500)
    await the_filter.on_upstream_request(ex, attempt)
    await the_filter.on_upstream_response(ex, attempt)
    assert ledger.took == [2_500_000_000]


class Raises(Filter):
    """Raises in one hook."""

    name = "raises"
    upstream_body = Body.OBSERVE

    def __init__(self, hook):
        self.hook = hook

    def _maybe(self, hook):
        if self.hook == hook:
            raise ZeroDivisionError

    async def on_upstream_request(self, ex, attempt):
        self._maybe("on_upstream_request")

    async def on_upstream_response(self, ex, attempt):
        self._maybe("on_upstream_response")

    async def on_upstream_body(self, ex, chunk, end):
        self._maybe("on_upstream_body")
        return chunk

    def on_response_headers(self, ex):
        self._maybe("on_response_headers")

    def on_complete(self, ex):
        self._maybe("on_complete")


@pytest.mark.parametrize(
    ("hook", "verdict"),
    [
        ("on_upstream_request", NEUTRAL),
        ("on_upstream_response", OK),
        ("on_upstream_body", NEUTRAL),
        ("on_response_headers", OK),
        ("on_complete", OK),
    ],
)
@pytest.mark.parametrize("inside", [False, True], ids=["before the breaker", "behind it"])
async def test_what_another_filter_raises_does_not_lose_a_report(hook, verdict, inside):
    ledger = Ledger()
    filters = [made(ledger), Raises(hook)] if inside else [Raises(hook), made(ledger)]
    await drive(filters)
    if hook == "on_upstream_request" and not inside:
        assert ledger.given == 0
    else:
        assert ledger.reports == [(1, verdict)]


async def test_a_filter_behind_it_that_answers_says_nothing_about_the_upstream():
    class Answers(Filter):
        name = "answers"

        async def on_upstream_request(self, ex, attempt):
            return Reply(500)

    ledger = Ledger()
    assert (await drive([made(ledger), Answers()])).status == 500
    assert ledger.reports == [(1, NEUTRAL)]


class Again(Filter):
    """Wants a retry, whatever the answer."""

    name = "again"

    async def on_upstream_response(self, ex, attempt):
        return Retry() if attempt.number < 3 else None

    async def on_upstream_error(self, ex, attempt, error):
        return Retry() if attempt.number < 3 else None


@pytest.mark.parametrize(("status", "verdict"), [(200, OK), (500, BAD)])
@pytest.mark.parametrize("inside", [False, True], ids=["before the breaker", "behind it"])
async def test_each_attempt_is_admitted_and_reported(status, verdict, inside):
    ledger = Ledger()
    filters = [made(ledger), Again()] if inside else [Again(), made(ledger)]
    await drive(filters, status=status)
    assert ledger.reports == [(1, verdict), (2, verdict), (3, verdict)]


async def test_refused_attempts_are_each_reported_too():
    ledger = Ledger()
    assert (await drive([Again(), made(ledger)], refuse=2)).status == 200
    assert ledger.reports == [(1, BAD), (2, BAD), (3, OK)]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_cancelled_at_any_await_an_admission_is_given_back_once(method):
    body = b"0123456789" if method == "POST" else b""
    whole = await drive(made(Ledger()), method=method, body=body, upstream=[b"a", b"b", b"c"])
    for stop_at in range(1, whole.awaits + 1):
        ledger = Ledger()
        played = await drive(made(ledger), method=method, body=body, upstream=[b"a", b"b", b"c"], stop_at=stop_at)
        assert played.outcome in {Outcome.CANCELLED, Outcome.UPSTREAM}
        verdict = OK if played.outcome is Outcome.UPSTREAM else NEUTRAL
        assert ledger.reports == ([(1, verdict)] if ledger.given else [])


async def test_it_keeps_the_promises_of_filters():
    await check_filter(lambda: made(Ledger()))


# --- turned away -------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State.OPEN, "open"),
        (State.HALF_OPEN, "half_open_full"),
        (State.HALF_OPEN, "half_open_recovery_failing"),
    ],
)
async def test_who_is_turned_away_hears_when_to_come_back(state, reason):
    ledger = Ledger(Rejection(state, reason, 7))
    played = await drive(made(ledger), explain=True)
    assert (played.status, played.body) == (503, b"Upstream circuit breaker is open; please retry later.\n")
    assert list(played.headers) == [
        ("content-type", "text/plain"),
        ("retry-after", "7"),
        ("x-circuit-breaker", state.value),
        ("x-upstream-host", "192.0.2.1:80"),
        ("content-length", "54"),
    ]
    assert played.reason == f"breaker.{reason}"
    assert played.log[0] == "down.close_after"
    assert [note.reason for note in played.notes if note.verdict == "turned away"] == [reason]
    assert ledger.reports == []


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [({"status": 500}, 500, ""), ({"refuse": True}, 503, "breaker.open")],
    ids=["the answer at hand is kept", "there is none"],
)
async def test_a_retry_asks_again_and_may_be_turned_away(how, status, reason):
    ledger = Ledger(None, Rejection(State.OPEN, "open", 1))
    played = await drive([Again(), made(ledger)], **how)
    assert (played.status, played.reason) == (status, reason)
    assert ledger.reports == [(1, BAD)]


async def test_who_is_admitted_in_a_dry_run_brings_back_what_counts_for_nothing():
    ledger = Ledger(UNCOUNTED)
    assert (await drive(made(ledger), status=500)).status == 500
    assert ledger.reports == [(UNCOUNTED, BAD)]


async def test_an_upstream_without_a_breaker_is_left_alone():
    ledger = Ledger()
    played = await drive(BreakerFilter({"another": Guard(ledger, Verdicts(Failures()))}))
    assert (played.status, ledger.given) == (200, 0)


async def test_who_waited_for_a_connection_when_it_opened_is_turned_away():
    ledger = Ledger()
    the_filter = made(ledger)
    ex = (await drive(made(Ledger()))).exchange
    attempt = Attempt(1, "upstream")
    attempt.endpoint = Endpoint("192.0.2.1", 80)
    await the_filter.on_upstream_request(ex, attempt)
    reply = await the_filter.on_upstream_error(ex, attempt, Failed("gw.pool_drained"))
    assert (reply.status, reply.reason) == (503, "breaker.open")
    assert ledger.reports == [(1, NEUTRAL)]
