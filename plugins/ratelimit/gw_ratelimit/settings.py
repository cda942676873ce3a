"""What the section ``rate_limit`` may say. Everything that can be wrong with it alone is found here, when it loads.

The keys of the reference (behaviour 4.6) mean what they mean there. What the numbers become is `gw_ratelimit.rules`'s.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from gw import Section
from gw_ratelimit.keys import key_parts
from gw_ratelimit.limits import MAX_COST, TABLE_ENTRIES

__all__ = [
    "Cost",
    "GatewayRateLimit",
    "Override",
    "RateLimit",
    "RedisSettings",
    "SharedSettings",
    "Store",
    "Tier",
    "Tiers",
    "ZoneSettings",
    "counts_by_identity",
]

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)

Prefix = Annotated[str, Field(min_length=1)]
Status = Annotated[int, Field(ge=400, le=599)]
Rate = Annotated[float, Field(ge=0.001, le=1e9)]
Capacity = Annotated[int, Field(ge=1, le=1_000_000_000_000)]


def _key_type(written: str) -> str:
    key_parts(written)
    return written


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"{name!r} is no time zone that this machine knows; such names are UTC and Europe/Berlin"
        ) from None
    return name


def _header_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name")
    return name


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Cost(_Model):
    """What a request costs, if it is not one token."""

    header: Annotated[str, AfterValidator(_header_name)] | None = None
    """A request header with the number of tokens; without it, or with anything else in it, a request costs 1."""
    most: Annotated[int, Field(ge=1, le=MAX_COST)] = 100
    """The largest number that is taken from the header."""
    response_bytes: Annotated[int, Field(ge=1)] | None = None
    """Bytes of the response that cost one token. They are charged afterwards: a request passes while a token is left."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.header is None) == (self.response_bytes is None):
            raise ValueError("needs one of header and response_bytes")
        return self


class Override(_Model):
    """Other numbers for some keys. What is left out stays as it is in the zone."""

    keys: Annotated[tuple[str, ...], Field(min_length=1)]
    """The keys, as the zone counts them: parts joined by `|`, IPv6 networks as `2001:db8::/64`."""
    rate: Rate | None = None
    """Tokens a second."""
    capacity: Capacity | None = None
    """Tokens at most."""
    limit: Capacity | None = None
    """Tokens of a window or a period, or requests under way."""


class Tier(_Model):
    """Other numbers for who has a claim."""

    rate: Rate | None = None
    """Tokens a second."""
    capacity: Capacity | None = None
    """Tokens at most."""
    limit: Capacity | None = None
    """Tokens of a window or a period, or requests under way."""


class Tiers(_Model):
    """Other numbers by a claim of the identity, such as a plan."""

    claim: Annotated[str, Field(min_length=1)]
    """The name of the claim."""
    values: Annotated[dict[str, Tier], Field(min_length=1)]
    """Its values, and what is different for each."""


class ZoneSettings(_Model):
    """One limit: so much, for each key."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\"\\{}\x7f-\U0010ffff]+$")]
    """Unique among the zones of its section."""
    rate: Rate | None = None
    """`token_bucket`: tokens a second."""
    capacity: Capacity | None = None
    """`token_bucket`: tokens at most, and what a new key has."""
    key_type: Annotated[str, AfterValidator(_key_type)]
    """Whom it counts by: parts joined by `+`."""
    max_entries: Annotated[int, Field(ge=16, le=100_000_000)] = TABLE_ENTRIES
    """Keys that are held in memory."""
    applies_to: tuple[Prefix, ...] = ()
    """Path prefixes, on a segment boundary; empty means every path."""
    algorithm: Literal["token_bucket", "sliding_window", "fixed_window", "quota", "concurrency"] = "token_bucket"
    """How it counts."""
    limit: Capacity | None = None
    """The other algorithms: tokens of a window or a period, or requests under way."""
    window_sec: Annotated[int, Field(ge=1, le=31_622_400)] | None = None
    """`sliding_window` and `fixed_window`: the length of a window."""
    period: Literal["minute", "hour", "day", "month"] | None = None
    """`quota`: the period of the calendar after which it begins anew."""
    time_zone: Annotated[str, AfterValidator(_time_zone)] = "UTC"
    """`quota`: whose calendar."""
    cost: Annotated[int, Field(ge=1, le=MAX_COST)] | Cost = 1
    """Tokens that a request costs."""
    allow: tuple[str, ...] = ()
    """Keys that are not limited, written as in `overrides`."""
    overrides: tuple[Override, ...] = ()
    """Other numbers for some keys; the first that names a key counts."""
    tiers: Tiers | None = None
    """Other numbers by a claim of the identity; an override goes before."""
    status_code: Status | None = None
    """Instead of the section's."""
    body: str | None = None
    """The body of a denial, in place of the status in words."""
    content_type: str = "text/plain"
    """The type of `body`."""
    dry_run: bool | None = None
    """Instead of the section's."""
    before: str = ""
    """The plugin before which it is asked, such as `auth`; left out, at the place of `ratelimit` among the plugins."""

    @model_validator(mode="after")
    def _knows_who_it_is(self) -> Self:
        if self.before and counts_by_identity(self):
            raise ValueError(f"counts by identity, and before {self.before} nobody is known; leave one of them out")
        return self

    @model_validator(mode="after")
    def _fits_the_algorithm(self) -> Self:
        needed = _NEEDS[self.algorithm]
        for key in ("rate", "capacity", "limit", "window_sec", "period"):
            if key in needed and getattr(self, key) is None:
                raise ValueError(f"needs {key}, since its algorithm is {self.algorithm}")
            if key not in needed and getattr(self, key) is not None:
                raise ValueError(f"has {key}, which {self.algorithm} does not use; it uses {' and '.join(needed)}")
        others: list[Override | Tier] = [*self.overrides, *(self.tiers.values.values() if self.tiers else ())]
        for other in others:
            for key in ("rate", "capacity", "limit"):
                if key not in needed and getattr(other, key) is not None:
                    raise ValueError(
                        f"changes {key}, which {self.algorithm} does not use; it uses {' and '.join(needed)}"
                    )
        if self.algorithm == "concurrency" and self.cost != 1:
            raise ValueError("has a cost, but what is counted is requests under way")
        return self


