"""WebSockets over HTTP/2 with upstreams: hypercorn and nghttpx, for clients of either protocol (RFC 8441)."""

import contextlib
import sys
import threading
from pathlib import Path

import pytest
from certificates import Authority
from conftest import to
from nghttpx_upstream import Nghttpx
from nginx_upstream import Nginx
from rfc8441 import Client, Refused
from started import Started, free_port, start_gateway
from test_websockets import echo_messages
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve as serve_websockets
from wsproto.events import CloseConnection

from gw.testing import PATIENCE

HERE = Path(__file__).parent


class Hypercorn:
    """The echo application under hypercorn; with *tls* it chooses by ALPN, else it takes HTTP/2 by prior knowledge."""

    def __init__(self, tls=None):
        self.port = free_port()
        command = [sys.executable, "-m", "hypercorn", "--bind", f"127.0.0.1:{self.port}"]
        if tls is not None:
            command += ["--certfile", tls["cert_file"], "--keyfile", tls["key_file"]]
        self._started = Started([*command, "websocket_app:app"], cwd=HERE, may_fail=True)
        self._started.wait_for(f"Running on https?://127.0.0.1:{self.port}")

    def close(self):
        self._started.end()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def echoing():
    """The port of an echo server that speaks HTTP/1.1, in a thread."""
    with serve_websockets(echo_messages, "127.0.0.1", 0, max_size=None, subprotocols=["chat"]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join(PATIENCE)


@pytest.fixture(scope="module", params=["hypercorn", "hypercorn by ALPN", "nghttpx"])
def upstream(request, peer, authority, echoing):
    """Settings of an upstream that is spoken to in HTTP/2 and echoes."""
    with contextlib.ExitStack() as stack:
        if request.param == "nghttpx":
            started = stack.enter_context(contextlib.closing(Nghttpx(peer("nghttpx"), echoing)))
            yield {"name": "nghttpx", "port": started.port, "http2": {"enabled": True, "prefer": "h2c"}}
        elif request.param == "hypercorn":
            started = stack.enter_context(contextlib.closing(Hypercorn()))
            yield {"port": started.port, "http2": {"enabled": True, "prefer": "h2c"}}
        else:
            started = stack.enter_context(contextlib.closing(Hypercorn(authority.issue("up.test"))))
            tls = {"enabled": True, "sni_hostname": "up.test", "ca_file": authority.ca_file}
            yield {"port": started.port, "http2": {"enabled": True, "prefer": "auto"}, "tls": tls}


@pytest.fixture(scope="module")
def gateway(variant, upstream, tmp_path_factory):
    settings = {"name": "echo", "host": "127.0.0.1", "proxy": {"route_prefix": "/"}} | upstream
    configuration = variant | {"bind_port": 0, "upstreams": [settings]}
    with contextlib.closing(start_gateway(configuration, folder=tmp_path_factory.mktemp("gateway"))) as started:
        yield started


def dial(gateway, path="/"):
    waits = {"open_timeout": PATIENCE, "close_timeout": PATIENCE}
    return connect(f"ws://127.0.0.1:{gateway.port}{path}", subprotocols=["chat"], max_size=None, **waits)


MESSAGES = ("", "κόσμε", b"\0\xff", "x" * 126, b"y" * 65_536, "é" * 50_000, b"z" * 900_000)


def test_messages_of_every_size_come_back_to_http1(gateway):
    with dial(gateway) as client:
        assert client.subprotocol == "chat"
        assert client.response.headers.get("x-spoken", "2") == "2"
        for message in MESSAGES:
            client.send(message)
            assert client.recv(PATIENCE) == message
        assert client.ping().wait(PATIENCE)
        client.close(1000, "done")
    assert client.close_code == 1000


def test_messages_of_every_size_come_back_to_http2(gateway):
    with Client(gateway.port) as client:
        assert client.headers["sec-websocket-protocol"] == "chat"
        for message in MESSAGES:
            client.send(message)
            assert client.recv() == message
        assert client.end().code == 1000


def test_many_at_once_do_not_mix(gateway):
    with contextlib.ExitStack() as stack:
        over_http1 = [stack.enter_context(dial(gateway)) for _ in range(20)]
        over_http2 = [stack.enter_context(Client(gateway.port)) for _ in range(20)]
        for at, client in enumerate([*over_http1, *over_http2]):
            client.send(f"hello {at}")
        assert [client.recv(PATIENCE) for client in over_http1] == [f"hello {at}" for at in range(20)]
        assert [client.recv() for client in over_http2] == [f"hello {at}" for at in range(20, 40)]


def test_the_upstreams_close_reaches_the_client(gateway):
    with dial(gateway, "/kick") as client, contextlib.suppress(Exception):
        client.recv(PATIENCE)
    assert (client.close_code, client.close_reason) == (4001, "kicked")
    with Client(gateway.port, "/kick") as client:
        closed = client.recv()
        assert isinstance(closed, CloseConnection)
        assert (closed.code, closed.reason) == (4001, "kicked")
        client.answer(closed)


def test_a_refusal_reaches_the_client(gateway, upstream):
    if upstream.get("name") == "nghttpx":
        return  # the server behind it refuses nobody
    with pytest.raises(InvalidStatus) as refused:
        dial(gateway, "/no")
    assert refused.value.response.status_code == 403
    with pytest.raises(Refused) as refused:
        Client(gateway.port, "/no")
    assert refused.value.status == 403


def test_an_upstream_that_carries_none_is_asked_in_http1(variant, serve, authority, echoing, peer, tmp_path):
    """nginx speaks HTTP/2 and knows nothing of RFC 8441, but passes WebSockets on in HTTP/1.1."""
    folder = tmp_path / "nginx"
    folder.mkdir()
    nginx = Nginx(peer("nginx"), folder, authority.issue("up.test"), behind=echoing)
    with contextlib.closing(nginx):
        settings = {
            "tls": {"enabled": True, "sni_hostname": "up.test", "ca_file": authority.ca_file},
            "http2": {"enabled": True, "prefer": "auto"},
        }
        gateway = serve(to(nginx, **settings) | variant)
        for _ in range(3):
            with dial(gateway, "/websocket/") as client:
                client.send("hello")
                assert client.recv(PATIENCE) == "hello"
            with Client(gateway.port, "/websocket/") as client:
                client.send("hello")
                assert client.recv() == "hello"
                client.end()
