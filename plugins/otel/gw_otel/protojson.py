"""OTLP in JSON, as its specification says: identifiers in hexadecimal, 64-bit integers as text, enumerations as numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii as _quoted
from math import isinf, isnan
from typing import Final

from gw_otel.limits import MAX_KEPT
from gw_otel.records import KEPT_OUT, Log, Metric, Point
from gw_otel.spans import SERVER, Attributes, Scope, Span, Value

__all__ = ["Json"]

_PARTS: Final = {
    "traces": ("resourceSpans", "scopeSpans", "spans", "rejectedSpans"),
    "metrics": ("resourceMetrics", "scopeMetrics", "metrics", "rejectedDataPoints"),
    "logs": ("resourceLogs", "scopeLogs", "logRecords", "rejectedLogRecords"),
}
"""Signal to how its messages are named."""

_CUMULATIVE: Final = 2


def _double(number: float) -> str:
    if isnan(number):
        return '"NaN"'
    if isinf(number):
        return '"Infinity"' if number > 0 else '"-Infinity"'
    return repr(float(number))


class Json:
    """Writes what is to be sent. It remembers how attributes look that come again and again."""

    content_type = "application/json"

    def __init__(self) -> None:
        self._kept: dict[tuple[str, Value, type], str] = {}

    # --- what a batch is made of ---------------------------------------------------

    def span(self, span: Span) -> bytes:
        flags = 0x100 | span.sampled | (0x200 if span.kind == SERVER and span.parent_id else 0)
        parts = [f'{{"traceId":"{span.trace_id}","spanId":"{span.span_id}","flags":{flags},"kind":{span.kind}']
        if span.state:
            parts.append(f',"traceState":{_quoted(span.state)}')
        if span.parent_id:
            parts.append(f',"parentSpanId":"{span.parent_id}"')
        parts.append(f',"name":{_quoted(span.name)},"startTimeUnixNano":"{span.start}","endTimeUnixNano":"{span.end}"')
        parts.append(self._attributes(span.attributes))
        if span.dropped_attributes:
            parts.append(f',"droppedAttributesCount":{span.dropped_attributes}')
        if span.events:
            events = (
                f'{{"timeUnixNano":"{at}","name":{_quoted(name)}{self._attributes(attributes)}}}'
                for at, name, attributes in span.events
            )
            parts.append(f',"events":[{",".join(events)}]')
        if span.dropped_events:
            parts.append(f',"droppedEventsCount":{span.dropped_events}')
        parts.append(',"status":{"code":2}}' if span.failed else ',"status":{}}')
        return "".join(parts).encode()

    def log(self, log: Log) -> bytes:
        where = ""
        if log.trace_id:
            where = f',"traceId":"{log.trace_id}","spanId":"{log.span_id}","flags":{int(log.sampled)}'
        return (
            f'{{"timeUnixNano":"{log.time}","observedTimeUnixNano":"{log.time}","severityNumber":{log.severity}'
            f',"body":{{"stringValue":{_quoted(log.body)}}}{where}{self._attributes(log.attributes)}}}'
        ).encode()

    def metric(self, metric: Metric, now: int) -> bytes:
        if metric.kind == "histogram":
            points = ",".join(self._histogram(metric, point, now) for point in metric.points)
            data = f'"histogram":{{"aggregationTemporality":{_CUMULATIVE},"dataPoints":[{points}]}}'
        else:
            points = ",".join(self._sum(metric, point, now) for point in metric.points)
            rises = ',"isMonotonic":true' if metric.kind == "counter" else ""
            data = f'"sum":{{"aggregationTemporality":{_CUMULATIVE}{rises},"dataPoints":[{points}]}}'
        return (
            f'{{"name":{_quoted(metric.name)},"description":{_quoted(metric.description)}'
            f',"unit":{_quoted(metric.unit)},{data}}}'
        ).encode()

    def request(self, signal: str, resource: Attributes, scopes: Mapping[Scope, Sequence[bytes]]) -> bytes:
        """Return the body of an export: *scopes* has what `span`, `log` or `metric` returned."""
        outer, inner, items, _ = _PARTS[signal]
        groups = []
        for (name, version), each in scopes.items():
            scope = f'{{"name":{_quoted(name)}' + (f',"version":{_quoted(version)}}}' if version else "}")
            groups.append(f'{{"scope":{scope},"{items}":['.encode() + b",".join(each) + b"]}")
        about = f'{{"{outer}":[{{"resource":{{{self._attributes(resource)[1:]}}},"{inner}":['.encode()
        return about + b",".join(groups) + b"]}]}"

    def rejected(self, signal: str, body: bytes) -> tuple[int, str]:
        """Return how much of an export was rejected, and why, from the answer; raises `ValueError`."""
        answer = json.loads(body) if body else {}
        partial = answer.get("partialSuccess") if isinstance(answer, dict) else None
        if not isinstance(partial, dict):
            return 0, ""
        return int(partial.get(_PARTS[signal][3]) or 0), str(partial.get("errorMessage") or "")

    # --- inside ----------------------------------------------------------------------

    def _attributes(self, attributes: Attributes) -> str:
        kept, parts = self._kept, []
        for key, value in attributes:
            place = (key, value, value.__class__)
            text = kept.get(place)
            if text is None:
                text = _attribute(key, value)
                if key not in KEPT_OUT:
                    if len(kept) >= MAX_KEPT:
                        kept.clear()
                    kept[place] = text
            parts.append(text)
        return f',"attributes":[{",".join(parts)}]'

    def _sum(self, metric: Metric, point: Point, now: int) -> str:
        times = f'"startTimeUnixNano":"{metric.since}","timeUnixNano":"{now}"'
        return f'{{{times},"asDouble":{_double(point.value)}{self._attributes(point.attributes)}}}'

    def _histogram(self, metric: Metric, point: Point, now: int) -> str:
        counts = ",".join(f'"{count}"' for count in point.counts)
        bounds = ",".join(map(_double, metric.bounds))
        exemplars = ",".join(
            f'{{"timeUnixNano":"{at}","asDouble":{_double(value)},"traceId":"{trace_id}","spanId":"{span_id}"}}'
            for trace_id, span_id, value, at in filter(None, point.exemplars)
        )
        return (
            f'{{"startTimeUnixNano":"{metric.since}","timeUnixNano":"{now}","count":"{sum(point.counts)}"'
            f',"sum":{_double(point.value)},"bucketCounts":[{counts}],"explicitBounds":[{bounds}]'
            f',"exemplars":[{exemplars}]{self._attributes(point.attributes)}}}'
        )


def _attribute(key: str, value: Value) -> str:
    if isinstance(value, str):
        said = f'"stringValue":{_quoted(value)}'
    elif isinstance(value, bool):
        said = f'"boolValue":{"true" if value else "false"}'
    elif isinstance(value, int):
        said = f'"intValue":"{value}"'
    else:
        said = f'"doubleValue":{_double(value)}'
    return f'{{"key":{_quoted(key)},"value":{{{said}}}}}'
