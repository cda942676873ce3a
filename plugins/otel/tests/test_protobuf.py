"""The protobuf encoder: what Google's library reads is what we meant, and what OpenTelemetry's SDK would have sent."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Meant
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from otlp_samples import END, START, VALUES

from gw_otel.limits import MAX_KEPT
from gw_otel.protobuf import Protobuf
from gw_otel.spans import CLIENT, SERVER, Span

RESOURCE = [("service.name", "gw"), ("service.version", "1")]


def sent(items, encoded, signal, message):
    """Return *items* as they come out of the message of an export, by scope."""
    scopes = {}
    for item in items:
        scopes.setdefault(getattr(item, "scope", ("gw", "")), []).append(encoded(item))
    return message.FromString(Protobuf().request(signal, RESOURCE, scopes))


def as_the_sdk_has_it(span):
    """Return the SDK's span for one of ours."""

    def context(span_id, *, is_remote):
        state = TraceState(tuple(pair.split("=") for pair in span.state.split(","))) if span.state else None
        return SpanContext(int(span.trace_id, 16), int(span_id, 16), is_remote, TraceFlags(span.sampled), state)

    return ReadableSpan(
        span.name,
        context(span.span_id, is_remote=False),
        context(span.parent_id, is_remote=span.kind == SERVER) if span.parent_id else None,
        Resource(dict(RESOURCE)),
        dict(span.attributes),
        [Event(name, dict(attributes), at) for at, name, attributes in span.events],
        kind={SERVER: SpanKind.SERVER, CLIENT: SpanKind.CLIENT}.get(span.kind, SpanKind.INTERNAL),
        status=Status(StatusCode.ERROR) if span.failed else Status(),
        start_time=span.start,
        end_time=span.end,
        instrumentation_scope=InstrumentationScope(*span.scope),
    )


def test_spans_are_what_the_sdk_would_have_sent(spans):
    spans[2].attributes = [("k", "v")]
    spans[2].dropped_attributes = spans[2].dropped_events = 0
    ours = sent(spans, Protobuf().span, "traces", ExportTraceServiceRequest)
    theirs = encode_spans([as_the_sdk_has_it(span) for span in spans])
    for message in (ours, theirs):
        for group in message.resource_spans[0].scope_spans:
            for each in group.spans:
                each.flags &= 0x300  # we also say whether it was sampled, as the protocol asks
    assert ours == theirs


def test_the_flags_say_what_was_sampled_and_whose_parent_was_elsewhere(spans):
    message = sent(spans, Protobuf().span, "traces", ExportTraceServiceRequest)
    flags = {each.name: each.flags for group in message.resource_spans[0].scope_spans for each in group.spans}
    assert flags == {"GET /users/:id": 0x301, "HTTP GET": 0x100, "": 0x101}


def test_what_was_dropped_is_said(spans):
    message = sent(spans[2:], Protobuf().span, "traces", ExportTraceServiceRequest)
    (span,) = message.resource_spans[0].scope_spans[0].spans
    assert (span.dropped_attributes_count, span.dropped_events_count) == (7, 200)
    assert [(event.time_unix_nano, event.name) for event in span.events] == [(START, "begun"), (END, "over")]


def value_of(attribute):
    kind = attribute.value.WhichOneof("value")
    return attribute.key, getattr(attribute.value, kind)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUE = TEXT | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)


@given(st.lists(st.tuples(TEXT, VALUE)), TEXT, st.integers(0, 2**63), st.integers(1, 5), st.booleans())
def test_any_attribute_comes_out_as_it_went_in(attributes, name, at, kind, failed):
    span = Span(("s", "1"), name, kind, "1" * 32, "2" * 16, "", "", False, at, at, attributes, (), failed)
    message = sent([span], Protobuf().span, "traces", ExportTraceServiceRequest)
    (read,) = message.resource_spans[0].scope_spans[0].spans
    assert [value_of(each) for each in read.attributes] == attributes
    assert [value_of(each)[1].__class__ for each in read.attributes] == [value.__class__ for _, value in attributes]
    assert (read.name, read.kind, read.start_time_unix_nano, read.status.code) == (name, kind, at, 2 if failed else 0)


