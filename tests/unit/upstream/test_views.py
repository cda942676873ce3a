"""A large body that came in one read with its head: written on as it is, and shown to filters as bytes."""

from __future__ import annotations

from types import ModuleType

import pytest

from gw import Body, Filter, hookimpl
from gw.limits import MAX_JOINED_WRITE
from gw.plugins import PluginSet
from gw.testing.gateway import Upstream, in_memory
from gw.testing.http2 import Http2Client

BODY = bytes(range(256)) * (MAX_JOINED_WRITE // 256 + 1)
LARGE = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(params=["pure", "native"])
def engine(request):
    return request.param


class Sees(Filter):
    name = "sees"

    def __init__(self, mode):
        self.upstream_body, self.seen = mode, []

    async def on_upstream_body(self, ex, chunk, end):
        self.seen.append(chunk)
        return chunk


def plugin(*filters):
    module = ModuleType("own")
    module.GW_API, module.gw_filters = 1, hookimpl(lambda route, ctx: filters, specname="gw_filters")
    plugins = PluginSet()
    plugins.add("own", module)
    return plugins


async def test_the_client_gets_it(engine):
    async with in_memory(upstream=Upstream(LARGE), engine=engine) as gateway:
        assert (await gateway.get("/")).body == BODY


async def test_the_client_gets_it_over_http2(engine):
    async with in_memory(upstream=Upstream(LARGE), engine=engine) as gateway:
        client = Http2Client(gateway.connect(), engine=engine)
        assert (await client.get()).body == BODY


@pytest.mark.parametrize("mode", [Body.OBSERVE, Body.STREAM, Body.BUFFER])
async def test_filters_see_bytes(mode):
    sees = Sees(mode)
    async with in_memory(upstream=Upstream(LARGE), plugins=plugin(sees)) as gateway:
        assert (await gateway.get("/")).body == BODY
    assert b"".join(sees.seen) == BODY
    assert {type(chunk) for chunk in sees.seen} == {bytes}
