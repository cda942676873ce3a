"""Which endpoints may be chosen: health, tiers, panic, slow start, sticky clients, retries elsewhere. Time is virtual."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gw.filters import Attempt, Exchange, Headers, Request
from gw.keys import Client, Endpoint
from gw.net.deadlines import Deadlines
from gw.testing.gateway import Upstream, in_memory
from gw.testing.memory import Clock
from gw.upstream.balance import LeastRequests, RoundRobin
from gw.upstream.endpoints import EndpointSet
from gw.upstream.pool import Origin

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
SECRET = "0123456789abcdef"


def exchange():
    return Exchange(Request("GET", "/", Headers()), Client("198.51.100.7", "198.51.100.7"))


def origins(count, *, priority=0, first=1, weight=1):
    return [Origin(Endpoint(f"192.0.2.{first + number}", 80, weight, priority)) for number in range(count)]


class Bench:
    """Endpoints with a clock of their own."""

    def __init__(self, members, algorithm=None, **settings):
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)
        self.set = EndpointSet("up", members, algorithm or RoundRobin(), self.deadlines, **settings)

    def picks(self, times=100):
        return Counter(self.set.members.index(self.set.pick(exchange())) for _ in range(times))

    def advance(self, seconds):
        for _ in range(round(seconds / 0.05)):
            self.clock.now += 0.05
            self.deadlines.turn()

    def unhealthy(self, *numbers):
        for number in numbers:
            self.set.mark(self.set.members[number], healthy=False)


class TestCandidates:
    def test_who_is_unhealthy_or_ejected_is_not_chosen(self):
        bench = Bench(origins(6))
        bench.unhealthy(0)
        bench.set.eject(bench.set.members[1], ejected=True)
        assert set(bench.picks()) == {2, 3, 4, 5}
        bench.set.mark(bench.set.members[0], healthy=True)
        bench.set.eject(bench.set.members[1], ejected=False)
        assert set(bench.picks()) == set(range(6))

    def test_below_the_threshold_health_is_not_looked_at(self, caplog):
        bench = Bench(origins(5))
        bench.unhealthy(0, 1)
        assert set(bench.picks()) == {2, 3, 4}
        bench.unhealthy(2)
        assert set(bench.picks()) == set(range(5))
        assert "upstream up: too few endpoints are healthy; all of a tier are used" in caplog.text

    def test_without_a_threshold_the_last_healthy_one_gets_everything(self):
        bench = Bench(origins(5), panic=0.0)
        bench.unhealthy(0, 1, 2, 3)
        assert set(bench.picks()) == {4}
        bench.unhealthy(4)
        assert set(bench.picks()) == set(range(5))

    def test_a_tier_stands_in_for_the_one_before_it(self):
        bench = Bench(origins(2) + origins(2, priority=1, first=11))
        assert set(bench.picks()) == {0, 1}
        bench.unhealthy(0)
        assert set(bench.picks()) == {1}
        bench.unhealthy(1)
        assert set(bench.picks()) == {2, 3}
        bench.set.mark(bench.set.members[0], healthy=True)
        assert set(bench.picks()) == {0}

    def test_when_no_tier_has_enough_the_best_of_them_is_used(self):
        bench = Bench(origins(4) + origins(4, priority=1, first=11))
        bench.unhealthy(0, 1, 2, 3, 4, 5, 6)
        assert set(bench.picks()) == {4, 5, 6, 7}

    def test_the_only_one_is_used_whatever_its_health(self):
        bench = Bench(origins(1))
        bench.unhealthy(0)
        assert bench.set.only is bench.set.members[0]
        assert set(bench.picks()) == {0}

    def test_endpoints_that_stay_keep_what_is_known_of_them(self):
        first = origins(3)
        bench = Bench(first)
        bench.unhealthy(2)
        bench.set.replace([first[2], *origins(1, first=50)])
        assert [member.healthy for member in bench.set.members] == [False, True]
        assert set(bench.picks()) == {1}


class TestRetries:
    @pytest.mark.parametrize("algorithm", [RoundRobin, LeastRequests])
    def test_another_endpoint_is_preferred_and_the_same_one_better_than_none(self, algorithm):
        bench = Bench(origins(3), algorithm())
        tried = []
        for number in range(1, 4):
            member = bench.set.pick(exchange(), tried)
            attempt = Attempt(number)
            attempt.endpoint = member.endpoint
            assert member.endpoint not in {each.endpoint for each in tried}
            tried.append(attempt)
        assert bench.set.pick(exchange(), tried) in bench.set.members

    def test_one_that_is_thought_ill_is_better_than_one_that_has_just_failed(self):
        bench = Bench(origins(2), panic=0.0)
        bench.unhealthy(0)
        attempt = Attempt(1)
        attempt.endpoint = bench.set.members[1].endpoint
        assert bench.set.pick(exchange(), [attempt]) is bench.set.members[0]


class TestSlowStart:
    def test_one_that_comes_back_gets_its_share_by_and_by(self):
        bench = Bench(origins(2), slow_start=10.0, panic=0.0)
        bench.unhealthy(0)
        bench.set.mark(bench.set.members[0], healthy=True)
        shares = []
        for _ in range(4):
            shares.append(bench.picks(300)[0] / 300)
            bench.advance(4)
        assert 0.05 < shares[0] < 0.15
        assert shares == sorted(shares)
        assert shares[3] == pytest.approx(0.5, abs=0.01)
        assert not bench.deadlines._slots

    def test_all_have_their_share_at_the_start(self):
        bench = Bench(origins(2), slow_start=10.0)
        assert bench.picks(100) == {0: 50, 1: 50}


def config(**balance):
    endpoints = [{"host": f"192.0.2.{number}", "port": 80} for number in (1, 2, 3)]
    return {"upstreams": [{"name": "up", "endpoints": endpoints, "balance": balance, "proxy": {"route_prefix": "/"}}]}


def three():
    upstreams = [Upstream(OK) for _ in range(3)]
    return upstreams, {f"192.0.2.{number}:80": each for number, each in enumerate(upstreams, 1)}


class TestSticky:
    async def test_a_client_stays_with_its_endpoint(self):
        upstreams, scripts = three()
        async with in_memory(config(sticky={"secret": SECRET}), upstreams=scripts) as gateway:
            first = await gateway.get("/")
            cookie = first.headers.get("set-cookie")
            assert cookie.endswith("; Path=/; HttpOnly; SameSite=Lax")
            for _ in range(9):
                again = await gateway.get("/", {"cookie": cookie.partition(";")[0]})
                assert "set-cookie" not in again.headers
            assert sorted(len(each.asked) for each in upstreams) == [0, 0, 10]

    async def test_a_cookie_that_we_did_not_make_gets_a_new_one(self):
        _, scripts = three()
        async with in_memory(config(sticky={"secret": SECRET, "cookie": "sid"}), upstreams=scripts) as gateway:
            for forged in ("", "192.0.2.1:80", "0" * 32, "x" * 5000):
                answer = await gateway.get("/", {"cookie": f"sid={forged}"})
                assert answer.headers.get("set-cookie").startswith("sid=")

    async def test_a_client_of_an_endpoint_that_is_unhealthy_gets_another(self):
        upstreams, scripts = three()
        async with in_memory(config(sticky={"secret": SECRET, "max_age_sec": 60}), upstreams=scripts) as gateway:
            cookie = (await gateway.get("/")).headers.get("set-cookie")
            assert "; Max-Age=60" in cookie
            endpoints = gateway.gateway._current.now.services["up"].endpoints
            endpoints.mark(endpoints.members[0], healthy=False)
            moved = await gateway.get("/", {"cookie": cookie.partition(";")[0]})
            assert moved.headers.get("set-cookie") not in (None, cookie)
        assert len(upstreams[0].asked) == 1

    def test_what_the_cookie_says_is_known_to_us_alone(self):
        bench, other = (Bench(origins(2)) for _ in range(2))
        assert not bench.set.members[0].token
        assert other.set.members[0].token == ""


async def test_attempts_are_counted_while_they_run_and_never_after():
    upstreams, scripts = three()
    scripts["192.0.2.2:80"] = Upstream(None)
    async with in_memory(config(algorithm="least_requests"), upstreams=scripts) as gateway:
        for _ in range(12):
            await gateway.get("/")
        endpoints = gateway.gateway._current.now.services["up"].endpoints
        assert [member.active for member in endpoints.members] == [0, 0, 0]
        assert endpoints.algorithm.under_way == 0
        assert sum(member.answered for member in endpoints.members) == sum(len(each.asked) for each in upstreams)
        assert all(member.latency >= 0 for member in endpoints.members)


class Model(RuleBasedStateMachine):
    """Endpoints fall ill, are ejected, leave and come: whom we choose is always whom ten lines of model allow."""

    def __init__(self):
        super().__init__()
        self.known = origins(4) + origins(4, priority=1, first=11) + origins(2, priority=5, first=21)
        self.bench = Bench(self.known)

    @rule(number=st.integers(0, 9), healthy=st.booleans())
    def mark(self, number, healthy):
        if number < len(self.bench.set.members):
            self.bench.set.mark(self.bench.set.members[number], healthy=healthy)

    @rule(number=st.integers(0, 9), ejected=st.booleans())
    def eject(self, number, ejected):
        if number < len(self.bench.set.members):
            self.bench.set.eject(self.bench.set.members[number], ejected=ejected)

    @rule(chosen=st.sets(st.integers(0, 9), min_size=1))
    def replace(self, chosen):
        self.bench.set.replace([self.known[number] for number in sorted(chosen)])

    def allowed(self):
        members = self.bench.set.members
        best = []
        for tier in sorted({member.endpoint.priority for member in members}):
            group = [member for member in members if member.endpoint.priority == tier]
            well = [member for member in group if member.healthy and not member.ejected]
            if 2 * len(well) >= len(group):
                return well
            best.append((len(well) / len(group), -tier, group))
        return max(best, key=lambda each: each[:2])[2]

    @invariant()
    def candidates_are_those_of_the_model(self):
        assert set(self.bench.set.candidates) == set(self.allowed())
        picked = {self.bench.set.pick(exchange()) for _ in range(2 * len(self.bench.set.members))}
        assert picked == set(self.bench.set.candidates)


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestModel = Model.TestCase
