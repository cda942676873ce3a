"""The plugin in a whole gateway: what upstreams, collectors and scrapers see."""

from __future__ import annotations

import json
import re

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gw.testing import Upstream, in_memory
from gw.testing.gateway import read_answer
from gw.testing.memory import Backlog

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SENT = re.compile(r"00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01")
UP = {"name": "up", "host": "192.0.2.1", "proxy": {"route_prefix": "/"}}


def config(**section):
    return {"upstreams": [UP], "observability": {"enabled": True, **section}}


def pushing(url, **traces):
    return config(traces={"exporter": "otlp_http", "otlp": {"endpoint": url}, **traces})


async def scraped(gateway, path="/metrics"):
    answer = await gateway.get(path)
    assert answer.status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


async def test_an_upstream_gets_the_trace_with_a_span_of_ours():
    upstream = Upstream()
    async with in_memory(config(), upstream) as gateway:
        await gateway.get("/a", {"traceparent": PARENT, "tracestate": "a=1", "uber-trace-id": "x"})
    sent = upstream.asked[0].head.headers
    assert SENT.fullmatch(sent.get("traceparent"))
    assert sent.get("traceparent") != PARENT
    assert sent.get("tracestate") == "a=1"
    assert "uber-trace-id" not in sent


@pytest.mark.parametrize("section", [{"enabled": False}, {"traces": {"enabled": False}}])
async def test_switched_off_it_leaves_trace_headers_alone(section):
    upstream = Upstream()
    async with in_memory(config(**section), upstream) as gateway:
        await gateway.get("/a", {"traceparent": PARENT, "uber-trace-id": "x"})
    sent = upstream.asked[0].head.headers
    assert (sent.get("traceparent"), sent.get("uber-trace-id")) == (PARENT, "x")


async def test_requests_that_come_again_on_a_connection_each_get_a_span_of_their_own():
    upstream = Upstream()
    async with in_memory(config(), upstream) as gateway:
        stream = gateway.connect()
        for _ in range(4):
            stream.write(f"GET /a HTTP/1.1\r\nhost: a\r\ntraceparent: {PARENT}\r\n\r\n".encode())
            assert (await read_answer(stream)).status == 200
    sent = [asked.head.headers.get_all("traceparent") for asked in upstream.asked]
    assert all(len(each) == 1 and SENT.fullmatch(each[0]) for each in sent)
    assert len({each[0] for each in sent}) == 4


async def test_requests_are_scraped_with_what_the_core_counts():
    async with in_memory(config(metrics={"exporter": "prometheus_pull"}), Upstream()) as gateway:
        for _ in range(3):
            await gateway.get("/a")
        found = await scraped(gateway)
    labels = (
        ("http_request_method", "GET"),
        ("http_response_status_code", "200"),
        ("http_route", "/*proxy_path"),
        ("network_protocol_version", "1.1"),
    )
    assert found["http_server_request_duration_seconds_count", labels] == 3
    assert found["gw_upstream_pool_connections_idle", (("gw_upstream_service", "up"),)] == 1
    assert found["gw_net_connections_accepted_total", ()] == 4
    assert found["target_info", (("service_name", "gw"),)] == 1


async def test_the_endpoint_is_not_there_unless_asked_and_404_when_off():
    upstream = Upstream()
    async with in_memory(config(), upstream) as gateway:
        await gateway.get("/metrics")
    assert len(upstream.asked) == 1
    section = {"exporter": "prometheus_pull", "enabled": False, "prometheus": {"path": "/internal/m"}}
    async with in_memory(config(metrics=section), upstream) as gateway:
        answer = await gateway.get("/internal/m")
    assert (answer.status, answer.body, len(upstream.asked)) == (404, b"Not Found", 1)


async def test_a_request_that_no_route_takes_is_measured_without_a_route():
    section = config(metrics={"exporter": "prometheus_pull"})
    section["upstreams"][0] = {**UP, "proxy": {"route_prefix": "/api"}}
    async with in_memory(section, Upstream()) as gateway:
        await gateway.get("/nothing")
        found = await scraped(gateway)
    labels = (
        ("http_request_method", "GET"),
        ("http_response_status_code", "404"),
        ("network_protocol_version", "1.1"),
    )
    assert found["http_server_request_duration_seconds_count", labels] == 1


def spans_of(collector):
    found = []
    for path, _, body in collector.requests:
        assert path == "/v1/traces"
        (resource,) = json.loads(body)["resourceSpans"]
        found += [span for scope in resource["scopeSpans"] for span in scope["spans"]]
    return found


async def test_spans_are_sent_when_the_gateway_ends(collecting):
    async with collecting() as collector:
        async with in_memory(pushing(collector.url), Upstream()) as gateway:
            await gateway.get("/a")
        server, client = sorted(spans_of(collector), key=lambda span: span["kind"])
        assert (server["name"], client["name"]) == ("GET /*proxy_path", "HTTP GET")
        assert client["parentSpanId"] == server["spanId"]


