"""Trace contexts in header fields: W3C Trace Context, Jaeger, B3. Read strictly, removed, and written again.

What is not exactly right is no context: then the trace begins here. Nothing in this file decides whether a trace is
recorded, and nothing in it knows a span.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from gw_otel.limits import MAX_TRACESTATE_MEMBERS

__all__ = ["Parent", "Propagation", "read_tracestate"]

Fields: TypeAlias = dict[bytes, list[bytes]]
"""Name to values, for the fields of `Propagation.known` that a request had."""

_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_KEY: Final = r"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}"
_MEMBER: Final = re.compile(rf"(?:{_KEY})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_JAEGER: Final = re.compile(r"([0-9a-f]{16}|[0-9a-f]{32}):([0-9a-f]{16}):([0-9a-f]{1,16}):([0-9a-f]{1,2})")
_B3: Final = re.compile(r"([0-9a-f]{16}|[0-9a-f]{32})-([0-9a-f]{16})(?:-([01d])(?:-[0-9a-f]{16})?)?")
_B3_TRACE: Final = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")
_B3_SPAN: Final = re.compile(r"[0-9a-f]{16}")
_B3_SAMPLED: Final = {"1": True, "true": True, "d": True, "0": False, "false": False, "": None}


class Parent:
    """What a request said about its trace. Without *trace_id* it said only whether to record it."""

    __slots__ = ("sampled", "span_id", "state", "trace_id")

    def __init__(self, trace_id: str, span_id: str, sampled: bool | None, state: str = "") -> None:
        self.trace_id, self.span_id = trace_id, span_id
        self.sampled = sampled
        """`None` leaves it to us."""
        self.state = state
        """The value of ``tracestate``, others' members; empty for none."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parent) and repr(self) == repr(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Parent {self.trace_id} {self.span_id} {self.sampled} {self.state!r}>"


class Invalid(ValueError):
    """A field that should have a context has none. The message is a word for the metric."""


# --- reading -----------------------------------------------------------------


def _only(fields: Fields, name: bytes) -> str | None:
    values = fields.get(name)
    if values is None:
        return None
    if len(values) > 1:
        raise Invalid("repeated")
    return values[0].decode("latin-1")


def _read_w3c(fields: Fields) -> Parent | None:
    value = _only(fields, b"traceparent")
    if value is None:
        return None
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        raise Invalid("malformed")
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None):
        raise Invalid("version")
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        raise Invalid("zero_id")
    return Parent(trace_id, span_id, bool(int(flags, 16) & 1))


def read_tracestate(lines: Sequence[bytes]) -> str:
    """Return what the lines of ``tracestate`` amount to, without blanks around members (W3C Trace Context 3.3).

    Raises `Invalid` where any member is wrong: then the whole is dropped, as nobody knows what it meant.
    """
    members = [member for line in lines for each in line.decode("latin-1").split(",") if (member := each.strip(" \t"))]
    if len(members) > MAX_TRACESTATE_MEMBERS:
        raise Invalid("tracestate_members")
    if not all(map(_MEMBER.fullmatch, members)):
        raise Invalid("tracestate_member")
    return ",".join(members)


def _read_jaeger(fields: Fields) -> Parent | None:
    value = _only(fields, b"uber-trace-id")
    if value is None:
        return None
    match = _JAEGER.fullmatch(value)
    if match is None:
        raise Invalid("malformed")
    trace_id, span_id, _, flags = match.groups()
    return _checked(trace_id, span_id, bool(int(flags, 16) & 1))


def _read_b3(fields: Fields) -> Parent | None:
    value = _only(fields, b"b3")
    if value is None:
        return None
    if value in {"0", "1", "d"}:
        return Parent("", "", value != "0")
    match = _B3.fullmatch(value)
    if match is None:
        raise Invalid("malformed")
    trace_id, span_id, sampled = match.groups()
    return _checked(trace_id, span_id, _B3_SAMPLED[sampled or ""])


def _read_b3multi(fields: Fields) -> Parent | None:
    trace_id, span_id = _only(fields, b"x-b3-traceid"), _only(fields, b"x-b3-spanid")
    said = _only(fields, b"x-b3-sampled") or ""
    if said.lower() not in _B3_SAMPLED:
        raise Invalid("malformed")
    sampled = True if _only(fields, b"x-b3-flags") == "1" else _B3_SAMPLED[said.lower()]
    if trace_id is None and span_id is None:
        return None if sampled is None else Parent("", "", sampled)
    if not (trace_id and span_id and _B3_TRACE.fullmatch(trace_id) and _B3_SPAN.fullmatch(span_id)):
        raise Invalid("malformed")
    return _checked(trace_id, span_id, sampled)


