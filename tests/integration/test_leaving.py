"""Clients that are slow, stop, or vanish: others do not notice, and nothing of them stays behind."""

import http.client
import json
import socket
import struct
import time

import pytest
from conftest import to
from started import until
from wire import Upstream, connect, read_all, read_until, statuses

from gw.testing import PATIENCE

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def open_at(echo):
    """Return how many exchanges the echo upstream has, without this one."""
    connection = http.client.HTTPConnection("127.0.0.1", echo.port, timeout=PATIENCE)
    connection.request("GET", "/open", headers={"Connection": "close"})
    return json.loads(connection.getresponse().read())["exchanges"] - 1


def kill(connection):
    """Close with a reset, as the kernel does for a client that was killed with bytes unread."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def warm(started):
    """Have one request done, and return how many descriptors are open when all is quiet."""
    with connect(started.port) as connection:
        connection.sendall(GET.replace(b"Host", b"Connection: close\r\nHost"))
        read_all(connection)
    return started.files()


def test_many_slow_clients_do_not_slow_down_the_others(gateway):
    before = warm(gateway)
    slow = [connect(gateway.port) for _ in range(200)]
    for connection in slow:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow")
    worst = 0.0
    for _ in range(100):
        began = time.monotonic()
        with connect(gateway.port) as connection:
            connection.sendall(GET)
            read_until(connection, b"\r\n\r\n")
        worst = max(worst, time.monotonic() - began)
    assert worst < 1
    for connection in slow:
        connection.close()
    until(lambda: gateway.files() <= before, "the descriptors of slow clients are closed")


def test_a_head_that_does_not_end_is_answered_408_in_time(serve, variant, echo):
    started = serve(to(echo) | variant | {"request_timeout_sec": 1})
    with connect(started.port) as connection:
        began = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        assert statuses(read_all(connection)) == [408]
        assert 0.9 < time.monotonic() - began < 5


def test_a_body_that_does_not_come_is_answered_408_in_time(serve, variant, echo):
    started = serve(to(echo) | variant | {"body_timeout_sec": 1})
    with connect(started.port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
        assert statuses(read_all(connection)) == [408]
    until(lambda: open_at(echo) == 0, "the upstream is rid of the request")


def test_a_connection_that_says_nothing_is_closed_without_a_word(serve, variant, echo):
    started = serve(to(echo) | variant | {"idle_timeout_sec": 1})
    with connect(started.port) as connection:
        assert read_all(connection) == b""
    with connect(started.port) as connection:
        connection.sendall(GET)
        assert statuses(read_all(connection)) == [200]


def test_a_client_that_takes_nothing_is_cut_off_and_the_upstream_with_it(serve, variant, echo):
    started = serve(to(echo) | variant | {"send_timeout_sec": 1})
    with connect(started.port) as connection:
        connection.sendall(b"GET /bytes?n=1000000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: open_at(echo) == 1, "the download begins")
        until(lambda: open_at(echo) == 0, "the download is given up")


@pytest.mark.parametrize("leave", [socket.socket.close, kill], ids=["closes", "is killed"])
def test_a_client_that_leaves_in_mid_download_frees_everything(gateway, echo, leave):
    before = warm(gateway)
    clients = [connect(gateway.port) for _ in range(20)]
    for connection in clients:
        connection.sendall(b"GET /stream?n=1000000000&size=10000 HTTP/1.1\r\nHost: a\r\n\r\n")
        read_until(connection, b"\r\n\r\n")
    assert open_at(echo) == 20
    for connection in clients:
        leave(connection)
    until(lambda: open_at(echo) == 0, "the upstream's side is freed")
    until(lambda: gateway.files() <= before, "the gateway's descriptors are freed")


@pytest.mark.parametrize("leave", [socket.socket.close, kill], ids=["closes", "is killed"])
def test_a_client_that_leaves_in_mid_upload_frees_everything(gateway, echo, leave):
    before = warm(gateway)
    clients = [connect(gateway.port) for _ in range(20)]
    for connection in clients:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n" + bytes(100_000))
    until(lambda: open_at(echo) == 20, "the uploads begin")
    for connection in clients:
        leave(connection)
    until(lambda: open_at(echo) == 0, "the upstream's side is freed")
    until(lambda: gateway.files() <= before, "the gateway's descriptors are freed")


def test_a_client_that_is_killed_while_the_upstream_thinks_cancels_the_work(serve, variant):
    seen = []

    def think(connection):
        read_until(connection, b"\r\n\r\n")
        seen.append("request")
        seen.append(connection.recv(1))

    upstream = Upstream(think)
    started = serve(to(upstream) | variant)
    connection = connect(started.port)
    connection.sendall(GET)
    until(lambda: seen == ["request"], "the upstream has the request")
    kill(connection)
    until(lambda: upstream.connections == 0, "the upstream connection is closed")
    upstream.close()


def test_a_client_that_has_said_all_it_will_say_still_gets_its_answer(gateway):
    with connect(gateway.port) as connection:
        connection.sendall(b"GET /slow?ms=300 HTTP/1.1\r\nHost: a\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert statuses(read_all(connection)) == [200]


def test_what_is_under_way_is_finished_when_the_gateway_is_told_to_stop(serve, variant, echo):
    started = serve(to(echo) | variant)
    with connect(started.port) as idle, connect(started.port) as connection:
        connection.sendall(b"GET /slow?ms=700 HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: open_at(echo) == 1, "the request is under way")
        started.child.terminate()
        started.wait_for("stopping: SIGTERM")
        assert read_all(idle) == b""
        answer = read_all(connection)
    assert statuses(answer) == [200]
    assert b"\r\nconnection: close\r\n" in answer
    assert started.wait() == 0


def test_what_takes_longer_than_the_drain_timeout_is_cut_off(serve, variant, echo):
    started = serve(to(echo) | variant | {"shutdown_drain_timeout_sec": 1})
    with connect(started.port) as connection:
        connection.sendall(b"GET /slow?ms=60000 HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: open_at(echo) == 1, "the request is under way")
        began = time.monotonic()
        assert started.end() == 0
        assert 0.9 < time.monotonic() - began < 5
        assert read_all(connection) == b""
    until(lambda: open_at(echo) == 0, "the upstream's side is freed")


def test_a_second_signal_stops_it_at_once(serve, variant, echo):
    started = serve(to(echo) | variant)
    with connect(started.port) as connection:
        connection.sendall(b"GET /slow?ms=60000 HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: open_at(echo) == 1, "the request is under way")
        started.child.terminate()
        started.wait_for("stopping: SIGTERM")
        started.child.terminate()
        started.wait_for("stopping now: SIGTERM came a second time")
        assert read_all(connection) == b""
    assert started.wait() == 0
    until(lambda: open_at(echo) == 0, "the upstream's side is freed")


def test_connections_beyond_the_limit_are_told_so(serve, variant, echo):
    started = serve(to(echo) | variant | {"max_connections": 2})
    held = [connect(started.port) for _ in range(2)]
    for connection in held:
        connection.sendall(GET)
        read_until(connection, b"\r\n\r\n")
    with connect(started.port) as connection:
        assert statuses(read_all(connection)) == [503]
    for connection in held:
        connection.close()
