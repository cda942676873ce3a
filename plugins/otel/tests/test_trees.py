"""Span trees of requests that other plugins had a say in, each asserted whole: auth that asks a provider, an open breaker."""

from __future__ import annotations

import json

import pytest

from gw.testing import Upstream, in_memory

UP = {"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/"}}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"


def config(url, upstream=UP, traces=None, **sections):
    section = {"enabled": True, "traces": {"exporter": "otlp_http", "otlp": {"endpoint": url}, **(traces or {})}}
    return {"upstreams": [upstream], "observability": section, **sections}


def asking(url, monkeypatch):
    """Return the section of auth that asks about tokens at *url*."""
    monkeypatch.setenv("SECRET", "s")
    introspection = {"endpoint": f"{url}/introspect", "client_id": "gw", "client_secret_env": "SECRET"}
    issuer = {"issuer_url": url, "mode": "introspection", "discovery": False, "introspection": introspection}
    policy = {"name": "all", "enabled": True, "applies_to": [""], "issuers": ["idp"]}
    return {"enabled": True, "issuers": {"idp": issuer}, "policies": [policy]}


def said(collector):
    """Return every span that came, and its attributes as a mapping."""
    found = []
    for _, _, body in collector.requests:
        (resource,) = json.loads(body)["resourceSpans"]
        found += [span for scope in resource["scopeSpans"] for span in scope["spans"]]
    for span in found:
        span["attributes"] = {each["key"]: next(iter(each["value"].values())) for each in span["attributes"]}
    return found


def trees(spans):
    """Return each trace as ``name [children]``, in the order in which spans began."""

    def below(parent, trace):
        own = [each for each in spans if (each.get("parentSpanId", ""), each["traceId"]) == (parent, trace)]
        own.sort(key=lambda each: int(each["startTimeUnixNano"]))
        return [(each["name"], below(each["spanId"], trace)) for each in own]

    return [tree for trace in dict.fromkeys(each["traceId"] for each in spans) for tree in below("", trace)]


ACTIVE = (200, (), b'{"active": true, "sub": "alice"}')


@pytest.mark.parametrize(
    ("answer", "status", "outcome", "tree"),
    [
        (ACTIVE, 200, "allow", ("GET /*proxy_path", [("auth.idp_check", []), ("HTTP GET", [])])),
        ((200, (), b'{"active": false}'), 401, "deny_401", ("GET /*proxy_path", [("auth.idp_check", [])])),
        ((500, (), b""), 503, "undetermined", ("GET /*proxy_path", [("auth.idp_check", [])])),
    ],
)
async def test_asking_a_provider_is_a_span_of_the_request(collecting, monkeypatch, answer, status, outcome, tree):
    async with collecting() as collector, collecting() as provider:
        provider.answers = [answer]
        settings = config(collector.url, auth=asking(provider.url, monkeypatch))
        async with in_memory(settings, Upstream(OK)) as gateway:
            found = await gateway.get("/a", {"authorization": "Bearer opaque"})
            assert found.status == status
        spans = said(collector)
        assert trees(spans) == [tree]
        (check,) = [each for each in spans if each["name"] == "auth.idp_check"]
        assert check["attributes"]["auth.outcome"] == outcome
        # The provider was asked under this span.
        ((_, headers, _),) = provider.requests
        assert headers["traceparent"] == f"00-{check['traceId']}-{check['spanId']}-01"


async def test_a_token_that_is_remembered_has_no_such_span(collecting, monkeypatch):
    async with collecting() as collector, collecting() as provider:
        provider.answers = [ACTIVE]
        settings = config(collector.url, auth=asking(provider.url, monkeypatch))
        async with in_memory(settings, Upstream(OK)) as gateway:
            for _ in range(2):
                await gateway.get("/a", {"authorization": "Bearer opaque"})
        first, second = trees(said(collector))
        assert first == ("GET /*proxy_path", [("auth.idp_check", []), ("HTTP GET", [])])
        assert second == ("GET /*proxy_path", [("HTTP GET", [])])


async def test_it_may_be_two_events_instead(collecting, monkeypatch):
    async with collecting() as collector, collecting() as provider:
        provider.answers = [ACTIVE]
        settings = config(collector.url, traces={"auth_idp_span": False}, auth=asking(provider.url, monkeypatch))
        async with in_memory(settings, Upstream(OK)) as gateway:
            await gateway.get("/a", {"authorization": "Bearer opaque"})
        spans = said(collector)
        assert trees(spans) == [("GET /*proxy_path", [("HTTP GET", [])])]
        (server,) = [each for each in spans if each["kind"] == 2]
        assert [each["name"] for each in server["events"]] == ["auth.pending_start", "auth.pending_end"]
        ((_, headers, _),) = provider.requests
        assert headers["traceparent"].split("-")[2] == server["spanId"]


async def test_what_a_breaker_turns_away_is_a_request_without_an_attempt(collecting):
    async with collecting() as collector:
        breaker = {"enabled": True, "consecutive_failure_threshold": 1}
        settings = config(collector.url, upstream={**UP, "circuit_breaker": breaker})
        async with in_memory(settings, Upstream(BUSY)) as gateway:
            statuses = [(await gateway.get("/a")).status for _ in range(2)]
        assert statuses == [503, 503]
        spans = said(collector)
        assert trees(spans) == [("GET /*proxy_path", [("HTTP GET", [])]), ("GET /*proxy_path", [])]
        (rejected,) = [each for each in spans if each["attributes"].get("gw.reason")]
        assert rejected["attributes"]["gw.reason"] == "breaker.open"
        assert rejected["attributes"]["error.type"] == "rejected_by_middleware"
        assert rejected["status"] == {"code": 2}
