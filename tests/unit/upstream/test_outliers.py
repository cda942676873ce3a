"""Who is ejected, for how long, and how many may be. Time is virtual."""

from __future__ import annotations

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gw.failures import ConnectFailed, Disconnected, QueueFull, ResponseTimeout, Truncated
from gw.filters import Attempt, Response
from gw.keys import Endpoint
from gw.net.deadlines import Deadlines
from gw.testing.gateway import Upstream, in_memory
from gw.testing.memory import Clock
from gw.upstream.balance import RoundRobin
from gw.upstream.endpoints import EndpointSet
from gw.upstream.outliers import Outliers, OutlierSettings
from gw.upstream.pool import Origin

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
ILL = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"


class Bench:
    def __init__(self, count=4, **changes):
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)
        origins = [Origin(Endpoint(f"192.0.2.{number}", 80)) for number in range(1, count + 1)]
        self.endpoints = EndpointSet("up", origins, RoundRobin(), self.deadlines)
        self.outliers = Outliers(OutlierSettings(**changes), self.endpoints, self.deadlines)

    def tell(self, number, what, times=1):
        """Say that an endpoint answered with a status, or failed."""
        for _ in range(times):
            attempt = Attempt(1)
            attempt.sent = not isinstance(what, ConnectFailed | QueueFull)
            if isinstance(what, int):
                attempt.response = Response(what)
            failure = None if isinstance(what, int) else what
            self.outliers.observe(self.endpoints.members[number], attempt, failure)

    def advance(self, seconds):
        for _ in range(round(seconds / 0.05)):
            self.clock.now += 0.05
            self.deadlines.turn()

    @property
    def out(self):
        return [number for number, member in enumerate(self.endpoints.members) if member.ejected]


@pytest.mark.parametrize(
    ("changes", "told", "out"),
    [
        ({}, [500] * 4, False),
        ({}, [500] * 5, True),
        ({}, [500, 500, 500, 500, 404, 500], False),
        ({}, [503] * 5, True),
        ({}, [ConnectFailed("x")] * 5, True),
        ({}, [Disconnected("x"), ResponseTimeout("x"), Truncated("x"), 502, 500], True),
        ({}, [QueueFull("x")] * 50, False),
        ({"consecutive_5xx": 0}, [500] * 50, False),
        ({"consecutive_5xx": 0}, [502, 503, 504, 502, Disconnected("x")], True),
        ({"consecutive_5xx": 0}, [502, 503, 504, 502, 500, 502], False),
        ({"consecutive_5xx": 0, "consecutive_gateway_failures": 0}, [503] * 50, False),
        ({"consecutive_5xx": 1}, [500], True),
    ],
)
def test_failures_in_a_row_take_an_endpoint_out(changes, told, out):
    bench = Bench(**changes)
    for what in told:
        bench.tell(1, what)
    assert bench.out == ([1] if out else [])


def test_an_ejection_ends_and_the_next_one_is_longer(caplog):
    bench = Bench(interval=1000.0)
    for lasts in (30, 60, 90):
        bench.tell(0, 500, 5)
        assert f"endpoint 192.0.2.1:80 is ejected for {lasts} s: 5 failures in a row" in caplog.text
        bench.advance(lasts - 0.2)
        assert bench.out == [0]
        bench.advance(0.4)
        assert bench.out == []


def test_no_ejection_is_longer_than_the_longest():
    bench = Bench(interval=1000.0, base_ejection=10.0, max_ejection=15.0)
    for _ in range(3):
        bench.tell(0, 500, 5)
        bench.advance(15.2)
        assert bench.out == []


def test_good_behaviour_is_rewarded():
    bench = Bench()
    bench.tell(0, 500, 5)
    bench.advance(31)
    for _ in range(3):
        bench.tell(0, 200)
        bench.advance(11)
    bench.tell(0, 500, 5)
    bench.advance(30.2)
    assert bench.out == []


