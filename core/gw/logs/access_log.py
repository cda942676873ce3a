"""The access log: one line per exchange, as JSON or as a text template.

What is in a line, and how it is made safe, lives here; where lines go is
`gw.logs.log_files`. A gateway without an access log holds `None` in place of an
`AccessLog`.

A template is compiled into one function, as `dataclasses` compiles an
``__init__``: with a call per field a line of JSON took 10 us, so it takes 4.

A line is ASCII, whatever was in the request: a client can neither end it, nor
close a quote in it, nor send anything to the terminal of whoever reads it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Final, TypeAlias, cast

from gw.filters import Exchange, Note
from gw.keys import IDENTITY, TRACE
from gw.limits import LOG_BATCH_SIZE
from gw.logs.log_files import LineSink

__all__ = ["DEFAULT_FIELDS", "DEFAULT_TEMPLATE", "FIELDS", "AccessLog", "BadTemplate", "compile_line"]

Line: TypeAlias = Callable[[Exchange], str]


class BadTemplate(ValueError):
    """A template that names something a line does not have."""


# --- what there is to say ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Text:
    """An expression for a string. The names it may use are those of `_PROLOGUE`; empty and `None` mean there is none."""

    expression: str
    is_safe: bool = False
    """It is ASCII without quotes or controls, whatever the request was: it need not be escaped."""


@dataclass(frozen=True, slots=True)
class _Number:
    """An expression for a number; it may say how it is printed, as f-strings do."""

    expression: str


FIELDS: Final[dict[str, _Text | _Number]] = {
    "time": _Text(
        "second((began := int((now() - elapsed) * 1000)) // 1000) + milliseconds[began % 1000]", is_safe=True
    ),
    "duration_ms": _Number("elapsed * 1000:.3f"),
    "client.ip": _Text("client.ip", is_safe=True),
    "client.peer": _Text("client.peer", is_safe=True),
    "method": _Text("request.method"),
    "host": _Text("request.host"),
    "path": _Text("ex.matched_path"),
    "upstream_path": _Text("request.path"),
    "query": _Text("request.query"),
    "scheme": _Text("client.scheme"),
    "protocol": _Text("'HTTP/' + request.version", is_safe=True),
    "status": _Number("response.status if response else nothing"),
    "bytes_received": _Number("ex.bytes_received"),
    "bytes_sent": _Number("ex.bytes_sent"),
    "route.name": _Text("route and route.name"),
    "upstream.name": _Text("attempt and attempt.upstream"),
    "endpoint": _Text(
        "attempt and (at := attempt.endpoint) and (str(at) if ':' in at.host else f'{at.host}:{at.port}')"
    ),
    "attempts": _Number("len(attempts)"),
    "upstream.ms": _Number(
        "round((attempt.answered - attempt.started) * 1000, 3) if attempt and attempt.answered else nothing"
    ),
    "outcome": _Text("ex.outcome is not None and ex.outcome._value_", is_safe=True),
    "reason": _Text("ex.reason"),
    "request_id": _Text("ex.request_id"),
    "trace_id": _Text("(trace := ex.get(TRACE, None)) and trace.trace_id"),
    "identity.subject": _Text("(identity := ex.get(IDENTITY, None)) and str(identity.subject)"),
}
"""What a template may name, besides ``header.NAME``, ``response_header.NAME`` and ``path.NAME``.

