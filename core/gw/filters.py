"""The filter API: what a plugin subclasses, and what it is handed.

A filter is made once per route, when the configuration is loaded, and is then
shared by every exchange on that route. It therefore keeps nothing about a
request on ``self``: per-request state lives on the exchange, under a `Key`.

Nothing in this file does I/O, parses, or knows a protocol version.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar, overload

if TYPE_CHECKING:
    from gw.keys import Client, Endpoint, RouteInfo

__all__ = [
    "Attempt",
    "Body",
    "Close",
    "Elsewhere",
    "Exchange",
    "Filter",
    "Headers",
    "Key",
    "Message",
    "Note",
    "Order",
    "Outcome",
    "Reply",
    "Request",
    "Response",
    "Retry",
]

T = TypeVar("T")
D = TypeVar("D")


class Body(enum.Enum):
    """What a filter does with a message body; fixed per filter, known at load."""

    NONE = "none"
    """Never called; the body passes untouched."""
    OBSERVE = "observe"
    """Sees each chunk; what it returns is ignored."""
    STREAM = "stream"
    """May change each chunk; content-length is dropped."""
    BUFFER = "buffer"
    """Gets the whole body in one call, before the headers are sent; content-length is rewritten."""


class Outcome(enum.Enum):
    """How an exchange ended; always set before `Filter.on_complete` runs."""

    UPSTREAM = "upstream"
    """The upstream's response was delivered in full."""
    REPLY = "reply"
    """A filter, or the core, answered instead."""
    RESET = "reset"
    """Broken off after the response head was sent."""
    CANCELLED = "cancelled"
    """The client went away, or the gateway is shutting down."""