def test_what_is_remembered_is_bounded_and_does_not_mix_values_that_are_equal():
    encoder = Protobuf()
    for value in (1, True, 1.0, "1", 0, False, 0.0):
        span = Span(("s", ""), "n", 1, "1" * 32, "2" * 16, "", "", False, 1, 1, [("k", value)] * 2, (), False)
        (read,) = Meant.FromString(encoder.span(span)[2:]).attributes[:1]
        assert value_of(read) == ("k", value)
        assert value_of(read)[1].__class__ is value.__class__
    for number in range(2 * MAX_KEPT):
        encoder.span(
            Span(("s", ""), f"n{number}", 1, "1" * 32, "2" * 16, "", "", False, 1, 1, [(f"k{number}", 1)], (), False)
        )
    assert max(len(encoder._kept), len(encoder._keys), len(encoder._names)) <= MAX_KEPT


def test_metrics_are_cumulative_since_they_began(metrics):
    message = sent(metrics, lambda metric: Protobuf().metric(metric, END), "metrics", ExportMetricsServiceRequest)
    asked, held, took, never = message.resource_metrics[0].scope_metrics[0].metrics
    assert (asked.name, asked.unit, asked.description) == ("gw.asked", "{requests}", "Requests")
    assert (asked.sum.aggregation_temporality, asked.sum.is_monotonic) == (2, True)
    assert [(point.as_double, [value_of(each) for each in point.attributes]) for point in asked.sum.data_points] == [
        (7, [("zone", "a")]),
        (2.5, []),
    ]
    assert {(point.start_time_unix_nano, point.time_unix_nano) for point in asked.sum.data_points} == {(START, END)}
    assert (held.sum.is_monotonic, held.sum.data_points[0].as_double) == (False, -3)
    assert took.histogram.aggregation_temporality == 2
    point, empty = took.histogram.data_points
    assert (point.count, point.sum, list(point.bucket_counts), list(point.explicit_bounds)) == (
        7,
        3.5,
        [1, 2, 0, 4],
        [0.1, 1, 10],
    )
    assert (point.start_time_unix_nano, point.time_unix_nano) == (START, END)
    assert [value_of(each) for each in point.attributes] == [("http.request.method", "GET"), ("code", "200")]
    (exemplar,) = point.exemplars
    assert (exemplar.as_double, exemplar.time_unix_nano) == (0.25, END)
    assert exemplar.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert exemplar.span_id.hex() == "00f067aa0ba902b7"
    assert (empty.count, len(empty.exemplars)) == (0, 0)
    assert len(never.sum.data_points) == 0


def test_log_records_carry_the_trace(logs):
    message = sent(logs, Protobuf().log, "logs", ExportLogsServiceRequest)
    one, other = message.resource_logs[0].scope_logs[0].log_records
    assert (one.time_unix_nano, one.observed_time_unix_nano, one.severity_number) == (START, START, 9)
    assert (one.body.string_value, one.flags) == ("GET / 200", 1)
    assert (one.trace_id.hex(), one.span_id.hex()) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert [value_of(each) for each in one.attributes] == VALUES
    assert (other.trace_id, other.span_id, other.body.string_value) == (b"", b"", "GET / -")


@pytest.mark.parametrize(("rejected", "message"), [(3, "too old"), (0, "a warning"), (2**40, ""), (0, "")])
def test_a_partial_success_is_read(rejected, message):
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = rejected
    answer.partial_success.error_message = message
    assert Protobuf().rejected("traces", answer.SerializeToString()) == (rejected, message)
    assert Protobuf().rejected("traces", b"") == (0, "")


@given(st.binary(max_size=64))
def test_an_answer_that_is_none_is_refused_and_nothing_worse(data):
    try:
        rejected, message = Protobuf().rejected("traces", data)
    except ValueError:
        return
    assert isinstance(rejected, int)
    assert isinstance(message, str)
