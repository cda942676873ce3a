"""The configurations that are shipped: each loads, and what editors check them with is up to date."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gw import Section, Sections, hookimpl
from gw.config.load import load, schema
from gw.plugins import PluginSet, load as load_named, standard

CONFIG = Path(__file__).parents[3] / "config"


@pytest.mark.parametrize(
    "file", [CONFIG / "gateway.yaml", *(CONFIG / "examples").iterdir()], ids=lambda file: file.name
)
def test_every_example_loads_without_a_warning(file, monkeypatch):
    monkeypatch.setenv("INTROSPECTION_SECRET", "named in one of them")
    loaded = load(file, environ={})
    assert loaded.warnings == ()
    assert loaded.config.upstreams


def test_every_key_of_the_reference_means_something():
    """Behaviour 4, whole: what a file of the reference says is what the gateway goes by."""
    file = CONFIG / "examples" / "reference-every-key.json"
    given, effective = json.loads(file.read_text()), load(file, environ={}).effective()
    given["observability"]["traces"]["otlp"]["headers"]["x-tenant"] = "**********"
    assert list(_lost(given, effective)) == []


def _lost(given, effective, where="") -> Iterator[str]:
    """Yield the paths at which *effective* does not have what was *given*."""
    if isinstance(given, dict):
        for key, value in given.items():
            yield from _lost(value, effective.get(key), f"{where}.{key}")
    elif isinstance(given, list) and given and isinstance(given[0], dict):
        for index, value in enumerate(given):
            yield from _lost(value, effective[index], f"{where}[{index}]")
    elif given != effective:
        yield where


def test_the_schema_is_what_gw_schema_prints():
    kept = json.loads((CONFIG / "schema.json").read_text())
    assert kept == schema(load_named(standard())), "run: gw schema > config/schema.json"


class Colour(Section):
    """What it looks like."""

    shade: str
    """A word."""


def test_the_schema_holds_the_settings_of_the_plugins():
    module = ModuleType("colour")
    module.GW_API = 1

    def gw_sections():
        return Sections("colour", route=Colour)

    module.gw_sections = hookimpl(gw_sections)
    plugins = PluginSet()
    plugins.add("colour", module)
    made = schema(plugins)
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert made["$defs"]["Colour"]["properties"]["shade"]["description"] == "A word."
    assert "colour" in made["$defs"]["RouteConfig"]["properties"]
    assert "colour" not in made["properties"]


def test_an_example_means_the_same_as_json():
    file = CONFIG / "examples" / "routes.yaml"
    effective = load(file, environ={}).effective()
    assert load(json.loads(json.dumps(effective)), environ={}).effective() == effective