``path`` is the client's, as it was matched; ``upstream_path`` may have been rewritten.
"""

DEFAULT_FIELDS: Final = (
    "time",
    "duration_ms",
    "client.ip",
    "client.peer",
    "method",
    "host",
    "path",
    "protocol",
    "status",
    "bytes_received",
    "bytes_sent",
    "route.name",
    "upstream.name",
    "endpoint",
    "attempts",
    "upstream.ms",
    "outcome",
    "reason",
    "request_id",
    "trace_id",
    "header.referer",
    "header.user-agent",
)
"""The JSON line without a template. Not the query: it may hold secrets, and is there for who asks for it."""

DEFAULT_TEMPLATE: Final = (
    '${client.ip} [${time}] "${method} ${path} ${protocol}" ${status} ${bytes_sent} "${header.referer}" '
    '"${header.user-agent}" ${duration_ms} ${route.name} ${endpoint} ${attempts} ${outcome} ${reason} ${request_id}'
)
"""The text line without a template: the "combined" format of Apache and nginx, and what a gateway adds."""


# --- how it is written ---------------------------------------------------------

_variable: Final = re.compile(r"\$\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class _Format:
    """What is around the values of a line. The expressions become code; `_quoted` makes any text safe ASCII."""

    text: str
    safe_text: str
    nothing: str
    notes: Callable[[list[Note]], str]
    ending: str


def _json_notes(notes: list[Note]) -> str:
    said = [
        {name: getattr(note, name) for name in ("stage", "plugin", "verdict", "reason", "position")} for note in notes
    ]
    return f',"notes":{json.dumps(said)}'


def _text_notes(notes: list[Note]) -> str:
    spoken = (" ".join(filter(None, (n.stage, n.plugin, n.verdict, n.reason, n.position))) for n in notes)
    return f" notes={_quoted('; '.join(spoken))}"


_FORMATS: Final = {
    "json": _Format(
        text="quoted(value)", safe_text="'\"' + value + '\"'", nothing="null", notes=_json_notes, ending="}\n"
    ),
    "text": _Format(text="quoted(value)[1:-1]", safe_text="value", nothing="-", notes=_text_notes, ending="\n"),
}


def compile_line(format: str, template: str = "") -> Line:  # noqa: A002 - the configuration's word for it
    """Return the function that makes a line, newline included.

    *format* is ``json`` or ``text``. A text template is written out with its
    variables replaced, ``-`` for what there is not. A JSON template only lists
    variables: they become the members of an object, dots and hyphens turned
    into underscores, `null` for what there is not. Both escape text as JSON
    does. Raises `BadTemplate`.
    """
    if (shape := _FORMATS.get(format)) is None:
        raise BadTemplate(f"log.access.format: there is no {format!r}; there are {' and '.join(_FORMATS)}")
    template = template.strip("\n")  # YAML's block scalars end in one
    if format == "json":
        names = _variable.findall(template) or list(DEFAULT_FIELDS)
        if rest := _variable.sub("", template).strip(" ,\n"):
            raise BadTemplate(
                f"log.access.template: in JSON it is a list such as ${{time}} ${{status}}, without {rest!r}"
            )
        literals = [f"{',' if i else '{'}{_quoted(re.sub('[.-]', '_', name))}:" for i, name in enumerate(names)]
        return _generate([*literals, ""], names, shape)
    pieces = _variable.split(template or DEFAULT_TEMPLATE)
    for literal in pieces[::2]:
        if "\n" in literal or "\r" in literal:
            raise BadTemplate("log.access.template: a line has no line breaks; write it as one line")
        if "${" in literal:
            raise BadTemplate("log.access.template: a '${' is not closed; write ${name}")
    return _generate(pieces[::2], pieces[1::2], shape)


_PROLOGUE: Final = """\
def line(ex):
    request, response, client, route, attempts = ex.request, ex.response, ex.client, ex.route, ex.attempts
    attempt = attempts[-1] if attempts else None
    elapsed = monotonic() - ex.started
