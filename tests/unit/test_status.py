"""What a gateway says about itself, and how the figures of several add up."""

from __future__ import annotations

import json
import os
from types import ModuleType

import pytest

from gw.config.load import load
from gw.filters import Exchange, Reply, Request
from gw.hookspecs import LocalRoute, hookimpl
from gw.keys import Client
from gw.plugins import PluginSet
from gw.status import Latencies, percentiles, summed
from gw.testing.gateway import Upstream, in_memory
from gw.testing.memory import Backlog

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


async def test_health_says_that_it_is_alive():
    async with in_memory() as gateway:
        answer = await gateway.get("/health")
        assert (answer.status, answer.headers.get("content-type")) == (200, "application/json")
        found = json.loads(answer.body)
        assert (found["status"], found["pid"]) == ("ok", os.getpid())
        assert found["uptime_seconds"] >= 0


async def test_ready_fails_as_soon_as_it_is_told_to_stop():
    async with in_memory({"drain_delay_sec": 300}) as gateway:
        assert (await gateway.get("/ready")).status == 200
        gateway.gateway.stop()
        assert (await gateway.get("/ready")).status == 503
        assert (await gateway.get("/health")).status == 200
        assert (await gateway.get("/")).status == 200


async def test_stats_count_connections_requests_and_pools():
    backlog = Backlog()
    async with in_memory(upstream=backlog) as gateway:
        client = gateway.connect()
        client.write(GET)
        await backlog.accept()
        found = json.loads((await gateway.get("/stats")).body)
        assert found["connections"]["active_http1"] == 2
        assert found["connections"]["total_accepted"] == 2
        assert found["requests"] == {"total": 2, "active": 2}
        upstream = found["upstream"]["upstream"]
        assert upstream["pool"] == {"open": 1, "idle": 0, "waiting": 0}
        assert [(each["address"], each["healthy"]) for each in upstream["endpoints"]] == [("192.0.2.1:80", True)]
        assert (found["dns"]["total_resolutions"], found["dns"]["total_reload_stale_served"]) == (0, 0)
        assert found["generations"] == [{"number": 1, "exchanges": 2}]
        assert found["config"]["bind_port"] == 8080


def test_workers_add_up_what_they_have_and_not_what_is_set():
    endpoint = {"address": "a:1", "priority": 1, "weight": 3, "share": 3, "healthy": True, "active": 2}
    ill = endpoint | {"healthy": False, "active": 1}
    parts = [{"upstream": {"up": {"endpoints": [each]}}} for each in (endpoint, ill)]
    (row,) = summed(parts)["upstream"]["up"]["endpoints"]
    assert row == endpoint | {"healthy": False, "active": 3}


async def test_a_configured_route_takes_the_place_of_our_own_path():
    config = {
        "upstreams": [{"name": "up", "host": "192.0.2.1"}],
        "routes": [{"match": {"path": "/health"}, "upstream": "up"}],
    }
    async with in_memory(config, Upstream()) as gateway:
        assert (await gateway.get("/health")).body == b"ok"
        assert (await gateway.get("/ready")).status == 200


async def test_what_is_switched_off_is_the_upstreams():
    async with in_memory({"status": {"health": False, "ready": False, "stats": False}}) as gateway:
        for path in ("/health", "/ready", "/stats"):
            assert (await gateway.get(path)).body == b"ok"


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_plugins_path_for_prometheus_is_switched_off_too(wanted):
    async def scraped(ex):
        return Reply(200, b"figures")

    plugins, module = PluginSet(), ModuleType("figures")
    module.GW_API = 1
    module.gw_endpoints = hookimpl(
        lambda ctx: [LocalRoute("/metrics", scraped, kind="metrics")], specname="gw_endpoints"
    )
    plugins.add("figures", module)
    async with in_memory({"status": {"metrics": wanted}}, plugins=plugins) as gateway:
        assert (await gateway.get("/metrics")).body == (b"figures" if wanted else b"ok")


async def test_stats_are_those_of_whoever_was_put_there():
    async with in_memory() as gateway:

        async def everybodys():
            return {"of": "all"}

        gateway.gateway.ask_stats = everybodys
        assert json.loads((await gateway.get("/stats")).body) == {"of": "all"}


def test_figures_of_several_processes_add_up():
    one = {
        "uptime_seconds": 5,
        "requests": {"total": 3, "active": 1},
        "config": {"bind_port": 80},
        "generation": 2,
        "list": [{"n": 1}, {"n": 2}],
        "ok": True,
        "name": "a",
        "last_epoch": 7,
        "slowest_ms": 3.5,
        "keys_shared": 4,
        "mine": 1,
    }
    other = {**one, "slowest_ms": 1, "uptime_seconds": 4, "ok": False, "name": "b", "last_epoch": 9, "list": [{"n": 3}]}
    del other["mine"]
    other["theirs"] = 2
    assert summed([one, other]) == {
        "uptime_seconds": 5,
        "requests": {"total": 6, "active": 2},
        "config": {"bind_port": 80},
        "generation": 2,
        "list": [{"n": 1}, {"n": 2}],
        "ok": False,
        "name": "a",
        "last_epoch": 9,
        "slowest_ms": 3.5,
        "keys_shared": 4,
        "mine": 1,
        "theirs": 2,
    }
    assert summed([]) == {}
    assert summed([one]) == one


def test_percentiles_are_exact_to_an_eighth(monkeypatch):
    latencies = Latencies()
    ex = Exchange(Request("GET", "/"), Client("a", "a"))
    for milliseconds in range(1, 1001):
        monkeypatch.setattr("gw.status.time.monotonic", lambda took=milliseconds / 1000: took)
        latencies(ex)
    found = percentiles(latencies.counts)
    for name, exact in (("p50", 500), ("p90", 900), ("p99", 990), ("p999", 999)):
        assert exact * 0.99 <= found[name] <= exact * 1.25, found
    assert percentiles([0] * 10) == {}


def test_times_out_of_all_proportion_are_counted_too(monkeypatch):
    latencies = Latencies()
    ex = Exchange(Request("GET", "/"), Client("a", "a"))
    for seconds in (0.0, 1e9):
        monkeypatch.setattr("gw.status.time.monotonic", lambda took=seconds: took)
        latencies(ex)
    assert sum(latencies.counts) == 2


def test_the_number_of_processes_has_two_names():
    assert load({"plugins": [], "worker_threads": 3}, environ={}).config.processes() == 3
    assert load({"plugins": [], "workers": 2}, environ={}).config.processes() == 2
    assert load({"plugins": [], "worker_threads": 3}, environ={"REACTOR_WORKER_THREADS": "5"}).config.processes() == 5
    assert load({"plugins": []}, environ={}).config.processes() == 0
