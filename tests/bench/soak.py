"""A long mixed load, after which the gateway must be as it was: no task, no descriptor and no memory more.

The gateway runs in this process, so that its tasks can be counted; clients and upstream run in others. What a single
exchange does is for other tests: here it only has to end as that kind should end.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from gw.config.load import load
from gw.gateway import Gateway
from gw.ops.loops import loop_name

REQUESTS: Final = 200_000
QUICK: Final = 20_000
CLIENTS: Final = 16
SETTLES_WITHIN: Final = 15.0
MAX_GROWTH: Final = 4 << 20
"""Bytes that resident memory may be larger after the load than after its first part. An exchange that leaked 100 bytes would show."""

HEAD: Final = b"%b HTTP/1.1\r\nHost: soak.test\r\nUser-Agent: soak\r\n"
BODY: Final = bytes(range(256)) * 40


# --- the clients ---------------------------------------------------------------


class Client:
    """One client: a connection that is kept, where the kind of request lets it, and opened anew where not."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: socket.socket | None = None

    def send(self, data: bytes) -> None:
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._port), timeout=30)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.sendall(data)

    def answer(self, end: bytes = b"") -> int:
        """Read a response, whose last bytes are *end* if it does not declare its length; return its status."""
        assert self._connection is not None
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._received()
        head, _, body = data.partition(b"\r\n\r\n")
        declared = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        while len(body) < int(declared) if declared else not body.endswith(end):
            body += self._received()
        if b"connection: close" in head:
            self.leave()
        return int(head[9:12])

    def _received(self) -> bytes:
        assert self._connection is not None
        data = self._connection.recv(65536)
        if not data:
            raise ConnectionError("the gateway closed in the middle of an answer")
        return data

    def leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _get(client: Client) -> int:
    client.send(HEAD % b"GET /a/b?c=d" + b"\r\n")
    return client.answer()


