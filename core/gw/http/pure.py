"""The pure-Python engine: h11, used as a parser of heads only.

h11 tolerates what we do not (a bare LF, folded lines, control characters), so
the head must first pass the grammar of `gw.http.reading`. What h11 refuses
beyond that is refused.
"""

from __future__ import annotations

from typing import Final

import h11

from gw.http.framing import Fields, Refusal
from gw.http.reading import split_section

__all__ = ["split_request", "split_response"]

_ASKED: Final = h11.Request(method="GET", target="/", headers=[("Host", "upstream")])


def split_request(head: bytes) -> Fields:
    return _split(h11.Connection(h11.SERVER, max_incomplete_event_size=len(head)), head)


def split_response(head: bytes) -> Fields:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(head))
    connection.send(_ASKED)
    return _split(connection, head)


def _split(connection: h11.Connection, head: bytes) -> Fields:
    split_section(head[head.index(b"\n") + 1 :])
    connection.receive_data(head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise Refusal(f"Malformed head: {error}") from None
    assert isinstance(event, h11.Request | h11.Response | h11.InformationalResponse)
    return list(event.headers)
