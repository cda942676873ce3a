"""The route table for people: what ``gw routes`` and ``gw plan`` tell of each route and its chain."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from gw.around import HOOKS
from gw.compiler import Compiler, Route
from gw.config.load import Loaded
from gw.context import Shared
from gw.filters import Body
from gw.hookspecs import LocalRoute, LocalWebSocket
from gw.routing import Router
from gw.terms import path_policy

__all__ = ["FilterRow", "RouteRow", "describe"]


@dataclass(frozen=True, slots=True)
class FilterRow:
    """One filter of a route's chain, as `gw routes` shows it."""

    name: str
    plugin: str
    hooks: tuple[str, ...]
    body: str
    upstream_body: str
    mode: str
    on_error: str


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One route and its compiled chain, as `gw routes` shows it."""

    name: str
    hosts: tuple[str, ...]
    path: str
    methods: tuple[str, ...]
    target: str
    filters: tuple[FilterRow, ...]
    framing: str
    """What the chain does to the framing of bodies, in words."""


def describe(loaded: Loaded) -> list[RouteRow]:
    """Compile the routes without opening anything, and say what they are.

    Raises `ValueError` for what would keep the gateway from serving them.
    """
    compiler = Compiler(loaded, Shared(), AsyncExitStack())
    routes = list(compiler.routes(None))
    Router(((route.info.name, route.match, route) for route in routes), path_policy(loaded.config))
    return [_row(route) for route in routes]


def _row(route: Route) -> RouteRow:
    if isinstance(route.target, LocalRoute | LocalWebSocket):
        target = "the gateway itself"
    else:
        target = ", ".join(route.info.upstreams) or "none: a filter answers, or 404"
    filters = tuple(
        FilterRow(
            placed.filter.name,
            placed.plugin,
            tuple(hook for hook in HOOKS if placed.has(hook)),
            placed.filter.body.value if placed.has("on_body") else Body.NONE.value,
            placed.filter.upstream_body.value if placed.has("on_upstream_body") else Body.NONE.value,
            placed.mode,
            placed.on_error,
        )
        for placed in route.chain.placed
    )
    framing = "; ".join(
        f"{message}: {effect}"
        for message, modes in (("request", {f.body for f in filters}), ("response", {f.upstream_body for f in filters}))
        if (effect := _framing(modes))
    )
    info = route.info
    return RouteRow(info.name, info.hosts, info.path, info.methods, target, filters, framing or "unchanged")


def _framing(modes: set[str]) -> str:
    if Body.STREAM.value in modes:
        return "content-length is dropped, the body is chunked"
    return "held whole, content-length is rewritten" if Body.BUFFER.value in modes else ""
