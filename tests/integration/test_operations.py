"""What an operator does to a running gateway, and what clients notice of it: nothing."""

import contextlib
import http.client
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from certificates import Authority
from conftest import to
from prometheus_client.parser import text_string_to_metric_families
from started import environment, start_gateway, until
from wire import Upstream, ask, connect, read_all, read_until, statuses

from gw.testing import PATIENCE

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Commands:
    """`gw` commands for one gateway."""

    def __init__(self, folder, name="gw-1"):
        self.folder, self.pid_file, self.file = folder, folder / f"{name}.pid", folder / f"{name}.yaml"

    def __call__(self, *arguments, code=0):
        command = [sys.executable, "-W", "error", "-m", "gw", *arguments, "-P", str(self.pid_file)]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE * 3,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    def status(self):
        return json.loads(self("status", "--json"))

    def write(self, configuration):
        self.file.write_text(json.dumps(configuration))


@pytest.fixture
def gw(tmp_path):
    return Commands(tmp_path)


def get(port, path="/", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def figures(port, token=None, path="/stats"):
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    status, body = get(port, path, **headers)
    assert status == 200, body
    return json.loads(body)


class Wrk:
    """wrk, running beside; `failures` ends it and returns what it complains of."""

    def __init__(self, program, port, connections=20):
        self._child = subprocess.Popen(
            [program, "-t1", f"-c{connections}", "-d120", f"http://127.0.0.1:{port}/"],
            stdout=subprocess.PIPE,
            text=True,
        )

    def failures(self):
        self._child.send_signal(signal.SIGINT)
        said = self._child.communicate(timeout=PATIENCE * 3)[0]
        assert int(re.search(r"(\d+) requests in", said)[1]) > 100, said
        return [line.strip() for line in said.splitlines() if "Socket errors" in line or "Non-2xx" in line]


def events(connection):
    """An upstream's side of an event stream: an event a turn, until the client leaves."""
    pause = threading.Event()
    read_until(connection, b"\r\n\r\n")
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"9\r\ndata: 1\n\n\r\n")
        pause.wait(0.02)


# --- workers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_connections_are_spread_over_the_workers(serve, echo, loop):
    started = serve(to(echo) | {"workers": 2, "loop": loop})
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(connect(started.port))
            connection.sendall(GET)
            read_until(connection, b"\r\n\r\n")
        spread = figures(started.port)["workers"]["connections"]
        assert sum(spread.values()) == 31
        assert min(spread.values()) >= 12, spread


def test_a_worker_that_is_killed_loses_its_own_requests_and_another_one_follows(serve, echo, gw, peer):
    started = serve(to(echo) | {"workers": 2})
    victim, other = (each["pid"] for each in gw.status()["workers"])
    load = Wrk(peer("wrk"), started.port)
    until(lambda: figures(started.port)["requests"]["total"] > 200, "the load runs")
    os.kill(victim, signal.SIGKILL)
    started.wait_for(rf"worker 1 \(pid {victim}\) was killed by signal 9; another one follows")
    until(lambda: len([w for w in gw.status()["workers"] if w["state"] == "ready"]) == 2, "it is back")
    failures = load.failures()
    # wrk counts a read error for each connection that was cut, and goes on with a new one: half of the 20, or so.
    lost = sum(int(n) for n in re.findall(r"(?:connect|read|write|timeout) (\d+)", " ".join(failures)))
    assert lost <= 20, failures
    assert "Non-2xx" not in " ".join(failures)
    workers = gw.status()["workers"]
    assert [each["restarts"] for each in workers] == [1, 0]
    assert workers[1]["pid"] == other


