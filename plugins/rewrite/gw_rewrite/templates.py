"""Text with variables, such as ``/v2/${path.id}``: what the variables are, and functions made from templates.

A template is read once, when the configuration loads, and knows no request. Where its text will stand decides how
values are written there; that is the caller's to say, and for paths, hosts and queries is said in `gw_rewrite.targets`.

What a variable stands for is the bytes of a request as latin-1 text, as `gw.Headers` has them; what comes as Unicode,
such as a claim, is UTF-8 in them.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes

from pydantic_core import core_schema

from gw import IDENTITY, Exchange

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler

__all__ = [
    "Encoder",
    "Fill",
    "Kind",
    "Part",
    "Template",
    "Variable",
    "as_field",
    "compiled",
    "for_requests",
    "into_field",
    "query_name",
]

Fill: TypeAlias = Callable[[Exchange], str]
"""A template as a function: empty text where it has nothing to say."""

Encoder: TypeAlias = Callable[[str], str]


class Kind(enum.Enum):
    """What the value of a variable is made of, which decides how it is written somewhere else."""

    TEXT = enum.auto()
    """Anything."""
    PATH = enum.auto()
    """Part of a normalised path: percent-encoded already, its slashes included."""
    HOST = enum.auto()
    """A host that the core has checked, with or without a port."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One ``${name}`` or ``${name:-default}``."""

    name: str
    kind: Kind
    read: Fill
    default: str = ""
    """What to write where there is no value, or an empty one; it is not encoded."""


Part: TypeAlias = str | Variable


# --- what there is to ask for ------------------------------------------------


def _latin(text: str) -> str:
    """Return the UTF-8 bytes of *text* as latin-1 text."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("latin-1")


def _subject(ex: Exchange) -> str:
    identity = ex.get(IDENTITY, None)
    return "" if identity is None else _latin(identity.subject)


_FIXED: Final[Mapping[str, tuple[Kind, Fill]]] = {
    "client.ip": (Kind.TEXT, lambda ex: ex.client.ip),
    "client.peer": (Kind.TEXT, lambda ex: ex.client.peer),
    "client.scheme": (Kind.TEXT, lambda ex: ex.client.scheme),
    "host": (Kind.HOST, lambda ex: ex.request.host),
    "identity.sub": (Kind.TEXT, _subject),
    "method": (Kind.TEXT, lambda ex: ex.request.method),
    "path": (Kind.PATH, lambda ex: ex.request.path),
    "request.id": (Kind.TEXT, lambda ex: ex.request_id),
    "route.name": (Kind.TEXT, lambda ex: "" if ex.route is None else _latin(ex.route.name)),
    "status": (Kind.TEXT, lambda ex: "" if ex.response is None else str(ex.response.status)),
}


def _of_path(name: str) -> Fill:
    return lambda ex: ex.params.get(name, "")


def _of_query(name: str) -> Fill:
    wanted = name.encode()

    def read(ex: Exchange) -> str:
        for piece in (ex.request.query or "").split("&"):
            key, _, value = piece.partition("=")
            if query_name(key) == wanted:
                return unquote_to_bytes(value.replace("+", " ")).decode("latin-1")
        return ""

    return read


def query_name(written: str) -> bytes:
    """Return the name of a query parameter as it is meant, not as it is encoded."""
    return unquote_to_bytes(written.replace("+", " "))


def _of_header(name: str) -> Fill:
    # Several lines are one list (RFC 9110 section 5.3).
    return lambda ex: ", ".join(ex.request.headers.get_all(name))


def _of_response_header(name: str) -> Fill:
    return lambda ex: "" if ex.response is None else ", ".join(ex.response.headers.get_all(name))


def _of_claim(name: str) -> Fill:
    def read(ex: Exchange) -> str:
        identity = ex.get(IDENTITY, None)
        value = None if identity is None else identity.claims.get(name)
        if value is None:
            return ""
        return _latin(value) if isinstance(value, str) else json.dumps(value, default=str)

    return read


_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_ANY: Final = re.compile(r".+")

_FAMILIES: Final[Mapping[str, tuple[Kind, Callable[[str], Fill], re.Pattern[str]]]] = {
    "header.": (Kind.TEXT, _of_header, _TOKEN),
    "identity.claim.": (Kind.TEXT, _of_claim, _ANY),
    "path.": (Kind.PATH, _of_path, _NAME),
    "query.": (Kind.TEXT, _of_query, _ANY),
    "response_header.": (Kind.TEXT, _of_response_header, _TOKEN),
}
"""Variables that end in a name of the user's."""

_OF_RESPONSE: Final = ("status", "response_header.")


