"""Applications that a configuration names, in the real gateway: Starlette's, asked with curl and the library `websockets`."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from started import start_gateway, until
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from gw.testing import PATIENCE

SHOP = {
    "bind_port": 0,
    "upstreams": [
        {"name": "shop", "endpoints": [{"asgi": "starlette_app:app"}], "proxy": {"strip_prefix": True}},
    ],
    "routes": [{"match": {"prefix": "/shop"}, "upstream": "shop"}],
}


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def curl(peer):
    program = peer("curl")

    def run(port, path, *arguments, **more):
        command = [program, "--silent", "--show-error", "--max-time", str(PATIENCE), *arguments]
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, check=False, timeout=30, **more
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_an_application_has_requests_and_bodies(serve, variant, curl):
    gateway = serve(SHOP | variant)
    told = json.loads(curl(gateway.port, "/shop/tell", "--data-binary", "@-", input=bytes(100_000)))
    assert told | {"worker": 0} == {
        "worker": 0,
        "began": True,
        "method": "POST",
        "path": "/shop/tell",
        "root_path": "/shop",
        "url": f"http://127.0.0.1:{gateway.port}/shop/tell",
        "body": 100_000,
    }
    body = b"streamed " * 100_000
    sent = ("--data-binary", "@-", "-H", "Transfer-Encoding: chunked", "-H", "Expect:")
    assert curl(gateway.port, "/shop/upper", *sent, input=body) == body.upper()
    assert curl(gateway.port, "/shop/nothing") == b"Not Found"
    assert gateway.end() == 0
    assert len(re.findall("has (?:started|ended)", gateway.log)) == 2


def test_an_application_has_websockets(serve, variant):
    port = serve(SHOP | variant).port
    more = {"open_timeout": PATIENCE, "close_timeout": PATIENCE}
    with connect(f"ws://127.0.0.1:{port}/shop/talk", subprotocols=["other", "chat"], **more) as client:
        assert client.subprotocol == "chat"
        for text in ("abc", "", "x" * 200_000):
            client.send(text)
            assert client.recv(PATIENCE) == text[::-1]
        client.send("leave")
        with pytest.raises(ConnectionClosedError):
            client.recv(PATIENCE)
        assert (client.close_code, client.close_reason) == (4001, "as you wish")
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{port}/shop/talk?key=wrong", **more)
    assert (refused.value.response.status_code, refused.value.response.body) == (401, b'{"why":"wrong key"}')


def test_each_worker_has_its_own(serve, curl):
    gateway = serve(SHOP | {"workers": 2})
    seen = set()

    def both():
        seen.add(json.loads(curl(gateway.port, "/shop/tell"))["worker"])
        return len(seen) == 2

    until(both, "both workers answer")
    assert gateway.end() == 0
    for worker in seen:
        assert gateway.log.index(f"{worker} has started") < gateway.log.index(f"{worker} has ended")


def test_one_that_cannot_be_imported_keeps_the_gateway_from_starting(tmp_path):
    upstreams = [{"name": "shop", "endpoints": [{"asgi": "starlette_app:shop"}]}]
    started = start_gateway({"bind_port": 0, "upstreams": upstreams}, folder=tmp_path, may_fail=True)
    assert started.wait() != 0
    assert re.search(
        r"gw\.yaml:1:[0-9]+: upstreams\[0\]\.endpoints\[0\]\.asgi: 'starlette_app:shop' cannot be imported: AttributeError",
        started.log,
    ), started.log
    assert "Traceback" not in started.log
