"""Every pluggy hook there is, and the values they pass. All are called at load, start or stop, never per request.

A plugin is a module with ``GW_API = 1`` that implements some of these with `hookimpl`.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import pluggy
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import click

    from gw.figures import Figures
    from gw.filters import Exchange, Filter, Reply
    from gw.keys import RetryBudget, RouteInfo
    from gw.upstream.control import Caller
    from gw.websocket import WebSocket

__all__ = ["Context", "LocalRoute", "LocalWebSocket", "Problem", "Section", "Sections", "hookimpl"]

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
    in_proxy: bool = False
    """The upstream's settings stand in ``upstreams[].proxy``, as the reference has some, not in ``upstreams[]``."""


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
    kind: Literal["", "metrics"] = ""
    """``metrics`` is for Prometheus to scrape: `status.metrics` and ``--no-metrics-endpoint`` switch it off."""


@dataclass(frozen=True, slots=True)
class LocalWebSocket:
    """A path where the gateway itself is the other end of a WebSocket.

    *handler* runs once per connection, and its return closes it. *subprotocols* are those it speaks: of what the client
    offers, the first that is among them is chosen.
    """

    path: str
    handler: Callable[[WebSocket], Awaitable[None]]
    subprotocols: tuple[str, ...] = ()
    name: str = ""
    methods: ClassVar[tuple[str, ...]] = ("GET",)


class Context(Protocol):
    """What a plugin is handed at load: its settings, shared state, and its logger."""

    name: str
    """The plugin's name."""
    log: logging.Logger
    figures: Figures
    """Where the plugin counts; whoever exports metrics reads it. It outlives reloads."""
    alone: bool
    """Whether this process is all of the gateway: with other workers, what must be exact stands in `shared_memory`."""
    config: Any
    """The whole configuration, as `gw_check` got it."""

    async def all_figures(self) -> Figures:
        """Return what all workers of this gateway have counted, added up: `figures` itself where there is one process."""

    def position(self, path: tuple[str | int, ...]) -> str:
        """Say where *path* was set, as ``file:line:column``, for logs and explanations."""

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what *make* made for the first that asked with *key*: what the hooks share while this configuration lives."""

    def section(self, route: RouteInfo | None = None) -> Any:
        """Return the nearest settings for *route*: its own, else its upstream's, else the gateway's, else `None`."""

    def sections(self, route: RouteInfo) -> tuple[Any, Any, Any]:
        """Return the settings at (gateway, upstream, route), for plugins that combine them; `None` where absent."""

    def upstream_section(self, upstream: str) -> Any:
        """Return the settings of the upstream called *upstream*, `None` where it has none: for routes to several."""

    def shared_memory(self, name: str) -> int:
        """Return the descriptor of a memory file that all workers of the machine share under this plugin's *name*.

        It is empty at first: whoever comes first gives it a size (`os.ftruncate`) and its contents, under a lock of the
        file, and maps it. It outlives reloads and workers, and is gone with the gateway. Duplicate the descriptor to keep
        it; do not close it. Raises `OSError`.
        """

    def drain(self, upstream: str, guard: object) -> int:
        """Send away the attempts that wait for a connection to *upstream* under *guard*; return how many that are.

        Filters see them in `Filter.on_upstream_error`, with the reason ``gw.pool_drained``, and may answer; else it is a 503.
        """

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return state that outlives a reload: the same object as long as some generation asks for *key*.

        Ask first while the configuration loads; asking again is free at any time.
        """

    def caller(self, upstream: str = "", *, tls: ssl.SSLContext | None = None, http2: bool = False) -> Caller:
        """Return a client for calls of the plugin's own: to the address of *upstream*, else where their URLs say.

        *tls* says how peers are verified where no upstream does; `None` trusts the usual authorities. With *http2* an
        upstream's TLS offers that, for `Caller.unary`.
        It is closed with the generation. Raises `ModuleNotFoundError` where httpcore is not installed.
        """


@hookspec
def gw_sections() -> Sections:  # type: ignore[empty-body]
    """Return the typed settings this plugin owns."""


@hookspec
def gw_filters(route: RouteInfo, ctx: Context) -> Sequence[Filter]:  # type: ignore[empty-body]
    """Return the filters that *route* needs, in order; ``()`` when the plugin does not apply. Must not do I/O."""


@hookspec
def gw_filters_before(route: RouteInfo, ctx: Context, plugin: str) -> Sequence[Filter]:  # type: ignore[empty-body]
    """Return the filters that *route* needs directly before those of *plugin*, because the settings say so.

    It is asked for each plugin that comes earlier, before `gw_filters` is, whose filters stand at the plugin's own place.
    """


@hookspec
def gw_upstreams(route: RouteInfo, ctx: Context) -> Iterable[str]:  # type: ignore[empty-body]
    """Return the names of upstreams that filters may send attempts of *route* to, with `Elsewhere`, besides its own."""


@hookspec
def gw_endpoints(ctx: Context) -> Iterable[LocalRoute | LocalWebSocket]:  # type: ignore[empty-body]
    """Return the paths this plugin answers by itself."""


@hookspec
def gw_retry_budget(ctx: Context, upstream: str) -> RetryBudget | None:
    """Return how many requests to *upstream* may be retries, unless its own ``retry.budget`` says so; `None` is no bound."""


@hookspec
def gw_lifespan(ctx: Context) -> AbstractAsyncContextManager[None]:  # type: ignore[empty-body]
    """Return an async context manager for background work: entered before the switch, left after the drain."""


@hookspec
def gw_takeover(ctx: Context) -> None:
    """Change what is shared with the configuration before this one, which has just taken over. Must not raise."""


@hookspec
def gw_check(config: Any) -> Iterable[Problem]:  # type: ignore[empty-body]
    """Return what is wrong across sections, given the whole configuration model."""


@hookspec
def gw_stats(ctx: Context) -> Mapping[str, Any]:  # type: ignore[empty-body]
    """Return this plugin's part of ``/stats``."""


@hookspec
def gw_orders(ctx: Context) -> Mapping[str, Callable[[Mapping[str, str]], Any]]:  # type: ignore[empty-body]
    """Return what an operator may have the plugin do, by name: on the admin listener and with ``gw order``.

    Each is called in every worker with the values that came along, and returns one that is ready for JSON. It must not
    wait. A `ValueError` refuses; its text is the answer.
    """


@hookspec
def gw_commands(cli: click.Group) -> None:
    """Add subcommands to ``gw``."""
