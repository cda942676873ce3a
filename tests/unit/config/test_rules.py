from types import ModuleType

import pytest

from gw import Section, Sections, hookimpl
from gw.plugins import Available, PluginSet

UPSTREAM = "upstreams: [{name: api, host: h}]\n"


@pytest.fixture
def limit():
    module = ModuleType("limit")
    module.GW_API = 1

    def gw_sections():
        return Sections("limit", gateway=Section, route=Section)

    module.gw_sections = hookimpl(gw_sections)
    plugins = PluginSet()
    plugins.add("limit", module)
    return plugins


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("upstreams: [{name: a, host: h}, {name: a, host: i}]", ["gw.yaml:1:34: upstreams[1].name: 'a' is the name of upstreams[0] already"]),
        ("routes: [{name: a}, {name: b}, {name: a}]", ["gw.yaml:1:33: routes[2].name: 'a' is the name of routes[0] already"]),
        (UPSTREAM + "routes: [{upstream: apo}]", ["gw.yaml:2:11: routes[0].upstream: there is no upstream 'apo' (did you mean 'api'?)"]),
        (UPSTREAM + "routes: [{upstreams: [{name: xyz}]}]", ["gw.yaml:2:24: routes[0].upstreams[0].name: there is no upstream 'xyz'"]),
        (UPSTREAM + "routes: [{upstreams: [{name: api}, {name: api}]}]", ["gw.yaml:2:37: routes[0].upstreams[1].name: lists upstream 'api' twice; give it one weight"]),
        ("plugins: []\nroutes: [{plugins: [rewrite]}]", ["gw.yaml:2:21: routes[0].plugins[0]: plugin 'rewrite' is not loaded; add it to plugins at the top level"]),
    ],
)  # fmt: skip
def test_names_must_be_there_and_differ(problems, text, told):
    assert problems(text) == told


def test_names_are_checked_although_other_things_are_wrong(problems):
    told = problems("upstreams: [{name: api, hots: h}, 5]\nroutes: [{upstream: apo}, {upstream: 5}, x]\nbind_port: x")
    assert told == [
        "gw.yaml:1:25: upstreams[0].hots: is not a known key (did you mean 'host'?)",
        "gw.yaml:1:35: upstreams[1]: must be a mapping, not an integer",
        "gw.yaml:2:11: routes[0].upstream: there is no upstream 'apo' (did you mean 'api'?)",
        "gw.yaml:2:28: routes[1].upstream: must be text, not an integer; quote it",
        "gw.yaml:2:42: routes[2]: must be a mapping, not text",
        "gw.yaml:3:1: bind_port: must be an integer, not text",
    ]


def test_a_section_that_a_route_s_plugins_leave_out_is_refused(problems, loading, limit):
    assert problems("routes: [{plugins: [], limit: {}}]", plugins=limit) == [
        "gw.yaml:1:24: routes[0].limit: has no effect: this route's plugins do not name 'limit'; add it there"
    ]
    assert loading("routes: [{plugins: [limit], limit: {}}]", plugins=limit)
    assert loading("routes: [{limit: {}}]", plugins=limit)


def test_an_idle_limit_that_is_never_reached_is_warned_of(loading):
    text = "upstreams: [{name: a, host: h, proxy: {stream_max_duration_sec: 10}}]\n"
    text += "routes: [{upstream: a, stream_idle_timeout_sec: 9, stream_max_duration_sec: 5}]"
    assert [str(warning) for warning in loading(text).warnings] == [
        "gw.yaml:1:32: warning: upstreams[0].proxy.stream_idle_timeout_sec: is longer (30) than stream_max_duration_sec (10) and so never reached",
        "gw.yaml:2:24: warning: routes[0].stream_idle_timeout_sec: is longer (9) than stream_max_duration_sec (5) and so never reached",
    ]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("tls: {enabled: true}", "tls"),
        ("worker_threads: 3", "worker_threads"),
        ("http2: {}", "http2"),
        ("observability: {}", "observability"),
        ("upstreams: [{name: a, host: h, tls: {}}]", "upstreams[0].tls"),
        ("upstreams: [{name: a, host: h, circuit_breaker: {}}]", "upstreams[0].circuit_breaker"),
        ("upstreams: [{name: a, host: h, proxy: {retry: {max_retries: 1}}}]", "upstreams[0].proxy.retry"),
        ("upstreams: [{name: a, host: h, proxy: {buffering: always}}]", "upstreams[0].proxy.buffering"),
    ],
)
def test_a_key_of_the_reference_that_we_do_not_have_yet_is_refused_as_such(problems, monkeypatch, text, path):
    monkeypatch.setattr("gw.config.rules.available", lambda: ())
    (told,) = problems(text)
    assert told.endswith(f": {path}: is not supported by this version of gw; remove it")


@pytest.mark.parametrize("section", ["rate_limit", "ratelimit", "RateLimit"])
def test_a_section_of_a_plugin_that_is_not_loaded_says_which_to_add(problems, monkeypatch, section):
    monkeypatch.setattr("gw.config.rules.available", lambda: (Available("ratelimit", "m", "d", "1"),))
    (told,) = problems(f"routes: [{{{section}: {{}}}}]")
    assert told == (
        f"gw.yaml:1:11: routes[0].{section}: belongs to plugin 'ratelimit', which is not loaded; add it to plugins at the top level"
    )


def test_a_section_at_a_level_that_its_plugin_does_not_have_is_refused(problems, limit):
    assert problems("upstreams: [{name: a, host: h, limit: {}}]", plugins=limit) == [
        "gw.yaml:1:32: upstreams[0].limit: is not a key at this level: plugin 'limit' has its settings elsewhere"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bind_hots: h", "bind_hots: is not a known key (did you mean 'bind_host'?)"),
        ("log: {acess: {}}", "log.acess: is not a known key (did you mean 'access'?)"),
        ("routes: [{match: {hosts: a}}]", "routes[0].match.hosts: is not a known key (did you mean 'host'?)"),
        ("paths: {xyz: 1}", "paths.xyz: is not a known key; paths has backslash, encoded_slash, merge_slashes, nul"),
        (
            "upstreams: [{name: a, endpoints: [{host: h, q: 1}]}]",
            "upstreams[0].endpoints[0].q: is not a known key; upstreams[0].endpoints[0] has host, port, weight",
        ),
    ],
)
def test_an_unknown_key_says_what_may_have_been_meant(problems, text, message):
    (told,) = problems(text)
    assert told.partition(" ")[2] == message
