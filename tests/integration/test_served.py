"""The gateway as an application of uvicorn and hypercorn, asked with curl: requests, bodies in both directions, HTTP/2, and the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from started import Started

from gw.testing import PATIENCE

PROGRAM = """
import gw
import starlette_app

app = gw.asgi({config!r})
app.gateway.mount("/shop", starlette_app.app)
"""
SERVERS = {
    "uvicorn": (["--port", "0", "--no-date-header", "--no-server-header"], r"running on http://127\.0\.0\.1:([0-9]+)"),
    "hypercorn": (["--bind", "127.0.0.1:0"], r"Running on http://127\.0\.0\.1:([0-9]+)"),
}


@pytest.fixture
def server(name, tmp_path, monkeypatch, echo):
    """A server that has the gateway in front of the echo upstream and of an application; its port."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{tmp_path}")
    upstream = {"name": "echo", "host": "127.0.0.1", "port": echo.port, "proxy": {"route_prefix": "/echo"}}
    (tmp_path / "program.py").write_text(PROGRAM.format(config={"upstreams": [upstream], "max_body_size": 1_000_000}))
    arguments, says = SERVERS[name]
    started = Started([sys.executable, "-m", name, *arguments, "program:app"], cwd=tmp_path, may_fail=True)
    try:
        started.port = int(started.wait_for(says)[1])
        yield started
    finally:
        started.end()
    assert " has ended" in started.log
    assert "Traceback" not in started.log, started.log


@pytest.fixture
def curl(peer, server):
    program = peer("curl")

    def run(path, *arguments, **more):
        command = [program, "--silent", "--show-error", "--include", "--max-time", str(PATIENCE), *arguments]
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{server.port}{path}"], capture_output=True, check=False, timeout=30, **more
        )
        assert done.returncode == 0, done.stderr
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            head, _, body = body.partition(b"\r\n\r\n")
        return head.lower(), body

    return run


@pytest.mark.parametrize(
    ("name", "version"),
    [("uvicorn", "--http1.1"), ("hypercorn", "--http1.1"), ("hypercorn", "--http2-prior-knowledge")],
)
def test_requests_and_bodies_go_through(curl, version):
    head, body = curl("/echo/a?b=%20", version, "-H", "X-Mine: 1")
    told = json.loads(body)
    assert (told["method"], told["path"]) == ("GET", "/echo/a?b=%20")
    headers = dict(map(tuple, told["headers"]))
    assert (headers["x-mine"], headers["x-forwarded-for"]) == ("1", "127.0.0.1")
    assert head.count(b"\r\nvia: ") == 1
    large = b"streamed " * 50_000
    chunked = ("-H", "Transfer-Encoding: chunked") if version == "--http1.1" else ()
    assert curl("/shop/upper", version, "--data-binary", "@-", *chunked, input=large)[1] == large.upper()
    head, body = curl("/shop/tell", version, "--data-binary", "@-", input=large)
    assert json.loads(body)["body"] == len(large)
    assert (
        b" 413"
        in curl("/shop/tell", version, "--data-binary", "@-", "-H", "Expect:", input=large * 3)[0].splitlines()[0]
    )
    assert b" 404" in curl("/nothing", version)[0].splitlines()[0]
    assert curl("/echo/", version, "--head")[1] == b""
