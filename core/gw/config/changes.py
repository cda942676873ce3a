"""What differs between two configurations, by meaning: upstreams and routes by their names, values as they take effect.

Secrets are compared, and never shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gw.config.load import Loaded

__all__ = ["changes"]

_ABSENT: Final = object()
_NAMED: Final = {"upstreams": "upstream", "routes": "route"}


def changes(old: Loaded, new: Loaded) -> list[str]:
    """Return a line for each difference, such as ``route admin: auth.required_scopes [] -> ["admin"]``."""
    before, after = old.config.model_dump(), new.config.model_dump()
    shown_before, shown_after = old.effective(), new.effective()
    found: list[str] = []
    for key, word in _NAMED.items():
        one, other = _by_name(old, key, before), _by_name(new, key, after)
        shown_one, shown_other = _by_name(old, key, shown_before), _by_name(new, key, shown_after)
        found += [f"{word} {name}: removed" for name in one if name not in other]
        found += [f"{word} {name}: added" for name in other if name not in one]
        for name in one:
            if name in other:
                lines = _differences("", one[name], other[name], shown_one[name], shown_other[name])
                found += [f"{word} {name}: {line}" for line in lines]
        if [each for each in one if each in other] != [each for each in other if each in one]:
            found.append(f"{key}: in another order")
    rest = [
        {key: value for key, value in tree.items() if key not in _NAMED}
        for tree in (before, after, shown_before, shown_after)
    ]
    return [*_differences("", *rest), *found]


def _by_name(loaded: Loaded, key: str, tree: dict[str, Any]) -> dict[str, Any]:
    names = loaded.config.route_names() if key == "routes" else [each.name for each in loaded.config.upstreams]
    return dict(zip(names, tree[key], strict=True))


def _differences(path: str, old: Any, new: Any, shown_old: Any, shown_new: Any) -> Iterator[str]:
    if old == new and type(old) is type(new):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            values = (_member(each, key) for each in (old, new, shown_old, shown_new))
            yield from _differences(f"{path}.{key}" if path else str(key), *values)
    elif shown_old == shown_new:
        yield f"{path} changed (it is secret)"
    else:
        yield f"{path} {_shown(shown_old)} -> {_shown(shown_new)}"


def _member(tree: Any, key: Any) -> Any:
    return tree.get(key, _ABSENT) if isinstance(tree, dict) else tree


def _shown(value: Any) -> str:
    return "(none)" if value is _ABSENT or value is None else json.dumps(value, ensure_ascii=False)
