"""Telemetry to those who take it: a real Prometheus that scrapes, promtool that finds faults, a collector in a thread."""

from __future__ import annotations

import functools
import gzip
import http.client
import json
import subprocess
import threading
import time
import urllib.request
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from certificates import Authority
from conftest import to
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from started import Started, free_port, until

from gw.testing import PATIENCE

ACCEPT = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"


def get(port, path, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


class Collector(ThreadingHTTPServer):
    """Takes what is pushed."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Taking)
        self.taken = []
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        self.thread.join(PATIENCE)


class Taking(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        self.server.taken.append((self.path, body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def scraped(**section):
    return {"enabled": True, "metrics": {"exporter": "prometheus_pull"}, **section}


@pytest.mark.parametrize("accept", ["", ACCEPT], ids=["text", "openmetrics"])
def test_promtool_finds_no_fault(serve, echo, peer, accept):
    promtool = peer("promtool")
    gateway = serve(to(echo) | {"observability": scraped()})
    for path in ("/echo", "/status/503", "/nothing"):
        get(gateway.port, path)
    status, headers, body = get(gateway.port, "/metrics", {"accept": accept})
    assert status == 200
    assert headers["content-type"].startswith("application/openmetrics-text" if accept else "text/plain")
    if accept:
        return  # promtool reads the older format only; Prometheus itself reads the other, below
    done = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, "", "")


def test_prometheus_scrapes_and_finds_what_was_counted(serve, echo, peer, tmp_path):
    program = peer("prometheus")
    gateway = serve(to(echo) | {"observability": scraped(traces={"sampler": {"type": "always_on"}})})
    for _ in range(7):
        assert get(gateway.port, "/echo")[0] == 200
    configuration = tmp_path / "prometheus.yml"
    job = {
        "job_name": "gw",
        "scrape_interval": "1s",
        "static_configs": [{"targets": [f"127.0.0.1:{gateway.port}"]}],
    }
    configuration.write_text(
        json.dumps({"global": {"scrape_timeout": "1s", "scrape_interval": "1s"}, "scrape_configs": [job]})
    )
    port = free_port()
    prometheus = Started(
        [
            program,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
        ],
        may_fail=True,
    )
    try:
        prometheus.wait_for("Server is ready to receive web requests")
        wanted = 'http_server_request_duration_seconds_count{http_response_status_code="200",http_route="/*proxy_path"}'

        def found():
            query = urllib.request.quote(wanted)
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/api/v1/query?query={query}", timeout=PATIENCE
            ) as answer:
                return [float(each["value"][1]) for each in json.load(answer)["data"]["result"]]

        until(lambda: found() == [7.0], "Prometheus has the seven requests")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/targets", timeout=PATIENCE) as answer:
            (target,) = json.load(answer)["data"]["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
    finally:
        prometheus.end()


def test_what_is_queued_is_sent_when_the_gateway_ends(serve, echo, variant):
    with Collector() as collector:
        otlp = {
            "endpoint": f"http://127.0.0.1:{collector.server_port}",
            "protocol": "http/protobuf",
            "compression": "gzip",
        }
        section = {
            "enabled": True,
            "traces": {"exporter": "otlp_http", "otlp": otlp},
            "metrics": {"exporter": "otlp_http", "otlp": otlp},
            "logs": {"exporter": "otlp_http", "otlp": otlp},
        }
        gateway = serve(to(echo) | variant | {"observability": section})
        for _ in range(5):
            get(gateway.port, "/echo")
        assert gateway.end() == 0
        assert sorted(path for path, _ in collector.taken) == ["/v1/logs", "/v1/metrics", "/v1/traces"]
        body = next(body for path, body in collector.taken if path == "/v1/traces")
        (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
        kinds = sorted(span.kind for scope in resource.scope_spans for span in scope.spans)
        assert kinds == [2] * 5 + [3] * 5


class GrpcCollector:
    """Takes what is pushed over gRPC, with gRPC's own server; refuses the first push of each signal as one that is busy."""

    def __init__(self, credentials=None):
        self.taken, self.refused = [], []
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        methods = {
            "trace.v1.TraceService": (ExportTraceServiceRequest, ExportTraceServiceResponse),
            "metrics.v1.MetricsService": (ExportMetricsServiceRequest, ExportMetricsServiceResponse),
            "logs.v1.LogsService": (ExportLogsServiceRequest, ExportLogsServiceResponse),
        }
        for name, (request, response) in methods.items():
            handler = grpc.unary_unary_rpc_method_handler(
                functools.partial(self.export, response),
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
            service = f"opentelemetry.proto.collector.{name}"
            self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        where = "127.0.0.1:0"
        self.port = (
            self.server.add_insecure_port(where)
            if credentials is None
            else self.server.add_secure_port(where, credentials)
        )
        self.server.start()

    def export(self, response, request, context):
        kind = type(request).__name__
        if kind not in self.refused:
            self.refused.append(kind)
            context.abort(grpc.StatusCode.UNAVAILABLE, "come again")
        self.taken.append((request, dict(context.invocation_metadata())))
        return response()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stop(0).wait(PATIENCE)


@pytest.mark.parametrize("secured", [False, True], ids=["clear", "tls"])
def test_a_collector_of_grpc_is_spoken_to_as_it_wants(serve, echo, variant, secured, tmp_path):
    authority = Authority(tmp_path)
    files = authority.issue("collector.test")
    key, chain = (Path(files[name]).read_bytes() for name in ("key_file", "cert_file"))
    with GrpcCollector(grpc.ssl_server_credentials([(key, chain)]) if secured else None) as collector:
        tls = {"enabled": True, "ca_file": authority.ca_file, "sni_hostname": "collector.test"}
        upstream = {"name": "collector", "host": "127.0.0.1", "port": collector.port}
        otlp = {"upstream": "collector", "protocol": "grpc", "compression": "gzip", "headers": {"x-key": "k"}}
        batch = {"schedule_delay_ms": 50, "retries": {"initial_backoff_ms": 10}}
        section = {
            "enabled": True,
            "traces": {"exporter": "otlp_http", "otlp": otlp, "batch": batch},
            "metrics": {"exporter": "otlp_http", "otlp": otlp, "export_interval_ms": 100, "export_timeout_ms": 100},
            "logs": {"exporter": "otlp_http", "otlp": otlp, "batch": batch},
        }
        configuration = to(echo) | variant | {"observability": section}
        configuration["upstreams"].append({**upstream, **({"tls": tls} if secured else {})})
        gateway = serve(configuration)
        for _ in range(5):
            get(gateway.port, "/echo")
        until(lambda: len({type(request) for request, _ in collector.taken}) == 3, "each signal has come")
        assert gateway.end() == 0
        spans = [
            span
            for request, _ in collector.taken
            if isinstance(request, ExportTraceServiceRequest)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        assert sorted(span.kind for span in spans) == [2] * 5 + [3] * 5
        assert {metadata["x-key"] for _, metadata in collector.taken} == {"k"}
        assert "fails: gRPC status 14: 'come again'" in gateway.log


def test_a_collector_that_is_down_does_not_keep_the_gateway_from_ending(serve, echo):
    otlp = {"endpoint": f"http://127.0.0.1:{free_port()}"}
    section = {"enabled": True, "traces": {"exporter": "otlp_http", "otlp": otlp}}
    gateway = serve(to(echo) | {"observability": section, "shutdown_drain_timeout_sec": 2})
    for _ in range(5):
        assert get(gateway.port, "/echo")[0] == 200
    began = time.monotonic()
    assert gateway.end() == 0
    assert time.monotonic() - began < 10
    assert "export of traces to" in gateway.log
