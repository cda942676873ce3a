"""OTLP in protobuf: the messages of opentelemetry-proto 1, written field by field.

The library for it would make an object for every field before it writes the first byte. What it reads back in the tests
is what we meant. Field numbers are those of ``trace.proto``, ``metrics.proto``, ``logs.proto`` and ``common.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gw_otel.limits import MAX_KEPT
from gw_otel.records import KEPT_OUT, Log, Metric, Point
from gw_otel.spans import SERVER, Attributes, Scope, Span, Value

__all__ = ["Protobuf", "fields_of"]

_TIME: Final = struct.Struct("<Q")
_DOUBLE: Final = struct.Struct("<d")

_CUMULATIVE: Final = 2
_FAILED: Final = b"\x7a\x02\x18\x02"
"""``status { code: STATUS_CODE_ERROR }``"""

_UNSET: Final = b"\x7a\x00"
"""``status {}``"""


def _varint(number: int) -> bytes:
    if number < 128:
        return bytes((number,))
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _sized(field: int, data: bytes) -> bytes:
    """Return a length-delimited field."""
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number) if number else b""


def _fixed(field: int, number: int) -> bytes:
    return _varint(field << 3 | 1) + _TIME.pack(number)


def _double(field: int, number: float) -> bytes:
    return _varint(field << 3 | 1) + _DOUBLE.pack(number)


class Protobuf:
    """Writes what is to be sent. It remembers how attributes look that come again and again."""

    content_type = "application/x-protobuf"

    def __init__(self) -> None:
        self._kept: dict[tuple[str, Value, type], bytes] = {}
        self._keys: dict[str, bytes] = {}
        self._names: dict[str, bytes] = {}

    # --- what a batch is made of ---------------------------------------------------

    def span(self, span: Span) -> bytes:
        flags = 0x100 | span.sampled | (0x200 if span.kind == SERVER and span.parent_id else 0)
        parts = [
            b"\x0a\x10",
            bytes.fromhex(span.trace_id),
            b"\x12\x08",
            bytes.fromhex(span.span_id),
            _sized(3, span.state.encode("latin-1")) if span.state else b"",
            b"\x22\x08" + bytes.fromhex(span.parent_id) if span.parent_id else b"",
            self._name(span.name),
            b"\x30",
            bytes((span.kind,)),
            b"\x39",
            _TIME.pack(span.start),
            b"\x41",
            _TIME.pack(span.end),
            *self._attributes(b"\x4a", span.attributes),
            _number(10, span.dropped_attributes),
        ]
        for at, name, attributes in span.events:
            event = [_fixed(1, at), _sized(2, name.encode()), *self._attributes(b"\x1a", attributes)]
            parts.append(_sized(11, b"".join(event)))
        parts += (_number(12, span.dropped_events), _FAILED if span.failed else _UNSET)
        parts.append(b"\x85\x01" + struct.pack("<I", flags))
        data = b"".join(parts)
        return b"\x12" + _varint(len(data)) + data

    def log(self, log: Log) -> bytes:
        parts = [
            _fixed(1, log.time),
            _number(2, log.severity),
            _sized(5, _sized(1, log.body.encode())),
            *self._attributes(b"\x32", log.attributes),
        ]
        if log.trace_id:
            parts.append(b"\x45" + struct.pack("<I", log.sampled))
            parts += (_sized(9, bytes.fromhex(log.trace_id)), _sized(10, bytes.fromhex(log.span_id)))
        parts.append(_fixed(11, log.time))
        return _sized(2, b"".join(parts))

    def metric(self, metric: Metric, now: int) -> bytes:
        parts = [
            _sized(1, metric.name.encode()),
            _sized(2, metric.description.encode()),
            _sized(3, metric.unit.encode()),
        ]
        if metric.kind == "histogram":
            points = [_sized(1, self._histogram(metric, point, now)) for point in metric.points]
            parts.append(_sized(9, b"".join([*points, _number(2, _CUMULATIVE)])))
        else:
            points = [_sized(1, self._sum(metric, point, now)) for point in metric.points]
            rises = _number(3, metric.kind == "counter")
            parts.append(_sized(7, b"".join([*points, _number(2, _CUMULATIVE), rises])))
        return _sized(2, b"".join(parts))

    def request(
        self, signal: str, resource: Attributes, scopes: Mapping[Scope, Sequence[bytes]]
    ) -> bytes:  # JSON needs it
        """Return the body of an export: *scopes* has what `span`, `log` or `metric` returned."""
        parts = [_sized(1, b"".join(self._attributes(b"\x0a", resource)))]
        for (name, version), items in scopes.items():
            scope = _sized(1, name.encode()) + (_sized(2, version.encode()) if version else b"")
            parts.append(_sized(2, b"".join([_sized(1, scope), *items])))
        return _sized(1, b"".join(parts))

    def rejected(self, signal: str, body: bytes) -> tuple[int, str]:  # JSON needs it
        """Return how much of an export was rejected, and why, from the answer; raises `ValueError`."""
        for field, value in fields_of(body):
            if field == 1 and isinstance(value, bytes):
                inner = dict(fields_of(value))
                count, message = inner.get(1, 0), inner.get(2, b"")
                if isinstance(count, int) and isinstance(message, bytes):
                    return count, message.decode("utf-8", "replace")
        return 0, ""

    # --- inside ----------------------------------------------------------------------

    def _name(self, name: str) -> bytes:
        found = self._names.get(name)
        if found is None:
            if len(self._names) >= MAX_KEPT:
                self._names.clear()
            found = self._names[name] = _sized(5, name.encode())
        return found

    def _attributes(self, tag: bytes, attributes: Attributes) -> list[bytes]:
        """Return each attribute as a field with *tag*."""
        kept = self._kept
        parts: list[bytes] = []
        for key, value in attributes:
            place = (key, value, value.__class__)
            data = kept.get(place)
            if data is None:
                data = self._attribute(key, value)
                if key not in KEPT_OUT:
                    if len(kept) >= MAX_KEPT:
                        kept.clear()
                    kept[place] = data
            parts += (tag, data)
        return parts

    def _attribute(self, key: str, value: Value) -> bytes:
        """Return one ``KeyValue`` with its length."""
        if isinstance(value, str):
            inner = _sized(1, value.encode("utf-8", "replace"))
        elif isinstance(value, bool):
            inner = b"\x10" + bytes((value,))
        elif isinstance(value, int):
            inner = b"\x18" + _varint(value & 0xFFFFFFFFFFFFFFFF)
        else:
            inner = _double(4, value)
        name = self._keys.get(key)
        if name is None:
            if len(self._keys) >= MAX_KEPT:
                self._keys.clear()
            name = self._keys[key] = _sized(1, key.encode("utf-8", "replace"))
        data = name + b"\x12" + _varint(len(inner)) + inner
        return _varint(len(data)) + data

    def _sum(self, metric: Metric, point: Point, now: int) -> bytes:
        return b"".join(
            [
                _fixed(2, metric.since),
                _fixed(3, now),
                _double(4, point.value),
                *self._attributes(b"\x3a", point.attributes),
            ]
        )

    def _histogram(self, metric: Metric, point: Point, now: int) -> bytes:
        counts, bounds = point.counts, metric.bounds
        parts = [
            _fixed(2, metric.since),
            _fixed(3, now),
            _fixed(4, sum(counts)),
            _double(5, point.value),
            _sized(6, struct.pack(f"<{len(counts)}Q", *counts)),
            _sized(7, struct.pack(f"<{len(bounds)}d", *bounds)),
        ]
        for exemplar in point.exemplars:
            if exemplar is not None:
                trace_id, span_id, value, at = exemplar
                ids = _sized(4, bytes.fromhex(span_id)) + _sized(5, bytes.fromhex(trace_id))
                parts.append(_sized(8, _fixed(2, at) + _double(3, value) + ids))
        return b"".join([*parts, *self._attributes(b"\x4a", point.attributes)])


def fields_of(data: bytes) -> Iterable[tuple[int, int | bytes]]:
    """Yield number and value of the fields of a message; raises `ValueError` where it is none."""
    at, size = 0, len(data)
    while at < size:
        tag, at = _read_varint(data, at)
        match tag & 7:
            case 0:
                number, at = _read_varint(data, at)
                yield tag >> 3, number
            case 2:
                length, at = _read_varint(data, at)
                if at + length > size:
                    raise ValueError("a field is longer than its message")
                yield tag >> 3, data[at : at + length]
                at += length
            case 1 | 5 as kind:
                at += 8 if kind == 1 else 4
            case _:
                raise ValueError("a field has no known type")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
    raise ValueError("a number has no end")