def _variable(name: str, default: str) -> Variable:
    if (fixed := _FIXED.get(name)) is not None:
        return Variable(name, *fixed, default)
    for family, (kind, reader, allowed) in _FAMILIES.items():
        if name.startswith(family):
            own = name.removeprefix(family)
            if not allowed.fullmatch(own):
                raise ValueError(f"has '${{{name}}}', but {own!r} cannot be a name there")
            return Variable(name, kind, reader(own), default)
    _, dot, own = name.rpartition(".")
    near = get_close_matches(name, [*_FIXED, *(family + own for family in _FAMILIES if dot)], 1)
    known = ", ".join(sorted([*_FIXED, *(f"{family}NAME" for family in _FAMILIES)]))
    hint = f" (did you mean '${{{near[0]}}}'?)" if near else f"; the variables are {known}"
    raise ValueError(f"has '${{{name}}}', which is no variable{hint}")


# --- templates ---------------------------------------------------------------

_DOLLAR: Final = re.compile(r"\$(?:(\$)|\{([^{}$]*)\})?")


class Template:
    """Text with variables, as a setting holds it. Equal if written alike."""

    __slots__ = ("parts", "text")

    def __init__(self, text: str) -> None:
        """Read *text*; raise `ValueError` for a variable that does not exist, or is not written as one."""
        self.text = text
        self.parts: tuple[Part, ...] = tuple(_parts(text))

    @property
    def variables(self) -> tuple[Variable, ...]:
        return tuple(part for part in self.parts if isinstance(part, Variable))

    @property
    def literals(self) -> tuple[str, ...]:
        """Everything in it that the configuration says, defaults included."""
        return tuple(part.default if isinstance(part, Variable) else part for part in self.parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Template {self.text!r}>"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Let settings have templates as values: text in a document, and text again where settings are shown."""
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(min_length=1), serialization=core_schema.to_string_ser_schema()
        )


def _parts(text: str) -> list[Part]:
    parts: list[Part] = []
    literal, at = "", 0
    for dollar in _DOLLAR.finditer(text):
        literal, at = literal + text[at : dollar.start()], dollar.end()
        escaped, inside = dollar.groups()
        if escaped:
            literal += "$"
        elif inside is None:
            raise ValueError("has a '$' that begins no ${variable} or ${variable:-default}; write $$ for the character")
        else:
            name, _, default = inside.partition(":-")
            parts += [literal, _variable(name, default)] if literal else [_variable(name, default)]
            literal = ""
    literal += text[at:]
    return [*parts, literal] if literal else parts


def for_requests(template: Template) -> Template:
    """Return *template*; raise `ValueError` if it needs a response, which is not there yet."""
    for variable in template.variables:
        if variable.name.startswith(_OF_RESPONSE):
            raise ValueError(f"has '${{{variable.name}}}', which only response headers can have")
    return template


def compiled(parts: tuple[Part, ...], encoders: Mapping[Kind, Encoder], literal: Encoder | None = None) -> str | Fill:
    """Make a function of *parts*, or plain text where no variable is in them.

    *encoders* say how values are written, by their kind; one that is missing leaves them alone. *literal* does the
    same, once, for what the configuration says itself.
    """
    pieces: list[str | Fill] = []
    for part in parts:
        if isinstance(part, Variable):
            default = literal(part.default) if literal else part.default
            pieces.append(_reader(part.read, encoders.get(part.kind), default))
        else:
            pieces.append(literal(part) if literal else part)
    if not any(callable(piece) for piece in pieces):
        return "".join(str(piece) for piece in pieces)
    if len(pieces) == 1:
        return pieces[0]
    rows = tuple(pieces)
    return lambda ex: "".join([piece if piece.__class__ is str else piece(ex) for piece in rows])  # type: ignore[operator]


def _reader(read: Fill, encode: Encoder | None, default: str) -> Fill:
    if encode is None:
        return (lambda ex: read(ex) or default) if default else read
    return lambda ex: encode(value) if (value := read(ex)) else default


# --- in a field --------------------------------------------------------------

_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def _escape(control: re.Match[str]) -> str:
    return f"%{ord(control[0]):02X}"


def _visible(value: str) -> str:
    return _CONTROL.sub(_escape, value) if _CONTROL.search(value) else value


def as_field(template: Template) -> Template:
    """Return *template*; raise `ValueError` if its own text cannot stand in a field value."""
    for literal in template.literals:
        if not (literal.isascii() and literal.isprintable()):
            raise ValueError("must be printable ASCII: other characters have no agreed meaning in a header")
    if template.text != template.text.strip():
        raise ValueError("must not have spaces around it: they are not part of a header's value")
    return template


def into_field(template: Template) -> str | Fill:
    """Make what *template* says as a field value. Control characters in values are percent-encoded.

    So no value can end its line (RFC 9110 section 5.5), and none makes an exchange fail.
    """
    return compiled(template.parts, {Kind.TEXT: _visible})
