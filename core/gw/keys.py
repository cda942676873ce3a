"""What plugins and the core share about an exchange: typed keys, and the plain values behind them.

A plugin reads what another one found out through a key here, and so need not know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from gw.filters import Key

__all__ = [
    "IDENTITY",
    "SHADOW",
    "TRACE",
    "Certificate",
    "Client",
    "Endpoint",
    "Identity",
    "RetryBudget",
    "RouteInfo",
    "Trace",
]

AttributeValue: TypeAlias = str | bool | int | float
"""What an attribute of a span may be."""

_NO_ATTRIBUTES: Final[Mapping[str, AttributeValue]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a verified certificate says about who holds it."""

    subject: str
    """The distinguished name, as RFC 4514 writes it: ``CN=api,O=Example``."""
    names: tuple[str, ...] = ()
    """Alternative names with their kinds: ``DNS:api.example``, ``URI:spiffe://example/api``."""
    serial: str = ""
    """Serial number, in hexadecimal digits."""
    sha256: str = ""
    """SHA-256 of the whole certificate in DER, in lower-case hexadecimal digits, as ``openssl x509 -fingerprint -sha256`` has it."""


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
    certificate: Certificate | None = None
    """What the socket's peer showed in the TLS handshake, if it was asked to."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of an upstream."""

    host: str
    port: int
    weight: int = 1
    priority: int = 0
    """Its tier: those of a higher number stand in while too few of the lower ones are healthy."""

    address: str = ""
    """Where *host* is a name: the address of it that this one stands for, once it is resolved."""

    def __str__(self) -> str:
        where = self.address or self.host
        return f"[{where}]:{self.port}" if ":" in where else f"{where}:{self.port}"


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
class RetryBudget:
    """How many of an upstream's requests may be retries at once (behaviour 15.5).

    A retry is allowed while fewer are under way than *min_concurrency* or *percent* of the requests that are none,
    whichever is more. One that is not allowed is answered 503, or with the upstream's answer that was to be retried.
    """

    percent: float = 20.0
    min_concurrency: int = 3
    dry_run: bool = False
    """Log what would be refused, and allow it."""
    headers: tuple[tuple[str, str], ...] = ()
    """Further fields of the 503."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom an auth plugin recognised."""

    subject: str
    issuer: str = ""
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""
    """How it was recognised: ``jwt``, ``introspection``, ``api_key``, ``basic``, ``certificate``, ``forward``."""


class Trace:
    """The span that stands for this exchange in a trace (W3C Trace Context), or one below it.

    Whoever traces leaves one under `TRACE`, and overrides the methods; others use them to say what they spent time on.
    """

    __slots__ = ("sampled", "span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: str, *, sampled: bool = False) -> None:
        self.trace_id = trace_id
        """32 lower-case hexadecimal digits."""
        self.span_id = span_id
        """16 of them."""
        self.sampled = sampled
        """Whether it is recorded, as far as is known now."""

    def child(self, name: str, attributes: Mapping[str, AttributeValue] = _NO_ATTRIBUTES) -> Trace:
        """Begin a span below this one, such as for a call to an identity provider. Whoever begins it calls `end`."""
        return self

    def set(self, key: str, value: AttributeValue) -> None:
        """Give the span an attribute."""

    def event(self, name: str, attributes: Mapping[str, AttributeValue] = _NO_ATTRIBUTES) -> None:
        """Say that something happened now."""

    def end(self, error: str = "") -> None:
        """End the span, with *error* as its ``error.type`` if there was one. Only the first call counts."""

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return the fields that carry the trace on, for a call made under this span."""
        return ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.trace_id} {self.span_id}{' sampled' if self.sampled else ''}>"


IDENTITY: Key[Identity] = Key("identity")
TRACE: Key[Trace] = Key("trace")
SHADOW: Key[list[str]] = Key("gw.shadow")
"""What plugins in ``mode: shadow`` would have done: ``plugin: verdict reason``, for the access log."""
