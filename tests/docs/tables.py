"""The tables of settings in docs/configuration.md, made from the pydantic models.

``python tests/docs/tables.py`` writes them; a test says when they are old. A table stands between
``<!-- settings: MODEL -->`` and ``<!-- end of settings -->``, and MODEL is a class in `gw.config.model`, `gw.config.resilience` or `gw.hookspecs`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gw import hookspecs
from gw.config import model
from gw.config.model import GatewayConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

_TABLE = re.compile(r"<!-- settings: (?P<name>\w+) -->\n.*?<!-- end of settings -->", re.DOTALL)

Schema = Mapping[str, Any]


def models(of: type[BaseModel] = GatewayConfig) -> Iterator[type[BaseModel]]:
    """Yield *of* and every model that is a part of it, each once."""
    seen: list[type[BaseModel]] = []

    def visit(each: type[BaseModel]) -> None:
        if each in seen:
            return
        seen.append(each)
        for field in each.model_fields.values():
            for inner in _models_in(field.annotation):
                visit(inner)

    visit(of)
    yield from seen


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def updated(text: str) -> str:
    """Return *text* with every table as the models are now."""
    return _TABLE.sub(
        lambda match: f"<!-- settings: {match['name']} -->\n{table(_named(match['name']))}\n<!-- end of settings -->",
        text,
    )


def named(text: str) -> set[str]:
    """Return the names of the models that have a table in *text*."""
    return {match["name"] for match in _TABLE.finditer(text)}


def table(of: type[BaseModel]) -> str:
    schema = of.model_json_schema()
    definitions = schema.get("$defs", {})
    rows = [("Key", "Value", "Default", "Meaning"), ("---",) * 4]
    for name, field in of.model_fields.items():
        key = field.alias or name
        value = _value(schema["properties"][key], definitions)
        rows.append((f"`{key}`", value, _default(field), " ".join((field.description or "").split())))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def _named(name: str) -> type[BaseModel]:
    found = (
        next((each for each in models() if each.__name__ == name), None)
        or getattr(model, name, None)
        or getattr(hookspecs, name)
    )
    assert isinstance(found, type), name
    assert issubclass(found, BaseModel), name
    return found


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value in ((), {}):
        return ""
    return f"`{json.dumps(value)}`" if value not in (None, "") else "none" if value is None else "empty"


def _value(schema: Schema, definitions: Schema) -> str:
    """Say in words what *schema* allows."""
    while "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if choices := [each for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ())) if each.get("type") != "null"]:
        return " or ".join(dict.fromkeys(_value(each, definitions) for each in choices))
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_value(schema.get('items', {}), definitions)}"
    if kind == "object":
        return "mapping"
    words = {"integer": "integer", "number": "number", "boolean": "`true`, `false`", "string": "text"}[kind]
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{words}, {low} to {high}"
    return words if low is None else f"{words}, at least {low}"


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    fresh = updated(text)
    PAGE.write_text(fresh, encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}: {'written' if fresh != text else 'nothing to do'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
