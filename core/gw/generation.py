"""A configuration brought to life: its routes, chains and pools; and how one follows another.

A generation is built off to one side. If anything in it fails, what was opened
is closed again and the old one carries on untouched. Exchanges finish on the
generation they began with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from math import inf
from typing import Any

import anyio
from anyio.abc import TaskStatus

from gw.applications import App, AppTarget, Mount
from gw.chain import Chain
from gw.compiler import Compiler, Proxied, Route
from gw.config.apps import application
from gw.config.load import Loaded
from gw.config.upstream import UpstreamConfig
from gw.context import PluginContext, Shared
from gw.filters import Filter
from gw.hookspecs import LocalRoute, LocalWebSocket, Problem
from gw.http.engines import Engine
from gw.http.h1 import ReaderLimits
from gw.keys import RetryBudget
from gw.limits import (
    CLOSING_GRACE,
    MAX_HEADER_COUNT,
    MAX_OLD_GENERATIONS,
    MAX_RESPONSE_HEADER_SIZE,
    MAX_TRAILER_SIZE,
    WS_CLOSE_TIME,
)
from gw.net.network import Network
from gw.pools import put_to_work
from gw.routing import Router
from gw.services import Service, resolve
from gw.terms import path_policy
from gw.tunnel import Live
from gw.upstream.pool import Pool
from gw.upstream.retry import RetryAccount

__all__ = ["Current", "Generation", "build"]

log = logging.getLogger("gw.generation")


class Generation:
    """What a configuration became. Immutable but for the count of its users."""

    def __init__(
        self,
        number: int,
        loaded: Loaded,
        routes: list[Route],
        unmatched: Chain,
        pools: dict[str, Pool],
        services: dict[str, Service],
        contexts: Mapping[str, PluginContext],
        stack: AsyncExitStack,
        live: Live,
    ) -> None:
        self.number, self.loaded, self.pools, self.services, self.live = number, loaded, pools, services, live
        self.contexts = contexts
        self.paths = path_policy(loaded.config)
        self.router = Router(((r.info.name, r.match, r) for r in routes), self.paths)
        self.routes, self.unmatched = routes, unmatched
        self.apps = {each.target.app.name: each.target.app for each in routes if isinstance(each.target, AppTarget)}
        for loser, winner in self.router.displaced:
            if loser.partition(" ")[0] != winner.partition(" ")[0]:  # not the bare companion of its own prefix
                log.warning("route %r gives way to %r for some or all of its requests", loser, winner)
        self.users = 0
        self.idle: anyio.Event | None = None
        self._stack = stack

    def stats(self) -> dict[str, Any]:
        """Return the figures of each plugin that has some, by its section. One that raises is logged and left out."""
        found: dict[str, Any] = {}
        for name, context in self.contexts.items():
            try:
                theirs = self.loaded.plugins.call(name, "gw_stats", ctx=context)
            except Exception:
                log.exception("plugin %s raised in gw_stats", name)
                continue
            if theirs is not None:
                found[context.section_name] = theirs
        return found

    def order(self, plugin: str, name: str, values: Mapping[str, str]) -> Any:
        """Have *plugin* do what it calls *name*; return what it answers. Raises `ValueError` where it cannot, or will not."""
        context = self.contexts.get(plugin)
        orders = None if context is None else self.loaded.plugins.call(plugin, "gw_orders", ctx=context)
        if orders is None or name not in orders:
            there = (
                "no plugin of that name is loaded" if context is None else f"it has {', '.join(orders or ()) or 'none'}"
            )
            raise ValueError(f"there is no order {plugin} {name}: {there}")
        try:
            answer = orders[name](values)
            json.dumps(answer)
        except ValueError:
            raise
        except Exception as error:
            log.exception("plugin %s raised in its order %s", plugin, name)
            raise ValueError(f"{plugin} raised {type(error).__name__} in {name}; the log says where") from error
        return answer

    def take_over(self) -> None:
        """Tell the plugins that new exchanges come here from now on."""
        for name, context in self.contexts.items():
            try:
                self.loaded.plugins.call(name, "gw_takeover", ctx=context)
            except Exception:
                log.exception("plugin %s raised in gw_takeover; what it shares may be as it was before", name)

    async def aclose(self) -> None:
        await self._stack.aclose()


async def build(
    number: int,
    loaded: Loaded,
    network: Network,
    engine: Engine,
    shared: Shared,
    own: Sequence[LocalRoute | LocalWebSocket | Mount | Proxied] = (),
    yields: Sequence[LocalRoute] = (),
    first: Sequence[Filter] = (),
) -> Generation:
    """Bring *loaded* to life, with the embedding program's *own* paths, and those of ours that a configured one *yields* to.

    The filters that come *first* stand before those of plugins, everywhere.

    Whatever fails, nothing stays open; raises `ChainError`, `RouteConflict`, ...
    """
    async with AsyncExitStack() as stack:
        limits = ReaderLimits(MAX_RESPONSE_HEADER_SIZE, MAX_HEADER_COUNT, MAX_TRAILER_SIZE)
        pools: dict[str, Pool] = {}
        apps: dict[str, App] = {}
        services: dict[str, Service] = {}
        for upstream in loaded.config.upstreams:
            if upstream.application is not None:
                apps[upstream.name] = await _start(upstream, upstream.application, loaded, network, shared, stack)
                continue
            held = put_to_work(upstream, loaded, network, engine, limits, shared, stack)
            pools[upstream.name], services[upstream.name] = held.pool, held.service
        compiler = Compiler(loaded, shared, stack, pools, number, apps, first)
        services = await _under_settings(services, compiler.contexts, loaded, network, shared, stack)
        routes = [*compiler.routes(services), *(compiler.own(each, services) for each in own)]
        routes += (compiler.local(each, gives_way=True) for each in yields)
        generation = Generation(
            number,
            loaded,
            routes,
            compiler.unmatched(),
            pools,
            services,
            compiler.contexts,
            stack,
            shared.websockets,
        )
        for plugin in loaded.plugins:
            lifespan = loaded.plugins.call(plugin.name, "gw_lifespan", ctx=compiler.contexts[plugin.name])
            if lifespan is not None:
                await _hold(lifespan, plugin.name, network, stack)
        generation._stack = stack.pop_all()
        return generation


async def _under_settings(
    services: Mapping[str, Service],
    contexts: Mapping[str, PluginContext],
    loaded: Loaded,
    network: Network,
    shared: Shared,
    stack: AsyncExitStack,
) -> dict[str, Service]:
    """Put each of *services* under its upstream's settings for exchanges, and what plugins say about its retries.

    Raises `OSError` where names must be known now, and are not.
    """
    found: dict[str, Service] = {}
    for upstream in loaded.config.upstreams:
        if upstream.name not in services:
            continue
        budget: RetryBudget | None = None
        for name, ctx in contexts.items():
            if budget is None:
                budget = loaded.plugins.call(name, "gw_retry_budget", ctx=ctx, upstream=upstream.name)
        account = shared.use(("gw.retries", upstream.name), RetryAccount, stack)
        found[upstream.name] = services[upstream.name].under(upstream, budget, account)
    missing = await resolve(found.values(), loaded.config.dns, network)
    if missing and loaded.config.dns.required:
        raise OSError(f"names of upstreams that cannot be resolved: {'; '.join(missing)}")
    return found


async def _start(
    upstream: UpstreamConfig, name: str, loaded: Loaded, network: Network, shared: Shared, stack: AsyncExitStack
) -> App:
    """Return the application called *name*, which lives as long as some generation has it. Raises `ConfigError`, `ValueError`."""
    try:
        found = application(name)
    except ValueError as error:
        path = ("upstreams", loaded.config.upstreams.index(upstream), "endpoints", 0, "asgi")
        raise loaded.refuse([Problem(path, str(error))]) from None
    app = shared.use(("gw.app", name), lambda: App(name, found), stack)
    stack.push_async_callback(app.leave)
    await app.join(network.tasks)
    return app


async def _hold(
    lifespan: AbstractAsyncContextManager[None], plugin: str, network: Network, stack: AsyncExitStack
) -> None:
    """Enter *lifespan*, and leave it when *stack* is closed: in a task of its own, so that it may hold a task group.

    Generations overlap, and task groups that are entered by one task must be left in the opposite order. Raises what
    entering raises. Once entered, only the stack ends it: what is cancelled is the wait for it, and then it is too.
    """
    closing, closed, scope = anyio.Event(), anyio.Event(), anyio.CancelScope()

    async def live(*, task_status: TaskStatus[None]) -> None:
        began = False
        try:
            with scope:
                async with lifespan:
                    began = scope.shield = True
                    task_status.started()
                    await closing.wait()
        except Exception:
            if not began:
                raise
            log.exception("plugin %s: its background work ended in an error", plugin)
        finally:
            closed.set()

    async def leave() -> None:
        closing.set()
        try:
            await closed.wait()
        finally:
            scope.cancel()

    await network.tasks.start(live)
    stack.push_async_callback(leave)


class Current:
    """The generation that new exchanges join, and those before it that are still in use."""

    def __init__(self, drain: float) -> None:
        self._drain = drain
        self.now: Generation | None = None
        self.old: list[Generation] = []
        """Those that exchanges still run on, the oldest first."""

    async def switch(self, new: Generation | None, *, until: float = inf) -> None:
        """Let *new* take over, as `replace` does, and close the one before as `retire` does, within the time to drain."""
        old = self.replace(new)
        if old is not None:
            await self.retire(old, self._drain, until=until)

    def replace(self, new: Generation | None) -> Generation | None:
        """Let *new* take over: one assignment. Return the one before, which is to be given to `retire`.

        A generation in use may stay as long as a WebSocket does. Beyond MAX_OLD_GENERATIONS the oldest is closed
        under the exchanges it has left, which then go on without the plugins' background work.
        """
        old, self.now = self.now, new
        if new is not None:
            new.take_over()
        if old is not None:
            old.idle = anyio.Event()
            if old.users == 0:
                old.idle.set()
            self.old.append(old)
            for oldest in self.old[:-MAX_OLD_GENERATIONS]:
                log.warning(
                    "generation %d is closed with %d exchanges on it: many came after it", oldest.number, oldest.users
                )
                if oldest.idle is not None:
                    oldest.idle.set()
        return old

    async def retire(self, old: Generation, patience: float = inf, *, until: float = inf) -> None:
        """Wait for the exchanges of *old*, for *patience* seconds, and close it.

        Closing it must be over in the time that draining may take, or at *until* by `anyio.current_time`.
        """
        assert old.idle is not None
        try:
            with anyio.move_on_after(patience):
                await old.idle.wait()
            if old.users and old.live.go_away(old.number):  # WebSockets do not end by themselves
                old.idle = anyio.Event()
                with anyio.move_on_after(min(self._drain, WS_CLOSE_TIME)):
                    await old.idle.wait()
        finally:
            until = min(until, anyio.current_time() + self._drain) + CLOSING_GRACE
            with anyio.CancelScope(shield=True, deadline=until):
                await old.aclose()
            self.old.remove(old)
