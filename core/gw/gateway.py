"""The gateway: listeners, the connections on them, and the generation they are served by.

What an embedding program uses. `run` is what `gw serve` calls.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.abc import TaskGroup

from gw.chain import Chain
from gw.config.errors import ConfigError
from gw.downstream.http1 import Http1Connection, Http1Settings
from gw.filters import Exchange, Reply
from gw.generation import UNMATCHED, Current, Generation, Shared, build
from gw.http.engines import Engine, EngineMissing, choose
from gw.http.fields import client_address
from gw.http.framing import drop_named
from gw.http.h1 import ReaderLimits
from gw.http.paths import BadTarget, parse_target
from gw.keys import Client
from gw.limits import GC_THRESHOLD, MAX_HEADER_COUNT, MAX_REQUEST_ID_LENGTH, MAX_TRAILER_SIZE
from gw.net.network import Listener, Network
from gw.net.stream import Stream
from gw.ops import logs
from gw.ops.access_log import AccessLog
from gw.ops.log_files import LineSink, LogFileError

if TYPE_CHECKING:
    from gw.config.load import Loaded

__all__ = ["Gateway", "run"]

log = logging.getLogger("gw.gateway")

_NO_FILTERS: Final = Chain(())
_TOO_MANY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 19\r\n"
    b"retry-after: 1\r\nconnection: close\r\n\r\nService Unavailable"
)
_CONNECT: Final = Reply(501, b"CONNECT is not supported", (("content-type", "text/plain"),), "gw.connect", close=True)


class Gateway:
    """One configuration, served. Nothing about it is global: several may run in one process."""

    def __init__(self, loaded: Loaded) -> None:
        config = loaded.config
        self._loaded = loaded
        self.engine: Engine = choose(config.engine)
        self.http1 = Http1Settings(
            limits=ReaderLimits(
                config.max_header_size,
                MAX_HEADER_COUNT,
                min(config.max_header_size or MAX_TRAILER_SIZE, MAX_TRAILER_SIZE),
            ),
            idle_timeout=config.idle_timeout_sec,
            head_timeout=config.request_timeout_sec,
            body_timeout=config.body_timeout_sec,
            min_body_rate=config.min_body_rate,
            send_timeout=config.send_timeout_sec,
            min_send_rate=config.min_send_rate,
            max_body_size=config.max_body_size,
            max_requests=config.max_requests_per_connection,
            write_high=config.http1.streaming.high_water_bytes,
            write_low=config.http1.streaming.low_water_bytes,
            server=config.server_header.encode("ascii"),
        )
        self.draining = False
        self.connections: set[Http1Connection] = set()
        self.rejected = 0
        """Connections turned away because of `max_connections`."""
        self.address: tuple[str, int] | None = None
        """Where it listens, once it does."""
        self._trusted = config.trusted_proxies
        self._ids = _RequestIds(config.request_id.header, config.request_id.trust)
        self._access_log: Callable[[Exchange], None] | None = None
        self._shared = Shared()
        self._current = Current(config.shutdown_drain_timeout_sec)
        self._stop = anyio.Event()
        self._network: Network | None = None

    # --- for the embedding program -------------------------------------------------

    async def serve(
        self,
        *,
        sock: socket.socket | None = None,
        ready: Callable[[], None] | None = None,
        network: Callable[[TaskGroup], Network] = Network,
    ) -> None:
        """Listen, on *sock* if given, and serve until `stop` or cancellation; then drain.

        Raises `OSError` when it cannot listen, and what `gw.generation.build` raises.
        """
        config = self._loaded.config
        access_log: AccessLog | None = None
        failure: Exception | None = None
        listener: Listener | None = None
        async with anyio.create_task_group() as tasks:
            self._network = net = network(tasks)
            tasks.start_soon(net.deadlines.run)
            try:
                access_log = self._open_access_log(net)
                generation = await build(1, self._loaded, net, self.engine, self._shared)
                await self._current.switch(generation)
                listener = await net.listen(sock or (config.bind_host, config.bind_port), self._serve_connection)
                self.address = listener.address
                if ready is not None:
                    ready()
                await self._stop.wait()
                self.draining = True
                listener.close()
                await self._drain(config.shutdown_drain_timeout_sec)
            except Exception as error:  # noqa: BLE001  # raised below, where no task group wraps it
                failure = error
            finally:
                if listener is not None:
                    listener.close()
                tasks.cancel_scope.cancel()  # what is still under way has had its time
                with anyio.CancelScope(shield=True):
                    await self._current.switch(None)
                if access_log is not None:
                    access_log.close()
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """Begin to drain; `serve` returns when that is done."""
        self._stop.set()

    # --- the Host of its connections -----------------------------------------------

    async def handle(self, ex: Exchange, down: Http1Connection, refusal: Reply | None = None) -> None:
        """Route one exchange and carry it to its end. Raises only cancellation."""
        generation = self._current.now
        if generation is None:  # it came while the last connections were being cut off
            down.reset()
            return
        generation.users += 1
        try:
            if refusal is None:
                refusal = self._admit(ex, generation, down)
            if refusal is not None:
                ex.request_id = ex.request_id or self._ids.make()
                down.via = b""
                await _NO_FILTERS.run(ex, down, refusal)
                return
            found = generation.router.find(ex.request)
            if isinstance(found, tuple):
                route, ex.params = found
                ex.route = route.info
                down.via = route.via
                down.max_body_size = limit = route.max_body_size
                if limit and (ex.request.content_length or 0) > limit:
                    await _NO_FILTERS.run(ex, down, Reply(413, reason="gw.body_too_large", close=True))
                else:
                    await route.chain.run(ex, down, route.target)
            else:
                ex.route = UNMATCHED
                down.via, down.max_body_size = b"", self.http1.max_body_size
                await generation.unmatched.run(ex, down, _unmatched_reply(ex, found.allow))
        finally:
            if self._access_log is not None:
                self._access_log(ex)
            generation.users -= 1
            if generation.users == 0 and generation.idle is not None:
                generation.idle.set()

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert self._network is not None
        self._network.tasks.start_soon(run)

    def _admit(self, ex: Exchange, generation: Generation, down: Http1Connection) -> Reply | None:
        """Settle who asks for what; return why not, if it cannot be settled."""
        request = ex.request
        client = ex.client
        if client.trusted:
            ip, scheme = client_address(client.peer, request.headers, self._trusted)
            ex.client = client = Client(ip, client.peer, client.port, scheme or client.scheme, trusted=True)
            if self._loaded.config.explain and request.headers.get("x-gw-explain") == "1":
                ex.notes = []
        if request.named_hops is not None:  # before any filter can add a field of that name
            drop_named(request)
        ids = self._ids
        ex.request_id = ids.choose(ex) if client.trusted or ids.always else ids.make()
        request.scheme = client.scheme
        try:
            authority, request.path, request.query = parse_target(request.target, generation.paths, request.method)
        except BadTarget as error:
            return _CONNECT if request.method == "CONNECT" else _bad_request(str(error))
        ex.matched_path = request.path
        if authority:  # absolute-form: the target's host is the one that counts (RFC 9112 section 3.2.2)
            request.host = authority
        ex.asked_host = request.host
        return None

    # --- inside ------------------------------------------------------------------------

    async def _serve_connection(self, stream: Stream) -> None:
        most = self._loaded.config.max_connections
        if most and len(self.connections) >= most:
            self.rejected += 1
            if self.rejected & (self.rejected - 1) == 0:  # 1, 2, 4, 8, ...: a flood must not flood the log
                log.warning("max_connections (%d) reached; %d turned away so far", most, self.rejected)
            stream.write(_TOO_MANY)
            stream.close()
            return
        peer, port = stream.peer
        connection = Http1Connection(stream, self, Client(peer, peer, port, trusted=self._trusts(peer)))
        self.connections.add(connection)
        try:
            await connection.serve()
        except Exception:
            log.exception("a connection ended in an error that is a bug in gw; please report it")
        finally:
            self.connections.discard(connection)

    def _trusts(self, peer: str) -> bool:
        if not self._trusted:
            return False
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)

    def _open_access_log(self, network: Network) -> AccessLog | None:
        settings = self._loaded.config.log.access
        if not settings.enabled:
            return None
        access_log = AccessLog(settings.format, settings.template, LineSink(settings.file))
        network.deadlines.every_tick(access_log.flush)
        self._access_log = access_log
        return access_log

    async def _drain(self, patience: float) -> None:
        """Let what runs finish, for so long; then cut it off."""
        with anyio.move_on_after(patience):
            while self.connections:
                for connection in tuple(self.connections):
                    connection.drain()
                await anyio.sleep(0.05)
        for connection in tuple(self.connections):
            connection.cut()


class _RequestIds:
    """Makes request identifiers: 128 random bits, as 32 hexadecimal digits."""

    __slots__ = ("_at", "_header", "_random", "always", "trusted")

    def __init__(self, header: str, trust: str) -> None:
        self._header = header
        self.always = trust == "always"
        self.trusted = trust != "never"
        self._random, self._at = b"", 0

    def make(self) -> str:
        at = self._at
        if at == len(self._random):
            self._random, at = os.urandom(4096), 0
        self._at = at + 16
        return self._random[at : at + 16].hex()

    def choose(self, ex: Exchange) -> str:
        """Return a trusted client's own identifier, unless none is to be kept; else a new one."""
        theirs = ex.request.headers.get(self._header) if self.always or self.trusted else None
        if theirs and len(theirs) <= MAX_REQUEST_ID_LENGTH and theirs.isascii() and theirs.isprintable():
            return theirs
        return self.make()


