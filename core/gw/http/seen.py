"""Field lines that were seen before, and what the engine made of them: most lines of most responses.

A server says the same ``Server:``, ``Content-Type:`` and ``Connection:`` again
and again; HPACK has a table for that, and so have we. A line means the same in
every head (what several lines mean together is for `gw.http.framing`), so a
line that the engine accepted once need not be shown to it again. Whatever was
not seen goes through the engine, which stays the only judge of syntax.
"""

from __future__ import annotations

from typing import Final

from gw.http.framing import Fields, Refusal, SplitHead
from gw.limits import MAX_SEEN_LINE, MAX_SEEN_LINES

__all__ = ["SeenLines"]

_LEARNED: Final = frozenset(
    b"accept-ranges access-control-allow-credentials access-control-allow-headers access-control-allow-methods "
    b"access-control-allow-origin access-control-expose-headers access-control-max-age age allow alt-svc cache-control "
    b"connection content-disposition content-encoding content-language content-length content-security-policy "
    b"content-type cross-origin-opener-policy cross-origin-resource-policy date expires keep-alive last-modified "
    b"permissions-policy pragma referrer-policy server strict-transport-security timing-allow-origin "
    b"transfer-encoding vary via x-content-type-options x-frame-options x-powered-by x-xss-protection".split()
)
"""Names whose values come again and are nobody's secret. Any other line goes to the engine each time, and is forgotten."""


class SeenLines:
    """An engine's function for heads, with a memory. Bounded: when it is full it begins anew."""

    __slots__ = ("_seen", "_split")

    def __init__(self, split: SplitHead) -> None:
        self._split = split
        self._seen: dict[bytes, tuple[bytes, bytes]] = {}

    def __call__(self, head: bytes) -> Fields:
        lines = head.split(b"\r\n")
        found = list(map(self._seen.get, lines[1:-2]))
        if None in found:
            self._fill(lines, found)
        return found  # type: ignore[return-value]

    def _fill(self, lines: list[bytes], found: list[tuple[bytes, bytes] | None]) -> None:
        """Have the engine read what is missing in *found*, and learn it."""
        missing = [i for i, field in enumerate(found) if field is None]
        new = [lines[i + 1] for i in missing]
        fields = self._split(b"\r\n".join((lines[0], *new, b"", b"")))
        if len(fields) != len(missing):
            raise Refusal("Malformed header line")
        seen = self._seen
        for i, line, field in zip(missing, new, fields, strict=True):
            found[i] = field
            if len(line) <= MAX_SEEN_LINE and field[0] in _LEARNED:
                if len(seen) >= MAX_SEEN_LINES:
                    seen.clear()
                seen[line] = field
