"""The project's source files and what each imports, read with `ast`: nothing here imports what it looks at.

The rules are in the tests. A rule collects all that breaks it and fails once, with `at` places and what to do instead.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "gw"
PLUGINS = ROOT / "plugins"


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module."""

    module: str
    names: tuple[str, ...]
    """What was taken from it; empty for ``import module``."""
    line: int
    inside: str
    """The function that it is hidden in; empty at the top of a module."""
    for_types: bool
    """Under ``if TYPE_CHECKING``: it does not happen at run time."""
    late: bool = False
    """By `importlib.import_module`, when it is needed."""


@dataclass(frozen=True)
class Source:
    """One file."""

    path: Path
    module: str
    """Its dotted name; ``gw`` for the package itself."""

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        return tuple(_imports(self.tree, "", for_types=False))

    @property
    def part(self) -> str:
        """The module or package beside ``gw/__init__.py`` that it belongs to: ``http`` for ``gw.http.write``."""
        return self.module.partition(".")[2].partition(".")[0]

    def at(self, line: int = 0) -> str:
        place = str(self.path.relative_to(ROOT))
        return f"{place}:{line}" if line else place


def core() -> list[Source]:
    return _sources(CORE, CORE.parent)


def plugin_folders() -> list[Path]:
    return sorted(path for path in PLUGINS.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))


def plugin(folder: Path) -> list[Source]:
    """Return the sources of the plugin in *folder*, without its tests."""
    return _sources(folder / package_of(folder), folder)


def sample() -> list[Source]:
    """Return the sources of the plugin that stands for everybody else's."""
    folder = ROOT / "tests" / "sample_plugin"
    return _sources(folder / "gw_sample", folder)


def package_of(folder: Path) -> str:
    return f"gw_{folder.name.replace('-', '_')}"


def files_of_tests() -> list[Source]:
    folders = [ROOT / "tests", *(folder / "tests" for folder in plugin_folders())]
    return [source for folder in folders for source in _sources(folder, folder.parent)]


def everything() -> list[Source]:
    return [*core(), *(source for folder in plugin_folders() for source in plugin(folder)), *files_of_tests()]


def _sources(folder: Path, above: Path) -> list[Source]:
    return [
        Source(path, ".".join(path.relative_to(above).with_suffix("").parts).removesuffix(".__init__"))
        for path in sorted(folder.rglob("*.py"))
    ]


def _imports(node: ast.AST, inside: str, *, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, (), child.lineno, inside, for_types)
        elif isinstance(child, ast.ImportFrom):
            names = tuple(alias.name for alias in child.names)
            yield Import("." * child.level + (child.module or ""), names, child.lineno, inside, for_types)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module"):
            for constant in ast.walk(child):
                if isinstance(constant, ast.Constant) and str(constant.value).startswith("gw."):
                    yield Import(constant.value, (), child.lineno, inside, for_types, late=True)
        function = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else inside
        types = for_types or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING")
        yield from _imports(child, function, for_types=types)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def at(faults: Iterable[str], rule: str) -> str:
    """Return what a failing test says: the rule, what to do, and every place that breaks it."""
    return "\n  ".join([rule, *faults])
