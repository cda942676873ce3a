import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from gw.config.model import GatewayConfig


@pytest.fixture
def effective(gw):
    """The configuration as `gw config` prints it."""

    def effective(*arguments, environ=None):
        result = gw("config", *arguments, environ=environ)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return effective


@pytest.fixture
def generation(monkeypatch):
    """In place of gw.described: describes whatever rows the test gives, or fails as it says."""
    module = SimpleNamespace(rows=[], error=None)

    def describe(loaded):
        if module.error is not None:
            raise module.error
        return module.rows

    module.describe = describe
    monkeypatch.setitem(sys.modules, "gw.described", module)
    return module


def test_without_a_file_the_defaults_hold(effective):
    assert effective("--plugins", "")["bind_port"] == GatewayConfig().bind_port


def test_the_default_file_is_used_where_it_is(effective, tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "gateway.yaml").write_text("bind_port: 1\nplugins: []\n")
    assert effective()["bind_port"] == 1


def test_a_named_file_stands_before_gw_config_and_that_before_the_default(effective, tmp_path):
    (tmp_path / "config").mkdir()
    for number, name in enumerate(("config/gateway.yaml", "a.yaml", "b.yaml")):
        (tmp_path / name).write_text(f"bind_port: {number}\nplugins: []\n")
    assert effective(environ={"GW_CONFIG": "a.yaml"})["bind_port"] == 1
    assert effective("-c", "b.yaml", environ={"GW_CONFIG": "a.yaml"})["bind_port"] == 2


@pytest.mark.parametrize("environ", [{}, {"GW_CONFIG": "none.yaml"}])
def test_a_named_file_that_is_missing_exits_with_1(gw, environ):
    result = gw("config", *(() if environ else ("-c", "none.yaml")), environ=environ)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "none.yaml: cannot be read: No such file or directory\n"


def test_options_stand_over_the_file_and_the_environment(effective, tmp_path):
    (tmp_path / "gw.yaml").write_text("bind_port: 1\nbind_host: a\nlog: {level: warn}\nplugins: [nope]\n")
    made = effective(
        "-c", "gw.yaml", "-p", "0", "-H", "[::1]", "-l", "trace", "--plugins", "rewrite", environ={"GW_BIND_PORT": "2"}
    )
    assert (made["bind_port"], made["bind_host"], made["log"]["level"], made["plugins"]) == (
        0,
        "::1",
        "trace",
        ["rewrite"],
    )


def test_everything_can_go_to_one_url_without_a_file(effective, tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "gateway.yaml").write_text("broken: [")
    (upstream,) = effective("--to", "http://[::1]:9000", "--plugins", "")["upstreams"]
    assert (upstream["host"], upstream["port"], upstream["proxy"]["route_prefix"]) == ("::1", 9000, "/")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "65536"), "'65536' is not a port (0 to 65535)"),
        (("-p", "+80"), "'+80' is not a port (0 to 65535)"),
        (("-p", "8_0"), "'8_0' is not a port (0 to 65535)"),
        (("-p", "٨"), "'٨' is not a port (0 to 65535)"),
        (("-p", ""), "'' is not a port (0 to 65535)"),
        (("-H", ""), "'' is not a host"),
        (("-H", "1.2.3"), "'1.2.3' is not a host"),
        (("-l", "loud"), "'loud' is not one of 'trace', 'debug', 'info', 'warn', 'error', 'critical'"),
        (("--plugins", "a,,b"), "'a,,b' has an empty name"),
        (("--to", "https://a"), "TLS to an upstream is not supported by this version"),
        (("--to", "http://a", "-c", "f"), "--to works without a file"),
        (("extra",), "Got unexpected extra argument (extra)"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "validate", "config", "routes"])
