"""The native engine: llhttp, the parser of Node.js, by way of `httptools`.

Only the head is shown to it, whole, to a parser made for that head: what an
earlier message left behind cannot matter, and none of llhttp's own ideas about
bodies, upgrades and keep-alive come into play. Its lenient flags stay off.
"""

from __future__ import annotations

import httptools

from gw.http.framing import Fields, Refusal

__all__ = ["split_request", "split_response"]


class _Lines:
    """Where a parser puts the field lines."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: Fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves blanks after a value; control characters it has refused, so strip() finds nothing else.
        self.fields.append((name.lower(), value.strip()))


def split_request(head: bytes) -> Fields:
    lines = _Lines()
    try:
        httptools.HttpRequestParser(lines).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # an upgrade or CONNECT: the head is over, and that is all we ask of it
    except httptools.HttpParserError as error:
        raise Refusal(f"Malformed request: {error}") from None
    return _counted(lines.fields, head)


def split_response(head: bytes) -> Fields:
    lines = _Lines()
    try:
        httptools.HttpResponseParser(lines).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise Refusal(f"Malformed response: {error}") from None
    return _counted(lines.fields, head)


def _counted(fields: Fields, head: bytes) -> Fields:
    # One field a line, beside the start line and the empty one: whatever else a lenient build of llhttp made of it.
    if len(fields) + 2 != head.count(b"\n"):
        raise Refusal("Malformed header line")
    return fields
