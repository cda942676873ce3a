"""A section brought to life: what `gw_ratelimit.settings` says, as the plain objects that the filters go by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any, Final
from zoneinfo import ZoneInfo

from gw import IDENTITY, Exchange, Reply
from gw_ratelimit.algorithms import Concurrency, FixedWindow, Limit, Periods, SlidingWindow, TokenBucket
from gw_ratelimit.keys import SEPARATOR, Read, claim_text, key_reader
from gw_ratelimit.settings import Cost, Override, RateLimit, Tier, ZoneSettings
from gw_ratelimit.zones import Zone

__all__ = [
    "Rule",
    "any_under_way",
    "calendar",
    "identity_of",
    "keys_of_all",
    "limit_of",
    "matches",
    "rule_of",
]


@dataclass(frozen=True, slots=True)
class Rule:
    """One zone, as the configuration has it."""

    zone: Zone
    read: Read
    """The key of a request; empty where the zone does not apply."""
    limit: Limit | Concurrency
    choose: Callable[[Exchange, str], Limit | Concurrency | None] | None
    """The limit for a request and its key, `None` where it is not limited; left out where it is always *limit*."""
    paths: tuple[str, ...]
    cost: int
    cost_header: str
    most: int
    response_bytes: int
    """Bytes that cost one token, afterwards; 0 where the cost is known before."""
    counts: bool
    """Whether its denial is one."""
    status: int
    body: bytes
    content_type: str

    def applies(self, path: str) -> bool:
        return not self.paths or matches(path, self.paths)

    def cost_of(self, ex: Exchange) -> int:
        if self.cost_header:
            text = ex.request.headers.get(self.cost_header, "")
            if text.isascii() and text.isdigit() and len(text) <= 9:
                return min(max(1, int(text)), self.most)
            return 1
        return self.cost

    def denial(self, headers: tuple[tuple[str, str], ...]) -> Reply:
        return Reply(self.status, self.body, (("content-type", self.content_type), *headers), "ratelimit.exceeded")


def matches(path: str, prefixes: tuple[str, ...]) -> bool:
    """Tell whether *path* has one of *prefixes*, on a segment boundary (behaviour 14.1)."""
    for prefix in prefixes:
        if path.startswith(prefix) and (len(path) == len(prefix) or prefix[-1] == "/" or path[len(prefix)] == "/"):
            return True
    return False


def rule_of(settings: ZoneSettings, section: RateLimit, zone: Zone) -> Rule:
    """Return the rule that *settings* make in *section*, with *zone* as its memory."""
    cost = settings.cost
    other = cost if isinstance(cost, Cost) else Cost.model_construct()
    status = section.status_code if settings.status_code is None else settings.status_code
    body = f"{status} {_phrase(status)}" if settings.body is None else settings.body
    dry = section.dry_run if settings.dry_run is None else settings.dry_run
    return Rule(
        zone=zone,
        read=key_reader(settings.key_type, section.ipv6_prefix),
        limit=limit_of(settings),
        choose=_chooser(settings),
        paths=settings.applies_to,
        cost=cost if isinstance(cost, int) else 1,
        cost_header=other.header or "",
        most=other.most,
        response_bytes=other.response_bytes or 0,
        counts=not dry,
        status=status,
        body=body.encode(),
        content_type=settings.content_type if settings.body is not None else "text/plain",
    )


def identity_of(settings: ZoneSettings) -> str:
    """Return what has to stay the same for a zone to keep its keys over a reload (behaviour 14.2)."""
    return f"{settings.name}:{settings.key_type}:{limit_of(settings).kind}"


def keys_of_all(config: Any) -> int:
    """Return how many keys all zones of a configuration may hold, as the next power of two: few reloads change that."""
    keys = sum(zone.max_entries for zone in _zones_of_all(config))
    return 1 << (keys - 1).bit_length() if keys else 0


def any_under_way(config: Any) -> bool:
    """Tell whether a zone of a configuration counts requests under way."""
    return any(zone.algorithm == "concurrency" for zone in _zones_of_all(config))


def _zones_of_all(config: Any) -> Iterator[ZoneSettings]:
    sections: list[RateLimit | None] = [config.rate_limit]
    sections += [each.rate_limit for each in (*config.upstreams, *config.routes)]
    for section in sections:
        if section is not None and section.enabled:
            yield from section.zones


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # nobody registered it: what its first digit means (RFC 9110 section 15)
        return "Client Error" if status < 500 else "Server Error"


# --- limits ----------------------------------------------------------------------


def limit_of(settings: ZoneSettings, other: Override | Tier | None = None) -> Limit | Concurrency:
    """Return the limit of a zone, with the numbers of *other* where it has some."""

    def number(key: str) -> float | int:
        value = getattr(other, key, None)
        if value is None:
            value = getattr(settings, key)
        assert value is not None
        return value  # type: ignore[no-any-return]

    if settings.algorithm == "token_bucket":
        return TokenBucket(number("rate"), int(number("capacity")))
    most = int(number("limit"))
    if settings.algorithm == "concurrency":
        return Concurrency(most)
    if settings.algorithm == "quota":
        assert settings.period is not None
        kind = f"quota/{settings.period}/{settings.time_zone}"
        return FixedWindow(most, kind, calendar(settings.period, settings.time_zone))
    assert settings.window_sec is not None
    length = settings.window_sec * 1000
    if settings.algorithm == "sliding_window":
        return SlidingWindow(most, length)
    return FixedWindow(most, f"fixed_window/{length}", _regular(length))


def _regular(length: int) -> Periods:
    def periods(now: int) -> tuple[int, int]:
        begin = now - now % length
        return begin, begin + length

    return periods


_LENGTHS: Final = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1)}


def calendar(period: str, time_zone: str) -> Periods:
    """Return the periods of a calendar. Minutes and hours are those of the zone's clock; days may have 23 or 25 hours."""
    zone = ZoneInfo(time_zone)
    latest = (0, 0)

    def periods(now: int) -> tuple[int, int]:
        nonlocal latest
        if not latest[0] <= now < latest[1]:
            latest = _period(period, now, zone)
        return latest

    return periods


