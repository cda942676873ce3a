"""The section: what the reference's configurations say, and every mistake, with the whole message."""

from __future__ import annotations

import pytest

from gw.config.errors import ConfigError
from gw.config.load import load

UP = [{"name": "collector", "host": "192.0.2.9", "port": 4318}]

REFERENCE = {
    "enabled": True,
    "resource": {"service_name": "edge", "service_version": "1.2", "service_instance_id": "a"},
    "traces": {
        "enabled": True,
        "exporter": "otlp_http",
        "propagators": ["w3c", "jaeger"],
        "auth_idp_span": False,
        "websocket_messages": True,
        "sampler": {
            "type": "trace_id_ratio",
            "ratio": 0.25,
            "routes": [{"path": "/quiet"}, {"path": "/loud/", "sampler": "always_on", "ratio": 0.5}],
        },
        "otlp": {"upstream": "collector", "timeout_ms": 1, "headers": {"X-Api-Key": "k"}},
        "batch": {
            "max_queue_size": 10,
            "max_export_batch_size": 10,
            "schedule_delay_ms": 1,
            "retries": {"max_attempts": 0, "initial_backoff_ms": 5, "max_backoff_ms": 5},
        },
    },
    "metrics": {
        "enabled": True,
        "exporter": "prometheus_pull",
        "otlp": {"upstream": "collector", "timeout_ms": 10000, "headers": {}},
        "export_interval_ms": 60000,
        "export_timeout_ms": 10000,
        "prometheus": {"path": "/internal/metrics", "include_target_info": False},
        "histogram_buckets": {"http.server.request.duration": [0.1, 1, 10]},
    },
}


def loaded(section):
    return load({"upstreams": UP, "observability": section}, environ={})


def problems(section):
    with pytest.raises(ConfigError) as raised:
        loaded(section)
    return [(".".join(map(str, each.problem.path)), each.problem.message) for each in raised.value.problems]


def test_a_configuration_of_the_reference_loads_unchanged():
    found = loaded(REFERENCE)
    assert found.warnings == ()
    section = found.config.observability
    assert section.traces.sampler.routes[0].sampler == "always_off"
    assert section.metrics.is_scraped
    assert not section.metrics.pushes


def test_the_defaults_are_those_of_the_reference():
    section = loaded({}).config.observability
    assert section.model_dump(mode="json", exclude={"mode", "on_error", "logs"}) == {
        "enabled": False,
        "resource": {"service_name": "gw", "service_version": "", "service_instance_id": "", "attributes": {}},
        "traces": {
            "enabled": True,
            "exporter": "",
            "propagators": ["w3c"],
            "auth_idp_span": True,
            "filters": False,
            "websocket_messages": False,
            "baggage_attributes": [],
            "sampler": {"type": "parent_based", "ratio": 1.0, "routes": []},
            "tail": {"errors": False, "slow_ms": 0},
            "otlp": OTLP,
            "batch": {
                "max_queue_size": 2048,
                "max_export_batch_size": 512,
                "schedule_delay_ms": 5000,
                "retries": {"max_attempts": 3, "initial_backoff_ms": 1000, "max_backoff_ms": 10000},
            },
        },
        "metrics": {
            "enabled": True,
            "exporter": "",
            "otlp": OTLP,
            "export_interval_ms": 60000,
            "export_timeout_ms": 10000,
            "prometheus": {"path": "/metrics", "include_target_info": True, "process": True},
            "histogram_buckets": {},
        },
    }


OTLP = {
    "upstream": "",
    "endpoint": "",
    "protocol": "http/json",
    "compression": "none",
    "timeout_ms": 10000,
    "headers": {},
}


@pytest.mark.parametrize(
    ("metrics", "pushes", "is_scraped"),
    [
        ({}, False, False),
        ({"exporter": "otlp_http", "otlp": {"upstream": "collector"}}, True, False),
        ({"exporter": "prometheus_pull"}, False, True),
        ({"exporter": ["prometheus_pull", "otlp_http"], "otlp": {"upstream": "collector"}}, True, True),
        ({"exporter": "prometheus_pull", "enabled": False}, False, True),
        ({"exporter": []}, False, False),
    ],
)
def test_metrics_can_be_pushed_and_scraped(metrics, pushes, is_scraped):
    found = loaded({"metrics": metrics}).config.observability.metrics
    assert (found.pushes, found.is_scraped) == (pushes, is_scraped)


@pytest.mark.parametrize(
    ("section", "path", "message"),
    [
        ({"traces": {"propagators": ["w3c", "w3c"]}}, "traces.propagators", "names 'w3c' twice"),
        ({"traces": {"sampler": {"routes": [{"path": "x"}]}}}, "traces.sampler.routes.0.path", "must begin with '/'"),
        (
            {"traces": {"batch": {"max_queue_size": 10}}},
            "traces.batch",
            "max_export_batch_size must be at most max_queue_size (10)",
        ),
        (
            {"traces": {"batch": {"retries": {"max_backoff_ms": 1}}}},
            "traces.batch.retries",
            "max_backoff_ms must be at least initial_backoff_ms (1000)",
        ),
        (
            {"metrics": {"export_interval_ms": 5000}},
            "metrics",
            "export_timeout_ms must be at most export_interval_ms (5000)",
        ),
        (
            {"metrics": {"prometheus": {"path": "/"}}},
            "metrics.prometheus.path",
            OWN_PATH := "must be a path below '/', of letters, digits and -._~",
        ),
        ({"metrics": {"prometheus": {"path": "/a b"}}}, "metrics.prometheus.path", OWN_PATH),
        ({"metrics": {"prometheus": {"path": "a"}}}, "metrics.prometheus.path", "must begin with '/'"),
        (
            {"metrics": {"histogram_buckets": {"x": [2, 1]}}},
            "metrics.histogram_buckets.x",
            "must be finite and strictly rising",
        ),
        ({"metrics": {"histogram_buckets": {"x": []}}}, "metrics.histogram_buckets.x", "must be 1 to 256 numbers"),
        (
            {"metrics": {"histogram_buckets": {"x": list(range(257))}}},
            "metrics.histogram_buckets.x",
            "must be 1 to 256 numbers",
        ),
        ({"traces": {"otlp": {"headers": {"a b": "x"}}}}, "traces.otlp.headers.a b", "'a b' is not a header name"),
        (
            {"traces": {"otlp": {"headers": {"Host": "x"}}}},
            "traces.otlp.headers.Host",
            "Host is written by the exporter",
        ),
        (
            {"traces": {"otlp": {"headers": {"x": "a\nb"}}}},
            "traces.otlp.headers.x",
            "must be printable ASCII without spaces around it",
        ),
        (
            {"traces": {"otlp": {"endpoint": "collector:4318"}}},
            "traces.otlp.endpoint",
            "must be a URL such as http://collector:4318, without user, query or fragment",
        ),
    ],
)
def test_what_is_wrong_is_said(section, path, message):
    ((where, said),) = problems(section)
    assert where == f"observability.{path}"
    assert said.startswith(message)


def test_secrets_are_not_shown():
    found = load(
        {
            "upstreams": UP,
            "observability": {"traces": {"otlp": {"upstream": "collector", "headers": {"x-key": "hush-hush"}}}},
        },
        environ={},
    )
    assert "hush-hush" not in str(found.effective())
    assert "hush-hush" not in repr(found.config)