@pytest.mark.parametrize(
    ("count", "share", "most"), [(4, 0.5, 2), (3, 0.5, 1), (1, 0.5, 0), (10, 0.1, 1), (4, 0.0, 0), (4, 1.0, 4)]
)
def test_only_so_many_are_out_at_once(count, share, most):
    bench = Bench(count, max_ejected=share)
    for number in range(count):
        bench.tell(number, 500, 5)
    assert len(bench.out) == most
    assert bench.outliers.spared == count - most


class TestSuccessRate:
    def test_one_that_is_worse_than_the_others_is_taken_out(self, caplog):
        bench = Bench(6, consecutive_5xx=0, consecutive_gateway_failures=0)
        for number in range(6):
            bench.tell(number, 200, 100)
        bench.tell(3, 500, 30)
        bench.advance(10.2)
        assert bench.out == [3]
        assert "76.9% of its answers are good, of all 96.2%" in caplog.text

    def test_all_being_bad_is_nobodys_fault(self):
        bench = Bench(6, consecutive_5xx=0, consecutive_gateway_failures=0)
        for number in range(6):
            bench.tell(number, 500, 100)
        bench.advance(10.2)
        assert bench.out == []

    @pytest.mark.parametrize(("count", "requests"), [(4, 100), (6, 90)])
    def test_few_endpoints_or_few_requests_prove_nothing(self, count, requests):
        bench = Bench(count, consecutive_5xx=0, consecutive_gateway_failures=0)
        for number in range(count):
            bench.tell(number, 200, requests)
        bench.tell(0, 500, 5)
        bench.advance(10.2)
        assert bench.out == []


def test_an_idle_judge_keeps_no_deadline():
    bench = Bench()
    bench.tell(0, 200)
    bench.advance(30)
    assert not bench.deadlines._slots


def test_endpoints_that_are_gone_are_forgotten():
    bench = Bench()
    bench.tell(0, 500, 5)
    bench.endpoints.replace([member.origin for member in bench.endpoints.members[1:]])
    bench.advance(40)
    assert (bench.out, len(bench.outliers._records)) == ([], 0)


async def test_a_gateway_stops_sending_where_nothing_good_comes_from():
    upstreams = {"192.0.2.1:80": Upstream(ILL), "192.0.2.2:80": Upstream(OK)}
    endpoints = [{"host": "192.0.2.1"}, {"host": "192.0.2.2"}]
    up = {"name": "up", "endpoints": endpoints, "health": {"outliers": {}}, "proxy": {"route_prefix": "/"}}
    async with in_memory({"upstreams": [up]}, upstreams=upstreams) as gateway:
        statuses = [(await gateway.get("/")).status for _ in range(40)]
        assert statuses.count(500) == 5
        assert set(statuses[11:]) == {200}
        assert await gateway.leftovers() == []


class Model(RuleBasedStateMachine):
    """Whatever is answered when: never too many are out, nobody is out for ever, nobody is out for nothing."""

    def __init__(self):
        super().__init__()
        self.bench = Bench(5, max_ejected=0.4, interval=2.0, base_ejection=1.0, max_ejection=3.0)
        self.failed = dict.fromkeys(range(5), 0)
        self.since = {}

    @rule(number=st.integers(0, 4), what=st.sampled_from([200, 404, 500, 503]), times=st.integers(1, 6))
    def tell(self, number, what, times):
        before = self.bench.out
        self.bench.tell(number, what, times)
        for new in set(self.bench.out) - set(before):
            assert new == number
            assert what >= 500
            self.since[new] = self.bench.clock.now

    @rule(seconds=st.floats(0.1, 4.0))
    def wait(self, seconds):
        self.bench.advance(seconds)

    @invariant()
    def bounds_hold(self):
        out = self.bench.out
        assert len(out) <= 2
        assert all(self.bench.clock.now - self.since[number] <= 3.2 for number in out)
        assert set(self.bench.endpoints.candidates) == {
            member for member in self.bench.endpoints.members if not member.ejected
        }


Model.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestModel = Model.TestCase
