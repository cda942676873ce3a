"""A configuration document: YAML or JSON text to plain values, remembering where each one stands.

What keys mean is not known here. Only what one can rely on is read: the document is bounded in
size, depth and expansion, a key stands once, and plain words are what YAML 1.2 and JSON say they
are. ``yes``, ``no``, ``on`` and ``off`` are text; so are ``010``, ``1:30``, ``1_000`` and dates, which YAML 1.1 reads as
numbers and dates that were seldom meant. Tags (``!!python``) and merge keys (``<<``) are refused.

In any text value ``${NAME}`` stands for an environment variable, ``${NAME:-default}`` gives what to use where it
is not set or empty, and ``$${NAME}`` is the text ``${NAME}``. Names are upper case: ``${client.ip}`` and other lower-case
words are templates, which belong to the setting they stand in, and stay as they are.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any, NamedTuple

import yaml

from gw.config.errors import ConfigError, Located, Path, path_text
from gw.hookspecs import Problem
from gw.limits import MAX_CONFIG_DEPTH, MAX_CONFIG_SIZE, MAX_CONFIG_VALUES

__all__ = ["Document", "Place", "adopt", "parse", "read"]

# libyaml reads a large document ten times faster. Only its events are used: its composer can be driven out of the stack.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]+(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)", re.ASCII)
_VARIABLE = re.compile(r"(\$?)\$\{(?=[A-Z_])(?:([A-Z0-9_]+)(?::-([^}]*))?\})?", re.ASCII)


_NONE: Mapping[str | int, Any] = {}  # a plain one, so that a document can be sent to a worker


class Place(NamedTuple):
    """Where a value stands: its key in a mapping, its first character in a list."""

    line: int = 0
    column: int = 0
    children: Mapping[str | int, Place] = _NONE
    written: Any = None
    """What stands in the document, where the value came from outside it; else `None`."""


@dataclass(slots=True, eq=False, repr=False)
class Document:
    """Plain values, and where each of them came from. *tree* is changed while the configuration loads, places are not."""

    name: str
    folder: File
    """What ``{file: path}`` is relative to."""
    tree: dict[str, Any]
    root: Place
    problems: list[Located] = field(default_factory=list)
    origins: dict[Path, str] = field(default_factory=dict)
    """What else than the document set a value, such as an environment variable."""
    outside: dict[Path, Any] = field(default_factory=dict)
    """Values that came from outside, by path: as written, or `None` for what is not written in the document."""

    def __repr__(self) -> str:
        return f"<Document {self.name}>"  # no values: some are secret

    def locate(self, problem: Problem) -> Located:
        """Add to *problem* the position of its path, or of the nearest thing around it that is written down."""
        for length in range(1, len(problem.path) + 1):
            if (origin := self.origins.get(problem.path[:length])) is not None:
                return Located(problem, origin)
        place = self.root
        for part in problem.path:
            inner = place.children.get(part)
            if inner is None:
                break
            place = inner
        return Located(problem, self.name, place.line, place.column)

    def get(self, path: Path) -> Any:
        """Return the value at *path*, or `None`."""
        value: Any = self.tree
        for part in path:
            try:
                value = value[part]
            except (LookupError, TypeError):
                return None
        return value

    def as_written(self, path: Path) -> Any:
        """Return a copy of what stands at *path*, with what came from outside as it is written."""
        if (written := self.outside.get(path)) is not None:
            return copy.deepcopy(written)
        value = self.get(path)
        if isinstance(value, dict):
            return {key: self.as_written((*path, key)) for key in value}
        if isinstance(value, list):
            return [self.as_written((*path, index)) for index in range(len(value))]
        return value

    def put(self, path: Path, value: Any) -> None:
        """Set the value at *path*; mappings on the way are made where there is nothing."""
        at: Any = self.tree
        for part in path[:-1]:
            if isinstance(at, dict) and at.get(part) is None:
                at[part] = {}
            at = at[part]
            if not isinstance(at, dict | list):
                return  # the wrong type there is a problem of its own
        at[path[-1]] = value


def read(file: File, environ: Mapping[str, str]) -> Document:
    """Read the document in *file*. Raises `ConfigError` if it is no document, `OSError` if it cannot be read."""
    with file.open("rb") as stream:
        data = stream.read(MAX_CONFIG_SIZE + 1)
    name = str(file)
    if len(data) > MAX_CONFIG_SIZE:
        raise _refusal(name, f"is larger than {MAX_CONFIG_SIZE >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise _refusal(name, "is not UTF-8 text", line, column) from None
    return parse(text, name, environ, folder=file.parent)


def parse(text: str, name: str, environ: Mapping[str, str], *, folder: File = File()) -> Document:
    """Make a document of *text*. Raises `ConfigError` where the text is no YAML mapping."""
    builder = _Builder(name, environ)
    try:
        tree, root = builder.document(yaml.parse(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise ConfigError([*builder.problems, *_refusal(name, f"is not YAML: {error.problem}", *at).problems]) from None
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        raise _refusal(name, f"contains a control character (U+{error.character:04X})", line, column) from None
    return _finished(Document(name, folder, tree, root, builder.problems))


def adopt(values: Mapping[str, Any], name: str, environ: Mapping[str, str]) -> Document:
    """Make a document of *values* that a program put together: no lines, everything else the same."""
    builder = _Builder(name, environ)
    tree, root = builder.adopt(values, (), 0)
    return _finished(Document(name, File(), tree, root, builder.problems))


def _finished(document: Document) -> Document:
    stack: list[tuple[Path, Place]] = [((), document.root)]
    while stack:
        path, place = stack.pop()
        if place.written is not None:
            document.outside[path] = place.written
        stack.extend(((*path, part), inner) for part, inner in place.children.items())
    return document


def _refusal(name: str, message: str, line: int = 0, column: int = 0) -> ConfigError:
    return ConfigError([Located(Problem((), message), name, line, column)])


class _Builder:
    """Turns parser events into values and places."""

    def __init__(self, name: str, environ: Mapping[str, str]) -> None:
        self.name = name
        self.environ = environ
        self.problems: list[Located] = []
        self._count = 0
        self._events: Iterator[Any] = iter(())
        self._anchors: dict[str, tuple[Any, Place] | None] = {}

    def document(self, events: Iterator[Any]) -> tuple[dict[str, Any], Place]:
        self._events = events
        tree: Any = None
        root = Place(1, 1)
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._refuse(event, "holds a second document; put each in a file of its own")
                tree, root = self._value(next(events), (), 0)
        if tree is None:
            tree = {}
        if not isinstance(tree, dict):
            raise _refusal(self.name, "must be a mapping of keys to values", root.line, root.column)
        return tree, root

    def _value(self, event: Any, path: Path, depth: int) -> tuple[Any, Place]:
        self._grow(event)
        if depth > MAX_CONFIG_DEPTH:
            raise self._refuse(event, f"nests deeper than {MAX_CONFIG_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.tag is not None:
            raise self._refuse(event, f"has a tag ({event.tag}); tags are not supported")
        if event.anchor:
            self._anchors[event.anchor] = None  # until it is complete: an alias to it inside itself has no end
        made: tuple[Any, Place]
        if isinstance(event, yaml.MappingStartEvent):
            made = self._mapping(event, path, depth)
        elif isinstance(event, yaml.SequenceStartEvent):
            made = self._sequence(event, path, depth)
        else:
            made = self._scalar(event, path)
        if event.anchor:
            self._anchors[event.anchor] = made
        return made

    def _mapping(self, start: Any, path: Path, depth: int) -> tuple[dict[str, Any], Place]:
        values: dict[str, Any] = {}
        places: dict[str | int, Place] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._refuse(event, "has a key that is not plain text")
            key = event.value
            if key == "<<" and event.implicit[0]:
                raise self._refuse(event, "has a merge key (<<), which YAML 1.2 does not know; write the keys out")
            value, place = self._value(next(self._events), (*path, key), depth + 1)
            if key in values:
                message = f"is set twice; the first time in line {places[key].line}"
                self._report(event, (*path, key), message)
                continue
            values[key] = value
            at = _place(event)
            places[key] = place._replace(line=at.line, column=at.column)
        return values, _place(start, places)

    def _sequence(self, start: Any, path: Path, depth: int) -> tuple[list[Any], Place]:
        values: list[Any] = []
        places: dict[str | int, Place] = {}
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            index = len(values)
            value, places[index] = self._value(event, (*path, index), depth + 1)
            values.append(value)
        return values, _place(start, places)

    def _scalar(self, event: Any, path: Path) -> tuple[Any, Place]:
        place = _place(event)
        text: str = event.value
        if event.implicit[0] and (value := _plain(text)) is not text:
            return value, place
        value, problem = self._expand(text)
        if problem:
            self._report(event, path, problem)
        return value, place if value == text else place._replace(written=text)

    def _alias(self, event: Any) -> tuple[Any, Place]:
        if event.anchor not in self._anchors:
            raise self._refuse(event, f"has an alias to an anchor that is not there: *{event.anchor}")
        made = self._anchors[event.anchor]
        if made is None:
            raise self._refuse(event, f"has an alias to what it stands in: *{event.anchor}")
        return self._copy(made[0], event), made[1]

    def _copy(self, value: Any, event: Any) -> Any:
        self._grow(event)
        if isinstance(value, dict):
            return {key: self._copy(item, event) for key, item in value.items()}
        if isinstance(value, list):
            return [self._copy(item, event) for item in value]
        return value

    def adopt(self, value: Any, path: Path, depth: int) -> tuple[Any, Place]:
        """Do the same for *value* as for text that says it. Raises `TypeError` for what no document can say."""
        if depth > MAX_CONFIG_DEPTH:
            raise TypeError(f"{path_text(path)}: nests deeper than {MAX_CONFIG_DEPTH} levels")
        if isinstance(value, Mapping):
            made = {str(key): self.adopt(item, (*path, str(key)), depth + 1) for key, item in value.items()}
            return {k: v for k, (v, _) in made.items()}, Place(children={k: p for k, (_, p) in made.items()})
        if isinstance(value, list | tuple):
            items = [self.adopt(item, (*path, index), depth + 1) for index, item in enumerate(value)]
            return [v for v, _ in items], Place(children={index: p for index, (_, p) in enumerate(items)})
        if isinstance(value, str):
            text, problem = self._expand(value)
            if problem:
                self.problems.append(Located(Problem(path, problem), self.name))
            return text, Place(written=None if text == value else value)
        if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            return value, Place()
        raise TypeError(f"{path_text(path)}: a configuration cannot hold {value!r}")

    def _expand(self, text: str) -> tuple[str, str]:
        """Return *text* with its variables filled in, and what is wrong with them."""
        if "${" not in text:
            return text, ""
        problems: list[str] = []

        def fill(match: re.Match[str]) -> str:
            escaped, name, default = match.groups()
            if escaped:
                return match[0][1:]
            if name is None:
                problems.append("has a variable that is not written as ${NAME} or ${NAME:-default}")
                return match[0]
            value = self.environ.get(name)
            if default is not None and not value:
                return default
            if value is None:
                problems.append(f"needs the environment variable {name}, which is not set")
                return match[0]
            if any("\ud800" <= character <= "\udfff" for character in value):
                problems.append(f"needs the environment variable {name}, which is not UTF-8 text")
                return match[0]
            return value

        return _VARIABLE.sub(fill, text), "; ".join(problems)

    def _grow(self, event: Any) -> None:
        self._count += 1
        if self._count > MAX_CONFIG_VALUES:
            raise self._refuse(event, f"holds more than {MAX_CONFIG_VALUES} values once its aliases are expanded")

    def _report(self, event: Any, path: Path, message: str) -> None:
        mark = event.start_mark
        self.problems.append(Located(Problem(path, message), self.name, mark.line + 1, mark.column + 1))

    def _refuse(self, event: Any, message: str) -> ConfigError:
        self._report(event, (), message)
        return ConfigError(self.problems)


def _place(event: Any, children: Mapping[str | int, Place] | None = None) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1, children or _NONE)


def _plain(text: str) -> Any:
    """Read *text* as an unquoted scalar of the YAML 1.2 core schema; *text* itself where it is just text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text
