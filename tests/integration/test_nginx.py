"""nginx as the upstream, and wrk as the client: programs that were not written with us in mind."""

import contextlib
import gzip
import http.client
import re
import subprocess
import threading

import pytest
from conftest import to
from nginx_upstream import SIZE, Nginx
from started import start_gateway

from gw.testing import PATIENCE

_MOMENT = threading.Event()


@pytest.fixture(scope="module")
def nginx(peer, tmp_path_factory):
    with contextlib.closing(Nginx(peer("nginx"), tmp_path_factory.mktemp("upstream"))) as started:
        yield started


@pytest.fixture(scope="module")
def started(nginx, variant, tmp_path_factory):
    with contextlib.closing(start_gateway(to(nginx) | variant, folder=tmp_path_factory.mktemp("gateway"))) as gateway:
        yield gateway


@pytest.fixture
def ask(started):
    connection = http.client.HTTPConnection("127.0.0.1", started.port, timeout=PATIENCE)

    def ask(path, **headers):
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    yield ask
    connection.close()


@pytest.fixture
def load(peer):
    """Load a URL with wrk; there must not be one error. Returns the number of requests."""

    def run(url, seconds):
        command = [peer("wrk"), "-t2", "-c64", f"-d{seconds}s", "--timeout", "10s", url]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
        assert "Socket errors" not in output, output
        assert "Non-2xx" not in output, output
        return int(re.search(r"([0-9]+) requests in", output)[1])

    return run


def test_a_static_file_arrives_whole(ask):
    status, headers, body = ask("/file.bin")
    assert (status, headers["Content-Length"]) == (200, str(SIZE))
    assert body == bytes(range(256)) * (SIZE // 256)


def test_a_range_is_passed_on(ask):
    status, headers, body = ask("/file.bin", Range="bytes=1000-1009")
    assert (status, headers["Content-Range"], body) == (206, f"bytes 1000-1009/{SIZE}", bytes(range(232, 242)))
    status, headers, _ = ask("/file.bin", Range=f"bytes={SIZE}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{SIZE}")


def test_a_file_that_the_client_has_is_not_sent_again(ask):
    _, headers, _ = ask("/file.bin")
    status, again, body = ask("/file.bin", If_None_Match=headers["ETag"])
    assert (status, body, again["ETag"]) == (304, b"", headers["ETag"])
    assert ask("/file.bin")[0] == 200  # on the same connection: nothing was left over


def test_a_compressed_answer_stays_compressed_and_chunked(ask):
    status, headers, body = ask("/zipped/file.bin", Accept_Encoding="gzip")
    assert (status, headers["Content-Encoding"], headers["Transfer-Encoding"]) == (200, "gzip", "chunked")
    assert gzip.decompress(body) == bytes(range(256)) * (SIZE // 256)


@pytest.mark.parametrize("path", ["/three/small.txt", "/hasty/small.txt"])
def test_connections_that_nginx_closes_between_requests_cost_no_request(started, load, path):
    assert load(f"http://127.0.0.1:{started.port}{path}", 2) > 100


def test_connections_that_nginx_closes_while_they_are_idle_cost_no_request(ask):
    for _ in range(100):
        assert ask("/hasty/small.txt")[0] == 200
        _MOMENT.wait(0.010)  # when nginx closes: now and then it crosses our next request


def test_five_seconds_of_load_over_64_connections_without_an_error(gateway, load):
    assert load(f"http://127.0.0.1:{gateway.port}/bytes?n=1000", 5) > 500


def test_load_with_large_answers_without_an_error(started, load):
    assert load(f"http://127.0.0.1:{started.port}/file.bin", 2) > 100
