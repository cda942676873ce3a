"""The library `websockets` on both sides of a gateway, over sockets."""

from __future__ import annotations

import contextlib
import threading

import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve as serve_websockets

from gw.testing import PATIENCE


def echo_messages(connection):
    if connection.request.path.endswith("/kick"):
        connection.close(4001, "kicked")
    with contextlib.suppress(ConnectionClosedError):
        for message in connection:
            connection.send(message)


@pytest.fixture(scope="module")
def upstream():
    """An echo server in a thread; its port."""
    with serve_websockets(echo_messages, "127.0.0.1", 0, max_size=None, subprotocols=["chat", "other"]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join(PATIENCE)


@pytest.fixture
def port(serve, variant, upstream):
    configuration = variant | {
        "bind_port": 0,
        "websocket": {"origins": ["https://app.example.com"]},
        "upstreams": [{"name": "echo", "host": "127.0.0.1", "port": upstream, "proxy": {"route_prefix": "/"}}],
    }
    return serve(configuration).port


def dial(port, path="/", **more):
    more = {"subprotocols": ["chat"], "max_size": None, "open_timeout": PATIENCE, "close_timeout": PATIENCE} | more
    return connect(f"ws://127.0.0.1:{port}{path}", **more)


@pytest.mark.parametrize("compression", ["deflate", None])
def test_messages_of_every_size_come_back(port, compression):
    with dial(port, compression=compression) as client:
        assert client.subprotocol == "chat"
        assert ("permessage-deflate" in client.response.headers.get("sec-websocket-extensions", "")) is bool(
            compression
        )
        for message in ("", "κόσμε", b"\0\xff", "x" * 126, b"y" * 65_536, "é" * 500_000, b"z" * (4 << 20)):
            client.send(message)
            assert client.recv(PATIENCE) == message
        client.send(["frag", "ment", "ed"])
        assert client.recv(PATIENCE) == "fragmented"
        assert client.ping().wait(PATIENCE)
        client.close(1000, "done")
    assert (client.close_code, client.close_reason) == (1000, "done")


def test_many_at_once_do_not_mix(port):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(port)) for _ in range(50)]
        for number in range(10):
            for at, client in enumerate(clients):
                client.send(f"{at} {number}")
        for number in range(10):
            for at, client in enumerate(clients):
                assert client.recv(PATIENCE) == f"{at} {number}"


def test_the_upstreams_close_reaches_the_client(port):
    with dial(port, "/kick") as client, pytest.raises(ConnectionClosedError) as closed:
        client.recv(PATIENCE)
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "kicked")


def test_a_shutdown_is_going_away(serve, variant, upstream):
    configuration = variant | {
        "bind_port": 0,
        "upstreams": [{"name": "echo", "host": "127.0.0.1", "port": upstream, "proxy": {"route_prefix": "/"}}],
    }
    gateway = serve(configuration)
    with dial(gateway.port) as client:
        client.send("hello")
        assert client.recv(PATIENCE) == "hello"
        gateway.child.terminate()
        with pytest.raises(ConnectionClosedOK) as closed:
            client.recv(PATIENCE)
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "Going Away")


def test_a_page_from_elsewhere_is_refused(port):
    with pytest.raises(InvalidStatus) as refused:
        dial(port, origin="https://evil.example.com")
    assert refused.value.response.status_code == 403
    with dial(port, origin="https://app.example.com") as client:
        client.send("hello")
        assert client.recv(PATIENCE) == "hello"
