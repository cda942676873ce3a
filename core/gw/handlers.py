"""Requests that are answered in this process: by a handler of the program's or of a plugin's, or by a fixed reply."""

from __future__ import annotations

from typing import Final

from gw.bodies import BodyRow, collect
from gw.filters import Exchange, Reply, Response
from gw.hookspecs import LocalRoute, LocalWebSocket
from gw.limits import MAX_HELD_BODY, MAX_INTERIM_RESPONSES
from gw.peers import Downstream, Source

__all__ = ["Asking", "own_answer"]

_UPGRADE_REQUIRED: Final = Reply(
    426, headers=(("sec-websocket-version", "13"), ("upgrade", "websocket")), reason="gw.websocket_only"
)


class Asking:
    """The client whose request a handler answers: what `Exchange.read` and `Exchange.send_interim` do."""

    __slots__ = ("_body", "_down", "_ex", "_interims", "_rows", "_source")

    def __init__(self, ex: Exchange, down: Downstream, rows: tuple[BodyRow, ...], source: Source) -> None:
        self._ex, self._down, self._rows, self._source = ex, down, rows, source
        self._body: bytes | None = None if ex.request.has_body else b""
        self._interims = 0

    async def read(self, limit: int | None) -> bytes:
        if self._body is None:
            most = MAX_HELD_BODY if limit is None else min(limit, MAX_HELD_BODY)
            self._body = await collect(self._ex, self._down, self._rows, self._source, most)
        return self._body

    async def send_interim(self, response: Response) -> None:
        if response.status not in range(102, 200):
            raise ValueError(f"{response.status} is not the status of an interim response: those are 102 to 199")
        self._interims += 1
        if self._interims <= MAX_INTERIM_RESPONSES:
            await self._down.send_interim(response)


async def own_answer(ex: Exchange, target: LocalRoute | LocalWebSocket | Reply | None) -> Reply | None:
    """Return the answer of a route without an upstream; `None` where it may become a WebSocket."""
    if isinstance(target, LocalRoute):
        return await target.handler(ex)
    if isinstance(target, LocalWebSocket):
        return None if ex.request.upgrade == "websocket" else _UPGRADE_REQUIRED
    return Reply(404, reason="gw.no_upstream") if target is None else target
