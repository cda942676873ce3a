"""An HTTP/2 stream that carries a WebSocket (RFC 8441): the stream, as the two legs of a tunnel use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from gw.failures import ClientGone
from gw.filters import Response
from gw.http.framing import Fields
from gw.http.h2 import Code
from gw.limits import MIN_QUEUED
from gw.net.deadlines import Deadlines
from gw.net.stream import DeadlineExceeded, StreamLost

if TYPE_CHECKING:
    from gw.downstream.http2 import Http2Stream

__all__ = ["Http2End", "opens_tunnel", "stays"]


def opens_tunnel(response: Response, fields: Fields) -> bool:
    """Make *fields*, which answer an extended CONNECT, say the same as *response*; tell whether they accept.

    HTTP/2 accepts with 200 (RFC 8441 section 5). Any other 2xx would open a tunnel that nobody is at the end of: 502.
    """
    if response.status == 101:
        fields[0] = (b":status", b"200")
        return True
    if 200 <= response.status < 300:
        response.status = 502
        fields[0] = (b":status", b"502")
    return False


def stays() -> None:
    """Stand in for what ends a WebSocket, where there is none."""


class Http2End:
    """The client's end. What it sends is in the stream's window until it was written on."""

    __slots__ = ("_ended", "_stream", "deadlines", "lost")

    def __init__(self, stream: Http2Stream) -> None:
        self._stream = stream
        self.deadlines: Deadlines = stream.connection._stream.deadlines
        self.lost = self._ended = False

    async def receive(self) -> bytes:
        stream = self._stream
        while True:
            if self.lost:
                raise StreamLost("the client reset the stream")
            got = stream.next_chunk()
            if got is not None:
                self._ended = got[1]
                if got[0]:
                    return got[0]
            elif self._ended:
                raise anyio.EndOfStream
            else:
                await stream.receiving().in_time(0)

    def write(self, data: bytes) -> None:
        if not self.lost:
            connection = self._stream.connection
            connection._session.send(self._stream.number, data, False)
            connection._stream.flush_soon()

    @property
    def paused(self) -> bool:
        """Whether enough waits for the client's window."""
        stream = self._stream
        session = stream.connection._session
        if self.lost or session.queued(stream.number) <= MIN_QUEUED:
            return False
        return stream._count() > stream.connection.room

    async def drain(self) -> None:
        try:
            await self._stream._flow()
        except ClientGone:
            self.lost = True
            raise DeadlineExceeded("the client takes what it is sent too slowly") from None
        if self.lost:
            raise StreamLost("the client reset the stream")

    def abort(self) -> None:
        if not self.lost:
            self._stream.reset(Code.CANCEL)
            self.lose()

    def lose(self) -> None:
        """The stream is gone: whoever waits for it finds out."""
        self.lost = True
        for wait in (self._stream._receiving, self._stream._sending):
            if wait is not None:
                wait.wake()
