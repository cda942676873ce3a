"""How long an exchange may take in all: what the route says, and what the client asked for.

A client says it in ``X-Request-Timeout`` or, if it speaks gRPC, in ``grpc-timeout``. What is left of it is passed on
with each attempt, so that an upstream does not work for an answer that nobody waits for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from gw.filters import Exchange

__all__ = ["Allowance", "Asked", "asked_by"]

_PLAIN: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s)?", re.ASCII)
_GRPC: Final = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_GRPC_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a route allows. *exchange* is seconds, 0 for no limit."""

    exchange: float = 0.0
    heeds: Literal["never", "trusted", "always"] = "never"
    """Whose own timeouts count: nobody's, those of clients among ``trusted_proxies``, or anyone's. They can only shorten."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A client's own timeout, and how it was written."""

    name: str
    seconds: float
    unit: str

    def left(self, seconds: float) -> str:
        """Return what to write when *seconds* are left: never more than that, and in the form that came."""
        seconds = max(seconds, 0.0)
        if self.name == "grpc-timeout":
            return f"{int(seconds * 1000)}m" if seconds < 99_999 else f"{int(seconds)}S"
        return f"{int(seconds * 1000)}ms" if self.unit == "ms" else f"{int(seconds * 1000) / 1000:g}{self.unit}"


def asked_by(ex: Exchange) -> Asked | None:
    """Return the timeout that the client asked for; `None` if it did not, or not legibly."""
    headers = ex.request.headers
    value = headers.get("grpc-timeout")
    if value is not None:
        found = _GRPC.fullmatch(value)
        return None if found is None else Asked("grpc-timeout", int(found[1]) * _GRPC_UNITS[found[2]], found[2])
    found = _PLAIN.fullmatch(headers.get("x-request-timeout", ""))
    if found is None:
        return None
    unit = found[2] or ""
    return Asked("x-request-timeout", float(found[1]) / (1000 if unit == "ms" else 1), unit)
