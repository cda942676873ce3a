"""What a trace shows of auth: a span for each time that a request waited for somebody else's word about it (behaviour 17.4).

Where nobody traces it is nothing, and where nobody is asked there is no span.
"""

from __future__ import annotations

from gw import TRACE, Exchange, Trace
from gw_auth.verdicts import Denied, Undetermined, Verdict

__all__ = ["Check"]


class Check:
    """One look at a provider, on behalf of one request: ``auth.idp_check``."""

    __slots__ = ("_ex", "_issuer", "_span")

    def __init__(self, ex: Exchange, issuer: str) -> None:
        self._ex, self._issuer = ex, issuer
        self._span: Trace | None = None

    def begin(self) -> None:
        """Say that the request waits from now on. Only the first call counts."""
        trace = self._ex.get(TRACE, None)
        if trace is not None and self._span is None:
            self._span = trace.child("auth.idp_check", {"auth.issuer": self._issuer})

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return the fields that carry the trace on to the provider."""
        return () if self._span is None else self._span.headers()

    def end(self, verdict: Verdict) -> None:
        """Say what came of it, if it ever began."""
        span = self._span
        if span is None:
            return
        outcome, error = "allow", ""
        if isinstance(verdict, Denied):
            outcome = f"deny_{verdict.status}"
        elif isinstance(verdict, Undetermined):
            outcome, error = "undetermined", verdict.reason
        span.set("auth.outcome", outcome)
        span.set("auth.cache_outcome", verdict.cache or "none")
        span.end(error)
