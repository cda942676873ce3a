"""What is counted: figures that whoever exports metrics reads, and `/stats` too (behaviour 16.8 and 19)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gw import Count, Family, Figures

__all__ = ["NOBODY", "IssuerCounts", "Row", "Rows", "Totals"]

NOBODY: Final = "<unknown>"
"""The label of an issuer where none was chosen (behaviour 16.8)."""


class Row:
    """Verdicts of one policy about one issuer's tokens."""

    __slots__ = ("allowed", "denied", "undetermined")

    def __init__(self) -> None:
        self.allowed = self.denied = self.undetermined = 0

    def as_dict(self) -> dict[str, int]:
        return {"allowed": self.allowed, "denied": self.denied, "undetermined": self.undetermined}


class Rows(dict[str, Row]):
    """Verdicts of one policy by issuer; an empty name stands for those before an issuer was chosen. Outlives reloads."""

    def __missing__(self, issuer: str) -> Row:
        row = self[issuer] = Row()
        return row


class Totals:
    """Verdicts that clients saw, of all policies, since the process began: the figure ``gw.auth.requests``."""

    __slots__ = ("_family", "allowed")

    def __init__(self, figures: Figures) -> None:
        what = "Verdicts about requests that a policy is for"
        self._family = figures.counter("gw.auth.requests", "{requests}", what, ("outcome", "issuer", "reason"))
        self.allowed: Mapping[str, Count] = _Allowed(self._family)
        """By issuer."""

    def refuse(self, outcome: str, issuer: str, reason: str) -> None:
        """Count a verdict that is *outcome*, deny or undetermined."""
        self._family.at(outcome, issuer or NOBODY, reason).value += 1

    def requests(self) -> dict[tuple[str, ...], int]:
        """Return all of them by outcome, issuer and reason."""
        return {labels: int(count.value) for labels, count in self._family.rows().items()}

    def of(self, outcome: str) -> int:
        return sum(count for labels, count in self.requests().items() if labels[0] == outcome)


class _Allowed(dict[str, Count]):
    """The series of those that passed, looked up once for each issuer."""

    def __init__(self, family: Family[Count]) -> None:
        super().__init__()
        self._family = family

    def __missing__(self, issuer: str) -> Count:
        count = self[issuer] = self._family.at("allow", issuer or NOBODY, "ok")
        return count


class IssuerCounts:
    """What happened between the gateway and one provider: series of ``gw.auth.cache.lookups`` and ``gw.auth.jwks.refreshes``."""

    __slots__ = (
        "cache_hit",
        "cache_miss",
        "cache_negative_hit",
        "fail",
        "network_error",
        "ok",
        "parse_error",
        "refresh_ok",
        "stale_keys",
        "stale_served",
    )

    def __init__(self, figures: Figures, issuer: str) -> None:
        what = "Tokens that were looked up among what is remembered of introspections"
        lookups = figures.counter("gw.auth.cache.lookups", "{lookups}", what, ("outcome", "issuer"))
        self.cache_hit = lookups.at("hit", issuer)
        self.cache_miss = lookups.at("miss", issuer)
        self.cache_negative_hit = lookups.at("negative_hit", issuer)
        self.stale_served = lookups.at("stale_serve", issuer)
        """Tokens let in although the provider did not answer."""
        self.fail = lookups.at("refresh_fail", issuer)
        """Introspection calls that were not answered."""
        self.ok = Count()
        """Those that were."""
        refreshes = figures.counter(
            "gw.auth.jwks.refreshes", "{refreshes}", "Key sets that were asked for", ("issuer", "outcome")
        )
        self.refresh_ok = refreshes.at(issuer, "success")
        self.network_error = refreshes.at(issuer, "network_error")
        self.parse_error = refreshes.at(issuer, "parse_error")
        """Key sets that were none."""
        self.stale_keys = Count()
        """Look-ups of a key in a set older than `jwks_cache_sec`."""

    def introspection(self) -> dict[str, int]:
        names = ("ok", "fail", "cache_hit", "cache_miss", "cache_negative_hit", "stale_served")
        return {name: int(getattr(self, name).value) for name in names}

    def jwks(self) -> dict[str, int]:
        ok, network, parse = (int(each.value) for each in (self.refresh_ok, self.network_error, self.parse_error))
        return {
            "refresh_ok": ok,
            "refresh_fail": network + parse,
            "stale_served": int(self.stale_keys.value),
            "network_error": network,
            "parse_error": parse,
        }