class Key(Generic[T]):
    """A typed slot on an `Exchange`. Identity is the key; the name is for people."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<Key {self.name}>"


FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
"""Fields that say where a message ends. Only the core writes them (RFC 9112 section 6)."""

_NO_PARAMS: Final[Mapping[str, str]] = MappingProxyType({})

_UNSAFE: Final = frozenset("\r\n\0")


_new: Final = object.__new__


def _name(name: str) -> bytes:
    return name.lower().encode("ascii")


def _field(name: str, value: str) -> tuple[bytes, bytes]:
    key = _name(name)
    if key in FRAMING:
        raise ValueError(f"{name}: framing belongs to the core; change the body in on_body or on_upstream_body")
    if not (value.isprintable() or _UNSAFE.isdisjoint(value)):  # the first is quick, and true of nearly all
        raise ValueError(f"{name}: a field value cannot contain CR, LF or NUL")
    try:
        return key, value.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"{name}: a field value must be latin-1; encode other text yourself") from None


class Headers:
    """Field lines in arrival order, duplicates kept; names are lower-case.

    *raw* holds ``(name, value)`` pairs of bytes and belongs to the core: engines
    hand it over as it is. Filters use the methods, which speak `str`
    (latin-1, which loses nothing) and refuse what would split a message.
    """

    __slots__ = ("raw",)

    def __init__(self, raw: list[tuple[bytes, bytes]] | None = None) -> None:
        self.raw: list[tuple[bytes, bytes]] = [] if raw is None else raw

    @classmethod
    def of(cls, items: Iterable[tuple[str, str]]) -> Headers:
        """Make one from pairs of `str`, framing fields included: for tests and replies."""
        return cls([(_name(n), v.encode("latin-1")) for n, v in items])

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...
    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of *name*."""
        key = _name(name)
        for n, v in self.raw:
            if n == key:
                return v.decode("latin-1")
        return default

    def get_all(self, name: str) -> list[str]:
        """Return every value of *name*, in order."""
        key = _name(name)
        return [v.decode("latin-1") for n, v in self.raw if n == key]

    def find(self, name: bytes) -> bytes | None:
        """Return the first value of *name*, in lower-case bytes, as it came: for what is only compared or hashed."""
        for n, v in self.raw:
            if n == name:
                return v
        return None

    def set(self, name: str, value: str) -> None:
        """Replace every line of *name* by one, at the place of the first."""
        line = _field(name, value)
        raw, key, at = self.raw, line[0], len(self.raw)
        for i in range(len(raw) - 1, -1, -1):
            if raw[i][0] == key:
                del raw[i]
                at = i
        raw.insert(min(at, len(raw)), line)

    def add(self, name: str, value: str) -> None:
        """Append a line, whatever is there already."""
        self.raw.append(_field(name, value))

    def setdefault(self, name: str, value: str) -> None:
        """Append a line, unless there is one of that name."""
        line = _field(name, value)
        key = line[0]
        for n, _ in self.raw:
            if n == key:
                return
        self.raw.append(line)

    def discard(self, name: str) -> None:
        """Remove every line of *name*, if there is one."""
        key = _name(name)
        if key in FRAMING:
            raise ValueError(f"{name}: framing belongs to the core")
        raw = self.raw
        for i in range(len(raw) - 1, -1, -1):
            if raw[i][0] == key:
                del raw[i]

    def extend(self, lines: Headers) -> None:
        """Append every line of *lines*, which were checked when they were put there: for what is sent again and again."""
        self.raw += lines.raw

    def discard_all(self, names: frozenset[bytes]) -> None:
        """Remove every line whose name is among *names*, prepared at load as lower-case bytes; framing stays."""
        raw = self.raw
        for name, _ in raw:
            if name in names:
                raw[:] = [line for line in raw if line[0] not in names or line[0] in FRAMING]
                return

    def copy(self) -> Headers:
        return Headers(self.raw.copy())

    def __contains__(self, name: str) -> bool:
        key = _name(name)
        return any(n == key for n, _ in self.raw)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((n.decode("latin-1"), v.decode("latin-1")) for n, v in self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self.raw == other.raw

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Headers {', '.join(n for n, _ in self)}>"


class Request:
    """The client's request as the gateway read it.

    *path* is normalised (docs/paths.md) and is both what was matched and what is
    forwarded; *query* is what followed the first ``?``, untouched, or `None`.
    *host* is the authority the client asked for, port included. A filter may
    assign *path*, *query*, *host* and *method*, and change *headers*.
    """

    __slots__ = (
        "content_length",
        "expects_continue",
        "has_body",
        "headers",
        "host",
        "keep_alive",
        "method",
        "named_hops",
        "path",
        "query",
        "scheme",
        "target",
        "trailers",
        "upgrade",
        "version",
    )

    def __init__(
        self, method: str, target: str, headers: Headers | None = None, *, version: str = "1.1", has_body: bool = False
    ) -> None:
        self.method = method
        self.target = target
        """As it stood on the wire; for logs only, never for decisions."""
        self.headers = Headers() if headers is None else headers
        self.version = version
        self.scheme = "http"
        self.host = ""
        self.path = target
        self.query: str | None = None
        if "?" in target:
            self.path, _, self.query = target.partition("?")
        self.has_body = has_body
        self.content_length: int | None = None
        """Declared length in bytes; `None` with *has_body* means chunked."""
        self.trailers: Headers | None = None
        """Trailer fields; set before the last body call."""
        self.keep_alive = True
        self.expects_continue = False
        self.upgrade: str | None = None
        """The protocol asked for with ``Connection: upgrade``, lower-case."""
        self.named_hops: frozenset[bytes] | None = None
        """Fields that ``Connection`` names, lower-case: they go no further (RFC 9110 section 7.6.1)."""

    def _again(self, method: str, target: str, headers: Headers) -> Request:
        """Return one that says the same, but for what is given, and that nobody has touched."""
        # Not by way of __init__: it would set most of them twice, and this runs for most requests.
        request: Request = _new(Request)
        request.method = method
        request.target = target
        request.headers = headers
        request.version = self.version
        request.scheme = self.scheme
        request.host = self.host
        request.path, request.query = target, None
        if "?" in target:
            request.path, _, request.query = target.partition("?")
        request.has_body = self.has_body
        request.content_length = self.content_length
        request.trailers = None
        request.keep_alive = self.keep_alive
        request.expects_continue = self.expects_continue
        request.upgrade = self.upgrade
        request.named_hops = self.named_hops
        return request

    @property
    def path_and_query(self) -> str:
        return self.path if self.query is None else f"{self.path}?{self.query}"

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.host}{self.path}>"


