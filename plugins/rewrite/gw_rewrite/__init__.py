"""The plugin ``rewrite``: what it has for the gateway. Settings, filters and what they are made of are in modules of their own."""

from collections.abc import Iterable, Sequence
from typing import Any

from gw import Context, Filter, Problem, RouteInfo, Sections, hookimpl
from gw_rewrite.checks import problems
from gw_rewrite.filter import filters
from gw_rewrite.settings import Rewrite

GW_API = 1


@hookimpl
def gw_sections() -> Sections:
    return Sections("rewrite", gateway=Rewrite, route=Rewrite)


@hookimpl
def gw_filters(route: RouteInfo, ctx: Context) -> Sequence[Filter]:
    section = ctx.section(route)
    return () if section is None else filters(section)


@hookimpl
def gw_check(config: Any) -> Iterable[Problem]:
    return tuple(problems(config))
