"""The gateway: listeners, the connections on them, and the generation they are served by.

What an embedding program uses. Processes, signals and files are the business of `gw.ops`.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_address
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from gw import status
from gw.applications import Application, Mount
from gw.chain import Chain
from gw.compiler import UNMATCHED, Proxied
from gw.context import Shared
from gw.downstream.asgi import AsgiStream
from gw.downstream.detect import Undecided
from gw.downstream.http1 import Http1Connection
from gw.downstream.http2 import Http2Connection, Http2Stream
from gw.filters import Exchange, Filter, Reply
from gw.generation import Current, Generation, build
from gw.hookspecs import LocalRoute, LocalWebSocket
from gw.http.engines import Engine, choose
from gw.http.fields import client_address
from gw.http.framing import drop_named
from gw.http.paths import BadTarget, parse_target
from gw.keys import Client
from gw.limits import CLOSING_GRACE
from gw.listening import Place, certificate_of, places
from gw.logs.access_log import AccessLog
from gw.logs.log_files import LineSink
from gw.net.deadlines import Deadlines
from gw.net.network import Listener, Network
from gw.net.stream import Stream
from gw.net.tls import Watch
from gw.request_ids import RequestIds
from gw.terms import http1_settings, http2_settings
from gw.websocket import WebSocket

if TYPE_CHECKING:
    from gw.config.load import Loaded
    from gw.config.model import GatewayConfig
    from gw.figures import Figures

__all__ = ["Gateway", "Prepared"]

log = logging.getLogger("gw.gateway")

Down: TypeAlias = Http1Connection | Http2Stream | AsgiStream
C = TypeVar("C", Http1Connection, Http2Connection)

_NO_FILTERS: Final = Chain(())
_TOO_MANY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 19\r\n"
    b"retry-after: 1\r\nconnection: close\r\n\r\nService Unavailable"
)
_NO_SOCKETS: Final[Mapping[str, socket.socket]] = MappingProxyType({})
_PROTOCOLS: Final = {Http1Connection: "http1", Http2Connection: "http2"}
_CONNECT: Final = Reply(501, b"CONNECT is not supported", (("content-type", "text/plain"),), "gw.connect", close=True)


@dataclass(slots=True, eq=False)
class Prepared:
    """A configuration brought to life beside the one that serves. Give it to `Gateway.commit` or `Gateway.discard`."""

    loaded: Loaded
    engine: Engine
    generation: Generation
    access_log: AccessLog | None
    places: list[Place]
    sockets: dict[str, socket.socket]
    """Listening sockets by the names of their listeners: of those that are new, or at another address."""


class Gateway:
    """One configuration after the other, served. Nothing about it is global: several may run in one process."""

    def __init__(self, loaded: Loaded, *, memory: Callable[[str], int] | None = None) -> None:
        """*memory* gives the descriptor of the memory that a plugin shares under a name with other processes."""
        self.draining = False
        self.connections: set[Http1Connection | Http2Connection | Undecided] = set()
        self.rejected = 0
        """Connections turned away because of `max_connections`."""
        self.requests = 0
        """Exchanges begun since the start."""
        self.addresses: dict[str, tuple[str, int]] = {}
        """Where it listens, by the names of the listeners, once it does."""
        self.places: list[Place] = []
        self._adopt(loaded, choose(loaded.config.engine))
        self._log: AccessLog | None = None
        self._told: Callable[[Exchange], None] | None = None
        """Told of each exchange that is over; `None` where nobody listens."""
        self.latencies: status.Latencies | None = None
        """How long exchanges take, where `admin` is there to show it."""
        self._shared = Shared(memory)
        self.websockets = self._shared.websockets
        """WebSockets that are open, and how many there have been."""
        self.figures = figures = self._shared.figures
        """What is counted in it; `gw.figures`."""
        self._accepted = figures.counter("gw.net.connections.accepted", "{connections}", "Connections accepted").at()
        self._spoken = figures.counter(
            "gw.http.connections.accepted", "{connections}", "Connections by what was spoken on them", ("protocol",)
        )
        self._refused = figures.counter(
            "gw.http.requests.refused", "{requests}", "Requests that were answered before any filter", ("reason",)
        )
        self._watch_connections()
        self._current = Current(loaded.config.shutdown_drain_timeout_sec)
        self._stop = anyio.Event()
        self._draining: anyio.CancelScope | None = None
        self._at_once = False
        self._network: Network | None = None
        self._listeners: dict[str, tuple[Listener, socket.socket]] = {}
        self._outstanding: list[Prepared] = []
        self._watch: Watch | None = None
        self._own: list[LocalRoute | LocalWebSocket | Mount | Proxied] = []
        self._filters: list[Filter] = []
        self.listens = True
        """Whether it has listeners of its own; not under somebody else's server."""
        self.started = 0.0
        """When it began to serve, by `time.time`."""
        self.ask_stats: Callable[[], Awaitable[dict[str, Any]]] = self._own_stats
        """Gives what ``/stats`` says; whoever runs several gateways as one puts the sum here."""

    # --- for the embedding program -------------------------------------------------

    def websocket(
        self, path: str, handler: Callable[[WebSocket], Awaitable[None]], *, subprotocols: tuple[str, ...] = ()
    ) -> None:
        """Have WebSockets at *path* end at *handler*, which is awaited once for each. To be called before `serve`.

        Of the subprotocols that a client offers, the first that is among *subprotocols* is chosen.
        """
        self._own.append(LocalWebSocket(path, handler, subprotocols))

    async def serve(
        self,
        *,
        sockets: Mapping[str, socket.socket] = _NO_SOCKETS,
        ready: Callable[[], None] | None = None,
        network: Callable[[TaskGroup], Network] = Network,
    ) -> None:
        """Listen, and serve until `stop` or cancellation; then drain.

        *sockets* are listening already, for the listeners of those names; ``main`` is the one that `bind_port` describes.
        Raises `OSError` when it cannot listen, `gw.net.tls.TlsError`, and what `gw.generation.build` raises.
        """
        config = self._loaded.config
        given = {**sockets}
        mounts = [each for each in self._own if isinstance(each, Mount)]
        failure: Exception | None = None
        until = inf
        async with anyio.create_task_group() as tasks:
            self._network = net = network(tasks)
            tasks.start_soon(net.deadlines.run)
            net.deadlines.every_tick(self._tick)
            try:
                self._tell(_access_log(config))
                self.places = places(config) if self.listens else []
                for mount in mounts:
                    await mount.app.begin(tasks)
                generation = await self._build(1, self._loaded, self.engine)
                await self._current.switch(generation)
                for place in self.places:
                    await self._listen(place, given.get(place.name) or net.bind(place.host, place.port))
                self._watch_certificates()
                self.started = time.time()
                if ready is not None:
                    ready()
                await self._stop.wait()
                until = anyio.current_time() + self._loaded.config.shutdown_drain_timeout_sec
                await self._drain(until)
            except Exception as error:  # noqa: BLE001  # raised below, where no task group wraps it
                failure = error
            finally:
                self._stop_listening()
                with anyio.CancelScope(shield=True):
                    patience = anyio.current_time() + self._loaded.config.shutdown_drain_timeout_sec
                    for mount in mounts:
                        await mount.app.end(min(until, patience) + CLOSING_GRACE)
                tasks.cancel_scope.cancel()  # what is still under way has had its time
                with anyio.CancelScope(shield=True):
                    for prepared in tuple(self._outstanding):  # whoever was to decide is gone
                        await self.discard(prepared)
                    await self._current.switch(None, until=until)
                    await net.aclose()
                if self._log is not None:
                    self._log.close()
                self._shared.close()
        if failure is not None:
            raise failure

    @property
    def address(self) -> tuple[str, int] | None:
        """Where the first listener listens, once it does."""
        return self.addresses.get(self.places[0].name) if self.places else None

    @property
    def sockets(self) -> list[socket.socket]:
        """What it listens on."""
        return [sock for _, sock in self._listeners.values()]

    def refresh_certificates(self) -> None:
        """Look at once whether certificate files have changed; otherwise that is done every few seconds."""
        for place in self.places:
            if place.tls is not None:
                place.tls.refresh()

    def stop(self, *, at_once: bool = False) -> None:
        """Begin to drain; `serve` returns when that is done. *at_once*: what is under way is cut off."""
        self._stop.set()
        if at_once:
            self._at_once = True
            if self._draining is not None:
                self._draining.cancel()

    @property
    def generation(self) -> int:
        """Number of the configuration in force: 1, and one more with each reload; 0 before `serve`."""
        return 0 if self._current.now is None else self._current.now.number

    @property
    def is_ready(self) -> bool:
        """Whether it serves and means to go on."""
        return self._current.now is not None and not self._stop.is_set()

    @property
    def loaded(self) -> Loaded:
        """The configuration that new exchanges are served by."""
        return self._loaded

    def route(
        self,
        pattern: str,
        handler: Callable[[Exchange], Awaitable[Reply]],
        *,
        methods: Sequence[str] = ("GET",),
        name: str = "",
    ) -> None:
        """Have *handler* answer requests for *pattern*, behind the filters of the gateway. Call it before `serve`.

        It may wait for the body with `Exchange.read`, send hints with `Exchange.send_interim` and push with `Exchange.push`.

        A configured route for the same path is a conflict, which `serve` and `reload` raise.
        """
        self._own.append(LocalRoute(pattern, handler, tuple(methods), name or f"{','.join(methods)} {pattern}"))

    def get(self, pattern: str, handler: Callable[[Exchange], Awaitable[Reply]], *, name: str = "") -> None:
        """Have *handler* answer GET and HEAD for *pattern*; as `route`."""
        self.route(pattern, handler, name=name)

    def post(self, pattern: str, handler: Callable[[Exchange], Awaitable[Reply]], *, name: str = "") -> None:
        """Have *handler* answer POST for *pattern*; as `route`."""
        self.route(pattern, handler, methods=("POST",), name=name)

    def mount(self, path: str, app: Application, *, name: str = "") -> None:
        """Have *app*, an ASGI 3 application, answer requests for *path* and below, behind the filters. Call it before `serve`.

        It starts up when `serve` does, and shuts down with it. A configured route for the same path and below is a conflict.
        """
        self._own.append(Mount(path, app, name or f"app {path}"))

    def use(self, *filters: Filter) -> None:
        """Have *filters* stand before those of plugins, in this order, on every route. To be called before `serve`."""
        self._filters += filters

    def proxy(self, pattern: str, upstream: str, *, methods: Sequence[str] = ()) -> None:
        """Have requests for *pattern* go to *upstream* of the configuration, by any of *methods*. Call it before `serve`."""
        self._own.append(Proxied(pattern, upstream, tuple(methods)))

    # --- reload --------------------------------------------------------------------------

    async def reload(self, loaded: Loaded, *, sockets: Mapping[str, socket.socket] = _NO_SOCKETS) -> None:
        """Go on with *loaded*: new exchanges at once, those under way keep what they began with.

        Raises what `serve` raises for such a configuration; then nothing has changed.
        """
        await self.commit(await self.prepare(loaded, sockets=sockets))

    async def prepare(self, loaded: Loaded, *, sockets: Mapping[str, socket.socket] = _NO_SOCKETS) -> Prepared:
        """Bring *loaded* to life beside what serves. Raises what `serve` raises; then nothing has changed.

        *sockets* listen at addresses that are new; those that are not among them are bound here. They are ours then.
        """
        assert self._network is not None, "serve first"
        now, new = self._loaded.config, loaded.config
        async with AsyncExitStack() as undo:
            engine = choose(new.engine)
            places_now = {place.name: place for place in self.places}
            places_then = places(new) if self.listens else []
            opened: dict[str, socket.socket] = {}
            for place in places_then:
                old = places_now.get(place.name)
                if old is not None and old.address == place.address:
                    if (old.tls is None) == (place.tls is None):
                        continue
                    sock = self._listeners[place.name][1].dup()  # the same address, spoken to in another way
                else:
                    sock = sockets.get(place.name) or self._network.bind(place.host, place.port)
                opened[place.name] = sock
                undo.callback(sock.close)
            access_log = self._log
            if now.log.access != new.log.access:
                access_log = _access_log(new)
                if access_log is not None:
                    undo.callback(access_log.close)
            assert self._current.now is not None
            number = self._current.now.number + 1
            generation = await self._build(number, loaded, engine)
            undo.pop_all()
        prepared = Prepared(loaded, engine, generation, access_log, places_then, opened)
        self._outstanding.append(prepared)
        return prepared

    async def commit(self, prepared: Prepared) -> None:
        """Let *prepared* take over."""
        assert self._network is not None
        self._outstanding.remove(prepared)
        before = {place.name: place for place in self.places}
        self.places = []
        for place in prepared.places:
            sock, old_place = prepared.sockets.get(place.name), before.get(place.name)
            if sock is not None:
                old_listener = self._listeners.get(place.name)
                await self._listen(place, sock)
                if old_listener is not None:
                    old_listener[0].close()
            elif old_place is not None and old_place.tls is not None and place.tls is not None:
                old_place.tls.adopt(place.tls)  # the listener goes on with it
            self.places.append(place if sock is not None or old_place is None else old_place)
        for name in self._listeners.keys() - {place.name for place in prepared.places}:
            self._listeners.pop(name)[0].close()
            del self.addresses[name]
        self._watch_certificates()
        self._adopt(prepared.loaded, prepared.engine)
        old = self._current.replace(prepared.generation)
        old_log = self._log
        self._tell(prepared.access_log)
        if old_log is not None and old_log is not prepared.access_log:
            await anyio.to_thread.run_sync(old_log.close)
        if old is not None:
            self._network.tasks.start_soon(self._current.retire, old)

    async def discard(self, prepared: Prepared) -> None:
        """Forget *prepared*; what serves never noticed it."""
        self._outstanding.remove(prepared)
        for sock in prepared.sockets.values():
            sock.close()
        if prepared.access_log is not None and prepared.access_log is not self._log:
            await anyio.to_thread.run_sync(prepared.access_log.close)
        await prepared.generation.aclose()

    def reopen_logs(self) -> None:
        """Open the access log anew, after somebody moved its file."""
        if self._log is not None:
            self._log.reopen()

    def _tell(self, access_log: AccessLog | None) -> None:
        """Have *access_log* told of each exchange, and what else the configuration wants to be."""
        self._log = self._told = access_log
        if self._loaded.config.admin is None:
            self.latencies = None
            return
        self.latencies = latencies = self.latencies or status.Latencies()
        if access_log is None:
            self._told = latencies
            return

        def told(ex: Exchange) -> None:
            latencies(ex)
            access_log(ex)

        self._told = told

    async def _build(self, number: int, loaded: Loaded, engine: Engine) -> Generation:
        assert self._network is not None
        yields = tuple(status.routes(self, loaded.config.status))
        return await build(number, loaded, self._network, engine, self._shared, self._own, yields, self._filters)

    # --- what it says about itself -------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Return the figures of this process, ready for JSON."""
        return status.snapshot(self)

    def sum_figures(self, ask: Callable[[], Awaitable[Figures]]) -> None:
        """Have *ask* give plugins the figures of all, where several gateways run as one."""
        self._shared.ask_figures = ask

    def order(self, plugin: str, name: str, values: Mapping[str, str]) -> Any:
        """Have *plugin* do what it calls *name*; return what it answers, for JSON. Raises `ValueError` where it refuses."""
        if self._current.now is None:
            raise ValueError("the gateway does not serve yet")
        return self._current.now.order(plugin, name, values)

    async def _own_stats(self) -> dict[str, Any]:
        return self.stats()

    @property
    def deadlines(self) -> Deadlines:
        assert self._network is not None
        return self._network.deadlines

    @property
    def accepted(self) -> int:
        """Connections accepted since the start."""
        return int(self._accepted.value)

    def protocols(self) -> Mapping[str, int]:
        """Return the connections that are open, by what is spoken on them, and the HTTP/2 streams as ``h2_streams``."""
        found = Counter(_PROTOCOLS.get(each.__class__, "undecided") for each in self.connections)
        found["h2_streams"] = sum(len(each._streams) for each in self.connections if isinstance(each, Http2Connection))
        return found

    def _adopt(self, loaded: Loaded, engine: Engine) -> None:
        """Take the settings of *loaded* for connections and exchanges that begin from now on."""
        config = loaded.config
        self._loaded, self.engine = loaded, engine
        self.http1, self.http2 = http1_settings(config), http2_settings(config)
        self._trusted = config.trusted_proxies
        self._ids = RequestIds(config.request_id.header, config.request_id.trust)

    # --- the Host of its connections -----------------------------------------------

    async def handle(self, ex: Exchange, down: Down, refusal: Reply | None = None) -> None:
        """Route one exchange and carry it to its end. Raises only cancellation."""
        generation = self._current.now
        if generation is None:  # it came while the last connections were being cut off
            down.reset()
            return
        generation.users += 1
        self.requests += 1
        try:
            if refusal is None:
                refusal = self._admit(ex, generation, down)
            if refusal is not None:
                self._refused.at(refusal.reason).value += 1
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
                    if ex.request.upgrade is not None:
                        ex._terms = route.websocket
                    await route.chain.run(ex, down, route.target)
            else:
                ex.route = UNMATCHED
                down.via, down.max_body_size = b"", self.http1.max_body_size
                await generation.unmatched.run(ex, down, _unmatched_reply(ex, found.allow))
        finally:
            if self._told is not None:
                self._told(ex)
            generation.users -= 1
            if generation.users == 0 and generation.idle is not None:
                generation.idle.set()

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert self._network is not None
        self._network.tasks.start_soon(run)

    def _admit(self, ex: Exchange, generation: Generation, down: Down) -> Reply | None:
        """Settle who asks for what; return why not, if it cannot be settled."""
        request = ex.request
        client = ex.client
        if client.trusted:
            ip, scheme = client_address(client.peer, request.headers, self._trusted)
            ex.client = client = replace(client, ip=ip, scheme=scheme or client.scheme)
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
        self._accepted.value += 1
        if not self._has_room():
            stream.write(_TOO_MANY)
            stream.close()
            return
        peer, port = stream.peer
        secure = stream.is_secure
        client = Client(
            peer,
            peer,
            port,
            "https" if secure else "http",
            trusted=self.trusts(peer),
            certificate=certificate_of(stream.tls) if secure else None,
        )
        connection: Http1Connection | Http2Connection | Undecided | None = None
        try:
            is_http2: bool | None = stream.alpn == "h2"
            if self._loaded.config.http2.enabled and not secure:
                connection = undecided = Undecided(stream, self.http1)
                self.connections.add(undecided)
                is_http2 = await undecided.is_http2()
                self.connections.discard(undecided)
                if is_http2 is None:
                    return
            if is_http2:
                connection = self._joined(Http2Connection(stream, self, client))
                await connection.serve()
                return
            connection = self._joined(Http1Connection(stream, self, client))
            if (upgrade := await connection.serve()) is not None:
                self.connections.discard(connection)
                connection = self._joined(Http2Connection.upgraded(stream, self, client, *upgrade))
                await connection.serve()
        except Exception:
            log.exception("a connection ended in an error that is a bug in gw; please report it")
        finally:
            if connection is not None:
                self.connections.discard(connection)

    def _joined(self, connection: C) -> C:
        """Count *connection*: it is known what is spoken on it."""
        self.connections.add(connection)
        self._spoken.at(connection.protocol).value += 1
        return connection

    def _watch_connections(self) -> None:
        open_now = self.figures.level("gw.net.connections.active", "{connections}", "Connections that are open")
        open_now.watch(lambda: (((), len(self.connections)),))
        spoken = self.figures.level(
            "gw.http.connections.active", "{connections}", "Open connections by what is spoken on them", ("protocol",)
        )
        spoken.watch(
            lambda: Counter((each.protocol,) for each in self.connections if not isinstance(each, Undecided)).items()
        )

        def shaken() -> tuple[tuple[tuple[str, ...], float], ...]:
            net = self._network
            return () if net is None else ((("success",), net.handshakes), (("failure",), net.handshakes_failed))

        handshakes = self.figures.counter(
            "gw.tls.handshakes", "{handshakes}", "TLS handshakes with clients", ("outcome",)
        )
        handshakes.watch(shaken)
        websockets = self.figures.level("gw.websocket.active_connections", "{connections}", "WebSockets that are open")
        websockets.watch(lambda: (((), len(self.websockets.open)),))
        frames = self.figures.counter(
            "gw.websocket.frames", "{frames}", "Frames that clients sent or were sent", ("op", "direction")
        )
        frames.watch(self.websockets.frames)

    def _has_room(self) -> bool:
        """Tell whether one more connection may be had, and count it if not. Handshakes are connections, too."""
        most = self._loaded.config.max_connections
        if not most:
            return True
        shaking = sum(place.tls.pending for place in self.places if place.tls is not None)
        if len(self.connections) + shaking < most:
            return True
        self.rejected += 1
        if self.rejected & (self.rejected - 1) == 0:  # 1, 2, 4, 8, ...: a flood must not flood the log
            log.warning("max_connections (%d) reached; %d turned away so far", most, self.rejected)
        return False

    def trusts(self, peer: str) -> bool:
        if not self._trusted:
            return False
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)

    async def _listen(self, place: Place, sock: socket.socket) -> None:
        assert self._network is not None
        listener = await self._network.listen(sock, self._serve_connection, place.tls, admit=self._has_room)
        self._listeners[place.name], self.addresses[place.name] = (listener, sock), listener.address

    def _stop_listening(self) -> None:
        for listener, _ in self._listeners.values():
            listener.close()

    def _watch_certificates(self) -> None:
        assert self._network is not None
        self._watch = Watch([place.tls for place in self.places if place.tls is not None], self._network.deadlines)

    def _tick(self) -> None:
        if self._watch is not None:
            self._watch.look()
        if self._log is not None:
            self._log.flush()

    async def _drain(self, until: float) -> None:
        """Let what runs finish, and cut it off at *until*. At first only `is_ready` says so, for `drain_delay_sec`."""
        with anyio.CancelScope(deadline=until) as self._draining:
            if self._at_once:
                self._draining.cancel()
            await anyio.sleep(self._loaded.config.drain_delay_sec)
            self.draining = self.websockets.draining = True
            self._stop_listening()
            while self.connections:
                for connection in tuple(self.connections):
                    connection.drain()
                await anyio.sleep(0.05)
        self.draining = self.websockets.draining = True
        for connection in tuple(self.connections):
            connection.cut()


def _bad_request(message: str) -> Reply:
    return Reply(400, message.encode(), (("content-type", "text/plain"),), "gw.bad_request", close=True)


def _unmatched_reply(ex: Exchange, allow: tuple[str, ...]) -> Reply:
    if ex.request.path == "*" and ex.request.method == "OPTIONS":
        return Reply(200, b"", (("allow", ", ".join(allow)),), "gw.options")
    if allow:
        return Reply(405, headers=(("allow", ", ".join(allow)),), reason="gw.method_not_allowed")
    return Reply(404, reason="gw.no_route")


def _access_log(config: GatewayConfig) -> AccessLog | None:
    settings = config.log.access
    return AccessLog(settings.format, settings.template, LineSink(settings.file)) if settings.enabled else None
