"""The loads: what counts as an answer, and which latency is charged."""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from load import Load, check, drive, pace, read_figures, read_h2load
from peers import MissingError, Site, certificate, find_program, start_grpc_origin
from processes import Cpus, FailedToRunError

EVERYWHERE = frozenset(os.sched_getaffinity(0))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status = 200
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one segment, as pace() expects

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def do_POST(self):
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
        self.do_GET()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def answering(status: int = 200) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Scripted", (Handler,), {"status": status})) as server:
        server.bodies = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def test_a_token_is_sent_with_every_request():
    seen = []

    class Asked(Handler):
        def do_GET(self):
            seen.append(self.headers["Authorization"])
            super().do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), Asked) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        check("gw", server.server_port, Load(bearer="a.b.c"))
        server.shutdown()
    assert seen == ["Bearer a.b.c"]


def test_the_figures_of_wrk_become_seconds():
    result = read_figures("gw", "Running 1s test\nfigures 1000 2000000 500 1500 0 0 0 0 0\n")
    assert (result.requests, result.seconds, result.p50, result.p99) == (1000, 2.0, 0.0005, 0.0015)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("figures 1000 1000000 5 9 1 0 0 3 0\n", "gw: 1 connect, 3 status errors beside 1000 requests"),
        ("figures 0 1000000 0 0 0 0 0 0 0\n", "gw: answered nothing in 1.0 s"),
        ("unable to connect\n", "gw: wrk printed no figures: unable to connect"),
    ],
)
def test_a_run_with_errors_is_no_measurement(output: str, message: str):
    with pytest.raises(FailedToRunError) as caught:
        read_figures("gw", output)
    assert str(caught.value) == message


H2LOAD = """finished in 2.00s, 1000.00 req/s, 1.00MB/s
requests: 2000 total, 2000 started, 2000 done, 2000 succeeded, {} failed, 0 errored, 0 timeout
"""


def test_the_log_of_h2load_gives_the_latencies():
    log = "".join(f"1\t200\t{microseconds}\n" for microseconds in range(1000, 0, -1))
    result = read_h2load("gw", H2LOAD.format(0), log)
    assert (result.requests, result.seconds, result.p50, result.p99) == (1000, 2.0, 0.000501, 0.000991)


@pytest.mark.parametrize(
    ("output", "log", "message"),
    [
        (H2LOAD.format(3), "1\t200\t1\n", "gw: 3 failed, 0 errored, 0 timed out of 2003"),
        (H2LOAD.format(0), "", "gw: answered nothing"),
        ("could not connect", "", "gw: h2load printed no figures: could not connect"),
    ],
)
def test_a_run_of_h2load_with_errors_is_no_measurement(output: str, log: str, message: str):
    with pytest.raises(FailedToRunError) as caught:
        read_h2load("gw", output, log)
    assert str(caught.value) == message


def test_the_check_refuses_what_is_not_the_answer_of_the_origin():
    with answering() as server:
        check("gw", server.server_port, Load(answer=5))
        with pytest.raises(FailedToRunError) as caught:
            check("gw", server.server_port, Load(answer=6))
    assert str(caught.value) == "gw: GET / was answered with 200 and 5 bytes, not with 200 and 6"
    with answering(502) as server, pytest.raises(FailedToRunError) as caught:
        check("gw", server.server_port, Load())
    assert str(caught.value) == "gw: GET / was answered with 502 and 5 bytes, not with 200 and some"


def needs(name: str) -> None:
    """Skip the test where *name* is not there; in continuous integration that is a failure."""
    try:
        find_program(name, "scripts/test installs it")
    except MissingError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def test_wrk_sends_the_method_and_the_body_that_the_load_names():
    needs("wrk")
    with answering() as server:
        result = drive("gw", server.server_port, Load("/post", method="POST", body=700, connections=2), 1)
    assert set(server.bodies) == {b"x" * 700}  # type: ignore[attr-defined]
    assert result.requests <= len(server.bodies)  # type: ignore[attr-defined]


def test_the_paced_load_sends_as_many_requests_as_the_rate_says():
    with answering() as server:
        result = pace("gw", server.server_port, Load(connections=2), rate=200, seconds=0.25)
    assert result.requests == 50
    assert 0 < result.p50 <= result.p99


def test_the_paced_load_does_not_take_another_answer_for_the_first_one(monkeypatch):
    def changing(self):
        self.send_response(200)
        self.send_header("Content-Length", "1")
        self.end_headers()
        self.wfile.write(b"b" if getattr(self, "seen", False) else b"a")
        self.seen = True

    monkeypatch.setattr(Handler, "do_GET", changing)
    with answering() as server, pytest.raises(FailedToRunError) as caught:
        pace("gw", server.server_port, Load(connections=1), rate=100, seconds=0.1)
    assert "gw: went wrong at 100 requests/s" in str(caught.value)
    assert "another one than at first" in str(caught.value)


def test_the_paced_load_charges_a_stall_to_every_request_that_was_due_meanwhile(monkeypatch):
    arrived, stall, answer = threading.Event(), 0.2, Handler.do_GET

    def stalled(self):
        if not arrived.is_set() and self.path == "/" and getattr(self, "seen", 0):
            arrived.set()
            threading.Event().wait(stall)
        self.seen = 1  # the first request of a connection only learns what the answer is
        answer(self)

    monkeypatch.setattr(Handler, "do_GET", stalled)
    with answering() as server:
        result = pace("gw", server.server_port, Load(connections=1), rate=100, seconds=0.3)
    # One connection, stalled once: a closed loop would see one slow request of 30, and a fast median.
    assert result.p99 >= stall * 0.9
    assert result.p50 >= stall * 0.2


def test_a_unary_grpc_call_is_answered_by_its_origin(tmp_path: Path):
    needs("h2load")
    origin = start_grpc_origin(Site(tmp_path, Cpus(EVERYWHERE, EVERYWHERE)))
    try:
        call = Load("/bench.Echo/Say", method="POST", body=100, connections=2, streams=4, grpc=True)
        check("origin", origin.port, call)
        assert drive("origin", origin.port, call, 1).requests > 10
    finally:
        origin.stop()


def test_tls_is_spoken_with_a_certificate_of_the_run(tmp_path: Path):
    needs("openssl")
    chain, key = certificate(Site(tmp_path, Cpus(EVERYWHERE, EVERYWHERE)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    with answering() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        check("tls", server.server_port, Load(tls=True))
        with pytest.raises(FailedToRunError, match="was not answered"):
            check("tls", server.server_port, Load())
