"""Finding and loading plugins. Listing imports nothing; loading imports what is named, and only that.

A name in `plugins:` is the name of an entry point in the group ``gw.plugins``, as any installed distribution may
have it, or ``python:package.module`` for a module that belongs to no distribution.

What the plugins' settings mean is the business of `gw.config`; what their filters do, that of `gw.chain`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from gw import hookspecs
from gw.hookspecs import Section, Sections
from gw.version import API

__all__ = ["Available", "Plugin", "PluginError", "PluginSet", "available", "load", "standard"]

GROUP = "gw.plugins"
OWN_DISTRIBUTION = "gw"
MODULE_PREFIX = "python:"
STANDARD_ORDER = ("otel", "grpcweb", "auth", "ratelimit", "fault", "breaker", "rewrite")
"""Our own plugins, outermost first, when `plugins:` does not say: what measures sees all, what refuses cheaply comes early."""

HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("gw_"))


class PluginError(Exception):
    """A plugin is missing, broken, or made for another version of the API."""


@dataclass(frozen=True, slots=True)
class Available:
    """An installed plugin, as its distribution describes it; not imported."""

    name: str
    module: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.module} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A loaded plugin."""

    name: str
    """As `plugins:` spells it."""
    module: ModuleType
    sections: Sections | None = None


def available() -> tuple[Available, ...]:
    """Return every installed plugin, by name. Two distributions may use one name: then both are listed."""
    return tuple(sorted(_installed(), key=lambda plugin: (plugin.name, plugin.distribution, plugin.module)))


def standard() -> tuple[str, ...]:
    """Return the names of our own plugins that are installed, in their standard order."""
    own = {plugin.name for plugin in available() if plugin.distribution == OWN_DISTRIBUTION}
    known = tuple(name for name in STANDARD_ORDER if name in own)
    return known + tuple(sorted(own.difference(known)))


class PluginSet:
    """The loaded plugins, in the order in which they were named. That is the order of their filters."""

    def __init__(self) -> None:
        self._pluggy = pluggy.PluginManager("gw")
        self._pluggy.add_hookspecs(hookspecs)
        self._plugins: dict[str, Plugin] = {}
        self._callers: dict[tuple[str, str], Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._plugins)

    def __iter__(self) -> Iterator[Plugin]:
        return iter(self._plugins.values())

    def __len__(self) -> int:
        return len(self._plugins)

    def __contains__(self, name: str) -> bool:
        return name in self._plugins

    def __getitem__(self, name: str) -> Plugin:
        return self._plugins[name]

    def __repr__(self) -> str:
        return f"<PluginSet {', '.join(self._plugins) or 'empty'}>"

    def owner(self, section: str) -> Plugin | None:
        """Return the plugin whose settings stand under *section*."""
        return next((p for p in self if p.sections is not None and p.sections.name == section), None)

    def add(self, name: str, module: ModuleType | None = None) -> Plugin:
        """Load *name*, or take *module* as it. Raises `PluginError`, and then nothing has changed."""
        if name in self._plugins:
            raise PluginError(f"plugin {name!r} is named twice")
        what = f"plugin {name!r}"
        if module is None:
            found, point = _find(name)
            module, what = _import(name, point), f"{what} ({found})" if point.dist else what
        made_for = getattr(module, "GW_API", None)
        if made_for is None:
            raise PluginError(f"{what} does not say which plugin API it is made for; add GW_API = {API} to its module")
        if made_for != API:
            raise PluginError(f"{what} is made for plugin API {made_for}; this gateway speaks {API}")
        if (same := next((other.name for other in self if other.module is module), None)) is not None:
            raise PluginError(f"{what} is the same module as plugin {same!r}")
        _check_marks(module, what)
        try:
            self._pluggy.register(module, name=name)
            self._check_hooks(module, what)
            plugin = Plugin(name, module, self._sections(name, what))
        except pluggy.PluginValidationError as error:
            self._forget(name)
            raise PluginError(f"{what}: {str(error).splitlines()[-1]}") from error
        except PluginError:
            self._forget(name)
            raise
        self._plugins[name] = plugin
        return plugin

    def call(self, name: str, hook: str, **arguments: Any) -> Any:
        """Call *hook* of the plugin *name* alone; `None` where it has none."""
        caller = self._callers.get((name, hook))
        if caller is None:
            others = [module for other, module in self._pluggy.list_name_plugin() if other != name]
            caller = self._pluggy.subset_hook_caller(hook, others)
            self._callers[name, hook] = caller
        results = caller(**arguments)
        return results[0] if results else None

    def _check_hooks(self, module: ModuleType, what: str) -> None:
        for caller in self._pluggy.get_hookcallers(module) or ():
            if not caller.has_spec():
                near = get_close_matches(caller.name, HOOKS, 1)
                hint = f"did you mean {near[0]}?" if near else f"the hooks are {', '.join(HOOKS)}"
                raise PluginError(f"{what} implements {caller.name}, which is no hook; {hint}")

    def _sections(self, name: str, what: str) -> Sections | None:
        try:
            sections = self.call(name, "gw_sections")
        except Exception as error:
            raise PluginError(f"{what}: gw_sections raised {type(error).__name__}: {error}") from error
        finally:
            self._callers.clear()  # made for the plugins there are now
        if sections is None:
            return None
        if not isinstance(sections, Sections):
            raise PluginError(f"{what}: gw_sections must return gw.Sections, not {type(sections).__name__}")
        models: tuple[Any, ...] = (sections.gateway, sections.upstream, sections.route)
        for model in models:
            if model is not None and not (isinstance(model, type) and issubclass(model, Section)):
                raise PluginError(f"{what}: its settings must be classes made from gw.Section, not {model!r}")
        if (owner := self.owner(sections.name)) is not None:
            raise PluginError(f"{what} owns the section {sections.name!r}, which plugin {owner.name!r} owns already")
        return sections

    def _forget(self, name: str) -> None:
        if self._pluggy.has_plugin(name):
            self._pluggy.unregister(name=name)


