"""Every pluggy hook there is, and the values they pass. All are called at load, start or stop, never per request.

A plugin is a module with ``GW_API = 1`` that implements some of these with `hookimpl`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import pluggy
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import click

    from gw.filters import Exchange, Filter, Reply
    from gw.keys import RouteInfo

__all__ = ["Context", "LocalRoute", "Problem", "Section", "Sections", "hookimpl"]

hookspec = pluggy.HookspecMarker("gw")
hookimpl = pluggy.HookimplMarker("gw")

T = TypeVar("T")


class Section(BaseModel):
    """Base of every settings model: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    mode: Literal["enforce", "shadow"] = "enforce"
    """`shadow` runs the plugin's filters, records their verdicts and discards their effects."""
    on_error: Literal["deny", "allow"] = "deny"
    """What a hook that raises means: `deny` answers 500, `allow` goes on without that filter."""


@dataclass(frozen=True, slots=True)
class Sections:
    """The settings a plugin owns, at the levels where it accepts them. All bear the section's *name*."""

    name: str
    """The key in the configuration; the plugin's own name, unless the reference's key differs."""
    gateway: type[Section] | None = None
    upstream: type[Section] | None = None
    route: type[Section] | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a configuration."""

    path: tuple[str | int, ...]
    """Where, as keys and indexes from the root: ``("routes", 0, "rewrite", "path")``."""
    message: str
    """What is wrong and what to do about it, in one sentence without a full stop."""
    level: Literal["error", "warning"] = "error"


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """A path that a plugin answers by itself, such as ``/metrics``."""

    path: str
    handler: Callable[[Exchange], Awaitable[Reply]]
    methods: tuple[str, ...] = ("GET",)
    name: str = ""


class Context(Protocol):
    """What a plugin is handed at load: its settings, shared state, and its logger."""

    name: str
    """The plugin's name."""
    log: logging.Logger

    def section(self, route: RouteInfo | None = None) -> Any:
        """Return the nearest settings for *route*: its own, else its upstream's, else the gateway's, else `None`."""

    def sections(self, route: RouteInfo) -> tuple[Any, Any, Any]:
        """Return the settings at (gateway, upstream, route), for plugins that combine them; `None` where absent."""

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return state that outlives a reload: the same object as long as some generation asks for *key*."""


@hookspec
def gw_sections() -> Sections:  # type: ignore[empty-body]
    """Return the typed settings this plugin owns."""


@hookspec
def gw_filters(route: RouteInfo, ctx: Context) -> Sequence[Filter]:  # type: ignore[empty-body]
    """Return the filters that *route* needs, in order; ``()`` when the plugin does not apply. Must not do I/O."""


@hookspec
def gw_endpoints(ctx: Context) -> Iterable[LocalRoute]:  # type: ignore[empty-body]
    """Return the paths this plugin answers by itself."""


@hookspec
def gw_lifespan(ctx: Context) -> AbstractAsyncContextManager[None]:  # type: ignore[empty-body]
    """Return an async context manager for background work: entered before the switch, left after the drain."""


@hookspec
def gw_check(config: Any) -> Iterable[Problem]:  # type: ignore[empty-body]
    """Return what is wrong across sections, given the whole configuration model."""


@hookspec
def gw_stats(ctx: Context) -> Mapping[str, Any]:  # type: ignore[empty-body]
    """Return this plugin's part of ``/stats``."""


@hookspec
def gw_commands(cli: click.Group) -> None:
    """Add subcommands to ``gw``."""
