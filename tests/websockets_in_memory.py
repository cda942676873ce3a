"""Both ends of a WebSocket through a gateway in memory, as bytes: nothing is decided for the test."""

from __future__ import annotations

from contextlib import asynccontextmanager

from ws_frames import parsed

from gw.http.handshake import accept_of
from gw.testing.gateway import in_memory
from gw.testing.memory import Backlog

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def asks(path="/", *lines):
    fields = "".join(f"{line}\r\n" for line in lines)
    return (
        f"GET {path} HTTP/1.1\r\nHost: example.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{fields}\r\n"
    ).encode()


class Half:
    """One end: what it sends and what it has been sent."""

    def __init__(self, stream, *, masked, settle, head=b""):
        self.stream, self.masked, self._settle, self.head = stream, masked, settle, head

    async def send(self, *frames):
        self.stream.write(b"".join(frames))
        await self._settle()

    async def take(self):
        """Return the frames that have come since, as (opcode, fin, payload)."""
        data = b""
        await self._settle()
        while self.stream.has_data:
            data += self.stream.take()
            await self._settle()
        return parsed(data, masked=self.masked)

    async def is_over(self):
        """Whether the gateway has ended the connection; whatever else it sent must have been taken."""
        await self._settle()
        return not self.stream.has_data and (self.stream.at_eof or self.stream.lost)


class Opened:
    def __init__(self, gateway, client, upstream):
        self.gateway, self.client, self.upstream = gateway, client, upstream

    @property
    def open(self):
        return len(self.gateway.gateway.websockets.open)


def answer(head, *lines):
    key = next(
        line.partition(b":")[2].strip() for line in head.split(b"\r\n") if line.startswith(b"sec-websocket-key:")
    )
    fields = "".join(f"{line}\r\n" for line in lines).encode()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_of(key) + b"\r\n" + fields + b"\r\n"
    )


@asynccontextmanager
async def opened(config=None, *, asked=(), answered=(), early=b"", plugins=None, engine="auto"):
    """Run a gateway and yield one WebSocket through it. *early* comes with the upstream's 101."""
    backlog = Backlog()
    async with in_memory(config, backlog, plugins=plugins, engine=engine) as gateway:
        client = gateway.connect()
        client.write(asks("/", *asked))
        peer = await backlog.accept()
        request = await peer.read_until(b"\r\n\r\n")
        peer.write(answer(request, *answered) + early)
        head = await client.read_until(b"\r\n\r\n")
        settle = gateway.network.settle
        yield Opened(
            gateway,
            Half(client, masked=False, settle=settle, head=head),
            Half(peer, masked=True, settle=settle, head=request),
        )
