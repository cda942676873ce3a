import json
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import SecretStr, field_validator, model_validator

from gw import Problem, Section, Sections, hookimpl
from gw.config import load as module
from gw.config.errors import ConfigError
from gw.config.load import load, load_plugins, schema
from gw.plugins import PluginError, PluginSet


class Keys(Section):
    """Credentials."""

    token: SecretStr = SecretStr("")
    """A secret."""
    retries: int = 0
    """A number."""
    ratio: float = 0.0
    """A share."""
    active: bool = False
    """A flag."""
    label: str = ""
    """A text."""
    note: str | None = None
    """A text, or nothing."""
    names: list[str] = []
    """Texts."""
    pair: int | str = 0
    """Either."""


def plugin(check=None, name="keys", **levels):
    made = ModuleType("sample")
    made.GW_API = 1
    made.gw_sections = hookimpl(
        lambda: Sections(name, **(levels or dict.fromkeys(("gateway", "upstream", "route"), Keys)))
    )
    made.gw_sections.__name__ = "gw_sections"
    if check is not None:

        def gw_check(config):
            return check(config)

        made.gw_check = hookimpl(gw_check)
    return made


@pytest.fixture
def keys():
    plugins = PluginSet()
    plugins.add("keys", plugin())
    return plugins


# --- the order of sources --------------------------------------------------------------------


def test_without_a_source_everything_is_the_default():
    loaded = load(None, environ={}, plugins=PluginSet())
    assert loaded.config.bind_port == 8080
    assert loaded.position(("bind_port",)) == "built-in defaults"


def test_the_environment_stands_over_the_file_and_the_command_line_over_both(loading):
    text = "bind_port: 1\nmax_connections: 1\nidle_timeout_sec: 1\nlog: {level: warn}"
    environ = {"GW_BIND_PORT": "2", "GW_MAX_CONNECTIONS": "2", "REACTOR_LOG_LEVEL": "error"}
    loaded = loading(text, environ, overrides={"bind_port": 3})
    config = loaded.config
    assert (config.bind_port, config.max_connections, config.idle_timeout_sec, config.log.level) == (3, 2, 1, "error")
    assert loaded.position(("bind_port",)) == "command line"
    assert loaded.position(("max_connections",)) == "environment variable GW_MAX_CONNECTIONS"
    assert loaded.position(("idle_timeout_sec",)) == "gw.yaml:3:1"


def test_our_own_prefix_counts_before_the_reference_s():
    environ = {"REACTOR_BIND_PORT": "1", "GW_BIND_PORT": "2"}
    for order in (environ, dict(reversed(environ.items()))):
        assert load(None, environ=order, plugins=PluginSet()).config.bind_port == 2


@pytest.mark.parametrize("name", module.VARIABLES)
def test_every_variable_sets_its_key(name):
    values = {"BIND_HOST": "h", "LOG_FILE": "f", "LOG_LEVEL": "trace"}
    values |= {"RATE_LIMIT_DRY_RUN": "true", "RATE_LIMIT_ENABLED": "false", "RATE_LIMIT_STATUS_CODE": "503"}
    values |= {"DNS_LOOKUP_FAMILY": "v4_only", "DNS_RESOLVE_TIMEOUT_MS": "17", "DNS_STALE_ON_ERROR": "no"}
    values |= {"WORKERS": "17", "WORKER_THREADS": "17"}
    values |= {"TLS_ENABLED": "true", "HTTP2_ENABLED": "no", "HTTP2_ENABLE_PUSH": "yes", "SHUTDOWN_DRAIN_TIMEOUT": "17"}
    value = values.get(name, "17000")
    environ = {f"REACTOR_{name}": value}
    if name == "TLS_ENABLED":
        environ |= {"REACTOR_TLS_CERT": __file__, "REACTOR_TLS_KEY": __file__}
    tree = load(None, environ=environ).effective()
    for key in module.VARIABLES[name]:
        tree = tree[key]
    assert str(tree) == {"true": "True", "yes": "True", "no": "False", "false": "False"}.get(value, value)


