"""Unary calls over gRPC (doc/PROTOCOL-HTTP2.md of the gRPC project), for the gateway's own calls: see `gw.upstream.control`.

One message goes out, one comes back, bounded in time and in size. A connection carries one call at a time and is kept for
the next; frames are the HTTP/2 engine's.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute

from gw.filters import Headers
from gw.http.engines import choose
from gw.http.framing import Fields
from gw.http.h2 import Code, Data, Ended, GoAway, Head, Reset, Session, SessionSettings, Trailers, name_of
from gw.limits import CALLER_CONNECTIONS, CALLER_IDLE_TIME, PULL_SIZE

__all__ = ["Broken", "Reply", "TooLarge", "Unary", "head_of", "message_of"]

_UNKNOWN: Final = 2
_OF_HTTP: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
"""What a status of HTTP means where there is none of gRPC (doc/http-grpc-status-mapping.md)."""

_LOST: Final = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class Broken(Exception):
    """The connection, or the call on it, ended before its answer; *silent* where nothing of an answer had come."""

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class TooLarge(Exception):
    """The answer is larger than it may be."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the status of gRPC, what was said about it, the message, and the trailer fields."""

    status: int
    message: str
    body: bytes
    trailers: Headers


class Unary:
    """Connections to wherever calls go, each used by one call at a time."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int, bool], list[_Connection]] = {}
        self._room: anyio.Semaphore | None = None
        self._is_closed = False

    async def call(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        server_name: str,
        fields: Fields,
        message: bytes,
        most: int,
    ) -> Reply:
        """Make one call; *message* has its prefix already.

        Raises `OSError` where it cannot connect, `Broken`, `TooLarge`. One that was kept and turns out to be closed is
        replaced.
        """
        if self._room is None:
            self._room = anyio.Semaphore(CALLER_CONNECTIONS)
        key = (host, port, tls is not None)
        async with self._room:
            kept = await self._kept(key)
            if kept is not None:
                try:
                    return await self._on(kept, key, fields, message, most)
                except Broken as broken:
                    if not broken.silent:
                        raise
            fresh = _Connection(await _connect(host, port, tls, server_name))
            return await self._on(fresh, key, fields, message, most)

    async def _kept(self, key: tuple[str, int, bool]) -> _Connection | None:
        idle = self._idle.get(key, [])
        while idle:
            connection = idle.pop()
            if time.monotonic() - connection.since < CALLER_IDLE_TIME:
                return connection
            await anyio.aclose_forcefully(connection.stream)
        return None

    async def _on(
        self, connection: _Connection, key: tuple[str, int, bool], fields: Fields, message: bytes, most: int
    ) -> Reply:
        try:
            reply = await connection.call(fields, message, most)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(connection.stream)
            raise
        if connection.is_good and not self._is_closed:
            connection.since = time.monotonic()
            self._idle.setdefault(key, []).append(connection)
        else:
            await anyio.aclose_forcefully(connection.stream)
        return reply

    async def aclose(self) -> None:
        """Close its connections; one that carries a call still, after that."""
        self._is_closed = True
        kept, self._idle = self._idle, {}
        for connections in kept.values():
            for connection in connections:
                await anyio.aclose_forcefully(connection.stream)


async def _connect(host: str, port: int, tls: ssl.SSLContext | None, server_name: str) -> ByteStream:
    if tls is None:
        return await anyio.connect_tcp(host, port)
    stream = await anyio.connect_tcp(
        host, port, tls=True, ssl_context=tls, tls_standard_compatible=False, tls_hostname=server_name or host
    )
    if stream.extra(TLSAttribute.alpn_protocol) != "h2":
        await anyio.aclose_forcefully(stream)
        raise Broken("it does not speak HTTP/2")
    return stream


class _Connection:
    """One connection."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream, self.since = stream, 0.0
        self.is_good = True
        """Whether it can carry another call."""
        self._session: Session = choose("auto").client_session(SessionSettings())

    async def call(self, fields: Fields, message: bytes, most: int) -> Reply:
        session = self._session
        answer = _Answer(most)
        try:
            number = session.request(fields, end=False)
            if not number:
                raise Broken("it takes no further call", silent=True)
            session.send(number, message, end=True)
            while not self._take(number, answer):
                await self._flush()  # the window that was given back, too: the other end may be waiting for it
                session.feed(await self.stream.receive(PULL_SIZE))
        except _LOST:
            raise Broken("it closed the connection", silent=answer.is_silent) from None
        if session.queued(number):  # it answered before it had heard all
            session.reset(number, Code.CANCEL)
        try:
            await self._flush()
        except _LOST:  # after its answer it may go
            self.is_good = False
        return answer.reply()

    async def _flush(self) -> None:
        while data := self._session.outgoing(PULL_SIZE):
            await self.stream.send(data)

    def _take(self, number: int, answer: _Answer) -> bool:
        """Take what was read; tell whether the answer is whole."""
        events, done = self._session.events, False
        while events:
            event = events.popleft()
            match event:
                case Head(stream, found, end) if stream == number:
                    answer.head, done = _headers(found), end
                case Data(stream, data, end, flow):
                    self._session.give_back(stream, flow)
                    if stream == number:
                        answer.add(data)
                        done = end
                case Trailers(stream, found) if stream == number:
                    answer.trailers, done = _headers(found), True
                case Reset(stream, code) if stream == number:
                    raise Broken(f"it reset the call: {name_of(code)}", silent=answer.is_silent)
                case GoAway(last, _):
                    self.is_good = False
                    if last < number:
                        raise Broken("it is going away", silent=answer.is_silent)
                case Ended(_, said):
                    raise Broken(said or "it ended the connection", silent=answer.is_silent)
        return done


