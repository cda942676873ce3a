"""How a client is told what is left: the reference's words, those of the IETF's draft, or ``X-RateLimit-*``.

Seconds are rounded up, so that nobody who waits as told comes too early. `Retry-After` is the filter's.
What is written are numbers and a zone's name, which were checked when they were loaded: the fields' bytes are put
together here, and not checked once more for each response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from gw import Headers
from gw_ratelimit.algorithms import FixedWindow, Left, Limit

__all__ = ["STYLES", "Style", "Tell", "seconds"]

Tell: TypeAlias = Callable[[Headers, Left], None]
"""Writes the fields: onto which headers, and what is left."""
Style: TypeAlias = Callable[[str, Limit], Tell]
"""Makes that for a zone of this name and its limit."""
Line: TypeAlias = tuple[bytes, bytes]


def seconds(milliseconds: int) -> int:
    return -(-milliseconds // 1000)


def _put(headers: Headers, lines: tuple[Line, ...]) -> None:
    """Append those of *lines* that the response does not have by itself (behaviour 10.4)."""
    raw = headers.raw
    for name, _ in raw:
        if name in _OURS:
            raw += [line for line in lines if headers.find(line[0]) is None]
            return
    raw += lines


_OURS: Final = frozenset(
    {b"ratelimit", b"ratelimit-policy", b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"}
)


class _Policy:
    """The policy's line; *value* is what stands before the window in it."""

    __slots__ = ("_limit", "_lines", "_value", "always")

    def __init__(self, limit: Limit, value: str) -> None:
        self._limit, self._value = limit, value
        self._lines: dict[int, Line] = {}
        self.always = None if isinstance(limit, FixedWindow) else self.at(0)
        """The line, if it is always the same; days and months of a calendar are not."""

    def at(self, now: int) -> Line:
        window = self._limit.window(now)
        line = self._lines.get(window)
        if line is None:
            line = self._lines[window] = (b"ratelimit-policy", f"{self._value};w={window}".encode())
        return line


def _reference(_name: str, limit: Limit) -> Tell:
    """Return what writes the fields of behaviour 14.2; ``reset`` is when there is one token."""
    policy, begins = _Policy(limit, f"{limit.limit}"), f"limit={limit.limit}, remaining="
    always = policy.always

    def tell(headers: Headers, left: Left) -> None:
        at, a, b, now, remaining = left
        reset = 0 if remaining else seconds(limit.wait(at, a, b, now, 1))
        value = f"{begins}{remaining}, reset={reset}".encode()
        _put(headers, (always or policy.at(now), (b"ratelimit", value)))

    return tell


def _draft(name: str, limit: Limit) -> Tell:
    """Return what writes those of draft-ietf-httpapi-ratelimit-headers-10; ``t`` is when all of the quota is there again."""
    policy = _Policy(limit, f'"{name}";q={limit.limit}')
    always = policy.always

    def tell(headers: Headers, left: Left) -> None:
        at, a, b, now, remaining = left
        value = f'"{name}";r={remaining};t={seconds(limit.wait(at, a, b, now, limit.limit))}'.encode()
        _put(headers, (always or policy.at(now), (b"ratelimit", value)))

    return tell


def _x_ratelimit(_name: str, limit: Limit) -> Tell:
    """Return what writes those of many services; ``Reset`` in seconds from now, until all of the quota is there again."""
    most = (b"x-ratelimit-limit", b"%d" % limit.limit)

    def tell(headers: Headers, left: Left) -> None:
        at, a, b, now, remaining = left
        whole = seconds(limit.wait(at, a, b, now, limit.limit))
        _put(headers, (most, (b"x-ratelimit-remaining", b"%d" % remaining), (b"x-ratelimit-reset", b"%d" % whole)))

    return tell


STYLES: Final[Mapping[str, Style]] = {"reference": _reference, "draft": _draft, "x-ratelimit": _x_ratelimit}
