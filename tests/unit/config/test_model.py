import json
from ipaddress import ip_network

import pytest
from pydantic import BaseModel

from gw import Endpoint, Section, Sections
from gw.config.model import GatewayConfig, is_free, with_sections
from gw.config.upstream import HeaderRewriteConfig
from gw.limits import MAX_KEPT_MODELS

# Behaviour 4.1, 4.3, 4.4 and 4.5: a reference configuration that says nothing means this.
REFERENCE_DEFAULTS = {
    "bind_host": "127.0.0.1",
    "bind_port": 8080,
    "max_connections": 10000,
    "idle_timeout_sec": 300,
    "max_header_size": 8192,
    "max_body_size": 1048576,
    "request_timeout_sec": 30,
    "shutdown_drain_timeout_sec": 30,
    "log": {"level": "info", "file": "", "max_file_size": 10485760, "max_files": 3},
    "http1": {"streaming": {"high_water_bytes": 262144, "low_water_bytes": 65536}},
    "upstreams": [
        {
            "port": 80,
            "pool": {
                "max_connections": 64,
                "max_idle_connections": 16,
                "connect_timeout_ms": 5000,
                "idle_timeout_sec": 90,
                "max_lifetime_sec": 3600,
                "max_requests_per_conn": 0,
            },
            "proxy": {
                "route_prefix": "",
                "strip_prefix": False,
                "methods": [],
                "response_timeout_ms": 30000,
                "stream_idle_timeout_sec": 30,
                "stream_max_duration_sec": 0,
                "header_rewrite": {
                    "set_x_forwarded_for": True,
                    "set_x_forwarded_proto": True,
                    "set_via_header": True,
                    "rewrite_host": True,
                },
            },
        }
    ],
}


def within(small, large):
    if isinstance(small, dict):
        return all(key in large and within(value, large[key]) for key, value in small.items())
    if isinstance(small, list):
        return len(small) == len(large) and all(map(within, small, large))
    return small == large and type(small) is type(large)


def test_defaults_are_those_of_the_reference(loading):
    config = loading("upstreams: [{name: a, host: h}]").config
    assert within(REFERENCE_DEFAULTS, config.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bind_port: 65536", "bind_port: must be at most 65535, not 65536"),
        ("bind_port: -1", "bind_port: must be at least 0, not -1"),
        ("max_connections: true", "max_connections: must be an integer, not true"),
        ("max_body_size: 1.0", "max_body_size: must be an integer, not a number"),
        ("shutdown_drain_timeout_sec: 301", "shutdown_drain_timeout_sec: must be at most 300, not 301"),
        ("engine: h11", "engine: must be one of auto, pure, native, not 'h11'"),
        ("loop: uvlop", "loop: must be one of auto, asyncio, uvloop, trio, not 'uvlop' (did you mean 'uvloop'?)"),
        ("server_header: 'a\u00e9'", "server_header: must be printable ASCII without spaces around it"),
        ("trusted_proxies: [10.0.0.0/33]", "trusted_proxies[0]: '10.0.0.0/33' is not an address or a network without host bits, such as '10.0.0.0/8'"),
        ("trusted_proxies: [7]", "trusted_proxies[0]: must be an address or a network, such as '10.0.0.0/8'"),
        ("request_id: {header: 'a b'}", "request_id.header: 'a b' is not a header name"),
        ("paths: {nul: drop}", "paths.nul: must be one of keep, reject, not 'drop'"),
        ("log: {file: logs/}", "log.file: 'logs/' is not the name of a file"),
        ("log: {file: a.log, max_files: 0}", "log.max_files: must be at least 1 where log.file is set, not 0"),
        ("log: {access: {format: xml}}", "log.access.format: must be one of json, text, not 'xml'"),
        ("http1: {streaming: {high_water_bytes: 0}}", "http1.streaming.high_water_bytes: must be at least 1, not 0"),
        ("http1: {streaming: {high_water_bytes: 9, low_water_bytes: 9}}", "http1.streaming.low_water_bytes: must be less than high_water_bytes (9), not 9"),
        ("plugins: [a, a]", "plugins: lists 'a' twice"),
        ("upstreams: {}", "upstreams: must be a list, not a mapping"),
    ],
)  # fmt: skip
def test_top_level_values_out_of_range_are_refused(problems, text, message):
    told = problems(text, plugins=None) if "plugins" in text else problems(text)
    assert any(line.endswith(f": {message}") for line in told), told


