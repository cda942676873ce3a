"""The origin of gRPC: answers each unary call with the message that it got, over HTTP/2 in cleartext."""

from __future__ import annotations

import argparse
import asyncio
from typing import Final, cast

import uvloop

from gw.http.engines import choose
from gw.http.h2 import Data, FloodLimits, SessionSettings

HEAD: Final = [(b":status", b"200"), (b"content-type", b"application/grpc")]
TRAILERS: Final = [(b"grpc-status", b"0")]
SETTINGS: Final = SessionSettings(max_concurrent_streams=1000, flood=FloodLimits(*[1_000_000_000] * 6))
ENGINE: Final = choose("auto")


class Connection(asyncio.Protocol):
    """One connection of a proxy."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.session = ENGINE.server_session(SETTINGS)
        self.messages: dict[int, bytes] = {}
        self.flush()

    def data_received(self, data: bytes) -> None:
        session = self.session
        session.feed(data)
        while session.events:
            event = session.events.popleft()
            if isinstance(event, Data):
                session.give_back(event.stream, event.flow)
                self.messages[event.stream] = self.messages.get(event.stream, b"") + event.data
                if event.end:
                    session.respond(event.stream, HEAD, False)
                    session.send(event.stream, self.messages.pop(event.stream), False)
                    session.trail(event.stream, TRAILERS)
        self.flush()

    def flush(self) -> None:
        while data := self.session.outgoing(1 << 16):
            self.transport.write(data)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))
