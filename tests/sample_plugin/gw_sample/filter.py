"""The filter: three response headers, and an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from email.utils import format_datetime

from gw import Exchange, Filter, Reply
from gw_sample.settings import RouteSettings


class Sunset(Filter):
    """Says that a route is deprecated. *now* is the time in seconds since 1970."""

    name = "sunset"

    def __init__(self, settings: RouteSettings, information: str, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._headers = [("deprecation", f"@{_midnight(settings.deprecated).timestamp():.0f}")]
        self._end = float("inf")
        if settings.gone is not None:
            end = _midnight(settings.gone)
            self._headers.append(("sunset", format_datetime(end, usegmt=True)))
            if settings.enforce:
                self._end = end.timestamp()
        if information:
            self._headers.append(("link", f'<{information}>; rel="deprecation"'))

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        return Reply(410, reason="sunset.gone") if self._now() >= self._end else None

    def on_response_headers(self, ex: Exchange) -> None:
        assert ex.response is not None
        for name, value in self._headers:
            ex.response.headers.add(name, value)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
