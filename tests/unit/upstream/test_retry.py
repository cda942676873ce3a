"""Retries: what is tried again, when, with which body, and what bounds them. The gateway is real, time is virtual."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from types import ModuleType

import anyio
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gw import Filter, Reply, Retry, RetryBudget, hookimpl
from gw.failures import ConnectFailed, Disconnected, ResponseTimeout, Truncated
from gw.filters import Attempt, Exchange, Headers, Request, Response
from gw.keys import Client
from gw.net.deadlines import Deadlines
from gw.plugins import PluginSet
from gw.testing.gateway import Upstream, in_memory, read_answer
from gw.testing.memory import Backlog
from gw.upstream.retry import Budget, Counted, RetryAccount, RetryPolicy, Tries

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"
WHERE = "192.0.2.1:80"


def config(retry=None, route=None, **proxy):
    upstream = {"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/", **proxy}}
    if retry is not None:
        upstream["proxy"]["retry"] = retry
    routes = [{"name": "r", "match": {"prefix": "/r"}, "upstream": "up", "retry": route}] if route else []
    return {"upstreams": [upstream], "routes": routes}


def post(body=b"hello", method="POST"):
    return f"{method} / HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


class Asking:
    """A request that is under way while time is moved."""

    def __init__(self, gateway, client):
        self.gateway, self.client, self.answer = gateway, client, None
        self.began, self.took = gateway.network.clock.now, 0.0

    async def read(self, method):
        self.answer = await read_answer(self.client, method)
        self.took = self.gateway.network.clock.now - self.began

    async def ends(self, within=60.0):
        """Let time pass until the answer is there, and return it."""
        network = self.gateway.network
        await network.settle()
        while self.answer is None and network.clock.now < self.began + within:
            await network.advance(0.05)
        assert self.answer is not None, f"no answer within {within} s"
        return self.answer


@asynccontextmanager
async def asking(gateway, data=GET, method="GET"):
    async with anyio.create_task_group() as tasks:
        client = gateway.connect()
        client.write(data)
        asked = Asking(gateway, client)
        tasks.start_soon(asked.read, method)
        yield asked
        tasks.cancel_scope.cancel()


async def answer(gateway, data=GET, method="GET"):
    async with asking(gateway, data, method) as asked:
        return await asked.ends()


# --- what is retried -----------------------------------------------------------------------------


FIVE = {"max_retries": 1, "retry_on_5xx": True}
TIMED = {"max_retries": 1, "retry_on_timeout": True}


@pytest.mark.parametrize(
    ("retry", "first", "status", "asked"),
    [
        (None, BUSY, 503, 1),
        ({"max_retries": 1}, BUSY, 503, 1),
        (FIVE, BUSY, 200, 2),
        ({"max_retries": 1, "retry_on": [503]}, BUSY, 200, 2),
        ({"max_retries": 1, "retry_on": ["gateway-error"]}, BUSY, 200, 2),
        ({"max_retries": 1, "retry_on": ["5xx"]}, BUSY, 200, 2),
        ({"max_retries": 1, "retry_on": [500, "timeout"]}, BUSY, 503, 1),
        ({"max_retries": 1, "retry_on": [429]}, b"HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n", 200, 2),
        ({"max_retries": 1}, None, 200, 2),
        ({"max_retries": 1, "retry_on_disconnect": False}, None, 502, 1),
        ({"max_retries": 1, "retry_on": ["5xx"]}, None, 502, 1),
        (FIVE, b"garbage\r\n\r\n", 502, 1),
        (FIVE, b"HTTP/1.1 200 OK\r\ncontent-le", 502, 1),
    ],
)
async def test_what_the_settings_name_is_retried_and_nothing_else(retry, first, status, asked):
    upstream = Upstream(first, OK)
    async with in_memory(config(retry), upstream) as gateway, asking(gateway) as request:
        if first is not None and first.endswith(b"-le"):
            await gateway.network.settle()
            gateway.network.peers[0].close()
        assert ((await request.ends()).status, len(upstream.asked)) == (status, asked)


async def test_a_refused_connection_is_retried_whatever_the_method():
    async with in_memory(config({"max_retries": 2}, route_prefix="/"), upstreams={}) as gateway:
        gateway.network._upstreams = {}
        assert (await answer(gateway, post())).status == 502
        assert gateway.network.dialled == [WHERE] * 3


@pytest.mark.parametrize("first", [BUSY, None])
async def test_what_may_have_been_done_is_not_done_twice_unless_it_may_be(first):
    retry = {"max_retries": 1, "retry_on_5xx": True}
    upstream = Upstream(first, OK)
    async with in_memory(config(retry), upstream) as gateway:
        refused = await answer(gateway, post())
        assert refused.status == (502 if first is None else 503)
        assert refused.headers.get("x-proxy-retry-denied") == "non-idempotent-headers-queued"
    upstream = Upstream(first, OK)
    async with in_memory(config({**retry, "retry_non_idempotent": True}), upstream) as gateway:
        assert (await answer(gateway, post())).status == 200
        assert [asked.body for asked in upstream.asked] == [b"hello", b"hello"]


@pytest.mark.parametrize("retries", [0, 1, 3, 10])
async def test_there_are_as_many_retries_as_are_allowed(retries):
    upstream = Upstream(BUSY)
    async with in_memory(config({"max_retries": retries, "retry_on_5xx": True}), upstream) as gateway:
        assert (await answer(gateway)).body == b"busy"
        assert len(upstream.asked) == retries + 1
        assert await gateway.leftovers() == []


async def test_a_route_has_its_own_retries_over_its_upstreams():
    upstream = Upstream(BUSY)
    async with in_memory(config({"max_retries": 3, "retry_on_5xx": True}, {"max_retries": 1}), upstream) as gateway:
        await answer(gateway, GET.replace(b"/ ", b"/r/x "))
        assert len(upstream.asked) == 2
        await answer(gateway)
        assert len(upstream.asked) == 6


# --- waiting -------------------------------------------------------------------------------------


async def test_the_first_retry_of_a_connection_is_at_once_and_that_of_an_answer_waits():
    async with in_memory(config(FIVE), Upstream(None, OK)) as gateway, asking(gateway) as request:
        await gateway.network.settle()
        assert request.answer is not None
    upstream = Upstream(BUSY, OK)
    async with in_memory(config(FIVE), upstream) as gateway, asking(gateway) as request:
        await gateway.network.settle()
        assert (request.answer, len(upstream.asked)) == (None, 1)
        assert (await request.ends()).status == 200


@pytest.mark.parametrize(("asks", "waits"), [("0", 0.3), ("1", 1.2), ("2", 2.2)])
async def test_an_upstream_says_how_long_to_wait(asks, waits):
    busy = b"HTTP/1.1 503 Busy\r\nretry-after: %s\r\ncontent-length: 0\r\n\r\n" % asks.encode()
    retry = {**FIVE, "max_retry_after_ms": 5000}
    async with in_memory(config(retry), Upstream(busy, OK)) as gateway, asking(gateway) as request:
        assert (await request.ends()).status == 200
        assert waits - 0.3 <= request.took <= waits + 0.1


async def test_an_upstream_that_wants_to_be_left_alone_for_long_is():
    busy = b"HTTP/1.1 503 Busy\r\nretry-after: 60\r\ncontent-length: 4\r\n\r\nbusy"
    upstream = Upstream(busy, OK)
    async with in_memory(config(FIVE), upstream) as gateway:
        told = await answer(gateway)
        assert (told.status, told.headers.get("retry-after"), len(upstream.asked)) == (503, "60", 1)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("", 0.0), ("soon", 0.0), ("-1", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("9" * 400, 1e9)],
)
def test_retry_after_is_read_as_it_is_written(value, seconds):
    attempt = Attempt(1)
    attempt.response = Response(503, Headers.of([("retry-after", value)]))
    policy = RetryPolicy(max_retries=1, statuses=frozenset({503}), max_retry_after=math.inf)
    delay = Tries(policy, None, Deadlines()).wants(exchange(), attempt, None, "")
    assert seconds <= delay <= max(seconds, 9999999999.0 if seconds else 0.25)


# --- time ----------------------------------------------------------------------------------------


async def test_a_try_that_takes_too_long_is_given_up_for_another():
    backlog = Backlog()
    retry = {**TIMED, "per_try_timeout_ms": 500}
    async with in_memory(config(retry), backlog) as gateway, asking(gateway) as request:
        silent = await backlog.accept()
        await gateway.network.advance(1.0)
        assert silent.lost
        (await backlog.accept()).write(OK)
        assert (await request.ends()).status == 200
        assert await gateway.leftovers() == []


async def test_a_timeout_stays_a_timeout():
    retry = {**TIMED, "per_try_timeout_ms": 500}
    async with in_memory(config(retry), Backlog()) as gateway, asking(gateway) as request:
        assert (await request.ends()).status == 504
        assert 1.0 <= request.took <= 1.5
        assert len(gateway.network.dialled) == 2


async def test_all_attempts_together_have_an_end():
    retry = {"max_retries": 10, "retry_on_timeout": True, "per_try_timeout_ms": 400, "overall_timeout_ms": 1300}
    async with in_memory(config(retry), Backlog()) as gateway, asking(gateway) as request:
        assert (await request.ends()).status == 504
        assert 1.2 <= request.took <= 1.5
        assert len(gateway.network.dialled) == 3


async def test_the_time_of_a_try_does_not_bound_its_body():
    backlog = Backlog()
    retry = {"max_retries": 1, "per_try_timeout_ms": 500}
    async with in_memory(config(retry), backlog) as gateway, asking(gateway) as request:
        stream = await backlog.accept()
        stream.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        await gateway.network.advance(5)
        stream.write(b"ok")
        assert (await request.ends()).body == b"ok"


# --- bodies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
async def test_a_body_that_is_still_coming_is_sent_again_from_its_beginning(cut):
    backlog = Backlog()
    async with in_memory(config({"max_retries": 1}), backlog) as gateway:
        head, body = post(method="PUT").split(b"\r\n\r\n")
        async with asking(gateway, head + b"\r\n\r\n" + body[:cut], "PUT") as request:
            first = await backlog.accept()
            await gateway.network.settle()
            first.abort()
            second = await backlog.accept()
            request.client.write(body[cut:])
            assert (await second.read_until(b"hello")).endswith(b"\r\n\r\nhello")
            second.write(OK)
            assert (await request.ends()).status == 200


async def test_a_body_that_outgrew_its_buffer_is_not_sent_again_and_the_client_is_told():
    backlog = Backlog()
    retry, data = {"max_retries": 1, "buffer_bytes": 3}, post(method="PUT")[:-1]
    async with in_memory(config(retry), backlog) as gateway, asking(gateway, data, "PUT") as request:
        stream = await backlog.accept()
        await gateway.network.settle()
        stream.abort()
        told = await request.ends()
        assert (told.status, told.headers.get("x-proxy-retry-denied")) == (502, "streaming-body-on-wire")
        assert len(gateway.network.dialled) == 1


async def test_an_answer_that_came_before_the_end_of_the_body_is_kept_and_the_body_sent_again():
    backlog = Backlog()
    async with in_memory(config(FIVE), backlog) as gateway, asking(gateway, post(method="PUT")[:-2], "PUT") as request:
        (await backlog.accept()).write(BUSY)
        await gateway.network.advance(0.5)
        second = await backlog.accept()
        request.client.write(b"lo")
        assert (await second.read_until(b"hello")).endswith(b"\r\n\r\nhello")
        second.write(OK)
        assert (await request.ends()).status == 200


async def test_a_chunked_body_is_sent_again_whole():
    upstream = Upstream(BUSY, OK)
    data = b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    async with in_memory(config(FIVE), upstream) as gateway:
        assert (await answer(gateway, data, "PUT")).status == 200
        assert [asked.body for asked in upstream.asked] == [b"hello", b"hello"]


# --- the answer that is kept ---------------------------------------------------------------------


class Admits(Filter):
    """Lets so many attempts through."""

    name = "admits"

    def __init__(self, times):
        self.times, self.responses = times, []

    async def on_upstream_request(self, ex, attempt):
        return None if attempt.number <= self.times else Reply(503, b"open", reason="admits.open")

    async def on_upstream_response(self, ex, attempt):
        self.responses.append(attempt.response.status)


def plugin(own=None, budget=None):
    module = ModuleType("own")
    module.GW_API = 1
    if own is not None:
        module.gw_filters = hookimpl(lambda route, ctx: [own])
    if budget is not None:
        module.gw_retry_budget = hookimpl(lambda ctx, upstream: budget)
    plugins = PluginSet()
    plugins.add("own", module)
    return plugins


async def test_an_answer_at_hand_is_delivered_when_the_retry_is_not_admitted():
    own = Admits(1)
    async with in_memory(config(FIVE), Upstream(BUSY, OK), plugins=plugin(own)) as gateway:
        told = await answer(gateway)
        assert (told.status, told.body, own.responses) == (503, b"busy", [503])


async def test_a_client_that_leaves_while_an_answer_is_kept_leaves_nothing_behind():
    upstream = Upstream(BUSY, OK)
    async with in_memory(config(FIVE), upstream) as gateway:
        client = gateway.connect()
        client.write(GET)
        await gateway.network.settle()
        assert len(upstream.asked) == 1
        client.abort()
        assert await gateway.leftovers() == []
        assert len(upstream.asked) == 1


# --- the budget ----------------------------------------------------------------------------------

NONE_AT_ALL = {"percent": 0, "min_concurrency": 0}


async def test_what_the_budget_refuses_is_answered_as_such():
    retry = {"max_retries": 1, "budget": NONE_AT_ALL}
    async with in_memory(config(retry), Upstream(None)) as gateway:
        told = await answer(gateway)
        assert (told.status, told.body) == (503, b"Upstream retry budget exhausted.\n")
        assert told.headers.get("x-retry-budget-exhausted") == "1"
        assert told.headers.get("connection") == "close"
        assert await gateway.leftovers() == []


async def test_an_answer_at_hand_is_delivered_when_the_budget_is_used_up():
    upstream = Upstream(BUSY, OK)
    async with in_memory(config({**FIVE, "budget": NONE_AT_ALL}), upstream) as gateway:
        told = await answer(gateway)
        assert (told.status, told.body, len(upstream.asked)) == (503, b"busy", 1)


async def test_a_plugin_sets_the_budget_and_what_the_upstream_says_comes_first():
    refuses = RetryBudget(0, 0, headers=(("x-upstream-host", "up"),))
    async with in_memory(config({"max_retries": 1}), Upstream(None, OK), plugins=plugin(budget=refuses)) as gateway:
        told = await answer(gateway)
        assert (told.status, told.headers.get("x-upstream-host")) == (503, "up")
    own = {"max_retries": 1, "budget": {"min_concurrency": 1}}
    async with in_memory(config(own), Upstream(None, OK), plugins=plugin(budget=refuses)) as gateway:
        assert (await answer(gateway)).status == 200


async def test_a_filters_retry_is_subject_to_the_budget():
    class Asks(Filter):
        name = "asks"

        async def on_upstream_error(self, ex, attempt, error):
            return Retry()

    budget = RetryBudget(0, 0)
    async with in_memory(config(), Upstream(None, OK), plugins=plugin(Asks(), budget)) as gateway:
        assert (await answer(gateway)).headers.get("x-retry-budget-exhausted") == "1"


async def test_a_dry_run_logs_and_allows(caplog):
    budget = {**NONE_AT_ALL, "dry_run": True}
    async with in_memory(config({"max_retries": 1, "budget": budget}), Upstream(None, OK)) as gateway:
        assert (await answer(gateway)).status == 200
    assert "upstream up: the retry budget would refuse a retry (1 so far)" in caplog.text


async def test_only_so_many_retries_are_under_way_at_once():
    backlog = Backlog()
    retry = {"max_retries": 1, "budget": {"percent": 50, "min_concurrency": 1}}
    async with in_memory(config(retry), backlog) as gateway, anyio.create_task_group() as tasks:
        statuses = []

        async def one():
            statuses.append((await gateway.request(GET)).status)

        for _ in range(8):
            tasks.start_soon(one)
        streams = [await backlog.accept() for _ in range(8)]
        await gateway.network.settle()
        for stream in streams:
            stream.abort()
        await gateway.network.settle()
        assert statuses == [503] * 5  # at the fourth, half of the 8 - 3 that are no retries is 2
        for _ in range(3):
            (await backlog.accept()).write(OK)
        await gateway.network.settle()
        assert statuses == [503] * 5 + [200] * 3
        tasks.cancel_scope.cancel()


def exchange(method="GET"):
    return Exchange(Request(method, "/"), Client("192.0.2.9", "192.0.2.9"))


class BudgetMachine(RuleBasedStateMachine):
    """Exchanges come, retry and go; the account is always what a list of them says, and the cap is kept."""

    def __init__(self):
        super().__init__()
        self.budget = Budget("up", RetryBudget(25, 2), RetryAccount())
        self.policy = RetryPolicy(max_retries=10)
        self.under_way: list[list] = []

    @rule(kind=st.sampled_from(["policy", "budget alone"]))
    def begin(self, kind):
        made = Tries(self.policy, self.budget, Deadlines()) if kind == "policy" else Counted(self.budget)
        self.under_way.append([made, False])

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def retry(self, data):
        entry = data.draw(st.sampled_from(self.under_way))
        others = sum(1 for each in self.under_way if each[1] and each is not entry)
        cap = max(2, math.floor((len(self.under_way) - others) * 25 / 100))
        admitted = entry[0].admit() is None
        assert admitted == (others < cap)
        entry[1] = admitted

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def withdraw(self, data):
        entry = data.draw(st.sampled_from(self.under_way))
        entry[0].release()
        entry[1] = False

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def end(self, data):
        entry = data.draw(st.sampled_from(self.under_way))
        entry[0].__exit__(None, None, None)
        self.under_way.remove(entry)

    @invariant()
    def the_account_is_right(self):
        account = self.budget.account
        assert account.in_flight == len(self.under_way)
        assert account.retries == sum(1 for each in self.under_way if each[1])


BudgetMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBudget = BudgetMachine.TestCase


@pytest.mark.parametrize("failure", [ConnectFailed("x"), Disconnected("x"), ResponseTimeout("x"), Truncated("x")])
def test_a_backoff_grows_and_has_a_bound(failure):
    policy = RetryPolicy(max_retries=10, conditions=frozenset({"connect-failure", "disconnect", "timeout"}))
    seen = {retries: [] for retries in range(6)}
    for _ in range(200):
        tries = Tries(policy, None, Deadlines())
        for times in seen.values():
            times.append(tries.wants(exchange(), Attempt(1), failure, ""))
            tries.admit()
    if isinstance(failure, Truncated):
        assert seen[0] == [None] * 200
        return
    if isinstance(failure, ResponseTimeout):
        assert 0.001 <= min(seen[0]) <= max(seen[0]) <= 0.024
    else:
        assert set(seen[0]) == {0.0}
    for retries, most in [(1, 0.049), (2, 0.099), (3, 0.199), (4, 0.249), (5, 0.249)]:
        assert 0.001 <= min(seen[retries]) <= max(seen[retries]) <= most
        assert max(seen[retries]) > most / 2
