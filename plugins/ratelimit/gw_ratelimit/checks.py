"""Rules of the section that concern what is around it: the store, the levels, and numbers that can hardly be meant."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from gw import Problem
from gw_ratelimit.limits import MAX_EXACT
from gw_ratelimit.rules import limit_of
from gw_ratelimit.settings import (
    GatewayRateLimit,
    Override,
    RateLimit,
    RedisSettings,
    Tier,
    ZoneSettings,
    counts_by_identity,
)

__all__ = ["problems"]

Where: TypeAlias = tuple[str | int, ...]

_STANDARD: Final = ("otel", "grpcweb", "auth", "ratelimit")
"""What comes before us where `plugins` does not say."""
_SCHEMES: Final = ("redis", "rediss", "unix")


def problems(config: Any) -> Iterator[Problem]:
    """Yield what is wrong with the limits of *config*, the whole configuration."""
    gateway: GatewayRateLimit | None = config.rate_limit
    redis = gateway.store.redis if gateway is not None and gateway.store is not None else None
    if redis is not None:
        yield from _redis(redis)
    sections: list[tuple[Where, RateLimit | None]] = [(("rate_limit",), gateway)]
    sections += [(("upstreams", index, "rate_limit"), each.rate_limit) for index, each in enumerate(config.upstreams)]
    sections += [(("routes", index, "rate_limit"), each.rate_limit) for index, each in enumerate(config.routes)]
    for at, section in sections:
        for index, zone in enumerate(section.zones if section is not None else ()):
            yield from _zone((*at, "zones", index), zone, exact=redis is not None)
            yield from _place((*at, "zones", index), zone, config.plugins)


def _redis(settings: RedisSettings) -> Iterator[Problem]:
    at = ("rate_limit", "store", "redis")
    scheme = urlsplit(settings.url.get_secret_value()).scheme
    if scheme not in _SCHEMES:
        yield Problem((*at, "url"), "is no address of a store; it begins with redis://, rediss:// or unix://")
    if settings.cluster and scheme == "unix":
        yield Problem((*at, "cluster"), "cannot be had by unix://, since its other nodes are elsewhere")
    for key in ("ca_file", "cert_file", "key_file"):
        file = getattr(settings, key)
        if file and scheme != "rediss":
            yield Problem((*at, key), "is for TLS, and the url does not begin with rediss://")
        elif file and not os.path.isfile(file):  # noqa: PTH113  # a question, not a path to work with
            yield Problem((*at, key), f"there is no file {file!r}")
    if find_spec("coredis") is None:
        yield Problem(at, "needs coredis, which is not installed; run pip install 'gw[redis]'")


def _zone(at: Where, zone: ZoneSettings, *, exact: bool) -> Iterator[Problem]:
    if zone.rate is not None and zone.capacity is not None and zone.capacity < zone.rate:
        yield Problem(
            (*at, "capacity"),
            f"is less than a second's worth ({zone.rate:g}), and so the rate is never reached",
            "warning",
        )
    for place, other in _numbers(at, zone):
        limit = limit_of(zone, other)
        if isinstance(zone.cost, int) and zone.cost > limit.limit:
            yield Problem(place, f"allows {limit.limit}, which is less than the cost of one request ({zone.cost})")
        if exact and (most := _largest(zone, limit.limit)) is not None:
            yield Problem(place, f"allows {limit.limit}, which a store cannot count exactly; {most} is the most there")


def _place(at: Where, zone: ZoneSettings, plugins: Sequence[str] | None) -> Iterator[Problem]:
    names = _STANDARD if plugins is None else tuple(plugins)
    earlier = names[: names.index("ratelimit")] if "ratelimit" in names else ()
    if zone.before and zone.before not in earlier:
        there = f"those are {', '.join(earlier)}" if earlier else "there are none"
        yield Problem((*at, "before"), f"{zone.before!r} is no plugin that comes before ratelimit; {there}")
    if "auth" in names and "auth" not in earlier and counts_by_identity(zone):
        yield Problem(
            (*at, "key_type"),
            "counts by identity, and ratelimit comes before auth in plugins, where nobody is known yet; "
            "put it behind, and give the zones that are to come first before: auth",
            "warning",
        )


def _numbers(at: Where, zone: ZoneSettings) -> Iterator[tuple[Where, Override | Tier | None]]:
    yield (*at, "limit" if zone.capacity is None else "capacity"), None
    for index, override in enumerate(zone.overrides):
        yield (*at, "overrides", index), override
    for name, tier in (zone.tiers.values if zone.tiers is not None else {}).items():
        yield (*at, "tiers", "values", name), tier


def _largest(zone: ZoneSettings, limit: int) -> int | None:
    """Return the largest limit that a script can count with, if *limit* is larger."""
    unit = {"token_bucket": 1_000_000, "sliding_window": (zone.window_sec or 0) * 1000}.get(zone.algorithm, 1)
    most = MAX_EXACT // unit
    return most if limit > most else None
