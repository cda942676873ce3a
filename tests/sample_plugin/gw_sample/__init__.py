"""The plugin ``sunset``: what it has for the gateway. The settings and the filter are in modules of their own."""

from collections.abc import Sequence

from gw import Context, Filter, RouteInfo, Sections, hookimpl
from gw_sample.filter import Sunset
from gw_sample.settings import GatewaySettings, RouteSettings

GW_API = 1


@hookimpl
def gw_sections() -> Sections:
    return Sections("sunset", gateway=GatewaySettings, route=RouteSettings)


@hookimpl
def gw_filters(route: RouteInfo, ctx: Context) -> Sequence[Filter]:
    everywhere, _, here = ctx.sections(route)
    if here is None:
        return ()
    information = here.information or (everywhere.information if everywhere is not None else "")
    return (Sunset(here, information),)