def counts_by_identity(zone: ZoneSettings) -> bool:
    """Tell whether a zone has to know who somebody is."""
    return zone.tiers is not None or any(part.startswith("identity") for part in key_parts(zone.key_type))


_NEEDS: Final = {
    "token_bucket": ("rate", "capacity"),
    "sliding_window": ("limit", "window_sec"),
    "fixed_window": ("limit", "window_sec"),
    "quota": ("limit", "period"),
    "concurrency": ("limit",),
}


class RateLimit(Section):
    """Limits for what passes here. A section in a route stands in place of its upstream's, and that of the gateway's."""

    enabled: bool = False
    """Whether anything is limited."""
    dry_run: bool = False
    """Count, and say in headers and statistics what would be denied, and deny nothing."""
    status_code: Status = 429
    """The status of a denial."""
    include_headers: bool = True
    """Whether clients are told how much is left."""
    header_style: Literal["reference", "draft", "x-ratelimit"] = "reference"
    """In which words: the reference's, those of draft-ietf-httpapi-ratelimit-headers-10, or `X-RateLimit-*`."""
    ipv6_prefix: Annotated[int, Field(ge=1, le=128)] = 64
    """Bits of an IPv6 address that `client_ip` counts by. A client mostly has a whole /64."""
    exclude: tuple[Prefix, ...] = ()
    """Path prefixes that nothing here applies to, such as `/health`."""
    zones: tuple[ZoneSettings, ...] = ()
    """The limits. A request has to pass all that apply, and is charged in all of them or in none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.enabled and not self.zones:
            raise ValueError("is enabled and has no zones; add one, or set enabled to false")
        seen: set[str] = set()
        for zone in self.zones:
            if zone.name in seen:
                raise ValueError(f"has two zones called {zone.name!r}; give each a name of its own")
            seen.add(zone.name)
        return self


class SharedSettings(_Model):
    """A table in shared memory, for all worker processes on a machine."""

    path: str = ""
    """The file that is the table; on Linux in `/dev/shm`. It is made where it is not there."""
    fd: Annotated[int, Field(ge=0)] | None = None
    """Instead of a path: the descriptor of a file that the processes inherited."""
    max_entries: Annotated[int, Field(ge=16, le=100_000_000)] = TABLE_ENTRIES
    """Keys that it holds, of all zones together."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.path) == (self.fd is not None):
            raise ValueError("needs one of path and fd")
        return self


class RedisSettings(_Model):
    """A Redis or Valkey server, for all machines."""

    url: SecretStr
    """Where it is: `redis://`, `rediss://` for TLS, or `unix://`, with user and password where it wants them."""
    timeout_ms: Annotated[int, Field(ge=1, le=10_000)] = 50
    """How long a decision may take. After that it is made by `on_store_error`."""
    prefix: Annotated[str, Field(pattern=r"^[^{}\s]*$")] = "gw:"
    """How its keys begin."""
    cluster: bool = False
    """Whether it is a cluster: `url` is then any of its nodes, and the others are learnt from it."""
    ca_file: str = ""
    """`rediss://`: the authorities that its certificate is verified against; left out, those of the machine."""
    cert_file: str = ""
    """`rediss://`: a certificate to show it."""
    key_file: str = ""
    """The key of that certificate."""

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("needs both cert_file and key_file, or neither")
        return self


class Store(_Model):
    """Where the keys are held."""

    shared: SharedSettings | None = None
    """In memory that worker processes share."""
    redis: RedisSettings | None = None
    """In Redis or Valkey."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.shared is None) == (self.redis is None):
            raise ValueError("needs one of shared and redis; leave store out to hold keys in this process")
        return self


class GatewayRateLimit(RateLimit):
    """Limits for everything, and where the keys of all limits are held."""

    store: Store | None = None
    """Where the keys are held; left out, in memory that the workers of this gateway share."""
    on_store_error: Literal["local", "allow", "deny"] = "local"
    """What decides while the store cannot: the memory of this process, or the same answer for everyone."""
