"""What may be put around a filter's hooks: tolerance of errors, explanations, shadows.

All of it is decided when the chain is compiled: a filter that enforces, denies
on error and is not being explained is called directly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Literal

from gw.filters import Attempt, Body, Elsewhere, Exchange, Filter, Key, Message, Reply, Response, Retry
from gw.keys import SHADOW

__all__ = ["HOOKS", "Placed", "Shadow", "blame", "explained", "guarded"]

log = logging.getLogger("gw.chain")

HOOKS: Final = (
    "on_request_headers",
    "on_body",
    "on_upstream_request",
    "on_upstream_response",
    "on_upstream_error",
    "on_upstream_body",
    "on_message",
    "on_response_headers",
    "on_complete",
)
"""Every hook of `Filter`, in the order of an exchange."""

_PLAIN: Final = frozenset({"on_response_headers", "on_complete"})
_PASS_THROUGH: Final = frozenset({"on_body", "on_upstream_body", "on_message"})


@dataclass(frozen=True, slots=True)
class Placed:
    """A filter as the configuration placed it in a route."""

    filter: Filter
    plugin: str = ""
    mode: Literal["enforce", "shadow"] = "enforce"
    on_error: Literal["deny", "allow"] = "deny"
    position: str = ""
    """Where its settings stand, as ``file:line:column``."""

    def __post_init__(self) -> None:
        if self.mode == "shadow" and not isinstance(self.filter, Shadow):
            object.__setattr__(self, "filter", Shadow(self.filter))

    def has(self, hook: str) -> bool:
        """Tell whether the filter overrides *hook*; one that it does not override is not called."""
        inner = self.filter.inner if isinstance(self.filter, Shadow) else self.filter
        return getattr(type(inner), hook) is not getattr(Filter, hook)

    @property
    def name(self) -> str:
        return self.plugin or self.filter.name


# --- tolerance -----------------------------------------------------------------

_FAILED: Final[Key[set[Filter]]] = Key("gw.failed_filters")


def guarded(placed: Placed, hook: str) -> Any:
    """Return *hook* as the chain should call it; `None` if the filter does not have it."""
    if not placed.has(hook):
        return None
    bound = getattr(placed.filter, hook)
    if placed.on_error == "deny":
        return bound
    return _tolerant_plain(placed, bound) if hook in _PLAIN else _tolerant(placed, hook, bound)


def _tolerant_plain(placed: Placed, bound: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    def tolerant(ex: Exchange) -> None:
        if placed.filter not in ex.get(_FAILED, ()):
            try:
                bound(ex)
            except Exception as error:  # noqa: BLE001  # on_error: allow says to go on
                _set_aside(ex, placed, error)

    return tolerant


def _tolerant(placed: Placed, hook: str, bound: Callable[..., Any]) -> Callable[..., Any]:
    async def tolerant(ex: Exchange, *args: Any) -> Any:
        if placed.filter not in ex.get(_FAILED, ()):
            try:
                return await bound(ex, *args)
            except Exception as error:  # noqa: BLE001  # on_error: allow says to go on
                _set_aside(ex, placed, error)
        return args[0] if hook in _PASS_THROUGH else None

    return tolerant


def _set_aside(ex: Exchange, placed: Placed, error: Exception) -> None:
    """Leave the filter out of the rest of this exchange."""
    failed = ex.get(_FAILED, None)
    if failed is None:
        failed = ex[_FAILED] = set()
    failed.add(placed.filter)
    ex.note("error", type(error).__name__)
    plugin, hook = blame(error)
    log.error("plugin %s raised %s in %s; going on without it", plugin, type(error).__name__, hook, exc_info=error)


def blame(error: Exception) -> tuple[str, str]:
    """Return the filter and the hook that raised *error*, from its traceback; ``("gw", ...)`` if none did."""
    found, trace = ("gw", "the core"), error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        if frame.f_code.co_name in HOOKS and isinstance(owner, Filter) and not isinstance(owner, Shadow):
            found = (owner.name or type(owner).__name__, frame.f_code.co_name)
        trace = trace.tb_next
    return found


# --- explanations -----------------------------------------------------------------


def explained(placed: Placed, hook: str) -> Any:
    """Return *hook* so that its verdict is noted on the exchange."""
    bound = guarded(placed, hook)
    if bound is None:
        return None
    name, position = placed.name, placed.position

    def plain(ex: Exchange) -> None:
        before, ex._at = ex._at, (hook, name, position, monotonic())
        try:
            bound(ex)
        finally:
            ex._at = before

    async def recorded(ex: Exchange, *args: Any) -> Any:
        before, ex._at = ex._at, (hook, name, position, monotonic())
        try:
            verdict = await bound(ex, *args)
            if isinstance(verdict, Reply):
                ex.note("reply", verdict.reason)
            elif isinstance(verdict, Retry):
                ex.note("retry", verdict.reason)
            elif isinstance(verdict, Elsewhere):
                ex.note("elsewhere", verdict.upstream)
            elif hook not in _PASS_THROUGH:
                ex.note("pass")
        except Exception as error:
            ex.note("error", type(error).__name__)
            raise
        else:
            return verdict
        finally:
            ex._at = before

    return plain if hook in _PLAIN else recorded


# --- shadows -------------------------------------------------------------------------


class _Double:
    """The exchange as a shadowed filter sees it: what it changes here, nobody else sees."""

    __slots__ = ("ex", "held", "over", "seen")

    def __init__(self, real: Exchange) -> None:
        request = real.request
        copy = type(request)(request.method, request.target, request.headers.copy(), version=request.version)
        copy.scheme, copy.host, copy.path, copy.query = request.scheme, request.host, request.path, request.query
        copy.has_body, copy.content_length = request.has_body, request.content_length
        self.ex = Exchange(copy, real.client)
        self.ex.route, self.ex.params, self.ex.request_id = real.route, dict(real.params), real.request_id
        self.ex.matched_path, self.ex.asked_host = real.matched_path, real.asked_host
        self.ex.started, self.ex.attempts = real.started, real.attempts
        self.over = False
        """It replied, or raised: the real exchange went on, this one did not."""
        self.held = bytearray()
        self.seen: Response | None = None

    def follow(self, real: Exchange) -> Exchange:
        """Bring it up to what has happened since."""
        own = self.ex
        own._state = {**(real._state or {}), **(own._state or {})}
        own._phase = real._phase
        own.outcome, own.reason = real.outcome, real.reason
        own.bytes_received, own.bytes_sent = real.bytes_received, real.bytes_sent
        if real.response is not self.seen:
            self.seen = response = real.response
            if response is None:
                own.response = None
            else:
                own.response = Response(
                    response.status,
                    response.headers.copy(),
                    version=response.version,
                    has_body=response.has_body,
                )
        return own


class Shadow(Filter):
    """Runs *inner* beside the exchange: its verdicts are recorded, its effects discarded."""

    def __init__(self, inner: Filter) -> None:
        self.inner = inner
        self.name = inner.name  # type: ignore[misc]  # one instance speaks for one filter
        self.order = inner.order  # type: ignore[misc]
        self.body = Body.NONE if inner.body is Body.NONE else Body.OBSERVE
        self.upstream_body = Body.NONE if inner.upstream_body is Body.NONE else Body.OBSERVE
        self._double: Key[_Double] = Key(f"{inner.name}.shadow")

    def _twin(self, ex: Exchange) -> _Double:
        twin = ex.get(self._double, None)
        if twin is None:
            twin = ex[self._double] = _Double(ex)
        return twin

    def _record(self, ex: Exchange, twin: _Double, verdict: str, reason: str) -> None:
        twin.over = True
        ex.note(f"would {verdict}", reason)
        recorded = ex.get(SHADOW, None)
        if recorded is None:
            recorded = ex[SHADOW] = []
        recorded.append(f"{self.name}: {verdict} {reason}")

    async def _ask(self, ex: Exchange, hook: str, *args: Any) -> None:
        twin = self._twin(ex)
        if twin.over:
            return
        try:
            verdict = await getattr(self.inner, hook)(twin.follow(ex), *args)
        except Exception as error:
            log.exception("shadowed plugin %s raised in %s; nothing was changed", self.name, hook)
            self._record(ex, twin, "error", type(error).__name__)
            return
        if isinstance(verdict, Reply):
            self._record(ex, twin, f"reply {verdict.status}", verdict.reason)
        elif isinstance(verdict, Retry):
            self._record(ex, twin, "retry", verdict.reason)
        elif isinstance(verdict, Elsewhere):
            self._record(ex, twin, "send to", verdict.upstream)

    async def _watch(self, ex: Exchange, hook: str, mode: Body, chunk: bytes, end: bool) -> None:
        twin = self._twin(ex)
        if twin.over or (twin.ex._skip and self.inner in twin.ex._skip):
            return
        if mode is not Body.BUFFER:
            await self._ask(ex, hook, chunk, end)
            return
        if len(twin.held) + len(chunk) > self.inner.buffer_limit:
            twin.held.clear()
            self._record(ex, twin, "reply", "gw.body_too_large")
            return
        twin.held += chunk
        if end:
            whole = bytes(twin.held)
            twin.held.clear()
            await self._ask(ex, hook, whole, True)

    async def on_request_headers(self, ex: Exchange) -> None:
        await self._ask(ex, "on_request_headers")

    async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
        await self._watch(ex, "on_body", self.inner.body, chunk, end)
        return chunk

    async def on_upstream_request(self, ex: Exchange, attempt: Attempt) -> None:
        await self._ask(ex, "on_upstream_request", attempt)

    async def on_upstream_response(self, ex: Exchange, attempt: Attempt) -> None:
        self._twin(ex).ex._skip = None
        await self._ask(ex, "on_upstream_response", attempt)

    async def on_upstream_error(self, ex: Exchange, attempt: Attempt, error: Exception) -> None:
        await self._ask(ex, "on_upstream_error", attempt, error)

    async def on_upstream_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
        await self._watch(ex, "on_upstream_body", self.inner.upstream_body, chunk, end)
        return chunk

    async def on_message(self, ex: Exchange, message: Message, from_client: bool) -> Message:
        await self._ask(ex, "on_message", message, from_client)
        return message

    def on_response_headers(self, ex: Exchange) -> None:
        self._tell(ex, self.inner.on_response_headers)

    def on_complete(self, ex: Exchange) -> None:
        self._tell(ex, self.inner.on_complete)

    def _tell(self, ex: Exchange, hook: Callable[[Exchange], None]) -> None:
        twin = self._twin(ex)
        try:
            hook(twin.follow(ex))
        except Exception as error:
            log.exception("shadowed plugin %s raised; nothing was changed", self.name)
            self._record(ex, twin, "error", type(error).__name__)
