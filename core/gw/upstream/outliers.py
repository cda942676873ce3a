"""Passive health: an endpoint that answers worse than it may, or than the others, is taken out for a while.

It is judged by the requests that it was sent anyway. Asking it is `gw.upstream.health`'s business.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import sqrt

from gw.failures import UpstreamFailure
from gw.filters import Attempt
from gw.net.deadlines import NEVER, Deadlines
from gw.upstream.endpoints import EndpointSet, Member

__all__ = ["OutlierSettings", "Outliers"]

log = logging.getLogger("gw.upstream")

_GATEWAY = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class OutlierSettings:
    """When an endpoint is ejected, and for how long. Times are seconds; a threshold of 0 is none."""

    consecutive_5xx: int = 5
    consecutive_gateway_failures: int = 5
    """The same for 502, 503, 504, and attempts that were not answered."""
    interval: float = 10.0
    """How often success rates are compared."""
    deviation: float = 1.9
    """Standard deviations that a success rate may be below the mean of all."""
    minimum_endpoints: int = 5
    minimum_requests: int = 100
    """What an endpoint must have been sent in an interval to be compared, and how many such there must be."""
    base_ejection: float = 30.0
    max_ejection: float = 300.0
    """An ejection lasts as often the base as the endpoint was ejected in a row, and no longer than this."""
    max_ejected: float = 0.5
    """The share of endpoints that may be out at once."""


class _Record:
    """What is remembered of one endpoint."""

    __slots__ = ("bad", "ejections", "gateway", "good", "returns", "row")

    def __init__(self) -> None:
        self.row = self.gateway = 0
        self.good = self.bad = 0
        self.ejections = 0
        self.returns = NEVER


class Outliers:
    """The judge of one upstream's endpoints."""

    def __init__(self, settings: OutlierSettings, endpoints: EndpointSet, deadlines: Deadlines) -> None:
        self._settings, self._endpoints, self._deadlines = settings, endpoints, deadlines
        self._records: dict[Member, _Record] = {}
        self._compare = deadlines.due(self._compared)
        self._returns = deadlines.due(self._returned)
        self._runs = False
        self.ejected = 0
        """Ejections so far."""
        self.spared = 0
        """Those that `max_ejected` did not allow."""
        endpoints.outliers = self
        endpoints.on_change.append(self._follow)

    def observe(self, member: Member, attempt: Attempt, failure: UpstreamFailure | None) -> None:
        """Take note of how an attempt ended."""
        if failure is not None and not attempt.sent and failure.condition != "connect-failure":
            return  # it waited for a connection in vain: that was not the endpoint
        record = self._records.get(member)
        if record is None:
            record = self._records[member] = _Record()
        if not self._runs:
            self._runs = True
            self._compare.after(self._settings.interval)
        status = attempt.response.status if failure is None and attempt.response is not None else 0
        if status and status < 500:
            record.good += 1
            record.row = record.gateway = 0
            return
        record.bad += 1
        record.row += 1
        is_gateway = not status or status in _GATEWAY
        record.gateway = record.gateway + 1 if is_gateway else 0
        settings = self._settings
        if settings.consecutive_5xx and record.row >= settings.consecutive_5xx:
            self._eject(member, record, f"{record.row} failures in a row")
        elif settings.consecutive_gateway_failures and record.gateway >= settings.consecutive_gateway_failures:
            self._eject(member, record, f"{record.gateway} gateway failures in a row")

    def _eject(self, member: Member, record: _Record, why: str) -> None:
        record.row = record.gateway = 0
        if member.ejected:
            return
        settings, members = self._settings, self._endpoints.members
        if sum(each.ejected for each in members) + 1 > settings.max_ejected * len(members):
            self.spared += 1
            return
        record.ejections += 1
        lasts = min(settings.base_ejection * record.ejections, settings.max_ejection)
        record.returns = self._deadlines.now + lasts
        self.ejected += 1
        log.warning(
            "upstream %s: endpoint %s is ejected for %g s: %s", self._endpoints.name, member.endpoint, lasts, why
        )
        self._endpoints.eject(member, ejected=True)
        self._plan()

    def _plan(self) -> None:
        nearest = min((record.returns for record in self._records.values()), default=NEVER)
        if nearest == NEVER:
            self._returns.off()
        else:
            self._returns.after(max(nearest - self._deadlines.now, 0.001))

    def _returned(self) -> None:
        for member, record in self._records.items():
            if record.returns <= self._deadlines.now:
                record.returns = NEVER
                log.info("upstream %s: endpoint %s is back after its ejection", self._endpoints.name, member.endpoint)
                self._endpoints.eject(member, ejected=False)
        self._plan()

    def _compared(self) -> None:
        """Compare the success rates of an interval, and begin another if there was anything in this one."""
        settings = self._settings
        rates = {
            member: record.good / (record.good + record.bad)
            for member, record in self._records.items()
            if record.good + record.bad >= settings.minimum_requests and not member.ejected
        }
        if settings.deviation and len(rates) >= settings.minimum_endpoints:
            mean = sum(rates.values()) / len(rates)
            spread = sqrt(sum((rate - mean) ** 2 for rate in rates.values()) / len(rates))
            least = mean - settings.deviation * spread
            for member, rate in rates.items():
                if rate < least:
                    why = f"{rate:.1%} of its answers are good, of all {mean:.1%}"
                    self._eject(member, self._records[member], why)
        self._runs = False
        for member, record in self._records.items():
            if record.good or record.bad or record.ejections:
                self._runs = True
            if not member.ejected and not record.bad:
                record.ejections = max(0, record.ejections - 1)
            record.good = record.bad = 0
        if self._runs:
            self._compare.after(settings.interval)

    def _follow(self) -> None:
        """Forget endpoints that are gone."""
        members = set(self._endpoints.members)
        for gone in set(self._records) - members:
            del self._records[gone]
        self._plan()

    def close(self) -> None:
        self._compare.forget()
        self._returns.forget()

    def __repr__(self) -> str:
        out = sum(each.ejected for each in self._endpoints.members)
        return f"<Outliers {self._endpoints.name} {out} out, {self.ejected} ejections>"
