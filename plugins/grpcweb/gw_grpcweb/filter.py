"""The filter: gRPC-Web from the client, gRPC to the upstream, and back."""

from __future__ import annotations

from typing import Final

from gw import Attempt, Exchange, Filter, Key, Reply
from gw_grpcweb.encoding import BadText, TextDecoder, as_grpc, as_web, encode_text, is_grpc, trailer_frame, web_kind

__all__ = ["GrpcWeb"]

_TYPE: Final = "content-type"
_NOT_BASE64: Final = Reply(
    400, b"The body is not base64", (("content-type", "text/plain"),), reason="grpcweb.not_base64", close=True
)


class _Call:
    """One call that came as gRPC-Web."""

    __slots__ = ("answers", "decoder")

    def __init__(self, asked: str, answers: str) -> None:
        self.decoder = TextDecoder() if asked == "text" else None
        self.answers = answers
        """How the client wants its response: ``binary`` or ``text``."""


CALL: Key[_Call] = Key("grpcweb.call")


class GrpcWeb(Filter):
    """Translates calls whose content type is one of gRPC-Web; everything else passes untouched."""

    name = "grpcweb"

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        headers = ex.request.headers
        content_type = headers.get(_TYPE, "")
        kind = web_kind(content_type)
        if kind is None:
            ex.skip_body(self)
            return None
        accepts = {web_kind(each.strip()) for line in headers.get_all("accept") for each in line.split(",")}
        ex[CALL] = _Call(kind, "text" if "text" in accepts else "binary" if "binary" in accepts else kind)
        headers.set(_TYPE, as_grpc(content_type))
        headers.set("te", "trailers")
        if kind == "binary":
            ex.skip_body(self)
        return None

    async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes | Reply:
        call = ex.get(CALL, None)
        if call is None or call.decoder is None:
            return chunk
        try:
            return call.decoder.feed(chunk, end=end)
        except BadText:
            return _NOT_BASE64

    async def on_upstream_response(self, ex: Exchange, attempt: Attempt) -> None:
        if ex.get(CALL, None) is None or ex.response is None or not is_grpc(ex.response.headers.get(_TYPE, "")):
            ex.skip_body(self)

    async def on_upstream_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
        call, response = ex[CALL], ex.response
        if end and response is not None and response.trailers is not None:
            chunk += trailer_frame(response.trailers)
            response.trailers = None
        return encode_text(chunk) if call.answers == "text" else chunk

    def on_response_headers(self, ex: Exchange) -> None:
        call, response = ex.get(CALL, None), ex.response
        if call is not None and response is not None and is_grpc(content_type := response.headers.get(_TYPE, "")):
            response.headers.set(_TYPE, as_web(content_type, call.answers))
            response.headers.discard("trailer")