def _bad_request(message: str) -> Reply:
    return Reply(400, message.encode(), (("content-type", "text/plain"),), "gw.bad_request", close=True)


def _unmatched_reply(ex: Exchange, allow: tuple[str, ...]) -> Reply:
    if ex.request.path == "*" and ex.request.method == "OPTIONS":
        return Reply(200, b"", (("allow", ", ".join(allow)),), "gw.options")
    if allow:
        return Reply(405, headers=(("allow", ", ".join(allow)),), reason="gw.method_not_allowed")
    return Reply(404, reason="gw.no_route")


# --- gw serve --------------------------------------------------------------------------------


def loop_name(setting: str) -> str:
    """Return which event loop a setting means on this machine."""
    if setting == "auto":
        return "uvloop" if find_spec("uvloop") is not None else "asyncio"
    return setting


def run(loaded: Loaded) -> int:
    """Serve *loaded* until a signal says to stop; return the process's exit code."""
    config = loaded.config
    loop = loop_name(config.loop)
    if find_spec(loop) is None:
        sys.stderr.write(f"cannot serve: {loop} is not installed; run pip install {loop}, or set loop to auto\n")
        return 1
    try:
        application_log = logs.configure(
            config.log.level,
            file=config.log.file,
            format=config.log.format,
            max_file_size=config.log.max_file_size,
            max_files=config.log.max_files,
            console=True,
        )
    except LogFileError as error:
        sys.stderr.write(f"cannot serve: {error}\n")
        return 1
    # An exchange makes no reference cycles (a test holds that), so the collector need not look often, nor at what
    # was there before the first one.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    try:
        gateway_failed = anyio.run(
            _main,
            loaded,
            backend="trio" if loop == "trio" else "asyncio",
            backend_options={"use_uvloop": True} if loop == "uvloop" else {},
        )
    finally:
        application_log.close()
    return gateway_failed


async def _main(loaded: Loaded) -> int:
    failed = 0
    # The receiver comes first: whoever reads that we listen may send the signal at once.
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            try:
                gateway = Gateway(loaded)
                tasks.start_soon(_until_signal, signals, gateway, tasks.cancel_scope)
                await gateway.serve(ready=partial(_report_ready, gateway))
            except (OSError, ValueError, ConfigError, EngineMissing, LogFileError) as error:
                log.critical("cannot serve: %s", error.strerror if isinstance(error, OSError) else error)
                failed = 1
            tasks.cancel_scope.cancel()
    return failed


async def _until_signal(signals: AsyncIterator[signal.Signals], gateway: Gateway, scope: anyio.CancelScope) -> None:
    async for number in signals:
        if gateway.draining:
            log.warning("stopping now: %s came a second time", number.name)
            scope.cancel()
            return
        log.info("stopping: %s", number.name)
        gateway.stop()


def _report_ready(gateway: Gateway) -> None:
    assert gateway.address is not None
    host, port = gateway.address
    log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
