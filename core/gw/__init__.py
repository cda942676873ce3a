"""gw: a small transport core, and filters that do everything else.

The public names, and nothing else. Those of `gw.hookspecs` bring pydantic and pluggy, those of `gw.upstream.control`
anyio, `asgi` the whole gateway, which take most of a second to import on a cold machine: they are fetched when
somebody asks for one, so that ``gw version`` does not wait for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gw.figures import Count, Distribution, Family, Figures
from gw.filters import (
    Attempt,
    Body,
    Close,
    Elsewhere,
    Exchange,
    Filter,
    Headers,
    Key,
    Message,
    Note,
    Order,
    Outcome,
    Reply,
    Request,
    Response,
    Retry,
)
from gw.keys import IDENTITY, TRACE, Certificate, Client, Endpoint, Identity, RetryBudget, RouteInfo, Trace
from gw.version import API

if TYPE_CHECKING:
    from gw.hookspecs import Context, LocalRoute, LocalWebSocket, Problem, Section, Sections, hookimpl
    from gw.served import asgi
    from gw.upstream.control import Answer, Caller, CallFailed, GrpcAnswer
    from gw.websocket import WebSocket, WebSocketClosed

__all__ = [
    "API",
    "IDENTITY",
    "TRACE",
    "Answer",
    "Attempt",
    "Body",
    "CallFailed",
    "Caller",
    "Certificate",
    "Client",
    "Close",
    "Context",
    "Count",
    "Distribution",
    "Elsewhere",
    "Endpoint",
    "Exchange",
    "Family",
    "Figures",
    "Filter",
    "GrpcAnswer",
    "Headers",
    "Identity",
    "Key",
    "LocalRoute",
    "LocalWebSocket",
    "Message",
    "Note",
    "Order",
    "Outcome",
    "Problem",
    "Reply",
    "Request",
    "Response",
    "Retry",
    "RetryBudget",
    "RouteInfo",
    "Section",
    "Sections",
    "Trace",
    "WebSocket",
    "WebSocketClosed",
    "asgi",
    "hookimpl",
]

_ELSEWHERE = {
    **dict.fromkeys(("Answer", "CallFailed", "Caller", "GrpcAnswer"), "gw.upstream.control"),
    **dict.fromkeys(("WebSocket", "WebSocketClosed"), "gw.websocket"),
    "asgi": "gw.served",
}

if not TYPE_CHECKING:  # a type checker would take it to mean that every name is there

    def __getattr__(name: str) -> object:
        """Fetch one of the names above that is not here yet; it is, from then on."""
        if name not in __all__:
            raise AttributeError(f"module 'gw' has no attribute {name!r}; its names are in gw.__all__")
        module = _ELSEWHERE.get(name, "gw.hookspecs")
        value = globals()[name] = getattr(import_module(module), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
