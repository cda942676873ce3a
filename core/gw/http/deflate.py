"""The compression of WebSocket messages, permessage-deflate (RFC 7692): what it does to payloads, and no I/O.

How two sides agree on it is in `gw.http.handshake`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

from gw.limits import INFLATE_STEP

__all__ = ["Deflater", "Inflater"]

_TAIL: Final = b"\x00\x00\xff\xff"
"""What ends each flush, and is left out of a message (RFC 7692 section 7.2.1)."""
_WIDEST: Final = -15
"""The largest window, raw deflate: what was made with a smaller one can be read with it."""


class Inflater:
    """Undoes the compression of what one side sends; *keeps_context* unless that side begins anew with each message."""

    __slots__ = ("_keeps_context", "_zlib")

    def __init__(self, *, keeps_context: bool) -> None:
        self._keeps_context = keeps_context
        self._zlib = zlib.decompressobj(_WIDEST)

    def feed(self, data: bytes, take: Callable[[bytes], bool], *, end: bool) -> bool:
        """Hand what *data* inflates to to *take*, in pieces of bounded size.

        False, and no further piece, as soon as *take* returns false or *data* is no deflate.
        """
        if end:
            data = _TAIL
        try:
            while True:
                piece = self._zlib.decompress(data, INFLATE_STEP)
                if piece and not take(piece):
                    return False
                if self._zlib.eof:  # a final block; the rest of the message begins another stream
                    data = self._zlib.unused_data
                    self._zlib = zlib.decompressobj(_WIDEST)
                else:
                    data = self._zlib.unconsumed_tail
                if not data and len(piece) < INFLATE_STEP:
                    break
        except zlib.error:
            return False
        if end and not self._keeps_context:
            self._zlib = zlib.decompressobj(_WIDEST)
        return True


class Deflater:
    """Compresses whole messages; *bits* is the window's size, 9 to 15."""

    __slots__ = ("_bits", "_keeps_context", "_zlib")

    def __init__(self, *, keeps_context: bool, bits: int = 15) -> None:
        self._keeps_context, self._bits = keeps_context, bits
        self._zlib = self._made()

    def message(self, data: bytes) -> bytes:
        if not self._keeps_context:
            self._zlib = self._made()
        out = self._zlib.compress(data) + self._zlib.flush(zlib.Z_SYNC_FLUSH)
        return out[: -len(_TAIL)] or b"\x00"

    def _made(self) -> zlib._Compress:
        return zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -self._bits)
