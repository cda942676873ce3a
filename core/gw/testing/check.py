"""Checks that every filter should pass, whatever it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio

from gw.filters import Exchange, Filter
from gw.testing.drive import Played, drive

__all__ = ["check_filter"]


async def check_filter(
    make: Callable[[], Filter],
    *,
    body: bytes = b"0123456789",
    upstream: bytes = b"abcdefghij",
    headers: Mapping[str, str] | None = None,
) -> None:
    """Raise `AssertionError`, with the reason, unless the filters that *make* makes keep three promises.

    * What a filter sends does not depend on where the chunks were cut.
    * Cancelled at any await, it completes exactly once and leaves nothing open.
    * Exchanges that run at once do not see each other's state.
    """
    whole = await drive(make(), method="POST", body=body, upstream=upstream, headers=headers)
    for cut in range(1, 4):
        there = [body[i : i + cut] for i in range(0, len(body), cut)]
        back = [upstream[i : i + cut] for i in range(0, len(upstream), cut)]
        played = await drive(make(), method="POST", body=there, upstream=back, headers=headers)
        assert _seen(played) == _seen(whole), f"depends on chunking (cut={cut}): {_seen(played)} != {_seen(whole)}"
    for n in range(1, whole.awaits + 1):
        f = make()
        calls: list[Exchange] = []
        f.__class__ = _counting(type(f), calls)
        played = await drive(f, method="POST", body=body, upstream=upstream, headers=headers, stop_at=n)
        last = played.log[-1]
        assert len(calls) == 1, f"on_complete ran {len(calls)} times when cancelled at await {n} ({last})"
        opened = sum(line.startswith("up.start") for line in played.log)
        assert played.log.count("up.finish") == opened, f"upstream left open when cancelled at await {n} ({last})"
    shared = make()
    results: list[Played] = []

    async def one() -> None:
        results.append(await drive(shared, method="POST", body=body, upstream=upstream, headers=headers))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(one)
    for played in results:
        assert _seen(played) == _seen(whole), "exchanges running at once see each other's state"


def _seen(played: Played) -> tuple[int, bytes, bytes]:
    return played.status, played.body, played.upstream_body


def _counting(cls: type[Filter], calls: list[Exchange]) -> type[Filter]:
    def on_complete(self: Filter, ex: Exchange) -> None:
        calls.append(ex)
        cls.on_complete(self, ex)

    return type("Counted", (cls,), {"on_complete": on_complete})
