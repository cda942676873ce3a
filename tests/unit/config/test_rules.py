import sys
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


def test_a_resolver_that_is_not_installed_is_refused_where_it_is_asked_for(problems, loading, monkeypatch):
    text = "dns:\n  resolver: dnspython"
    assert loading(text).warnings == ()
    monkeypatch.setitem(sys.modules, "dns", None)
    assert problems(text) == [
        "gw.yaml:2:3: dns.resolver: needs dnspython, which is not installed; run pip install 'gw[dns]', or set it to system"
    ]


def test_an_idle_limit_that_is_never_reached_is_warned_of(loading):
    text = "upstreams: [{name: a, host: h, proxy: {stream_max_duration_sec: 10}}]\n"
    text += "routes: [{upstream: a, stream_idle_timeout_sec: 9, stream_max_duration_sec: 5}]"
    assert [str(warning) for warning in loading(text).warnings] == [
        "gw.yaml:1:32: warning: upstreams[0].proxy.stream_idle_timeout_sec: is longer (30) than stream_max_duration_sec (10) and so never reached",
        "gw.yaml:2:24: warning: routes[0].stream_idle_timeout_sec: is longer (9) than stream_max_duration_sec (5) and so never reached",
    ]


TLS = "tls: {enabled: true, cert_file: gw.yaml, key_file: gw.yaml}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tls: {enabled: true}", ["gw.yaml:1:1: tls: enabled: true needs cert_file and key_file"]),
        ("tls: {enabled: true, cert_file: no, key_file: '.'}".replace("no", "'no'"), [
            "gw.yaml:1:22: tls.cert_file: 'no' cannot be read: No such file or directory",
            "gw.yaml:1:39: tls.key_file: '.' is not a regular file",
        ]),
        ("tls: {client_certificates: {verify: required}}", ["gw.yaml:1:7: tls.client_certificates: verify: required needs ca_file, the authorities to verify against"]),
        ("listeners: [{name: a, bind_port: 1, tls: {enabled: true, cert_file: 'no', key_file: gw.yaml}}]", ["gw.yaml:1:58: listeners[0].tls.cert_file: 'no' cannot be read: No such file or directory"]),
        ("listeners: [{name: a, bind_port: 1}, {name: a, bind_port: 1}]", [
            "gw.yaml:1:39: listeners[1].name: 'a' is the name of another listener already",
            "gw.yaml:1:48: listeners[1].bind_port: listener 'a' has this address already",
        ]),
        ("bind_port: 1\nlisteners: [{name: main, bind_port: 2}]", ["gw.yaml:2:14: listeners[0].name: 'main' is the name of another listener already"]),
        (TLS[:-1] + ", certificates: [{hosts: [a.test], cert_file: 'no', key_file: gw.yaml}]}", ["gw.yaml:1:94: tls.certificates[0].cert_file: 'no' cannot be read: No such file or directory"]),
        ("upstreams: [{name: a, host: 10.0.0.1, tls: {enabled: true}}]", ["gw.yaml:1:39: upstreams[0].tls.sni_hostname: is needed: 10.0.0.1 is an address, and there is no name to verify the certificate against"]),
        ("upstreams: [{name: a, host: h, tls: {enabled: true, ca_file: 'no'}}]", ["gw.yaml:1:53: upstreams[0].tls.ca_file: 'no' cannot be read: No such file or directory"]),
        ("upstreams: [{name: a, host: h, tls: {enabled: true, cert_file: gw.yaml}}]", ["gw.yaml:1:32: upstreams[0].tls: has one of cert_file and key_file; give both, or none"]),
        ("upstreams: [{name: a, host: h, http2: {enabled: true}}]", ["gw.yaml:1:40: upstreams[0].http2.enabled: needs tls.enabled: true, since HTTP/2 is agreed on in the handshake; without TLS set prefer to h2c"]),
        ("upstreams: [{name: a, host: h, tls: {enabled: true}, http2: {enabled: true, prefer: h2c}}]", ["gw.yaml:1:77: upstreams[0].http2.prefer: h2c is HTTP/2 without TLS, and tls.enabled is true; use auto or always"]),
        ("upstreams: [{name: a, host: h, health: {active: {type: grpc}}}]", ["gw.yaml:1:50: upstreams[0].health.active.type: is grpc, which HTTP/2 carries: set http2.enabled, and without TLS http2.prefer: h2c"]),
        ("upstreams: [{name: a, host: h, http2: {preconnect_watermark_pct: 50}}]", ["gw.yaml:1:32: upstreams[0].http2: preconnect_watermark_pct (50) must be below saturation_open_pct (0)"]),
    ],
)  # fmt: skip
def test_what_does_not_go_together_in_tls_and_http2_is_refused(problems, text, told):
    assert problems(text) == told


def test_an_upstream_that_anybody_can_be_is_warned_of(loading):
    text = "upstreams: [{name: a, host: 10.0.0.1, tls: {enabled: true, verify_peer: false, ca_file: 'no'}}]"
    assert [str(warning) for warning in loading(text).warnings] == [
        "gw.yaml:1:60: warning: upstreams[0].tls.verify_peer: is false: anybody can be this upstream"
    ]


@pytest.mark.parametrize(
    "text",
    [
        TLS,
        "upstreams: [{name: a, host: h, tls: {enabled: true, sni_hostname: up.test.}, http2: {enabled: true}}]",
        "upstreams: [{name: a, host: h, http2: {enabled: true, prefer: h2c}}]",
        "tls: {cert_file: 'no', key_file: 'no'}",  # off, so it is nobody's business
    ],
)
def test_what_goes_together_in_tls_and_http2_is_taken(loading, text):
    assert loading(text).warnings == ()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("observability: {}", "observability"),
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
            "upstreams[0].endpoints[0].q: is not a known key; upstreams[0].endpoints[0] has asgi, host, port, priority, srv, weight",
        ),
    ],
)
def test_an_unknown_key_says_what_may_have_been_meant(problems, text, message):
    (told,) = problems(text)
    assert told.partition(" ")[2] == message


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        (
            "srv: _http._tcp.a.example, host: b",
            "upstreams[0].endpoints[0]: has both host and srv; keep one",
        ),
        (
            "srv: _http._tcp.a.example, port: 81",
            "upstreams[0].endpoints[0]: has both srv and port, which the records of the service say",
        ),
        (
            "srv: http.tcp.a.example",
            (
                "upstreams[0].endpoints[0].srv: 'http.tcp.a.example' is not a service "
                "(_service._protocol.name, such as _http._tcp.example.com)"
            ),
        ),
    ],
)
def test_a_service_is_named_as_one_and_says_the_rest_itself(problems, endpoint, message):
    [line] = problems(f"dns: {{resolver: dnspython}}\nupstreams: [{{name: a, endpoints: [{{{endpoint}}}]}}]")
    assert line.split(": ", 1)[1] == message


def test_a_service_is_looked_up_by_dnspython_only(problems, loading):
    text = "upstreams: [{name: a, endpoints: [{host: b}, {srv: _http._tcp.a.example}], proxy: {route_prefix: /}}]"
    [line] = problems(text)
    assert line.split(": ", 1)[1] == (
        "upstreams[0].endpoints[1].srv: is looked up with dnspython only; "
        "set dns.resolver to dnspython (pip install 'gw[dns]')"
    )
    assert loading(f"dns: {{resolver: dnspython}}\n{text}").config.upstreams[0].services() == ("_http._tcp.a.example",)
