"""A gateway in memory whose upstream speaks HTTP/2 and is played by the test."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio

from gw.testing import PATIENCE
from gw.testing.gateway import in_memory
from gw.testing.http2 import Http2Peer
from gw.testing.memory import Backlog

GET = b"GET / HTTP/1.1\r\nhost: gw.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: gw.test\r\ncontent-length: %d\r\n\r\n"
H2C = {"enabled": True, "prefer": "h2c"}


def config(*, pool=None, proxy=None, tls=None, **http2):
    return {
        "upstreams": [
            {
                "name": "up",
                "host": "192.0.2.1",
                "port": 80,
                "http2": H2C | http2,
                "pool": pool or {},
                "tls": tls or {},
                "proxy": {"route_prefix": "/", **(proxy or {})},
            }
        ]
    }


@asynccontextmanager
async def played(engine, **settings):
    """Run a gateway whose upstream is the test; give it, and what accepts the upstream's connections."""
    backlog = Backlog()

    async def accept(peer_settings=None):
        return Http2Peer(await backlog.accept(), peer_settings, engine=engine)

    async with in_memory(config(**settings), backlog, engine=engine) as gateway:
        with anyio.fail_after(PATIENCE):
            yield gateway, accept


def ask(gateway, data=GET):
    client = gateway.connect()
    client.write(data)
    return client


async def reasons(gateway):
    told = []
    gateway.gateway._told = lambda ex: told.append(ex.reason)
    return told
