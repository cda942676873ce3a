"""gw.testing.talk: what the author of a filter for messages sees."""

from __future__ import annotations

from gw.filters import Close, Filter, Message, Outcome, Reply
from gw.testing import talk


class Shout(Filter):
    name = "shout"

    async def on_message(self, ex, message, from_client):
        if message.data == "bad":
            return Close(1008, "language")
        if message.data == "secret":
            return None
        return Message(message.data.upper())


async def test_lines_go_through_the_filters_to_the_other_end():
    said = await talk(Shout(), [("client", "hello"), ("upstream", "world"), ("client", "secret"), ("client", b"x")])
    assert (said.to_upstream, said.to_client) == (["HELLO", b"X"], ["WORLD"])
    assert (said.status, said.outcome, said.reason) == (101, Outcome.UPSTREAM, "")
    assert (said.client_closed, said.upstream_closed) == (Close(1000), Close(1000))


async def test_a_filter_that_ends_it_is_seen_by_both():
    said = await talk(Shout(), [("client", "bad"), ("client", "late")])
    assert (said.to_upstream, said.reason) == ([], "gw.websocket_filter")
    assert said.client_closed == said.upstream_closed == Close(1008, "language")


async def test_one_that_refuses_the_request_is_no_websocket():
    class Refuses(Filter):
        async def on_request_headers(self, ex):
            return Reply(403, reason="refuses.all")

    said = await talk(Refuses(), [("client", "hello")])
    assert (said.status, said.outcome, said.to_upstream) == (403, Outcome.REPLY, [])


async def test_one_that_raises_is_1011():
    class Raises(Filter):
        async def on_message(self, ex, message, from_client):
            raise RuntimeError("oops")

    said = await talk(Raises(), [("upstream", "hello")])
    assert said.reason == "gw.error.RuntimeError"
    assert said.client_closed == Close(1011, "Internal error")
