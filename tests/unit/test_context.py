"""What a plugin is handed at load."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from gw.config.load import load
from gw.context import PluginContext, Shared


async def test_hooks_share_what_one_of_them_made():
    loaded = load({"upstreams": [{"name": "up", "host": "192.0.2.1"}]}, environ={})
    async with AsyncExitStack() as stack:
        first, second = (PluginContext("rewrite", loaded, Shared(), stack) for _ in range(2))
        made = first.once("key", list)
        assert first.once("key", list) is made
        assert second.once("key", list) is not made
        assert first.config is loaded.config
    assert first.position(("upstreams", 0)) == "configuration"


async def test_a_plugin_cannot_call_a_service_of_the_dns():
    endpoints = [{"srv": "_http._tcp.a.example"}]
    upstreams = [{"name": "up", "endpoints": endpoints, "proxy": {"route_prefix": "/"}}]
    loaded = load({"dns": {"resolver": "dnspython"}, "upstreams": upstreams, "plugins": ["rewrite"]}, environ={})
    async with AsyncExitStack() as stack:
        context = PluginContext("rewrite", loaded, Shared(), stack, {})
        with pytest.raises(
            ValueError, match=r"^upstream 'up' is a service \(srv\), and the gateway's own calls need a host$"
        ):
            context.caller("up")
