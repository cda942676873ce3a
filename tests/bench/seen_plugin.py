"""A filter that looks at each WebSocket message, so that messages are put together for it."""

from __future__ import annotations

from collections.abc import Sequence

from gw import Exchange, Filter, Message, hookimpl

GW_API = 1


class Seen(Filter):
    name = "seen"

    async def on_message(self, ex: Exchange, message: Message, from_client: bool) -> Message:
        return message


@hookimpl
def gw_filters(route: object, ctx: object) -> Sequence[Filter]:
    return (Seen(),)
