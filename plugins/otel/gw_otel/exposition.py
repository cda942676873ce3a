"""What Prometheus scrapes: names, negotiation, and the figures in the text formats of prometheus-client (behaviour 17.6).

Names and units become Prometheus' as OpenTelemetry's compatibility specification says: dots are underscores, the unit is
a suffix in words, counters end in ``_total``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, Protocol as Interface

import anyio
from prometheus_client import Metric as Exposed, exposition
from prometheus_client.gc_collector import GCCollector
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.samples import Exemplar

from gw import Exchange, Figures, LocalRoute, Reply
from gw_otel.limits import SLICE
from gw_otel.process import CLASSIC
from gw_otel.records import Metric, Point, Resource, metrics_of

__all__ = ["OPENMETRICS", "TEXT", "accepts_openmetrics", "endpoint", "exposed", "rendered", "sanitised"]

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_UNITS: Final = {"s": "seconds", "By": "bytes", "ms": "milliseconds", "1": ""}
_END: Final = b"# EOF\n"


def sanitised(name: str) -> str:
    """Return *name* as Prometheus allows it (behaviour 17.6)."""
    name = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    return f"_{name}" if name[:1].isdigit() else name


# --- names and samples ---------------------------------------------------------


def exposed(metric: Metric) -> Exposed:
    """Return *metric* as the client library has it."""
    unit = "" if metric.unit.startswith("{") else _UNITS.get(metric.unit, sanitised(metric.unit))
    name = CLASSIC.get(metric.name) or sanitised(metric.name).removesuffix("_total")
    if unit and not name.endswith(f"_{unit}"):
        name = f"{name}_{unit}"
    kind = "gauge" if metric.kind == "level" else metric.kind
    made = Exposed(name, metric.description, kind, unit)
    for point in metric.points:
        labels = {sanitised(key): str(value) for key, value in point.attributes}
        if metric.kind == "histogram":
            _add_buckets(made, name, labels, metric.bounds, point)
        else:
            made.add_sample(f"{name}_total" if kind == "counter" else name, labels, point.value)
    return made


def _add_buckets(made: Exposed, name: str, labels: dict[str, str], bounds: tuple[float, ...], point: Point) -> None:
    total = 0
    exemplars = point.exemplars or (None,) * len(point.counts)
    for bound, count, exemplar in zip((*map(repr, bounds), "+Inf"), point.counts, exemplars, strict=True):
        total += count
        example = None
        if exemplar is not None:
            trace_id, span_id, value, at = exemplar
            example = Exemplar({"trace_id": trace_id, "span_id": span_id}, value, at / 1e9)
        made.add_sample(f"{name}_bucket", {**labels, "le": bound}, total, exemplar=example)
    made.add_sample(f"{name}_count", labels, total)
    made.add_sample(f"{name}_sum", labels, point.value)


def _target_info(resource: Resource) -> Exposed:
    made = Exposed("target", "Who exposes this", "info")
    made.add_sample("target_info", {sanitised(key): str(value) for key, value in resource}, 1)
    return made


class _One:
    """A registry of one metric, for the client library's renderers."""

    def __init__(self, metric: Exposed) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Exposed]:
        yield self._metric


class _Collector(Interface):
    def collect(self) -> Any: ...


class _Nowhere:
    """A registry that the client library's collectors may register with."""

    def register(self, collector: Any) -> None: ...


class _Rest:
    """Of the client library's figures of this process those that `gw_otel.process` has not."""

    def __init__(self, collector: _Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Exposed]:
        return (each for each in self._collector.collect() if each.name not in CLASSIC.values())


def _process() -> list[_Collector]:
    nowhere: Any = _Nowhere()
    return [_Rest(ProcessCollector(registry=nowhere)), GCCollector(registry=nowhere)]


async def rendered(
    figures: Figures,
    resource: Resource | None,
    collectors: list[Any],
    *,
    as_openmetrics: bool,
    hidden: Callable[[str, str], None] = lambda *_: None,
) -> AsyncIterator[bytes]:
    """Yield the text in pieces, and let others have their turn after each.

    Of two figures whose names are one for Prometheus the first is shown; *hidden* is told of the other, and of both.
    """
    render: Callable[[Any], bytes] = openmetrics.generate_latest if as_openmetrics else exposition.generate_latest
    shown: dict[str, str] = {}
    begun = ""
    for metric in _all(figures, resource, collectors):
        if isinstance(metric, Metric):
            made, origin = exposed(metric), metric.name
        else:
            made, origin = metric, metric.name
        if not made.samples:
            continue
        if (first := shown.setdefault(made.name, origin)) != origin:
            hidden(origin, first)
            continue
        text = render(_One(made)).removesuffix(_END)
        if origin == begun:  # a large figure comes in several parts, and says what it is once
            text = re.sub(rb"\A(?:#[^\n]*\n)+", b"", text)
        begun = origin
        yield text
        await anyio.lowlevel.checkpoint()
    if as_openmetrics:
        yield _END


def _all(figures: Figures, resource: Resource | None, collectors: list[Any]) -> Iterator[Metric | Exposed]:
    if resource is not None:
        yield _target_info(resource)
    # A histogram's series is some sixteen lines.
    yield from metrics_of(figures, SLICE // 8)
    for collector in collectors:
        yield from collector.collect()


# --- negotiation ---------------------------------------------------------------


def accepts_openmetrics(accept: str) -> bool:
    """Tell whether OpenMetrics is wanted at least as much as any text that would do (RFC 9110 section 12.5.1)."""
    wanted, other = 0.0, 0.0
    for part in accept.lower().split(","):
        media, *parameters = (each.strip() for each in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                quality = _quality(value.strip())
        if media == "application/openmetrics-text":
            wanted = max(wanted, quality)
        elif media in {"text/plain", "text/*", "application/*", "*/*"}:
            other = max(other, quality)
    return wanted > 0 and wanted >= other


def _quality(text: str) -> float:
    return float(text) if re.fullmatch(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?", text) else 0.0


# --- the endpoint --------------------------------------------------------------


def endpoint(
    path: str,
    figures: Figures,
    gather: Callable[[], Awaitable[Figures]],
    resource: Resource | None,
    log: logging.Logger,
    *,
    is_on: bool,
    process: bool,
) -> LocalRoute:
    """Return the route that answers scrapes with what *gather* gives; switched off it answers 404.

    *process* adds what cannot be summed, such as when it started. Of one that is not alone that is left out: each scrape
    would have that of another.
    """
    collectors = _process() if process else []
    warned: set[str] = set()

    def hidden(name: str, first: str) -> None:
        if name not in warned:
            warned.add(name)
            log.warning("metric %s is not shown: for Prometheus it has the name of %s", name, first)

    async def scrape(ex: Exchange) -> Reply:
        if not is_on:
            return Reply(404, reason="otel.metrics_off")
        wants = accepts_openmetrics(", ".join(ex.request.headers.get_all("accept")))
        found = await gather()
        own = collectors if found is figures else []
        pieces = [piece async for piece in rendered(found, resource, own, as_openmetrics=wants, hidden=hidden)]
        return Reply(200, b"".join(pieces), (("content-type", OPENMETRICS if wants else TEXT),), reason="otel.metrics")

    return LocalRoute(path, scrape, ("GET",), kind="metrics")