def test_a_bad_variable_is_named():
    environ = {"GW_BIND_PORT": "80x", "GW_LOG_LEVEL": "loud"}
    with pytest.raises(ConfigError) as caught:
        load(None, environ=environ, plugins=PluginSet())
    assert str(caught.value).splitlines() == [
        "environment variable GW_BIND_PORT: bind_port: must be an integer, not text",
        "environment variable GW_LOG_LEVEL: log.level: must be one of trace, debug, info, warn, error, critical",
    ]


def test_variables_without_effect_are_warned_of():
    environ = {
        "GW_BIND_PROT": "1",
        "GW_CONFIG": "x",
        "GW_PORT": "x",
        "GW_SERVICE_HOST": "x",
    }
    loaded = load(None, environ=environ, plugins=PluginSet())
    assert [str(warning) for warning in loaded.warnings] == [
        "environment variable GW_BIND_PROT: warning: is not a setting and has no effect (did you mean 'GW_BIND_PORT'?)",
    ]


def test_a_file_that_cannot_be_read_is_a_problem_of_its_own(tmp_path):
    for name, why in (("none.yaml", "No such file or directory"), ("", "Is a directory")):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / name, environ={})
        assert str(caught.value) == f"{tmp_path / name}: cannot be read: {why}"


def test_a_program_may_hand_over_the_values():
    source = {"bind_port": 1, "upstreams": ({"name": "a", "host": "${HOST}"},)}
    loaded = load(source, environ={"HOST": "h"}, plugins=PluginSet())
    assert loaded.config.upstreams[0].host == "h"
    with pytest.raises(ConfigError) as caught:
        load({"bind_port": "1"}, environ={}, plugins=PluginSet())
    assert str(caught.value) == "configuration: bind_port: must be an integer, not text"


def test_loading_again_reads_the_same_sources_again(loading):
    environ = {"PORT": "1"}
    loaded = loading("bind_port: ${PORT}", environ, overrides={"max_connections": 5})
    environ["PORT"] = "2"
    again = loaded.again()
    assert (loaded.config.bind_port, again.config.bind_port, again.config.max_connections) == (1, 2, 5)
    Path("gw.yaml").write_text("bind_prt: 1")
    with pytest.raises(ConfigError, match="bind_prt"):
        again.again()


# --- values from outside -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("retries", "12", 12),
        ("retries", "-1", -1),
        ("ratio", "0.5", 0.5),
        ("ratio", "2", 2.0),
        ("active", "YES", True),
        ("active", "0", False),
        ("label", "12", "12"),
        ("label", "true", "true"),
        ("note", "12", "12"),
        ("pair", "12", "12"),
    ],
)
def test_text_from_outside_is_what_the_key_wants(loading, keys, key, written, value):
    section = loading(f"keys: {{{key}: '${{VALUE}}'}}", {"VALUE": written}, plugins=keys).config.keys
    assert getattr(section, key) == value
    assert type(getattr(section, key)) is type(value)


@pytest.mark.parametrize(
    ("key", "written", "message"),
    [
        ("retries", "1.5", "must be an integer, not text"),
        ("retries", "\u0661", "must be an integer, not text"),
        ("retries", "9" * 30, "must be an integer, not text"),
        ("ratio", "nan", "must be a number, not text"),
        ("active", "on", "must be true or false, not text"),
    ],
)
def test_other_text_from_outside_is_refused(problems, keys, key, written, message):
    text = f"keys: {{{key}: '${{VALUE}}'}}"
    assert problems(text, {"VALUE": written}, plugins=keys) == [f"gw.yaml:1:8: keys.{key}: {message}"]


def test_text_in_the_document_is_never_read_as_a_number(problems):
    assert problems("bind_port: '80'") == ["gw.yaml:1:1: bind_port: must be an integer, not text"]


def test_a_file_stands_for_its_text_without_the_last_line_end(loading, keys, tmp_path):
    (tmp_path / "token").write_bytes(b"s3cret\r\n")
    (tmp_path / "lines").write_bytes(b"a\nb\n\n")
    section = loading(
        "keys: {token: {file: token}, label: {file: '${DIR}/lines'}}", {"DIR": str(tmp_path)}, plugins=keys
    ).config.keys
    assert section.token.get_secret_value() == "s3cret"
    assert section.label == "a\nb\n"


def test_a_file_is_looked_for_beside_the_configuration(tmp_path, keys):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "token").write_text("here")
    (tmp_path / "etc" / "gw.yaml").write_text("keys: {label: {file: token}}")
    loaded = load(tmp_path / "etc" / "gw.yaml", environ={}, plugins=keys)
    assert loaded.config.keys.label == "here"


