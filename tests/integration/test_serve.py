"""``gw serve`` as people run it: flags, exit codes, signals, logs."""

import http.client
import json
import signal
import socket
from pathlib import Path

import pytest
from conftest import to
from started import start_gateway, until

from gw.testing import PATIENCE


def ask(port, path="/", host="127.0.0.1", **headers):
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture
def failing(tmp_path):
    """Run a gateway that cannot start; return its exit code and what it said."""

    def run(configuration, *arguments):
        started = start_gateway(configuration, *arguments, folder=tmp_path, may_fail=True)
        code = started.wait()
        assert "Traceback" not in started.log, started.log
        return code, started.log

    return run


def test_everything_can_be_passed_on_to_a_url_without_a_file(serve, echo):
    started = serve(None, "--to", f"http://127.0.0.1:{echo.port}", "-p", "0")
    status, body = ask(started.port, "/any/where?at=all")
    assert (status, json.loads(body)["path"]) == (200, "/any/where?at=all")


def test_host_and_port_on_the_command_line_win_over_the_file(serve, echo):
    started = serve(to(echo) | {"bind_port": 1, "bind_host": "192.0.2.1"}, "-H", "127.0.0.2", "-p", "0")
    assert ask(started.port, host="127.0.0.2")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        ask(started.port, host="127.0.0.1")


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_it_listens_on_ipv6_and_tells_the_upstream_so(serve, echo):
    started = serve(to(echo), "-H", "::1")
    _, body = ask(started.port, host="::1")
    assert ["x-forwarded-for", "::1"] in json.loads(body)["headers"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_a_port_in_use_is_a_failure_that_says_so(failing, loop):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, said = failing({"bind_port": port, "loop": loop})
    assert code == 1
    assert said.endswith(f"[critical] cannot serve: cannot listen on 127.0.0.1:{port}: Address already in use\n")


def test_a_configuration_that_is_refused_is_a_failure_with_its_position(failing):
    code, said = failing({"bind_prot": 1})
    assert code == 1
    assert "gw.yaml:1:2: bind_prot: is not a known key (did you mean 'bind_port'?)" in said


def test_a_file_that_is_not_there_is_a_failure(failing, tmp_path):
    code, said = failing(None, "-c", "nowhere.yaml")
    assert code == 1
    assert "nowhere.yaml" in said


def test_a_log_file_that_cannot_be_written_is_a_failure(failing, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    for log in ({"file": f"{tmp_path}/file/gw.log"}, {"access": {"enabled": True, "file": f"{tmp_path}/file/a.log"}}):
        code, said = failing({"bind_port": 0, "log": log})
        assert code == 1
        assert "cannot write the log file" in said


@pytest.mark.parametrize("arguments", [("--port", "65536"), ("--nonsense",), ("--to", "x", "-c", "y"), ("extra",)])
def test_a_wrong_call_is_a_usage_error(failing, arguments):
    code, said = failing(None, *arguments)
    assert code == 2
    assert "Error: " in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_a_signal_stops_it_with_success(serve, number, loop):
    started = serve({"bind_port": 0, "loop": loop})
    started.child.send_signal(number)
    assert started.wait() == 0
    assert f"stopping: {number.name}" in started.log


def test_the_access_log_has_a_line_for_every_exchange(serve, variant, echo, tmp_path):
    file = tmp_path / "access.log"
    settings = {"log": {"access": {"enabled": True, "file": str(file)}}}
    started = serve(to(echo) | variant | settings)
    for n in range(10):
        ask(started.port, f"/{n}?secret=1", User_Agent='a "quoted" one')
    ask(started.port, "/status/503")
    until(lambda: file.read_text().count("\n") == 11, "the lines are written")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["path"] for line in lines] == [*(f"/{n}" for n in range(10)), "/status/503"]
    assert [line["status"] for line in lines] == [200] * 10 + [503]
    first = lines[0]
    assert (first["method"], first["outcome"], first["attempts"]) == ("GET", "upstream", 1)
    assert first["endpoint"] == f"127.0.0.1:{echo.port}"
    assert first["header_user_agent"] == 'a "quoted" one'
    assert first["bytes_sent"] > 0
    assert len({line["request_id"] for line in lines}) == 11
    assert "secret" not in file.read_text()


def test_the_access_log_goes_on_in_a_new_file_after_somebody_moved_it(serve, variant, echo, tmp_path):
    file, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    settings = {"log": {"access": {"enabled": True, "file": str(file), "format": "text", "template": "${path}"}}}
    started = serve(to(echo) | variant | settings)
    for n in range(20):
        ask(started.port, f"/before/{n}")
    until(lambda: file.read_text().count("\n") == 20, "the lines are written")
    file.rename(moved)
    for n in range(20):
        ask(started.port, f"/after/{n}")
    until(lambda: file.exists() and file.read_text().count("\n") == 20, "the new file is written")
    assert moved.read_text().splitlines() == [f"/before/{n}" for n in range(20)]
    assert file.read_text().splitlines() == [f"/after/{n}" for n in range(20)]


def test_the_last_lines_are_written_before_it_ends(serve, variant, echo, tmp_path):
    file = tmp_path / "access.log"
    started = serve(to(echo) | variant | {"log": {"access": {"enabled": True, "file": str(file)}}})
    for _ in range(5):
        ask(started.port)
    started.end()
    assert file.read_text().count("\n") == 5


def test_the_access_log_on_standard_output_is_apart_from_the_application_log(serve, echo):
    started = serve(
        to(echo) | {"log": {"access": {"enabled": True, "format": "text", "template": "${method} ${status}"}}}
    )
    ask(started.port)
    started.wait_for(r"(?m)^GET 200$")


def test_an_upstream_that_is_not_there_is_502_and_the_log_says_why(serve, variant, tmp_path):
    file = tmp_path / "access.log"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    upstream = {"name": "gone", "host": "127.0.0.1", "port": port, "proxy": {"route_prefix": "/"}}
    log = {"access": {"enabled": True, "file": str(file)}}
    started = serve({"bind_port": 0, "upstreams": [upstream], "log": log} | variant)
    assert ask(started.port) == (502, b"Bad Gateway")
    status, body = ask(started.port, Accept="application/problem+json")
    assert (status, json.loads(body)["status"]) == (502, 502)
    until(lambda: file.read_text().count("\n") == 2, "the lines are written")
    assert json.loads(file.read_text().splitlines()[0])["reason"] == "gw.connect_failure"
