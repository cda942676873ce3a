"""What plugins and the core share about an exchange: typed keys, and the plain values behind them.

A plugin reads what another one found out through a key here, and so need not know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gw.filters import Key

__all__ = ["IDENTITY", "SHADOW", "TRACE", "Client", "Endpoint", "Identity", "RouteInfo", "Trace"]


@dataclass(frozen=True, slots=True)
class Client:
    """Who is at the other end, as far as it can be trusted.

    *ip* is the address that ``trusted_proxies`` lets us believe; *peer* is the
    socket's. Addresses are text, IPv6 without brackets or zone.
    """

    ip: str
    peer: str
    port: int = 0
    scheme: str = "http"
    """``http`` or ``https``, as the client spoke it, by the same trust."""
    trusted: bool = False
    """Whether the socket's peer is a trusted proxy."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of an upstream."""

    host: str
    port: int
    weight: int = 1

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """A route, as plugins may see it."""

    name: str
    hosts: tuple[str, ...] = ()
    path: str = ""
    """The pattern that matches, as written."""
    methods: tuple[str, ...] = ()
    """Empty means all."""
    upstreams: tuple[str, ...] = ()
    """Names of the upstreams it may send to; empty when it answers by itself."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom an auth plugin recognised."""

    subject: str
    issuer: str = ""
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace this exchange belongs to (W3C Trace Context)."""

    trace_id: str
    """32 lower-case hexadecimal digits."""
    span_id: str
    sampled: bool = False


IDENTITY: Key[Identity] = Key("identity")
TRACE: Key[Trace] = Key("trace")
SHADOW: Key[list[str]] = Key("gw.shadow")
"""What plugins in ``mode: shadow`` would have done: ``plugin: verdict reason``, for the access log."""
