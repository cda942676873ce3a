"""How a connection becomes a WebSocket: the fields of both heads, and what they agree on (RFC 6455 section 4, RFC 8441).

What a filter sees of it is an ordinary GET and its response; what belongs to one
hop only (the key, its answer, the version) is checked and written here, anew for
each hop. Frames are `gw.http.websocket`'s.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import sha1
from typing import Final

from gw.filters import Reply, Request, Response
from gw.http.deflate import Deflater, Inflater

__all__ = [
    "OWN_FIELDS",
    "Compression",
    "HandshakeError",
    "accept_of",
    "answer_offers",
    "compression_of",
    "known_offers",
    "make_key",
    "normalised_origin",
    "protocol_of",
    "protocols_of",
    "refusal_of",
]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_key: Final = re.compile(r"[A-Za-z0-9+/]{22}==").fullmatch
_token: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_bits: Final = re.compile(r"8|9|1[0-5]").fullmatch
_TEXT: Final = (("content-type", "text/plain"),)

OWN_FIELDS: Final = frozenset(
    {
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"content-length",
    }
)
"""What is written for each hop by the core, whatever a filter made of it (behaviour 8.1)."""


class HandshakeError(Exception):
    """What the upstream answered is no acceptance of what it was asked."""


def make_key() -> bytes:
    return b64encode(os.urandom(16))


def accept_of(key: bytes) -> bytes:
    """Return the Sec-WebSocket-Accept that answers *key* (RFC 6455 section 4.2.2)."""
    return b64encode(sha1(key + _GUID, usedforsecurity=False).digest())


def refusal_of(request: Request) -> Reply | None:
    """Check an opening handshake (RFC 6455 section 4.2.1, behaviour 8.1); return why it is refused.

    Over HTTP/2 there is no key (RFC 8441 section 5).
    """
    fields = request.headers
    if request.method != "GET" or request.content_length:
        return _bad("A WebSocket begins with a GET that has no body")
    versions = fields.get_all("sec-websocket-version")
    if versions != ["13"]:
        if len(versions) > 1:
            return _bad("Duplicate Sec-WebSocket-Version header")
        version = (("sec-websocket-version", "13"), *_TEXT)
        return Reply(426, b"Sec-WebSocket-Version must be 13", version, reason="gw.websocket_version")
    if request.version != "2":
        keys = fields.get_all("sec-websocket-key")
        if len(keys) != 1 or not _key(keys[0]):
            return _bad("Sec-WebSocket-Key must be 24 characters of base64")
    if not all(map(_token, protocols_of(request))):
        return _bad("Invalid Sec-WebSocket-Protocol header")
    return None


def _bad(message: str) -> Reply:
    return Reply(400, message.encode(), _TEXT, reason="gw.bad_handshake")


def protocols_of(request: Request) -> list[str]:
    """Return the subprotocols that the client offers, the one it likes best first."""
    return [name.strip() for line in request.headers.get_all("sec-websocket-protocol") for name in line.split(",")]


def protocol_of(request: Request, response: Response) -> str:
    """Return the subprotocol that the upstream chose, empty for none; raises `HandshakeError`."""
    chosen = response.headers.get_all("sec-websocket-protocol")
    if not chosen:
        return ""
    if len(chosen) > 1 or chosen[0] not in protocols_of(request):
        raise HandshakeError("the upstream chose a subprotocol that was not offered")
    return chosen[0]


def normalised_origin(origin: str) -> str:
    """Return *origin* in the one spelling that origins are compared in: lower case, no default port (RFC 6454)."""
    scheme, separator, host = origin.strip().lower().partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme, "")
    return f"{scheme}{separator}{host.removesuffix(port) if port else host}"


# --- permessage-deflate ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compression:
    """Parameters of permessage-deflate, offered or agreed (RFC 7692 section 7.1). Bits of 0: not mentioned."""

    server_no_context: bool = False
    client_no_context: bool = False
    server_bits: int = 0
    client_bits: int = 0
    client_bits_open: bool = False
    """Offered without a value: the server may choose one."""

    @property
    def line(self) -> bytes:
        out = ["permessage-deflate"]
        out += ["server_no_context_takeover"] if self.server_no_context else []
        out += ["client_no_context_takeover"] if self.client_no_context else []
        out += [f"server_max_window_bits={self.server_bits}"] if self.server_bits else []
        out += [f"client_max_window_bits={self.client_bits}"] if self.client_bits else []
        out += ["client_max_window_bits"] if self.client_bits_open else []
        return "; ".join(out).encode("ascii")

    def inflater(self, *, of_client: bool) -> Inflater:
        """Return what reads the messages of that side."""
        return Inflater(keeps_context=not (self.client_no_context if of_client else self.server_no_context))

    def deflater(self, *, as_client: bool) -> Deflater | None:
        """Return what makes messages as that side; `None` where zlib cannot, and they go uncompressed."""
        bits = (self.client_bits if as_client else self.server_bits) or 15
        keeps = not (self.client_no_context if as_client else self.server_no_context)
        return None if bits < 9 else Deflater(keeps_context=keeps, bits=bits)


def known_offers(lines: Collection[str]) -> tuple[Compression, ...]:
    """Return those of the extensions offered that are known here: permessage-deflate, with sound parameters."""
    return tuple(found for line in lines for found in _parsed(line, is_offer=True) if found is not None)


def compression_of(offers: tuple[Compression, ...], lines: Collection[str]) -> Compression | None:
    """Return what the upstream chose of *offers*; raises `HandshakeError`."""
    answers = [found for line in lines for found in _parsed(line, is_offer=False)]
    if not answers:
        return None
    answer = answers[0]
    if len(answers) > 1 or answer is None or not any(_fits(answer, offer) for offer in offers):
        raise HandshakeError("the upstream chose an extension that was not offered")
    return answer


def answer_offers(offers: tuple[Compression, ...]) -> Compression | None:
    """Choose one of a client's *offers*, for a WebSocket that ends here."""
    for offer in offers:
        if offer.server_bits != 8:  # zlib cannot make it
            return Compression(offer.server_no_context, offer.client_no_context, offer.server_bits)
    return None


def _fits(answer: Compression, offer: Compression) -> bool:
    return (
        (answer.server_no_context or not offer.server_no_context)
        and (not offer.server_bits or 0 < answer.server_bits <= offer.server_bits)
        and (not answer.client_bits or offer.client_bits_open or answer.client_bits <= offer.client_bits)
    )


def _parsed(line: str, *, is_offer: bool) -> Iterator[Compression | None]:
    """Yield each extension of a Sec-WebSocket-Extensions line; `None` for those that are not known here."""
    for element in line.split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        if name or parameters:
            yield _compression(parameters, is_offer=is_offer) if name.lower() == "permessage-deflate" else None


def _compression(parameters: list[str], *, is_offer: bool) -> Compression | None:
    found: dict[str, bool | int] = {}
    parsed: bool | int
    for parameter in parameters:
        name, given, value = (part.strip() for part in parameter.partition("="))
        if len(value) >= 2 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if name in {"server_no_context_takeover", "client_no_context_takeover"} and not given:
            key, parsed = name.removesuffix("_takeover"), True
        elif name == "client_max_window_bits" and is_offer and not given:
            key, parsed = "client_bits_open", True
        elif name in {"server_max_window_bits", "client_max_window_bits"} and _bits(value):
            key, parsed = name.replace("max_window_", ""), int(value)
        else:
            return None
        if key in found or (key == "client_bits" and "client_bits_open" in found):
            return None
        found[key] = parsed
    return Compression(**found)  # type: ignore[arg-type]
