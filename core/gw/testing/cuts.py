"""Runs a conversation again and again, cut at another wait of the gateway each time, and looks at what is left.

The conversation is the test's; the network it runs on is `gw.testing.memory`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

import anyio

from gw.net.stream import StreamLost
from gw.testing.gateway import InMemory, Script, in_memory

__all__ = ["cut_everywhere"]


async def cut_everywhere(
    play: Callable[[InMemory], Awaitable[object]],
    upstream: Callable[[], Script],
    *,
    side: Literal["client", "upstream"] = "client",
    config: Mapping[str, Any] | None = None,
    engine: Literal["auto", "pure", "native"] = "auto",
) -> int:
    """Raise `AssertionError` if the gateway keeps anything of *play* when it is cut at any of its waits.

    *play* is a conversation with the gateway, and *upstream* makes the script that it runs against. It is run once
    whole, and then once for each wait of the gateway on a connection or for one, with all connections of *side* cut
    at that wait. Where *play* notices, by `StreamLost`, it is over. Returns how many waits there were.
    """
    waits = await _played(play, upstream(), side, None, config, engine)
    for number in range(1, waits + 1):
        await _played(play, upstream(), side, number, config, engine)
    return waits


async def _played(
    play: Callable[[InMemory], Awaitable[object]],
    upstream: Script,
    side: str,
    cut_at: int | None,
    config: Mapping[str, Any] | None,
    engine: Literal["auto", "pure", "native"],
) -> int:
    """Run *play* once; return the waits that there were until it was over."""
    count = 0
    async with in_memory(config, upstream, engine=engine) as gateway:
        network = gateway.network
        await network.settle()
        before = len(anyio.get_running_tasks())

        def wait() -> None:
            nonlocal count
            count += 1
            if count == cut_at:
                for stream in network.clients if side == "client" else network.peers:
                    stream.abort()

        network.on_wait = wait
        with suppress(*(() if cut_at is None else (StreamLost,))):
            await play(gateway)
        waits = count
        network.on_wait = None
        for stream in network.clients:
            stream.abort()
        left = await gateway.leftovers()
        more = len(anyio.get_running_tasks()) - before
        if more:
            left.append(f"{more} tasks")
        assert not left, f"left when the {side} was cut at wait {cut_at} of {waits}: {', '.join(left)}"
    return waits
