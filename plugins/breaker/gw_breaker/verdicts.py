"""What an answer or a failure says about the upstream (behaviour 11.6), as tables made when the configuration loads.

What follows from a verdict is the business of `gw_breaker.machine`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from gw import Response
from gw_breaker.machine import Verdict
from gw_breaker.settings import GRPC_CODES, Failures

__all__ = ["DRAINED", "Verdicts"]

_REASONS_OF: Final = {
    "connect_failure": {"gw.connect_failure"},
    "connect_timeout": {"gw.connect_timeout"},
    "disconnect": {"gw.upstream_disconnect"},
    "parse_error": {"gw.upstream_parse_error"},
    "response_too_large": {"gw.response_too_large"},
    "response_too_long": {"gw.upstream_too_long"},
    "send_stalled": {"gw.upstream_send_stalled"},
    "stream_idle": {"gw.upstream_idle"},
    "timeout": {"gw.attempts_timeout", "gw.per_try_timeout", "gw.upstream_timeout"},
    "truncated": {"gw.upstream_truncated"},
}
"""Kind of failure, as the settings call it, to the reasons that the core gives."""

DRAINED: Final = "gw.pool_drained"
"""The reason of who waited for a connection and was sent away, because the breaker had opened."""


class Verdicts:
    """The tables of one list of failures."""

    __slots__ = ("_grpc", "_reasons", "_statuses", "simple")

    def __init__(self, failures: Failures) -> None:
        self._statuses = _by_status(failures.statuses)
        self._reasons = frozenset[str]().union(*(_REASONS_OF[kind] for kind in failures.kinds))
        self._grpc = frozenset(str(GRPC_CODES[name]) for name in failures.grpc)
        self.simple = not self._grpc
        """Whether a response's status says all."""

    def of_status(self, status: int) -> Verdict:
        return self._statuses[status] if status < 600 else Verdict.NEUTRAL

    def of_error(self, error: Exception) -> Verdict:
        return Verdict.FAILURE if getattr(error, "reason", "") in self._reasons else Verdict.NEUTRAL

    def of_whole(self, response: Response) -> Verdict:
        """Return what *response* says now that all of it is here, its trailers included."""
        verdict = self.of_status(response.status)
        if self._grpc and verdict is Verdict.SUCCESS:
            status = response.headers.get("grpc-status")
            if status is None and response.trailers is not None:
                status = response.trailers.get("grpc-status")
            if status in self._grpc:
                return Verdict.FAILURE
        return verdict


@lru_cache(maxsize=64)
def _by_status(failing: tuple[int | str, ...]) -> tuple[Verdict, ...]:
    """Return the verdict of each status code. Most sections say the same, and share one table."""
    table = [Verdict.SUCCESS if status < 400 else Verdict.NEUTRAL for status in range(600)]
    for each in failing:
        codes = (each,) if isinstance(each, int) else range(int(each[0]) * 100, int(each[0]) * 100 + 100)
        for code in codes:
            table[code] = Verdict.FAILURE
    return tuple(table)
