"""One call for all that want to know the same: whoever comes while it is in the air waits for it to land."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

__all__ = ["Flights"]

T = TypeVar("T")


class _Flight(Generic[T]):
    __slots__ = ("landed", "result")

    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.result: tuple[T] | None = None
        """`None` after it landed: whoever made it went away."""


class Flights(Generic[T]):
    """At most *most* calls at once, and never two about one thing."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._up: dict[bytes, _Flight[T]] = {}

    async def share(self, key: bytes, call: Callable[[], Awaitable[T]]) -> T | None:
        """Return what *call* returns, ours or that of whoever was first; `None` where there are too many.

        Where the first goes away before there is an answer, the next one in line calls.
        """
        while (flight := self._up.get(key)) is not None:
            await flight.landed.wait()
            if flight.result is not None:
                return flight.result[0]
        if len(self._up) >= self._most:
            return None
        flight = self._up[key] = _Flight()
        try:
            result = await call()
            flight.result = (result,)
        finally:
            del self._up[key]
            flight.landed.set()
        return result

    def __len__(self) -> int:
        return len(self._up)
