"""Policies, ready to judge: which one a request falls under, and whether who was recognised may pass.

A policy covers paths as the gateway spells them, from segment to segment. Where an upstream might read a path otherwise,
and would then be under another policy, the request is refused rather than judged by one of the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gw import Exchange
from gw_auth.counts import Rows
from gw_auth.covered import Covered
from gw_auth.settings import Policy
from gw_auth.tokens import shown
from gw_auth.verdicts import Denied, Recognised, challenge
from gw_auth.ways import Way

__all__ = ["Ambiguous", "Rule", "Table"]


@dataclass(slots=True, eq=False)
class Rule:
    """One policy, compiled."""

    name: str
    public: bool
    way: Way | None
    """How clients are recognised; `None` where everybody may pass."""
    scopes: frozenset[str]
    scope_text: str
    audience: frozenset[str]
    """Instead of the issuer's; empty where the policy names none."""
    allow_undetermined: bool
    realm: str
    bare: tuple[str, ...]
    """Challenges where nothing was sent."""
    position: str
    """``file:line:column``."""
    rows: Rows

    @classmethod
    def of(cls, policy: Policy, name: str, way: Way | None, position: str, rows: Rows) -> Rule:
        return cls(
            name,
            policy.public,
            way,
            frozenset(policy.required_scopes),
            " ".join(policy.required_scopes),
            frozenset({policy.required_audience} if policy.required_audience else ()),
            policy.on_undetermined == "allow",
            realm := policy.realm or "api",
            tuple(challenge(scheme, realm) for scheme in way.schemes) if way is not None else (),
            position,
            rows,
        )

    def unfit(self, ex: Exchange, found: Recognised) -> Denied | None:
        """Judge who brings a token, its audience and its claims; `None` if they will do."""
        source = found.source
        if source is None:
            return None
        if found.bound and (ex.client.certificate is None or ex.client.certificate.sha256 != found.bound):
            text = "token is bound to another certificate"  # RFC 8705 section 3
            shows = "none" if ex.client.certificate is None else ex.client.certificate.sha256
            detail = f"{text}: it wants sha256 {found.bound}, the client shows {shows}"
            return Denied("other", detail, text, issuer=source.name, cache=found.cache)
        wanted = self.audience or source.audiences
        if wanted and wanted.isdisjoint(found.audiences):
            has, wants = ", ".join(map(shown, sorted(found.audiences))), ", ".join(sorted(wanted))
            detail = f"audience mismatch: token has [{has}], policy {self.name} wants [{wants}] ({self.position})"
            return Denied("aud_mismatch", detail, "audience mismatch", issuer=source.name, cache=found.cache)
        for claim in source.required_claims:
            if claim not in found.identity.claims:
                text = "missing required claim"
                return Denied(
                    "policy_denied", f"{text}: token has no {claim}", text, issuer=source.name, cache=found.cache
                )
        return None

    def lacks_scope(self, found: Recognised) -> Denied | None:
        """Judge the scopes; `None` if they will do."""
        if self.scopes <= found.identity.scopes:
            return None
        text = "insufficient scope" if found.identity.method == "introspection" else "missing required scope"
        has, lacks = ", ".join(map(shown, found.scopes)), ", ".join(sorted(self.scopes - found.identity.scopes))
        detail = f"{text}: there is [{has}], policy {self.name} also wants [{lacks}] ({self.position})"
        scheme = "Bearer" if found.source is not None else ""
        return Denied(
            "policy_denied", detail, text, "insufficient_scope", 403, found.issuer_name, scheme, cache=found.cache
        )

    def __repr__(self) -> str:
        return f"<Rule {self.name}>"


# --- which one ---------------------------------------------------------------------


_TWO_READINGS: Final = re.compile(r"%2F|%5C|;|//")
_PARAMETERS: Final = re.compile(r";[^/]*")
_SLASHES: Final = re.compile(r"/{2,}")


class Ambiguous(Exception):
    """A path that an upstream might read as one under another policy."""


class Table:
    """Finds the rule of a request: that of the longest prefix which takes its host and its method."""

    __slots__ = ("_by_prefix", "_conditions", "_lengths", "_only")

    def __init__(self, covered: Iterable[Covered[Rule]]) -> None:
        by_prefix: dict[str, list[Covered[Rule]]] = {}
        for each in covered:
            by_prefix.setdefault(each.prefix, []).append(each)
        # Among those with one prefix the more particular come first: with hosts, then with methods.
        self._by_prefix = {
            prefix: tuple(sorted(found, key=lambda each: (not each.hosts, not each.methods)))
            for prefix, found in by_prefix.items()
        }
        self._lengths = tuple(sorted({len(prefix) for prefix in by_prefix}, reverse=True))
        everything = self._by_prefix.get("", ())
        self._conditions = any(each.hosts or each.methods for found in self._by_prefix.values() for each in found)
        self._only = everything[0].rule if len(by_prefix) == len(everything) == 1 and not self._conditions else None
        """The rule of every request, where there is no other."""

    def __len__(self) -> int:
        return len(self._by_prefix)

    def find(self, ex: Exchange) -> Rule | None:
        """Return the rule of *ex*; `None` where none covers it. Raises `Ambiguous`."""
        if self._only is not None:
            return self._only
        path = ex.matched_path
        rule = self._look(path, ex)
        if ("%" in path or ";" in path or "//" in path) and _TWO_READINGS.search(path) is not None:
            other = _SLASHES.sub("/", _PARAMETERS.sub("", path.replace("%2F", "/").replace("%5C", "/")))
            if self._look(other, ex) is not rule:
                raise Ambiguous
        return rule

    def _look(self, path: str, ex: Exchange) -> Rule | None:
        host, method = "", ex.request.method
        if self._conditions:
            host = _host_of(ex.asked_host)
        size = len(path)
        for length in self._lengths:
            if length in (0, size) or (length < size and path[length] == "/"):  # faster than a set
                for each in self._by_prefix.get(path[:length], ()):
                    if each.takes(host, method):
                        return each.rule
        return None


def _host_of(authority: str) -> str:
    if authority.startswith("["):
        return authority[: authority.find("]") + 1].lower()
    return authority.partition(":")[0].lower().removesuffix(".")
