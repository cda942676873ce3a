"""ASGI applications that a configuration names: where they stand, and how long they live."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import anyio
import pytest
from asgi_in_memory import Living, echoes, tells
from websockets_in_memory import Half, asks
from ws_frames import TEXT, frame

from gw.chain import ChainError
from gw.config.errors import ConfigError
from gw.config.load import load
from gw.gateway import Gateway
from gw.hookspecs import hookimpl
from gw.limits import APP_STARTS
from gw.plugins import PluginSet
from gw.testing import PATIENCE
from gw.testing.gateway import in_memory


@pytest.fixture
def installed(monkeypatch):
    """Have applications be found as attributes of the module ``installed``."""
    module = ModuleType("installed")
    monkeypatch.setitem(sys.modules, "installed", module)
    return module


def hosted(attribute="app", name="shop", **more):
    return {"name": name, "endpoints": [{"asgi": f"installed:{attribute}"}], **more}


async def test_a_configuration_names_an_application_for_its_routes(installed):
    installed.app = tells
    config = {
        "upstreams": [hosted(proxy={"route_prefix": "/old/*rest", "strip_prefix": True})],
        "routes": [
            {"match": {"prefix": "/whole"}, "upstream": "shop", "strip_prefix": False},
            {"match": {"prefix": "/v1/caf%C3%A9"}, "upstream": "shop", "strip_prefix": True},
        ],
    }
    async with in_memory(config) as gateway:
        for path, root in (
            ("/whole/x", ""),
            ("/v1/caf%C3%A9/x", "/v1/café"),
            ("/v1/caf%C3%A9", "/v1/café"),
            ("/old/x/y", "/old"),
        ):
            seen = json.loads((await gateway.get(path)).body)
            assert (seen["raw_path"], seen["root_path"]) == (path, root)


async def test_its_figures_are_in_the_stats(installed):
    async def app(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/bad":
            raise ZeroDivisionError
        await tells(scope, receive, send)

    installed.app = app
    config = {"upstreams": [hosted(proxy={"route_prefix": "/*rest"})]}

    def prepare(gateway):
        gateway.mount("/mounted", app)

    async with in_memory(config, prepare=prepare) as gateway:
        for path, status in (("/", 201), ("/", 201), ("/bad", 500), ("/mounted/x", 201)):
            assert (await gateway.get(path)).status == status
        await gateway.network.settle()
        assert gateway.gateway.stats()["applications"] == {
            "installed:app": {"active": 0, "answered": 3, "failed": 1},
            "app /mounted": {"active": 0, "answered": 1, "failed": 0},
        }


async def test_one_that_is_named_has_websockets(installed):
    installed.app = echoes
    config = {"upstreams": [hosted()], "routes": [{"match": {"prefix": "/"}, "upstream": "shop"}]}
    async with in_memory(config) as gateway:
        stream = gateway.connect()
        stream.write(asks("/"))
        head = await stream.read_until(b"\r\n\r\n")
        client = Half(stream, masked=False, settle=gateway.network.settle, head=head)
        await client.send(frame(TEXT, b"x", masked=True))
        assert await client.take() == [(TEXT, 1, b"x")]
    config["routes"][0]["websocket"] = {"enabled": False}
    async with in_memory(config) as gateway:
        assert (await gateway.request(asks("/"))).status == 404


async def test_one_that_is_named_lives_as_long_as_a_configuration_names_it(installed):
    first = installed.first = Living()
    second = installed.second = Living()
    route = {"match": {"prefix": "/"}, "upstream": "shop"}
    up, down = "lifespan.startup", "lifespan.shutdown"

    def config(*attributes, **more):
        upstreams = [hosted(each, each) for each in attributes]
        return {"upstreams": upstreams, "routes": [{**route, "upstream": attributes[0]}], "plugins": [], **more}

    async with in_memory(config("first")) as gateway:
        assert (first.steps, (await gateway.get("/")).body) == ([up], b"open")
        await gateway.gateway.reload(load(config("first", "second", max_body_size=5), environ={}))
        await gateway.network.settle()
        assert (first.steps, second.steps) == ([up], [up])
        await gateway.gateway.reload(load(config("second"), environ={}))
        await gateway.network.settle()
        assert (first.steps, second.steps) == ([up, down], [up])
        await gateway.gateway.reload(load(config("first"), environ={}))
        await gateway.network.settle()
        assert (first.steps, second.steps) == ([up, down, up], [up, down])
        assert (await gateway.get("/")).body == b"open"
    assert first.steps == [up, down, up, down]


async def test_two_upstreams_of_one_application_share_its_lifespan(installed):
    app = installed.app = Living()
    async with in_memory({"upstreams": [hosted(), hosted(name="other")]}):
        assert app.steps == ["lifespan.startup"]
    assert app.steps == ["lifespan.startup", "lifespan.shutdown"]


async def test_a_reload_to_one_that_cannot_start_changes_nothing(installed):
    async def fails(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    installed.fails, app = fails, Living()
    installed.app = app
    config = {"upstreams": [hosted()], "routes": [{"match": {"prefix": "/"}, "upstream": "shop"}], "plugins": []}
    async with in_memory(config) as gateway:
        worse = load({**config, "upstreams": [hosted(), hosted("fails", "other")]}, environ={})
        for _ in range(2):
            with pytest.raises(ValueError, match="application installed:fails cannot start: no database"):
                await gateway.gateway.reload(worse)
        assert (app.steps, (await gateway.get("/")).body) == (["lifespan.startup"], b"open")
        del installed.fails
        with pytest.raises(
            ConfigError,
            match=r"upstreams\[1\]\.endpoints\[0\]\.asgi: 'installed:fails' cannot be imported: AttributeError",
        ):
            await gateway.gateway.reload(worse)


async def test_one_that_never_starts_is_given_up(installed, monkeypatch):
    assert APP_STARTS == 60
    monkeypatch.setattr("gw.applications.APP_STARTS", 0.01)

    async def app(scope, receive, send):
        await anyio.sleep_forever()

    installed.app = app
    gateway = Gateway(load({"bind_port": 0, "plugins": [], "upstreams": [hosted()]}, environ={}))
    with (
        anyio.fail_after(PATIENCE),
        pytest.raises(ValueError, match=r"installed:app has not started within 0\.01 seconds"),
    ):
        await gateway.serve()


async def test_one_that_is_starting_does_not_keep_the_gateway_from_ending(installed):
    starting = anyio.Event()

    async def app(scope, receive, send):
        starting.set()
        await anyio.sleep_forever()

    installed.app = app
    gateway = Gateway(load({"bind_port": 0, "plugins": [], "upstreams": [hosted()]}, environ={}))
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gateway.serve)
            await starting.wait()
            tasks.cancel_scope.cancel()


async def test_a_plugin_cannot_have_another_upstream_asked_in_its_place(installed):
    installed.app = tells
    plugins, module = PluginSet(), ModuleType("elsewhere")
    module.GW_API = 1
    named = []
    module.gw_upstreams = hookimpl(lambda route, ctx: named, specname="gw_upstreams")
    plugins.add("elsewhere", module)
    other = {"name": "other", "host": "192.0.2.1"}
    for upstream, instead, message in (
        ("shop", "other", "elsewhere names the upstream 'other', which cannot be asked in place of an application"),
        ("other", "shop", "elsewhere names the upstream 'shop', which is an application"),
    ):
        named[:] = [instead]
        config = {"upstreams": [hosted(), other], "routes": [{"match": {"prefix": "/"}, "upstream": upstream}]}
        gateway = Gateway(load({"bind_port": 0, **config}, environ={}, plugins=plugins))
        with pytest.raises(ChainError, match=message):
            await gateway.serve()