class Response:
    """A response: an upstream's, or one made from a `Reply`."""

    __slots__ = (
        "content_length",
        "has_body",
        "headers",
        "keep_alive",
        "named_hops",
        "reason",
        "status",
        "trailers",
        "upgrade",
        "version",
    )

    def __init__(
        self, status: int, headers: Headers | None = None, *, version: str = "1.1", has_body: bool = True
    ) -> None:
        self.status = status
        self.headers = Headers() if headers is None else headers
        self.version = version
        self.reason = b""
        """Reason phrase as received; empty means the standard one."""
        self.has_body = has_body
        self.content_length: int | None = None
        self.trailers: Headers | None = None
        self.keep_alive = True
        self.upgrade: str | None = None
        self.named_hops: frozenset[bytes] | None = None

    def _again(self, headers: Headers) -> Response:
        """Return one that says the same, with *headers*, and that nobody has touched."""
        response: Response = _new(Response)
        response.status = self.status
        response.headers = headers
        response.version = self.version
        response.reason = self.reason
        response.has_body = self.has_body
        response.content_length = self.content_length
        response.trailers = None
        response.keep_alive = self.keep_alive
        response.upgrade = self.upgrade
        response.named_hops = self.named_hops
        return response

    def __repr__(self) -> str:
        return f"<Response {self.status}>"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer made by the gateway itself. Returning one from a hook ends the request phase.

    *body* ``None`` asks for the default rendering of *status*: plain text, or
    ``application/problem+json`` where the client prefers it.

    *reason* is for operators: it goes to the access log, the metrics and the
    explanation, never to the client. Write it as ``plugin.cause``, such as
    ``ratelimit.exceeded``.
    """

    status: int
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    reason: str = "gw.reply"
    close: bool = False
    """Close the client's connection after this answer."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Asked for by `Filter.on_upstream_response` or `on_upstream_error`: try once more.

    Granted only while nothing was sent to the client, the request can be
    replayed, and attempts are left; otherwise what is at hand is delivered.
    """

    delay: float = 0.0
    """Seconds to wait first."""
    reason: str = "gw.retry"


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Returned from `Filter.on_upstream_request`: send this attempt to *upstream*, whatever the route says.

    It must be among those that the plugin's ``gw_upstreams`` named for the route. The filters that follow see the attempt
    as it is then, and retries stay there.
    """

    upstream: str


class Attempt:
    """One try at one endpoint."""

    __slots__ = (
        "_load",
        "_place",
        "_since",
        "_tunnel",
        "answered",
        "connected",
        "ended",
        "endpoint",
        "error",
        "guard",
        "number",
        "response",
        "reused",
        "sent",
        "started",
        "upstream",
    )

    def __init__(self, number: int, upstream: str = "", started: float = 0.0) -> None:
        self.number = number
        """1 for the first."""
        self.upstream = upstream
        """Name of the upstream."""
        self.endpoint: Endpoint | None = None
        self.response: Response | None = None
        self.error: Exception | None = None
        self.guard: object | None = None
        """Set by a filter before a connection is asked for: `Context.drain` sends away who waits under this object."""
        self.reused = False
        """Whether a pooled connection carried it."""
        self.sent = False
        """Whether any byte of the request was written."""
        self.started = started
        """`time.monotonic` when it began, before a connection was asked for."""
        self.connected = 0.0
        """The same when a connection had been waited for; 0.0 when one was at hand, or never came."""
        self.answered = 0.0
        """The same when the final response head was read; 0.0 when none was."""
        self.ended = 0.0
        """The same when it was over, its body included; 0.0 until then."""
        self._load: Any = None
        """Where it is counted as under way."""
        self._place: Any = None
        self._since = started
        """When its endpoint was asked: later than *started* for a hedge that won."""
        self._tunnel = False
        """Whether it asks for a WebSocket."""

    def __repr__(self) -> str:
        return f"<Attempt {self.number} {self.upstream} {self.endpoint}>"


