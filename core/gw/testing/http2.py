"""Peers that speak HTTP/2 to a gateway in memory, clients and upstreams: one connection, many streams, nothing decided for the test."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import anyio

from gw.filters import Headers, Request, Response
from gw.http.engines import choose
from gw.http.h2 import (
    Code,
    Data,
    Ended,
    FloodLimits,
    GoAway,
    Head,
    Interim,
    Pong,
    Reset,
    Session,
    SessionSettings,
    Trailers,
    goaway_frame,
)
from gw.net.stream import StreamLost
from gw.testing.gateway import Answer, Asked
from gw.testing.memory import MemoryStream

__all__ = ["Http2Client", "Http2Peer", "Http2Upstream", "StreamReset"]

_MOST = 1 << 20


class StreamReset(Exception):
    """The gateway reset the stream; *code* says how (RFC 9113 section 7)."""

    def __init__(self, code: int) -> None:
        names = {value: name for name, value in vars(Code).items() if name.isupper()}
        super().__init__(names.get(code, str(code)))
        self.code = code


class Http2Client:
    """One end of a connection. A stream's window is given back as its body is read, unless *gives_back* is false."""

    def __init__(self, stream: MemoryStream, settings: SessionSettings | None = None, *, engine: str = "auto") -> None:
        self.stream = stream
        self.session: Session = choose(engine).client_session(settings or SessionSettings())  # type: ignore[arg-type]
        self.gives_back = True
        self.answers: dict[int, Answer] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaways: list[GoAway] = []
        self.pongs: list[bytes] = []
        self.over: Ended | None = None
        self.flush()

    def flush(self) -> None:
        """Send what the session has to say."""
        while data := self.session.outgoing(_MOST):
            self.stream.write(data)

    def request(
        self,
        target: str = "/",
        *,
        method: str = "GET",
        fields: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        more: bool = False,
        authority: str = "example.test",
    ) -> int:
        """Send a request; return its stream. *more* leaves its body open."""
        head = [(":method", method), (":scheme", "http"), (":authority", authority), (":path", target), *fields]
        ends = body is None and not more
        stream = self.session.request([(n.encode(), v.encode()) for n, v in head], ends)
        if body is not None:
            self.session.send(stream, body, not more)
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send more of a request's body."""
        self.session.send(stream, data, end)
        self.flush()

    def take_in(self) -> None:
        """Look at what has come."""
        while self.stream.has_data:
            self.session.feed(self.stream.take())
        self._look()

    async def receive(self) -> None:
        """Wait for more; raises `anyio.EndOfStream` or `StreamLost` at the end."""
        self.session.feed(await self.stream.receive())
        self._look()

    async def answer(self, stream: int) -> Answer:
        """Wait for the end of the answer on *stream*; raises `StreamReset`, `anyio.EndOfStream`, `StreamLost`."""
        self.take_in()
        while stream not in self.ended:
            if stream in self.resets:
                raise StreamReset(self.resets[stream])
            await self.receive()
        return self.answers[stream]

    async def get(self, target: str = "/", fields: Sequence[tuple[str, str]] = ()) -> Answer:
        return await self.answer(self.request(target, fields=fields))

    async def until_closed(self) -> None:
        """Read until the gateway closes the connection."""
        self.take_in()
        while True:
            try:
                await self.receive()
            except (anyio.EndOfStream, StreamLost):
                return

    def _look(self) -> None:
        events = self.session.events
        while events:
            event = events.popleft()
            if isinstance(event, Head):
                status, *fields = event.fields
                answer = self.answers.setdefault(event.stream, Answer(0, Headers(), b""))
                answer.status, answer.headers = int(status[1]), Headers(list(fields))
                if event.end:
                    self.ended.add(event.stream)
            elif isinstance(event, Interim):
                status, *fields = event.fields
                self.answers.setdefault(event.stream, Answer(0, Headers(), b"")).interim.append(
                    Response(int(status[1]), Headers(list(fields)))
                )
            elif isinstance(event, Data):
                self.answers[event.stream].body += event.data
                if self.gives_back:
                    self.session.give_back(event.stream, event.flow)
                if event.end:
                    self.ended.add(event.stream)
            elif isinstance(event, Trailers):
                self.answers[event.stream].trailers = Headers(list(event.fields))
                self.ended.add(event.stream)
            elif isinstance(event, Reset):
                self.resets[event.stream] = event.code
            elif isinstance(event, GoAway):
                self.goaways.append(event)
            elif isinstance(event, Pong):
                self.pongs.append(event.data)
            elif isinstance(event, Ended):
                self.over = event
        self.flush()


