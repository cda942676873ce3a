import hashlib
import json
import socket
import subprocess
import sys

import anyio
import pytest
from click.testing import CliRunner

from gw.echo import Echo, main
from gw.limits import ECHO_BODY
from gw.net.network import Network
from gw.testing import PATIENCE


@pytest.fixture
async def port():
    """Where an echo upstream listens, while the test runs."""
    async with anyio.create_task_group() as tasks:
        network = Network(tasks)
        listener = await network.listen(("127.0.0.1", 0), Echo().serve)
        yield listener.address[1]
        listener.close()
        tasks.cancel_scope.cancel()


async def ask(port, *pieces, then=b""):
    """Send *pieces*, and once something came *then*; return all that comes until the other side closes."""
    received = bytearray()
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        for piece in pieces:
            await stream.send(piece)
        with anyio.fail_after(PATIENCE):
            if then:
                received += await stream.receive()
                await stream.send(then)
            try:
                async for data in stream:
                    received += data
            except anyio.BrokenResourceError:
                pass  # it closed although we were still sending
    return bytes(received)


def request(line, *fields, body=b"", version="1.1"):
    lines = [f"{line} HTTP/{version}", "Host: a", *fields]
    if not any(field.startswith("Connection") for field in fields):
        lines.append("Connection: close")
    return "".join(f"{each}\r\n" for each in lines).encode() + b"\r\n" + body


def split(received):
    head, _, body = received.partition(b"\r\n\r\n")
    return head.split(b"\r\n"), body


async def test_a_request_is_said_back(port):
    received = await ask(port, request("POST /a?b=c", "X-Y: z", "X-Y: \xe9", "Content-Length: 3", body=b"\x00\xffx"))
    lines, body = split(received)
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert b"content-type: application/json" in lines
    assert json.loads(body) == {
        "method": "POST",
        "path": "/a?b=c",
        "version": "1.1",
        "headers": [
            ["host", "a"],
            ["x-y", "z"],
            ["x-y", "\xc3\xa9"],
            ["content-length", "3"],
            ["connection", "close"],
        ],
        "body": "\x00\xffx",
        "body_size": 3,
        "body_sha256": hashlib.sha256(b"\x00\xffx").hexdigest(),
        "trailers": None,
    }


async def test_of_a_long_body_the_beginning_and_the_digest_are_said_back(port):
    long = b"0123456789" * (ECHO_BODY // 5)
    _, body = split(await ask(port, request("PUT /", f"Content-Length: {len(long)}"), long))
    shown = json.loads(body)
    assert shown["body"] == long[:ECHO_BODY].decode()
    assert (shown["body_size"], shown["body_sha256"]) == (len(long), hashlib.sha256(long).hexdigest())


async def test_chunks_and_trailers_are_read_and_trailers_sent(port):
    chunked = b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX-Check: 1\r\n\r\n"
    lines, body = split(await ask(port, request("POST /trailers", "Transfer-Encoding: chunked", body=chunked)))
    assert lines[1:] == [b"transfer-encoding: chunked", b"trailer: x-body-size, x-body-sha256", b"connection: close"]
    size, _, rest = body.partition(b"\r\n")
    shown = json.loads(rest[: int(size, 16)])
    assert (shown["body"], shown["trailers"]) == ("hello", [["x-check", "1"]])
    digest = hashlib.sha256(b"hello").hexdigest().encode()
    assert rest[int(size, 16) :] == b"\r\n0\r\nx-body-size: 5\r\nx-body-sha256: " + digest + b"\r\n\r\n"


async def test_a_stream_is_chunked(port):
    _, body = split(await ask(port, request("GET /stream?n=2&size=3")))
    assert body == b"3\r\nabc\r\n3\r\nabc\r\n0\r\n\r\n"


async def test_a_stream_to_http_1_0_ends_with_the_connection(port):
    lines, body = split(await ask(port, request("GET /stream?n=2&size=3", "Connection: keep-alive", version="1.0")))
    assert lines == [b"HTTP/1.1 200 OK", b"connection: close"]
    assert body == b"abcabc"


async def test_bytes_has_as_many_as_it_declares(port):
    lines, body = split(await ask(port, request("GET /bytes?n=100000")))
    assert b"content-length: 100000" in lines
    assert len(body) == 100_000


@pytest.mark.parametrize("path", ["/", "/bytes?n=9", "/stream", "/trailers", "/status/404"])
async def test_head_has_no_body(port, path):
    _, body = split(await ask(port, request(f"HEAD {path}")))
    assert body == b""


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (404, b"HTTP/1.1 404 Not Found"),
        (599, b"HTTP/1.1 599 Server Error"),
    ],
)
async def test_a_status_can_be_asked_for(port, status, line):
    lines, body = split(await ask(port, request(f"GET /status/{status}")))
    assert lines[0] == line
    assert json.loads(body)["path"] == f"/status/{status}"


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_a_status_without_a_body_has_none(port, status):
    _, body = split(await ask(port, request(f"GET /status/{status}")))
    assert body == b""


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/status/199", "status must be a number from 200 to 599, not '199'"),
        ("/status/ok", "status must be a number from 200 to 599, not 'ok'"),
        ("/bytes?n=-1", "n must be a number from 0 to 4294967296, not '-1'"),
        ("/stream?size=0", "size must be a number from 1 to 65529, not '0'"),
        ("/slow?ms=600001", "ms must be a number from 0 to 600000, not '600001'"),
        ("/bytes?n=" + "9" * 40, f"n must be a number from 0 to 4294967296, not '{'9' * 20}'"),
    ],
)
async def test_a_number_that_cannot_be_had_is_refused(port, path, message):
    lines, body = split(await ask(port, request(f"GET {path}")))
    assert lines[0] == b"HTTP/1.1 400 Bad Request"
    assert body == f"{message}\n".encode()


