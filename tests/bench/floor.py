"""A bare relay: what Python cannot be faster than. `run.py` measures gw as a multiple of it.

Callbacks over `asyncio.Protocol`, llhttp on both sides, uvloop, and a pool of upstream connections.
Messages are parsed and written anew: method, target, fields, bodies by length or in chunks.
Nothing else may be added here: no checks, no changed fields, no trailers, deadlines, retries or logs.
It is for measuring only. It believes what it reads, and answers whatever it does not expect by closing.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from typing import cast

import httptools
import uvloop

# Fields are passed on as they came, so a message is framed on one side as it was on the other.
LAST_CHUNK = b"0\r\n\r\n"


class Pool:
    """Upstream connections that wait for work, the latest on top. Only as many are made as clients ever asked at once."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.idle: list[Upstream] = []
        self.dials: set[asyncio.Task[None]] = set()

    def take(self, client: Client) -> Upstream | None:
        """Lend an idle connection to *client*; without one, dial, and let `Client.flush` run when it stands."""
        if self.idle:
            upstream = self.idle.pop()
            upstream.client = client
            return upstream
        dial = asyncio.get_running_loop().create_task(self.dial(client))
        self.dials.add(dial)
        dial.add_done_callback(self.dials.discard)
        return None

    async def dial(self, client: Client) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, upstream = await loop.create_connection(lambda: Upstream(self), self.host, self.port)
        except OSError:
            client.transport.close()
            return
        if client.transport.is_closing():
            self.idle.append(upstream)
            return
        upstream.client = client
        client.upstream = upstream
        client.flush()


class Client(asyncio.Protocol):
    """The downstream side: reads requests, one at a time."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.upstream: Upstream | None = None
        self.parser = httptools.HttpRequestParser(self)
        self.out: list[bytes] = []
        self.target = b""
        self.busy = False
        self.reusable = False
        self.chunked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()
            return
        if self.upstream is not None:
            self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.upstream is not None:
            self.upstream.transport.close()

    def pause_writing(self) -> None:
        if self.upstream is not None:
            self.upstream.paused = True
            self.upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.upstream is not None:
            self.upstream.resume()

    def on_message_begin(self) -> None:
        if self.busy:
            raise RuntimeError("pipelined requests are not relayed")  # surfaces as an HttpParserError
        self.busy = True
        self.reusable = self.chunked = False
        self.out = [b""]  # the request line goes here, once its parts are known
        self.upstream = self.pool.take(self)

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.out.append(b"%b: %b\r\n" % (name, value))

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        if method == b"HEAD":
            raise RuntimeError("HEAD is not relayed")  # its response has a length and no body
        self.out[0] = b"%b %b HTTP/1.1\r\n" % (method, self.target)
        self.out.append(b"\r\n")
        self.target = b""

    def on_chunk_header(self) -> None:
        self.chunked = True

    def on_body(self, body: bytes) -> None:
        self.out.append(b"%x\r\n%b\r\n" % (len(body), body) if self.chunked else body)

    def on_message_complete(self) -> None:
        if self.chunked:
            self.out.append(LAST_CHUNK)
        self.reusable = self.parser.should_keep_alive()

    def flush(self) -> None:
        upstream = self.upstream
        if upstream is not None and self.out:
            upstream.transport.write(b"".join(self.out))
            self.out.clear()


class Upstream(asyncio.Protocol):
    """The upstream side: reads the response to the request of the client that holds it."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.client: Client | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.out: list[bytes] = []
        self.reason = b""
        self.status = 0
        self.chunked = False
        self.done = False
        self.reusable = False
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        client = self.client
        if client is None:  # an origin that speaks unasked
            self.transport.close()
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()
            return
        out = self.out
        client.transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()
        if self.done:
            self.release(client)

    def release(self, client: Client) -> None:
        self.client = client.upstream = None
        client.busy = self.done = False
        if self.paused:
            self.resume()
        if client.reusable and self.reusable:  # both messages are over, and neither side said close
            self.pool.idle.append(self)
        else:
            self.transport.close()
            client.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.client is not None:
            self.client.upstream = None
            self.client.transport.close()  # which is also how a body that is read until close ends
        elif self in self.pool.idle:
            self.pool.idle.remove(self)

    def pause_writing(self) -> None:
        if self.client is not None:
            self.client.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.client is not None:
            self.client.transport.resume_reading()

    def resume(self) -> None:
        self.paused = False
        self.transport.resume_reading()

    def on_message_begin(self) -> None:
        self.chunked = False
        self.out.append(b"")  # the status line goes here; in front of it there may be an interim response
        self.head = len(self.out) - 1

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.out.append(b"%b: %b\r\n" % (name, value))

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.out[self.head] = b"HTTP/1.1 %d %b\r\n" % (self.status, self.reason)
        self.out.append(b"\r\n")
        self.reason = b""

    def on_chunk_header(self) -> None:
        self.chunked = True

    def on_body(self, body: bytes) -> None:
        self.out.append(b"%x\r\n%b\r\n" % (len(body), body) if self.chunked else body)

    def on_message_complete(self) -> None:
        if self.chunked:
            self.out.append(LAST_CHUNK)
        self.done = self.status >= 200
        self.reusable = self.parser.should_keep_alive()  # it forgets once the callback is over


async def serve(listener: socket.socket, pool: Pool) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Client(pool), sock=listener, backlog=4096)
    await server.serve_forever()


def main() -> None:
    options = argparse.ArgumentParser(description="Relay HTTP/1.1 to one upstream, and do nothing else.")
    options.add_argument("--port", type=int, required=True, help="where to listen, on 127.0.0.1")
    options.add_argument("--upstream-port", type=int, required=True, help="where to relay to, on 127.0.0.1")
    given = options.parse_args()
    listener = socket.create_server(("127.0.0.1", given.port))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(listener, Pool("127.0.0.1", given.upstream_port)))


if __name__ == "__main__":
    main()
