"""From settings to routes: the order of filters, and to which upstream and endpoint requests go."""

from __future__ import annotations

from types import ModuleType

from gw import Filter, hookimpl
from gw.config.load import load
from gw.described import describe
from gw.plugins import PluginSet
from gw.testing.gateway import Upstream, in_memory

UP = {"name": "up", "host": "192.0.2.1"}


def test_filters_stand_before_an_earlier_plugin_where_the_settings_say_so():
    def plugin(name, before=""):
        def gw_filters(route, ctx):
            return (named(name),)

        def gw_filters_before(route, ctx, plugin):
            return (named(f"{name} before {plugin}"),) if plugin == before else ()

        module = ModuleType(name)
        module.GW_API = 1
        module.gw_filters, module.gw_filters_before = hookimpl(gw_filters), hookimpl(gw_filters_before)
        plugins.add(name, module)

    def named(name):
        return type("Named", (Filter,), {"name": name, "on_complete": lambda self, ex: None})()

    plugins = PluginSet()
    plugin("a", before="c")  # which comes later: then its own place will do
    plugin("b")
    plugin("c", before="b")
    plugin("d", before="b")
    config = {"upstreams": [UP], "routes": [{"match": {"prefix": "/"}, "upstream": "up"}]}
    (row, *_) = describe(load(config, environ={}, plugins=plugins))
    assert [each.name for each in row.filters] == ["a", "c before b", "d before b", "b", "c", "d"]


async def test_weights_decide_who_is_asked():
    config = {
        "upstreams": [UP, {"name": "other", "host": "192.0.2.2"}],
        "routes": [
            {
                "match": {"prefix": "/"},
                "upstreams": [{"name": "up", "weight": 0}, {"name": "other", "weight": 5}],
            },
        ],
    }
    async with in_memory(config, upstreams={"192.0.2.2:80": Upstream()}) as gateway:
        for _ in range(20):
            assert (await gateway.get("/")).status == 200
        assert set(gateway.network.dialled) == {"192.0.2.2:80"}


async def test_endpoints_take_turns():
    both = {"endpoints": [{"host": "192.0.2.1"}, {"host": "192.0.2.2"}]}
    config = {"upstreams": [{"name": "up", **both, "proxy": {"route_prefix": "/"}}]}
    one, two = Upstream(), Upstream()
    async with in_memory(config, one, upstreams={"192.0.2.2:80": two}) as gateway:
        for _ in range(6):
            await gateway.get("/")
        assert (len(one.asked), len(two.asked)) == (3, 3)