@dataclass(frozen=True, slots=True)
class Message:
    """One whole WebSocket message (RFC 6455): text is `str`, binary is `bytes`."""

    data: str | bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The end of a WebSocket, as one side tells it the other (RFC 6455 section 7.4). Returned from `Filter.on_message`, it ends both."""

    code: int = 1000
    reason: str = ""
    """Cut to 123 bytes of UTF-8 when it is sent."""


@dataclass(frozen=True, slots=True)
class Note:
    """One verdict on an exchange that is being explained."""

    stage: str
    """The hook that was running, such as ``on_request_headers``."""
    plugin: str
    verdict: str
    """A word: ``pass``, ``reply``, ``retry``, ``error``, or the plugin's own."""
    reason: str = ""
    position: str = ""
    """Where the setting stands, as ``file:line:column``."""
    at: float = field(default=0.0, compare=False)
    """`time.monotonic` when it was recorded."""
    took: float = field(default=0.0, compare=False)
    """Seconds since the hook began."""


class Exchange:
    """One request and its response, and everything said about them on the way."""

    __slots__ = (
        "_asking",
        "_at",
        "_entered",
        "_phase",
        "_push",
        "_skip",
        "_started",
        "_state",
        "_terms",
        "asked_host",
        "attempts",
        "bytes_received",
        "bytes_sent",
        "client",
        "matched_path",
        "notes",
        "outcome",
        "params",
        "reason",
        "request",
        "request_id",
        "response",
        "route",
        "started",
    )

    def __init__(self, request: Request, client: Client) -> None:
        self.request = request
        self.client = client
        self.response: Response | None = None
        self.route: RouteInfo | None = None
        """The route that matched; `None` while, or when, none has."""
        self.params: Mapping[str, str] = _NO_PARAMS
        """What the path pattern captured, as it stands in the normalised path."""
        self.matched_path = request.path
        """The normalised path that the route was looked up with; ``request.path`` may have been rewritten since."""
        self.asked_host = request.host
        """The host that the client asked for; a filter that assigns ``request.host`` chooses the one sent upstream."""
        self.attempts: list[Attempt] = []
        self.outcome: Outcome | None = None
        self.reason = ""
        """Why it ended as it did, as ``plugin.cause``; empty when the upstream's answer was simply passed on."""
        self.request_id = ""
        self.started = 0.0
        """`time.monotonic` at the first byte of the head, in seconds."""
        self.bytes_received = 0
        self.bytes_sent = 0
        self.notes: list[Note] | None = None
        """Filled while the exchange is being explained; `None` otherwise."""
        self._state: dict[Key[Any], Any] | None = None
        self._skip: set[Filter] | None = None
        self._phase = "request headers"
        self._entered = 1 << 30
        """The last filter whose request hook was reached; all of them, where none has one."""
        self._started = False
        self._push: Callable[[str, Headers], bool] | None = None
        self._asking: Any = None
        """What lets a handler read the body; only where there is a handler."""
        self._terms: Any = None
        """On which it may become a WebSocket."""
        self._at: tuple[str, str, str, float] = ("", "gw", "", 0.0)

    def __getitem__(self, key: Key[T]) -> T:
        if self._state is None:
            raise KeyError(key)
        return self._state[key]  # type: ignore[no-any-return]

    def __setitem__(self, key: Key[T], value: T) -> None:
        if self._state is None:
            self._state = {}
        self._state[key] = value

    def get(self, key: Key[T], default: D) -> T | D:
        return default if self._state is None else self._state.get(key, default)

    def push(self, path: str, headers: Headers | None = None) -> bool:
        """Promise the client the response to a GET of *path*, query included, on the same host, and start on it.

        The pushed request is an exchange of its own, through the route that takes it. Returns whether the promise was
        made: not over HTTP/1.1, not unless `http2.enable_push` is set and the client takes pushes, and not once this
        response has been sent to its end (RFC 9113 section 8.4, behaviour 7.5). A refusal harms nothing.
        """
        return self._push is not None and self._push(path, headers or Headers())

    async def read(self, limit: int | None = None) -> bytes:
        """Wait for the whole body of the request, as filters leave it. For the handler that answers it; filters have `Filter.on_body`.

        The body may be *limit* bytes long, and 64 MiB at most; for a longer one the client gets a 413, and the handler
        is not gone on with. A client that waits for ``100 Continue`` gets it now.
        """
        return await self._asked().read(limit)  # type: ignore[no-any-return]

    async def send_interim(self, status: int, headers: Headers | None = None) -> None:
        """Send the client an interim response, such as ``103 Early Hints``, before the answer. For the handler that answers it.

        *status* is 102 to 199, else it is a `ValueError`. Fields about framing and the connection are left out. Clients
        that cannot take it do not get it: those of HTTP/1.0, and after 32 of them anybody (RFC 9110 section 15.2).
        """
        await self._asked().send_interim(Response(status, headers))

    def _asked(self) -> Any:
        if self._asking is None:
            raise RuntimeError("only the handler that answers a request reads its body and sends interim responses")
        return self._asking

    def skip_body(self, of: Filter) -> None:
        """Drop *of*'s body hook for the message whose headers are being handled.

        Raises `RuntimeError` outside a headers hook: by then the framing is decided.
        """
        if not self._phase.endswith("headers"):
            raise RuntimeError(f"skip_body() must be called from a headers hook, not in phase: {self._phase}")
        if self._skip is None:
            self._skip = set()
        self._skip.add(of)

    def note(self, verdict: str, reason: str = "") -> None:
        """Record a verdict, if this exchange is being explained; otherwise do nothing."""
        if self.notes is not None:
            stage, plugin, position, began = self._at
            now = monotonic()
            self.notes.append(Note(stage, plugin, verdict, reason, position, now, now - (began or now)))

    def __repr__(self) -> str:
        return f"<Exchange {self.request_id} {self.request!r} {self.outcome and self.outcome.value}>"


