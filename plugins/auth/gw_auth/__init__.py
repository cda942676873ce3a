"""The plugin ``auth``: what it has for the gateway. Settings, ways in, policies and filters are in modules of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gw import Context, Filter, Problem, RouteInfo, Sections, hookimpl
from gw_auth.checks import problems
from gw_auth.settings import Auth, InlinePolicy, RoutePolicy

if TYPE_CHECKING:
    from gw_auth.runtime import Guard

GW_API = 1


def _guard(ctx: Context) -> Guard | None:
    section = ctx.section()
    if section is None or not section.enabled:
        return None
    # Late: what verifies tokens is a library of an extra, and takes a while to import.
    guard: Guard = ctx.once("guard", lambda: import_module("gw_auth.runtime").Guard(ctx, section))
    return guard


@hookimpl
def gw_sections() -> Sections:
    return Sections("auth", gateway=Auth, upstream=InlinePolicy, route=RoutePolicy, in_proxy=True)


@hookimpl
def gw_filters(route: RouteInfo, ctx: Context) -> Sequence[Filter]:
    guard = _guard(ctx)
    return () if guard is None else guard.filters(route, ctx.sections(route))


@hookimpl
def gw_lifespan(ctx: Context) -> AbstractAsyncContextManager[None]:
    guard = _guard(ctx)
    return nullcontext() if guard is None else guard.running()


@hookimpl
def gw_check(config: Any) -> Iterable[Problem]:
    return tuple(problems(config))


@hookimpl
def gw_stats(ctx: Context) -> Mapping[str, Any]:
    guard = _guard(ctx)
    return {"enabled": False} if guard is None else guard.stats()
