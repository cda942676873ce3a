"""Where a route sends: by weight, and an exchange stays with the upstream that it began with."""

from __future__ import annotations

from types import ModuleType

import anyio
import pytest

from gw import Elsewhere, Filter, hookimpl
from gw.around import Placed
from gw.keys import SHADOW
from gw.plugins import PluginSet
from gw.testing import drive
from gw.testing.gateway import Upstream, in_memory

BUSY = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def two(first=1, second=1, **retry):
    upstreams = [
        {"name": name, "host": host, "proxy": {"retry": {"max_retries": 1, "retry_on_connect_failure": True, **retry}}}
        for name, host in (("a", "192.0.2.1"), ("b", "192.0.2.2"))
    ]
    weights = [{"name": "a", "weight": first}, {"name": "b", "weight": second}]
    return {"upstreams": upstreams, "routes": [{"upstreams": weights}]}


async def test_requests_are_split_by_weight():
    a, b = Upstream(OK), Upstream(OK)
    async with in_memory(two(1, 3), upstreams={"192.0.2.1:80": a, "192.0.2.2:80": b}) as gateway:
        for _ in range(200):
            await gateway.get("/")
    assert len(a.asked) + len(b.asked) == 200
    assert 110 < len(b.asked) < 190  # 150, and 6.5 deviations on either side


async def test_an_upstream_that_weighs_nothing_gets_nothing():
    a, b = Upstream(OK), Upstream(OK)
    async with in_memory(two(0, 1), upstreams={"192.0.2.1:80": a, "192.0.2.2:80": b}) as gateway:
        for _ in range(20):
            await gateway.get("/")
    assert (len(a.asked), len(b.asked)) == (0, 20)


async def test_a_retry_stays_with_the_upstream_of_the_first_attempt():
    for _ in range(10):
        async with in_memory(two(), upstreams={}) as gateway:
            gateway.network._upstreams = {}
            assert (await gateway.get("/")).status == 502
            first, second = gateway.network.dialled
            assert first == second


@pytest.mark.parametrize(
    ("when", "headers", "goes"),
    [
        ({"header": "X-Canary"}, {"x-canary": "anything"}, "b"),
        ({"header": "x-canary", "value": "on"}, {"x-canary": "on"}, "b"),
        ({"header": "x-canary", "value": "on"}, {"x-canary": "off"}, "a"),
        ({"header": "x-canary"}, {}, "a"),
        ({"cookie": "canary"}, {"cookie": "x=y; canary=1"}, "b"),
        ({"cookie": "canary", "value": "1"}, {"cookie": "canary=2"}, "a"),
        ({"cookie": "canary"}, {"cookie": "canaryy=1"}, "a"),
    ],
)
async def test_a_canary_takes_the_requests_that_it_claims(when, headers, goes):
    a, b = Upstream(OK), Upstream(OK)
    config = two()
    config["routes"] = [{"upstreams": [{"name": "a"}, {"name": "b", "weight": 0, "when": when}]}]
    async with in_memory(config, upstreams={"192.0.2.1:80": a, "192.0.2.2:80": b}) as gateway:
        for _ in range(5):
            assert (await gateway.get("/", headers)).status == 200
    assert (len(a.asked), len(b.asked)) == ((0, 5) if goes == "b" else (5, 0))


# --- elsewhere -------------------------------------------------------------------------------------


class Sends(Filter):
    """Sends every attempt from *first* on to an upstream that the route does not have."""

    name = "sends"

    def __init__(self, where="b", first=1):
        self.where, self.first, self.seen = where, first, []

    async def on_upstream_request(self, ex, attempt):
        return Elsewhere(self.where) if attempt.number >= self.first and attempt.upstream != self.where else None

    async def on_upstream_response(self, ex, attempt):
        self.seen.append((attempt.number, attempt.upstream, str(attempt.endpoint)))


def sending(own, named=("b",)):
    module = ModuleType("sends")
    module.GW_API = 1
    module.gw_filters = hookimpl(lambda route, ctx: [own])
    module.gw_upstreams = hookimpl(lambda route, ctx: named)
    plugins = PluginSet()
    plugins.add("sends", module)
    return plugins


def only_a(**retry):
    return two(**retry) | {"routes": [{"match": {"prefix": "/"}, "upstream": "a"}]}


@pytest.mark.parametrize("first", [1, 2])
async def test_a_filter_sends_an_attempt_elsewhere_and_retries_stay_there(first):
    a, b, own = Upstream(BUSY), Upstream(BUSY, OK), Sends(first=first)
    scripts = {"192.0.2.1:80": a, "192.0.2.2:80": b}
    config = only_a(retry_on_5xx=True, max_retries=2)
    async with (
        in_memory(config, upstreams=scripts, plugins=sending(own)) as gateway,
        anyio.create_task_group() as tasks,
    ):
        answers = []

        async def ask():
            answers.append((await gateway.get("/")).status)

        tasks.start_soon(ask)
        await gateway.network.settle()
        for _ in range(3):
            await gateway.network.advance(1)
    assert (answers, len(a.asked), len(b.asked)) == ([200], first - 1, 2)
    assert own.seen[-1] == (first + 1, "b", "192.0.2.2:80")
    assert b.asked[-1].head.host == "192.0.2.2"


async def test_elsewhere_has_to_be_one_of_those_that_were_named(caplog):
    async with in_memory(only_a(), Upstream(OK), plugins=sending(Sends(), named=())) as gateway:
        assert (await gateway.get("/")).status == 500
    assert "LookupError: no upstream 'b' was named in gw_upstreams for this route" in caplog.text


async def test_a_shadow_and_an_explanation_tell_of_elsewhere():
    played = await drive([Sends("other")], explain=True)
    assert ("elsewhere", "other") in [(note.verdict, note.reason) for note in played.notes]
    played = await drive([Placed(Sends("other"), mode="shadow")])
    assert played.exchange.attempts[0].upstream == "upstream"
    assert played.exchange[SHADOW] == ["sends: send to other"]
