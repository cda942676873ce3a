"""The origin in Python: for the memory benchmark, which needs endless bodies, and where nginx is not installed.

It answers ``/`` and every POST with a few bytes, and ``/N`` or ``/Nk`` with a body of N bytes or KiB.
A request body is read, thrown away, and answered only when it is all there.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
from typing import Final, cast

import httptools
import uvloop

PIECE: Final = bytes(65536)
SMALL: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nhello, world\n"
HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n"
NOT_FOUND: Final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
UNITS: Final = {b"": 1, b"k": 1024}


class Connection(asyncio.Protocol):
    """Answers one request after the other; a body is written only as fast as it is taken."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.target = b""
        self.left = 0
        self.writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_message_complete(self) -> None:
        target, self.target = self.target, b""
        if target == b"/" or self.parser.get_method() == b"POST":
            self.transport.write(SMALL)
        elif size := re.fullmatch(rb"/([0-9]+)(k?)", target):
            self.left = int(size[1]) * UNITS[size[2]]
            self.transport.write(HEAD % self.left)
            self.write_body()
        else:
            self.transport.write(NOT_FOUND)

    def write_body(self) -> None:
        while self.left and self.writable:
            piece = PIECE[: self.left]
            self.left -= len(piece)
            self.transport.write(piece)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.write_body()


async def serve(listener: socket.socket) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, sock=listener, backlog=4096)
    await server.serve_forever()


def main() -> None:
    options = argparse.ArgumentParser(description="Answer HTTP/1.1 requests with bodies of any size.")
    options.add_argument("--port", type=int, required=True, help="where to listen, on 127.0.0.1")
    listener = socket.create_server(("127.0.0.1", options.parse_args().port))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(listener))


if __name__ == "__main__":
    main()
