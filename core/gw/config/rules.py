"""Rules across keys: names that must be there, names that must differ, and what an unknown key was meant to be.

Rules about names look at the plain document, so that they are reported together with what else is wrong with it.
A rule within one group of keys stands with its model in `gw.config.model`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from gw.config.errors import Path, did_you_mean, path_text
from gw.config.model import GatewayConfig, ProxyConfig, RouteConfig
from gw.hookspecs import Problem
from gw.plugins import PluginSet, available

__all__ = ["names", "unknown_key", "values"]

_LATER = frozenset(
    {
        "dns",
        "http2",
        "max_ws_message_size",
        "policies",
        "tls",
        "upstreams.http2",
        "upstreams.proxy.auth",
        "upstreams.proxy.auto_stream_content_length_threshold_bytes",
        "upstreams.proxy.buffering",
        "upstreams.proxy.h10_streaming",
        "upstreams.proxy.relay_buffer_limit_bytes",
        "upstreams.proxy.retry",
        "upstreams.request_mode",
        "upstreams.tls",
        "worker_threads",
    }
)
"""Keys of behaviour 4 that this version does not have: no typing error, and not to be ignored either."""

_OWNERS: Mapping[str, str] = {"circuit_breaker": "breaker", "observability": "otel", "rate_limit": "ratelimit"}
"""Sections of our own plugins that are not called as the plugin is."""


def names(tree: Mapping[str, Any], plugins: PluginSet) -> Iterator[Problem]:
    """Check what names what in *tree*, which may be wrong in other ways."""
    for key in ("upstreams", "routes"):
        first: dict[str, int] = {}
        for index, name in _named(tree, key):
            if name in first:
                yield Problem((key, index, "name"), f"{name!r} is the name of {key}[{first[name]}] already")
            first.setdefault(name, index)
    known = {name for _, name in _named(tree, "upstreams")}
    for index, route in _mappings(tree, "routes"):
        targets: list[tuple[Path, Any]] = [(("routes", index, "upstream"), route.get("upstream"))]
        targets += [(("routes", index, "upstreams", at, "name"), name) for at, name in _named(route, "upstreams")]
        seen: set[str] = set()
        for path, name in targets:
            if not isinstance(name, str):
                continue
            if name not in known:
                yield Problem(path, f"there is no upstream {name!r}{did_you_mean(name, known)}")
            elif name in seen:
                yield Problem(path, f"lists upstream {name!r} twice; give it one weight")
            seen.add(name)
        yield from _route_plugins(index, route, plugins)


def _route_plugins(index: int, route: Mapping[str, Any], plugins: PluginSet) -> Iterator[Problem]:
    chosen = route.get("plugins")
    if not isinstance(chosen, list):
        return
    for at, name in enumerate(chosen):
        if isinstance(name, str) and name not in plugins:
            hint = did_you_mean(name, plugins.names) or "; add it to plugins at the top level"
            yield Problem(("routes", index, "plugins", at), f"plugin {name!r} is not loaded{hint}")
    for plugin in plugins:
        if plugin.sections and plugin.sections.name in route and plugin.name not in chosen:
            message = f"has no effect: this route's plugins do not name {plugin.name!r}; add it there"
            yield Problem(("routes", index, plugin.sections.name), message)


def values(config: GatewayConfig) -> Iterator[Problem]:
    """Warn of values that are allowed but can hardly be meant."""
    groups: list[tuple[Path, ProxyConfig | RouteConfig]] = []
    groups += [(("upstreams", index, "proxy"), each.proxy) for index, each in enumerate(config.upstreams)]
    groups += [(("routes", index), each) for index, each in enumerate(config.routes)]
    for path, group in groups:
        idle, most = group.stream_idle_timeout_sec or 0, group.stream_max_duration_sec or 0
        if idle > most > 0:
            message = f"is longer ({idle}) than stream_max_duration_sec ({most}) and so never reached"
            yield Problem((*path, "stream_idle_timeout_sec"), message, "warning")


def unknown_key(path: Path, schema: Mapping[str, Any], plugins: PluginSet, refused: Collection[str]) -> str | None:
    """Say what the unknown key at *path* was meant to be; `None` if it belongs to a plugin that was *refused*."""
    key = str(path[-1])
    level = _level(path)
    if level is not None:
        owner = _owner(key, plugins)
        if owner in refused:
            return None
        if owner is not None and owner in plugins:
            return f"is not a key at this level: plugin {owner!r} has its settings elsewhere"
        if owner is not None:
            return f"belongs to plugin {owner!r}, which is not loaded; add it to plugins at the top level"
    dotted = ".".join(part for part in path if isinstance(part, str))
    if dotted in _LATER or (level is not None and key in _OWNERS):
        return "is not supported by this version of gw; remove it"
    known = _keys_at(path[:-1], schema)
    where = path_text(path[:-1]) or "the top level"
    listed = f"; {where} has {', '.join(sorted(known)) or 'none'}"
    return f"is not a known key{did_you_mean(key, known) or listed}"


def _level(path: Path) -> str | None:
    match path:
        case (str(),):
            return "gateway"
        case ("upstreams", int(), str()):
            return "upstream"
        case ("routes", int(), str()):
            return "route"
    return None


def _owner(key: str, plugins: PluginSet) -> str | None:
    """Return the plugin that a section called *key* belongs to, installed or loaded, by what can be told without importing."""
    if (plugin := plugins.owner(key)) is not None:
        return plugin.name
    wanted = _squashed(_OWNERS.get(key, key))
    return next((each.name for each in available() if _squashed(each.name) == wanted), None)


def _squashed(name: str) -> str:
    return re.sub(r"[-_.]", "", name).lower()


def _keys_at(path: Path, schema: Mapping[str, Any]) -> set[str]:
    """Return the keys that *schema* knows for the mapping at *path*."""
    nodes = _branches(schema, schema)
    for part in path:
        inner = []
        for node in nodes:
            child = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
            child = child if child is not None else node.get("additionalProperties")
            if isinstance(child, Mapping):
                inner += _branches(child, schema)
        nodes = inner
    return {key for node in nodes for key in node.get("properties", ())}


def _branches(node: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
    choices = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    return [branch for choice in choices for branch in _branches(choice, schema)] if choices else [node]


def _mappings(tree: Mapping[str, Any], key: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    items = tree.get(key)
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            yield index, item


def _named(tree: Mapping[str, Any], key: str) -> Iterator[tuple[int, str]]:
    for index, item in _mappings(tree, key):
        if isinstance(name := item.get("name"), str):
            yield index, name
