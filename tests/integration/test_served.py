"""The gateway as an application of uvicorn, hypercorn and granian: requests, bodies, WebSockets, HTTP/2, gRPC, and the end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from started import Started, free_port
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve as serve_websockets

from gw.testing import PATIENCE

PROGRAM = """
import gw
import starlette_app

app = gw.asgi({config!r})
app.gateway.mount("/shop", starlette_app.app)


async def echo(ws):
    async for message in ws:
        await ws.send(message)


async def page(ex):
    await ex.send_interim(103, gw.Headers.of([("link", "</a.css>; rel=preload")]))
    return gw.Reply(200, b"page")


app.gateway.websocket("/ws", echo, subprotocols=("chat",))
app.gateway.get("/page", page)
"""
SERVERS = {
    "uvicorn": (["--port", "0", "--no-date-header", "--no-server-header"], r"running on http://127\.0\.0\.1:([0-9]+)"),
    "hypercorn": (["--bind", "127.0.0.1:0"], r"Running on http://127\.0\.0\.1:([0-9]+)"),
    "granian": (
        ["--interface", "asgi", "--workers", "1", "--port", "@PORT@"],
        r"Started worker-1()",
    ),
}


@pytest.fixture(scope="module")
def chat():
    """The port of a server of WebSockets that sends each message back, until it is told to leave."""

    def answers(connection):
        with contextlib.suppress(ConnectionClosed):
            for message in connection:
                if message == "leave":
                    connection.close(4001, "as you wish")
                else:
                    connection.send(message)

    with serve_websockets(answers, "127.0.0.1", 0, max_size=None) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield listening.socket.getsockname()[1]
        listening.shutdown()
        thread.join(PATIENCE)


@pytest.fixture(scope="module")
def calls():
    """The port of gRPC's own server, which sends each message back with a trailer."""

    class Service(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(self.echo)

        def echo(self, request, context):
            context.set_trailing_metadata([("x-trailer", "1")])
            return request

    listening = grpc.server(futures.ThreadPoolExecutor(2), handlers=(Service(),))
    port = listening.add_insecure_port("127.0.0.1:0")
    listening.start()
    yield port
    listening.stop(None).wait()


@pytest.fixture
def server(name, tmp_path, monkeypatch, echo, chat, calls):
    """A server that has the gateway in front of the echo upstream and of an application; its port."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{tmp_path}")
    upstreams = [
        {"name": "echo", "host": "127.0.0.1", "port": echo.port, "proxy": {"route_prefix": "/echo"}},
        {"name": "chat", "host": "127.0.0.1", "port": chat, "proxy": {"route_prefix": "/chat"}},
        {
            "name": "grpc",
            "host": "127.0.0.1",
            "port": calls,
            "http2": {"enabled": True, "prefer": "h2c"},
            "proxy": {"route_prefix": "/gw.Test"},
        },
    ]
    (tmp_path / "program.py").write_text(PROGRAM.format(config={"upstreams": upstreams, "max_body_size": 1_000_000}))
    arguments, says = SERVERS[name]
    port = str(free_port())
    arguments = [port if each == "@PORT@" else each for each in arguments]
    started = Started([sys.executable, "-m", name, *arguments, "program:app"], cwd=tmp_path, may_fail=True)
    try:
        started.port = int(started.wait_for(says)[1] or port)
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
    [
        ("uvicorn", "--http1.1"),
        ("hypercorn", "--http1.1"),
        ("hypercorn", "--http2-prior-knowledge"),
        ("granian", "--http1.1"),
        ("granian", "--http2-prior-knowledge"),
    ],
)
def test_requests_and_bodies_go_through(curl, name, version):
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
    if (name, version) != ("granian", "--http2-prior-knowledge"):  # which resets a stream that is answered too early
        head, _ = curl("/shop/tell", version, "--data-binary", "@-", "-H", "Expect:", input=large * 3)
        assert b" 413" in head.splitlines()[0]
    assert b" 404" in curl("/nothing", version)[0].splitlines()[0]
    assert curl("/echo/", version, "--head")[1] == b""


@pytest.mark.parametrize("name", SERVERS)
def test_websockets_go_through(server):
    def dial(path, **more):
        return connect(f"ws://127.0.0.1:{server.port}{path}", max_size=None, open_timeout=PATIENCE, **more)

    with dial("/ws", subprotocols=["other", "chat"]) as own, dial("/chat") as passed:
        assert own.subprotocol == "chat"
        for each in (own, passed):
            for message in ("text", b"\0" * 500_000):
                each.send(message)
                assert each.recv(PATIENCE) == message
        passed.send("leave")
        with pytest.raises(ConnectionClosed) as closed:
            passed.recv(PATIENCE)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as you wish")
    with pytest.raises(InvalidStatus) as refused:
        dial("/nothing")
    assert refused.value.response.status_code in {404, 403}


@pytest.mark.parametrize("name", ["hypercorn"])
def test_early_hints_and_grpc_go_through_where_the_server_takes_them(curl, server):
    head, _ = curl("/page", "--http2-prior-knowledge")
    assert head.startswith(b"http/2 103 \r\nlink: </a.css>; rel=preload")
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        answer, call = channel.unary_unary("/gw.Test/Echo").with_call(b"hello", timeout=PATIENCE)
        assert answer == b"hello"
        assert dict(call.trailing_metadata())["x-trailer"] == "1"
