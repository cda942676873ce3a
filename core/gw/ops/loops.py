"""Which event loop a process runs, and running it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

import anyio

__all__ = ["LoopMissing", "loop_name", "run_on"]


class LoopMissing(Exception):
    """The event loop that was asked for is not installed."""


def loop_name(setting: str) -> str:
    """Return which event loop a setting means on this machine. Raises `LoopMissing`."""
    if setting == "auto":
        return "uvloop" if find_spec("uvloop") is not None else "asyncio"
    if find_spec(setting) is None:
        raise LoopMissing(f"{setting} is not installed; run pip install {setting}, or set loop to auto")
    return setting


def run_on(setting: str, run: Callable[..., Awaitable[int]], *arguments: Any) -> int:
    """Run *run* on the event loop that *setting* means, and return what it returns. Raises `LoopMissing`."""
    name = loop_name(setting)
    return anyio.run(
        run,
        *arguments,
        backend="trio" if name == "trio" else "asyncio",
        backend_options={"use_uvloop": True} if name == "uvloop" else {},
    )
