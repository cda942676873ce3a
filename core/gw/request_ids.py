"""Identifiers of requests: kept where they can be trusted, made where not."""

from __future__ import annotations

import os

from gw.filters import Exchange
from gw.limits import MAX_REQUEST_ID_LENGTH

__all__ = ["RequestIds"]


class RequestIds:
    """Makes request identifiers: 128 random bits, as 32 hexadecimal digits."""

    __slots__ = ("_at", "_header", "_random", "always", "trusted")

    def __init__(self, header: str, trust: str) -> None:
        self._header = header
        self.always = trust == "always"
        self.trusted = trust != "never"
        self._random, self._at = b"", 0

    def make(self) -> str:
        at = self._at
        if at == len(self._random):
            self._random, at = os.urandom(4096), 0
        self._at = at + 16
        return self._random[at : at + 16].hex()

    def choose(self, ex: Exchange) -> str:
        """Return a trusted client's own identifier, unless none is to be kept; else a new one."""
        theirs = ex.request.headers.get(self._header) if self.always or self.trusted else None
        if theirs and len(theirs) <= MAX_REQUEST_ID_LENGTH and theirs.isascii() and theirs.isprintable():
            return theirs
        return self.make()