def _period(period: str, now: int, zone: ZoneInfo) -> tuple[int, int]:
    at = datetime.fromtimestamp(now // 1000, zone)
    if period in _LENGTHS:
        begin = at.replace(second=0) if period == "minute" else at.replace(minute=0, second=0)
        begun = int(begin.timestamp()) * 1000
        return begun, begun + _LENGTHS[period] // timedelta(milliseconds=1)
    first = at.replace(hour=0, minute=0, second=0, fold=0)
    if period == "month":
        first = first.replace(day=1)
        following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    else:
        following = first + timedelta(days=1)
    return int(first.timestamp()) * 1000, int(following.timestamp()) * 1000


# --- whose numbers -------------------------------------------------------------------


def _chooser(settings: ZoneSettings) -> Callable[[Exchange, str], Limit | Concurrency | None] | None:
    if not (settings.allow or settings.overrides or settings.tiers):
        return None
    plain = limit_of(settings)
    named: dict[str, Limit | Concurrency | None] = {}
    for override in settings.overrides:
        for key in override.keys:
            named.setdefault(_as_key(key), limit_of(settings, override))
    named.update(dict.fromkeys(map(_as_key, settings.allow)))
    tiers: Mapping[str, Limit | Concurrency] = {}
    claim = ""
    if settings.tiers is not None:
        claim = settings.tiers.claim
        tiers = {value: limit_of(settings, tier) for value, tier in settings.tiers.values.items()}

    def choose(ex: Exchange, key: str) -> Limit | Concurrency | None:
        found = named.get(key, plain)
        if found is not plain or not tiers:
            return found
        identity = ex.get(IDENTITY, None)
        return plain if identity is None else tiers.get(claim_text(identity.claims.get(claim)), plain)

    return choose


def _as_key(written: str) -> str:
    return written.replace("|", SEPARATOR)
