"""An HTTP/2 stream to an upstream that carries a WebSocket (RFC 8441): the stream, as the two legs of a tunnel use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from gw.failures import Disconnected, Failure, SendStalled
from gw.net.deadlines import Deadlines
from gw.net.stream import DeadlineExceeded, StreamLost

if TYPE_CHECKING:
    from gw.upstream.http2_stream import UpstreamStream

__all__ = ["Http2End"]


class Http2End:
    """The upstream's end. What it sends is in the stream's window until it was written on."""

    __slots__ = ("_ended", "_stream", "deadlines")

    def __init__(self, stream: UpstreamStream, deadlines: Deadlines) -> None:
        self._stream, self.deadlines = stream, deadlines
        self._ended = False

    async def receive(self) -> bytes:
        stream = self._stream
        while True:
            try:
                got = stream.take()
            except Failure as failure:
                raise StreamLost(str(failure)) from None
            if got is not None:
                self._ended = got[1]
                if got[0]:
                    return got[0]
            elif self._ended:
                raise anyio.EndOfStream
            else:
                await stream.something()

    def write(self, data: bytes) -> None:
        self._stream.write(data)

    @property
    def paused(self) -> bool:
        """Whether enough waits for the upstream's window."""
        return self._stream.is_clogged

    async def drain(self) -> None:
        try:
            await self._stream.flow()
        except SendStalled as stalled:
            raise DeadlineExceeded(str(stalled)) from None
        except Disconnected as gone:
            raise StreamLost(str(gone)) from None

    def abort(self) -> None:
        self._stream.abort()
