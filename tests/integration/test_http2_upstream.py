"""HTTP/2 to nghttpx, which passes it on to the echo upstream: in cleartext, by prior knowledge."""

import contextlib
import json
import subprocess

import pytest
from conftest import to
from nghttpx_upstream import Nghttpx
from started import start_gateway

from gw.testing import PATIENCE


def run(*command, **rest):
    done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE, **rest)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def nghttpx(peer, echo):
    with contextlib.closing(Nghttpx(peer("nghttpx"), echo.port)) as started:
        yield started


@pytest.fixture(scope="module")
def gateway(variant, nghttpx, tmp_path_factory):
    configuration = to(nghttpx, http2={"enabled": True, "prefer": "h2c"}) | variant | {"max_body_size": 0}
    with contextlib.closing(start_gateway(configuration, folder=tmp_path_factory.mktemp("gateway"))) as started:
        yield started


@pytest.fixture(params=["--http1.1", "--http2-prior-knowledge"])
def curl(peer, gateway, request):
    def call(path, *arguments, **rest):
        options = ["-sS", "--max-time", "20", request.param, *arguments]
        return run(peer("curl"), *options, f"http://127.0.0.1:{gateway.port}{path}", **rest)

    return call


def test_a_request_passes_both(curl):
    echoed = json.loads(curl("/a?b", "-H", "X-Mine: 1"))
    assert echoed["path"] == "/a?b"
    headers = dict(echoed["headers"])
    assert headers["x-mine"] == "1"
    assert headers["via"] == "1.1 gw, 2 nghttpx"


def test_bodies_of_any_size_arrive_whole(curl):
    assert len(curl("/bytes?n=5000000")) == 5_000_000
    body = b"x" * 700_000
    assert (
        json.loads(curl("/", "--data-binary", "@-", "-H", "content-type: text/plain", input=body))["body"]
        == body.decode()
    )


def test_load_without_an_error(peer, gateway):
    url = f"http://127.0.0.1:{gateway.port}/status/200"
    output = run(peer("h2load"), "-n", "5000", "-c", "4", "-m", "50", url)
    assert b"5000 succeeded, 0 failed, 0 errored, 0 timeout" in output, output
    assert b"status codes: 5000 2xx" in output, output
