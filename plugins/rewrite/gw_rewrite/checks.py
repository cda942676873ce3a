"""Rules of the section that concern the routes and upstreams around it: what would load, and then do nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Final, TypeAlias

from pydantic import BaseModel

from gw import Problem
from gw_rewrite.settings import Rewrite
from gw_rewrite.templates import Template

__all__ = ["problems"]

Where: TypeAlias = tuple[str | int, ...]

_CAPTURE: Final = re.compile(r"/[:*]([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)


def problems(config: Any) -> Iterator[Problem]:
    """Yield what is wrong with the rewriting of *config*, the whole configuration."""
    upstreams = {upstream.name: upstream for upstream in config.upstreams}
    if config.rewrite is not None:
        yield from _identifiers(("rewrite",), config.rewrite, config)
    for index, route in enumerate(config.routes):
        if route.rewrite is not None:
            at = ("routes", index, "rewrite")
            yield from _identifiers(at, route.rewrite, config)
            yield from _parameters(at, route.rewrite, route.match)
            yield from _hosts(at, route, upstreams)


def _identifiers(at: Where, section: Rewrite, config: Any) -> Iterator[Problem]:
    if not config.request_id.enabled:
        return
    fields = section.request.headers
    for key in ("remove", "set", "append", "add"):
        for index, name in enumerate(getattr(fields, key)):
            if name.lower() == config.request_id.header:
                place = (*at, "request", "headers", key, index if key == "remove" else name)
                yield Problem(place, f"{name} is written by the gateway; see request_id")


def _parameters(at: Where, section: Rewrite, match: Any) -> Iterator[Problem]:
    names = list(re.compile(match.regex).groupindex) if match.regex else _CAPTURE.findall(match.path or "")
    for place, template in _templates(section, at):
        for variable in template.variables:
            family, _, name = variable.name.partition(".")
            if family == "path" and name and name not in names:
                near = get_close_matches(name, names, 1)
                hint = f" (did you mean '${{path.{near[0]}}}'?)" if near else ""
                yield Problem(place, f"has '${{{variable.name}}}', which this route's path does not capture{hint}")


def _hosts(at: Where, route: Any, upstreams: dict[str, Any]) -> Iterator[Problem]:
    if route.rewrite.host is None:
        return
    for name, _ in route.targets():
        upstream = upstreams.get(name)
        if upstream is None:
            continue  # which the core reports
        rules = upstream.proxy.header_rewrite
        rules = rules if route.header_rewrite is None else route.header_rewrite.over(rules)
        if rules.rewrite_host:
            message = f"has no effect on upstream {name!r}, which is sent its own host; set header_rewrite.rewrite_host to false"
            yield Problem((*at, "host"), message, "warning")


def _templates(value: Any, at: Where) -> Iterator[tuple[Where, Template]]:
    """Yield the templates in *value* and where they stand."""
    if isinstance(value, Template):
        yield at, value
    elif isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from _templates(getattr(value, name), (*at, field.alias or name))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _templates(inner, (*at, key))