"""


def _generate(literals: Sequence[str], names: Sequence[str], shape: _Format) -> Line:
    """Return a function that fills in one f-string. There is one literal more than there are names.

    Only what stands in this file becomes code. What a user wrote in a template
    goes in as a quoted literal, or, if it names a header or a capture, as a value.
    """
    values: dict[str, Any] = {
        "TRACE": TRACE,
        "IDENTITY": IDENTITY,
        "monotonic": time.monotonic,
        "now": time.time,
        "nothing": shape.nothing,
        "notes": shape.notes,
        "quoted": _quoted,
        "second": _second,
        "milliseconds": _MILLISECONDS,
    }
    fillings = []
    wanted: dict[str, list[str]] = {"request": [], "response": []}
    for name in names:
        field = _field(name, values, wanted)
        if isinstance(field, _Number):
            fillings.append(field.expression)
        else:
            wrapped = shape.safe_text if field.is_safe else shape.text
            fillings.append(f"{wrapped} if (value := {field.expression}) else nothing")
    source = [_PROLOGUE]
    for of, variables in wanted.items():
        if variables:
            # From the last line to the first, so that the first stays.
            source.append(f"    {' = '.join(variables)} = None\n")
            source.append(f"    for name, value in reversed({of}.headers.raw) if {of} else ():\n")
            source += (f"        if name == {each}_name:\n            {each} = value\n" for each in variables)
    fillings.append("notes(ex.notes) if ex.notes else ''")
    pieces = [repr(literals[0])]
    for filling, literal in zip(fillings, [*literals[1:], shape.ending], strict=True):
        pieces += (f'f"""{{{filling}}}"""', repr(literal))
    source.append(f"    return ({' '.join(pieces)})\n")  # adjacent strings are one, to the compiler
    exec("".join(source), values)  # noqa: S102 - see above
    return cast("Line", values["line"])


def _field(name: str, values: dict[str, Any], wanted: dict[str, list[str]]) -> _Text | _Number:
    """Return what prints *name*; add the values it needs, and the header to look for."""
    if (field := FIELDS.get(name)) is not None:
        return field
    family, _, member = name.partition(".")
    if not member or not member.isascii() or family not in {"header", "response_header", "path"}:
        known = ", ".join([*FIELDS, "header.NAME", "response_header.NAME", "path.NAME"])
        raise BadTemplate(f"log.access.template: there is no ${{{name}}}; there are {known}")
    variable = f"v{len(values)}"
    values[f"{variable}_name"] = member if family == "path" else member.lower().encode("ascii")
    if family == "path":
        return _Text(f"ex.params.get({variable}_name)")
    wanted["request" if family == "header" else "response"].append(variable)
    return _Text(f"{variable} and {variable}.decode('latin-1')")


_MILLISECONDS: Final = tuple(f".{millisecond:03d}Z" for millisecond in range(1000))


@lru_cache(maxsize=16)
def _second(second: int) -> str:
    """Return the part of a time that the lines of a second share."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _timestamp(at: float) -> str:
    """Return *at* as RFC 3339 in UTC."""
    milliseconds = int(at * 1000)
    return _second(milliseconds // 1000) + _MILLISECONDS[milliseconds % 1000]


class AccessLog:
    """Formats each exchange when it is over, and writes the lines in batches.

    Called on the event loop; nothing here waits. *sink* becomes its own: it is closed with it.
    """

    __slots__ = ("_line", "_lines", "_sink", "_size")

    def __init__(self, format: str, template: str, sink: LineSink) -> None:  # noqa: A002 - as compile_line
        self._line = compile_line(format, template)
        self._sink = sink
        self._lines: list[str] = []
        self._size = 0
        sink.notice = _json_notice if format == "json" else _text_notice

    def __call__(self, ex: Exchange) -> None:
        """Add the line of *ex*; its outcome is set."""
        line = self._line(ex)
        self._lines.append(line)
        self._size += len(line)
        if self._size >= LOG_BATCH_SIZE:
            self.flush()

    def flush(self) -> None:
        """Hand the batch to the writer. A ticker calls this, so that a line is never old."""
        if self._lines:
            self._sink.write("".join(self._lines).encode("ascii"))
            self._lines.clear()
            self._size = 0

    @property
    def lost(self) -> int:
        """Lines lost since the start, to a disk too slow or too full."""
        return self._sink.lost

    def reopen(self) -> None:
        """Go on in a file of the same name, after somebody moved the one in use."""
        self.flush()
        self._sink.reopen()

    def close(self) -> bool:
        """Write what there is and end, within LOG_CLOSE_TIME; tell whether all was written."""
        self.flush()
        return self._sink.close()

    def __repr__(self) -> str:
        return f"<AccessLog {self._sink!r}>"


def _json_notice(lost: int) -> bytes:
    return b'{"time":%b,"lost_lines":%d}\n' % (_quoted(_timestamp(time.time())).encode(), lost)


def _text_notice(lost: int) -> bytes:
    return b"[%b] %d access log lines were lost: they came faster than they could be written\n" % (
        _timestamp(time.time()).encode(),
        lost,
    )
