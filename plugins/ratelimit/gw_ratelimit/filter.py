"""The filters: one decides, one tells the client, one settles what is known at the end only.

The two that may not be needed are filters of their own, so that a chain has no hook that does nothing. How much is
allowed is `gw_ratelimit.algorithms`'s business, whose memory decides that of `gw_ratelimit.stores`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, TypeAlias

from gw import Exchange, Filter, Key, Reply
from gw_ratelimit.algorithms import Concurrency, Left, Limit, Verdict
from gw_ratelimit.headers import Style, Tell, seconds
from gw_ratelimit.keys import Read
from gw_ratelimit.leases import Leases
from gw_ratelimit.quick import Admit
from gw_ratelimit.redis import RedisStore
from gw_ratelimit.rules import Rule, matches
from gw_ratelimit.stores import Ask, Entry, LocalStore, SharedStore, StoreAway
from gw_ratelimit.zones import Zone

__all__ = ["Announcing", "Limiting", "Settling", "Stores", "filters"]

Shown: TypeAlias = tuple[Tell, Left, float]

Only: TypeAlias = tuple[tuple[str, ...], Read, Admit, Zone, Tell | None]
"""Of the only rule: its paths, whom it counts by, what admits, its zone, and how what is left is told."""

_SHOWN: Final[Key[Shown]] = Key("ratelimit.shown")
"""What the client is told about: the zone that denies, else the one with the least left, and the share that is."""
_HELD: Final[Key[list[tuple[Zone, str, Callable[[], None] | None]]]] = Key("ratelimit.held")
"""Where this request counts as being under way: for a key in this process, and what ends it where others see it, too."""
_OWED: Final[Key[list[tuple[Rule, Ask]]]] = Key("ratelimit.owed")
"""Whom its response is charged to."""

_STORE_AWAY: Final = Reply(503, headers=(("retry-after", "1"),), reason="ratelimit.store_away")


class Stores:
    """Who decides: *chosen*, and what happens while it cannot."""

    __slots__ = ("chosen", "leases", "local", "on_error", "redis")

    def __init__(
        self,
        chosen: SharedStore | RedisStore | None = None,
        on_error: Literal["local", "allow", "deny"] = "local",
        leases: Leases | None = None,
    ) -> None:
        self.local = LocalStore()
        self.redis = chosen if isinstance(chosen, RedisStore) else None
        self.chosen = self.local if chosen is None or isinstance(chosen, RedisStore) else chosen
        self.on_error = on_error
        self.leases = leases
        """Where requests under way are counted; in a process that is alone nowhere but in the zone."""


def filters(
    rules: Sequence[Rule],
    stores: Stores,
    *,
    exclude: tuple[str, ...] = (),
    style: Style | None = None,
    alone: bool = True,
) -> tuple[Filter, ...]:
    """Return the filters for *rules*. *style* is how the client is told what is left; without one it is not.

    *alone* says that no other rules decide about the same requests elsewhere in the chain. Those for the response come first: it travels back only through filters that the request has reached.
    """
    made: list[Filter] = []
    if style is not None and any(not isinstance(rule.limit, Concurrency) for rule in rules):
        made.append(Announcing())
    if any(isinstance(rule.limit, Concurrency) or rule.response_bytes for rule in rules):
        made.append(Settling(stores, rules))
    made.append(Limiting(rules, stores, exclude=exclude, style=style, alone=alone))
    return tuple(made)


class Limiting(Filter):
    """Decides whether a request may pass: it has to in all zones that apply, and is charged in all or in none."""

    name = "ratelimit"

    def __init__(
        self,
        rules: Sequence[Rule],
        stores: Stores,
        *,
        exclude: tuple[str, ...] = (),
        style: Style | None = None,
        alone: bool = True,
    ) -> None:
        self._rules, self._stores, self._exclude, self._style = tuple(rules), stores, exclude, style
        self._redis, self._decide = stores.redis, stores.chosen.decide
        self._tells: dict[tuple[str, Limit], Tell] = {}
        self._one = self._only() if alone else None

    def _only(self) -> Only | None:
        """Return the only rule there is, if nothing in it has to be looked at per request: most sections have just that."""
        if len(self._rules) != 1 or self._redis is not None:
            return None
        (rule,) = self._rules
        limit = rule.limit
        if isinstance(limit, Concurrency) or rule.choose is not None or rule.cost_header or rule.response_bytes:
            return None
        admit = self._stores.chosen.admission(rule.zone, limit, rule.cost)
        tell = None if self._style is None else self._tell(rule, limit)
        return rule.paths, rule.read, admit, rule.zone, tell

    def _tell(self, rule: Rule, limit: Limit) -> Tell:
        assert self._style is not None
        place = rule.zone.name, limit
        tell = self._tells.get(place)
        if tell is None:
            tell = self._tells[place] = self._style(*place)
        return tell

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        path = ex.matched_path
        if self._exclude and matches(path, self._exclude):
            return None
        if (one := self._one) is not None:
            paths, read, admit, zone, tell = one
            if (paths and not matches(path, paths)) or not (key := read(ex)):
                return None
            left = admit(key)
            if left is not None:
                remaining = left[4]
                zone.admitted += 1
                tokens = zone.tokens
                tokens.counts[remaining.bit_length()] += 1
                tokens.sum += remaining
                if tell is not None:
                    ex[_SHOWN] = (tell, left, 0.0)
                return None
        rules: list[Rule] = []
        asks: list[Ask] = []
        entries: list[tuple[Rule, Entry]] = []
        for rule in self._rules:
            if rule.paths and not matches(path, rule.paths):
                continue
            key = rule.read(ex)
            if not key:
                continue
            chosen = rule.limit if rule.choose is None else rule.choose(ex, key)
            if chosen is None:
                continue
            if isinstance(chosen, Concurrency):
                if self._redis is not None:
                    entries.append((rule, Entry(rule.zone, chosen, key, rule.counts)))
                elif (denial := self._enter(ex, rule, chosen, key)) is not None:
                    return denial
                continue
            rules.append(rule)
            asks.append(Ask(rule.zone, chosen, key, rule.cost_of(ex) if rule.cost_header else rule.cost, rule.counts))
        if self._redis is not None:
            return await self._ask(ex, self._redis, entries, rules, asks) if asks or entries else None
        if not asks:
            return None
        try:
            verdicts = self._decide(asks)
        except StoreAway as error:
            return self._without_store(ex, rules, asks, error)
        return self._conclude(ex, rules, asks, verdicts)

    async def _ask(
        self, ex: Exchange, redis: RedisStore, entries: list[tuple[Rule, Entry]], rules: list[Rule], asks: list[Ask]
    ) -> Reply | None:
        """Have *redis* decide about tokens and about requests under way, all in one."""
        try:
            verdicts = await redis.decide([*(entry for _, entry in entries), *asks])
        except StoreAway as error:
            return self._ask_nobody(ex, redis, entries, rules, asks, error)
        for (rule, entry), verdict in zip(entries, verdicts, strict=False):
            if rule.counts and not verdict[0]:
                return self._too_many(ex, rule, entry.key)
        reply = self._conclude(ex, rules, asks, verdicts[len(entries) :]) if asks else None
        if reply is None:
            for (rule, entry), verdict in zip(entries, verdicts, strict=False):
                self._hold(ex, rule, entry.key, partial(redis.leave, entry), fits=verdict[0])
        return reply

    def _ask_nobody(
        self,
        ex: Exchange,
        redis: RedisStore,
        entries: list[tuple[Rule, Entry]],
        rules: list[Rule],
        asks: list[Ask],
        error: StoreAway,
    ) -> Reply | None:
        """Decide as `on_store_error` says. What enters is counted by the store as soon as it is back."""
        is_local = self._stores.on_error == "local"
        fits = [not is_local or zone.in_flight.get(key, 0) < limit.limit for _, (zone, limit, key, _) in entries]
        for _, entry in entries:
            entry.zone.degraded += 1
        for (rule, entry), fit in zip(entries, fits, strict=True):
            if rule.counts and not fit:
                return self._too_many(ex, rule, entry.key)
        reply = self._without_store(ex, rules, asks, error)
        if reply is None:
            for (rule, entry), fit in zip(entries, fits, strict=True):
                redis.enter(entry)
                self._hold(ex, rule, entry.key, partial(redis.leave, entry), fits=fit)
        return reply

    def _without_store(self, ex: Exchange, rules: list[Rule], asks: list[Ask], error: StoreAway) -> Reply | None:
        """Decide about tokens as `on_store_error` says."""
        for ask in asks:
            ask.zone.degraded += 1
        ex.note(f"store away: {self._stores.on_error}", str(error))
        if self._stores.on_error == "deny":
            _leave(ex)
            return _STORE_AWAY
        if self._stores.on_error == "allow" or not asks:
            return None
        return self._conclude(ex, rules, asks, self._stores.local.decide(asks))

    def _conclude(self, ex: Exchange, rules: list[Rule], asks: list[Ask], verdicts: Sequence[Verdict]) -> Reply | None:
        """Count what was decided, note what the client is told, and answer if one of *verdicts* is a denial that counts."""
        shown: tuple[Rule, Limit, Verdict, int] | None = None
        share = 2.0
        denied = would_deny = False
        for rule, ask, verdict in zip(rules, asks, verdicts, strict=True):
            admitted, at, a, b, now = verdict
            limit, zone = ask.limit, rule.zone
            remaining = limit.remaining(at, a, b, now)
            zone.tokens.counts[remaining.bit_length()] += 1
            zone.tokens.sum += remaining
            if not admitted:
                if ask.counts:
                    zone.deny(ask.key)
                    if not denied:
                        denied, shown = True, (rule, limit, verdict, remaining)
                elif not denied:
                    zone.would_deny += 1
                    ex.note("would deny", zone.name)
                    if not would_deny:
                        would_deny, shown = True, (rule, limit, verdict, remaining)
            elif not (denied or would_deny) and (left := remaining / limit.limit) < share:
                share, shown = left, (rule, limit, verdict, remaining)
        assert shown is not None
        rule, limit, (_, at, a, b, now), remaining = shown
        if self._style is not None:
            share = remaining / limit.limit
            before = ex.get(_SHOWN, None)  # of rules that stand before another plugin
            if denied or before is None or share < before[2]:
                ex[_SHOWN] = (self._tell(rule, limit), (at, a, b, now, remaining), share)
        if denied:
            _leave(ex)
            ex.note("denied", rule.zone.name)
            cost = next(ask.cost for ask in asks if ask.zone is rule.zone)
            wait = max(1, seconds(limit.wait(at, a, b, now, cost)))
            return rule.denial((("retry-after", str(wait)),) if self._style is not None else ())
        for rule, ask, verdict in zip(rules, asks, verdicts, strict=True):
            if verdict[0]:
                rule.zone.admitted += 1
                if rule.response_bytes:
                    owed = ex.get(_OWED, None)
                    if owed is None:
                        owed = ex[_OWED] = []
                    owed.append((rule, ask))
        return None

    def _enter(self, ex: Exchange, rule: Rule, limit: Concurrency, key: str) -> Reply | None:
        """Count the request as under way, until it completes; return what to answer if it may not be."""
        zone, leases = rule.zone, self._stores.leases
        fits, leave = zone.in_flight.get(key, 0) < limit.limit, None
        if leases is not None:
            try:
                place = leases.place(zone, key)
                fits = leases.enter(place, limit.limit, counts=rule.counts)
                leave = partial(leases.leave, place)
            except StoreAway as error:
                zone.degraded += 1
                ex.note(f"store away: {self._stores.on_error}", str(error))
                if self._stores.on_error == "deny":
                    _leave(ex)
                    return _STORE_AWAY
                fits = fits or self._stores.on_error == "allow"
        if rule.counts and not fits:
            return self._too_many(ex, rule, key)
        self._hold(ex, rule, key, leave, fits=fits)
        return None

    def _hold(self, ex: Exchange, rule: Rule, key: str, leave: Callable[[], None] | None, *, fits: bool) -> None:
        """Count the request as under way until it completes, and *leave* then."""
        zone = rule.zone
        if fits:
            zone.admitted += 1
        else:
            zone.would_deny += 1
            ex.note("would deny", zone.name)
        zone.in_flight[key] = zone.in_flight.get(key, 0) + 1
        held = ex.get(_HELD, None)
        if held is None:
            held = ex[_HELD] = []
        held.append((zone, key, leave))

    def _too_many(self, ex: Exchange, rule: Rule, key: str) -> Reply:
        _leave(ex)
        rule.zone.deny(key)
        ex.note("denied", rule.zone.name)
        return rule.denial((("retry-after", "1"),) if self._style is not None else ())


def _leave(ex: Exchange) -> None:
    """Let the request count as under way no more."""
    held = ex.get(_HELD, None)
    while held:
        zone, key, leave = held.pop()
        if leave is not None:
            leave()
        left = zone.in_flight[key] - 1
        if left:
            zone.in_flight[key] = left
        else:
            del zone.in_flight[key]


class Announcing(Filter):
    """Tells the client how much is left, on whatever response it gets. A response's own fields stay (behaviour 10.4)."""

    name = "ratelimit.headers"

    def on_response_headers(self, ex: Exchange) -> None:
        shown = ex.get(_SHOWN, None)
        if shown is not None and ex.response is not None:
            tell, left, _ = shown
            tell(ex.response.headers, left)


class Settling(Filter):
    """Ends what ends with the exchange: requests under way, and what their responses cost."""

    name = "ratelimit.settle"

    def __init__(self, stores: Stores, rules: Sequence[Rule]) -> None:
        self._stores = stores
        self._rules = frozenset(map(id, rules))
        """Its own: those that stand elsewhere in the chain have another of its kind."""

    def on_complete(self, ex: Exchange) -> None:
        _leave(ex)
        for rule, ask in ex.get(_OWED, ()):
            if id(rule) not in self._rules:
                continue
            rest = -(-ex.bytes_sent // rule.response_bytes) - 1  # one token was taken before
            if rest > 0:
                self._charge(ask._replace(cost=rest))

    def _charge(self, ask: Ask) -> None:
        stores = self._stores
        try:
            (stores.redis or stores.chosen).charge(ask)
        except StoreAway:
            ask.zone.degraded += 1
            if stores.on_error == "local":
                stores.local.charge(ask)
