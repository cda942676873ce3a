"""HTTP/2 over sockets: curl, nghttp and h2load to the gateway in front of the echo upstream."""

import json
import re
import socket
import subprocess

import pytest
from frames import GET, HEADERS, START, codes, frame, head
from started import until

from gw.testing import PATIENCE

PRIOR_KNOWLEDGE, UPGRADE = "--http2-prior-knowledge", "--http2"


def run(*command, **rest):
    done = subprocess.run(command, capture_output=True, check=False, timeout=60, **rest)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture
def curl(peer, gateway):
    program = peer("curl")

    def call(path, *arguments, **rest):
        options = ["--silent", "--show-error", "--max-time", "20", *arguments]
        return run(program, *options, f"http://127.0.0.1:{gateway.port}{path}", **rest)

    return call


@pytest.mark.parametrize("how", [PRIOR_KNOWLEDGE, UPGRADE])
def test_curl_speaks_it(curl, how):
    output = curl("/a?b", how, "-i", "-H", "X-Mine: 1")
    head_text, _, body = output.rpartition(b"\r\n\r\n")
    final = head_text.rpartition(b"\r\n\r\n")[2]
    assert final.startswith(b"HTTP/2 200")
    assert b"via: 1.1 gw" in final
    echoed = json.loads(body)
    assert (echoed["path"], echoed["version"]) == ("/a?b", "1.1")
    assert ["x-mine", "1"] in echoed["headers"]


@pytest.mark.parametrize("how", [PRIOR_KNOWLEDGE, UPGRADE])
def test_a_body_arrives_whole(curl, how):
    body = b"x" * 300_000
    echoed = json.loads(curl("/", how, "--data-binary", "@-", "-H", "content-type: text/plain", input=body))
    assert echoed["body"] == body.decode()


def test_a_large_answer_arrives_whole(curl):
    assert len(curl("/bytes?n=20000000", PRIOR_KNOWLEDGE)) == 20_000_000


def test_early_hints_arrive_early(curl):
    output = curl("/hints", PRIOR_KNOWLEDGE, "-i")
    assert re.match(rb"HTTP/2 103 \r\n.*?\r\n\r\nHTTP/2 200 \r\n", output, re.DOTALL)


def test_an_expectation_is_met(curl):
    echoed = json.loads(curl("/", PRIOR_KNOWLEDGE, "-d", "body", "-H", "expect: 100-continue"))
    assert echoed["body"] == "body"


def test_an_early_refusal_is_seen(curl):
    output = curl("/early", PRIOR_KNOWLEDGE, "-i", "--data-binary", "@-", input=b"x" * 16_000_000)
    assert b"HTTP/2 413" in output


def test_nghttp_sees_trailers(peer, gateway):
    output = run(peer("nghttp"), "-v", f"http://127.0.0.1:{gateway.port}/trailers")
    assert b"x-body-sha256" in output
    assert b"GOAWAY" not in output.partition(b"x-body-sha256")[0]


def test_h2load_gets_every_answer(peer, gateway):
    output = run(peer("h2load"), "-n", "4000", "-c", "4", "-m", "50", f"http://127.0.0.1:{gateway.port}/status/200")
    assert b"4000 succeeded, 0 failed, 0 errored, 0 timeout" in output


def test_h2load_sends_bodies(peer, gateway, tmp_path):
    body = tmp_path / "body"
    body.write_bytes(b"x" * 100_000)
    url = f"http://127.0.0.1:{gateway.port}/status/200"
    output = run(peer("h2load"), "-n", "300", "-c", "3", "-m", "10", "-d", str(body), url)
    assert b"300 succeeded, 0 failed, 0 errored, 0 timeout" in output


def test_an_error_is_told_on_the_wire(gateway):
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as connection:
        connection.sendall(START + head(1, GET) + frame(HEADERS, 4, 1))
        said = b""
        while data := connection.recv(65536):
            said += data
    assert codes(said)[-1][0] == "goaway"


def test_a_stop_waits_for_the_streams_that_are_open(peer, serve, echo):
    configuration = {
        "bind_port": 0,
        "upstreams": [{"name": "echo", "host": "127.0.0.1", "port": echo.port, "proxy": {"route_prefix": "/"}}],
    }
    gateway = serve(configuration)
    url = f"http://127.0.0.1:{gateway.port}/slow?ms=1500"
    client = subprocess.Popen([peer("nghttp"), "-v", url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    busy = f"http://127.0.0.1:{echo.port}/open"
    until(lambda: json.loads(run(peer("curl"), "-s", busy))["exchanges"] == 2, "the request is with the upstream")
    gateway.child.terminate()
    output, _ = client.communicate(timeout=PATIENCE)
    assert b"GOAWAY" in output
    assert b":status: 200" in output
    assert gateway.wait() == 0