class Http2Peer:
    """An upstream's end of a connection: the test reads what the gateway asks, and answers as it likes.

    A stream's window is given back as its body is read, unless *gives_back* is false.
    """

    def __init__(self, stream: MemoryStream, settings: SessionSettings | None = None, *, engine: str = "auto") -> None:
        self.stream = stream
        self.session: Session = choose(engine).server_session(settings or SessionSettings(flood=_CALM))  # type: ignore[arg-type]
        self.gives_back = True
        self.asked: dict[int, Asked] = {}
        """What was asked, its body as far as it has come."""
        self.whole: list[int] = []
        """The streams whose request has come to its end, in that order."""
        self.resets: dict[int, int] = {}
        self.goaways: list[GoAway] = []
        self._heads: deque[int] = deque()
        self.flush()

    def flush(self) -> None:
        """Send what the session has to say."""
        while data := self.session.outgoing(_MOST):
            self.stream.write(data)

    async def receive(self) -> None:
        """Wait for more; raises `anyio.EndOfStream` or `StreamLost` at the end."""
        self.session.feed(await self.stream.receive())
        self._look()

    async def head(self) -> int:
        """Wait for the next request's head; return its stream."""
        self.take_in()
        while not self._heads:
            await self.receive()
        return self._heads.popleft()

    async def request(self) -> int:
        """Wait for the next whole request; return its stream."""
        self.take_in()
        while not self.whole:
            await self.receive()
        return self.whole.pop(0)

    def take_in(self) -> None:
        """Look at what has come."""
        while self.stream.has_data:
            self.session.feed(self.stream.take())
        self._look()

    def respond(
        self,
        stream: int,
        status: int = 200,
        fields: Sequence[tuple[str, str]] = (),
        body: bytes | None = b"ok",
        *,
        more: bool = False,
        trailers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Answer. *more* leaves the body open; ``None`` for a body ends the answer with its head."""
        head = _bytes([(":status", str(status)), *fields])
        self.session.respond(stream, head, body is None and not more)
        if body is not None:
            self.session.send(stream, body, not more and not trailers)
        if trailers:
            self.session.trail(stream, _bytes(trailers))
        self.flush()

    def interim(self, stream: int, status: int, fields: Sequence[tuple[str, str]] = ()) -> None:
        self.session.interim(stream, _bytes([(":status", str(status)), *fields]))
        self.flush()

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send more of an answer's body."""
        self.session.send(stream, data, end)
        self.flush()

    def reset(self, stream: int, code: int) -> None:
        self.session.reset(stream, code)
        self.flush()

    def goaway(self, last: int, code: int = Code.NO_ERROR) -> None:
        """Say GOAWAY with any last stream at all, behind the session's back."""
        self.flush()
        self.stream.write(goaway_frame(last, code))

    async def until_closed(self) -> None:
        """Read until the gateway closes the connection."""
        self.take_in()
        while True:
            try:
                await self.receive()
            except (anyio.EndOfStream, StreamLost):
                return

    def _look(self) -> None:
        events = self.session.events
        while events:
            event = events.popleft()
            if isinstance(event, Head):
                named = {name.decode(): value.decode() for name, value in event.fields if name.startswith(b":")}
                rest = [line for line in event.fields if not line[0].startswith(b":")]
                head = Request(named[":method"], named.get(":path", ""), Headers(rest), version="2")
                head.host, head.scheme = named.get(":authority", ""), named.get(":scheme", "")
                head.upgrade = named.get(":protocol")
                self.asked[event.stream] = Asked(head, b"")
                self._heads.append(event.stream)
                if event.end:
                    self.whole.append(event.stream)
            elif isinstance(event, Data):
                self.asked[event.stream].body += event.data
                if self.gives_back:
                    self.session.give_back(event.stream, event.flow)
                if event.end:
                    self.whole.append(event.stream)
            elif isinstance(event, Trailers):
                self.asked[event.stream].trailers = Headers(list(event.fields))
                self.whole.append(event.stream)
            elif isinstance(event, Reset):
                self.resets[event.stream] = event.code
            elif isinstance(event, GoAway):
                self.goaways.append(event)
        self.flush()


class Http2Upstream:
    """A scripted upstream that speaks HTTP/2: answers each request with *answer*, or 200 and ``ok``."""

    def __init__(
        self,
        answer: Callable[[Http2Peer, int], None] | None = None,
        settings: SessionSettings | None = None,
        *,
        engine: str = "auto",
    ) -> None:
        self._answer, self._settings, self._engine = answer or Http2Peer.respond, settings, engine
        self.peers: list[Http2Peer] = []

    async def __call__(self, stream: MemoryStream) -> None:
        peer = Http2Peer(stream, self._settings, engine=self._engine)
        self.peers.append(peer)
        try:
            while True:
                self._answer(peer, await peer.request())
        except (anyio.EndOfStream, StreamLost):
            stream.close()

    @property
    def asked(self) -> list[Asked]:
        """Every request, connection by connection."""
        return [asked for peer in self.peers for asked in peer.asked.values()]


_CALM: Final = FloodLimits(*[100_000] * 6)
"""A peer of a test does not mind."""


def _bytes(fields: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in fields]
