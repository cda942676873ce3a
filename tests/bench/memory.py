"""What gw keeps in memory: per idle connection, under bodies of 1 GiB, and after a million requests.

Memory is VmRSS of the process and its children. The origin is `origin.py`, which has bodies of any size.
Other proxies can be measured for comparison; the budgets are gw's.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import load
from load import Load
from peers import PROXIES, MissingError, Site, start_origin, start_proxy
from processes import Cpus, FailedToRunError, Process, raise_file_limit
from report import Verdict

KIB: Final = 1024
MIB: Final = 1 << 20
GIB: Final = 1 << 30
PIECE: Final = bytes(256 * KIB)
SOURCES: Final = 10
"""Client addresses 127.0.0.2 to .11: no address runs out of ports, nor lets the next run into its closed ones."""
SPARE_FILES: Final = 200
"""Descriptors that client and gateway need beside the connections."""


def idle_connections(proxy: Process, wanted: int, files: int) -> Verdict:
    """Open *wanted* connections, send one request on each, leave them open."""
    count = min(wanted, files - SPARE_FILES)
    if count < wanted:
        print(f"  {count} connections instead of {wanted}: no more than {files} open files are allowed (ulimit -Hn)")
    with contextlib.ExitStack() as closing:
        for number in range(100):  # what the first connections bring to life is no cost of the others
            closing.enter_context(contextlib.closing(_used_connection(proxy.port, number)))
        before = proxy.resident()
        for number in range(count - 100):
            closing.enter_context(contextlib.closing(_used_connection(proxy.port, number)))
        each = (proxy.resident() - before) / (count - 100)
    return Verdict(f"{proxy.name}: each of {count} idle connections", (each / KIB,), 40, "KiB")


def _used_connection(port: int, number: int) -> socket.socket:
    source = (f"127.0.0.{2 + number % SOURCES}", 0)
    connection = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=source)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    answer = connection.recv(4096)
    if not answer.startswith(b"HTTP/1.1 200 "):
        connection.close()
        raise FailedToRunError(f"idle connection {number} was answered with {answer[:60]!r}")
    return connection


def upload(proxy: Process, size: int) -> Verdict:
    """POST *size* bytes and watch the memory while they pass."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as connection:
        before = most = proxy.resident()
        connection.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % size)
        for sent in range(0, size, len(PIECE)):
            connection.sendall(PIECE)
            if sent % (16 * MIB) == 0:
                most = max(most, proxy.resident())
        answer = connection.recv(4096)
        most = max(most, proxy.resident())
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise FailedToRunError(f"{proxy.name}: the upload was answered with {answer[:60]!r}")
    return Verdict(f"{proxy.name}: growth while {size // MIB} MiB went up", ((most - before) / MIB,), 8, "MiB")


def download(proxy: Process, size: int) -> Verdict:
    """GET *size* bytes and watch the memory while they pass."""
    got = seen = 0
    buffer = bytearray(len(PIECE))
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as connection:
        before = most = proxy.resident()
        connection.sendall(b"GET /%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % size)
        got -= _head_size(connection)
        while got < size and (read := connection.recv_into(buffer)):
            got += read
            if got - seen > 16 * MIB:
                seen = got
                most = max(most, proxy.resident())
        most = max(most, proxy.resident())
    if got != size:
        raise FailedToRunError(f"{proxy.name}: the download of {size} bytes ended after {got}")
    return Verdict(f"{proxy.name}: growth while {size // MIB} MiB came down", ((most - before) / MIB,), 8, "MiB")


def _head_size(connection: socket.socket) -> int:
    """Return the size of the response head, which is left unread."""
    seen = connection.recv(4096, socket.MSG_PEEK)
    end = seen.find(b"\r\n\r\n")
    if not seen.startswith(b"HTTP/1.1 200 ") or end < 0:
        raise FailedToRunError(f"the download was answered with {seen[:60]!r}")
    return end + 4


def many_requests(proxy: Process, wanted: int) -> Verdict:
    """Send *wanted* requests; what grew after the first tenth of them is what would never stop growing."""
    done = 0
    before: int | None = None
    while done < wanted:
        done += load.drive(proxy.name, proxy.port, Load(), 2).requests
        if before is None and done >= wanted // 10:
            before = proxy.resident()
    grown = proxy.resident() - (before or 0)
    return Verdict(f"{proxy.name}: growth over {done} requests", (grown / MIB,), 1, "MiB")


@contextlib.contextmanager
def running(name: str) -> Iterator[Process]:
    """Run the proxy *name* in front of the origin; both are fresh, so that nothing is inherited."""
    with contextlib.ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="gw-memory-")))
        site = Site(folder, Cpus.divide(os.sched_getaffinity(0)))
        origin = start_origin(site, scripted=True)
        closing.callback(origin.stop)
        proxy = start_proxy(dataclasses.replace(site, origin=origin.port), name)
        closing.callback(proxy.stop)
        yield proxy


def main() -> int:
    options = argparse.ArgumentParser(prog="bench memory", description="Measure what gw keeps in memory.")
    options.add_argument("--quick", action="store_true", help="2,000 connections, 128 MiB, 100,000 requests")
    options.add_argument("--proxies", default="gw", help=f"with commas between them, out of: {', '.join(PROXIES)}")
    options.add_argument("--strict", action="store_true", help="exit with 1 when a budget is missed")
    given = options.parse_args()
    connections, size, requests = (2_000, GIB // 8, 100_000) if given.quick else (10_000, GIB, 1_000_000)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the processes are stopped, too
    files = raise_file_limit()
    failed = missed = False
    for name in given.proxies.split(","):
        measures: tuple[Callable[[Process], Verdict], ...] = (
            lambda proxy: idle_connections(proxy, connections, files),
            lambda proxy: upload(proxy, size),
            lambda proxy: download(proxy, size),
            lambda proxy: many_requests(proxy, requests),
        )
        for measure in measures:
            try:
                with running(name) as proxy:
                    load.check(name, proxy.port, Load())
                    verdict = measure(proxy)
            except (MissingError, FailedToRunError, OSError) as error:
                print(f"FAILED: {name}: {error}", flush=True)
                failed = failed or not isinstance(error, MissingError)
            else:
                missed = missed or (name.startswith("gw") and not verdict.met)
                print(verdict, flush=True)
    return 1 if failed or (given.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