def scraped(port):
    """The requests that /metrics has counted of all workers, and the connections that are open."""
    text = get(port, "/metrics")[1].decode()
    found = {"requests": 0.0, "open": 0.0, "started": float("process_start_time_seconds" in text)}
    assert "process_cpu_seconds_total" in text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "http_server_request_duration_seconds_count":
                if sample.labels.get("http_route") == "/":
                    found["requests"] += sample.value
            elif sample.name == "gw_net_connections_active":
                found["open"] += sample.value
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_metrics_are_those_of_all_workers_and_never_fall(serve, echo, gw, workers):
    observed = {"enabled": True, "metrics": {"exporter": "prometheus_pull"}}
    started = serve(to(echo) | {"workers": workers, "observability": observed})
    with contextlib.ExitStack() as stack:
        for _ in range(8):  # more than one worker takes
            connection = stack.enter_context(connect(started.port))
            connection.sendall(GET)
            read_until(connection, b"\r\n\r\n")
        wanted = {"requests": 8, "open": 9, "started": workers == 1}
        until(lambda: scraped(started.port) == wanted, "each of them is counted")
    if workers == 2:
        victim = gw.status()["workers"][0]["pid"]
        os.kill(victim, signal.SIGKILL)
        started.wait_for("was killed by signal 9")
        until(lambda: len([w for w in gw.status()["workers"] if w["state"] == "ready"]) == 2, "it is back")
        assert scraped(started.port)["requests"] == 8
        gw.write(to(echo) | {"workers": 3, "bind_port": 0, "observability": observed})
        gw("reload")
        until(lambda: [w["state"] for w in gw.status()["workers"]] == ["ready"] * 3, "there are three")
        assert get(started.port)[0] == 200
        gw.write(to(echo) | {"workers": 2, "bind_port": 0, "observability": observed})
        gw("reload")
        until(lambda: len(gw.status()["workers"]) == 2, "there are two")
        assert scraped(started.port)["requests"] == 9, "one that leaves tells what it has counted"


def test_the_endpoint_of_metrics_is_switched_off(serve, echo):
    observed = {"enabled": True, "metrics": {"exporter": "prometheus_pull"}}
    started = serve(to(echo) | {"observability": observed}, "--no-metrics-endpoint")
    assert b'"method"' in get(started.port, "/metrics")[1], "it goes to the upstream"


def test_top_shows_each_worker_and_upstream(serve, echo, gw):
    started = serve(to(echo) | {"workers": 2})
    get(started.port)
    lines = gw("top", "--once", "--every", "0.2").splitlines()
    assert "  serving  generation 1  up 00:00:" in lines[0]
    words = [line.split()[0] for line in lines[3:] if line]
    assert words == ["WORKER", "1", "2", "UPSTREAM", "upstream", "ENDPOINT", f"127.0.0.1:{echo.port}"]