@pytest.mark.parametrize(
    ("upstream", "message"),
    [
        ("host: h", "upstreams[0].name: is required"),
        ("name: ' ', host: h", "upstreams[0].name: must be a name: printable, and not only spaces"),
        ("name: a", "upstreams[0]: has no address; give host and port, or endpoints"),
        ("name: a, host: h, endpoints: [{host: i}]", "upstreams[0]: has both host or port and endpoints; keep one form"),
        ("name: a, port: 1, endpoints: [{host: i}]", "upstreams[0]: has both host or port and endpoints; keep one form"),
        ("name: a, endpoints: []", "upstreams[0].endpoints: must not be empty"),
        ("name: a, endpoints: [{host: i, weight: 0}]", "upstreams[0].endpoints[0].weight: must be at least 1, not 0"),
        ("name: a, host: h, port: 0", "upstreams[0].port: must be at least 1, not 0"),
        ("name: a, host: h, pool: {connect_timeout_ms: 999}", "upstreams[0].pool.connect_timeout_ms: must be at least 1000, not 999"),
        ("name: a, host: h, pool: {max_connections: 8}", "upstreams[0].pool.max_idle_connections: must be at most max_connections (8), not 16"),
        ("name: a, host: h, proxy: {route_prefix: api}", "upstreams[0].proxy.route_prefix: must start with '/', not 'api'"),
        ("name: a, host: h, proxy: {methods: [GET, GET]}", "upstreams[0].proxy.methods: lists 'GET' twice"),
        ("name: a, host: h, proxy: {response_timeout_ms: 999}", "upstreams[0].proxy.response_timeout_ms: must be 0 or at least 1000, not 999"),
        ("name: a, host: h, proxy: {stream_idle_timeout_sec: 3601}", "upstreams[0].proxy.stream_idle_timeout_sec: must be at most 3600, not 3601"),
        ("name: a, host: h, proxy: {stream_max_duration_sec: 86401}", "upstreams[0].proxy.stream_max_duration_sec: must be at most 86400, not 86401"),
    ],
)  # fmt: skip
def test_upstream_values_out_of_range_are_refused(problems, upstream, message):
    (told,) = problems(f"upstreams: [{{{upstream}}}]")
    assert told.partition(" ")[2] == message


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ("match: {path: a}", "routes[0].match.path: must start with '/', not 'a'"),
        ("match: {path: /a, prefix: /b}", "routes[0].match: has path and prefix; a path is matched in one way"),
        ("match: {regex: '('}", "routes[0].match.regex: is not a regular expression: missing ), unterminated subpattern at position 0"),
        ("match: {host: [a, 5]}", "routes[0].match.host[1]: must be text, not an integer; quote it"),
        ("match: {host: 5}", "routes[0].match.host: must be text, not an integer; quote it"),
        ("match: {host: a.*}", "routes[0].match.host: 'a.*': a wildcard stands for the first labels only, as in '*.example.com'"),
        ("match: {methods: [get]}", "routes[0].match.methods[0]: 'get': methods are case-sensitive; did you mean 'GET'?"),
        ("match: {methods: [CONNECT]}", "routes[0].match.methods[0]: CONNECT is always refused"),
        ("match: {methods: ['A B']}", "routes[0].match.methods[0]: 'A B' is not a method"),
        ("match: {headers: {x: {}}}", "routes[0].match.headers.x: must have exactly one of exact, regex, present"),
        ("match: {headers: {x: {exact: a, present: true}}}", "routes[0].match.headers.x: must have exactly one of exact, regex, present"),
        ("match: {headers: {x: {regx: a}}}", "routes[0].match.headers.x.regx: is not a known key (did you mean 'regex'?)"),
        ("match: {query: {x: 5}}", "routes[0].match.query.x: must be a mapping, not an integer"),
        ("upstreams: [{name: a, weight: 0}]", "routes[0]: has no upstream with a weight above 0"),
        ("upstream: a, upstreams: [{name: b}]", "routes[0]: has both upstream and upstreams; keep one"),
        ("name: ''", "routes[0].name: must be a name: printable, and not only spaces"),
        ("response_timeout_ms: 1", "routes[0].response_timeout_ms: must be 0 or at least 1000, not 1"),
    ],
)  # fmt: skip
def test_route_values_out_of_range_are_refused(problems, route, message):
    (told,) = problems(f"upstreams: [{{name: a, host: h}}, {{name: b, host: h}}]\nroutes: [{{{route}}}]")
    assert told.partition(" ")[2] == message


