"""Applications in Python that an upstream is, in place of addresses: what is said of them, and where they are found.

What they are run by is `gw.applications`.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from gw.config.errors import Path
from gw.config.model import GatewayConfig, RouteConfig
from gw.config.settings import Settings
from gw.config.upstream import EndpointConfig, ProxyConfig, UpstreamConfig
from gw.hookspecs import Problem

__all__ = ["application", "problems"]

_MEANT = frozenset({"name", "host", "port", "endpoints", "proxy"})
_MEANT_IN_PROXY = frozenset({"route_prefix", "strip_prefix", "methods"})
_NOT_ON_ROUTES = frozenset(RouteConfig.model_fields) & frozenset(ProxyConfig.model_fields) - _MEANT_IN_PROXY


def application(name: str) -> Callable[..., Any]:
    """Import the application called *name*, as in ``package.module:attribute``; raises `ValueError` with the reason."""
    module_name, _, attributes = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name!r} cannot be imported: {_told(error)}") from error
    if not callable(found):
        raise ValueError(f"{name!r} is no ASGI application, but of the type {type(found).__name__}")  # noqa: TRY004  # as above
    return found  # type: ignore[no-any-return]


def _told(error: BaseException) -> str:
    """Return what went wrong in one line, and where, if that was not here."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if each.filename not in {__file__, importlib.__file__} and each.filename[:1] != "<"]
    text = (str(error).splitlines() or [""])[0]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


def problems(config: GatewayConfig) -> Iterator[Problem]:
    """Say what cannot be meant where an upstream is an application, and which of them cannot be imported."""
    applications = {each.name for each in config.upstreams if each.application is not None}
    for index, upstream in enumerate(config.upstreams):
        if upstream.application is not None:
            yield from _upstream(("upstreams", index), upstream, upstream.application)
    for index, route in enumerate(config.routes):
        names = [name for name, _ in route.targets()]
        if applications.isdisjoint(names):
            pass
        elif len(names) > 1:
            at = next(at for at, name in enumerate(names) if name in applications)
            message = f"{names[at]!r} is an application, and a route to one has no other upstreams"
            yield Problem(("routes", index, "upstreams", at, "name"), message)
        else:
            yield from _meaningless(("routes", index), route, RouteConfig, _NOT_ON_ROUTES)
        if route.mirror is not None and route.mirror.upstream in applications:
            message = f"{route.mirror.upstream!r} is an application; copies go to upstreams with addresses"
            yield Problem(("routes", index, "mirror", "upstream"), message)


def _upstream(path: Path, upstream: UpstreamConfig, name: str) -> Iterator[Problem]:
    assert upstream.endpoints is not None
    if len(upstream.endpoints) > 1:
        yield Problem((*path, "endpoints"), "has an application, beside which there can be no other endpoint")
    endpoint = (*path, "endpoints", next(at for at, each in enumerate(upstream.endpoints) if each.asgi is not None))
    yield from _meaningless(
        endpoint, upstream.endpoints[int(endpoint[-1])], EndpointConfig, {"port", "weight", "priority"}
    )
    yield from _meaningless(path, upstream, UpstreamConfig, UpstreamConfig.model_fields.keys() - _MEANT)
    proxy = ProxyConfig.model_fields.keys() - _MEANT_IN_PROXY
    yield from _meaningless((*path, "proxy"), upstream.proxy, ProxyConfig, proxy)
    try:
        application(name)
    except ValueError as error:
        yield Problem((*endpoint, "asgi"), str(error))


def _meaningless(
    path: Path, group: Settings, model: type[Settings], keys: set[str] | frozenset[str]
) -> Iterator[Problem]:
    for key in sorted(keys):
        if getattr(group, key) != model.model_fields[key].default:
            yield Problem((*path, key), "means nothing to an application; remove it")