class Terminal:
    """`gw top` in a terminal of its own."""

    def __init__(self, gw, size="24x90"):
        ours, theirs = pty.openpty()
        lines, columns = map(int, size.split("x"))
        termios.tcsetwinsize(theirs, (lines, columns))
        command = [sys.executable, "-m", "gw", "top", "-P", str(gw.pid_file), "--every", "0.2"]
        surroundings = environment() | {"TERM": "xterm-256color"}
        self.child = subprocess.Popen(
            command,
            env=surroundings,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - who runs us may ignore it
        )
        os.close(theirs)
        self._terminal, self._seen = ours, b""

    def until(self, text):
        """Wait until *text* was written."""
        give_up = time.monotonic() + PATIENCE
        while text not in self._seen:
            assert time.monotonic() < give_up, self._seen[-3000:]
            if select.select([self._terminal], [], [], 1)[0]:
                self._seen += os.read(self._terminal, 65536)
        self._seen = self._seen.partition(text)[2]

    def interrupt(self):
        """Press Ctrl-C; return the exit code."""
        self.child.send_signal(signal.SIGINT)
        give_up = time.monotonic() + PATIENCE
        while self.child.poll() is None:  # what it has to say it can say
            assert time.monotonic() < give_up, "it goes on"
            if select.select([self._terminal], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # how a terminal says that its other end is gone
                    os.read(self._terminal, 65536)
        return self.child.returncode

    def close(self):
        self.child.kill()
        self.child.wait()
        os.close(self._terminal)


def test_top_follows_a_gateway_in_a_terminal_also_while_none_runs(serve, echo, gw):
    started = serve(to(echo) | {"workers": 2})
    with contextlib.closing(Terminal(gw)) as terminal:
        terminal.until(b"serving  generation 1")
        terminal.until(b"ENDPOINT")
        terminal.until(b"healthy")
        started.close()
        terminal.until(b"is not running")
        terminal.until(b"Waiting for it")
        with contextlib.closing(start_gateway(to(echo) | {"workers": 1}, folder=gw.folder, name="gw-1")) as again:
            terminal.until(f"pid {again.pid}".encode())
            assert terminal.interrupt() == 0


def test_one_process_alone_has_no_supervisor(serve, echo, gw):
    started = serve(to(echo) | {"workers": 1})
    assert [each["pid"] for each in gw.status()["workers"]] == [started.pid]


def test_workers_end_when_their_supervisor_is_killed(serve, echo, gw):
    started = start_gateway(to(echo) | {"workers": 2}, folder=gw.folder, name="gw-1")
    pids = [each["pid"] for each in gw.status()["workers"]]
    started.child.kill()
    started.wait()
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), "the workers have ended")


def test_a_configuration_that_no_worker_can_serve_is_a_failure_that_says_so(tmp_path):
    plugin = "from gw import hookimpl\nGW_API = 1\n@hookimpl\ndef gw_lifespan(ctx): raise ValueError('no such thing')\n"
    (tmp_path / "broken.py").write_text(plugin)
    os.environ["PYTHONPATH"] = str(tmp_path)
    try:
        configuration = {"bind_port": 0, "workers": 2, "plugins": ["python:broken"]}
        started = start_gateway(configuration, folder=tmp_path, may_fail=True)
    finally:
        del os.environ["PYTHONPATH"]
    assert started.wait() == 1
    assert "cannot serve: no such thing" in started.log
    assert "Traceback" not in started.log


def test_the_number_of_workers_changes_with_a_reload(serve, echo, gw):
    started = serve(to(echo) | {"workers": 2})
    gw.write(to(echo) | {"workers": 3, "bind_port": 0})
    assert "workers 2 -> 3" in gw("reload")
    until(lambda: [w["state"] for w in gw.status()["workers"]] == ["ready"] * 3, "there are three")
    gw.write(to(echo) | {"workers": 2, "bind_port": 0})
    gw("reload")
    until(lambda: len(gw.status()["workers"]) == 2, "there are two")
    assert get(started.port)[0] == 200