def _checked(trace_id: str, span_id: str, sampled: bool | None) -> Parent:
    trace_id = trace_id.rjust(32, "0")
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        raise Invalid("zero_id")
    return Parent(trace_id, span_id, sampled)


# --- writing -----------------------------------------------------------------

Line: TypeAlias = tuple[bytes, bytes]
Writer: TypeAlias = Callable[[str, str, bool, str], list[Line]]


def _write_w3c(trace_id: str, span_id: str, sampled: bool, state: str) -> list[Line]:
    lines = [(b"traceparent", f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}".encode())]
    if state:
        lines.append((b"tracestate", state.encode("latin-1")))
    return lines


def _write_jaeger(trace_id: str, span_id: str, sampled: bool, _: str) -> list[Line]:
    return [(b"uber-trace-id", f"{trace_id}:{span_id}:0:{'01' if sampled else '00'}".encode())]


def _write_b3(trace_id: str, span_id: str, sampled: bool, _: str) -> list[Line]:
    return [(b"b3", f"{trace_id}-{span_id}-{'1' if sampled else '0'}".encode())]


def _write_b3multi(trace_id: str, span_id: str, sampled: bool, _: str) -> list[Line]:
    return [
        (b"x-b3-traceid", trace_id.encode()),
        (b"x-b3-spanid", span_id.encode()),
        (b"x-b3-sampled", b"1" if sampled else b"0"),
    ]


# --- both --------------------------------------------------------------------

_W3C: Final = (b"traceparent", b"tracestate")
_MULTI: Final = (b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"x-b3-sampled", b"x-b3-flags")

_FORMATS: Final[dict[str, tuple[Callable[[Fields], Parent | None], Writer, tuple[bytes, ...]]]] = {
    "w3c": (_read_w3c, _write_w3c, _W3C),
    "jaeger": (_read_jaeger, _write_jaeger, (b"uber-trace-id",)),
    "b3": (_read_b3, _write_b3, (b"b3", *_MULTI)),
    "b3multi": (_read_b3multi, _write_b3multi, (b"b3", *_MULTI)),
}

_ALWAYS: Final = (*_W3C, b"uber-trace-id")
"""Removed on every hop, whichever formats are in use: a context that is not ours any more misleads (behaviour 17.2)."""


class Propagation:
    """The formats in use, in the order in which they are tried; all of them are written.

    *invalid* is told the format and a word for what was wrong with a field that could not be read.
    """

    __slots__ = ("_invalid", "_readers", "_writers", "known", "only_w3c")

    def __init__(self, formats: Sequence[str], invalid: Callable[[str, str], None]) -> None:
        self._readers = tuple((name, _FORMATS[name][0]) for name in formats)
        self._writers = tuple(_FORMATS[name][1] for name in formats)
        self.only_w3c = tuple(formats) == ("w3c",)
        self._invalid = invalid
        self.known = frozenset(_ALWAYS).union(*(_FORMATS[name][2] for name in formats))
        """The fields that are ours to remove."""

    def extract(self, fields: Fields) -> Parent | None:
        """Return the first context that one of the formats finds, or `None`: the trace begins here."""
        for name, read in self._readers:
            try:
                parent = read(fields)
            except Invalid as error:
                self._invalid(name, str(error))
                continue
            if parent is not None:
                if name == "w3c" and b"tracestate" in fields:
                    try:
                        parent.state = read_tracestate(fields[b"tracestate"])
                    except Invalid as error:
                        self._invalid(name, str(error))
                return parent
        return None

    def strip(self, raw: list[Line]) -> None:
        """Remove every field of `known` from *raw*, in place."""
        known = self.known
        for line in raw:
            if line[0] in known:
                raw[:] = [line for line in raw if line[0] not in known]
                return

    def inject(self, trace_id: str, span_id: str, sampled: bool, state: str) -> list[Line]:
        """Return the lines that carry the context on."""
        return [line for write in self._writers for line in write(trace_id, span_id, sampled, state)]

    def __repr__(self) -> str:
        return f"<Propagation {', '.join(name for name, _ in self._readers)}>"
