"""From an exchange to a WebSocket: what is asked and agreed on the way, and what carries it then (behaviour 8.1).

The chain calls this where an exchange may leave HTTP. The filters' header hooks
have run by then, so that nothing is accepted that one of them would refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol as Interface

from gw.failures import BadResponse
from gw.filters import Exchange, Outcome, Reply, Response
from gw.hookspecs import LocalWebSocket
from gw.http.handshake import (
    OWN_FIELDS,
    Compression,
    HandshakeError,
    answer_offers,
    compression_of,
    known_offers,
    protocol_of,
    protocols_of,
)
from gw.tunnel import End, Hook, Terms, Tunnel
from gw.websocket import Handler, Link, WebSocket

__all__ = ["Agreement", "accept", "agreed", "ask", "serve_here", "upgrade"]

_EXTENSIONS: Final = "sec-websocket-extensions"

Report = Callable[[Exchange, Exception], None]


class Client(Interface):
    """The client's side of the exchange, as far as it is needed here."""

    async def start(self, ex: Exchange, chunk: bytes, end: bool) -> None: ...
    async def send(self, chunk: bytes, end: bool) -> None: ...
    def tunnel(self, go_away: Callable[[], None]) -> End: ...
    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None: ...


class Upstream(Interface):
    def tunnel(self) -> End | Handler: ...


def ask(ex: Exchange) -> Reply | None:
    """Return why the request cannot become a WebSocket; if it can, leave only offers in it that are understood here."""
    request = ex.request
    if request.upgrade != "websocket":
        return None  # a client's offer to speak something else, which need not be taken (RFC 9110 section 7.8)
    terms: Terms | None = ex._terms
    if terms is None:
        return Reply(404, reason="gw.no_websocket")
    reply: Reply | None = terms.refusal(ex)
    if reply is None:
        fields = request.headers
        offers = known_offers(fields.get_all(_EXTENSIONS)) if terms.compression else ()
        fields.discard(_EXTENSIONS)
        for offer in offers:
            fields.add(_EXTENSIONS, offer.line.decode("ascii"))
    return reply


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both sides of a handshake settled on."""

    protocol: str
    """The subprotocol; empty for none."""
    compression: Compression | None

    def settle(self, response: Response) -> None:
        """Write it into *response*, in place of whatever stands there in the fields that are the core's."""
        raw = response.headers.raw
        raw[:] = [line for line in raw if line[0] not in OWN_FIELDS]
        if self.protocol:
            raw.append((b"sec-websocket-protocol", self.protocol.encode("ascii")))
        if self.compression is not None:
            raw.append((b"sec-websocket-extensions", self.compression.line))


def agreed(ex: Exchange, response: Response) -> Agreement:
    """Check what an upstream's 101 chose of what the client offers; raises `BadResponse`."""
    try:
        offers = known_offers(ex.request.headers.get_all(_EXTENSIONS))
        return Agreement(
            protocol_of(ex.request, response), compression_of(offers, response.headers.get_all(_EXTENSIONS))
        )
    except HandshakeError as error:
        raise BadResponse(str(error)) from None


async def upgrade(
    ex: Exchange, down: Client, connection: Upstream, agreement: Agreement, hooks: Sequence[Hook], report: Report
) -> None:
    """Answer the client 101, and relay until both sides have ended, or run the handler that is the other side."""
    assert ex.response is not None
    agreement.settle(ex.response)
    await down.start(ex, b"", False)
    far = connection.tunnel()
    if callable(far):
        await _run_handler(ex, down, far, agreement, hooks, report)
    else:
        tunnel = Tunnel(ex, ex._terms, agreement.compression, hooks, report)
        await tunnel.run(down.tunnel(tunnel.go_away), far, down.spawn)
    await down.send(b"", True)


def accept(ex: Exchange, target: LocalWebSocket) -> Agreement:
    """Choose of what the client offers, for a handler, and make the response."""
    request = ex.request
    protocol = next((name for name in protocols_of(request) if name in target.subprotocols), "")
    ex.response = Response(101, has_body=False)
    return Agreement(protocol, answer_offers(known_offers(request.headers.get_all(_EXTENSIONS))))


async def serve_here(
    ex: Exchange, down: Client, target: LocalWebSocket, agreement: Agreement, hooks: Sequence[Hook], report: Report
) -> None:
    """Answer the client 101, and run the handler."""
    assert ex.response is not None
    agreement.settle(ex.response)
    await down.start(ex, b"", False)
    await _run_handler(ex, down, target.handler, agreement, hooks, report)
    ex.outcome = ex.outcome or Outcome.REPLY
    await down.send(b"", True)


async def _run_handler(
    ex: Exchange, down: Client, handler: Handler, agreement: Agreement, hooks: Sequence[Hook], report: Report
) -> None:
    link = Link(WebSocket(ex, agreement.protocol), ex._terms, agreement.compression, hooks)
    await link.run(down.tunnel(link.go_away), handler, down.spawn, report)