def _post(client: Client) -> int:
    client.send(HEAD % b"POST /p" + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
    return client.answer()


def _chunked(client: Client) -> int:
    client.send(HEAD % b"PUT /trailers" + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(3):
        client.send(b"%x\r\n%b\r\n" % (len(BODY), BODY))
    client.send(b"0\r\nx-trailer: y\r\n\r\n")
    return client.answer(b"\r\n\r\n")


def _stream(client: Client) -> int:
    client.send(HEAD % b"GET /stream?n=20&size=1000" + b"\r\n")
    return client.answer(b"0\r\n\r\n")


def _large(client: Client) -> int:
    client.send(HEAD % b"GET /bytes?n=100000" + b"\r\n")
    return client.answer()


def _closing(client: Client) -> int:
    client.send(HEAD % b"GET /close" + b"Connection: close\r\n\r\n")
    return client.answer()


def _failing(client: Client) -> int:
    client.send(HEAD % b"GET /status/503" + b"\r\n")
    return client.answer()


def _not_found(client: Client) -> int:
    client.send(b"GET / HTTP/1.1\r\nHost: unknown.test\r\n\r\n")
    return client.answer()


def _early(client: Client) -> int:
    client.send(HEAD % b"POST /early?then=close" + b"Content-Length: %d\r\n\r\n" % (2 * len(BODY)) + BODY)
    return client.answer()


def _malformed(client: Client) -> int:
    client.send(HEAD % b"POST /" + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")
    return client.answer()


def _too_large(client: Client) -> int:
    client.send(HEAD % b"GET /" + b"X: %b\r\n\r\n" % (b"y" * 9000))
    return client.answer()


def _leaves_download(client: Client) -> int:
    client.send(HEAD % b"GET /bytes?n=100000000" + b"\r\n")
    client._received()
    client.leave()
    return 0


def _leaves_upload(client: Client) -> int:
    client.send(HEAD % b"POST /" + b"Content-Length: 10000000\r\n\r\n" + BODY)
    client.leave()
    return 0


KINDS: Final[tuple[tuple[int, Callable[[Client], int], int], ...]] = (
    (60, _get, 200),
    (20, _post, 200),
    (4, _chunked, 200),
    (4, _stream, 200),
    (2, _large, 200),
    (2, _closing, 200),
    (2, _failing, 503),
    (2, _not_found, 404),
    (1, _early, 413),
    (1, _malformed, 400),
    (1, _too_large, 431),
    (1, _leaves_download, 0),
    (1, _leaves_upload, 0),
)
"""How many of 101, what, and the status it must be answered with."""

ROUND: Final = tuple((kind, status) for weight, kind, status in KINDS for _ in range(weight))


def run_clients(port: int, requests: int) -> int:
    """Send *requests* requests over several connections; return how many were not answered as they should be."""
    wrong: Counter[str] = Counter()

    def run(number: int) -> None:
        client = Client(port)
        for turn in range(number, requests, CLIENTS):
            kind, expected = ROUND[turn * 37 % len(ROUND)]
            try:
                got: object = kind(client)
            except OSError as error:
                got = f"{type(error).__name__}: {error}"
                client.leave()
            if got != expected:
                wrong[f"{kind.__name__}: {got} instead of {expected}"] += 1
        client.leave()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for what, times in wrong.most_common():
        print(f"  {times} times {what}", file=sys.stderr)
    return sum(wrong.values())


# --- the gateway ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Left:
    """What the process holds at a quiet moment."""

    tasks: int
    files: int
    connections: int
    upstream: int
    resident: int

    @classmethod
    def now(cls, gateway: Gateway) -> Left:
        gc.collect()
        status = Path("/proc/self/status").read_text()
        (resident,) = (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
        pools = gateway._current.now.pools.values() if gateway._current.now is not None else ()
        return cls(
            len(anyio.get_running_tasks()),
            len([*Path("/proc/self/fd").iterdir()]),
            len(gateway.connections),
            sum(pool.open for pool in pools),
            resident,
        )

    def __str__(self) -> str:
        return (
            f"{self.tasks} tasks, {self.files} descriptors, {self.connections} clients, "
            f"{self.upstream} upstream connections, {self.resident / (1 << 20):.1f} MiB"
        )


async def settled(gateway: Gateway, like: Left | None) -> Left:
    """Wait until nothing is connected and, if it can be had, things are *like* before."""
    give_up = time.monotonic() + SETTLES_WITHIN
    while True:
        left = Left.now(gateway)
        quiet = left.connections == left.upstream == 0
        if quiet and (like is None or (left.tasks, left.files) == (like.tasks, like.files)):
            return left
        if time.monotonic() > give_up:
            return left
        await anyio.sleep(0.2)


async def soak(requests: int, echo_port: int, engine: str, loop: str) -> int:
    """Return 0 if all is as it was, else 1."""
    upstream = {
        "name": "echo",
        "host": "127.0.0.1",
        "port": echo_port,
        "pool": {"idle_timeout_sec": 2},
    }
    routes = [{"name": "all", "match": {"host": "soak.test"}, "upstream": "echo"}]
    settings = {"bind_port": 0, "engine": engine, "loop": loop, "max_body_size": 0, "log": {"level": "warn"}}
    gateway = Gateway(load(settings | {"upstreams": [upstream], "routes": routes}))
    failed = 0
    async with anyio.create_task_group() as tasks:
        ready = anyio.Event()
        tasks.start_soon(lambda: gateway.serve(ready=ready.set))
        await ready.wait()
        assert gateway.addresses
        before = await settled(gateway, None)
        print(f"at the start:    {before}")
        warm = before
        for part, count in (("a tenth", requests // 10), ("the rest", requests - requests // 10)):
            began = time.monotonic()
            command = [
                sys.executable,
                __file__,
                "--clients-of",
                str(gateway.addresses["main"][1]),
                "--requests",
                str(count),
            ]
            done = await anyio.run_process(command, stdout=None, stderr=None, check=False)
            failed |= done.returncode
            left = await settled(gateway, before)
            print(f"after {part}: {left} ({count} requests in {time.monotonic() - began:.0f} s)")
            if part == "a tenth":
                warm = left
        growth = left.resident - warm.resident
        for name, was, now in (("tasks", before.tasks, left.tasks), ("descriptors", before.files, left.files)):
            if now != was:
                print(f"FAILED: {was} {name} became {now}")
                failed = 1
        if left.connections or left.upstream:
            print("FAILED: there are connections although everybody has left")
            failed = 1
        if growth > MAX_GROWTH:
            print(f"FAILED: memory grew by {growth / (1 << 20):.1f} MiB, and may by {MAX_GROWTH >> 20}")
            failed = 1
        gateway.stop()
    print("FAILED" if failed else "nothing was left behind")
    return failed


@contextlib.contextmanager
def echo_upstream() -> Iterator[int]:
    command = [sys.executable, "-m", "gw.echo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield int(child.stdout.readline().rpartition(":")[2])
        finally:
            child.terminate()


def main() -> int:
    options = argparse.ArgumentParser(description="Send requests of every kind; see that nothing of them is left.")
    options.add_argument("--quick", action="store_true", help=f"{QUICK} requests instead of {REQUESTS}")
    options.add_argument("--requests", type=int)
    options.add_argument("--engine", choices=["auto", "pure", "native"], default="auto")
    options.add_argument("--loop", choices=["auto", "asyncio", "uvloop", "trio"], default="auto")
    options.add_argument("--clients-of", type=int, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    requests = chosen.requests or (QUICK if chosen.quick else REQUESTS)
    if chosen.clients_of:
        return 1 if run_clients(chosen.clients_of, requests) else 0
    loop = loop_name(chosen.loop)
    print(f"{requests} requests, engine {chosen.engine}, loop {loop}")
    with echo_upstream() as port:
        return anyio.run(
            soak,
            requests,
            port,
            chosen.engine,
            chosen.loop,
            backend="trio" if loop == "trio" else "asyncio",
            backend_options={"use_uvloop": True} if loop == "uvloop" else {},
        )


if __name__ == "__main__":
    sys.exit(main())
