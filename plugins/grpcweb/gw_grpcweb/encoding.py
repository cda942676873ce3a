"""gRPC-Web on the wire: content types, base64 in pieces, and the frame that trailers travel in. No exchange is known here.

Source: PROTOCOL-WEB.md of the gRPC project.
"""

from __future__ import annotations

from binascii import Error, a2b_base64, b2a_base64
from collections.abc import Iterable
from typing import Final

__all__ = ["BadText", "TextDecoder", "as_grpc", "as_web", "encode_text", "is_grpc", "trailer_frame", "web_kind"]

_WEB: Final = "application/grpc-web"
_WEB_TEXT: Final = "application/grpc-web-text"
_GRPC: Final = "application/grpc"
_TRAILERS: Final = b"\x80"
_GROUP: Final = 4
"""Characters of base64 that stand for whole bytes."""


class BadText(ValueError):
    """What came is not base64."""


def web_kind(content_type: str) -> str | None:
    """Return ``binary`` or ``text`` for a content type of gRPC-Web, `None` for any other."""
    kind = content_type.lower()
    for prefix, found in ((_WEB_TEXT, "text"), (_WEB, "binary")):
        if kind.startswith(prefix) and kind[len(prefix) : len(prefix) + 1] in {"", "+", ";", " "}:
            return found
    return None


def is_grpc(content_type: str) -> bool:
    kind = content_type.lower()
    return kind.startswith(_GRPC) and kind[len(_GRPC) : len(_GRPC) + 1] in {"", "+", ";", " "}


def as_grpc(content_type: str) -> str:
    """Return the gRPC content type for one of gRPC-Web, its suffix and parameters kept."""
    return _GRPC + content_type[len(_WEB_TEXT if web_kind(content_type) == "text" else _WEB) :]


def as_web(content_type: str, kind: str) -> str:
    """Return the gRPC-Web content type of *kind* for one of gRPC."""
    return (_WEB_TEXT if kind == "text" else _WEB) + content_type[len(_GRPC) :]


def trailer_frame(trailers: Iterable[tuple[str, str]]) -> bytes:
    """Return the frame that stands for a trailer section: bit 7 set, the length in four bytes, then the lines."""
    block = "".join(f"{name}:{value}\r\n" for name, value in trailers).encode("latin-1")
    return _TRAILERS + len(block).to_bytes(4) + block


def encode_text(data: bytes) -> bytes:
    """Return *data* as base64, padded: so no byte of a message waits for the next one."""
    return b2a_base64(data, newline=False)


class TextDecoder:
    """Decodes a stream of base64 that is cut anywhere and may be padded anywhere between groups of four."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes, *, end: bool) -> bytes:
        """Return what can be decoded by now; raises `BadText`, also for a group that is incomplete at the *end*."""
        data = self._rest + data
        whole = len(data) - len(data) % _GROUP
        data, self._rest = data[:whole], data[whole:]
        if end and self._rest:
            raise BadText("the text ends within a group of four")
        out, at = [], 0
        while at < whole:
            padding = data.find(b"=", at)
            stop = whole if padding < 0 else padding - padding % _GROUP + _GROUP
            try:
                out.append(a2b_base64(data[at:stop], strict_mode=True))
            except Error as error:
                raise BadText(str(error)) from None
            at = stop
        return b"".join(out)