async def test_a_request_that_is_cut_off_at_the_end_has_its_spans_sent_once(collecting):
    async with collecting() as collector:
        never = Backlog()
        settings = pushing(collector.url) | {"shutdown_drain_timeout_sec": 1}
        async with in_memory(settings, never) as gateway:
            stream = gateway.connect()
            stream.write(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
            await never.accept()
            await gateway.network.settle()
        spans = spans_of(collector)
        assert sorted(span["name"] for span in spans) == ["GET /*proxy_path", "HTTP GET"]
        assert {span["status"]["code"] for span in spans} == {2}


async def test_an_upstreams_retries_are_attempts_below_one_request(collecting):
    async with collecting() as collector:
        settings = pushing(collector.url)
        settings["observability"]["metrics"] = {"exporter": "prometheus_pull"}
        settings["upstreams"] = [
            {**UP, "proxy": {"route_prefix": "/", "retry": {"max_retries": 3, "retry_on_5xx": True}}}
        ]
        busy = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
        upstream = Upstream(busy, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        async with in_memory(settings, upstream) as gateway:
            stream = gateway.connect()
            stream.write(b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n")
            await gateway.network.advance(5)
            assert (await read_answer(stream)).status == 200
            found = await scraped(gateway)
        labels = (("gw_upstream_service", "up"), ("reason", "response_5xx"))
        assert found["gw_upstream_retries_total", labels] == 1
        server, *clients = sorted(spans_of(collector), key=lambda span: (span["kind"], span["startTimeUnixNano"]))
        assert [span["status"] for span in (server, *clients)] == [{}, {"code": 2}, {}]
        assert {span["parentSpanId"] for span in clients} == {server["spanId"]}
        sent = [asked.head.headers.get("traceparent").split("-")[2] for asked in upstream.asked]
        assert sent == [span["spanId"] for span in clients]


async def test_what_is_cut_off_when_the_time_to_drain_is_over_says_so(collecting):
    async with collecting() as collector:
        held = Backlog()
        async with in_memory(pushing(collector.url) | {"shutdown_drain_timeout_sec": 0}, held) as gateway:
            stream = gateway.connect()
            stream.write(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
            await held.accept()
            await gateway.network.settle()
            gateway.gateway.stop()
            await collector.wait_for(1)
        errors = {
            each["value"]["stringValue"]
            for span in spans_of(collector)
            for each in span["attributes"]
            if each["key"] == "error.type"
        }
        assert errors == {"shutdown"}


async def test_what_is_no_request_is_counted():
    async with in_memory(config(metrics={"exporter": "prometheus_pull"}), Upstream()) as gateway:
        assert (await gateway.request(b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")).status == 400
        found = await scraped(gateway)
    assert found["gw_http_requests_refused_total", (("reason", "gw.bad_request"),)] == 1


async def test_health_checks_and_scrapes_are_not_sampled(collecting):
    async with collecting() as collector:
        settings = pushing(collector.url)
        settings["observability"]["metrics"] = {"exporter": "prometheus_pull"}
        async with in_memory(settings, Upstream()) as gateway:
            for path in ("/health", "/stats", "/metrics", "/health/deep"):
                await gateway.get(path, {"traceparent": PARENT})
        assert collector.requests == []


async def test_all_signals_go_to_one_collector(collecting):
    async with collecting() as collector:
        otlp = {"exporter": "otlp_http", "otlp": {"endpoint": collector.url, "protocol": "http/protobuf"}}
        async with in_memory(config(traces=otlp, metrics=otlp, logs=otlp), Upstream()) as gateway:
            await gateway.get("/a")
        assert sorted(path for path, _, _ in collector.requests) == ["/v1/logs", "/v1/metrics", "/v1/traces"]
        assert {headers["content-type"] for _, headers, _ in collector.requests} == {"application/x-protobuf"}


async def test_a_collector_is_reached_as_an_upstream(collecting):
    async with collecting() as collector:
        settings = config(traces={"exporter": "otlp_http", "otlp": {"upstream": "collector"}})
        settings["upstreams"] = [UP, {"name": "collector", "host": "127.0.0.1", "port": collector.port}]
        async with in_memory(settings, Upstream()) as gateway:
            await gateway.get("/a")
        ((path, headers, _),) = collector.requests
        assert (path, headers["host"]) == ("/v1/traces", f"127.0.0.1:{collector.port}")


async def test_a_collector_that_never_answers_delays_no_request_and_no_shutdown_for_long(collecting):
    async with collecting() as collector:
        collector.answers = [None]
        settings = pushing(collector.url, batch={"schedule_delay_ms": 1}) | {"shutdown_drain_timeout_sec": 0}
        async with in_memory(settings, Upstream()) as gateway:
            for _ in range(20):
                assert (await gateway.get("/a")).status == 200
            await collector.wait_for(1)


async def test_a_client_that_leaves_is_seen_as_that(collecting):
    async with collecting() as collector:
        never = Backlog()
        async with in_memory(pushing(collector.url), never) as gateway:
            stream = gateway.connect()
            stream.write(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
            await never.accept()
            stream.abort()
            await gateway.network.settle()
        server = next(span for span in spans_of(collector) if span["kind"] == 2)
        errors = [each["value"] for each in server["attributes"] if each["key"] == "error.type"]
        assert errors == [{"stringValue": "client_disconnect"}]


async def test_what_is_under_way_is_counted_while_it_is():
    held = Backlog()
    async with in_memory(config(metrics={"exporter": "prometheus_pull"}), held) as gateway:
        stream = gateway.connect()
        stream.write(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
        peer = await held.accept()
        await peer.read_until(b"\r\n\r\n")
        labels = (("http_request_method", "GET"), ("http_route", "/*proxy_path"))
        found = await scraped(gateway)
        assert found["http_server_active_requests", labels] == 1
        assert found["http_client_active_requests", (("gw_upstream_service", "up"),)] == 1
        peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        assert (await read_answer(stream)).status == 200
        await gateway.network.settle()
        found = await scraped(gateway)
        assert found["http_server_active_requests", labels] == 0
        assert found["http_client_active_requests", (("gw_upstream_service", "up"),)] == 0


async def test_the_access_log_has_the_trace(tmp_path):
    log = tmp_path / "access.log"
    settings = config() | {"log": {"access": {"enabled": True, "file": str(log), "format": "json"}}}
    async with in_memory(settings, Upstream()) as gateway:
        await gateway.get("/a", {"traceparent": PARENT})
    assert json.loads(await anyio.Path(log).read_text())["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
