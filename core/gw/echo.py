"""A small upstream that says back what it was sent: ``python -m gw.echo --port 9000``.

For trying the gateway out and for testing it over sockets. It reads with gw's own engine and writes by hand, so that
a test sees what was sent and not what a server's framework made of it. No filters, no configuration, no proxying here.

Every path answers with the request as JSON, except:

* ``/stream?n=3&size=10``: *n* chunks of *size* bytes;
* ``/bytes?n=1000``: a body of *n* bytes, with its length declared;
* ``/trailers``: the request as JSON, chunked, with the trailer fields ``x-body-size`` and ``x-body-sha256``;
* ``/slow?ms=500``: the request as JSON, after so many milliseconds;
* ``/hints``: a 103 before the JSON;
* ``/status/404``: an answer with that status;
* ``/early?then=read``: 413 before the body is read; ``then`` reads on (the default) or is ``close``;
* ``/open``: how many connections and exchanges there are now, this one included.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

import anyio
import anyio.lowlevel
import click

from gw.filters import Headers, Request
from gw.http.engines import choose
from gw.http.h1 import End, Malformed, ReaderLimits
from gw.http.replies import phrase
from gw.limits import ECHO_BODY, ECHO_DELAY, ECHO_HEAD_SIZE, ECHO_NUMBER
from gw.net.network import Network
from gw.net.stream import Stream, StreamLost

__all__ = ["Echo", "main", "serve"]

_LIMITS: Final = ReaderLimits(ECHO_HEAD_SIZE, 0, ECHO_HEAD_SIZE)
_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyz\n" * 2427
_WITHOUT_BODY: Final = frozenset({204, 205, 304})
_Fields: TypeAlias = Sequence[tuple[str, str]]


class _Refused(Exception):
    """A request that cannot be answered as asked: 400, and the text says why."""


@dataclass
class _Body:
    """What came with a request: its first bytes to be shown, and facts about the rest."""

    shown: bytearray = field(default_factory=bytearray)
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    trailers: Headers | None = None

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.digest.update(chunk)
        self.shown += chunk[: ECHO_BODY - len(self.shown)]


class Echo:
    """The upstream. *connections* and *exchanges* count what is open now."""

    def __init__(self) -> None:
        self.connections = 0
        self.exchanges = 0
        self.engine = choose("auto")

    async def serve(self, stream: Stream) -> None:
        """Serve one connection to its end."""
        self.connections += 1
        scope = anyio.CancelScope()
        stream.on_lost = scope.cancel
        try:
            with scope:
                await _Connection(self, stream).run()
        except StreamLost:
            pass
        finally:
            self.connections -= 1
            stream.close()


class _Connection:
    def __init__(self, echo: Echo, stream: Stream) -> None:
        self._echo, self._stream = echo, stream
        self._reader = echo.engine.request_reader(_LIMITS)

    async def run(self) -> None:
        while isinstance(request := await self._event(), Request):
            self._echo.exchanges += 1
            try:
                goes_on = await self._answer(request)
            finally:
                self._echo.exchanges -= 1
            if not goes_on:
                return
        if isinstance(request, Malformed) and not request.truncated:
            await self._write(request.status, f"{request.message}\n".encode(), close=True)

    async def _event(self) -> Request | bytes | End | Malformed | None:
        """Wait for the next event; `None` when there will be none."""
        events = self._reader.events
        while not events:
            try:
                self._reader.feed(await self._stream.receive())
            except anyio.EndOfStream:
                self._reader.feed_eof()
                return events.popleft() if events else None
        return events.popleft()

    async def _answer(self, request: Request) -> bool:
        """Answer *request*; tell whether the connection goes on."""
        query = dict(parse_qsl(request.query or "", keep_blank_values=True))
        if request.path == "/early" and request.has_body:
            await self._write(413, b"this came before your body was read\n", close=True, to=request)
            if query.get("then") != "close":
                await self._body(request)
            return False
        if request.expects_continue:
            await self._stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._body(request)
        if body is None:
            return False
        try:
            await self._special(request, query, body)
        except _Refused as refused:
            await self._write(400, f"{refused}\n".encode(), to=request)
        return request.keep_alive

    async def _body(self, request: Request) -> _Body | None:
        """Read the body; `None` if it breaks off or breaks the rules."""
        body = _Body()
        while not isinstance(event := await self._event(), End):
            if not isinstance(event, bytes):
                if isinstance(event, Malformed) and not event.truncated:
                    await self._write(event.status, f"{event.message}\n".encode(), close=True, to=request)
                return None
            body.add(event)
        body.trailers = event.trailers
        return body

    async def _special(self, request: Request, query: Mapping[str, str], body: _Body) -> None:
        path = request.path
        if path.startswith("/status/"):
            status = _number("status", path.removeprefix("/status/"), 200, 599)
            await self._write(status, b"" if status in _WITHOUT_BODY else _shown(request, body), to=request)
        elif path == "/bytes":
            await self._bytes(request, _number("n", query.get("n", "0"), 0, ECHO_NUMBER))
        elif path == "/stream":
            n, size = query.get("n", "10"), query.get("size", "10")
            chunk = _LETTERS[: _number("size", size, 1, len(_LETTERS))]
            await self._chunks(request, (chunk for _ in range(_number("n", n, 0, ECHO_NUMBER))))
        elif path == "/trailers":
            trailers = (("x-body-size", str(body.size)), ("x-body-sha256", body.digest.hexdigest()))
            await self._chunks(request, (_shown(request, body),), trailers)
        elif path == "/open":
            counts = {"connections": self._echo.connections, "exchanges": self._echo.exchanges}
            await self._write(200, _as_json(counts), to=request)
        else:
            if path == "/slow":
                await self._sleep(_number("ms", query.get("ms", "0"), 0, ECHO_DELAY) / 1000)
            elif path == "/hints":
                await self._stream.send(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n")
            await self._write(200, _shown(request, body), to=request)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but not for a client that has closed: there would be nothing else to wake us."""
        stream = self._stream
        if not stream.at_eof:
            with anyio.CancelScope() as scope:
                stream.on_eof = scope.cancel
                await anyio.sleep(seconds)
            stream.on_eof = None

    # --- writing ---------------------------------------------------------------

    async def _write(self, status: int, body: bytes, *, to: Request | None = None, close: bool = False) -> None:
        """Answer *to*, or whatever it was that came."""
        content_type = "application/json" if body.startswith(b"{") else "text/plain"
        fields = [("content-type", content_type)] if body else []
        if status not in (204, 304):
            fields.append(("content-length", str(len(body))))
        head = _head(status, fields, to, close=close)
        await self._stream.send(head if to is not None and to.method == "HEAD" else head + body)

    async def _send(self, piece: bytes) -> None:
        """Send part of a body, and let the loop turn: a client that takes all it is sent would never make us wait.

        Then nobody else would be served, nor would we see that it has left.
        """
        await self._stream.send(piece)
        await anyio.lowlevel.checkpoint()

    async def _bytes(self, request: Request, left: int) -> None:
        await self._stream.send(_head(200, [("content-length", str(left))], request))
        while left and request.method != "HEAD":
            piece = _LETTERS[:left]
            left -= len(piece)
            await self._send(piece)

    async def _chunks(self, request: Request, chunks: Iterable[bytes], trailers: _Fields = ()) -> None:
        """Answer chunked, or to HTTP/1.0 until the connection closes."""
        fields = []
        if request.version == "1.0":
            request.keep_alive = False
        else:
            fields.append(("transfer-encoding", "chunked"))
        if trailers:
            fields.append(("trailer", ", ".join(name for name, _ in trailers)))
        await self._stream.send(_head(200, fields, request))
        if request.method == "HEAD":
            return
        for chunk in chunks:
            await self._send(chunk if request.version == "1.0" else b"%x\r\n%b\r\n" % (len(chunk), chunk))
        if request.version == "1.1":
            await self._stream.send(b"0\r\n" + _lines(trailers) + b"\r\n")