def test_a_bad_option_exits_with_2_before_anything_is_read(gw, command, arguments, message):
    result = gw(command, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "\nError: " in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize("command", ["serve", "validate", "config", "routes"])
def test_a_bad_configuration_exits_with_1_and_all_that_is_wrong(gw, tmp_path, command):
    (tmp_path / "gw.yaml").write_text("plugins: []\nbind_prt: 1\nengine: fast\n")
    result = gw(command, "-c", "gw.yaml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "gw.yaml:2:1: bind_prt: is not a known key (did you mean 'bind_port'?)",
        "gw.yaml:3:1: engine: must be one of auto, pure, native, not 'fast'",
    ]


def test_a_good_configuration_is_valid(gw, generation):
    result = gw("validate", "--plugins", "")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Configuration is valid.\n", "")


def test_warnings_are_told_and_do_no_harm(gw, generation):
    result = gw("validate", "--plugins", "", environ={"REACTOR_BIND_PROT": "1"})
    assert (result.exit_code, result.stdout) == (0, "Configuration is valid.\n")
    assert result.stderr == (
        "environment variable REACTOR_BIND_PROT: warning: is not a setting and has no effect (did you mean 'REACTOR_BIND_PORT'?)\n"
    )


@pytest.mark.parametrize("command", ["validate", "routes"])
def test_routes_that_cannot_be_compiled_exit_with_1(gw, generation, command):
    generation.error = ValueError("routes 'a' and 'b' match the same requests")
    result = gw(command, "--plugins", "")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "routes 'a' and 'b' match the same requests\n"


def test_serving_exits_as_the_gateway_does(gw, monkeypatch):
    served = []
    for code in (0, 1):
        process = SimpleNamespace(run=lambda loaded, code=code, **rest: served.append(loaded) or code)
        monkeypatch.setitem(sys.modules, "gw.ops.process", process)
        assert gw("serve", "-p", "7", "--plugins", "").exit_code == code
    assert [loaded.config.bind_port for loaded in served] == [7, 7]


def test_secrets_do_not_reach_the_output(gw, tmp_path):
    (tmp_path / "gw.yaml").write_text("plugins: []\nserver_header: ${NAME}\n")
    result = gw("config", "-c", "gw.yaml", environ={"NAME": "hunter2"})
    assert "hunter2" not in result.output
    assert json.loads(result.stdout)["server_header"] == "${NAME}"


@dataclass(frozen=True, slots=True)
class FilterRow:
    name: str = "rewrite.headers"
    plugin: str = "rewrite"
    hooks: tuple[str, ...] = ("on_request_headers", "on_body")
    body: str = "stream"
    upstream_body: str = "none"
    mode: str = "shadow"
    on_error: str = "deny"


@dataclass(frozen=True, slots=True)
class RouteRow:
    name: str
    hosts: tuple[str, ...] = ()
    path: str = "/*"
    methods: tuple[str, ...] = ()
    target: str = "api"
    filters: tuple[FilterRow, ...] = ()
    framing: str = "unchanged"


ROWS = [
    RouteRow("plain"),
    RouteRow("full", ("a.b", "*.c"), "/x", ("GET", "PUT"), "api, other", (FilterRow(),), "chunked"),
]


def test_routes_are_shown_with_their_filters(gw, generation):
    generation.rows = ROWS
    assert gw("routes", "--plugins", "").stdout == (
        "plain\n"
        "  matches  any method  any host  /*\n"
        "  goes to  api\n"
        "  framing  unchanged\n"
        "  no filters\n"
        "\n"
        "full\n"
        "  matches  GET,PUT  a.b,*.c  /x\n"
        "  goes to  api, other\n"
        "  framing  chunked\n"
        "  FILTER           PLUGIN   HOOKS                       REQUEST BODY  RESPONSE BODY  MODE    ON ERROR\n"
        "  rewrite.headers  rewrite  on_request_headers on_body  stream        none           shadow  deny\n"
    )


def test_routes_as_json_say_the_same(gw, generation):
    generation.rows = ROWS
    plain, full = json.loads(gw("routes", "--plugins", "", "--json").stdout)
    assert plain["filters"] == []
    assert full["hosts"] == ["a.b", "*.c"]
    assert full["filters"][0]["hooks"] == ["on_request_headers", "on_body"]


def test_no_routes_are_said_to_be_none(gw, generation):
    assert gw("routes", "--plugins", "").stdout == "There are no routes: every request is answered 404.\n"


def test_the_rows_are_those_that_the_generation_makes(gw):
    result = gw("routes", "--to", "http://127.0.0.1:9", "--plugins", "")
    assert result.exit_code == 0
    assert "goes to  upstream" in result.stdout


def test_plugins_are_listed_with_their_distributions(gw):
    result = gw("plugins")
    assert result.stdout.splitlines()[0].split() == ["PLUGIN", "DISTRIBUTION", "VERSION", "MODULE"]
    assert any(line.split()[:2] == ["rewrite", "gw"] for line in result.stdout.splitlines())
    listed = json.loads(gw("plugins", "--json").stdout)
    wanted = {"name": "rewrite", "module": "gw_rewrite", "distribution": "gw"}
    assert any(wanted.items() <= plugin.items() for plugin in listed)


def test_the_schema_is_that_of_the_plugins_that_are_named(gw, tmp_path):
    made = json.loads(gw("schema", "--plugins", "").stdout)
    assert made["properties"]["bind_port"]["default"] == 8080
    (tmp_path / "gw.yaml").write_text("plugins: []\nnot: checked\n")
    assert json.loads(gw("schema", "-c", "gw.yaml").stdout) == made
    refused = gw("schema", "--plugins", "nope")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "no plugin 'nope' is installed" in refused.stderr
