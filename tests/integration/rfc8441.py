"""A WebSocket client over HTTP/2 as browsers are (RFC 8441), made of h2 and wsproto: none of it is the gateway's code."""

import socket

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RemoteSettingsChanged, ResponseReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from gw.testing import PATIENCE


class Refused(Exception):
    """The answer was no 200; *status* says what it was."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


class Client:
    """One WebSocket on one connection."""

    def __init__(self, port, path="/", *, subprotocol="chat"):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.http2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.frames = Connection(ConnectionType.CLIENT)
        self.headers = {}
        self.ended = self.reset = self._is_settled = False
        self.http2.initiate_connection()
        self._flush()
        while not self._is_settled:
            self._receive()
        assert self.http2.remote_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL] == 1
        self.stream = self.http2.get_next_available_stream_id()
        asked = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":authority", f"127.0.0.1:{port}"),
            (":path", path),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", subprotocol),
        ]
        self.http2.send_headers(self.stream, asked)
        self._flush()
        while not self.headers:
            assert not self.reset
            self._receive()
        if self.headers[":status"] != "200":
            self.close()
            raise Refused(int(self.headers[":status"]))

    def _flush(self):
        self.socket.sendall(self.http2.data_to_send())

    def _receive(self):
        data = self.socket.recv(65_536)
        assert data, "the gateway closed the connection"
        for event in self.http2.receive_data(data):
            if isinstance(event, RemoteSettingsChanged):
                self._is_settled = True
            elif isinstance(event, ResponseReceived):
                self.headers = dict(event.headers)
            elif isinstance(event, DataReceived):
                self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if event.data:
                    self.frames.receive_data(event.data)
            elif isinstance(event, StreamEnded):
                self.ended = True
            elif isinstance(event, StreamReset):
                self.reset = True
        self._flush()

    def _write(self, data):
        while data:
            room = min(self.http2.local_flow_control_window(self.stream), self.http2.max_outbound_frame_size)
            if room <= 0:
                self._receive()
                continue
            self.http2.send_data(self.stream, data[:room])
            data = data[room:]
            self._flush()

    def send(self, message):
        kind = TextMessage if isinstance(message, str) else BytesMessage
        self._write(self.frames.send(kind(data=message)))

    def ping(self):
        self._write(self.frames.send(Ping(payload=b"?")))

    def recv(self):
        """Return the next message, or the Close that comes instead."""
        parts = []
        while True:
            for event in self.frames.events():
                if isinstance(event, CloseConnection):
                    return event
                if isinstance(event, TextMessage | BytesMessage):
                    parts.append(event.data)
                    if event.message_finished:
                        return parts[0][:0].join(parts)
            assert not self.reset
            self._receive()

    def end(self, code=1000, reason="done"):
        """Close it as the RFC says; return the upstream's Close."""
        self._write(self.frames.send(CloseConnection(code, reason)))
        answer = self.recv()
        while not self.ended:
            assert not self.reset
            self._receive()
        return answer

    def answer(self, closed):
        self._write(self.frames.send(closed.response()))

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
