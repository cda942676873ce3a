"""The plugin ``fault``: delays and failures on purpose, to see what happens then."""

from collections.abc import Sequence

from gw import Context, Filter, RouteInfo, Sections, hookimpl
from gw_fault.filter import Active, FaultFilter
from gw_fault.settings import Fault

GW_API = 1


@hookimpl
def gw_sections() -> Sections:
    return Sections("fault", gateway=Fault, upstream=Fault, route=Fault)


@hookimpl
def gw_filters(route: RouteInfo, ctx: Context) -> Sequence[Filter]:
    section = ctx.section(route)
    if section is None or (section.delay is None and section.abort is None):
        return ()
    return (FaultFilter(section, ctx.shared("active", Active)),)
