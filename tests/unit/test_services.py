"""Upstreams brought to life: which settings become which objects."""

from __future__ import annotations

import json

import pytest

from gw.filters import Exchange, Request
from gw.keys import Client
from gw.testing.gateway import in_memory
from gw.upstream.balance import LeastRequests, PeakEwma, RandomChoice, RingHash, RoundRobin


async def served(upstream, route=None):
    """Return the service of an upstream with these settings, and the leg of its route."""
    config = {
        "upstreams": [{"name": "up", "host": "192.0.2.1", **upstream}],
        "routes": [{"upstream": "up", **(route or {})}],
    }
    async with in_memory(config) as gateway:
        generation = gateway.gateway._current.now
        return generation.services["up"], generation.routes[0].target._legs[0]


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("round_robin", RoundRobin),
        ("least_requests", LeastRequests),
        ("peak_ewma", PeakEwma),
        ("ring_hash", RingHash),
        ("random", RandomChoice),
    ],
)
async def test_an_algorithm_is_made_as_it_is_called(name, made):
    service, _ = await served({"balance": {"algorithm": name}})
    assert type(service.endpoints.algorithm) is made


async def test_an_upstream_without_policies_watches_nothing():
    service, leg = await served({})
    assert (leg.tries(None), service.budget, service.endpoints.watches) == (None, None, False)


@pytest.mark.parametrize(
    "settings",
    [
        {"proxy": {"retry": {"max_retries": 1}}},
        {"proxy": {"retry": {"per_try_timeout_ms": 10}}},
        {"proxy": {"retry": {"budget": {}}}},
        {"balance": {"algorithm": "least_requests"}},
        {"health": {"outliers": {}}},
        {"proxy": {"exchange_timeout_ms": 1}},
        {"proxy": {"client_timeout": "trusted"}},
        {"balance": {"sticky": {"secret": "0123456789abcdef"}}},
    ],
)
async def test_what_needs_to_know_of_attempts_does(settings):
    _, leg = await served(settings)
    ex = Exchange(Request("GET", "/"), Client("192.0.2.9", "192.0.2.9"))
    assert leg.tries(ex) is not None


async def test_a_route_sets_single_keys_of_its_upstreams_retries():
    settings = {"proxy": {"retry": {"max_retries": 3, "buffer_bytes": 7, "max_retry_after_ms": 1500}}}
    _, leg = await served(settings, {"retry": {"max_retries": 1}})
    assert (leg.policy.max_retries, leg.policy.buffer, leg.policy.max_retry_after) == (1, 7, 1.5)


async def test_it_says_nothing_of_what_nobody_counts():
    async with in_memory() as gateway:
        assert (await gateway.get("/")).status == 200
        (endpoint,) = gateway.gateway._current.now.services["upstream"].stats()["endpoints"]
        assert not {"active", "answered", "failed"} & endpoint.keys()


async def test_it_says_what_is_known_of_it():
    settings = {"health": {"active": {}, "outliers": {}}, "proxy": {"route_prefix": "/", "retry": {"budget": {}}}}
    config = {"upstreams": [{"name": "up", "host": "192.0.2.1", **settings}]}
    async with in_memory(config) as gateway:
        await gateway.network.settle()
        assert (await gateway.get("/")).status == 200
        service = gateway.gateway._current.now.services["up"]
        told = service.stats()
        assert json.loads(json.dumps(told)) == told
        (endpoint,) = told["endpoints"]
        assert (endpoint["address"], endpoint["healthy"], endpoint["answered"]) == ("192.0.2.1:80", True, 1)
        assert told["checks"] == {"done": 1, "failed": 0}
        assert told["retry_budget"] == {"in_flight": 0, "retries": 0, "cap": 3, "refused": 0}
        service.endpoints.mark(service.endpoints.members[0], healthy=False)
        family = next(each for each in gateway.gateway.figures if each.name == "gw.upstream.endpoints")
        rows = {labels[1]: count.value for labels, count in family.rows().items()}
        assert rows == {"healthy": 0, "unhealthy": 1, "ejected": 0}
