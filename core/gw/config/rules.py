"""Rules across keys: names that must be there, names that must differ, and what an unknown key was meant to be.

Rules about names look at the plain document, so that they are reported together with what else is wrong with it.
A rule within one group of keys stands with its model in `gw.config.model`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path as File
from stat import S_ISREG
from typing import Any

from gw.config import apps
from gw.config.errors import Path, did_you_mean, path_text
from gw.config.hosts import is_address
from gw.config.model import GatewayConfig, RouteConfig
from gw.config.tls import TlsConfig
from gw.config.upstream import ProxyConfig, UpstreamConfig
from gw.hookspecs import Problem
from gw.plugins import PluginSet, available

__all__ = ["names", "unknown_key", "values"]

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
        mirror = route.get("mirror")
        copied_to = mirror.get("upstream") if isinstance(mirror, dict) else None
        if isinstance(copied_to, str) and copied_to not in known:
            message = f"there is no upstream {copied_to!r}{did_you_mean(copied_to, known)}"
            yield Problem(("routes", index, "mirror", "upstream"), message)
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
    if config.dns.resolver == "dnspython" and find_spec("dns") is None:
        message = "needs dnspython, which is not installed; run pip install 'gw[dns]', or set it to system"
        yield Problem(("dns", "resolver"), message)
    yield from _families(config)
    yield from _listeners(config)
    for index, upstream in enumerate(config.upstreams):
        yield from _upstream_tls(("upstreams", index), upstream)
    yield from apps.problems(config)
    if config.dns.resolver == "system":
        for index, upstream in enumerate(config.upstreams):
            for at, endpoint in enumerate(upstream.endpoints or ()):
                if endpoint.srv is not None:
                    message = "is looked up with dnspython only; set dns.resolver to dnspython (pip install 'gw[dns]')"
                    yield Problem(("upstreams", index, "endpoints", at, "srv"), message)


def _families(config: GatewayConfig) -> Iterator[Problem]:
    """Refuse addresses of a family that `dns.lookup_family` leaves out (behaviour 18)."""
    family = config.dns.lookup_family
    if family not in {"v4_only", "v6_only"}:
        return
    for index, upstream in enumerate(config.upstreams):
        for at, endpoint in enumerate(upstream.addresses()):
            host = endpoint.host
            if is_address(host) and (":" in host) != (family == "v6_only"):
                path: Path = ("upstreams", index, "host")
                if upstream.endpoints is not None:
                    path = ("upstreams", index, "endpoints", at, "host")
                yield Problem(path, f"{host!r} is an address that dns.lookup_family: {family} leaves out")


def _listeners(config: GatewayConfig) -> Iterator[Problem]:
    taken: dict[str, int] = {}
    at: dict[tuple[str, int], str] = {}
    first = len(config.all_listeners()) - len(config.listeners)
    for index, listener in enumerate(config.all_listeners(), -first):
        path: Path = ("listeners", index) if index >= 0 else ()
        if listener.name in taken:
            yield Problem((*path, "name"), f"{listener.name!r} is the name of another listener already")
        taken.setdefault(listener.name, index)
        where = (listener.bind_host, listener.bind_port)
        if listener.bind_port and where in at:
            yield Problem((*path, "bind_port"), f"listener {at[where]!r} has this address already")
        at.setdefault(where, listener.name)
        yield from _files((*path, "tls"), listener.tls)


def _files(path: Path, tls: TlsConfig) -> Iterator[Problem]:
    if not tls.enabled:
        return
    groups: list[tuple[Path, Any, tuple[str, ...]]] = [(path, tls, ("cert_file", "key_file"))]
    groups += [
        ((*path, "certificates", index), each, ("cert_file", "key_file")) for index, each in enumerate(tls.certificates)
    ]
    if tls.client_certificates.verify != "none":
        groups.append(((*path, "client_certificates"), tls.client_certificates, ("ca_file",)))
    for where, group, keys in groups:
        yield from _missing(where, group, keys)


def _missing(path: Path, group: object, keys: Iterable[str]) -> Iterator[Problem]:
    for key in keys:
        name = getattr(group, key)
        if name and (why := _why_not(name)):
            yield Problem((*path, key), f"{name!r} {why}")


def _why_not(name: str) -> str:
    """Say why *name* cannot be a file to read; nothing where that cannot be told (behaviour 4.2)."""
    try:
        return "" if S_ISREG(File(name).stat().st_mode) else "is not a regular file"
    except PermissionError:
        return ""
    except (OSError, ValueError) as error:
        return f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"


def _upstream_tls(path: Path, upstream: UpstreamConfig) -> Iterator[Problem]:
    tls, http2 = upstream.tls, upstream.http2
    if http2.enabled and http2.prefer == "h2c" and tls.enabled:
        message = "h2c is HTTP/2 without TLS, and tls.enabled is true; use auto or always"
        yield Problem((*path, "http2", "prefer"), message)
    active = upstream.health.active
    if active is not None and active.type == "grpc" and (not http2.enabled or http2.prefer == "never"):
        message = "is grpc, which HTTP/2 carries: set http2.enabled, and without TLS http2.prefer: h2c"
        yield Problem((*path, "health", "active", "type"), message)
    if http2.enabled and http2.prefer != "h2c" and not tls.enabled:
        message = "needs tls.enabled: true, since HTTP/2 is agreed on in the handshake; without TLS set prefer to h2c"
        yield Problem((*path, "http2", "enabled"), message)
    if not tls.enabled:
        return
    yield from _missing((*path, "tls"), tls, ("cert_file", "key_file"))
    if not tls.verify_peer:
        yield Problem((*path, "tls", "verify_peer"), "is false: anybody can be this upstream", "warning")
        return
    yield from _missing((*path, "tls"), tls, ("ca_file",))
    if not tls.sni_hostname:
        for address in upstream.addresses():
            if is_address(address.host):
                message = (
                    f"is needed: {address.host} is an address, and there is no name to verify the certificate against"
                )
                yield Problem((*path, "tls", "sni_hostname"), message)


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
    if level is not None and key in _OWNERS:
        return "is not supported by this version of gw; remove it"
    known = _keys_at(path[:-1], schema)
    where = path_text(path[:-1]) or "the top level"
    listed = f"; {where} has {', '.join(sorted(known)) or 'none'}"
    return f"is not a known key{did_you_mean(key, known) or listed}"


def _level(path: Path) -> str | None:
    match path:
        case (str(),):
            return "gateway"
        case ("upstreams", int(), str()) | ("upstreams", int(), "proxy", str()):
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
