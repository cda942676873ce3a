"""The plugin ``grpcweb``: what it has for the gateway."""

from collections.abc import Sequence

from gw import Context, Filter, RouteInfo, Sections, hookimpl
from gw_grpcweb.filter import GrpcWeb
from gw_grpcweb.settings import Settings

GW_API = 1


@hookimpl
def gw_sections() -> Sections:
    return Sections("grpcweb", gateway=Settings, upstream=Settings, route=Settings)


@hookimpl
def gw_filters(route: RouteInfo, ctx: Context) -> Sequence[Filter]:
    section = ctx.section(route)
    return (GrpcWeb(),) if section is not None and section.enabled else ()
