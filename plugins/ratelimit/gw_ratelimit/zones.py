"""What is known about a zone while the gateway runs: its counters, its keys in a table, and who was denied most.

It outlives a reload; what the configuration says about it does not, and stands in `gw_ratelimit.rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from gw import Distribution
from gw_ratelimit.limits import DIGESTS, MAX_KEY, TOP_KEYS, TOP_SHOWN
from gw_ratelimit.table import SharedTable, Table

__all__ = ["LEVELS", "Cells", "TopKeys", "Zone"]

LEVELS: Final = tuple(float((1 << bits) - 1) for bits in range(41))
"""Bounds of the distribution of what is left: 0, 1, 3, 7, ..., so that a number's bucket is its length in bits. A capacity has 40."""


class Cells:
    """A table, as one zone sees it."""

    __slots__ = ("digest", "known", "table")

    def __init__(self, table: Table, zone: str) -> None:
        self.table = table
        self.digest: Callable[[str], bytes] = _shared_digest(table.secret, zone) if table.is_shared else _digest
        self.known: Callable[[str], bytes] = lru_cache(DIGESTS)(self.digest) if table.is_shared else _digest
        """The same for a key of at most `MAX_KEY` characters, from memory where it came not long ago."""


def _digest(key: str) -> bytes:
    # Python's own hash: SipHash with a secret of this process, so that nobody can choose keys of one set. 0 is no key.
    return (hash(key) or 1).to_bytes(8, "little", signed=True)


def _shared_digest(secret: bytes, zone: str) -> Callable[[str], bytes]:
    begun = blake2b(f"{zone}\0".encode(), digest_size=8, key=secret)

    def digest(key: str) -> bytes:
        hashed = begun.copy()
        hashed.update(key.encode("utf-8", "surrogatepass"))
        return hashed.digest()

    return digest


def _shortened(key: str, most: int) -> str:
    """Return *key*, or a digest of it where it is longer than *most*."""
    if len(key) <= most:
        return key.encode("utf-8", "replace").decode()  # a claim may hold half a surrogate pair
    return f"#{blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


class TopKeys:
    """Which keys were denied most: space-saving (Metwally et al., 2005), with `TOP_KEYS` counters.

    A key that was denied more often than one in `TOP_KEYS` times is there for sure. Its count is too high by *error* at most.
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}

    def count(self, key: str) -> None:
        counts = self._counts
        seen = counts.get(key)
        if seen is not None:
            counts[key] = (seen[0] + 1, seen[1])
        elif len(counts) < TOP_KEYS:
            counts[key] = (1, 0)
        else:
            least = min(counts, key=lambda each: counts[each][0])
            taken = counts.pop(least)[0]
            counts[key] = (taken + 1, taken)

    def top(self) -> list[tuple[str, int, int]]:
        """Return the first `TOP_SHOWN`: key, count, by how much it may be too high."""
        ranked = sorted(self._counts.items(), key=lambda each: (-each[1][0], each[0]))
        return [(key, count, error) for key, (count, error) in ranked[:TOP_SHOWN]]


class Zone:
    """One zone. *place* says whose section it stands in, such as ``route:users``; *name* is unique within that.

    *identity* says what its states mean. With *hides* its keys may be secrets, and only their digests are ever shown.
    """

    __slots__ = (
        "__weakref__",
        "admitted",
        "degraded",
        "denied",
        "hides",
        "identity",
        "in_flight",
        "local",
        "name",
        "place",
        "shared",
        "table",
        "tokens",
        "top",
        "would_deny",
    )

    def __init__(
        self,
        place: str,
        name: str,
        identity: str,
        keys: int,
        shared: SharedTable | None = None,
        *,
        hides: bool = False,
    ) -> None:
        self.place, self.name, self.identity, self.hides = place, name, identity, hides
        self.local = Cells(Table.private(keys), identity)
        """What this process decides by, if it does."""
        self.table = shared
        self.shared: Cells | None = None
        """What the workers of this machine decide by together, once `share` was called."""
        self.admitted = self.denied = self.would_deny = 0
        self.degraded = 0
        """Decisions that were made without the store that should have made them."""
        self.tokens = Distribution(LEVELS)
        """How many were left after a decision, between `LEVELS`; a decision writes to its counts itself."""
        self.in_flight: dict[str, int] = {}
        """Requests that are under way, by key; where nothing is, nothing is held."""
        self.top = TopKeys()

    def share(self) -> Cells:
        """Return its keys in the shared table, which is opened if it is not yet; raises `TableError`."""
        assert self.table is not None
        self.shared = cells = Cells(self.table.open(), f"{self.place}\0{self.identity}")
        return cells

    @property
    def label(self) -> str:
        """What it is called among those of all sections."""
        return self.name if self.place == "gateway" else f"{self.place}/{self.name}"

    def resize(self, keys: int) -> None:
        """Make room for *keys* keys; those that are there stay, as far as they fit."""
        table = Table.private(keys)
        if table.sets != self.local.table.sets:
            self.local.table.copy_to(table)
            self.local = Cells(table, self.identity)

    def shown(self, key: str) -> str:
        """Return *key* as it may be shown, and sent to a store: short, and no secret."""
        return _shortened(key.replace("\0", "|"), 0 if self.hides else MAX_KEY)

    def deny(self, key: str) -> None:
        """Count a denial."""
        self.denied += 1
        self.top.count(self.shown(key))

    def stats(self) -> dict[str, Any]:
        """Return the zone's part of ``/stats``."""
        found: dict[str, Any] = {
            "admitted": self.admitted,
            "denied": self.denied,
            "would_deny": self.would_deny,
            "degraded": self.degraded,
            "in_flight": sum(self.in_flight.values()),
            "top_denied": {key: {"count": count, "error": error} for key, count, error in self.top.top()},
            "tokens": {str((1 << bits) - 1): count for bits, count in enumerate(self.tokens.counts) if count},
        }
        if self.table is None:
            found["keys"] = self.local.table.taken
        return found