@dataclass(frozen=True, slots=True)
class Order:
    """Where a filter may stand in a chain, by filter name. Checked at load; never used to sort."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    unique: bool = False


class Filter:
    """Base of every filter: override the hooks you need, and only those.

    A hook that is not overridden costs nothing: the chain is compiled at load
    and does not contain it. Requests pass the filters in the order of the
    configuration, everything after that in the opposite order. A reply is shown
    only to the filters whose `on_request_headers` was reached.
    """

    name: ClassVar[str] = ""
    """``plugin`` or ``plugin.part``; how order constraints, logs and `gw routes` call it."""
    order: ClassVar[Order] = Order()
    body: Body = Body.STREAM
    upstream_body: Body = Body.STREAM
    explains: bool = False
    """Explain every exchange of its routes: then `Exchange.notes` has the verdict of each hook, and how long it took."""
    buffer_limit: int = 1 << 20
    """Bytes that a BUFFER body may hold; beyond it 413 for a request, 502 for a response."""

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        """The request head is here. Return a `Reply` to answer now."""

    async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes | Reply:
        """Part of the request body; *end* comes exactly once, perhaps with an empty chunk."""
        return chunk

    async def on_upstream_request(self, ex: Exchange, attempt: Attempt) -> Reply | Elsewhere | None:
        """Run once per attempt: the endpoint is chosen, nothing is sent yet."""

    async def on_upstream_response(self, ex: Exchange, attempt: Attempt) -> Reply | Retry | None:
        """An upstream answered: its head is on ``ex.response``."""

    async def on_upstream_error(self, ex: Exchange, attempt: Attempt, error: Exception) -> Reply | Retry | None:
        """An attempt failed before a response head came."""

    async def on_upstream_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
        """Part of the upstream's response body."""
        return chunk

    async def on_message(self, ex: Exchange, message: Message, from_client: bool) -> Message | Close | None:
        """Handle a whole WebSocket message; `None` drops it, a `Close` ends the connection on both sides."""
        return message

    def on_response_headers(self, ex: Exchange) -> None:
        """Any response, our own replies included, is about to be sent. Must not wait."""

    def on_complete(self, ex: Exchange) -> None:
        """Run exactly once, whatever happened; ``ex.outcome`` is set. Must not wait."""