def load(names: Iterable[str]) -> PluginSet:
    """Load the named plugins. Raises `PluginError` for the first that cannot be."""
    plugins = PluginSet()
    for name in names:
        plugins.add(name)
    return plugins


def _installed() -> Mapping[Available, EntryPoint]:
    """Return every installed plugin, and where it comes in."""
    places = []
    for folder in sys.path:
        with suppress(OSError):
            places.append((folder, Path(folder).stat().st_mtime_ns))
    return _installed_in(tuple(places))


@lru_cache(maxsize=1)
def _installed_in(places: tuple[tuple[str, int], ...]) -> Mapping[Available, EntryPoint]:  # noqa: ARG001 - the key
    """Look at each distribution: some 10 ms. *places* are the folders of `sys.path`, and what installing changes of them."""
    points: dict[Available, EntryPoint] = {}
    described: dict[int, tuple[str, str]] = {}
    for point in entry_points(group=GROUP):
        dist = point.dist
        if id(dist) not in described:
            described[id(dist)] = ("", "") if dist is None else (dist.name, dist.version)
        points[Available(point.name, point.value, *described[id(dist)])] = point
    return points


def _find(name: str) -> tuple[Available, EntryPoint]:
    if name.startswith(MODULE_PREFIX):
        module = name.removeprefix(MODULE_PREFIX)
        return Available(name, module, "", ""), EntryPoint(name, module, GROUP)
    points = _installed()
    known = sorted({plugin.name for plugin in points})
    same = [plugin for plugin in points if plugin.name == name]
    if len(same) > 1:
        both = " and ".join(sorted(map(str, same)))
        raise PluginError(f"two installed distributions call a plugin {name!r}: {both}; uninstall one")
    if not same:
        near = get_close_matches(name, known, 1)
        listed = (
            f"installed: {', '.join(known) or 'none'}; a module of no distribution is named 'python:package.module'"
        )
        raise PluginError(f"no plugin {name!r} is installed; {f'did you mean {near[0]!r}?' if near else listed}")
    return same[0], points[same[0]]


def _import(name: str, point: EntryPoint) -> ModuleType:
    try:
        return importlib.import_module(point.value)
    except ModuleNotFoundError as error:
        missing = error.name or str(error)
        if missing == point.value.partition(".")[0]:
            raise PluginError(f"plugin {name!r}: there is no module {point.value!r} to import") from error
        hint = _extra(name, point.dist) or "install the distribution that has it"
        raise PluginError(f"plugin {name!r} needs the module {missing!r}, which is not installed; {hint}") from error
    except Exception as error:
        raise PluginError(f"plugin {name!r}: importing {point.value} raised {type(error).__name__}: {error}") from error


def _extra(name: str, distribution: Distribution | None) -> str:
    """Say how to install what the plugin needs, where its distribution has an extra of the plugin's name."""
    if distribution is None or name not in (distribution.metadata.get_all("Provides-Extra") or ()):
        return ""
    return f"pip install '{distribution.name}[{name}]'"


def _check_marks(module: ModuleType, what: str) -> None:
    for hook in HOOKS:
        implementation = getattr(module, hook, None)
        if callable(implementation) and not hasattr(implementation, "gw_impl"):
            raise PluginError(f"{what}: {hook} would never be called; put @gw.hookimpl above it")
