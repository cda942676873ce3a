"""OTLP over gRPC: what a collector's answers mean, read by hand, and an exporter that gets one after the other."""

from __future__ import annotations

import logging
from base64 import b64encode
from contextlib import asynccontextmanager

import anyio
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from gw import CallFailed, GrpcAnswer, Headers
from gw.figures import Figures
from gw.testing import PATIENCE
from gw_otel.destination import Destination
from gw_otel.export import Push, SpanBatches
from gw_otel.instruments import Instruments
from gw_otel.protobuf import Protobuf
from gw_otel.rpc import METHODS, asked_pause, may_be_sent_again
from gw_otel.settings import Retries

LOG = logging.getLogger("gw.otel")
RETRY_INFO = b"type.googleapis.com/google.rpc.RetryInfo"


def sized(field, data):
    return bytes((field << 3 | 2, len(data))) + data


def details(delay, kind=RETRY_INFO):
    """Return the trailer of a ``google.rpc.Status`` with a RetryInfo; *delay* is an encoded Duration."""
    status = b"\x08\x08" + sized(2, b"full") + sized(3, sized(1, kind) + sized(2, sized(1, delay)))
    return b64encode(status).rstrip(b"=")


def answered(status, trailer=None, body=b"", message="no"):
    lines = [] if trailer is None else [(b"grpc-status-details-bin", trailer)]
    return GrpcAnswer(status, message, body, Headers(lines))


@pytest.mark.parametrize("status", range(17))
def test_what_the_specification_calls_retryable_is_sent_again(status):
    assert may_be_sent_again(answered(status)) == (status in {1, 4, 10, 11, 14, 15})
    assert may_be_sent_again(answered(status, details(b"\x08\x03"))) == (status in {1, 4, 8, 10, 11, 14, 15})


@pytest.mark.parametrize(
    ("trailer", "pause"),
    [
        (None, 0),
        (details(b"\x08\x03"), 3),
        (details(b"\x08\x01\x10\x80\xca\xb5\xee\x01"), 1.5),
        (details(b""), 0),
        (details(b"\x08\xff\xff\xff\xff\x0f"), 300),
        (details(b"\x08\x03", b"type.googleapis.com/google.rpc.DebugInfo"), 0),
        (b"!", 0),
        (b64encode(b"\x1a\xff"), 0),
        (b64encode(sized(3, sized(1, RETRY_INFO) + sized(2, b"\x08\x01"))), 0),
        (b64encode(sized(3, b"\xff" * 20)), 0),
    ],
)
def test_the_pause_that_is_asked_for_is_read_and_bounded(trailer, pause):
    assert asked_pause(answered(14, trailer)) == pause


class Scripted:
    """A caller whose answers are given, the last one again and again."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    async def unary(self, url, message, *, headers, compressed, timeout, most):  # noqa: ASYNC109  # as the real one
        self.calls.append((url, message, dict(headers), compressed))
        await anyio.lowlevel.checkpoint()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@asynccontextmanager
async def exporting(caller, *, gzip=False):
    figures = Figures()
    instruments = Instruments(figures, {})
    to = Destination(caller, METHODS["traces"], "it", (("x-key", "k"),), 5.0, Protobuf(), gzip, grpc=True)
    retries = Retries(max_attempts=3, initial_backoff_ms=1, max_backoff_ms=1)
    push = Push("traces", to, [("service.name", "gw")], retries, instruments.export_duration.at("traces"), LOG)
    batches = SpanBatches(
        push, most=8, at_once=4, delay=60.0, dropped=instruments.dropped_queue_full, exported=instruments.exported
    )
    exported = {}
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batches.run)
            yield batches, exported
            batches.close()
    exported.update({labels[0]: series.value for labels, series in instruments.exported.rows().items()})


@pytest.mark.parametrize("gzip", [False, True])
async def test_a_batch_is_one_message(spans, gzip):
    caller = Scripted(answered(0))
    async with exporting(caller, gzip=gzip) as (batches, exported):
        for span in spans:
            batches.put(span)
    ((url, message, headers, compressed),) = caller.calls
    assert url == "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    assert compressed == gzip
    assert headers == {"x-key": "k", "user-agent": "gw-otel", **({"grpc-encoding": "gzip"} if gzip else {})}
    assert message.startswith(b"\x1f\x8b") == gzip
    if not gzip:
        assert len(ExportTraceServiceRequest.FromString(message).resource_spans) == 1
    assert exported == {"success": len(spans)}


@pytest.mark.parametrize(
    ("answers", "calls", "outcome"),
    [
        ([answered(14), answered(0)], 2, {"success": 2}),
        ([CallFailed("connect", "nobody is there"), answered(0)], 2, {"success": 2}),
        ([answered(8, details(b"")), answered(0)], 2, {"success": 2}),
        ([answered(8)], 1, {"non_retryable_fail": 2}),
        ([answered(16)], 1, {"non_retryable_fail": 2}),
        ([CallFailed("too_large", "much")], 1, {"non_retryable_fail": 2}),
        ([answered(0, body=ExportTraceServiceResponse(partial_success=ExportTracePartialSuccess(rejected_spans=1, error_message="bad")).SerializeToString())], 1, {"success": 1, "non_retryable_fail": 1}),
        ([answered(0, body=b"\xff")], 1, {"success": 2}),
    ],
)  # fmt: skip
async def test_what_becomes_of_it_is_counted(spans, answers, calls, outcome):
    caller = Scripted(*answers)
    async with exporting(caller) as (batches, exported):
        for span in spans[:2]:
            batches.put(span)
        while len(batches) or len(caller.calls) < calls:
            batches._is_due.set()
            await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
    assert (len(caller.calls), exported) == (calls, outcome)


async def test_a_failure_names_the_status_once(spans, caplog):
    caplog.set_level(logging.INFO)
    caller = Scripted(answered(16, message="who are you?"))
    async with exporting(caller) as (batches, _):
        for span in spans[:2]:
            batches.put(span)
    assert caplog.messages == ["export of traces to it fails: gRPC status 16: 'who are you?'"]
