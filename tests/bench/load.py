"""The load: wrk and h2load for throughput, a paced sender for latency below saturation. Knows no proxy, only a port."""

from __future__ import annotations

import ctypes
import gc
import http.client
import re
import select
import socket
import ssl
import subprocess
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from peers import find_program
from processes import FailedToRunError

SCRIPT: Final = Path(__file__).with_name("load.lua")
FIGURES: Final = re.compile(r"^figures ((?:\d+ ){8}\d+)$", re.MULTILINE)
H2_FINISHED: Final = re.compile(r"^finished in ([\d.]+)(s|ms|us),", re.MULTILINE)
UNITS: Final = {"s": 1, "ms": 1e3, "us": 1e6}
H2_COUNTS: Final = re.compile(
    r"^requests: .*? (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout$", re.MULTILINE
)
ERRORS: Final = ("connect", "read", "write", "status", "timeout")
PR_SET_TIMERSLACK: Final = 29


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for, over how many connections at once."""

    path: str = "/"
    method: str = "GET"
    body: int = 0
    """Bytes of request body."""
    answer: int = 0
    """Bytes of response body; 0 when any will do."""
    connections: int = 32
    varied: bool = False
    """No two requests have the same head, as from browsers behind one front proxy."""
    streams: int = 0
    """Streams at once on each connection, which then speaks HTTP/2; 0 is HTTP/1.1."""
    bearer: str = ""
    """A token to send in Authorization; HTTP/1.1 only."""
    tls: bool = False
    grpc: bool = False
    """A unary gRPC call with *body* bytes of message; with streams only."""

    def url(self, port: int) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{port}{self.path}"

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.bearer}"} if self.bearer else {}


@dataclass(frozen=True, slots=True)
class Result:
    """What the client saw. Latencies are seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float


