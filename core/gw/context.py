"""What generations share, and what a plugin is handed: the state behind `gw.hookspecs.Context`."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any, Final, TypeVar

from gw.config.load import Loaded
from gw.config.model import RouteConfig
from gw.config.upstream import UpstreamConfig
from gw.figures import Figures
from gw.keys import RouteInfo
from gw.limits import MAX_MEMORY_NAME
from gw.services import client_tls
from gw.tunnel import Live
from gw.upstream.control import Caller
from gw.upstream.pool import Pool

__all__ = ["NO_POOLS", "PluginContext", "Shared"]

T = TypeVar("T")

NO_POOLS: Final[Mapping[str, Pool]] = MappingProxyType({})


class Shared:
    """State that outlives a reload: buckets, breakers, key sets. Counted by use.

    Two generations that ask for the same key get the same object, so editing an
    unrelated route does not empty the rate limiter.
    """

    def __init__(self, memory: Callable[[str], int] | None = None) -> None:
        self._held: dict[Hashable, list[Any]] = {}
        self.figures = Figures()
        """What is counted, by the core and by plugins: as old as the gateway."""
        self.ask_figures: Callable[[], Awaitable[Figures]] = self._own_figures
        """Gives what all processes of the gateway count."""
        self.websockets = Live()
        """WebSockets that are open, of all generations."""
        self._memory: dict[str, int] = {}
        self._find_memory = memory or _own_memory
        self.alone = memory is None
        """Whether there are no other processes of this gateway."""

    async def _own_figures(self) -> Figures:
        return self.figures

    def memory(self, name: str) -> int:
        """Return the descriptor of the memory called *name*, which all processes of this gateway share."""
        if name not in self._memory:
            self._memory[name] = self._find_memory(name)
        return self._memory[name]

    def close(self) -> None:
        """Give the memory back. Whoever has mapped it keeps what is mapped."""
        for descriptor in self._memory.values():
            os.close(descriptor)
        self._memory.clear()

    def use(
        self, key: Hashable, make: Callable[[], T], stack: AsyncExitStack, close: Callable[[T], None] | None = None
    ) -> T:
        """Return the object of *key*, made if need be; it is kept until every *stack* that asked is closed, then *close*d."""
        entry = self._held.setdefault(key, [0, None])
        if entry[0] == 0:
            try:
                entry[1] = make()
            except BaseException:
                del self._held[key]
                raise
        entry[0] += 1
        stack.callback(self._leave, key, close)
        return entry[1]  # type: ignore[no-any-return]

    def _leave(self, key: Hashable, close: Callable[[Any], None] | None) -> None:
        entry = self._held[key]
        entry[0] -= 1
        if entry[0] == 0:
            del self._held[key]
            if close is not None:
                close(entry[1])

    def __len__(self) -> int:
        return len(self._held)


def _own_memory(name: str) -> int:
    return os.memfd_create(name.replace("/", ":")[:MAX_MEMORY_NAME], os.MFD_CLOEXEC)


class PluginContext:
    """What one plugin is handed; implements `gw.hookspecs.Context`."""

    def __init__(
        self, name: str, loaded: Loaded, shared: Shared, stack: AsyncExitStack, pools: Mapping[str, Pool] = NO_POOLS
    ) -> None:
        self.name = name
        self.log = logging.getLogger(f"gw.{name}")
        self.figures = shared.figures
        self.alone = shared.alone
        self._loaded, self._shared, self._stack, self._pools = loaded, shared, stack, pools
        self._levels: dict[str, tuple[Any, Any, Any]] = {}
        self._made: dict[Hashable, Any] = {}
        self.config = loaded.config
        self._taken: dict[Hashable, Any] = {}
        self._gateway = loaded.section(name, "gateway")

    @property
    def section_name(self) -> str:
        """What its section is called, and its part of the stats."""
        sections = self._loaded.plugins[self.name].sections
        return self.name if sections is None else sections.name

    def see(
        self, route: RouteInfo, upstream: UpstreamConfig | None, config: RouteConfig | None
    ) -> tuple[Any, Any, Any]:
        """Look up and remember the settings at the three levels of *route*."""
        section = self._loaded.section
        levels = (
            self._gateway,
            section(self.name, "upstream", upstream) if upstream is not None else None,
            section(self.name, "route", config) if config is not None else None,
        )
        self._levels[route.name] = levels
        return levels

    def section(self, route: RouteInfo | None = None) -> Any:
        levels = (self._gateway,) if route is None else self._levels[route.name]
        return next((level for level in reversed(levels) if level is not None), None)

    def sections(self, route: RouteInfo) -> tuple[Any, Any, Any]:
        return self._levels[route.name]

    def upstream_section(self, upstream: str) -> Any:
        config = next((each for each in self._loaded.config.upstreams if each.name == upstream), None)
        return None if config is None else self._loaded.section(self.name, "upstream", config)

    def shared_memory(self, name: str) -> int:
        return self._shared.memory(f"{self.name}/{name}")

    async def all_figures(self) -> Figures:
        return await self._shared.ask_figures()

    def drain(self, upstream: str, guard: object) -> int:
        pool = self._pools.get(upstream)
        return 0 if pool is None else pool.drain(guard)

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._taken:  # once a generation: asking again, later on, takes nothing that has to be given back
            self._taken[key] = self._shared.use((self.name, key), make, self._stack)
        return self._taken[key]  # type: ignore[no-any-return]

    def position(self, path: tuple[str | int, ...]) -> str:
        return self._loaded.position(path)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[no-any-return]

    def caller(self, upstream: str = "", *, tls: ssl.SSLContext | None = None, http2: bool = False) -> Caller:
        config = next((each for each in self._loaded.config.upstreams if each.name == upstream), None)
        if config is None:
            if upstream:
                raise ValueError(f"there is no upstream {upstream!r}; name one of `upstreams`")
            caller = Caller(tls=tls)
        elif config.application is not None:
            raise ValueError(f"upstream {upstream!r} is an application, and has no address to call")
        elif not config.addresses():
            raise ValueError(f"upstream {upstream!r} is a service (srv), and the gateway's own calls need a host")
        else:
            endpoint, secured = config.addresses()[0], client_tls(config)
            context = tls if secured is None else tls or secured.plain_context(("h2",) if http2 else ("http/1.1",))
            name = "" if secured is None else secured.server_name(endpoint.host)
            caller = Caller((endpoint.host, endpoint.port), tls=context, server_name=name)
        self._stack.push_async_callback(caller.aclose)
        return caller
