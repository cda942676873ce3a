"""Every bound of this plugin, each with its precedent. Those that a user may set are in `gw_breaker.settings`.

Times are seconds unless the name says otherwise.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "BOARD_POLL",
    "BOARD_ROWS",
    "LOCK_TRIES",
    "MAX_DOUBLINGS",
    "MAX_ENDPOINTS",
    "MAX_HISTORY",
    "MAX_REASON",
    "MAX_RETRY_AFTER",
]

MAX_RETRY_AFTER: Final = 3600
"""The largest Retry-After of a rejection. Behaviour 15.2: 1 to 3600 s."""

MAX_DOUBLINGS: Final = 32
"""How often the open time is doubled; by then any maximum is reached. Envoy's ejection time grows by a factor without bound."""

MAX_HISTORY: Final = 32
"""Transitions of one breaker that are remembered for the stats. resilience4j's event buffer: 100."""

MAX_REASON: Final = 256
"""Characters of the reason that somebody gives for setting a breaker by hand. git suggests 72 for a subject line."""

MAX_ENDPOINTS: Final = 1024
"""Breakers that one upstream or route has for its endpoints; the oldest goes when there would be more. Envoy: no bound."""

# --- workers -----------------------------------------------------------------

BOARD_ROWS: Final = 1024
"""Breakers whose verdicts workers share, of all that there ever were; others go by themselves. nginx: what a `zone` has room for."""

BOARD_POLL: Final = 0.04
"""Seconds after which a worker looks at what the others said. nginx' upstream zones are looked at by each request."""

LOCK_TRIES: Final = 200
"""How often a worker tries to get the board that another holds: some 30 ms. nginx' shared zones spin for ever."""
