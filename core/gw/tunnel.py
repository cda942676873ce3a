"""A WebSocket between a client and an upstream: two legs that relay, and how it ends (RFC 6455 section 7).

Each leg reads one side, has what came checked, writes it to the other side and
only then reads again: one chunk in hand per direction. Where a filter of the
route has `on_message` the legs put messages together for it; otherwise they
pass the sender's own bytes on. Which protocol carries either side is not known
here: an `End` is a `gw.net.stream.Stream`, or what can be used like one.
docs/websocket.md tells who is told what.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol as Interface, TypeAlias

import anyio

from gw.filters import Close, Exchange, Message, Outcome, Reply
from gw.http.handshake import Compression, normalised_origin, refusal_of
from gw.http.websocket import OPCODE_NAMES, OPCODES, FrameReader, FrameWriter, Ping
from gw.limits import WS_CLOSE_TIME
from gw.net.deadlines import Deadlines
from gw.net.stream import DeadlineExceeded, StreamLost
from gw.silence import Silence

__all__ = ["End", "Hook", "Live", "Terms", "Tunnel", "passed"]

Hook: TypeAlias = Callable[[Exchange, Message, bool], Awaitable[Message | Close | None]]

GOING_AWAY: Final = Close(1001, "Going Away")
_CLIENT_GONE: Final = Close(1001, "The client has left")
_BAD_GATEWAY: Final = Close(1014, "The upstream has left")
_UPSTREAM_BROKE_RULES: Final = Close(1014, "The upstream broke the rules")
_IDLE: Final = Close(1001, "Idle for too long")
_ERROR: Final = Close(1011, "Internal error")
_PATIENT: Final = 2
"""Pings and pongs of ours that wait for the end of a frame; what comes then is left out."""
_NEVER: Final = float("inf")


class End(Interface):
    """One side of an upgraded connection: bytes in both directions. `gw.net.stream.Stream` is one."""

    @property
    def deadlines(self) -> Deadlines: ...
    @property
    def paused(self) -> bool:
        """Whether to `drain` before more is written."""

    async def receive(self) -> bytes:
        """Return what came; raises `anyio.EndOfStream` or `StreamLost`."""

    def write(self, data: bytes) -> None:
        """Send *data* without waiting; nothing happens once it is lost."""

    async def drain(self) -> None:
        """Wait until the peer has taken enough; raises `DeadlineExceeded`, `StreamLost`."""

    def abort(self) -> None:
        """End it now, so that the peer can tell. Receiving raises `StreamLost` from then on."""


class Session(Interface):
    """A WebSocket that is open."""

    generation: int

    def go_away(self) -> None:
        """End it with 1001, because the gateway, or its generation, comes to its end."""


@dataclass(slots=True)
class Live:
    """The WebSockets of one gateway."""

    open: set[Session] = field(default_factory=set)
    accepted: int = 0
    """How many there have been."""
    draining: bool = False
    """The gateway is stopping: no more are accepted."""
    received: list[int] = field(default_factory=lambda: [0] * OPCODES)
    """Frames that clients sent, by opcode."""
    sent: list[int] = field(default_factory=lambda: [0] * OPCODES)
    """Frames that clients were sent."""

    def frames(self) -> Iterator[tuple[tuple[str, str], int]]:
        """Yield how many there were, by what they are and the direction."""
        for direction, counts in (("receive", self.received), ("send", self.sent)):
            for opcode, name in OPCODE_NAMES.items():
                if counts[opcode]:
                    yield (name, direction), counts[opcode]

    def go_away(self, generation: int) -> int:
        """End those of *generation*; return how many there are."""
        old = [session for session in self.open if session.generation == generation]
        for session in old:
            session.go_away()
        return len(old)


@dataclass(frozen=True, slots=True)
class Terms:
    """On which the requests of one route may become WebSockets. Seconds, bytes; 0 is no bound."""

    live: Live
    generation: int = 0
    enabled: bool = True
    origins: frozenset[str] = frozenset()
    """Normalised; empty lets any pass."""
    compression: bool = True
    max_message_size: int = 0
    idle_timeout: float = 0.0
    ping_interval: float = 0.0
    ping_timeout: float = 0.0

    def refusal(self, ex: Exchange) -> Reply | None:
        """Return why the request may not become one (behaviour 8.1)."""
        request = ex.request
        if not self.enabled:
            return Reply(404, reason="gw.no_websocket")
        if self.live.draining:
            return Reply(503, reason="gw.going_away", close=True)
        if (reply := refusal_of(request)) is not None:
            return reply
        if self.origins:
            # Only browsers say where a page came from, and only theirs can be made to ask by a stranger's page.
            origin = request.headers.get("origin")
            if origin is not None and normalised_origin(origin) not in self.origins:
                return Reply(403, reason="gw.websocket_origin")
        return None


class _Side:
    """One end, what it sends and what it is sent."""

    __slots__ = (
        "done",
        "end",
        "far",
        "farewell",
        "heard",
        "in_frame",
        "pending",
        "reader",
        "scope",
        "silent",
        "told",
        "writer",
    )

    def __init__(self, end: End, far: End, reader: FrameReader, writer: FrameWriter) -> None:
        self.end, self.reader, self.writer = end, reader, writer
        self.far = far
        """The other side's end."""
        self.scope = anyio.CancelScope()
        """Of the leg that reads it."""
        self.heard = end.deadlines.now
        """When it last sent anything."""
        self.in_frame = False
        """What it was sent so far ends in the middle of a frame."""
        self.pending: list[bytes] = []
        """Control frames of ours that wait for the end of that frame."""
        self.told = False
        """It was sent a Close, or will be when the frame ends."""
        self.silent = False
        """The Close has gone out: nothing of the other side follows it."""
        self.done = False
        """It has sent its Close, or broken a rule, or is gone: what else it sends is not read."""
        self.farewell: Close | None = None
        """What it is told in the end, instead of what the other side says."""

    @property
    def is_read(self) -> bool:
        """Whether the gateway reads it now: not while the other side is too slow."""
        return not self.far.paused

    def ask(self) -> None:
        """Ask whether it is still there."""
        self.reader.own_ping = os.urandom(8)
        self.control(self.writer.ping(self.reader.own_ping))

    def control(self, frame: bytes) -> None:
        """Send a ping or pong, between two frames of the other side; not to one that takes nothing."""
        if self.end.paused:
            return
        if not self.in_frame:
            self.end.write(frame)
        elif len(self.pending) < _PATIENT:
            self.pending.append(frame)