def test_a_key_that_is_called_file_is_no_reference_to_one(loading):
    assert loading("log: {file: gw.log}").config.log.file == "gw.log"


def test_a_file_that_cannot_be_used_is_a_problem(problems, keys, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_VALUE_FILE_SIZE", 1 << 20)
    (tmp_path / "large").write_bytes(b"x" * ((1 << 20) + 1))
    (tmp_path / "binary").write_bytes(b"\xff")
    text = "keys:\n  token: {file: none}\n  label: {file: large}\n  note: {file: binary}\n  names: [{file: none}]\n  retries: x\n"
    assert problems(text, plugins=keys) == [
        "gw.yaml:2:3: keys.token: cannot be read from the file 'none': No such file or directory",
        "gw.yaml:3:3: keys.label: cannot be read from the file 'large': it is larger than 1 MiB",
        "gw.yaml:4:3: keys.note: cannot be read from the file 'binary': it is not UTF-8 text",
        "gw.yaml:5:11: keys.names[0]: cannot be read from the file 'none': No such file or directory",
        "gw.yaml:6:3: keys.retries: must be an integer, not text",
    ]


def test_what_came_from_outside_is_not_shown_when_it_is_refused(problems, keys, tmp_path):
    (tmp_path / "secret").write_text("hunter2 ")
    environ = {"SECRET": "hunter2 ", "LEVEL": "hunter2", "PORT": "70000"}
    text = "bind_host: ${SECRET}\nbind_port: ${PORT}\nlog: {level: '${LEVEL}'}\nupstreams: [{name: a, host: {file: secret}}]\n"
    told = problems(text, environ, plugins=keys)
    assert told == [
        "gw.yaml:1:1: bind_host: '${SECRET}' is not a host (an IPv4 or IPv6 address without zone, or a host name)",
        "gw.yaml:2:1: bind_port: must be at most 65535",
        "gw.yaml:3:7: log.level: must be one of trace, debug, info, warn, error, critical",
        "gw.yaml:4:23: upstreams[0].host: {'file': 'secret'} is not a host (an IPv4 or IPv6 address without zone, or a host name)",
    ]


# --- the effective configuration -----------------------------------------------------------------


def test_the_effective_configuration_can_be_loaded_again(loading):
    text = """
        trusted_proxies: [10.0.0.0/8]
        upstreams:
          - {name: a, host: "[::1]"}
          - {name: b, endpoints: [{host: h, port: 1}]}
        routes:
          - {match: {host: A.b, headers: {X-A: v, x-b: {present: false}}, path: /}, upstream: a}
          - {upstreams: [{name: a}, {name: b, weight: 3}], header_rewrite: {rewrite_host: false}}
    """
    first = loading(text)
    second = load(json.loads(json.dumps(first.effective())), environ={}, plugins=PluginSet())
    assert second.effective() == first.effective()
    assert second.config.routes[0].match == first.config.routes[0].match
    assert second.config.upstreams[1].addresses() == first.config.upstreams[1].addresses()


def test_secrets_are_masked_and_values_from_outside_are_as_they_are_written(loading, keys, tmp_path):
    (tmp_path / "label").write_text("hunter2")
    text = (
        "bind_port: ${PORT}\n"
        "keys: {token: hunter2, label: {file: label}, note: 'a-${SECRET}', names: [x, '${SECRET}']}\n"
        "routes: [{match: {headers: {X-Token: '${SECRET}'}, host: '${SECRET}.example'}}]"
    )
    environ = {"SECRET": "hunter2", "PORT": "8081", "GW_LOG_LEVEL": "warn"}
    effective = loading(text, environ, plugins=keys).effective()
    assert effective["bind_port"] == "${PORT}"
    assert effective["keys"]["token"] == "**********"
    assert effective["keys"]["label"] == {"file": "label"}
    assert effective["keys"]["note"] == "a-${SECRET}"
    assert effective["keys"]["names"] == ["x", "${SECRET}"]
    assert effective["routes"][0]["match"]["headers"] == {
        "x-token": {"exact": "${SECRET}", "regex": None, "present": None}
    }
    assert effective["routes"][0]["match"]["host"] == "${SECRET}.example"
    assert effective["log"]["level"] == "warn"
    assert "hunter2" not in json.dumps(effective)


class Moved(Section):
    """Keeps what it is told under other names."""

    token: str = ""
    """A text."""

    @model_validator(mode="before")
    @classmethod
    def _move(cls, values):
        return {"token": values["old"].upper()} if "old" in values else values


class Sorted(Section):
    """Keeps what it is told in another order."""

    kept: frozenset[str] = frozenset()
    """Texts."""
    ordered: list[str] = []
    """Texts, sorted."""

    @field_validator("ordered")
    @classmethod
    def _sort(cls, values):
        return sorted(values)


def test_a_value_from_outside_that_cannot_be_found_again_hides_all_around_it(loading):
    plugins = PluginSet()
    plugins.add("keys", plugin(gateway=Moved))
    effective = loading("keys: {old: '${SECRET}'}", {"SECRET": "hunter2"}, plugins=plugins).effective()
    assert effective["keys"] == "**********"


def test_items_from_outside_are_hidden_wherever_they_were_sorted_to(loading):
    plugins = PluginSet()
    plugins.add("keys", plugin(gateway=Sorted))
    text = "keys: {kept: [x, '${SECRET}', y, z], ordered: [x, '${SECRET}']}"
    effective = loading(text, {"SECRET": "hunter2"}, plugins=plugins).effective()
    assert sorted(effective["keys"]["kept"]) == ["${SECRET}", "x", "y", "z"]
    assert effective["keys"]["ordered"] == ["${SECRET}", "x"]


def test_what_was_loaded_is_told_without_its_values(loading):
    loaded = loading("server_header: ${SECRET}", {"SECRET": "hunter2"})
    assert repr(loaded) == "<Loaded gw.yaml, plugins: none>"
    assert repr(loaded._document) == "<Document gw.yaml>"


def test_a_warning_hides_no_error(problems):
    plugins = PluginSet()
    plugins.add("keys", plugin(lambda config: [Problem((), "is wrong")]))
    assert "gw.yaml:1:1: is wrong" in problems("{}", {"GW_BIND_PROT": "x"}, plugins=plugins)


def test_what_came_from_outside_is_not_shown_by_rules_across_keys_either(problems):
    environ = {"SECRET": "hunter2"}
    assert problems("routes: [{upstream: '${SECRET}'}]", environ) == [
        "gw.yaml:1:11: routes[0].upstream: there is no upstream '${SECRET}'"
    ]


def test_what_the_command_line_set_is_shown_as_it_is(loading):
    assert loading("bind_port: ${PORT}", {"PORT": "1"}, overrides={"bind_port": 2}).effective()["bind_port"] == 2


# --- plugins -------------------------------------------------------------------------------------


def test_sections_are_found_by_plugin_and_level(loading, keys):
    loaded = loading(
        "keys: {label: a}\nupstreams: [{name: u, host: h, keys: {label: b}}]\nroutes: [{keys: {label: c}}, {}]",
        plugins=keys,
    )
    config = loaded.config
    assert loaded.section("keys", "gateway").label == "a"
    assert loaded.section("keys", "upstream", config.upstreams[0]).label == "b"
    assert loaded.section("keys", "route", config.routes[0]).label == "c"
    assert loaded.section("keys", "route", config.routes[1]) is None


def test_an_upstream_s_section_may_stand_where_the_reference_has_it(loading, problems):
    made = _bare()
    made.gw_sections = hookimpl(lambda: Sections("inline", upstream=Section, in_proxy=True))
    plugins = PluginSet()
    plugins.add("inline", made)
    loaded = loading(
        "upstreams: [{name: a, host: h, proxy: {inline: {mode: shadow}}}, {name: b, host: h}]", plugins=plugins
    )
    first, second = loaded.config.upstreams
    assert loaded.section("inline", "upstream", first).mode == "shadow"
    assert loaded.section("inline", "upstream", second) is None
    assert loaded.effective()["upstreams"][0]["proxy"]["inline"] == {"mode": "shadow", "on_error": "deny"}
    assert problems("upstreams: [{name: a, host: h, inline: {}}]", plugins=plugins) == [
        "gw.yaml:1:32: upstreams[0].inline: is not a key at this level: plugin 'inline' has its settings elsewhere"
    ]


def test_a_level_without_a_section_has_none(loading):
    plugins = PluginSet()
    plugins.add("keys", plugin(route=Keys))
    plugins.add("bare", _bare())
    loaded = loading("{}", plugins=plugins)
    assert loaded.section("keys", "gateway") is None
    assert loaded.section("bare", "gateway") is None


def _bare():
    made = ModuleType("bare")
    made.GW_API = 1
    return made


def test_the_strictness_of_types_is_the_same_in_a_plugin_s_section(problems, keys):
    assert problems("keys: {retries: true, label: 5, names: x, lable: x}", plugins=keys) == [
        "gw.yaml:1:8: keys.retries: must be an integer, not true",
        "gw.yaml:1:23: keys.label: must be text, not an integer; quote it",
        "gw.yaml:1:33: keys.names: must be a list, not text",
        "gw.yaml:1:43: keys.lable: is not a known key (did you mean 'label'?)",
    ]


def test_plugins_that_cannot_be_loaded_are_reported_with_everything_else(problems):
    told = problems("plugins: [rewriet, 'python:no_such_module']\nbind_prt: 1\nrewriet: {}")
    assert told[0].startswith("gw.yaml:1:11: plugins[0]: no plugin 'rewriet' is installed; did you mean 'rewrite'?")
    assert told[1:] == [
        "gw.yaml:1:20: plugins[1]: plugin 'python:no_such_module': there is no module 'no_such_module' to import",
        "gw.yaml:2:1: bind_prt: is not a known key (did you mean 'bind_port'?)",
        "gw.yaml:3:1: rewriet: is not a known key; the top level has "
        + ", ".join(sorted(schema(PluginSet())["properties"])),
    ]  # fmt: skip


def test_a_section_of_a_refused_plugin_is_not_a_second_problem(problems, monkeypatch):
    def refuse(self, name, module=None):
        raise PluginError(f"{name} is broken")

    monkeypatch.setattr(PluginSet, "add", refuse)
    assert problems("plugins: [rewrite]\nrewrite: {}") == ["gw.yaml:1:11: plugins[0]: rewrite is broken"]


def test_a_section_name_that_the_core_has_is_refused(problems, monkeypatch):
    monkeypatch.setitem(sys.modules, "gw_test_routes", plugin(name="routes"))
    assert problems("plugins: ['python:gw_test_routes']") == [
        "gw.yaml:1:11: plugins[0]: plugin 'python:gw_test_routes' calls its section 'routes', which no plugin may"
    ]


def test_a_plugin_checks_the_whole_configuration(loading, problems):
    def check(config):
        yield Problem(("bind_port",), "is too low", "warning" if config.bind_port > 80 else "error")

    plugins = PluginSet()
    plugins.add("keys", plugin(check))
    assert [str(warning) for warning in loading("bind_port: 81", plugins=plugins).warnings] == [
        "gw.yaml:1:1: warning: bind_port: is too low"
    ]
    assert problems("bind_port: 80", plugins=plugins) == ["gw.yaml:1:1: bind_port: is too low"]


def test_a_check_that_fails_is_a_problem_and_not_a_crash(problems):
    plugins = PluginSet()
    plugins.add("keys", plugin(lambda config: config.nothing))
    (told,) = problems("{}", plugins=plugins)
    assert told.startswith("gw.yaml:1:1: plugin 'keys': gw_check raised AttributeError: ")


def test_plugins_can_be_loaded_whatever_else_is_wrong(tmp_path):
    assert load_plugins({"plugins": [], "bind_prt": 1}, environ={}).names == ()
    with pytest.raises(ConfigError, match="no plugin 'nope'"):
        load_plugins({"plugins": ["nope"]}, environ={})


def test_problems_found_later_are_reported_at_their_positions(loading):
    loaded = loading("routes:\n  - {match: {path: /a}}\n")
    error = loaded.refuse([Problem(("routes", 0, "match", "path"), "is taken")])
    assert str(error) == "gw.yaml:2:14: routes[0].match.path: is taken"


def test_what_was_loaded_does_not_change(loading):
    loaded = loading("{}")
    with pytest.raises(FrozenInstanceError):
        loaded.config = None
    with pytest.raises(ValueError, match="frozen"):
        loaded.config.bind_port = 1
