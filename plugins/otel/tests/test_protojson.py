"""The JSON encoder: it says what the protobuf encoder says, in the spelling that OTLP gives to JSON."""

from __future__ import annotations

import base64
import json

import pytest
from google.protobuf import json_format
from hypothesis import given, strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from otlp_samples import END

from gw_otel.limits import MAX_KEPT
from gw_otel.protobuf import Protobuf
from gw_otel.protojson import Json
from gw_otel.spans import Span

RESOURCE = [("service.name", "gw"), ("naïve", '"x"')]
IDENTIFIERS = {"traceId", "spanId", "parentSpanId"}


def in_base64(node):
    """Return *node* with identifiers as protobuf's own JSON has them: that is the one difference in the reading."""
    if isinstance(node, list):
        return [in_base64(each) for each in node]
    if isinstance(node, dict):
        return {
            key: base64.b64encode(bytes.fromhex(value)).decode() if key in IDENTIFIERS else in_base64(value)
            for key, value in node.items()
        }
    return node


def read(body, message):
    return json_format.ParseDict(in_base64(json.loads(body)), message())


def both(signal, message, items, encode):
    made = []
    for encoder in (Json(), Protobuf()):
        scopes = {}
        for item in items:
            scopes.setdefault(getattr(item, "scope", ("gw", "")), []).append(encode(encoder, item))
        made.append(encoder.request(signal, RESOURCE, scopes))
    return read(made[0], message), message.FromString(made[1])


def test_spans_say_the_same_as_in_protobuf(spans):
    ours, theirs = both("traces", ExportTraceServiceRequest, spans, lambda encoder, span: encoder.span(span))
    assert ours == theirs


def test_metrics_say_the_same_as_in_protobuf(metrics):
    ours, theirs = both(
        "metrics", ExportMetricsServiceRequest, metrics, lambda encoder, each: encoder.metric(each, END)
    )
    assert ours == theirs


def test_log_records_say_the_same_as_in_protobuf(logs):
    ours, theirs = both("logs", ExportLogsServiceRequest, logs, lambda encoder, log: encoder.log(log))
    assert ours == theirs


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUE = TEXT | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)


@given(st.lists(st.tuples(TEXT, VALUE)), TEXT)
def test_any_attribute_says_the_same_as_in_protobuf(attributes, name):
    span = Span(("s", "1"), name, 2, "1" * 32, "2" * 16, "", "", False, 1, 1, attributes, (), False)
    ours, theirs = both("traces", ExportTraceServiceRequest, [span], lambda encoder, each: encoder.span(each))
    assert ours == theirs


def test_it_is_spelled_as_the_specification_says(spans):
    scopes = {("s", ""): [Json().span(spans[0])]}
    (span,) = json.loads(Json().request("traces", RESOURCE, scopes))["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert span["traceId"] == "0af7651916cd43dd8448eb211c80319c"
    assert (span["kind"], span["status"]) == (2, {"code": 2})
    assert span["startTimeUnixNano"] == "1700000000123456789"
    assert span["traceState"] == "a=1,b=2"
    values = {each["key"]: each["value"] for each in span["attributes"]}
    assert values["large"] == {"intValue": str(2**62)}
    assert values["half"] == {"doubleValue": 0.5}


def test_what_is_remembered_is_bounded():
    encoder = Json()
    for number in range(2 * MAX_KEPT):
        encoder.span(Span(("s", ""), "n", 1, "1" * 32, "2" * 16, "", "", False, 1, 1, [("k", number)], (), False))
    assert len(encoder._kept) <= MAX_KEPT


@pytest.mark.parametrize(
    ("signal", "body", "found"),
    [
        ("traces", b"", (0, "")),
        ("traces", b"{}", (0, "")),
        ("traces", b"[]", (0, "")),
        ("traces", b'{"partialSuccess":{"rejectedSpans":"3","errorMessage":"too old"}}', (3, "too old")),
        ("traces", b'{"partialSuccess":{"rejectedSpans":3}}', (3, "")),
        ("metrics", b'{"partialSuccess":{"rejectedDataPoints":"2"}}', (2, "")),
        ("logs", b'{"partialSuccess":{"rejectedLogRecords":"1"}}', (1, "")),
        ("logs", b'{"partialSuccess":{"rejectedSpans":"1"}}', (0, "")),
        ("logs", b'{"partialSuccess":7}', (0, "")),
    ],
)
def test_a_partial_success_is_read(signal, body, found):
    assert Json().rejected(signal, body) == found