class Tunnel:
    """One WebSocket of an exchange. *hooks* are the filters' `on_message`, first to last."""

    def __init__(
        self,
        ex: Exchange,
        terms: Terms,
        compression: Compression | None,
        hooks: Sequence[Hook],
        report: Callable[[Exchange, Exception], None],
    ) -> None:
        self.generation = terms.generation
        self._ex, self._terms, self._compression = ex, terms, compression
        self._from_client, self._from_upstream = tuple(hooks), tuple(reversed(hooks))
        self._report = report
        self._sides: tuple[_Side, ...] = ()
        self._goes_away = False

    def _side(self, end: End, far: End, *, is_client: bool) -> _Side:
        agreed, gathers, live = self._compression, bool(self._from_client), self._terms.live
        relayed = None if gathers else live.sent
        reader = FrameReader(
            masked=is_client,
            limit=self._terms.max_message_size,
            inflater=agreed.inflater(of_client=is_client) if agreed is not None else None,
            gathers=gathers,
            counts=live.received if is_client else relayed,
        )
        deflater = agreed.deflater(as_client=not is_client) if agreed is not None and gathers else None
        writer = FrameWriter(masks=not is_client, deflater=deflater, counts=live.sent if is_client else None)
        return _Side(end, far, reader, writer)

    async def run(
        self, client: End, upstream: End, spawn: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
    ) -> None:
        """Relay until both sides have ended. Raises only cancellation."""
        terms = self._terms
        deadlines = client.deadlines
        left, right = self._sides = (
            self._side(client, upstream, is_client=True),
            self._side(upstream, client, is_client=False),
        )
        self._closing = deadlines.due(self._late)
        self._silence = Silence(
            deadlines,
            self._sides,
            idle=terms.idle_timeout,
            interval=terms.ping_interval,
            timeout=terms.ping_timeout,
            on_idle=self._idle,
            on_gone=self._gone,
        )
        back_over = anyio.Event()

        async def back() -> None:
            try:
                await self._leg(right, left)
            finally:
                back_over.set()

        spawn(back)
        terms.live.open.add(self)
        terms.live.accepted += 1
        try:
            self._silence.look()
            if self._goes_away:  # it came to that before we began
                self.go_away()
            await self._leg(left, right)
            await back_over.wait()
        finally:
            terms.live.open.discard(self)
            self._closing.forget()
            self._silence.forget()
            if not back_over.is_set():
                right.scope.cancel()
                with anyio.CancelScope(shield=True):
                    await back_over.wait()
            self._sides = ()

    # --- relaying ----------------------------------------------------------------

    async def _leg(self, source: _Side, target: _Side) -> None:
        """Read *source* until it has said its last."""
        with source.scope:
            try:
                await (self._gather if self._from_client else self._relay)(source, target)
            except (anyio.EndOfStream, StreamLost):
                self._vanished(source, target)
            except Exception as error:  # noqa: BLE001  # a filter raised
                self._report(self._ex, error)
                self._set_reason(f"gw.error.{type(error).__name__}", Outcome.RESET)
                error.__traceback__ = None
                self._end_both(_ERROR, _ERROR)
                await self._discard(source)
        self._over(source, target)

    async def _relay(self, source: _Side, target: _Side) -> None:
        """Pass on the bytes of *source*, checked and not put together."""
        ex, reader, to = self._ex, source.reader, target.end
        feed, receive, deadlines = reader.feed, source.end.receive, to.deadlines
        is_client = source is self._sides[0]
        while True:
            data = await receive()
            source.heard = deadlines.now
            out = feed(data)
            if is_client:
                ex.bytes_received += len(data)
            else:
                ex.bytes_sent += len(out)
            if out and not target.silent:
                self._silence.moved = deadlines.now
                if target.pending:
                    out = self._with_pending(target, reader.boundary, out)
                target.in_frame = reader.in_frame and not target.silent
                to.write(out)
                if to.paused:
                    await self._flow(target)
            if reader.events:
                self._answer_pings(source, target)
            if reader.closed is not None or reader.fault is not None:
                return

    async def _flow(self, target: _Side) -> None:
        """Wait for a side that is slower than the other. One that is gone is noticed by the leg that reads it."""
        try:
            await target.end.drain()
        except StreamLost:
            target.silent = True
        except DeadlineExceeded:
            target.silent = True
            self._set_reason("gw.websocket_stalled", Outcome.RESET)
            target.end.abort()

    @staticmethod
    def _with_pending(target: _Side, boundary: int, out: bytes) -> bytes:
        """Put the frames that wait where a frame ends in *out*; after a Close nothing follows."""
        if boundary < 0:
            return out
        frames = b"".join(target.pending)
        target.pending.clear()
        if target.told:
            target.silent = True
            return out[:boundary] + frames
        return out[:boundary] + frames + out[boundary:]

    @staticmethod
    def _answer_pings(source: _Side, target: _Side) -> None:
        """Answer pings that the target does not get any more; it answers the others by itself."""
        if target.silent:
            for event in source.reader.events:
                if event.__class__ is Ping:
                    source.control(source.writer.pong(event.payload))
        source.reader.events.clear()

    async def _gather(self, source: _Side, target: _Side) -> None:
        """Put messages together and show them to the filters."""
        ex, reader, to = self._ex, source.reader, target.end
        is_client = source is self._sides[0]
        hooks = self._from_client if is_client else self._from_upstream
        while True:
            data = await source.end.receive()
            source.heard = to.deadlines.now
            reader.feed(data)
            if is_client:
                ex.bytes_received += len(data)
            events, reader.events = reader.events, []
            for event in events:
                if target.silent:
                    if isinstance(event, Ping):
                        source.control(source.writer.pong(event.payload))
                    continue
                if isinstance(event, Message):
                    said = await passed(ex, hooks, event, from_client=is_client)
                    if said is None or target.silent:
                        continue
                    if isinstance(said, Close):
                        self._set_reason("gw.websocket_filter", Outcome.REPLY)
                        self._end_both(said, said)
                        continue
                    frame = target.writer.message(said.data)
                elif isinstance(event, Ping):
                    frame = target.writer.ping(event.payload)
                else:
                    frame = target.writer.pong(event.payload)
                self._silence.moved = to.deadlines.now
                if not is_client:
                    ex.bytes_sent += len(frame)
                to.write(frame)
                if to.paused:
                    await self._flow(target)
            if reader.closed is not None or reader.fault is not None:
                return

    async def _discard(self, source: _Side) -> None:
        """Read on until *source* answers the Close that it was sent; nothing of it goes anywhere."""
        reader = source.reader
        while reader.closed is None and reader.fault is None:
            try:
                reader.feed(await source.end.receive())
            except (anyio.EndOfStream, StreamLost):
                return
            for event in reader.events:
                if isinstance(event, Ping):
                    source.control(source.writer.pong(event.payload))
            reader.events.clear()

    # --- the end -----------------------------------------------------------------

    def _over(self, source: _Side, target: _Side) -> None:
        """*source* has said its last: tell *target*, or see that it ends."""
        source.done = True
        reader, is_client = source.reader, source is self._sides[0]
        if reader.fault is not None:
            source.farewell = reader.fault
            self._set_reason(f"gw.websocket_{reader.fault.code}", Outcome.RESET)
            self._tell(target, target.farewell or (_CLIENT_GONE if is_client else _UPSTREAM_BROKE_RULES))
        elif reader.closed is not None:
            self._tell(target, target.farewell or reader.closed)
        else:
            self._tell(target, target.farewell or (_CLIENT_GONE if is_client else _BAD_GATEWAY))
        if target.in_frame and not target.done:
            target.end.abort()  # the rest of the frame will never come, and within it nothing can be said
        if target.done and not source.told:
            self._tell(source, source.farewell or GOING_AWAY)

    def _vanished(self, source: _Side, target: _Side) -> None:
        """*source* has ended its connection without a Close (code 1006, for those who must name it)."""
        source.told = source.silent = True
        if source.reader.closed is None and not target.done:
            if source is self._sides[0]:
                self._set_reason("gw.client_gone", Outcome.CANCELLED)
            else:
                self._set_reason("gw.upstream_disconnect", Outcome.RESET)

    def _tell(self, side: _Side, close: Close) -> None:
        """Send *side* a Close, once, as soon as what it is being sent allows."""
        self._silence.off()
        if not side.told:
            side.told = True
            side.silent = not side.in_frame
            if side.silent:
                side.end.write(side.writer.close(close))
            else:
                side.pending.append(side.writer.close(close))
        if self._closing.when == _NEVER:
            self._closing.after(WS_CLOSE_TIME)

    def _end_both(self, for_client: Close, for_upstream: Close) -> None:
        client, upstream = self._sides
        self._tell(client, for_client)
        self._tell(upstream, for_upstream)

    def _late(self) -> None:
        """A side has not answered its Close in time: that side is cut off, and the other one told."""
        for side in self._sides:
            if side.told and not side.done:
                self._set_reason("gw.websocket_close_timeout", Outcome.RESET)
                side.end.abort()
                side.scope.cancel()
        if any(not side.told for side in self._sides):
            self._closing.after(WS_CLOSE_TIME)

    def go_away(self) -> None:
        self._goes_away = True
        if self._sides:
            self._set_reason("gw.going_away", Outcome.CANCELLED)
            self._end_both(GOING_AWAY, GOING_AWAY)

    def _set_reason(self, reason: str, outcome: Outcome) -> None:
        """Keep why it ends: the first reason is the cause of the others."""
        ex = self._ex
        if not ex.reason:
            ex.reason, ex.outcome = reason, outcome

    # --- silence -------------------------------------------------------------------

    def _idle(self) -> None:
        self._set_reason("gw.websocket_idle", Outcome.RESET)
        self._end_both(_IDLE, _IDLE)

    def _gone(self, side: _Side) -> None:
        self._set_reason("gw.websocket_ping_timeout", Outcome.RESET)
        side.end.abort()


async def passed(ex: Exchange, hooks: Sequence[Hook], message: Message, *, from_client: bool) -> Message | Close | None:
    """Show *message* to *hooks*, one after another; return what became of it."""
    said: Message | Close | None = message
    for hook in hooks:
        said = await hook(ex, said, from_client)  # type: ignore[arg-type]
        if said is None or said.__class__ is Close:
            break
    return said
