"""Applications that a configuration names: where they are found, and what cannot be said of them."""

from __future__ import annotations

import sys

import pytest

from gw.config.apps import application
from gw.plugins import PluginSet, load as load_named, standard

APP = "upstreams: [{name: a, endpoints: [{asgi: 'shop:app'}]}]"


@pytest.fixture(autouse=True)
def shop(tmp_path, monkeypatch):
    """Be where modules are found, `shop` and `broken` among them; forget them afterwards."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "shop.py").write_text(
        "async def app(scope, receive, send): ...\nclass inner:\n    app = app\nnumber = 1\n"
    )
    (folder / "broken.py").write_text("import sys\n\nraise RuntimeError('no database\\nsecond line')\n")
    (folder / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "torn.py").write_text("def app(:\n")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("shop", "broken", "leaves", "torn"):
        sys.modules.pop(name, None)


def test_it_is_found_by_module_and_attribute():
    assert application("shop:app") is application("shop:inner.app") is sys.modules["shop"].app


def test_it_has_no_addresses(loading):
    upstream = loading(APP).config.upstreams[0]
    assert (upstream.application, upstream.addresses()) == ("shop:app", ())
    upstream = loading("upstreams: [{name: a, host: h}]").config.upstreams[0]
    assert upstream.application is None


def test_what_can_be_said_of_it(loading):
    loaded = loading(
        "upstreams: [{name: a, endpoints: [{asgi: 'shop:app'}], proxy: {route_prefix: /a, strip_prefix: true, methods: [GET]}}]\n"
        "routes: [{match: {prefix: /b}, upstream: a, max_body_size: 1, websocket: {enabled: false}, strip_prefix: true}]"
    )
    assert loaded.warnings == ()
    assert loading_again(loaded) == loaded.effective()


def loading_again(loaded):
    return loaded.again(loaded.effective()).effective()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:app", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("shop:application", "cannot be imported: AttributeError: module 'shop' has no attribute 'application'"),
        ("broken:app", "cannot be imported: RuntimeError: no database (FOLDER/broken.py:3)"),
        ("leaves:app", "cannot be imported: SystemExit: 3 (FOLDER/leaves.py:2)"),
        ("torn:app", "cannot be imported: SyntaxError: invalid syntax (torn.py, line 1)"),
        ("shop:number", "is no ASGI application, but of the type int"),
    ],
)
def test_one_that_cannot_be_had_is_an_error_with_its_place(problems, shop, name, message):
    expected = f"gw.yaml:3:16: upstreams[0].endpoints[0].asgi: {name!r} {message.replace('FOLDER', str(shop))}"
    assert problems(f"upstreams:\n- name: a\n  endpoints: [{{asgi: '{name}'}}]") == [expected]


@pytest.mark.parametrize("name", ["shop", "shop:", ":app", "shop.app", "shop:app()", "a b:c", "shop:app:x", "-:x"])
def test_its_name_is_checked_before_anything_is_imported(problems, name):
    [line] = problems(f"upstreams: [{{name: a, endpoints: [{{asgi: '{name}'}}]}}]")
    assert line.endswith(f"must be a module and an attribute, such as package.module:app, not {name!r}")


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        (
            "endpoints: [{}]",
            "endpoints[0]: has no address; give host, srv for a service in the DNS, or asgi for an application in this process",
        ),
        ("endpoints: [{host: h, asgi: 'shop:app'}]", "endpoints[0]: has both host and asgi; keep one"),
        (
            "endpoints: [{host: h}, {asgi: 'shop:app'}]",
            "endpoints: has an application, beside which there can be no other endpoint",
        ),
        ("endpoints: [{asgi: 'shop:app', port: 81}]", "endpoints[0].port: means nothing to an application; remove it"),
        (
            "endpoints: [{asgi: 'shop:app', weight: 2}]",
            "endpoints[0].weight: means nothing to an application; remove it",
        ),
        *(
            (f"endpoints: [{{asgi: 'shop:app'}}], {key}: {value}", f"{key}: means nothing to an application; remove it")
            for key, value in (
                ("request_mode", "buffered"),
                ("balance", "{algorithm: random}"),
                ("health", "{active: {}}"),
                ("http2", "{max_frame_size: 32768}"),
                ("pool", "{max_queue: 1}"),
            )
        ),
        *(
            (
                f"endpoints: [{{asgi: 'shop:app'}}], proxy: {{{key}: {value}}}",
                f"proxy.{key}: means nothing to an application; remove it",
            )
            for key, value in (
                ("response_timeout_ms", "1000"),
                ("retry", "{max_retries: 1}"),
                ("buffering", "never"),
                ("header_rewrite", "{set_forwarded: true}"),
            )
        ),
    ],
)
def test_what_means_nothing_to_it_is_an_error(problems, upstream, message):
    lines = problems(f"upstreams: [{{name: a, {upstream}}}]")
    assert [line.partition(": upstreams[0].")[2] for line in lines] == [message]


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (
            "upstreams: [{name: b}, {name: a}]",
            "upstreams[1].name: 'a' is an application, and a route to one has no other upstreams",
        ),
        (
            "upstream: b, mirror: {upstream: a}",
            "mirror.upstream: 'a' is an application; copies go to upstreams with addresses",
        ),
        ("upstream: a, retry: {max_retries: 1}", "retry: means nothing to an application; remove it"),
        ("upstream: a, response_timeout_ms: 1000", "response_timeout_ms: means nothing to an application; remove it"),
    ],
)
def test_what_a_route_cannot_do_with_it_is_an_error(problems, route, message):
    lines = problems(
        "upstreams: [{name: a, endpoints: [{asgi: 'shop:app'}]}, {name: b, host: h}]\n"
        f"routes: [{{match: {{path: /}}, {route}}}]"
    )
    assert [line.partition(": routes[0].")[2] for line in lines] == [message]


def test_settings_of_plugins_are_for_applications_too(loading):
    plugins: PluginSet = load_named(standard())
    loaded = loading(
        "upstreams: [{name: a, endpoints: [{asgi: 'shop:app'}], circuit_breaker: {enabled: true},"
        " proxy: {route_prefix: /a, auth: {enabled: false}}}]",
        plugins=plugins,
    )
    assert loaded.warnings == ()