class _Answer:
    """What has come of one answer so far."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.head: Headers | None = None
        self.trailers: Headers | None = None
        self._body = bytearray()

    @property
    def is_silent(self) -> bool:
        return self.head is None

    def add(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._most + 5:
            raise TooLarge

    def reply(self) -> Reply:
        """Return it, now that it is whole; raise `Broken` where it is none of gRPC."""
        head = self.head
        if head is None:
            raise Broken("it sent no head")
        last = head if self.trailers is None else self.trailers
        said = last.get("grpc-status")
        http = head.get(":status", "")
        if said is None:
            status = _OF_HTTP.get(int(http) if http.isdecimal() else 0, _UNKNOWN)
            return Reply(status, f"no grpc-status; status {http}", b"", last)
        if not said.isdecimal() or len(said) > 9:
            raise Broken(f"its grpc-status is {said[:20]!r}")
        status, message = int(said), unquote(last.get("grpc-message", ""), errors="replace")
        if status:
            return Reply(status, message, b"", last)
        body = bytes(self._body)
        if http != "200" or not head.get("content-type", "").startswith("application/grpc"):
            raise Broken("it is no answer of gRPC")
        if len(body) < 5 or body[0] or int.from_bytes(body[1:5]) != len(body) - 5:
            raise Broken("its body is not one message without compression")
        return Reply(0, message, body[5:], last)


def _headers(fields: Iterable[tuple[bytes, bytes]]) -> Headers:
    return Headers(list(fields))


def message_of(body: bytes, *, compressed: bool) -> bytes:
    """Return *body* with its prefix."""
    return bytes((compressed,)) + len(body).to_bytes(4) + body


def head_of(authority: str, path: str, seconds: float, lines: Iterable[tuple[str, str]], *, tls: bool) -> Fields:
    """Return the head of a call that may take so many seconds."""
    fields: Fields = [
        (b":method", b"POST"),
        (b":scheme", b"https" if tls else b"http"),
        (b":authority", authority.encode("ascii")),
        (b":path", path.encode("ascii")),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"grpc-timeout", b"%dm" % min(99_999_999, max(1, round(seconds * 1000)))),
        (b"grpc-accept-encoding", b"identity"),
    ]
    fields += ((name.lower().encode("ascii"), value.encode("latin-1")) for name, value in lines)
    return fields