def test_hosts_lose_their_brackets(loading):
    config = loading("bind_host: '[::1]'\nupstreams: [{name: a, host: '[::2]'}]").config
    assert (config.bind_host, config.upstreams[0].host) == ("::1", "::2")


def test_both_forms_of_addresses_give_endpoints(loading):
    config = loading(
        "upstreams: [{name: a, host: h}, {name: b, endpoints: [{host: i, port: 1}, {host: j, port: 2, weight: 3}]}]"
    ).config
    assert config.upstreams[0].addresses() == (Endpoint("h", 80),)
    assert config.upstreams[1].addresses() == (Endpoint("i", 1), Endpoint("j", 2, 3))


def test_trusted_proxies_are_networks(loading):
    config = loading("trusted_proxies: [10.0.0.0/8, 192.0.2.1, '::1']").config
    assert config.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32"), ip_network("::1/128"))


def test_a_match_has_one_form_however_it_was_written(loading):
    config = loading(
        "routes: [{match: {host: A.b, headers: {X-A: v, X-B: {regex: v}}, query: {q: {present: false}}}}]"
    ).config
    match = config.routes[0].match
    assert match.host == ("a.b",)
    assert {name: condition.model_dump(exclude_none=True) for name, condition in match.headers.items()} == {
        "x-a": {"exact": "v"},
        "x-b": {"regex": "v"},
    }
    assert match.query["q"].present is False


def test_targets_are_told_with_their_weights(loading):
    config = loading(
        "upstreams: [{name: a, host: h}, {name: b, host: h}]\n"
        "routes: [{}, {upstream: a, match: {path: /a}}, {match: {path: /b}, upstreams: [{name: a, weight: 9}, {name: b}]}]"
    ).config
    assert [route.targets() for route in config.routes] == [(), (("a", 1),), (("a", 9), ("b", 1))]


def test_every_route_has_a_name_and_no_two_the_same(loading):
    config = loading("""
        routes:
          - match: {path: /a, methods: [GET, PUT], host: [x.y, "*.z"]}
          - match: {prefix: /b}
          - match: {prefix: /b, headers: {x: y}}
          - match: {regex: "/c.*"}
          - {}
          - {name: "/b #2"}
    """).config
    assert config.route_names() == ("GET,PUT x.y,*.z/a", "/b", "/b #3", "~/c.*", "/", "/b #2")


def test_a_route_says_only_which_headers_differ():
    lower = HeaderRewriteConfig(set_via_header=False, set_forwarded=True)
    upper = HeaderRewriteConfig(rewrite_host=False, set_forwarded=False)
    combined = upper.over(lower)
    assert (combined.set_via_header, combined.rewrite_host, combined.set_forwarded) == (False, False, False)


class Limit(Section):
    """A limit."""

    rate: int
    """Per second."""


def test_sections_are_accepted_at_their_levels_only():
    model = with_sections([Sections("limit", gateway=Limit, route=Limit)])
    text = {"limit": {"rate": 1}, "upstreams": [{"name": "a", "host": "h"}], "routes": [{"limit": {"rate": 2}}, {}]}
    config = model.model_validate_json(json.dumps(text), strict=True)
    assert config.limit.rate == 1
    assert [route.limit and route.limit.rate for route in config.routes] == [2, None]
    assert not hasattr(config.upstreams[0], "limit")


def test_a_model_is_made_once_for_its_sections_and_not_kept_for_ever():
    first = with_sections([Sections("limit", route=Limit)])
    assert with_sections([Sections("limit", route=Limit)]) is first
    assert with_sections([Sections("limit", gateway=Limit)]) is not first
    for number in range(MAX_KEPT_MODELS):
        with_sections([Sections(f"limit_{number}", route=Limit)])
    assert with_sections([Sections("limit", route=Limit)]) is not first


@pytest.mark.parametrize(
    "name", ["routes", "upstream", "match", "pool", "copy", "json", "Limit", "a-b", "", "_x", "targets"]
)
def test_some_names_are_not_free_for_sections(name):
    assert not is_free(name)


def test_other_names_are_free_for_sections():
    assert is_free("rate_limit")


def test_every_key_says_what_it_is():
    silent = [
        key for model in _models(GatewayConfig) for key, field in model.model_fields.items() if not field.description
    ]
    assert silent == []


def _models(model):
    yield model
    for field in model.model_fields.values():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _models(inner)
