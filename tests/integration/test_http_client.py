"""Python's http.client through the gateway: sequences, many at once, and upstreams that answer before they have read."""

import hashlib
import http.client
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import to
from wire import Upstream, read_until

from gw.testing import PATIENCE

MIB = 1 << 20
EARLY = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\nX-Id: %b\r\n\r\ntoo large"


def client(port):
    return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)


def exchange(connection, method, path, body=None, headers=None, **more):
    connection.request(method, path, body, headers or {}, **more)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_connection_is_kept_through_a_sequence_of_every_kind(gateway):
    connection = client(gateway.port)
    connection.connect()
    sock = connection.sock
    for turn in range(20):
        status, body = exchange(connection, "GET", f"/get/{turn}")
        assert (status, json.loads(body)["path"]) == (200, f"/get/{turn}")
        status, body = exchange(connection, "POST", "/post", b"x" * turn)
        assert (status, json.loads(body)["body_size"]) == (200, turn)
        pieces = [b"one", b"two" * 10_000, b"three"]
        status, body = exchange(connection, "PUT", "/put", iter(pieces), encode_chunked=True)
        assert (status, json.loads(body)["body_size"]) == (200, 30_008)
        assert exchange(connection, "HEAD", "/bytes?n=99") == (200, b"")
        assert exchange(connection, "GET", "/status/204") == (204, b"")
        assert exchange(connection, "GET", "/stream?n=3&size=4") == (200, b"abcd" * 3)
        assert exchange(connection, "GET", "/status/304") == (304, b"")
        status, body = exchange(connection, "GET", "/bytes?n=300000")
        assert (status, len(body)) == (200, 300_000)
    assert connection.sock is sock
    connection.close()


def test_posts_of_10_kib_over_32_connections_are_each_answered_with_their_own_body(gateway):
    def run(number):
        connection = client(gateway.port)
        for turn in range(25):
            body = f"{number}/{turn};".encode() * 2000
            body = body[:10240]
            status, answer = exchange(connection, "POST", f"/{number}/{turn}", body, {"X-Number": f"{number}-{turn}"})
            request = json.loads(answer)
            assert (status, request["path"], request["body"]) == (200, f"/{number}/{turn}", body.decode())
            assert ["x-number", f"{number}-{turn}"] in request["headers"]
        connection.close()

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(run, range(32)))


def test_a_large_upload_arrives_byte_for_byte(gateway):
    body = b"".join(n.to_bytes(4, "big") for n in range(4 * MIB))
    connection = client(gateway.port)
    status, answer = exchange(connection, "POST", "/upload", body)
    request = json.loads(answer)
    assert (status, request["body_size"]) == (200, 16 * MIB)
    assert request["body_sha256"] == hashlib.sha256(body).hexdigest()
    connection.close()


def early_upstream(*, reads):
    """An upstream that answers as soon as it has a head; then it *reads* on for the next request, or closes."""

    def serve(connection):
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                received = connection.recv(65536)
                if not received:
                    return
                data += received
            head, _, data = data.partition(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
            connection.sendall(EARLY % fields[b"x-id"])
            if not reads:
                return
            left = int(fields[b"content-length"]) - len(data)
            data = b""
            while left > 0:
                received = connection.recv(min(left, 65536))
                if not received:
                    return
                left -= len(received)

    return Upstream(serve)


@pytest.mark.parametrize("reads", [True, False], ids=["reads on", "closes"])
def test_an_upload_of_16_mib_that_is_answered_early_shows_the_answer_every_time(variant, serve, reads):
    upstream = early_upstream(reads=reads)
    started = serve(to(upstream) | variant | {"max_body_size": 0})
    body = memoryview(bytes(16 * MIB))

    def run(number):
        with socket.create_connection(("127.0.0.1", started.port), timeout=PATIENCE) as connection:
            head = b"POST /%d HTTP/1.1\r\nHost: a\r\nX-Id: %d\r\nContent-Length: %d\r\n\r\n" % (
                number,
                number,
                len(body),
            )
            sending = threading.Thread(target=_send, args=(connection, head, body))
            sending.start()
            answer = read_until(connection, b"too large")
            connection.shutdown(socket.SHUT_RDWR)
            sending.join()
        assert answer.startswith(b"HTTP/1.1 413 "), answer
        assert b"x-id: %d\r\n" % number in answer, answer

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(40)))
    upstream.close()


def _send(connection, head, body):
    try:
        connection.sendall(head)
        connection.sendall(body)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the gateway has answered, and no longer listens


def test_http_client_sees_an_early_answer_although_it_sends_everything_first(gateway):
    """It reads only when it has sent all: the answer must outlast the upload."""
    for _ in range(10):
        connection = client(gateway.port)
        assert exchange(connection, "POST", "/early", bytes(2 * MIB))[0] == 413
        connection.close()


def test_an_answer_may_begin_and_go_on_while_the_request_is_still_being_sent(gateway, serve, variant):
    def echo_as_it_comes(connection):
        read_until(connection, b"\r\n\r\n")
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while data := connection.recv(65536):
            connection.sendall(data)

    upstream = Upstream(echo_as_it_comes)
    started = serve(to(upstream) | variant)
    with socket.create_connection(("127.0.0.1", started.port), timeout=PATIENCE) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        read_until(connection, b"\r\n\r\n")
        for turn in range(50):
            connection.sendall(b"4\r\n%04d\r\n" % turn)
            assert read_until(connection, b"\r\n%04d\r\n" % turn).endswith(b"4\r\n%04d\r\n" % turn)
        connection.sendall(b"0\r\n\r\n")
        assert read_until(connection, b"0\r\n\r\n").endswith(b"0\r\n\r\n")
    upstream.close()
