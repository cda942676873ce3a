"""The pure HTTP/2 engine: the `h2` library; implements `gw.http.h2.Session`.

`h2` is given one frame at a time, so that what came before a bad frame is not
lost with it. Three things that a proxy needs and `h2` has not are here: a body
waits for its window in a queue, a GOAWAY does not end the streams that are open
(`h2` would close the connection), and what makes one message malformed resets
one stream.
"""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    InformationalResponseReceived,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import DenialOfServiceError, FrameTooLargeError, H2Error, ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import HPACKError
from hyperframe.exceptions import HyperframeError

from gw.http.flood import FloodWatch
from gw.http.framing import Fields
from gw.http.h2 import (
    PREFACE,
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
from gw.limits import MAX_HEADER_BOMB

__all__ = ["HyperSession"]

_HEADER: Final = 9
_GOAWAY: Final = 0x7
_RST_STREAM: Final = 0x3
_NO_LIMIT: Final = 2**31 - 1
_TABLE_SIZE: Final = SettingCodes.HEADER_TABLE_SIZE
_DEFAULTS: Final = {
    _TABLE_SIZE: 4096,
    SettingCodes.INITIAL_WINDOW_SIZE: 65535,
    SettingCodes.MAX_CONCURRENT_STREAMS: 100,
}
"""What a peer may take for granted before it has heard of ours."""


class _Outbound:
    """What waits of one stream's body, and what follows it."""

    __slots__ = ("chunks", "ends", "size", "trailers")

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.size = 0
        self.ends = False
        self.trailers: Fields | None = None


class HyperSession:
    """One end of a connection."""

    __slots__ = (
        "_client",
        "_connection",
        "_ended",
        "_extra",
        "_going",
        "_held",
        "_lengths",
        "_outbound",
        "_preface",
        "_said",
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
        self._client = client
        self._settings = settings
        self._watch = FloodWatch(
            settings.flood, clock, preface=not client, most_streams=settings.max_concurrent_streams
        )
        self._ended = False
        self._going: int | None = None
        """The last stream that our GOAWAY promised; streams above it are refused."""
        self._preface = b"" if client else PREFACE
        """What is still to come of the client's."""
        self._held = b""
        """The beginning of a frame."""
        self._said = b""
        """Frames that `h2` had made before the last bytes came."""
        self._extra = b""
        """Frames of ours that `h2` does not know about."""
        self._outbound: dict[int, _Outbound] = {}
        self._lengths: dict[int, int] = {}
        """What is still to come of bodies whose length was declared."""
        self._connection = connection = H2Connection(
            H2Configuration(
                client_side=client,
                header_encoding=None,
                validate_inbound_headers=False,  # gw.http.pseudo does, and resets the stream only
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                split_outbound_cookies=False,
            )
        )
        said = {SettingCodes(key): value for key, value in settings_of(settings, client=client).items()}
        connection.local_settings = Settings(client=client, initial_values=said)
        connection.decoder.max_allowed_table_size = max(settings.header_table_size, _DEFAULTS[_TABLE_SIZE])
        connection.max_inbound_frame_size = settings.max_frame_size
        if start:
            connection.initiate_connection()
            self._grow(settings)

    def _grow(self, settings: SessionSettings) -> None:
        """Set what the connection as a whole may hold, after our SETTINGS were said."""
        # What is less than the peer assumes counts from its acknowledgement on (RFC 9113 section 6.5.3).
        said = self._connection.local_settings._settings
        for key, assumed in _DEFAULTS.items():
            if key in said and said[key][0] < assumed:
                said[key].appendleft(assumed)
        self._connection.decoder.max_header_list_size = settings.max_header_list_size * MAX_HEADER_BOMB
        if settings.connection_window_size > 65535:  # what a connection begins with, and never falls below
            self._connection.increment_flow_control_window(settings.connection_window_size - 65535)

    def upgraded(self, payload: bytes, head: bool) -> None:
        try:
            self._connection.initiate_upgrade_connection(base64.urlsafe_b64encode(payload))
        except (H2Error, HyperframeError) as error:
            raise ValueError(str(error)) from None
        self._grow(self._settings)
        self._receive_settings_now()
        self._watch.upgraded()
        self.last_stream = 1

    # --- receiving -----------------------------------------------------------

    def feed(self, data: bytes) -> None:
        if self._ended:
            return
        verdict = self._watch.see(data)
        if verdict is not None:
            self._give_up(*verdict)
            return
        data = self._held + data
        at, size = 0, len(data)
        said = self._connection.data_to_send()
        try:
            if self._preface:
                at = min(size, len(self._preface))
                self._connection.receive_data(data[:at])  # raises where it is not the preface
                self._preface = self._preface[at:]
            while at + _HEADER <= size:
                length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
                end = at + _HEADER + length
                if length > self._settings.max_frame_size:
                    raise FrameTooLargeError(f"a frame of {length} bytes")  # h2 would wait for all of it
                if end > size:
                    break
                frame = data[at:end]
                at = end
                if frame[3] == _GOAWAY and length >= 8:
                    self._receive_goaway(frame)
                elif frame[3] == _RST_STREAM and self._is_idle(int.from_bytes(frame[5:9])):
                    raise ProtocolError("RST_STREAM on a stream that nobody opened")  # noqa: TRY301  # as h2 does itself
                else:
                    self._translate(self._connection.receive_data(frame))
        except ProtocolError as error:
            self._connection.clear_outbound_data_buffer()  # its own GOAWAY, whose code is not always the right one
            undecodable = isinstance(error.__cause__, HPACKError) and not isinstance(error, DenialOfServiceError)
            self._give_up(Code.COMPRESSION_ERROR if undecodable else int(error.error_code), str(error))
        self._said += said
        self._held = data[at:]

    def _give_up(self, code: int, message: str) -> None:
        self._ended = True
        # An H2Connection is a circle of references. What it holds of an endless head shall not wait for the collector.
        self._connection.incoming_buffer = None  # type: ignore[assignment]
        self._extra += goaway_frame(self.last_stream, code)
        self.events.append(Ended(code, message, by_peer=False))

    def _is_idle(self, stream: int) -> bool:
        connection = self._connection
        ours = stream % 2 == self._client
        return stream > (connection.highest_outbound_stream_id if ours else connection.highest_inbound_stream_id)

    def _receive_goaway(self, frame: bytes) -> None:
        if frame[5:9] != b"\0\0\0\0":
            raise ProtocolError("GOAWAY on a stream")
        last = int.from_bytes(frame[9:13]) & 0x7FFFFFFF
        self.events.append(GoAway(last, int.from_bytes(frame[13:17]), frame[17:]))

    def _translate(self, received: list[Any]) -> None:
        out = self.events.append
        for at, event in enumerate(received):
            kind = event.__class__
            if kind is RequestReceived or kind is ResponseReceived:
                self._receive_head(event)
            elif kind is DataReceived:
                self._receive_data(event)
            elif kind is TrailersReceived:
                if event.stream_ended is None:
                    self.refuse(event.stream_id, Code.PROTOCOL_ERROR)
                    out(Reset(event.stream_id, Code.PROTOCOL_ERROR, by_peer=False))
                elif self._is_whole(event.stream_id):
                    out(Trailers(event.stream_id, event.headers))
            elif kind is StreamReset:
                self._outbound.pop(event.stream_id, None)
                self._lengths.pop(event.stream_id, None)
                out(Reset(event.stream_id, int(event.error_code), by_peer=event.remote_reset))
                if not event.remote_reset:
                    self._provoked()
            elif kind is WindowUpdated:
                out(WindowOpened(event.stream_id))
            elif kind is InformationalResponseReceived:
                out(Interim(event.stream_id, event.headers))
            elif kind is PingAckReceived:
                out(Pong(event.ping_data))
            elif kind is RemoteSettingsChanged:
                self._receive_settings(event)
            elif kind is StreamEnded and at == 0:
                out(Data(event.stream_id, b"", end=True, flow=0))

    def _receive_head(self, event: Any) -> None:
        stream = event.stream_id
        end = event.stream_ended is not None
        if not self._client:
            self.last_stream = stream
            if self._going is not None and stream > self._going:
                self.reset(stream, Code.REFUSED_STREAM)
                return
        # h2 ends the connection over a body of the wrong length; it is the message that is malformed.
        state = self._connection.streams.get(stream)
        if state is not None:
            state._expected_content_length = None
        if not self._client and not end:
            for name, value in event.headers:
                if name == b"content-length" and value.isdigit() and len(value) < 20:
                    self._lengths[stream] = int(value)
        self.events.append(Head(stream, event.headers, end))

    def _receive_data(self, event: Any) -> None:
        stream, data, end = event.stream_id, event.data, event.stream_ended is not None
        left = self._lengths.get(stream)
        if left is not None:
            self._lengths[stream] = left = left - len(data)
            if left < 0:
                self.give_back(stream, event.flow_controlled_length)
                self._break(stream, Code.PROTOCOL_ERROR)
                return
        padding = event.flow_controlled_length - len(data)
        if padding:
            self.give_back(stream, padding)
        if end and not self._is_whole(stream):
            self.give_back(stream, len(data))
            return
        if data or end:
            self.events.append(Data(stream, data, end, len(data)))

    def _is_whole(self, stream: int) -> bool:
        """Tell whether a body that ends is as long as it was declared; reset the stream if not."""
        if self._lengths.pop(stream, 0):
            self._break(stream, Code.PROTOCOL_ERROR)
            return False
        return True

    def _break(self, stream: int, code: int) -> None:
        self.events.append(Reset(stream, code, by_peer=False))
        self.refuse(stream, code)

    def _provoked(self) -> None:
        flood = self._watch.count("reset streams")
        if flood is not None and not self._ended:
            self._give_up(Code.ENHANCE_YOUR_CALM, f"too many: {flood}")

    def _receive_settings_now(self) -> None:
        now = self._connection.remote_settings
        self.peer_max_streams = min(now.max_concurrent_streams, _NO_LIMIT)
        self.peer_allows_push = self.peer_allows_push and now.enable_push == 1
        self.peer_connect_protocol = now.enable_connect_protocol == 1

    def _receive_settings(self, event: Any) -> None:
        self._receive_settings_now()
        self.events.append(SettingsChanged())
        if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
            self.events.append(WindowOpened(0))

    # --- sending -------------------------------------------------------------

    def outgoing(self, most: int) -> bytes:
        if self._outbound and not self._ended:
            self._frame_bodies(most)
        said, self._said = self._said, b""
        extra, self._extra = self._extra, b""
        return said + self._connection.data_to_send(most) + extra

    def _frame_bodies(self, most: int) -> None:
        """Frame what the windows let go, each stream in its turn."""
        connection = self._connection
        for stream in tuple(self._outbound):
            out = self._outbound[stream]
            try:
                while out.chunks and len(connection._data_to_send) < most:
                    room = min(connection.local_flow_control_window(stream), connection.max_outbound_frame_size)
                    if room <= 0:
                        break
                    chunk = out.chunks.popleft()
                    if len(chunk) > room:
                        out.chunks.appendleft(chunk[room:])
                        chunk = chunk[:room]
                    out.size -= len(chunk)
                    last = out.ends and not out.chunks and out.trailers is None
                    connection.send_data(stream, chunk, end_stream=last)
                    if last:
                        del self._outbound[stream]
                if not out.chunks and stream in self._outbound:
                    if out.trailers is not None:
                        connection.send_headers(stream, out.trailers, end_stream=True)
                    elif out.ends:
                        connection.end_stream(stream)
                    del self._outbound[stream]
            except (H2Error, KeyError):
                self._outbound.pop(stream, None)  # the stream is over

    def request(self, fields: Fields, end: bool) -> int:
        try:
            stream = self._connection.get_next_available_stream_id()
            self._connection.send_headers(stream, fields, end_stream=end)
        except H2Error:
            return 0
        return stream

    def respond(self, stream: int, fields: Fields, end: bool) -> None:
        try:
            self._connection.send_headers(stream, fields, end_stream=end)
        except H2Error:
            pass  # the stream is over

    def interim(self, stream: int, fields: Fields) -> None:
        self.respond(stream, fields, False)

    def send(self, stream: int, data: bytes, end: bool) -> None:
        self._watch.sent(len(data))
        out = self._outbound.get(stream)
        if out is None:
            if stream not in self._connection.streams:
                return
            out = self._outbound[stream] = _Outbound()
        if data:
            out.chunks.append(bytes(data))  # what was read may come as a view of it
            out.size += len(data)
        out.ends = end

    def trail(self, stream: int, fields: Fields) -> None:
        self.send(stream, b"", end=True)
        out = self._outbound.get(stream)
        if out is not None:
            out.trailers = fields

    def queued(self, stream: int) -> int:
        out = self._outbound.get(stream)
        return 0 if out is None else out.size

    def push(self, stream: int, fields: Fields) -> int:
        promised = self._connection.get_next_available_stream_id()
        try:
            self._connection.push_stream(stream, promised, fields)
        except H2Error:
            return 0
        return promised

    def reset(self, stream: int, code: int) -> None:
        self._outbound.pop(stream, None)
        self._lengths.pop(stream, None)
        try:
            self._connection.reset_stream(stream, code)
        except H2Error:
            pass

    def refuse(self, stream: int, code: int) -> None:
        self.reset(stream, code)
        self._provoked()

    def give_back(self, stream: int, flow: int) -> None:
        if flow:
            try:
                self._connection.acknowledge_received_data(flow, stream)
            except (H2Error, ValueError):
                pass  # the connection is over

    def configure(self, settings: SessionSettings) -> None:
        self._settings = settings
        try:
            self._connection.update_settings({**settings_of(settings, client=self._client)})
        except H2Error:
            pass

    def ping(self, data: bytes) -> None:
        try:
            self._connection.ping(data)
        except H2Error:
            pass

    def shutdown_notice(self) -> None:
        self._extra += goaway_frame(_NO_LIMIT, Code.NO_ERROR)

    def goaway(self, code: int, debug: bytes = b"") -> None:
        self._going = self.last_stream
        frame = goaway_frame(self.last_stream, code)
        self._extra += (8 + len(debug)).to_bytes(3) + frame[3:] + debug
