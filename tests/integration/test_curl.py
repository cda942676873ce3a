"""curl through the gateway to the echo upstream: what people try first."""

import json
import re
import subprocess

import pytest


@pytest.fixture
def curl(peer, gateway):
    program = peer("curl")

    def run(path, *arguments, **streams):
        done = subprocess.run(
            [
                program,
                "--silent",
                "--show-error",
                "--max-time",
                "20",
                *arguments,
                f"http://127.0.0.1:{gateway.port}{path}",
            ],
            capture_output=True,
            check=False,
            timeout=30,
            **streams,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def echoed(output):
    """What the upstream was sent, its headers as a dictionary of lists."""
    request = json.loads(output)
    headers = {}
    for name, value in request["headers"]:
        headers.setdefault(name, []).append(value)
    return request | {"headers": headers}


def test_a_get_arrives_with_its_query_and_the_headers_of_a_proxy(curl, gateway):
    request = echoed(curl("/a/b?c=d&e=%20f", "-H", "X-Mine: 1", "-H", "X-Mine: 2"))
    assert (request["method"], request["path"], request["body"]) == ("GET", "/a/b?c=d&e=%20f", "")
    headers = request["headers"]
    assert headers["x-mine"] == ["1", "2"]
    assert headers["x-forwarded-for"] == ["127.0.0.1"]
    assert headers["x-forwarded-host"] == [f"127.0.0.1:{gateway.port}"]
    assert headers["via"] == ["1.1 gw"]
    assert len(headers["x-request-id"][0]) == 32


def test_a_post_arrives_with_its_body_and_length(curl):
    request = echoed(curl("/form", "-d", "name=value"))
    assert (request["method"], request["body"]) == ("POST", "name=value")
    assert request["headers"]["content-length"] == ["10"]


def test_an_upload_that_expects_continue_is_asked_for_by_the_upstream(curl, tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789abcdef" * 131072)
    output = curl(
        "/upload", "-T", tmp_path / "file", "-H", "Expect: 100-continue", "--expect100-timeout", "15", "-v", "-i"
    )
    interim, final, body = output.split(b"\r\n\r\n", 2)
    assert interim == b"HTTP/1.1 100 Continue"
    assert final.startswith(b"HTTP/1.1 200 OK\r\n")
    request = echoed(body)
    assert (request["method"], request["body_size"]) == ("PUT", 2097152)


def test_a_final_answer_may_come_in_place_of_continue(curl, tmp_path):
    (tmp_path / "file").write_bytes(bytes(2_000_000))
    output = curl("/early", "-T", tmp_path / "file", "-H", "Expect: 100-continue", "--expect100-timeout", "15", "-i")
    assert re.findall(rb"HTTP/1.1 (\d+)", output) == [b"413"]


def test_an_upload_without_a_length_is_chunked_and_arrives_whole(curl):
    request = echoed(curl("/upload", "-T", "-", input=b"chunk" * 50_000))
    assert request["body_size"] == 250_000
    assert request["headers"]["transfer-encoding"] == ["chunked"]
    assert "content-length" not in request["headers"]


def test_head_has_the_length_of_the_body_and_no_body(curl):
    head = curl("/bytes?n=1000", "--head").lower()
    assert head.startswith(b"http/1.1 200 ok\r\n")
    assert b"content-length: 1000\r\n" in head
    assert head.endswith(b"\r\n\r\n")


def test_an_http_1_0_client_gets_an_unchunked_answer(curl):
    output = curl("/stream?n=3&size=5", "--http1.0", "-i", "--raw")
    head, _, body = output.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == b"abcdeabcdeabcde"


def test_trailers_reach_the_client(curl):
    output = curl("/trailers", "--raw", "-i", "-d", "hello")
    digest = b"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert output.endswith(b"\r\n0\r\nx-body-size: 5\r\nx-body-sha256: " + digest + b"\r\n\r\n")


def test_early_hints_reach_the_client_before_the_answer(curl):
    hints, final, body = curl("/hints", "-i").split(b"\r\n\r\n", 2)
    assert hints == b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload"
    assert final.startswith(b"HTTP/1.1 200 OK\r\n")
    assert echoed(body)["path"] == "/hints"


def test_one_connection_carries_one_request_after_the_other(curl, gateway):
    urls = [f"http://127.0.0.1:{gateway.port}/{n}" for n in range(9)]
    connects = curl("/9", *urls, "-o", "/dev/null", *["-o", "/dev/null"] * 9, "-w", "%{num_connects} %{http_code},")
    assert connects == b"1 200," + b"0 200," * 9


@pytest.mark.parametrize(
    ("sent", "forwarded"),
    [
        ("/a/../b", "/b"),
        ("/a/%2e%2e/b", "/b"),
        ("/%61dmin", "/admin"),
        ("//admin", "/admin"),
        ("/a%2Fb", "/a%2Fb"),
    ],
)
def test_what_is_forwarded_is_the_normalised_path(curl, sent, forwarded):
    assert echoed(curl(sent, "--path-as-is"))["path"] == forwarded


@pytest.mark.parametrize("sent", ["/../etc/passwd", "/a/%2e%2e/%2E./b", "/a%00b", "/a%5Cb"])
def test_a_path_with_two_readings_is_refused(curl, sent):
    assert curl(sent, "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}") == b"400"


def test_an_absolute_target_is_forwarded_by_its_path_and_host(curl, gateway):
    output = curl(
        "", "--proxy", f"http://127.0.0.1:{gateway.port}", "http://example.test/there?x=y", "-o", "/dev/stdout"
    )
    request = echoed(output[: output.index(b"\n")])
    assert request["path"] == "/there?x=y"
    assert request["headers"]["x-forwarded-host"] == ["example.test"]


def test_a_tunnel_is_refused(peer, gateway):
    command = [peer("curl"), "-sS", "-p", "-x", f"http://127.0.0.1:{gateway.port}", "http://example.test/"]
    done = subprocess.run([*command, "-w", "%{http_connect}"], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "501"


@pytest.mark.parametrize("status", [204, 304, 404, 500, 599])
def test_a_status_is_passed_on(curl, status):
    output = curl(f"/status/{status}", "-o", "/dev/null", "-w", "%{http_code}")
    assert output == str(status).encode()
