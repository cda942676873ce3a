"""Active checks: what is asked, what is healthy, how often, and what is left. The gateway is real, time is virtual."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager

import pytest
from pydantic import ValidationError

from gw.config.resilience import ActiveHealthConfig
from gw.testing.gateway import Upstream, in_memory
from gw.testing.memory import Backlog

FINE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
ILL = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"


def config(hosts=("192.0.2.1", "192.0.2.2"), **active):
    settings = {"interval_ms": 1000, "jitter_percent": 0, "timeout_ms": 500, **active}
    endpoints = [{"host": host, "port": 80} for host in hosts]
    upstream = {
        "name": "up",
        "endpoints": endpoints,
        "health": {"active": settings},
        "balance": {"panic_threshold_percent": 0},
    }
    return {"upstreams": [{**upstream, "proxy": {"route_prefix": "/"}}]}


@asynccontextmanager
async def checked(first, second=None, **active):
    """Run a gateway in front of two endpoints, and yield it with its endpoint set once both were checked."""
    scripts = {"192.0.2.1:80": first, "192.0.2.2:80": second or Upstream(FINE)}
    async with in_memory(config(**active), upstreams=scripts) as gateway:
        await gateway.network.settle()
        yield gateway, gateway.gateway._current.now.services["up"]


def states(service):
    return [member.healthy for member in service.endpoints.members]


@pytest.mark.parametrize(
    ("script", "active", "healthy"),
    [
        (Upstream(FINE), {}, True),
        (Upstream(b"HTTP/1.1 100 Continue\r\n\r\n" + FINE), {}, True),
        (Upstream(ILL), {}, False),
        (Upstream(b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n"), {}, False),
        (Upstream(b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n"), {"expected_statuses": [204, "300-399"]}, True),
        (Upstream(ILL), {"expected_statuses": [500]}, True),
        (Upstream(b"+PONG\r\n\r\n"), {}, False),
        (Upstream(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000 + b"\r\n\r\n"), {}, False),
        (Upstream(None), {}, False),
        (Upstream(None), {"type": "tcp"}, True),
    ],
)
async def test_the_first_check_tells_at_once(script, active, healthy):
    async with checked(script, **active) as (_, service):
        assert states(service)[0] is healthy


async def test_an_endpoint_that_refuses_or_keeps_silent_is_unhealthy(caplog):
    async with in_memory(config(), upstreams={"192.0.2.1:80": Backlog()}) as gateway:
        await gateway.network.advance(0.7)
        service = gateway.gateway._current.now.services["up"]
        assert states(service) == [False, False]
    assert "upstream up: endpoint 192.0.2.1:80 is unhealthy: no answer within 0.5 s (checks: 1)" in caplog.text
    assert "endpoint 192.0.2.2:80 is unhealthy: cannot connect: connection refused (checks: 1)" in caplog.text


async def test_what_is_asked_is_what_the_settings_say():
    upstream = Upstream(FINE)
    active = {"path": "/healthz?deep=1", "host": "svc.example", "headers": {"x-probe": "gw"}}
    async with checked(upstream, **active):
        (asked,) = upstream.asked
        assert (asked.head.method, asked.head.target, asked.head.headers.get("host")) == (
            "GET",
            "/healthz?deep=1",
            "svc.example",
        )
        assert (asked.head.headers.get("x-probe"), asked.head.headers.get("user-agent")) == ("gw", "gw-health")


async def test_thresholds_are_counted_in_a_row(caplog):
    caplog.set_level(logging.INFO, "gw.upstream")
    answers = [FINE, ILL, ILL, FINE, ILL, ILL, ILL, FINE, ILL, FINE, FINE]
    seen = []
    async with checked(Upstream(*answers)) as (gateway, service):
        for _ in answers:
            seen.append(service.endpoints.members[0].healthy)
            await gateway.network.advance(1.1)
    assert seen == [True, True, True, True, True, True, False, False, False, False, True]
    assert "endpoint 192.0.2.1:80 is unhealthy: it answered 500 (checks: 3)" in caplog.text
    assert "endpoint 192.0.2.1:80 is healthy again" in caplog.text


async def test_an_unhealthy_endpoint_gets_no_requests_until_it_is_healthy():
    ill, fine = Upstream(ILL), Upstream(FINE)
    async with checked(ill, fine) as (gateway, service):
        before = len(ill.asked)
        for _ in range(6):
            assert (await gateway.get("/")).status == 200
        assert len(ill.asked) == before
        ill._answers[:] = [FINE]
        await gateway.network.advance(3)
        assert states(service) == [True, True]
        checks = len(ill.asked)
        for _ in range(6):
            await gateway.get("/")
        assert len(ill.asked) == checks + 3


async def test_checks_come_at_their_interval_and_leave_no_connection():
    upstream = Upstream(FINE)
    async with checked(upstream) as (gateway, service):
        await gateway.network.advance(10)
        assert 9 <= len(upstream.asked) <= 11
        assert all(stream.lost for stream in gateway.network.peers)
        assert service.pool.open == 0


async def test_jitter_spreads_them():
    upstream = Upstream(FINE)
    async with checked(upstream, jitter_percent=100) as (gateway, _):
        await gateway.network.advance(30)
        assert 15 <= len(upstream.asked) <= 60


async def test_endpoints_that_go_are_not_checked_any_more():
    first, second = Upstream(FINE), Upstream(FINE)
    async with checked(first, second) as (gateway, service):
        service.endpoints.replace(service.pool.origins[1:])
        await gateway.network.advance(5)
        assert (len(first.asked), len(second.asked) > 3) == (1, True)


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "x"},
        {"path": "/a b"},
        {"path": "/\r\nx: y"},
        {"expected_statuses": ("2xx",)},
        {"expected_statuses": (99,)},
        {"expected_statuses": ()},
        {"expected_statuses": ("300-200",)},
        {"headers": {"a b": "c"}},
        {"headers": {"a": "c\n"}},
    ],
)
def test_a_check_that_could_not_be_sent_is_refused(settings):
    with pytest.raises(ValidationError):
        ActiveHealthConfig(**settings)
