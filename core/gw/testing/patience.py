"""How long a test waits for what must happen: never the thing it measures, only the end of one that hangs."""

from __future__ import annotations

from typing import Final

__all__ = ["PATIENCE"]

PATIENCE: Final = 60.0
"""Seconds of real time until a test that hangs fails: more than any takes on a machine of a tenth of the speed."""
