"""Exporters against a collector that really listens: slow, down, busy, choosy. Memory stays bounded, drops are counted."""

from __future__ import annotations

import json
import logging
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anyio
import pytest

from gw import Answer, Caller, Headers
from gw.figures import Figures
from gw_otel.destination import Destination
from gw_otel.export import LogBatches, Push, Readings, SpanBatches, _pause
from gw_otel.instruments import Instruments
from gw_otel.limits import MAX_RETRY_AFTER
from gw_otel.protobuf import Protobuf
from gw_otel.protojson import Json
from gw_otel.settings import Retries

LOG = logging.getLogger("gw.otel")
QUICK = Retries(max_attempts=3, initial_backoff_ms=1, max_backoff_ms=1)


class Bench:
    """A queue of spans, what it sends to, and what it counts."""

    def __init__(self, url, *, retries=QUICK, most=8, at_once=4, delay=60.0, timeout=5.0, encoder=None, gzip=False):
        self.figures = Figures()
        instruments = Instruments(self.figures, {})
        self.caller = Caller()
        to = Destination(self.caller, f"{url}/v1/traces", "it", (("x-key", "k"),), timeout, encoder or Json(), gzip)
        resource = [("service.name", "gw")]
        self.push = Push("traces", to, resource, retries, instruments.export_duration.at("traces"), LOG)
        self.batches = SpanBatches(
            self.push,
            most=most,
            at_once=at_once,
            delay=delay,
            dropped=instruments.dropped_queue_full,
            exported=instruments.exported,
        )

    @asynccontextmanager
    async def running(self):
        """Run it; at the end it is closed, and what is left is sent."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.batches.run)
                yield
                self.batches.close()
        finally:
            with anyio.CancelScope(shield=True):
                await self.caller.aclose()

    def count(self, name):
        family = next(each for each in self.figures if each.name == name)
        return {labels[0] if labels else "": series.value for labels, series in family.rows().items()}

    @property
    def exported(self):
        return self.count("gw.otel.spans.exported")

    @property
    def dropped(self):
        return self.count("gw.otel.spans.dropped_queue_full")[""]


def names(request):
    """Return the names of the spans in a JSON export, by scope."""
    (resource,) = json.loads(request[2])["resourceSpans"]
    return {scope["scope"]["name"]: [span["name"] for span in scope["spans"]] for scope in resource["scopeSpans"]}


async def test_a_full_batch_is_sent_at_once_and_the_rest_at_the_end(collecting, spans):
    async with collecting() as collector:
        bench = Bench(collector.url)
        async with bench.running():
            for span in [*spans, *spans]:
                bench.batches.put(span)
            await collector.wait_for(1)
        path, headers, _ = collector.requests[0]
        assert path == "/v1/traces"
        assert headers["content-type"] == "application/json"
        assert headers["x-key"] == "k"
        assert [names(request) for request in collector.requests] == [
            {"gw.http.server": ["GET /users/:id"] * 2, "gw.gateway.http": ["HTTP GET", ""]},
            {"gw.gateway.http": ["HTTP GET", ""]},
        ]
        assert bench.exported == {"success": 6}
        assert bench.dropped == 0


async def test_fewer_are_sent_when_they_have_waited(collecting, spans):
    async with collecting() as collector:
        bench = Bench(collector.url, delay=0.01)
        async with bench.running():
            bench.batches.put(spans[1])
            await collector.wait_for(1)
            bench.batches.put(spans[1])
            await collector.wait_for(2)
        assert bench.exported == {"success": 2}


@pytest.mark.parametrize(
    ("encoder", "content_type"), [(Json, "application/json"), (Protobuf, "application/x-protobuf")]
)
async def test_bodies_are_compressed_when_asked_whatever_their_size(collecting, spans, encoder, content_type):
    async with collecting() as collector:
        bench = Bench(collector.url, encoder=encoder(), gzip=True, most=5000, at_once=1000)
        async with bench.running():
            for _ in range(1001):
                bench.batches.put(spans[0])
        assert [headers["content-encoding"] for _, headers, _ in collector.requests] == ["gzip"] * 2
        assert [headers["content-type"] for _, headers, _ in collector.requests] == [content_type] * 2
        assert bench.exported == {"success": 1001}


async def test_a_collector_that_is_down_costs_the_oldest_spans_and_no_memory(spans, caplog):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    bench = Bench(url, delay=0.001)
    async with bench.running():
        for _ in range(100):
            for span in spans:
                bench.batches.put(span)
                assert len(bench.batches) <= 8
            await anyio.lowlevel.checkpoint()
    sent = sum(bench.exported.values())
    assert set(bench.exported) == {"retryable_fail"}
    assert bench.dropped + sent == 300
    assert len(bench.batches) == 0
    (record,) = [record for record in caplog.records if record.name == "gw.otel"]
    assert record.getMessage().startswith("export of traces to it fails: cannot connect")


async def test_a_collector_that_never_answers_is_given_up_and_blocks_nothing(collecting, spans):
    async with collecting() as collector:
        collector.answers = [None]
        bench = Bench(collector.url, timeout=0.02, retries=Retries(max_attempts=0))
        async with bench.running():
            for _ in range(10):
                for span in spans:
                    bench.batches.put(span)
            await collector.wait_for(1)
        assert bench.exported == {"retryable_fail": sum(bench.exported.values())}
        assert bench.dropped + sum(bench.exported.values()) == 30


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_busy_collector_is_asked_again(collecting, spans, status):
    async with collecting() as collector:
        collector.answers = [(status, (), b""), (status, (), b""), (200, (), b"")]
        bench = Bench(collector.url)
        async with bench.running():
            for span in (*spans, spans[1]):
                bench.batches.put(span)
            await collector.wait_for(3)
        assert len({body for _, _, body in collector.requests}) == 1
        assert bench.exported == {"success": 4}


async def test_after_the_last_attempt_a_batch_is_given_up(collecting, spans, caplog):
    async with collecting() as collector:
        collector.answers = [(503, (), b"")]
        bench = Bench(collector.url)
        async with bench.running():
            for span in (*spans, spans[1]):
                bench.batches.put(span)
            await collector.wait_for(3)
        assert bench.exported == {"retryable_fail": 4}
        assert [record.getMessage() for record in caplog.records if record.name == "gw.otel"] == [
            "export of traces to it fails: status 503"
        ]


@pytest.mark.parametrize("status", [301, 400, 401, 404, 413, 500])
async def test_what_will_not_get_better_is_not_sent_again(collecting, spans, status):
    async with collecting() as collector:
        collector.answers = [(status, (), b"")]
        bench = Bench(collector.url)
        async with bench.running():
            bench.batches.put(spans[1])
        assert len(collector.requests) == 1
        assert bench.exported == {"non_retryable_fail": 1}


async def test_a_partial_success_is_counted_as_what_it_is(collecting, spans, caplog):
    async with collecting() as collector:
        collector.answers = [
            (200, (), b'{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}'),
            (200, (), b""),
        ]
        caplog.set_level(logging.INFO)
        bench = Bench(collector.url, at_once=3)
        async with bench.running():
            for span in [*spans, *spans]:
                bench.batches.put(span)
            await collector.wait_for(2)
        assert bench.exported == {"success": 5, "non_retryable_fail": 1}
        assert [record.getMessage() for record in caplog.records if record.name == "gw.otel"] == [
            "export of traces to it fails: 1 rejected: 'too old'",
            "export of traces to it works again",
        ]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 60_000,
        b"\xff",
        b'{"partialSuccess":{"rejectedSpans":"many"}}',
        b'{"partialSuccess":{"rejectedSpans":1e999}}',
    ],
)
async def test_an_answer_that_cannot_be_read_is_a_success_as_its_status_says(collecting, spans, body):
    async with collecting() as collector:
        collector.answers = [(200, (), body)]
        bench = Bench(collector.url)
        async with bench.running():
            bench.batches.put(spans[1])
        assert bench.exported == {"success": 1}


async def test_an_answer_without_end_is_cut_off(collecting, spans):
    async with collecting() as collector:
        collector.answers = [(200, (), b"x" * 100_000)]
        bench = Bench(collector.url)
        async with bench.running():
            bench.batches.put(spans[1])
        assert len(collector.requests) == 1
        assert bench.exported == {"non_retryable_fail": 1}


async def test_a_wait_for_a_better_moment_ends_when_the_gateway_does(collecting, spans):
    async with collecting() as collector:
        collector.answers = [(429, (("retry-after", "200"),), b""), (200, (), b"")]
        bench = Bench(collector.url, retries=Retries())
        async with bench.running():
            for span in (*spans, spans[1]):
                bench.batches.put(span)
            await collector.wait_for(1)
        assert len(collector.requests) == 2
        assert bench.exported == {"success": 4}


async def test_what_cannot_be_sent_before_the_end_is_counted_as_dropped(collecting, spans):
    async with collecting() as collector:
        collector.answers = [None]
        bench = Bench(collector.url)
        with anyio.CancelScope() as scope:
            async with bench.running():
                for span in (*spans, *spans):
                    bench.batches.put(span)
                await collector.wait_for(1)
                scope.cancel()  # as the gateway does when the time to drain is over
        assert bench.exported == {"retryable_fail": 4}
        assert bench.dropped == 2


async def test_at_the_end_one_failure_is_enough(collecting, spans):
    async with collecting() as collector:
        collector.answers = [(503, (), b"")]
        bench = Bench(collector.url, at_once=2)
        async with bench.running():
            for span in (*spans, *spans):
                bench.batches.put(span)
            bench.batches.close()
        assert len(collector.requests) == 1
        assert (bench.exported, bench.dropped) == ({"retryable_fail": 2}, 4)


def answer(retry_after):
    return Answer(429, Headers.of([("retry-after", retry_after)]), b"")


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        ("100000", MAX_RETRY_AFTER),
        ("9" * 400, MAX_RETRY_AFTER),
        ("-1", 0),
        ("soon", 0),
        ("1.5", 0),
        ("٣", 0),
    ],
)
def test_retry_after_is_honoured_within_reason(said, seconds):
    held = Answer(429, Headers([(b"retry-after", said.encode())]), b"")
    assert _pause(held) == seconds


def test_retry_after_may_be_a_date():
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < _pause(answer(format_datetime(later, usegmt=True))) <= 100
    assert _pause(answer("Sun, 06 Nov 1994 08:49:37 GMT")) == 0
    assert _pause(Answer(429, Headers(), b"")) == 0


async def test_log_records_go_the_same_way(collecting, logs):
    async with collecting() as collector:
        bench = Bench(collector.url)
        bench.push.signal = "logs"
        instruments = Instruments(bench.figures, {})
        queue = LogBatches(
            bench.push,
            most=10,
            at_once=2,
            delay=60,
            dropped=instruments.logs_dropped,
            exported=instruments.logs_exported,
        )
        bench.batches = queue
        async with bench.running():
            for log in logs:
                queue.put(log)
        (resource,) = json.loads(collector.requests[0][2])["resourceLogs"]
        bodies = [each["body"]["stringValue"] for each in resource["scopeLogs"][0]["logRecords"]]
        assert bodies == ["GET / 200", "GET / -"]
        assert bench.count("gw.otel.logs.exported") == {"success": 2}


# --- metrics -----------------------------------------------------------------------


class Reading(Bench):
    def __init__(self, url, *, interval=60.0, timeout=5.0):
        super().__init__(url)
        instruments = Instruments(self.figures, {})
        self.push.signal = "metrics"
        self.batches = Readings(
            self.push,
            self.figures,
            interval=interval,
            timeout=timeout,
            skipped=instruments.metrics_skipped,
            killed=instruments.metrics_killed,
        )


async def test_metrics_are_pushed_again_and_again_and_once_more_at_the_end(collecting):
    async with collecting() as collector:
        reading = Reading(collector.url, interval=0.01)
        counter = reading.figures.counter("gw.asked", "{requests}", "Requests").at()
        counter.value = 1
        async with reading.running():
            await collector.wait_for(2)
            counter.value = 5
        said = []
        for _, _, body in collector.requests:
            (resource,) = json.loads(body)["resourceMetrics"]
            (scope,) = resource["scopeMetrics"]
            found = {metric["name"]: metric for metric in scope["metrics"]}
            said.append(found["gw.asked"]["sum"]["dataPoints"][0]["asDouble"])
        assert said[0] == 1
        assert said[-1] == 5
        assert reading.count("gw.otel.metrics_export_skipped") == {"": 0}


async def test_a_push_that_fails_or_takes_too_long_is_counted(collecting):
    async with collecting() as collector:
        collector.answers = [(400, (), b""), None]
        reading = Reading(collector.url, interval=0.001, timeout=0.05)
        async with reading.running():
            await collector.wait_for(2)
        assert reading.count("gw.otel.metrics_export_skipped") == {"": 1}
        assert reading.count("gw.otel.snapshots_killed_on_timeout")[""] >= 1
