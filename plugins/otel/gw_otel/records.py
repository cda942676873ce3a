"""What is sent besides spans: log records, and a reading of the figures. Values, without a format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeAlias

from gw import Family, Figures
from gw_otel.spans import Attributes, Scope

__all__ = ["KEPT_OUT", "METERS", "Log", "Metric", "Point", "Resource", "metrics_of"]

Resource: TypeAlias = Attributes

METERS: Final[Scope] = ("gw", "")
"""The scope of all metrics and log records."""

KEPT_OUT: Final = frozenset(
    {
        "client.address",
        "gw.request_id",
        "http.server.response.body.size",
        "network.peer.port",
        "url.path",
        "user_agent.original",
        "ws.payload_size",
    }
)
"""Attributes whose values are seldom the same twice: encoders do not remember them."""


@dataclass(frozen=True, slots=True)
class Log:
    """One log record: a request that is over."""

    time: int
    """Nanoseconds since 1970."""
    severity: int
    """As OpenTelemetry numbers them: 9 is INFO, 13 WARN, 17 ERROR."""
    body: str
    attributes: Attributes
    trace_id: str
    span_id: str
    sampled: bool


@dataclass(frozen=True, slots=True)
class Point:
    """One series, read."""

    attributes: Attributes
    value: float
    """Of a histogram, the sum."""
    counts: tuple[int, ...] = ()
    exemplars: tuple[Any, ...] = ()
    """For each bucket ``(trace, span, value, time in nanoseconds)``, or `None`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One family, read."""

    name: str
    kind: str
    """``counter``, ``level`` or ``histogram``."""
    unit: str
    description: str
    since: int
    """Nanoseconds since 1970."""
    bounds: tuple[float, ...]
    points: tuple[Point, ...]


def metrics_of(figures: Figures, most: int) -> Iterator[Metric]:
    """Read *figures*, at most *most* series at a time: a large family comes in several parts."""
    for family in figures:
        rows = iter(family.rows().items())
        while part := list(islice(rows, most)):
            yield _metric(family, part)


def _metric(family: Family[Any], rows: Iterable[tuple[tuple[str, ...], Any]]) -> Metric:
    points = []
    for values, series in rows:
        attributes: Attributes = [(key, value) for key, value in zip(family.labels, values, strict=True) if value]
        if family.kind == "histogram":
            exemplars = () if series.exemplars is None else tuple(series.exemplars)
            points.append(Point(attributes, series.sum, tuple(series.counts), exemplars))
        else:
            points.append(Point(attributes, series.value))
    return Metric(family.name, family.kind, family.unit, family.description, family.since, family.bounds, tuple(points))
