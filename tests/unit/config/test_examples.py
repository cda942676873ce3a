"""The configurations that are shipped: each loads, and what editors check them with is up to date."""

import json
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
def test_every_example_loads_without_a_warning(file):
    loaded = load(file, environ={})
    assert loaded.warnings == ()
    assert loaded.config.upstreams


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
