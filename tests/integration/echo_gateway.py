"""A program with a gateway in it, whose handler echoes WebSocket messages: ``echo_gateway.py PORT ENGINE LOOP``."""

import sys

import anyio

from gw import WebSocket
from gw.config.load import load
from gw.gateway import Gateway


async def echo(websocket: WebSocket) -> None:
    async for message in websocket:
        await websocket.send(message)


async def main(port: int, engine: str) -> None:
    gateway = Gateway(load({"bind_port": port, "engine": engine, "max_ws_message_size": 0}, environ={}))
    gateway.websocket("/", echo)
    await gateway.serve(ready=lambda: print(f"listening on http://127.0.0.1:{port}", flush=True))


if __name__ == "__main__":
    loop = sys.argv[3]
    options = {"use_uvloop": loop == "uvloop"} if loop != "trio" else {}
    anyio.run(
        main, int(sys.argv[1]), sys.argv[2], backend="trio" if loop == "trio" else "asyncio", backend_options=options
    )