# --- reload ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_reloads_under_load_are_noticed_by_nobody(serve, echo, gw, peer, workers):
    stream = Upstream(events)
    streams = {"name": "events", "host": "127.0.0.1", "port": stream.port}
    configuration = to(echo) | {"workers": workers}
    configuration["upstreams"].append(streams)
    configuration["routes"] = [{"name": "events", "match": {"path": "/events"}, "upstream": "events"}]
    started = serve(configuration)
    reloads = 12
    with contextlib.ExitStack() as stack:
        stack.callback(stream.close)
        listening = [stack.enter_context(connect(started.port)) for _ in range(5)]
        for connection in listening:
            connection.sendall(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
            read_until(connection, b"data: 1")
        load = Wrk(peer("wrk"), started.port)
        for number in range(reloads):
            gw.write(configuration | {"max_body_size": 2_000_000 + number})
            gw("reload")
            for connection in listening:
                read_until(connection, b"data: 1")
        assert stream.accepted == 5, "no stream was begun anew"
        assert load.failures() == []
    assert gw.status()["generation"] == reloads + 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_changes_routes_upstreams_limits_and_listeners(serve, echo, gw, workers):
    started = serve(to(echo) | {"workers": workers})
    assert get(started.port, "/status/201")[0] == 201
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gw.write(to(echo, proxy={"route_prefix": "/api", "strip_prefix": True}) | {"workers": workers, "bind_port": port})
    said = gw("reload")
    assert 'upstream upstream: proxy.route_prefix "/" -> "/api"' in said
    assert f"bind_port 0 -> {port}" in said
    assert get(port, "/api/status/201")[0] == 201
    assert get(port, "/status/201")[0] == 404
    with pytest.raises(ConnectionRefusedError):
        get(started.port)


def test_what_a_process_cannot_change_is_refused(serve, echo, gw):
    serve(to(echo) | {"loop": "asyncio"})  # alone
    gw.write(to(echo) | {"loop": "trio", "workers": 1})
    assert "loop: a process that runs cannot change it; restart, or send SIGUSR2" in gw("reload", code=1)
    gw.write(to(echo) | {"loop": "asyncio", "workers": 2})
    # The command line said one worker, and wins over the file.
    gw("reload")


MISTAKES = {
    "syntax": "bind_port: [",
    "unknown key": "bind_prot: 1",
    "wrong value": "max_connections: -1",
    "route conflict": json.dumps(
        {
            "upstreams": [{"name": "a", "host": "127.0.0.1"}],
            "routes": [{"name": n, "match": {"path": "/a"}, "upstream": "a"} for n in "xy"],
        }
    ),
    "plugin that is not there": "plugins: [nothing]",
    "port in use": "bind_port: PORT",
    "log file": "bind_port: 0\nlog: {access: {enabled: true, file: /proc/nothing/access.log}}",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_with_a_mistake_changes_nothing_and_says_why(serve, echo, gw, workers):
    started = serve(to(echo) | {"workers": workers})
    says = {
        "syntax": "is not YAML",
        "unknown key": "bind_prot: is not a known key",
        "wrong value": "max_connections: must be at least 0, not -1",
        "route conflict": "routes 'x' and 'y' conflict",
        "plugin that is not there": "no plugin 'nothing' is installed",
        "port in use": "Address already in use",
        "log file": "cannot write the log file",
    }
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for mistake, wrong in MISTAKES.items():
            text = wrong.replace("PORT", str(taken.getsockname()[1]))
            gw.file.write_text(text if text.startswith("{") else f"{text}\nworkers: {workers}\n")
            assert says[mistake] in gw("reload", code=1), mistake
    status = gw.status()
    assert (status["generation"], status["last_reload"]["ok"]) == (1, False)
    assert get(started.port)[0] == 200


def test_tls_is_shared_by_workers_and_comes_and_goes_with_a_reload(serve, echo, gw):
    authority = Authority(gw.folder)
    files = authority.issue("localhost")
    started = serve(to(echo) | {"workers": 2, "tls": {"enabled": True, **files}})

    def serial():
        context = authority.trusting()
        with context.wrap_socket(connect(started.port), server_hostname="localhost") as connection:
            connection.sendall(GET)
            assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
            return connection.getpeercert()["serialNumber"]

    assert len({serial() for _ in range(6)}) == 1
    before = serial()
    other = authority.issue("localhost", to="other")
    gw.write(to(echo) | {"workers": 2, "bind_port": 0, "tls": {"enabled": True, **other}})
    gw("reload")
    assert before not in {serial() for _ in range(6)}
    gw.write(to(echo) | {"workers": 2, "bind_port": 0})
    assert "tls.enabled true -> false" in gw("reload")
    assert {get(started.port)[0] for _ in range(6)} == {200}


def test_sighup_reloads_in_the_foreground(serve, echo, gw):
    started = serve(to(echo))
    gw.write(to(echo) | {"max_body_size": 5})
    started.child.send_signal(signal.SIGHUP)
    started.wait_for("max_body_size 1048576 -> 5")
    gw.file.unlink()
    started.child.send_signal(signal.SIGHUP)
    started.wait_for("not reloaded, nothing has changed: .*cannot be read")
    assert statuses(ask(started.port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")) == [413]


def test_a_reload_that_nobody_confirms_is_undone(serve, echo, gw):
    serve(to(echo))
    gw.write(to(echo) | {"max_body_size": 5})
    assert "It is undone in 1 s" in gw("reload", "--confirm-within", "1s")
    until(lambda: gw.status()["generation"] == 3, "it is undone")
    assert "max_body_size 1048576 -> 5" in gw("plan")
    gw("reload", "--confirm-within", "5m")
    assert "waits to be confirmed" in gw("reload", code=1)
    assert "confirmed" in gw("reload", "--confirm")
    assert "Nothing would change" in gw("plan")


def test_a_plan_tells_what_would_change_and_changes_nothing(serve, echo, gw, tmp_path):
    started = serve(to(echo) | {"server_header": "mine"})
    other = to(echo, pool={"max_queue": 7}) | {"server_header": "yours"}
    other["routes"] = [{"name": "new", "match": {"path": "/new"}, "upstream": "upstream"}]
    (tmp_path / "other.yaml").write_text(json.dumps(other))
    with connect(started.port) as slow:
        slow.sendall(b"GET /slow?ms=60000 HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: figures(started.port)["requests"]["active"] == 2, "it is under way")
        lines = gw("plan", "-c", "other.yaml").splitlines()
    assert lines == [
        '  server_header "mine" -> "yours"',
        "  upstream upstream: pool.max_queue 256 -> 7",
        "  route new: added",
        "1 exchange under way would stay on generation 1.",
    ]
    assert gw.status()["generation"] == 1


# --- the end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_clients_that_are_stuck_are_cut_off_in_time(serve, echo, gw, workers):
    started = serve(to(echo) | {"workers": workers, "shutdown_drain_timeout_sec": 1})
    with contextlib.ExitStack() as stack:
        stuck = [stack.enter_context(connect(started.port)) for _ in range(6)]
        for connection in stuck:
            connection.sendall(b"GET /slow?ms=60000 HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: figures(started.port)["requests"]["active"] == 7, "they are under way")
        gw("stop", "--wait")
        assert [read_all(connection) for connection in stuck] == [b""] * 6
    assert started.wait() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_with_a_timeout_ends_it_earlier(serve, echo, gw, workers):
    started = serve(to(echo) | {"workers": workers, "shutdown_drain_timeout_sec": 300})
    with connect(started.port) as stuck:
        stuck.sendall(b"GET /slow?ms=60000 HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: figures(started.port)["requests"]["active"] == 2, "it is under way")
        assert "is told to stop now" in gw("stop", "--timeout", "0.2")
        assert read_all(stuck) == b""
    assert started.wait() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_before_it_stops_listening_readiness_fails_for_a_while(serve, echo, workers):
    started = serve(to(echo) | {"workers": workers, "drain_delay_sec": 25})
    with connect(started.port) as connection:
        ready = b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n"
        connection.sendall(ready)
        assert b'{"ready": true}' in read_until(connection, b"}")
        started.child.terminate()
        started.wait_for("stopping: SIGTERM")

        def fails():
            connection.sendall(ready)
            return b"HTTP/1.1 503 " in read_until(connection, b"}")

        until(fails, "it says that it is not ready")
        assert get(started.port)[0] == 200
        started.child.terminate()
    assert started.wait() == 0


# --- a new program ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_new_program_takes_over_and_no_request_is_lost(echo, gw, peer, workers):
    authority = Authority(gw.folder)
    secured = {"tls": {"enabled": True, **authority.issue("localhost")}}
    started = start_gateway(to(echo) | {"workers": workers} | secured, folder=gw.folder, name="gw-1")
    gw.write(to(echo) | {"workers": workers, "bind_port": 0})
    gw("reload")  # the sockets that are handed over are not those of the start
    load = Wrk(peer("wrk"), started.port)
    until(lambda: figures(started.port)["requests"]["total"] > 200, "the load runs")
    started.child.send_signal(signal.SIGUSR2)
    until(lambda: gw.status()["pid"] != started.pid, "the new one has taken over")
    new = gw.status()
    try:
        assert load.failures() == []
        assert started.child.wait(PATIENCE) == 0
        assert new["addresses"] == {"main": f"127.0.0.1:{started.port}"}
    finally:
        gw("stop", "--wait")
    started.wait()
    assert not gw.pid_file.exists()


def test_asking_for_a_new_program_twice_starts_one(echo, gw, peer):
    started = start_gateway(to(echo) | {"workers": 1}, folder=gw.folder, name="gw-1")
    load = Wrk(peer("wrk"), started.port)
    until(lambda: figures(started.port)["requests"]["total"] > 200, "the load runs")
    started.child.send_signal(signal.SIGUSR2)
    started.child.send_signal(signal.SIGUSR2)
    until(lambda: gw.status()["pid"] != started.pid, "the new one has taken over")
    new = gw.status()["pid"]
    try:
        assert load.failures() == []
        assert started.child.wait(PATIENCE) == 0
        assert gw.status()["pid"] == new
    finally:
        gw("stop", "--wait")
    started.wait()
    assert "Traceback" not in started.log


def test_a_new_program_that_cannot_serve_leaves_the_old_one_alone(serve, echo, gw):
    started = serve(to(echo))
    gw.file.write_text("bind_prot: 1")
    started.child.send_signal(signal.SIGUSR2)
    started.wait_for("not upgraded: the new program ended")
    assert get(started.port)[0] == 200
    assert gw.status()["pid"] == started.pid


# --- pid file and daemon -------------------------------------------------------------------------------


def test_two_gateways_do_not_share_a_pid_file(serve, echo, gw):
    started = serve(to(echo))
    second = start_gateway({"bind_port": 0}, "-P", str(gw.pid_file), folder=gw.folder, name="other", may_fail=True)
    assert second.wait() == 1
    assert f"gw is running already as pid {started.pid} (pid file {gw.pid_file})" in second.log
    assert gw.status()["pid"] == started.pid


def test_a_pid_file_that_was_left_over_is_no_hindrance(serve, echo, gw):
    gw.pid_file.write_text("1\n")
    assert "gw is not running" in gw("status", code=1)
    assert "gw is not running" in gw("stop", code=1)
    started = serve(to(echo))
    assert gw.pid_file.read_text() == f"{started.pid}\n"
    started.end()
    assert not gw.pid_file.exists()


def test_a_daemon_is_there_when_the_command_returns(echo, gw):
    log = gw.folder / "gw.log"
    gw.write(to(echo) | {"bind_port": 0, "workers": 1, "log": {"file": str(log), "max_files": 1}})
    gw("start", "-d", "-c", gw.file.name)
    try:
        status = gw.status()
        port = int(status["addresses"]["main"].rpartition(":")[2])
        assert get(port)[0] == 200
        assert Path(f"/proc/{status['pid']}/cwd").resolve() == Path("/")
        gw.write(to(echo) | {"bind_port": 0, "workers": 1, "log": {"file": str(log), "max_files": 1, "level": "warn"}})
        assert 'log.level "info" -> "warn"' in gw("reload")
    finally:
        gw("stop", "--wait")
    lines = log.read_text().splitlines()
    assert "SERVER START" in lines[0]
    assert "SERVER STOP" in lines[-1]


def test_a_daemon_that_cannot_start_says_so_on_the_terminal(echo, gw):
    gw.write(to(echo) | {"log": {"file": "gw.log"}})
    assert "log.file: must be an absolute path for a daemon" in gw("start", "-d", "-c", gw.file.name, code=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        log = {"file": str(gw.folder / "gw.log"), "max_files": 1}
        gw.write(to(echo) | {"bind_port": taken.getsockname()[1], "workers": 1, "log": log})
        assert "Address already in use" in gw("start", "-d", "-c", gw.file.name, code=1)
    assert "gw is not running" in gw("status", code=1)


# --- logs, admin --------------------------------------------------------------------------------------


def test_logs_are_opened_anew_at_sigusr1(serve, echo, gw):
    log = gw.folder / "gw.log"
    started = serve(to(echo) | {"log": {"file": str(log), "max_files": 1}})
    started.child.send_signal(signal.SIGUSR1)
    started.wait_for("SIGUSR1: logs are opened anew")
    assert get(started.port)[0] == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_the_admin_listener_asks_for_its_token_and_knows_everything(serve, echo, gw, workers):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token = "a token of some length"
    started = serve(to(echo) | {"workers": workers, "admin": {"bind": f"127.0.0.1:{port}", "token": token}})
    started.wait_for(f"admin listens on 127.0.0.1:{port}")
    assert get(port, "/stats")[0] == 401
    assert get(port, "/stats", Authorization="Bearer a token of other length")[0] == 401
    for _ in range(20):
        get(started.port)
    seen = figures(port, token)
    assert seen["requests"]["total"] == 20
    assert seen["latency"]["p50"] > 0
    assert seen["figures"]["gw.net.connections.accepted"]["series"] == [{"labels": {}, "value": 20}]
    assert seen["process"]["generation"] == 1
    assert figures(port, token, "/config")["admin"]["token"] == "**********"
    assert [row["name"] for row in figures(port, token, "/routes")][:1] == ["upstream"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", "/reload", headers={"Authorization": f"Bearer {token}"})
        assert json.loads(connection.getresponse().read())["generation"] == 2


ORDERS = """
from gw import hookimpl
GW_API = 1
@hookimpl
def gw_orders(ctx):
    def close(values):
        if "door" not in values:
            raise ValueError("say which door: door=front")
        return values
    return {"close": close}
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_an_order_goes_to_a_plugin_in_every_worker(serve, echo, gw, monkeypatch, workers):
    (gw.folder / "doors.py").write_text(ORDERS)
    monkeypatch.setenv("PYTHONPATH", str(gw.folder))
    token = "a token of some length"
    admin = {"bind": "127.0.0.1:0", "token": token}
    started = serve(to(echo) | {"workers": workers, "plugins": ["python:doors"], "admin": admin})
    name = "python:doors"
    each = {str(number): {"door": "front"} for number in range(1, workers + 1)}
    assert json.loads(gw("order", name, "close", "door=front")) == each
    assert "say which door: door=front" in gw("order", name, "close", code=1)
    assert "it has close" in gw("order", name, "open", code=1)
    assert "no plugin of that name" in gw("order", "other", "open", code=1)
    assert "is not KEY=VALUE" in gw("order", name, "close", "front", code=2)
    port = int(started.wait_for(r"admin listens on 127.0.0.1:(\d+)")[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", f"/plugins/{name}/close?door=front", headers={"Authorization": f"Bearer {token}"})
        assert json.loads(connection.getresponse().read()) == {"workers": each}


@pytest.mark.parametrize("flag", ["health", "ready", "stats"])
def test_an_endpoint_is_switched_off(serve, echo, flag):
    started = serve(to(echo), f"--no-{flag}-endpoint")
    found = {path: b'"method"' in get(started.port, f"/{path}")[1] for path in ("health", "ready", "stats")}
    assert found == {path: path == flag for path in found}, "what is off goes to the upstream"


# --- what takes long -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_is_flat_over_many_reloads(serve, echo, gw):
    started = serve(to(echo))

    def reload(times):
        for _ in range(times):
            gw("reload")
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{started.pid}/status").read_text())[1])

    before = reload(30)
    assert reload(170) - before < 3000, "kilobytes"
