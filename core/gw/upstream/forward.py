"""How a route's requests are written to its upstream: the header rules of behaviour 11.1, compiled.

Hop-by-hop fields go no further. What says where a request came from is written
by us; what the client said about it counts only if the client is a trusted proxy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gw.filters import Exchange, Request
from gw.http.fields import forwarded_element
from gw.http.write import HOP_BY_HOP

__all__ = ["Forwarding"]

_ALWAYS: Final = HOP_BY_HOP | {b"host", b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"}
_SENDS_LENGTH: Final = frozenset({"POST", "PUT", "PATCH"})


@dataclass(frozen=True, slots=True)
class Forwarding:
    """The rules of one route. *via* and *request_id* are the field's value and name; empty for none."""

    set_x_forwarded_for: bool = True
    set_x_forwarded_proto: bool = True
    set_x_forwarded_host: bool = True
    set_forwarded: bool = False
    rewrite_host: bool = True
    via: bytes = b"1.1 gw"
    request_id: bytes = b"x-request-id"
    forward_trailers: bool = True
    strip: Callable[[Exchange], str] | None = None
    """What remains of the path when ``strip_prefix`` is on."""

    def head(self, ex: Exchange, authority: bytes) -> list[bytes]:
        """Return the pieces of the request's head toward *authority*."""
        request, client = ex.request, ex.client
        path = request.path
        if self.strip is not None and path is ex.matched_path:
            path = self.strip(ex)
        if request.query is not None:
            path = f"{path}?{request.query}"
        if self.rewrite_host and request.host is ex.asked_host:
            host = authority
        else:  # kept, or set by a filter
            host = request.host.encode("ascii") or authority
        out = [f"{request.method} {path} HTTP/1.1\r\nhost: ".encode("ascii"), host, b"\r\n"]
        own_id = self.request_id
        te = False
        for name, value in request.headers.raw:
            if name in _ALWAYS:
                if name == b"te" and b"trailers" in value.lower():
                    te = self.forward_trailers
            elif name != own_id:
                out += (name, b": ", value, b"\r\n")
        if client.trusted:
            self._add_origin_behind_proxy(out, ex)
        else:
            if self.set_x_forwarded_for:
                out += (b"x-forwarded-for: ", client.peer.encode("ascii"), b"\r\n")
            if self.set_x_forwarded_proto:
                out.append(
                    b"x-forwarded-proto: https\r\n" if client.scheme == "https" else b"x-forwarded-proto: http\r\n"
                )
            if self.set_x_forwarded_host and ex.asked_host:
                out += (b"x-forwarded-host: ", ex.asked_host.encode("ascii"), b"\r\n")
            if self.set_forwarded:
                out += (b"forwarded: ", _forwarded(ex), b"\r\n")
        if own_id:
            out += (own_id, b": ", ex.request_id.encode("ascii"), b"\r\n")
        if self.via:
            out += (b"via: ", self.via, b"\r\n")
        if te:
            out.append(b"te: trailers\r\nconnection: te\r\n")
        if request.has_body:
            if request.content_length is None:
                out.append(b"transfer-encoding: chunked\r\n")
        elif request.content_length is None and request.method in _SENDS_LENGTH:
            out.append(b"content-length: 0\r\n")
        out.append(b"\r\n")
        return out

    def _add_origin_behind_proxy(self, out: list[bytes], ex: Exchange) -> None:
        """Continue what a trusted proxy said: its fields are kept, ours is added at the end."""
        request, client = ex.request, ex.client
        if self.set_x_forwarded_for:
            hops = [*_values(request, b"x-forwarded-for"), client.peer.encode("ascii")]
            out += (b"x-forwarded-for: ", b", ".join(hops), b"\r\n")
        if self.set_x_forwarded_proto:
            out += (b"x-forwarded-proto: ", client.scheme.encode("ascii"), b"\r\n")
        if self.set_x_forwarded_host:
            host = _values(request, b"x-forwarded-host")[:1] or [ex.asked_host.encode("ascii")]
            if host[0]:
                out += (b"x-forwarded-host: ", host[0], b"\r\n")
        if self.set_forwarded:
            out += (b"forwarded: ", b", ".join([*_values(request, b"forwarded"), _forwarded(ex)]), b"\r\n")


def _forwarded(ex: Exchange) -> bytes:
    return forwarded_element(ex.client.peer, ex.client.scheme, ex.asked_host)


def _values(request: Request, name: bytes) -> list[bytes]:
    return [v for n, v in request.headers.raw if n == name]