def check(name: str, port: int, load: Load) -> None:
    """Send one request, and raise `FailedToRunError` unless it is answered as the origin would."""
    if load.streams:
        _drive_http2(name, port, load, "--requests=1", "--clients=1", patience=10)
        return
    connection = (
        http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=10, context=ssl._create_unverified_context()
        )  # made for this run
        if load.tls
        else http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    )
    try:
        connection.request(load.method, load.path, body=bytes(load.body) or None, headers=load.headers())
        response = connection.getresponse()
        length = len(response.read())
    except (OSError, http.client.HTTPException) as error:
        raise FailedToRunError(f"{name}: {load.method} {load.path} was not answered: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200 or (load.answer and length != load.answer):
        raise FailedToRunError(
            f"{name}: {load.method} {load.path} was answered with {response.status} and {length} bytes,"
            f" not with 200 and {load.answer or 'some'}"
        )


def drive(name: str, port: int, load: Load, seconds: int) -> Result:
    """Send *load* to *port* as fast as it is answered. Raises `FailedToRunError` if one request goes wrong."""
    if load.streams:
        clients, streams = f"--clients={load.connections}", f"--max-concurrent-streams={load.streams}"
        return _drive_http2(name, port, load, clients, streams, f"--duration={seconds}", patience=seconds + 30)
    command = [
        find_program("wrk", "apt-get install wrk"),
        "--threads=1",
        f"--connections={load.connections}",
        f"--duration={seconds}s",
        "--timeout=10s",
        f"--script={SCRIPT}",
        *(f"--header={name}: {value}" for name, value in load.headers().items()),
        load.url(port),
        "--",
        load.method,
        str(load.body),
        *(["varied"] if load.varied else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
    return read_figures(name, done.stdout + done.stderr)


def _drive_http2(name: str, port: int, load: Load, *options: str, patience: float) -> Result:
    program = find_program("h2load", "apt-get install nghttp2-client")
    with tempfile.NamedTemporaryFile(mode="r") as log, tempfile.NamedTemporaryFile() as message:
        if load.grpc:
            message.write(b"\0" + load.body.to_bytes(4) + bytes(load.body))
            message.flush()
            options += (f"--data={message.name}", "--header=content-type: application/grpc", "--header=te: trailers")
        command = [program, *options, f"--log-file={log.name}", load.url(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False)
        return read_h2load(name, done.stdout + done.stderr, log.read())


def read_h2load(name: str, output: str, log: str) -> Result:
    """Read what h2load says at the end, and its log: start, status and duration in microseconds of each request."""
    finished, counts = H2_FINISHED.search(output), H2_COUNTS.search(output)
    if finished is None or counts is None:
        raise FailedToRunError(f"{name}: h2load printed no figures: {output.strip()[-300:]}")
    succeeded, failed, errored, timeout = map(int, counts.groups())
    if failed or errored or timeout:
        raise FailedToRunError(
            f"{name}: {failed} failed, {errored} errored, {timeout} timed out of {succeeded + failed}"
        )
    latencies = sorted(int(line.split("\t")[2]) for line in log.splitlines())
    if not latencies:
        raise FailedToRunError(f"{name}: answered nothing")
    at = len(latencies)
    return Result(
        at, float(finished[1]) / UNITS[finished[2]], latencies[at // 2] / 1e6, latencies[at * 99 // 100] / 1e6
    )


def read_figures(name: str, output: str) -> Result:
    """Read the line that load.lua wrote."""
    found = FIGURES.search(output)
    if found is None:
        raise FailedToRunError(f"{name}: wrk printed no figures: {output.strip()[-300:]}")
    requests, duration, p50, p99, *errors = map(int, found[1].split())
    if any(errors):
        counted = ", ".join(f"{count} {kind}" for kind, count in zip(ERRORS, errors, strict=True) if count)
        raise FailedToRunError(f"{name}: {counted} errors beside {requests} requests")
    if not requests:
        raise FailedToRunError(f"{name}: answered nothing in {duration / 1e6:.1f} s")
    return Result(requests, duration / 1e6, p50 / 1e6, p99 / 1e6)


def pace(name: str, port: int, load: Load, *, rate: float, seconds: float) -> Result:
    """Send *rate* GET requests a second, evenly spaced, however fast they are answered.

    A request counts from the moment it was due, so a proxy that stalls is charged for all that it kept waiting
    (wrk's closed loop would send fewer instead). Raises `FailedToRunError` when the rate cannot be held.
    """
    connections = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(load.connections)]
    request = b"%b %b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % (load.method.encode(), load.path.encode())
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000)  # ns; the default of 50 us is what a whole request takes
    gc.collect()
    gc.disable()
    try:
        answers = {_first_answer(connection, request) for connection in connections}
        if len(answers) > 1:
            raise ConnectionError("not one answer on all connections")
        end = answers.pop()
        latencies, taken = _send_evenly(connections, request, end, rate, int(rate * seconds))
    except OSError as error:
        raise FailedToRunError(f"{name}: went wrong at {rate:.0f} requests/s: {error!r}") from error
    finally:
        gc.enable()
        for connection in connections:
            connection.close()
    if taken > 1.5 * seconds:  # less is a stall, which the latencies show
        raise FailedToRunError(f"{name}: {rate:.0f} requests/s took {taken:.1f} s instead of {seconds:g} s")
    latencies.sort()
    at = len(latencies)
    return Result(at, taken, latencies[at // 2], latencies[at * 99 // 100])


def _first_answer(connection: socket.socket, request: bytes) -> bytes:
    """Open the way once, and learn how an answer ends: in the same body, after fields that may differ."""
    connection.sendall(request)
    _, end, body = connection.recv(65536).partition(b"\r\n\r\n")
    return end + body


def _send_evenly(
    connections: list[socket.socket], request: bytes, end: bytes, rate: float, count: int
) -> tuple[list[float], float]:
    idle = deque(connections)
    due: dict[socket.socket, float] = {}
    latencies: list[float] = []
    sent = 0
    start = time.perf_counter()
    while len(latencies) < count:
        now = time.perf_counter() - start
        while idle and sent < count and sent / rate <= now:
            connection = idle.popleft()
            connection.sendall(request)
            due[connection] = sent / rate
            sent += 1
        wait = max(0.0, sent / rate - now) if idle and sent < count else 10.0
        readable, _, _ = select.select(list(due), (), (), wait)
        now = time.perf_counter() - start
        for connection in readable:
            if not connection.recv(65536).endswith(end):
                raise ConnectionError("an answer in pieces, or another one than at first")
            latencies.append(now - due.pop(connection))
            idle.append(connection)
        if not readable and wait == 10.0:
            raise TimeoutError("no answer within 10 s")
    return latencies, time.perf_counter() - start
