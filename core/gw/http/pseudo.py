"""HTTP/2 heads and the messages they are: pseudo-header fields to `Request` and `Response`, and back.

What is refused here is malformed in the sense of RFC 9113 section 8.1.1: the
stream is reset, the connection lives. Both engines come through here, so both
refuse the same; what HTTP/1.1 says about the same fields is `gw.http.framing`'s
and is used, not repeated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Final

from gw.filters import Headers, Request, Response
from gw.http.framing import METHODS, SINGLETONS, Fields, Refusal, check_sizes, frame_trailers, host_of, length_of
from gw.http.h1 import ReaderLimits
from gw.http.h2 import Code
from gw.http.paths import normalise_host
from gw.http.write import HOP_BY_HOP, NOT_IN_TRAILERS
from gw.limits import MAX_SAME_BLOCK

__all__ = ["RequestHeads", "StreamError", "response_fields", "response_of", "trailer_fields", "trailers_of"]

FieldLines = Sequence[tuple[bytes, bytes]]


class StreamError(Exception):
    """A message is malformed: its stream is reset with *code* (RFC 9113 section 8.1.1)."""

    def __init__(self, message: str, code: int = Code.PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


_CONNECTION: Final = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
"""Fields that HTTP/2 has no use for; a message with one is malformed (RFC 9113 section 8.2.2)."""

_PSEUDO: Final = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})

# Names and values in turn, parted by NUL: one match for a whole head. Values as in HTTP/1.1, but without blanks
# around them (RFC 9113 section 8.2.1).
_VALUE: Final = rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?"
_section: Final = re.compile(
    rb"(?::?[!#$%&'*+.^_`|~0-9a-z-]++\x00" + _VALUE + rb"\x00)*:?[!#$%&'*+.^_`|~0-9a-z-]++\x00" + _VALUE
).fullmatch
_value: Final = re.compile(_VALUE).fullmatch
_ordinary_path: Final = re.compile(rb"/[!-~]*").fullmatch
_PORTS: Final = {"http": ":80", "https": ":443"}


class RequestHeads:
    """Makes requests of the heads of one connection (RFC 9113 section 8.3.1, behaviour 7.3).

    A client mostly says the same again on one connection, but for :path: then nothing else is looked at again.
    """

    __slots__ = ("_after", "_before", "_like", "_limits", "_listed", "_most", "_regular")

    def __init__(self, limits: ReaderLimits, max_header_list_size: int) -> None:
        self._limits, self._most = limits, max_header_list_size
        # Of the last head that was remembered: what stood before and after :path, and what came of it.
        self._before: FieldLines = ()
        self._after: FieldLines = ()
        self._like: Request | None = None
        self._regular = _Regular()
        self._listed = 0
        """Its size, as RFC 9113 section 6.5.2 counts it, without the value of :path."""

    def request_of(self, lines: FieldLines, end: bool) -> Request:
        """Make a request of its head; *end* says that no body follows.

        Raises `StreamError` where the message is malformed, `Refusal` where it deserves an answer. Extended CONNECT
        for a WebSocket (RFC 8441) becomes what the same wish is in HTTP/1.1: a GET whose `upgrade` is set, and that
        has no body.
        """
        like, at = self._like, len(self._before)
        if (
            like is not None
            and at < len(lines)
            and lines[at][0] == b":path"
            and _ordinary_path(path := lines[at][1]) is not None
            and lines[:at] == self._before
            and lines[at + 1 :] == self._after
        ):
            if self._listed + len(path) > self._most:
                raise StreamError(_TOO_LARGE, Code.ENHANCE_YOUR_CALM)
            request = like._again(like.method, path.decode("ascii"), Headers(like.headers.raw.copy()))
            self._finish(request, self._regular, end)
        else:
            request = self._read(lines, end)
        return request

    def _read(self, lines: FieldLines, end: bool) -> Request:
        """Make a request of a head that is not known by heart, and remember it."""
        pseudo: dict[bytes, bytes] = {}
        for name, value in lines:
            if name[0] != _COLON:
                break
            if name in pseudo or name not in _PSEUDO or _value(value) is None:
                raise StreamError(f"The pseudo-header field {name.decode('latin-1')} is wrong, or comes twice")
            pseudo[name] = value
        regular = _look_through(lines[len(pseudo) :])
        listed = regular.listed
        for name, value in pseudo.items():
            listed += len(name) + len(value) + 32
        if listed > self._most:
            raise StreamError(_TOO_LARGE, Code.ENHANCE_YOUR_CALM)
        request = _begin(pseudo, regular.known, regular.fields)
        self._finish(request, regular, end)
        if request.upgrade is None and b":path" in pseudo and regular.size <= MAX_SAME_BLOCK:
            at = list(pseudo).index(b":path")
            self._before, self._after, self._regular = lines[:at], lines[at + 1 :], regular
            # A request of its own: filters, and the core, change the one that they are handed.
            self._like = request._again(request.method, request.target, Headers(regular.fields.copy()))
            self._listed = listed - len(pseudo[b":path"])
        return request

    def _finish(self, request: Request, regular: _Regular, end: bool) -> None:
        """Settle whether *request* has a body, and hold it to its limits."""
        fields, limits = request.headers.raw, self._limits
        request.has_body = not end and request.upgrade is None
        if request.upgrade is not None and end:
            raise StreamError("A tunnel that is closed as it opens")
        length = request.content_length = regular.length
        if end and length:
            raise StreamError("No body, although Content-Length says so")
        request.expects_continue = request.has_body and b"expect" in regular.known
        if regular.size + len(request.target) > limits.head_size > 0 or len(fields) > limits.header_count > 0:
            check_sizes(len(request.target), fields, limits.head_size, limits.header_count)
        if regular.refused_expectation:
            raise Refusal("Expectation Failed", 417)


_TOO_LARGE: Final = "The list of fields is larger than MAX_HEADER_LIST_SIZE"


class _Regular:
    """The fields of a head, pseudo-header fields aside, and what was found in them."""

    __slots__ = ("fields", "known", "length", "listed", "refused_expectation", "size")

    def __init__(self) -> None:
        self.fields: Fields = []
        self.known: dict[bytes, bytes] = {}
        self.length: int | None = None
        self.refused_expectation = False
        self.listed = 0
        """Its size as RFC 9113 section 6.5.2 counts it."""
        self.size = 0
        """At least what `check_sizes` counts."""


def _look_through(lines: FieldLines) -> _Regular:
    found = _Regular()
    if not lines:
        return found
    block = b"\0".join(chain.from_iterable(lines))
    if _section(block) is None:
        raise StreamError("A field's name or value has a byte that it cannot have")
    found.size = len(block) + 4 * len(lines)
    found.listed = len(block) + 1 + 30 * len(lines)  # the block has two NULs a field, but for the last one
    fields, known = found.fields, found.known
    crumbs: list[bytes] = []
    for line in lines:
        name, value = line
        if name[0] == _COLON:
            raise StreamError("A pseudo-header field follows a field")
        if name == b"cookie":
            crumbs.append(value)
        elif name in _LOOKED_AT and _look_at(name, value, known):
            pass  # said already
        else:
            fields.append(line)
    if crumbs:  # RFC 9113 section 8.2.3
        fields.append((b"cookie", crumbs[0] if len(crumbs) == 1 else b"; ".join(crumbs)))
    if b"content-length" in known:
        found.length = _declared(known[b"content-length"])
    if b"expect" in known:
        found.refused_expectation = known[b"expect"].lower() != b"100-continue"
    return found


_COLON: Final = 0x3A
_LOOKED_AT: Final = frozenset({*SINGLETONS, *_CONNECTION, b"te", b"expect"})


def _look_at(name: bytes, value: bytes, known: dict[bytes, bytes]) -> bool:
    """Note a field that decides something; tell whether it repeats what was said, which only Content-Length may."""
    if name in _CONNECTION:
        raise StreamError(f"The field {name.decode()} has no place in HTTP/2")
    if name == b"te" and value.lower() != b"trailers":
        raise StreamError("TE other than trailers")
    if name in known and name in SINGLETONS:
        if name == b"content-length" and value == known[name]:
            return True
        raise StreamError(f"Duplicate {SINGLETONS[name]} field")
    known[name] = value
    return False


def _declared(value: bytes) -> int:
    try:
        return length_of(value)
    except Refusal as refusal:
        raise StreamError(refusal.message) from None


def _begin(pseudo: dict[bytes, bytes], known: dict[bytes, bytes], fields: Fields) -> Request:
    """Check the pseudo-header fields, and make the request that they begin."""
    method, path, scheme = pseudo.get(b":method"), pseudo.get(b":path"), pseudo.get(b":scheme")
    protocol = pseudo.get(b":protocol")
    tunnel = method == b"CONNECT" and protocol is None
    if method is None or ((path is None or scheme is None) != tunnel) or (tunnel and (path or scheme)):
        raise StreamError("A pseudo-header field is missing, or has no place in CONNECT")
    if protocol is not None and (method != b"CONNECT" or protocol != b"websocket"):
        raise StreamError(":protocol without CONNECT, or one that is not served")
    name = METHODS.get(method)
    if name is None:
        raise Refusal("Unknown method")
    if tunnel:
        path = pseudo.get(b":authority", b"")
        if b":" not in path:
            raise StreamError("CONNECT without :authority")
    elif not path or (path[0] != _SLASH and (path, name) != (b"*", "OPTIONS")):
        raise StreamError(":path neither begins with a slash nor is the asterisk of OPTIONS")
    elif scheme not in (b"http", b"https"):
        raise Refusal("Unknown scheme")
    assert path is not None
    if not path.isascii() or b" " in path:
        raise StreamError(":path has a byte that must be encoded")
    request = Request("", path.decode("ascii"), Headers(fields), version="2")
    request.method = "GET" if protocol is not None else name
    request.upgrade = None if protocol is None else "websocket"
    request.host = _authority(pseudo.get(b":authority"), known.get(b"host"), scheme)
    if b"host" not in known and request.host:
        fields.insert(0, (b"host", request.host.encode("ascii")))
    return request


_SLASH: Final = 0x2F


def _authority(authority: bytes | None, host: bytes | None, scheme: bytes | None) -> str:
    """Return the one host that the request is for; :authority and Host may not disagree (RFC 9113 section 8.3.1)."""
    value = host if authority is None else authority
    if not value:
        raise StreamError("Neither :authority nor Host")
    asked = host_of(value)
    if asked is None:
        raise StreamError("An authority that is none")
    if authority is not None and host is not None and authority != host:
        other = host_of(host)
        port = _PORTS.get((scheme or b"").decode(), "")
        if other is None or _spelt(asked, port) != _spelt(other, port):
            raise StreamError(":authority and Host disagree")
    return asked


def _spelt(host: str, default_port: str) -> tuple[str, str]:
    _, _, port = host.rpartition("]")[2].partition(":")
    return normalise_host(host), "" if f":{port}" == default_port else port


def trailers_of(lines: FieldLines, limits: ReaderLimits) -> Headers:
    """Make the trailers of a message; raise `StreamError` (RFC 9113 section 8.1)."""
    if lines and _section(b"\0".join(chain.from_iterable(lines))) is None:
        raise StreamError("A trailer's name or value has a byte that it cannot have")
    fields = list(lines)
    if any(name[0] == _COLON or name in _CONNECTION for name, _ in fields):
        raise StreamError("A pseudo-header field, or one about the connection, in a trailer section")
    try:
        return frame_trailers(fields, limits)
    except Refusal as refusal:
        too_large = refusal.status == 431
        raise StreamError(refusal.message, Code.ENHANCE_YOUR_CALM if too_large else Code.PROTOCOL_ERROR) from None


def response_of(lines: FieldLines, end: bool, method: str, limits: ReaderLimits) -> Response:
    """Make a response to a *method* request of its head (RFC 9113 section 8.3.2); raise `StreamError`."""
    if _section(b"\0".join(chain.from_iterable(lines))) is None:
        raise StreamError("A field name or value has a byte that it cannot have")
    name, status = lines[0]
    if name != b":status" or len(status) != 3 or not status.isdigit() or not 1 <= status[0] - 0x30 <= 9:
        raise StreamError("A response does not begin with a :status of three digits")
    fields = list(lines[1:])
    response = Response(int(status), Headers(fields), version="2", has_body=not end)
    if response.status == 101:
        raise StreamError("Switching Protocols does not exist in HTTP/2")
    length: bytes | None = None
    for field, value in fields:
        if field[0] == _COLON or field in _CONNECTION:
            raise StreamError(f"The field {field.decode()} has no place in a response")
        if field == b"content-length":
            if length is not None and value != length:
                raise StreamError("Differing Content-Length fields")
            length = value
    if length is not None:
        response.content_length = _declared(length)
        if end and response.content_length and method != "HEAD" and response.status != 304:
            raise StreamError("No body, although Content-Length says so")
    if (response.status == 204 or method == "HEAD" or response.status == 304) and not end:
        response.has_body = False
    try:
        check_sizes(0, fields, limits.head_size, limits.header_count)
    except Refusal as refusal:
        raise StreamError(refusal.message, Code.ENHANCE_YOUR_CALM) from None
    return response


def response_fields(response: Response, via: bytes, date: bytes) -> Fields:
    """Return the head of *response*: hop-by-hop fields removed, *date* added where there is none, *via* if not empty.

    What comes in was checked by an engine or by `gw.filters.Headers`.
    """
    status = response.status
    fields: Fields = [_STATUSES.get(status) or (b":status", b"%d" % status)]
    dated = status < 200
    for line in response.headers.raw:
        if line[0] in _DATED:
            if line[0] != b"date":
                continue
            dated = True
        fields.append(line)
    if not dated:
        fields.append((b"date", date))
    if via:
        fields.append((b"via", via))
    return fields


def trailer_fields(trailers: Headers | None) -> Fields:
    """Return the trailer fields that may be sent."""
    return [] if trailers is None else [line for line in trailers.raw if line[0] not in NOT_IN_TRAILERS]


_STATUSES: Final = {status: (b":status", b"%d" % status) for status in (200, 204, 206, 304, 400, 404, 500, 502, 503)}
_DATED: Final = HOP_BY_HOP | {b"date"}