def _head(status: int, fields: _Fields, to: Request | None, *, close: bool = False) -> bytes:
    closes = close or to is None or not to.keep_alive
    if closes or (to is not None and to.version == "1.0"):
        fields = [*fields, ("connection", "close" if closes else "keep-alive")]
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, phrase(status), _lines(fields))


def _lines(fields: _Fields) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in fields).encode("latin-1")


def _shown(request: Request, body: _Body) -> bytes:
    """Return the request as JSON. Text is Latin-1, which shows every byte as one character."""
    return _as_json(
        {
            "method": request.method,
            "path": request.target,
            "version": request.version,
            "headers": [*request.headers],
            "body": body.shown.decode("latin-1"),
            "body_size": body.size,
            "body_sha256": body.digest.hexdigest(),
            "trailers": None if body.trailers is None else [*body.trailers],
        }
    )


def _as_json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"


def _number(name: str, text: str, least: int, most: int) -> int:
    # Digits only, and not too many: int() takes signs, spaces and underscores, and is slow with thousands of digits.
    if text.isascii() and text.isdigit() and len(text) <= 12 and least <= int(text) <= most:
        return int(text)
    raise _Refused(f"{name} must be a number from {least} to {most}, not {text[:20]!r}")


async def serve(host: str, port: int) -> None:
    """Listen and serve until SIGTERM or SIGINT; say on standard output where. Raises `OSError`."""
    async with anyio.create_task_group() as tasks:
        network, echo = Network(tasks), Echo()
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            tasks.start_soon(network.deadlines.run)
            listener = await network.listen((host, port), echo.serve)
            address, port = listener.address
            click.echo(f"echo: listening on http://{f'[{address}]' if ':' in address else address}:{port}")
            async for _ in signals:
                break
            listener.close()
            tasks.cancel_scope.cancel()


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=9000, show_default=True, help="0 takes a free one.")
@click.pass_context
def main(ctx: click.Context, host: str, port: int) -> None:
    """Say back what is sent: an upstream to try the gateway with."""
    use_uvloop = find_spec("uvloop") is not None
    try:
        anyio.run(serve, host, port, backend_options={"use_uvloop": use_uvloop})
    except* OSError as group:
        for error in group.exceptions:
            click.echo(f"echo: {error.strerror if isinstance(error, OSError) else error}", err=True)
        ctx.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m gw.echo")
