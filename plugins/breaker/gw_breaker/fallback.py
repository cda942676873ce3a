"""What the client gets instead of the 503 while a breaker is open: the last good answer, or one that is always the same.

An answer is kept only if its origin lets shared caches keep it (RFC 9111 section 3), and says so, and if nobody can
tell from the request who asked for it. So nobody is ever shown what was meant for somebody else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final, TypeAlias

from gw import IDENTITY, Attempt, Body, Exchange, Filter, Headers, Key, Order, Reply
from gw_breaker.settings import Cached, FixedAnswer

__all__ = ["Instead", "LastGood", "Recorder"]

Place: TypeAlias = tuple[str, str, str, str | None]
"""Route, host, path and query of a request, as the client sent it."""

_ALLOWING: Final = frozenset({"public", "max-age", "s-maxage", "stale-if-error"})
_FORBIDDING: Final = frozenset({"private", "no-store", "no-cache", "must-revalidate", "proxy-revalidate"})
"""The last two forbid to show an answer that is stale (RFC 9111 section 5.2.2)."""

_NOT_KEPT: Final = frozenset(
    {
        b"age",
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields about one message or one connection (RFC 9111 section 3.1)."""

_PERSONAL: Final = ("authorization", "cookie", "range")
"""Fields of a request whose answer is not for everyone, or not whole."""


@dataclass(frozen=True, slots=True)
class _Answer:
    at: float
    headers: tuple[tuple[str, str], ...]
    body: bytes
    size: int


class LastGood:
    """The last good answers of one upstream or route, bounded in number, size and age; what was used longest ago goes first."""

    def __init__(self, settings: Cached, clock: Callable[[], float] = monotonic) -> None:
        self.settings = settings
        self.size = 0
        """Bytes of all answers, heads included."""
        self._clock = clock
        self._kept: OrderedDict[Place, _Answer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, place: Place, headers: tuple[tuple[str, str], ...], body: bytes) -> None:
        self._drop(place)
        size = len(body) + sum(len(name) + len(value) for name, value in headers) + sum(map(len, map(str, place)))
        if size > self.settings.max_bytes:
            return
        self._kept[place] = _Answer(self._clock(), headers, body, size)
        self.size += size
        while len(self._kept) > self.settings.max_entries or self.size > self.settings.max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.size -= oldest.size

    def find(self, place: Place) -> Reply | None:
        """Return the answer for *place*, unless there is none or it is too old."""
        kept = self._kept.get(place)
        if kept is None:
            return None
        age = int(self._clock() - kept.at)
        if age > self.settings.max_age_sec:
            self._drop(place)
            return None
        self._kept.move_to_end(place)
        return Reply(200, kept.body, (*kept.headers, ("age", str(age))), "breaker.cached")

    def _drop(self, place: Place) -> None:
        old = self._kept.pop(place, None)
        if old is not None:
            self.size -= old.size


class Instead:
    """What a client gets in place of the 503, if there is anything."""

    __slots__ = ("_body", "_fixed", "_kept")

    def __init__(self, kept: LastGood | None, fixed: FixedAnswer | None) -> None:
        self._kept, self._fixed = kept, fixed
        self._body = b"" if fixed is None else fixed.body.encode()

    def of(self, ex: Exchange, told: tuple[tuple[str, str], ...]) -> Reply | None:
        """Return the answer to *ex*, with the fields *told* beside its own; `None` leaves it at the 503."""
        if self._kept is not None and _is_for_everyone(ex):
            found = self._kept.find(_place(ex))
            if found is not None:
                return Reply(found.status, found.body, (*found.headers, *told), found.reason)
        fixed = self._fixed
        if fixed is None:
            return None
        return Reply(fixed.status, self._body, (("content-type", fixed.content_type), *told), "breaker.fixed")


_RECORDING: Final[Key[tuple[LastGood, Place, tuple[tuple[str, str], ...], bytearray] | None]] = Key("breaker.recording")


class Recorder(Filter):
    """Keeps the good answers that pass, for *stores* by name of the upstream."""

    name = "breaker.recorder"
    order = Order(unique=True)
    upstream_body = Body.OBSERVE

    def __init__(self, stores: dict[str, LastGood]) -> None:
        self._stores = stores

    async def on_upstream_response(self, ex: Exchange, attempt: Attempt) -> None:
        store, response = self._stores.get(attempt.upstream), attempt.response
        assert response is not None
        ex[_RECORDING] = None
        if (
            store is None
            or response.status != 200
            or ex.request.method != "GET"
            or (response.content_length or 0) > store.settings.max_entry_bytes
            or not _is_for_everyone(ex)
            or not _may_be_kept(response.headers)
        ):
            ex.skip_body(self)
            return
        fields = tuple(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in response.headers.raw
            if name not in _NOT_KEPT and name not in (response.named_hops or ())
        )
        ex[_RECORDING] = (store, _place(ex), fields, bytearray())

    async def on_upstream_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
        recording = ex.get(_RECORDING, None)
        if recording is not None:
            store, place, fields, body = recording
            body += chunk
            if len(body) > store.settings.max_entry_bytes:
                ex[_RECORDING] = None
            elif end:
                store.keep(place, fields, bytes(body))
        return chunk


def _place(ex: Exchange) -> Place:
    return (ex.route.name if ex.route is not None else "", ex.asked_host, ex.matched_path, _asked_query(ex))


def _asked_query(ex: Exchange) -> str | None:
    _, mark, query = ex.request.target.partition("?")
    return query if mark else None


def _is_for_everyone(ex: Exchange) -> bool:
    request = ex.request
    if request.method not in {"GET", "HEAD"} or ex.get(IDENTITY, None) is not None:
        return False
    return not any(field in request.headers for field in _PERSONAL)


def _may_be_kept(headers: Headers) -> bool:
    if "vary" in headers or "set-cookie" in headers:
        return False
    said = {
        each.partition("=")[0].strip().lower() for line in headers.get_all("cache-control") for each in line.split(",")
    }
    return not said.isdisjoint(_ALLOWING) and said.isdisjoint(_FORBIDDING)
