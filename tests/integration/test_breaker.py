"""A circuit breaker between wrk and an upstream that fails: what gets through is counted there."""

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from started import environment, until

from gw.testing import PATIENCE

BASE = 0.3
"""Seconds that it is open the first time; then twice as long, and so on."""


class Counting(ThreadingHTTPServer):
    """An upstream that counts its requests, and answers 500 until it is well."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.status = 0, 500
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self):
        self.shutdown()
        self.thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with self.server.lock:
            self.server.seen += 1
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def upstream():
    with contextlib.closing(Counting()) as server:
        yield server


def status(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        return connection.getresponse().status


def phases(seconds):
    """Return how often it can have been half-open in so many seconds since it opened."""
    count, due = 0, BASE
    while due <= seconds:
        count += 1
        due += BASE * 2**count
    return count


def test_under_load_a_failing_upstream_sees_only_the_probes_and_then_recovers(serve, variant, upstream, peer):
    wrk = peer("wrk")
    breaker = {
        "enabled": True,
        "consecutive_failure_threshold": 5,
        "permitted_half_open_calls": 1,
        "base_open_duration_ms": round(BASE * 1000),
        "max_open_duration_ms": 5000,
    }
    up = {"name": "up", "host": "127.0.0.1", "port": upstream.server_port, "proxy": {"route_prefix": "/"}}
    gateway = serve({**variant, "plugins": ["breaker"], "upstreams": [up | {"circuit_breaker": breaker}]})
    started = time.monotonic()
    assert [status(gateway.port) for _ in range(5)] == [500] * 5
    command = [wrk, "-t1", "-c32", "-d2s", f"http://127.0.0.1:{gateway.port}/"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE * 2, check=True).stdout
    rejected = int(said.partition(" requests in")[0].rsplit(None, 1)[-1])
    probes = upstream.seen - 5
    assert 1 <= probes <= phases(time.monotonic() - started), said
    assert rejected > 100 * probes, said
    upstream.status = 200
    until(lambda: status(gateway.port) == 200, "the breaker closes")
    assert [status(gateway.port) for _ in range(20)] == [200] * 20
    gateway.wait_for("circuit breaker up: closed to open, too many failures in a row")
    gateway.wait_for("circuit breaker up: half_open to closed, enough probes succeeded")


def test_workers_share_a_verdict_and_one_of_them_finds_out_for_all(serve, upstream):
    breaker = {
        "enabled": True,
        "scope": "machine",
        "consecutive_failure_threshold": 5,
        "permitted_half_open_calls": 1,
        "base_open_duration_ms": 1000,
        "max_open_duration_ms": 1000,
    }
    up = {"name": "up", "host": "127.0.0.1", "port": upstream.server_port, "proxy": {"route_prefix": "/"}}
    gateway = serve({"workers": 4, "plugins": ["breaker"], "upstreams": [up | {"circuit_breaker": breaker}]})

    def round_of_all():
        return [status(gateway.port) for _ in range(12)]

    until(lambda: 503 in round_of_all(), "one worker has opened it")
    opened = time.monotonic()
    until(lambda: set(round_of_all()) == {503}, "the others have followed")
    assert upstream.seen <= 4 * 5
    before = upstream.seen
    while time.monotonic() < opened + 4:
        round_of_all()
    assert 1 <= upstream.seen - before <= (time.monotonic() - opened) / 1.0, "more than one worker found out at once"
    upstream.status = 200
    until(lambda: set(round_of_all()) == {200}, "all have closed it")


@pytest.mark.parametrize("scope", ["upstream", "machine"])
def test_it_is_set_by_hand_in_every_worker(serve, upstream, tmp_path, scope):
    upstream.status = 200
    up = {"name": "up", "host": "127.0.0.1", "port": upstream.server_port, "proxy": {"route_prefix": "/"}}
    breaker = {"enabled": True, "scope": scope}
    gateway = serve({"workers": 2, "plugins": ["breaker"], "upstreams": [up | {"circuit_breaker": breaker}]})

    def gw(*arguments, code=0):
        command = [sys.executable, "-m", "gw", "breaker", *arguments, "-P", str(tmp_path / "gw-1.pid")]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE * 3, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout) if code == 0 else done.stderr

    def states(state):
        return {str(number): {"up": state} for number in (1, 2)}

    assert gw("list") == states("closed")
    assert gw("open", "up", "-r", "maintenance") == states("open")
    assert {status(gateway.port) for _ in range(12)} == {503}
    assert "circuit breaker up: closed to open, by hand: maintenance" in gateway.log
    assert gw("reset", "up") == gw("list") == states("closed")
    assert {status(gateway.port) for _ in range(12)} == {200}
    assert "there is no breaker 'other'; there are up" in gw("close", "other", code=1)
