"""gw: a small transport core, and filters that do everything else."""

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
from gw.hookspecs import Context, LocalRoute, Problem, Section, Sections, hookimpl
from gw.keys import IDENTITY, TRACE, Client, Endpoint, Identity, RouteInfo, Trace
from gw.version import API

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
