"""gw: a small transport core, and filters that do everything else.

The public names, and nothing else. Those of `gw.hookspecs` bring pydantic and pluggy, which take most of a second
to import on a cold machine: they are fetched when somebody asks for one, so that ``gw version`` does not wait for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gw.filters import (
    Attempt,
    Body,
    Exchange,
    Filter,
    Headers,
    Key,
    Message,
    Order,
    Outcome,
    Reply,
    Request,
    Response,
    Retry,
)
from gw.keys import IDENTITY, TRACE, Client, Endpoint, Identity, RouteInfo, Trace
from gw.version import API

if TYPE_CHECKING:
    from gw.hookspecs import Context, LocalRoute, Problem, Section, Sections, hookimpl

__all__ = [
    "API",
    "IDENTITY",
    "TRACE",
    "Attempt",
    "Body",
    "Client",
    "Context",
    "Endpoint",
    "Exchange",
    "Filter",
    "Headers",
    "Identity",
    "Key",
    "LocalRoute",
    "Message",
    "Order",
    "Outcome",
    "Problem",
    "Reply",
    "Request",
    "Response",
    "Retry",
    "RouteInfo",
    "Section",
    "Sections",
    "Trace",
    "hookimpl",
]

if not TYPE_CHECKING:  # a type checker would take it to mean that every name is there

    def __getattr__(name: str) -> object:
        """Fetch one of the names above that is not here yet; it is, from then on."""
        if name not in __all__:
            raise AttributeError(f"module 'gw' has no attribute {name!r}; its names are in gw.__all__")
        value = globals()[name] = getattr(import_module("gw.hookspecs"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
