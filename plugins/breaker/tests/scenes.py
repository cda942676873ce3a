"""A gateway with a breaker, in memory, and what the tests ask it."""

from __future__ import annotations

from contextlib import suppress

import anyio

from gw.config.load import load
from gw.generation import build
from gw.net.stream import StreamLost
from gw_breaker import breakers_of

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
ERROR = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"
MISSING = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nhost: example.test\r\n\r\n"


def config(breaker=None, *, upstream=None, **rest):
    section = {"enabled": True, "consecutive_failure_threshold": 2, "permitted_half_open_calls": 1} | (breaker or {})
    up = {"name": "upstream", "host": "192.0.2.1", "proxy": {"route_prefix": "/"}, "circuit_breaker": section}
    return {"plugins": ["breaker"], "upstreams": [up | (upstream or {})], **rest}


def played_by(script):
    """Return *script* so that it ends quietly when the gateway closes the connection."""

    async def until_closed(stream):
        with suppress(anyio.EndOfStream, StreamLost):
            await script(stream)

    return until_closed


def breakers(gateway):
    return breakers_of(gateway.gateway._current.now.contexts["breaker"])


def figures(gateway, name="upstream"):
    return breakers(gateway).stats()["breakers"][name]


async def reload(gateway, settings):
    """Do what a reload does."""
    current, inner = gateway.gateway._current, gateway.gateway
    loaded = load(settings, environ={})
    new = await build(current.now.number + 1, loaded, gateway.network, inner.engine, inner._shared)
    await current.switch(new)


async def statuses(gateway, count):
    return [(await gateway.get("/")).status for _ in range(count)]


def exported(gateway, family):
    """Return the rows of one family, but those that are 0."""
    found = {each.name: each.rows() for each in gateway.gateway._shared.figures}
    return {labels: row.value for labels, row in found[f"gw.circuit_breaker.{family}"].items() if row.value}