async def test_continue_is_said_once_before_the_body(port):
    head = request("POST /", "Expect: 100-continue", "Content-Length: 2")
    received = await ask(port, head, then=b"hi")
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("then", ["read", "close"])
async def test_early_answers_before_the_body_and_asks_for_none(port, then):
    head = request(f"POST /early?then={then}", "Expect: 100-continue", "Content-Length: 2")
    lines, body = split(await ask(port, head, then=b"hi"))
    assert lines[0] == b"HTTP/1.1 413 Payload Too Large"
    assert body == b"this came before your body was read\n"


async def test_hints_come_before_the_answer(port):
    received = await ask(port, request("GET /hints"))
    assert received.startswith(
        b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n"
    )


async def test_requests_on_one_connection_are_answered_in_order(port):
    kept = [request(f"GET /{n}", "Connection: keep-alive") for n in range(5)]
    received = await ask(port, b"".join([*kept, request("GET /last")]))
    paths = [json.loads(part.partition(b"\r\n\r\n")[2])["path"] for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert paths == ["/0", "/1", "/2", "/3", "/4", "/last"]


async def test_what_breaks_the_rules_is_refused(port):
    assert (await ask(port, b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    bad_body = request("POST /", "Transfer-Encoding: chunked", body=b"x\r\n")
    assert (await ask(port, bad_body)).startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_open_counts_what_is_under_way_and_a_client_that_leaves_is_not_counted(port):
    async def count():
        return json.loads(split(await ask(port, request("GET /open")))[1])

    assert await count() == {"connections": 1, "exchanges": 1}
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(request("GET /slow?ms=600000"))
        with anyio.fail_after(PATIENCE):
            while await count() != {"connections": 2, "exchanges": 2}:
                pass
    with anyio.fail_after(PATIENCE):
        while await count() != {"connections": 1, "exchanges": 1}:
            pass


def test_a_port_in_use_is_a_failure_that_says_so():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = CliRunner().invoke(main, ["--port", str(port)])
    assert result.exit_code == 1
    assert result.stderr == f"echo: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_it_runs_as_a_module_until_it_is_told_to_stop():
    command = [sys.executable, "-m", "gw.echo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        port = int(line.removeprefix("echo: listening on http://127.0.0.1:"))
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(request("GET /"))
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        process.terminate()
        assert process.wait(10) == 0


async def test_a_client_that_takes_everything_neither_keeps_others_waiting_nor_is_served_when_it_has_left(port):
    async with await anyio.connect_tcp("127.0.0.1", port) as greedy:
        await greedy.send(request("GET /stream?n=4294967296&size=65529"))
        with anyio.fail_after(PATIENCE):
            for _ in range(100):
                await greedy.receive()
            assert (await ask(port, request("GET /"))).startswith(b"HTTP/1.1 200 OK")
    with anyio.fail_after(PATIENCE):
        while json.loads(split(await ask(port, request("GET /open")))[1])["exchanges"] > 1:
            pass
