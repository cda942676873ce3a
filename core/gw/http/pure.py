"""The pure-Python engine: the grammar of `gw.http.readers`, with h11 as the second reader of every head.

h11 alone would not do: it tolerates what we refuse (a bare LF, folded lines,
control characters), and mends what must not be mended (of two equal
Content-Length lines it returns one). So the lines come from our grammar, and
h11 has to read the same ones: what it refuses, or reads differently, is refused.
"""

from __future__ import annotations

from typing import Final

import h11

from gw.http.framing import Fields, Refusal
from gw.http.readers import split_section

__all__ = ["split_request", "split_response"]

_ASKED: Final = h11.Request(method="GET", target="/", headers=[("Host", "upstream")])
"""h11 reads a response only to a request that it knows of. What it makes of the body does not matter here."""


def split_request(head: bytes) -> Fields:
    return _split(h11.Connection(h11.SERVER, max_incomplete_event_size=len(head)), head)


def split_response(head: bytes) -> Fields:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(head))
    connection.send(_ASKED)
    return _split(connection, head)


def _split(connection: h11.Connection, head: bytes) -> Fields:
    fields = split_section(head[head.index(b"\n") + 1 :])
    connection.receive_data(head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise Refusal(f"Malformed head: {error}") from None
    assert isinstance(event, h11.Request | h11.Response | h11.InformationalResponse)
    if [name for name, _ in event.headers] != [name for name, _ in fields]:
        raise Refusal("Malformed head: it has more than one reading")
    return fields
