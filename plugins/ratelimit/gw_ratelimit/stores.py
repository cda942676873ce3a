"""Who decides: tables in memory, of one process or of all workers on a machine. One decision is all its zones, or none.

`gw_ratelimit.redis` has the store for many machines.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gw_ratelimit import quick
from gw_ratelimit.algorithms import Concurrency, Left, Limit, TokenBucket, Verdict
from gw_ratelimit.limits import BREAKER_TIME
from gw_ratelimit.quick import Admit
from gw_ratelimit.table import Busy
from gw_ratelimit.zones import Cells, Zone

__all__ = ["Ask", "Entry", "LocalStore", "SharedStore", "StoreAway", "TableStore", "steady_ms", "wall_ms"]


class Ask(NamedTuple):
    """One zone's part in a decision."""

    zone: Zone
    limit: Limit
    key: str
    cost: int
    counts: bool
    """Whether its denial is a denial; in a dry run it is not."""


class Entry(NamedTuple):
    """The part of a zone that counts requests under way: one more."""

    zone: Zone
    limit: Concurrency
    key: str
    counts: bool
    """Whether its denial is a denial; in a dry run it is not, and what is too many is counted, too."""


class StoreAway(Exception):
    """The store cannot be asked."""


class TableStore(Protocol):
    """Decides at once."""

    def decide(self, asks: Sequence[Ask]) -> Sequence[Verdict]:
        """Charge all of *asks*, or none if one that counts denies; raises `StoreAway`."""

    def decide_one(self, ask: Ask) -> Verdict:
        """Do the same for one; raises `StoreAway`."""

    def admission(self, zone: Zone, limit: Limit, cost: int) -> Admit:
        """Return what admits one key after the other, for *cost* tokens each. Whom it does not admit, `decide` is asked about."""

    def charge(self, ask: Ask) -> None:
        """Take the tokens of *ask*, whether they are there or not; raises `StoreAway`."""


def steady_ms() -> int:
    """Return the time of a clock that only runs, the same in all processes of a machine."""
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    """Return the time of day, in ms since 1970."""
    return time.time_ns() // 1_000_000


class LocalStore:
    """The tables of this process."""

    __slots__ = ()

    def decide(self, asks: Sequence[Ask]) -> Sequence[Verdict]:
        return _decide_all(asks, [ask.zone.local for ask in asks])

    def decide_one(self, ask: Ask) -> Verdict:
        cells = ask.zone.local
        return _decide_one(ask, cells, cells.digest(ask.key))

    def admission(self, zone: Zone, limit: Limit, cost: int) -> Admit:
        if isinstance(limit, TokenBucket):
            return quick.private(zone, limit, cost)
        return _admission(self, zone, limit, cost)

    def charge(self, ask: Ask) -> None:
        _charge_one(ask, ask.zone.local)


def _admission(store: TableStore, zone: Zone, limit: Limit, cost: int) -> Admit:
    """Return what admits by any limit."""

    def admit(key: str) -> Left | None:
        try:
            admitted, at, a, b, now = store.decide_one(Ask(zone, limit, key, cost, True))
        except StoreAway:
            return None
        return (at, a, b, now, limit.remaining(at, a, b, now)) if admitted else None

    return admit


def _decide_one(ask: Ask, cells: Cells, name: bytes) -> Verdict:
    """Decide *ask* alone; *name* is the digest of its key."""
    _, limit, _, cost, _ = ask
    table = cells.table
    number = table.set_of(name)
    now = steady = time.monotonic_ns() // 1_000_000
    if not limit.steady:
        now = wall_ms()
    place = table.find(number, name)
    if place >= 0:
        at, a, b, _ = table.read(place)
    else:
        at, a, b = limit.fresh
    verdict = limit.take(at, a, b, now, cost)
    admitted, at, a, b, now = verdict
    if admitted:  # a state that only moved on is found again by the next
        until = steady + limit.lasts(at, a, b, now)
        if place >= 0:
            table.write(place, at, a, b, until)
        else:
            table.add(number, name, at, a, b, until)
    return verdict


