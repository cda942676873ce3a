"""What every plugin in `plugins/` keeps, so that its folder can be lifted out and published by itself."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from sources import ROOT, at, package_of, plugin_folders

import gw
from gw.compiler import Compiler
from gw.config.load import Loaded, load
from gw.context import Shared
from gw.filters import Filter
from gw.hookspecs import Section
from gw.plugins import Plugin, PluginSet, available
from gw.testing import check_filter

FOLDERS = plugin_folders()
EXAMPLES = sorted((ROOT / "config" / "examples").glob("*.yaml"))

with (ROOT / "pyproject.toml").open("rb") as file:
    PROJECT = tomllib.load(file)

each_plugin = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def loaded(folder: Path) -> Plugin:
    return PluginSet().add(folder.name)


def models(of: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield *of* and every model that is a part of it."""
    yield of
    for field in of.model_fields.values():
        for inner in _inside(field.annotation):
            yield from models(inner)


def _inside(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _inside(argument)


def sections(folder: Path) -> list[type[Section]]:
    owned = loaded(folder).sections
    return (
        [] if owned is None else [model for model in (owned.gateway, owned.upstream, owned.route) if model is not None]
    )


@each_plugin
def test_everything_of_a_plugin_is_in_its_place(folder: Path):
    package = folder / package_of(folder)
    wanted = [
        folder / "README.md",
        package / "__init__.py",
        package / "settings.py",
        package / "filter.py",
        package / "py.typed",
        folder / "tests" / "test_settings.py",
        folder / "tests" / "test_filter.py",
    ]
    missing = [str(path.relative_to(ROOT)) for path in wanted if not path.is_file()]
    assert not missing, at(missing, "every plugin has the same places, so that a reader knows where to look; write:")


@each_plugin
def test_a_plugin_is_built_checked_and_found_like_the_others(folder: Path):
    tool, package = PROJECT["tool"], f"plugins/{folder.name}/{package_of(folder)}"
    wanted = {
        "project.entry-points.'gw.plugins'": folder.name in PROJECT["project"]["entry-points"]["gw.plugins"],
        "tool.hatch.build.dev-mode-dirs": f"plugins/{folder.name}" in tool["hatch"]["build"]["dev-mode-dirs"],
        "tool.hatch.build.targets.wheel.packages": package in tool["hatch"]["build"]["targets"]["wheel"]["packages"],
        "tool.mypy.files": package in tool["mypy"]["files"],
        "tool.mypy.mypy_path": f"plugins/{folder.name}" in tool["mypy"]["mypy_path"],
        "tool.ruff.src": f"plugins/{folder.name}" in tool["ruff"]["src"],
    }
    missing = [place for place, is_there in wanted.items() if not is_there]
    assert not missing, at(missing, f"pyproject.toml does not name {folder.name} under:")


@each_plugin
def test_a_plugin_loads_for_this_version_of_the_api(folder: Path):
    assert loaded(folder).module.GW_API == gw.API
    assert [each.distribution for each in available() if each.name == folder.name] == ["gw"]


@each_plugin
def test_every_setting_is_described(folder: Path):
    faults = [
        f"{model.__module__}.{model.__qualname__}.{name}"
        for section in sections(folder)
        for model in models(section)
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert not faults, at(faults, "put a docstring under each setting: it is in the schema and in the documentation:")


@each_plugin
def test_unknown_keys_are_errors_and_values_do_not_change(folder: Path):
    faults = [
        f"{model.__module__}.{model.__qualname__}"
        for section in sections(folder)
        for model in models(section)
        if model.model_config.get("extra") != "forbid" or not model.model_config.get("frozen")
    ]
    assert not faults, at(faults, "give these models gw.Section's model_config:")


@each_plugin
def test_the_readme_names_every_setting(folder: Path):
    text = (folder / "README.md").read_text(encoding="utf-8")
    own = set(Section.model_fields)
    keys = {
        field.alias or name
        for section in sections(folder)
        for model in models(section)
        for name, field in model.model_fields.items()
        if name not in own
    }
    faults = sorted(key for key in keys if not re.search(rf"[`.]{key}[`.]|\b{key}:", text))
    assert not faults, at(faults, f"plugins/{folder.name}/README.md does not say what these settings do:")


@each_plugin
def test_a_plugin_does_nothing_until_its_section_says_so(folder: Path):
    settings = {"plugins": [folder.name], "upstreams": [{"name": "a", "host": "127.0.0.1"}]}
    settings["routes"] = [{"match": {"prefix": "/"}, "upstream": "a"}]
    assert list(placed(load(settings, environ={}))) == [[]]


def placed(found: Loaded) -> Iterator[list[Filter]]:
    """Yield the filters of each route, newly made."""
    shared = Shared()
    builder = Compiler(found, shared, AsyncExitStack())
    for route in builder.routes(None):
        yield [each.filter for each in route.chain.placed]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
async def test_the_filters_of_the_examples_keep_the_promises_of_filters(example: Path):
    found = load(example, environ={})
    for route, filters in enumerate(placed(found)):
        for index in range(len(filters)):
            await check_filter(lambda route=route, index=index: list(placed(found))[route][index])
