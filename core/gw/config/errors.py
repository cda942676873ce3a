"""How what is wrong with a configuration is said: where, what, and what to do about it.

Nothing here reads or checks a configuration. pydantic's errors become our sentences here, so that
core and plugin settings are refused in the same words.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gw.hookspecs import Problem
from gw.limits import MAX_CONFIG_PROBLEMS

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["ConfigError", "Located", "Path", "did_you_mean", "explain", "path_text"]

Path = tuple[str | int, ...]
"""Keys and indexes from the root of a configuration."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Located:
    """A problem and where it stands."""

    problem: Problem
    origin: str
    """The file as it was named, or what else set the value: ``environment variable GW_BIND_PORT``."""
    line: int = 0
    """From 1; 0 where there are no lines."""
    column: int = 0

    @property
    def position(self) -> str:
        return f"{self.origin}:{self.line}:{self.column}" if self.line else self.origin

    def __str__(self) -> str:
        level = "warning: " if self.problem.level == "warning" else ""
        path = f"{path_text(self.problem.path)}: " if self.problem.path else ""
        return f"{self.position}: {level}{path}{self.problem.message}"


class ConfigError(Exception):
    """A configuration is refused. *problems* are all of them, warnings too, in the order of their positions."""

    def __init__(self, problems: Iterable[Located]) -> None:
        self.problems = tuple(sorted(problems, key=lambda at: (at.origin, at.line, at.column)))
        super().__init__(self.problems)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:MAX_CONFIG_PROBLEMS]]
        if more := len(self.problems) - len(lines):
            lines.append(f"... and {more} more")
        return "\n".join(lines)


def path_text(path: Path) -> str:
    """Write *path* as people do: ``upstreams[0].proxy.methods``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text


def did_you_mean(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """Return `` (did you mean 'x'?)`` for the known word that looks most like *word*, or nothing."""
    near = difflib.get_close_matches(word, list(known), 1, likeness)
    return f" (did you mean {near[0]!r}?)" if near else ""


_WANTED: Mapping[str, str] = {
    "string": "text",
    "int": "an integer",
    "bool": "true or false",
    "float": "a number",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "none_required": "null",
}

_BOUND: Mapping[str, tuple[str, str]] = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def explain(error: ErrorDetails, *, secret: bool) -> str | None:
    """Turn one of pydantic's errors into a sentence. A *secret* value is not shown. `None` follows from another error."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    shown = "" if secret else f", not {_show(value)}"
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return "is not a known key"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        hint = did_you_mean(value, allowed) if isinstance(value, str) and not secret else ""
        return f"must be one of {', '.join(allowed)}{shown}{hint}"
    if kind in _BOUND:
        words, bound = _BOUND[kind]
        return f"must be {words} {context[bound]}{shown}"
    if kind == "too_short" and len(value) >= context["min_length"]:
        return None  # pydantic counts only the items that are right
    if kind in {"string_too_short", "too_short"} and not value:
        return "must not be empty"
    if kind == "value_error":
        return str(context["error"])
    wanted = kind.removesuffix("_type").removesuffix("_from_float").removesuffix("_parsing")
    # After a "before" validator pydantic is strict about Python's types too; then its own words are the right ones.
    if wanted in _WANTED and _WANTED[wanted] != _kind_of(value):
        quote = "; quote it" if wanted == "string" and isinstance(value, bool | int | float) else ""
        return f"must be {_WANTED[wanted]}, not {_kind_of(value)}{quote}"
    message = error["msg"].removeprefix("Input ")
    return message[:1].lower() + message[1:]


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {str: "text", int: "an integer", float: "a number", list: "a list", dict: "a mapping", type(None): "null"}
    return kinds.get(type(value), type(value).__name__)


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else _kind_of(value)
