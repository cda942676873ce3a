"""Rules about what stands around the section."""

from __future__ import annotations

import pytest

from gw.config.load import load
from gw_otel.checks import problems

UP = [
    {"name": "collector", "host": "192.0.2.9", "port": 4318},
    {"name": "service", "endpoints": [{"srv": "_otlp._tcp.a.example"}]},
    {"name": "app", "endpoints": [{"asgi": "asyncio:run"}]},
]


def found(section, environ=None):
    config = load({"upstreams": UP, "dns": {"resolver": "dnspython"}, "plugins": ["otel"]}, environ={}).config
    section = type(config).model_fields["observability"].annotation.__args__[0].model_validate(section)
    return [
        (".".join(map(str, each.path[1:])), each.message, each.level)
        for each in problems(config.model_copy(update={"observability": section}), environ or {})
    ]


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_a_push_needs_to_know_where_to(signal):
    asked = {signal: {"exporter": "otlp_http"}}
    message = "needs to know where to: set otlp.upstream, otlp.endpoint or OTEL_EXPORTER_OTLP_ENDPOINT"
    assert found(asked) == [(f"{signal}.exporter", message, "error")]
    assert found(asked, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}) == []
    assert found(asked, {f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT": "http://collector:4318"}) == []
    assert found({signal: {"exporter": "otlp_http", "otlp": {"endpoint": "http://c:1"}}}) == []


def test_an_upstream_must_be_one():
    asked = {"traces": {"otlp": {"upstream": "colector"}}}
    assert found(asked) == [
        ("traces.otlp.upstream", "there is no upstream 'colector' (did you mean 'collector'?)", "error")
    ]


@pytest.mark.parametrize(("name", "what"), [("service", "a service (srv)"), ("app", "an application")])
def test_a_collector_has_a_host(name, what):
    asked = {"traces": {"otlp": {"upstream": name}}}
    message = f"'{name}' is {what}, and a collector is called at a host; name another upstream"
    assert found(asked) == [("traces.otlp.upstream", message, "error")]


def test_there_is_one_way_to_a_collector():
    asked = {"logs": {"otlp": {"upstream": "collector", "endpoint": "http://c:1"}}}
    assert found(asked) == [("logs.otlp.endpoint", "cannot stand beside upstream; remove one of them", "error")]


def test_buckets_of_what_is_no_histogram_are_pointed_out():
    ((path, message, level),) = found({"metrics": {"histogram_buckets": {"http.request.duration": (1.0,)}}})
    assert (path, level) == ("metrics.histogram_buckets.http.request.duration", "warning")
    assert message.startswith("is no histogram with buckets to set; there are gw.otel.export.duration, ")


def test_a_library_that_is_missing_is_asked_for_before_anything_starts(monkeypatch):
    monkeypatch.setattr("gw_otel.checks.find_spec", lambda name: None)
    asked = {
        "enabled": True,
        "traces": {"exporter": "otlp_http", "otlp": {"upstream": "collector"}},
        "metrics": {"exporter": "prometheus_pull"},
    }
    assert found(asked) == [
        ("traces.exporter", "needs httpcore, which is not installed; run pip install 'gw[otel]'", "error"),
        ("metrics.exporter", "needs prometheus-client, which is not installed; run pip install 'gw[otel]'", "error"),
    ]


def test_without_the_section_nothing_is_wrong():
    config = load({"upstreams": UP[:1], "plugins": ["otel"]}, environ={}).config
    assert list(problems(config, {})) == []
