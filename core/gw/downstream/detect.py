"""Which protocol a cleartext connection speaks: told by its first bytes (RFC 9113 section 3.3, behaviour 7.1)."""

from __future__ import annotations

import anyio

from gw.downstream.http1 import Http1Settings
from gw.http.h2 import PREFACE
from gw.net.stream import DeadlineExceeded, Stream, StreamLost

__all__ = ["Undecided"]


class Undecided:
    """A connection whose client has not said enough yet. Nothing that it says is consumed."""

    __slots__ = ("_settings", "_stream")

    def __init__(self, stream: Stream, settings: Http1Settings) -> None:
        self._stream, self._settings = stream, settings

    async def is_http2(self) -> bool | None:
        """Wait for what tells; `None` when it never came, and the connection is closed."""
        stream = self._stream
        stream.reading.after(self._settings.idle_timeout)
        said = b""
        try:
            while len(said) < len(PREFACE) and PREFACE.startswith(said):
                if said:
                    stream.reading.after(self._settings.head_timeout)
                said += await stream.receive()
        except (anyio.EndOfStream, StreamLost, DeadlineExceeded):
            if not said:
                stream.close()
                return None
        stream.reading.off()
        stream.unread(said)
        return said.startswith(PREFACE)

    @property
    def is_idle(self) -> bool:
        return True

    def drain(self) -> None:
        """End it: nothing was asked for."""
        self._stream.close()

    def cut(self) -> None:
        self._stream.reset()
