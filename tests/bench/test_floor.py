"""The floor is only a fair limit if it does relay: whole messages, on kept connections, as fast as they are taken."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import peers
import pytest
from peers import Site
from processes import Cpus, Process

pytest.importorskip("httptools")
pytest.importorskip("uvloop")

CPUS = Cpus(frozenset(os.sched_getaffinity(0)), frozenset(os.sched_getaffinity(0)))


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The floor in front of the origin of origin.py."""
    site = Site(tmp_path_factory.mktemp("floor"), CPUS)
    origin = peers.start_origin(site, scripted=True)
    relay = peers.start_proxy(Site(site.folder, CPUS, origin.port), "floor")
    yield relay
    relay.stop()
    origin.stop()


@pytest.fixture
def client(relay: Process) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", relay.port, timeout=10)
    yield connection
    connection.close()


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's socket to a relay of its own, and the listener that the relay dials."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        relay = peers.start_proxy(Site(tmp_path, CPUS, listener.getsockname()[1]), "floor")
        try:
            with socket.create_connection(("127.0.0.1", relay.port), timeout=10) as connection:
                yield connection, listener
        finally:
            relay.stop()


def read_until(connection: socket.socket, end: bytes) -> bytes:
    seen = b""
    while not seen.endswith(end):
        piece = connection.recv(65536)
        assert piece, f"closed after {seen!r}"
        seen += piece
    return seen


def test_requests_share_a_connection(client: HTTPConnection):
    for _ in range(3):
        client.request("GET", "/")
        response = client.getresponse()
        assert (response.status, response.read()) == (200, b"hello, world\n")
    local = client.sock.getsockname()
    client.request("GET", "/10")
    assert client.getresponse().read() == bytes(10)
    assert client.sock.getsockname() == local


def test_large_bodies_pass_in_both_directions(client: HTTPConnection):
    client.request("POST", "/", body=bytes(3_000_000))
    assert client.getresponse().read() == b"hello, world\n"
    client.request("GET", "/3000000")
    assert client.getresponse().read() == bytes(3_000_000)


def test_a_request_is_sent_on_with_its_method_target_fields_and_chunks(scripted):
    client, listener = scripted
    head = b"PUT /a?b=c HTTP/1.1\r\nHost: x\r\nX-One: 1\r\nX-One: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.sendall(head + b"5\r\nhello\r\n0\r\n\r\n")
    upstream, _ = listener.accept()
    with upstream:
        assert read_until(upstream, b"0\r\n\r\n") == head + b"5\r\nhello\r\n0\r\n\r\n"
        answer = b"HTTP/1.1 201 Made\r\nTransfer-Encoding: chunked\r\nX-Two: 2\r\n\r\n3\r\nyes\r\n0\r\n\r\n"
        upstream.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: y\r\n\r\n" + answer)
        assert read_until(client, b"0\r\n\r\n") == b"HTTP/1.1 103 Early Hints\r\nLink: y\r\n\r\n" + answer


def test_the_upstream_connection_is_kept_for_the_next_request(scripted):
    client, listener = scripted
    request, answer = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    client.sendall(request)
    upstream, _ = listener.accept()
    with upstream:
        for _ in range(2):
            assert read_until(upstream, b"\r\n\r\n") == request
            upstream.sendall(answer)
            assert read_until(client, b"ok") == answer
            client.sendall(request)


def test_a_body_that_ends_with_the_connection_ends_so_for_the_client(scripted):
    client, listener = scripted
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    upstream, _ = listener.accept()
    read_until(upstream, b"\r\n\r\n")
    upstream.sendall(b"HTTP/1.1 200 OK\r\n\r\nall there is")
    upstream.close()
    assert read_until(client, b"all there is")
    assert client.recv(100) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"no request\r\n\r\n",
    ],
)
def test_what_it_does_not_relay_is_answered_by_closing(scripted, request_bytes: bytes):
    client, _ = scripted
    client.sendall(request_bytes)
    assert client.recv(100) == b""


def test_a_client_that_reads_slowly_stops_the_origin(relay: Process, client: HTTPConnection):
    before = relay.resident()
    with socket.create_connection(("127.0.0.1", relay.port), timeout=10) as slow:
        slow.sendall(b"GET /100000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert slow.recv(15) == b"HTTP/1.1 200 OK"
        client.request("GET", "/3000000")  # answered when the relay has long read all that it will
        client.getresponse().read()
        assert relay.resident() - before < 20_000_000
