"""The bounds of the plugin, each with its precedent."""

from __future__ import annotations

from typing import Final

__all__ = ["DEFAULT_ACTIVE", "MAX_DELAY"]

MAX_DELAY: Final = 600_000
"""Milliseconds that a request may be made to wait. Our own echo upstream's `/slow`: 600 s; Envoy has no bound."""

DEFAULT_ACTIVE: Final = 1000
"""`fault.max_active`: requests that wait at once. Envoy `max_active_faults`: no bound unless one is set."""
