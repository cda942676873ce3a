"""The native HTTP/2 engine: nghttp2 through `ngh2`; implements `gw.http.h2.Session`.

nghttp2 holds the peer to RFC 9113; what is added here is the vocabulary of `gw.http.h2`, and the floods.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import ngh2
from ngh2.config import Configuration, Role
from ngh2.events import (
    ConnectionClosed,
    DataReceived,
    GoAwayReceived,
    InformationalResponseReceived,
    PingAcknowledged,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from ngh2.exceptions import ConnectionStateError, DenialOfServiceError, NGH2Error

from gw.http.flood import FloodWatch
from gw.http.framing import Fields
from gw.http.h2 import (
    Code,
    Data,
    Ended,
    Event,
    GoAway,
    Head,
    Interim,
    Pong,
    Reset,
    SessionSettings,
    SettingsChanged,
    Trailers,
    WindowOpened,
    goaway_frame,
    settings_of,
)
from gw.limits import MAX_CONTINUATIONS, MAX_HEADER_BOMB

__all__ = ["Nghttp2Session"]

_ENABLE_PUSH: Final = 2
_MAX_CONCURRENT_STREAMS: Final = 3
_INITIAL_WINDOW_SIZE: Final = 4
_ENABLE_CONNECT_PROTOCOL: Final = 8


class Nghttp2Session:
    """One end of a connection."""

    __slots__ = (
        "_connection",
        "_finished",
        "_last_words",
        "_over",
        "_reset_by_peer",
        "_resets",
        "_settings",
        "_watch",
        "events",
        "last_stream",
        "peer_allows_push",
        "peer_connect_protocol",
        "peer_max_streams",
    )

    def __init__(
        self,
        settings: SessionSettings,
        *,
        client: bool,
        clock: Callable[[], float] = time.monotonic,
        start: bool = True,
    ) -> None:
        self.events: deque[Event] = deque()
        self.peer_max_streams = 100
        self.peer_connect_protocol = False
        self.peer_allows_push = not client
        self.last_stream = 0
        """The highest stream that the peer opened."""
        self._settings = settings
        self._watch = FloodWatch(
            settings.flood, clock, preface=not client, most_streams=settings.max_concurrent_streams
        )
        self._resets: set[int] = set()
        """Streams that we have reset and that nghttp2 has not yet reported closed."""
        self._reset_by_peer = 0
        """The stream that the peer reset last."""
        self._finished = False
        """GOAWAY was said, and the last stream is over."""
        self._over = False
        """`Ended` was the last event."""
        self._last_words: bytes | None = None
        """Set when the connection is beyond nghttp2's help: what is still to be said."""
        self._connection = ngh2.Connection(
            Role.CLIENT if client else Role.SERVER,
            Configuration(
                auto_window_update=False,
                max_continuations=MAX_CONTINUATIONS,
                max_inbound_header_list_size=settings.max_header_list_size * MAX_HEADER_BOMB,
                max_inbound_header_count=settings.max_header_list_size * MAX_HEADER_BOMB // 32,
                # Ours are counted by the watch, which comes first.
                stream_reset_rate_limit=(settings.flood.reset * 10, settings.flood.reset),
            ),
        )
        if start:
            self._connection.initiate_connection(settings_of(settings, client=client))
            self._connection.set_local_window_size(settings.connection_window_size)

    def upgraded(self, payload: bytes, head: bool) -> None:
        settings = self._settings
        try:
            self._connection.initiate_upgrade(
                payload, local_settings=settings_of(settings, client=False), head_request=head
            )
        except (NGH2Error, ValueError) as error:
            raise ValueError(str(error)) from None
        self._connection.set_local_window_size(settings.connection_window_size)
        self._watch.upgraded()
        self.last_stream = 1

    # --- receiving -----------------------------------------------------------

    def feed(self, data: bytes) -> None:
        if self._over:
            return
        verdict = self._watch.see(data)
        if verdict is not None:
            self._terminate(*verdict)
            return
        connection = self._connection
        try:
            connection.receive_data(data)
        except NGH2Error as error:
            self._translate(connection.events())
            self._give_up(error)
            return
        self._translate(connection.events())

    def _give_up(self, error: NGH2Error) -> None:
        if self._finished:  # both sides had said that they were done
            code, self._last_words = Code.NO_ERROR, b""
        else:
            code = Code.ENHANCE_YOUR_CALM if isinstance(error, DenialOfServiceError) else Code.PROTOCOL_ERROR
            self._last_words = goaway_frame(self.last_stream, code)
        self._end(code, str(error))

    def _end(self, code: int, message: str) -> None:
        self._over = True
        self.events.append(Ended(code, message, by_peer=False))

    def _translate(self, received: list[Any]) -> None:
        out = self.events.append
        for event in received:
            kind = event.__class__
            if kind is RequestReceived:
                self.last_stream = event.stream_id
                out(Head(event.stream_id, event.headers, event.end_stream))
            elif kind is DataReceived:
                data = event.data
                out(Data(event.stream_id, data, event.end_stream, len(data)))
            elif kind is ResponseReceived:
                out(Head(event.stream_id, event.headers, event.end_stream))
            elif kind is StreamClosed:
                self._closed(event)
            elif kind is WindowUpdated:
                out(WindowOpened(event.stream_id))
            elif kind is TrailersReceived:
                out(Trailers(event.stream_id, event.headers))
            elif kind is StreamReset:
                self._reset_by_peer = event.stream_id  # if there is such a stream, it is reported closed next
            else:
                self._translate_rare(event, kind)

    def _translate_rare(self, event: Any, kind: type) -> None:
        out = self.events.append
        if kind is InformationalResponseReceived:
            out(Interim(event.stream_id, event.headers))
        elif kind is SettingsReceived:
            said = event.settings  # what the connection remembers cannot be asked for once it has failed
            self.peer_max_streams = said.get(_MAX_CONCURRENT_STREAMS, self.peer_max_streams)
            self.peer_allows_push = self.peer_allows_push and said.get(_ENABLE_PUSH, 1) == 1
            self.peer_connect_protocol = self.peer_connect_protocol or said.get(_ENABLE_CONNECT_PROTOCOL, 0) == 1
            out(SettingsChanged())
            if _INITIAL_WINDOW_SIZE in event.settings:
                out(WindowOpened(0))
        elif kind is PingAcknowledged:
            out(Pong(event.opaque_data))
        elif kind is GoAwayReceived:
            out(GoAway(event.last_stream_id, event.error_code, event.debug_data))
        elif kind is ConnectionClosed:
            if event.error_code == Code.NO_ERROR:
                self._finished = True
            else:
                self._end(event.error_code, event.debug_data.decode("latin-1"))

    def _closed(self, event: Any) -> None:
        """A stream is over. If neither side had ended it, nghttp2 did, because the peer broke a rule on it."""
        stream = event.stream_id
        if stream == self._reset_by_peer:
            self._resets.discard(stream)
            self.events.append(Reset(stream, event.error_code, by_peer=True))
        elif stream in self._resets:
            self._resets.discard(stream)
        elif event.error_code != Code.NO_ERROR:
            self.events.append(Reset(stream, event.error_code, by_peer=False))
            self._provoked()

    def _provoked(self) -> None:
        if self._watch.count("reset streams") is not None and not self._over:
            self._terminate(Code.ENHANCE_YOUR_CALM, "too many: reset streams")

    def _terminate(self, code: int, message: str) -> None:
        try:
            self._connection.terminate_connection(code)
            self._last_words = self._connection.data_to_send()
        except NGH2Error:
            self._last_words = goaway_frame(self.last_stream, code)
        self._end(code, message)

    # --- sending -------------------------------------------------------------

    def outgoing(self, most: int) -> bytes:
        if self._last_words is not None:
            words, self._last_words = self._last_words, b""
            return words
        try:
            data = self._connection.data_to_send(most)
        except ConnectionStateError:
            return b""
        self._translate(self._connection.events())  # what sending ends: streams, and the connection after its GOAWAY
        return data

    def request(self, fields: Fields, end: bool) -> int:
        try:
            return self._connection.send_request(fields, end_stream=end)
        except NGH2Error:
            return 0

    def respond(self, stream: int, fields: Fields, end: bool) -> None:
        try:
            self._connection.send_response(stream, fields, end_stream=end)
        except NGH2Error:
            pass  # the stream is over

    def interim(self, stream: int, fields: Fields) -> None:
        try:
            self._connection.send_informational_response(stream, fields)
        except NGH2Error:
            pass

    def send(self, stream: int, data: bytes, end: bool) -> None:
        self._watch.sent(len(data))
        try:
            self._connection.send_data(stream, data, end_stream=end)
        except NGH2Error:
            pass

    def trail(self, stream: int, fields: Fields) -> None:
        try:
            self._connection.send_trailers(stream, fields)
        except NGH2Error:
            pass

    def queued(self, stream: int) -> int:
        try:
            return self._connection.queued_body_size(stream)
        except NGH2Error:
            return 0

    def push(self, stream: int, fields: Fields) -> int:
        if self._over:
            return 0
        try:
            return self._connection.send_push_promise(stream, fields)
        except NGH2Error:
            return 0

    def reset(self, stream: int, code: int) -> None:
        self._resets.add(stream)
        try:
            self._connection.reset_stream(stream, code)
        except NGH2Error:
            self._resets.discard(stream)

    def refuse(self, stream: int, code: int) -> None:
        self.reset(stream, code)
        self._provoked()

    def give_back(self, stream: int, flow: int) -> None:
        try:
            self._connection.acknowledge_received_data(flow, stream)
        except (NGH2Error, ValueError):
            pass  # the connection is over

    def configure(self, settings: SessionSettings) -> None:
        try:
            self._connection.update_settings(settings_of(settings, client=self._connection.role is Role.CLIENT))
        except NGH2Error:
            pass

    def ping(self, data: bytes) -> None:
        try:
            self._connection.ping(data)
        except NGH2Error:
            pass

    def shutdown_notice(self) -> None:
        try:
            self._connection.send_shutdown_notice()
        except NGH2Error:
            pass

    def goaway(self, code: int, debug: bytes = b"") -> None:
        try:
            self._connection.send_goaway(code, debug_data=debug)
        except NGH2Error:
            pass