def _decide_all(asks: Sequence[Ask], all_cells: Sequence[Cells]) -> list[Verdict]:
    steady, wall = steady_ms(), 0
    verdicts: list[Verdict] = []
    passes = True
    for (_, limit, key, cost, counts), cells in zip(asks, all_cells, strict=True):
        name = cells.digest(key)
        place = cells.table.find(cells.table.set_of(name), name)
        at, a, b = cells.table.read(place)[:3] if place >= 0 else limit.fresh
        if limit.steady:
            now = steady
        else:
            now = wall = wall or wall_ms()
        verdict = limit.take(at, a, b, now, cost)
        verdicts.append(verdict)
        if counts and not verdict[0]:
            passes = False
    if passes:
        for ask, cells, verdict in zip(asks, all_cells, verdicts, strict=True):
            if verdict[0]:
                _keep(ask, cells, verdict, steady)
    return verdicts


def _keep(ask: Ask, cells: Cells, verdict: Verdict, steady: int) -> None:
    """Write the state of one key; other keys may have taken places since it was looked for."""
    _, at, a, b, now = verdict
    table, name = cells.table, cells.digest(ask.key)
    number = table.set_of(name)
    until = steady + ask.limit.lasts(at, a, b, now)
    place = table.find(number, name)
    if place >= 0:
        table.write(place, at, a, b, until)
    else:
        table.add(number, name, at, a, b, until)


def _charge_one(ask: Ask, cells: Cells) -> None:
    """Take the tokens of *ask*, whether they are there or not."""
    _, limit, key, cost, _ = ask
    table, name = cells.table, cells.digest(key)
    now = steady_ms() if limit.steady else wall_ms()
    place = table.find(table.set_of(name), name)
    at, a, b = table.read(place)[:3] if place >= 0 else limit.fresh
    _keep(ask, cells, (True, *limit.charge(at, a, b, now, cost), now), steady_ms())


class SharedStore:
    """The table of all workers: each set of a decision is held while it is made."""

    __slots__ = ("_away_until",)

    def __init__(self) -> None:
        self._away_until = 0

    def decide(self, asks: Sequence[Ask]) -> Sequence[Verdict]:
        self._refuse_if_away()
        all_cells = [_shared(ask) for ask in asks]
        table = all_cells[0].table
        try:
            numbers = {table.set_of(cells.digest(ask.key)) for ask, cells in zip(asks, all_cells, strict=True)}
            with table.locked(sorted(numbers)):
                return _decide_all(asks, all_cells)
        except Busy as error:
            raise self._away(error) from error

    def decide_one(self, ask: Ask) -> Verdict:
        self._refuse_if_away()
        cells = ask.zone.shared or ask.zone.share()
        table, name = cells.table, cells.digest(ask.key)
        number = table.set_of(name)
        try:
            table.lock(number)
        except Busy as error:
            raise self._away(error) from error
        try:
            return _decide_one(ask, cells, name)
        finally:
            table.unlock(number)

    def admission(self, zone: Zone, limit: Limit, cost: int) -> Admit:
        if not isinstance(limit, TokenBucket):
            return _admission(self, zone, limit, cost)
        quickly = quick.shared(zone, limit, cost)

        def admit(key: str) -> Left | None:
            return None if self._away_until else quickly(key)

        return admit

    def charge(self, ask: Ask) -> None:
        self._refuse_if_away()
        cells = _shared(ask)
        try:
            with cells.table.locked((cells.table.set_of(cells.digest(ask.key)),)):
                _charge_one(ask, cells)
        except Busy as error:
            raise self._away(error) from error

    def _refuse_if_away(self) -> None:
        if not self._away_until:
            return
        if steady_ms() < self._away_until:
            raise StoreAway("the shared table was held by a process that does not run")
        self._away_until = 0

    def _away(self, error: Busy) -> StoreAway:
        """Leave the table alone for a while: whoever holds it was stopped, and waiting stops us, too."""
        self._away_until = steady_ms() + int(BREAKER_TIME * 1000)
        return StoreAway(str(error))


def _shared(ask: Ask) -> Cells:
    return ask.zone.shared or ask.zone.share()
