"""How a route's requests are written to its upstream: the header rules of behaviour 11.1, compiled.

Hop-by-hop fields go no further. What says where a request came from is written
by us; what the client said about it counts only if the client is a trusted proxy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gw.filters import Exchange, Request
from gw.http.fields import forwarded_element
from gw.http.framing import Fields
from gw.http.write import HOP_BY_HOP
from gw.keys import Certificate

__all__ = ["Forwarding"]

_ALWAYS: Final = HOP_BY_HOP | {b"host", b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"}
_OF_HANDSHAKES: Final = frozenset({b"sec-websocket-key", b"sec-websocket-version"})
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
    client_subject: bytes = b""
    client_names: bytes = b""
    """Fields that tell of the client's certificate; empty for none."""
    forward_trailers: bool = True
    strip: Callable[[Exchange], str] | None = None
    """What remains of the path when ``strip_prefix`` is on."""
    dropped: frozenset[bytes] = field(init=False)
    """Fields of the client's that are not passed on: hop-by-hop, or ours to say."""
    dropped_for_websocket: frozenset[bytes] = field(init=False)

    def __post_init__(self) -> None:
        ours = {self.request_id, self.client_subject, self.client_names}
        object.__setattr__(self, "dropped", _ALWAYS | ours)
        object.__setattr__(self, "dropped_for_websocket", self.dropped | _OF_HANDSHAKES)

    def head(self, ex: Exchange, authority: bytes, key: bytes = b"") -> list[bytes]:
        """Return the pieces of the request's head toward *authority*; with a *key*, it asks for a WebSocket."""
        request, client = ex.request, ex.client
        path, host = self._target(ex, authority)
        out = [f"{request.method} {path} HTTP/1.1\r\nhost: ".encode("ascii"), host, b"\r\n"]
        own_id, apart = self.request_id, self.dropped_for_websocket if key else self.dropped
        te = False
        for name, value in request.headers.raw:
            if name in apart:
                if name == b"te" and b"trailers" in value.lower():
                    te = self.forward_trailers
            else:
                out += (name, b": ", value, b"\r\n")
        if client.certificate is not None:
            for name, value in self._certificate(client.certificate):
                out += (name, b": ", value, b"\r\n")
        if client.trusted:
            for name, value in self._origin_behind_proxy(ex):
                out += (name, b": ", value, b"\r\n")
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
        if key:
            out.append(b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n")
            out += (b"sec-websocket-key: ", key, b"\r\n")
        elif te:
            out.append(b"te: trailers\r\nconnection: te\r\n")
        if request.has_body:
            if request.content_length is None:
                out.append(b"transfer-encoding: chunked\r\n")
        elif request.content_length is None and request.method in _SENDS_LENGTH:
            out.append(b"content-length: 0\r\n")
        out.append(b"\r\n")
        return out

    def fields(self, ex: Exchange, authority: bytes, scheme: bytes) -> Fields:
        """Return the request's head toward *authority* as HTTP/2 has it (RFC 9113 section 8.3.1, RFC 8441 section 5)."""
        request, client = ex.request, ex.client
        path, host = self._target(ex, authority)
        tunnel = request.upgrade == "websocket"
        out: Fields = [
            (b":method", b"CONNECT" if tunnel else request.method.encode("ascii")),
            (b":scheme", scheme),
            (b":authority", host),
            (b":path", path.encode("ascii")),
        ]
        dropped = self.dropped
        if tunnel:
            out += ((b":protocol", b"websocket"), (b"sec-websocket-version", b"13"))
            dropped = self.dropped_for_websocket
        for line in request.headers.raw:
            name = line[0]
            if name not in dropped:
                out.append(line)
            elif name == b"te" and self.forward_trailers and b"trailers" in line[1].lower():
                out.append((b"te", b"trailers"))
        if client.certificate is not None:
            out += self._certificate(client.certificate)
        out += self._origin_behind_proxy(ex) if client.trusted else self._origin(ex)
        if self.request_id:
            out.append((self.request_id, ex.request_id.encode("ascii")))
        if self.via:
            out.append((b"via", self.via))
        if not request.has_body and request.content_length is None and request.method in _SENDS_LENGTH:
            out.append((b"content-length", b"0"))
        return out

    def _target(self, ex: Exchange, authority: bytes) -> tuple[str, bytes]:
        """Return path with query, and host, as the upstream is to see them."""
        request = ex.request
        path = request.path
        if self.strip is not None and path is ex.matched_path:
            path = self.strip(ex)
        if request.query is not None:
            path = f"{path}?{request.query}"
        if self.rewrite_host and request.host is ex.asked_host:
            return path, authority
        return path, request.host.encode("ascii") or authority  # kept, or set by a filter

    def _origin(self, ex: Exchange) -> Fields:
        """Return the fields that say where the request came from, as `head` writes them."""
        client = ex.client
        out: Fields = []
        if self.set_x_forwarded_for:
            out.append((b"x-forwarded-for", client.peer.encode("ascii")))
        if self.set_x_forwarded_proto:
            out.append((b"x-forwarded-proto", client.scheme.encode("ascii")))
        if self.set_x_forwarded_host and ex.asked_host:
            out.append((b"x-forwarded-host", ex.asked_host.encode("ascii")))
        if self.set_forwarded:
            out.append((b"forwarded", _forwarded(ex)))
        return out

    def _certificate(self, shown: Certificate) -> Fields:
        out: Fields = []
        if self.client_subject:
            out.append((self.client_subject, shown.subject.encode()))
        if self.client_names and shown.names:
            out.append((self.client_names, ", ".join(shown.names).encode()))
        return out

    def _origin_behind_proxy(self, ex: Exchange) -> Fields:
        """Continue what a trusted proxy said: its fields are kept, ours is added at the end."""
        request, client = ex.request, ex.client
        out: Fields = []
        if self.set_x_forwarded_for:
            hops = [*_values(request, b"x-forwarded-for"), client.peer.encode("ascii")]
            out.append((b"x-forwarded-for", b", ".join(hops)))
        if self.set_x_forwarded_proto:
            out.append((b"x-forwarded-proto", client.scheme.encode("ascii")))
        if self.set_x_forwarded_host:
            host = _values(request, b"x-forwarded-host")[:1] or [ex.asked_host.encode("ascii")]
            if host[0]:
                out.append((b"x-forwarded-host", host[0]))
        if self.set_forwarded:
            out.append((b"forwarded", b", ".join([*_values(request, b"forwarded"), _forwarded(ex)])))
        return out


def _forwarded(ex: Exchange) -> bytes:
    return forwarded_element(ex.client.peer, ex.client.scheme, ex.asked_host)


def _values(request: Request, name: bytes) -> list[bytes]:
    return [v for n, v in request.headers.raw if n == name]
