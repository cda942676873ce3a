"""Where telemetry goes: settings first, then OpenTelemetry's variables, that of the signal before that for all."""

from __future__ import annotations

import logging

import pytest

from gw_otel.destination import destination, resource_of
from gw_otel.protobuf import Protobuf
from gw_otel.settings import Otlp, Resource

LOG = logging.getLogger("gw.otel")
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def made(asked=None, environ=None, signal="traces"):
    called = []
    asked = Otlp.model_validate(asked or {})
    environ = {ENDPOINT: "http://c:4318", **(environ or {})}
    found = destination(asked, signal, environ, lambda upstream, grpc: called.append(upstream), {}, LOG)
    return found, called


# --- the URL -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "environ", "url"),
    [
        ({}, {}, "http://c:4318/v1/traces"),
        ({}, {ENDPOINT: "https://c/base/"}, "https://c/base/v1/traces"),
        ({}, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:1/as/it/is"}, "http://t:1/as/it/is"),
        ({}, {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m:1/x"}, "http://c:4318/v1/traces"),
        ({"endpoint": "http://own:1"}, {}, "http://own:1/v1/traces"),
        ({"upstream": "up"}, {}, "/v1/traces"),
    ],
)
def test_the_way_to_the_collector(asked, environ, url):
    found, called = made(asked, environ)
    assert found.url == url
    assert found.name == ("upstream 'up'" if asked.get("upstream") else url)
    assert called == [asked.get("upstream", "")]


@pytest.mark.parametrize(
    ("asked", "environ", "url"),
    [
        ({"upstream": "up"}, {}, ""),
        ({"endpoint": "https://own:4317"}, {}, "https://own:4317"),
        ({}, {ENDPOINT: "http://c:4317/ignored"}, "http://c:4317"),
        ({}, {ENDPOINT: "collector"}, "http://127.0.0.1:4317"),
    ],
)
def test_over_grpc_the_service_is_the_path(asked, environ, url):
    for signal, service in (("traces", "trace.v1.Trace"), ("metrics", "metrics.v1.Metrics"), ("logs", "logs.v1.Logs")):
        found, _ = made({"protocol": "grpc", **asked}, environ, signal)
        assert (found.url, found.grpc) == (f"{url}/opentelemetry.proto.collector.{service}Service/Export", True)
        assert isinstance(found.encoder, Protobuf)
    assert made({}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", **environ})[0].grpc


def test_a_variable_that_is_no_url_is_pointed_out(caplog):
    found, _ = made({}, {ENDPOINT: "collector"})
    assert found.url == "http://127.0.0.1:4318/v1/traces"
    assert caplog.messages == [f"{ENDPOINT} is 'collector', which is no URL such as http://collector:4318"]


# --- the rest ------------------------------------------------------------------------


def test_the_environment_fills_in_what_the_configuration_leaves_out():
    environ = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_HEADERS": "X-Key=a%20b, other=1",
    }
    found, _ = made({}, environ)
    assert (found.encoder.content_type, found.gzip, found.timeout) == ("application/x-protobuf", True, 2.5)
    assert found.headers == (("x-key", "a b"), ("other", "1"))
    asked = {"protocol": "http/json", "compression": "none", "timeout_ms": 10_000, "headers": {"x-key": "own"}}
    found, _ = made(asked, environ)
    assert (found.encoder.content_type, found.gzip, found.timeout) == ("application/json", False, 10)
    assert found.headers == (("x-key", "own"), ("other", "1"))


def test_the_variable_of_a_signal_wins():
    environ = {
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "none",
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "1",
    }
    assert not made({}, environ, "logs")[0].gzip
    assert made({}, environ, "traces")[0].gzip
    assert made({}, environ, "logs")[0].timeout == 10


@pytest.mark.parametrize(
    ("name", "value", "warning"),
    [
        ("PROTOCOL", "thrift", "is 'thrift', which gw does not speak; it speaks http/json and http/protobuf and grpc"),
        ("COMPRESSION", "zstd", "is 'zstd', which gw does not speak; it speaks none and gzip"),
        ("TIMEOUT", "soon", "is 'soon', which is no number of milliseconds; 10000 are used"),
        ("TIMEOUT", "0", "is '0', which is no number of milliseconds; 10000 are used"),
    ],
)
def test_what_the_environment_gets_wrong_is_pointed_out(caplog, name, value, warning):
    found, _ = made({}, {f"OTEL_EXPORTER_OTLP_{name}": value})
    assert (found.encoder.content_type, found.gzip, found.timeout) == ("application/json", False, 10)
    assert caplog.messages == [f"OTEL_EXPORTER_OTLP_{name} {warning}"]


def test_headers_of_the_environment_cannot_break_a_message_and_are_not_logged(caplog):
    found, _ = made({}, {"OTEL_EXPORTER_OTLP_HEADERS": "a=b%0d%0ac,secret,x y=1"})
    assert found.headers == ()
    assert caplog.messages == [
        "OTEL_EXPORTER_OTLP_HEADERS has an item that is not key=value; it is left out",
        "OTEL_EXPORTER_OTLP_HEADERS: a is not a header field; it is left out",
        "OTEL_EXPORTER_OTLP_HEADERS: x y is not a header field; it is left out",
    ]


# --- the resource ----------------------------------------------------------------------


def resource(asked, environ):
    return dict(resource_of(Resource.model_validate(asked), environ, LOG))


def test_without_anything_the_service_is_called_gw_and_nothing_else_is_said():
    assert resource({}, {}) == {"service.name": "gw"}


def test_the_environment_names_the_service_unless_the_configuration_does():
    environ = {"OTEL_SERVICE_NAME": "edge", "OTEL_RESOURCE_ATTRIBUTES": "service.name=other,zone=a%2Cb"}
    assert resource({}, environ) == {"service.name": "edge", "zone": "a,b"}
    assert resource({}, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=other"}) == {"service.name": "other"}
    assert resource({"service_name": "gw", "attributes": {"zone": "c"}}, environ) == {"service.name": "gw", "zone": "c"}


def test_version_and_instance_are_said_only_when_set():
    assert resource({"service_version": "1", "service_instance_id": "a"}, {}) == {
        "service.name": "gw",
        "service.version": "1",
        "service.instance.id": "a",
    }
