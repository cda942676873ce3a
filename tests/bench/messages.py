"""WebSocket messages through gw, Envoy and nginx in the same run: CPU time per message. `scripts/bench messages` calls it.

A message of 1 KiB goes to an origin that echoes it, so each round trip is two messages for the proxy. Client and
origin are this file's own, on the other CPU, and know of frames only what they need.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import statistics
import sys
import tempfile
from operator import truediv
from pathlib import Path
from typing import Final

from peers import MissingError, Site, start_proxy
from processes import Cpus, FailedToRunError, Process, free_port, raise_file_limit

SIZE: Final = 1024
CONNECTIONS: Final = 16
BUDGET: Final = 45.0
"""Microseconds of CPU a message."""
HEAD: Final = b"\r\n\r\n"
PROXIES: Final = {
    "gw": "gw",
    "gw-sees": "gw, a filter sees each",
    "envoy-messages": "envoy",
    "nginx-messages": "nginx",
}
"""Who is measured, as `peers` knows them, and how they are called here."""


class Echo(asyncio.Protocol):
    """The origin: answers 101, then sends back what it gets, unmasked; all messages are of one size."""

    def __init__(self) -> None:
        self._data = b""
        self._open = False
        self._answer = bytes((0x81, 126)) + SIZE.to_bytes(2) + b"x" * SIZE

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._open:
            head, found, rest = self._data.partition(HEAD)
            if not found:
                return
            from gw.http.handshake import accept_of  # the origin's process has gw; the others need not

            key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
            accept = accept_of(key.partition(b":")[2].strip())
            self._transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
                b"sec-websocket-accept: " + accept + HEAD
            )
            self._data, self._open = rest, True
        whole, left = divmod(len(self._data), SIZE + 8)
        if whole:
            self._transport.write(self._answer * whole)
            self._data = self._data[len(self._data) - left :]


class Client(asyncio.Protocol):
    """Sends a message, waits for its echo, sends the next."""

    def __init__(self, count: int, done: asyncio.Future[None], text: bool) -> None:
        self._count, self._done = count, done
        key, payload = os.urandom(4), b"x" * SIZE
        masked = bytes(byte ^ key[at & 3] for at, byte in enumerate(payload))
        self._frame = bytes((0x81 if text else 0x82, 0x80 | 126)) + SIZE.to_bytes(2) + key + masked
        self._got = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(
            b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: " + base64.b64encode(bytes(16)) + HEAD
        )

    def data_received(self, data: bytes) -> None:
        if self._got < 0:
            if HEAD not in data or b" 101 " not in data[:20]:
                self._done.set_exception(FailedToRunError(f"answered {data[:60]!r}"))
                return
            self._got = 0
            self._transport.write(self._frame)
            return
        self._got += len(data)
        if self._got >= SIZE + 4:
            self._got -= SIZE + 4
            self._count -= 1
            if self._count:
                self._transport.write(self._frame)
            elif not self._done.done():
                self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(FailedToRunError(f"the connection was lost: {error}"))


async def run_client(port: int, count: int, *, text: bool) -> None:
    loop = asyncio.get_running_loop()
    waits = [loop.create_future() for _ in range(CONNECTIONS)]
    made = [await loop.create_connection(lambda w=w: Client(count, w, text), "127.0.0.1", port) for w in waits]
    await asyncio.gather(*waits)
    for transport, _ in made:
        transport.close()


async def run_origin(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
    await server.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer messages and rounds")
    parser.add_argument("--strict", action="store_true", help="fail where the budget is missed")
    parser.add_argument("--origin", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.origin:
        asyncio.run(run_origin(options.origin))
        return 0
    count, rounds = (500, 2) if options.quick else (2000, 5)
    raise_file_limit()
    cpus = Cpus.divide(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        site = Site(Path(folder), cpus, free_port())
        origin = [sys.executable, __file__, "--origin", str(site.origin)]
        echo = Process("origin", origin, port=site.origin, log=site.folder / "origin.log", cpus=cpus.load)
        stack.callback(echo.stop)
        echo.wait_until_open()
        proxies: dict[str, Process] = {}
        for name, called in PROXIES.items():
            try:
                proxies[called] = start_proxy(site, name)
            except MissingError as missing:
                print(f"not measured: {called}: {missing}")
            else:
                stack.callback(proxies[called].stop)
        os.sched_setaffinity(0, cpus.load)
        found: dict[tuple[str, str], list[float]] = {}
        for number in range(rounds + 1):
            for kind in ("text", "binary"):
                for called, proxy in proxies.items():
                    before = proxy.cpu_seconds()
                    asyncio.run(run_client(proxy.port, count, text=kind == "text"))
                    each = (proxy.cpu_seconds() - before) / (2 * count * CONNECTIONS) * 1e6
                    if number:  # the first round warms up
                        found.setdefault((kind, called), []).append(each)
        print(f"CPU per message of {SIZE} bytes, {CONNECTIONS} connections, median of {rounds} rounds:")
        missed = False
        for kind in ("text", "binary"):
            for called in proxies:
                each = statistics.median(found[kind, called])
                beside = [
                    f"{statistics.median(map(truediv, found[kind, called], found[kind, peer])):5.2f} x {peer}"
                    for peer in ("envoy", "nginx")
                    if (kind, peer) in found
                ]
                print(f"  {kind:7} {called:24} {each:6.1f} us  {'  '.join(beside)}")
                missed = missed or (called == "gw" and each > BUDGET)
    if missed:
        print(f"gw is above its budget of {BUDGET:g} us")
    return int(missed and options.strict)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (FailedToRunError, MissingError) as error:
        sys.exit(f"messages: {error}")
