"""Names, sizes, limits and tests: the rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sources import CORE, ROOT, Source, at, core, everything, files_of_tests, plugin, plugin_folders, within

import gw.limits
from gw.config.model import GatewayConfig

LONGEST = 700
"""Lines of one file. What grows past it usually holds two kinds of knowledge."""

VAGUE = re.compile(r"(?:^|_)(?:utils?|helpers?|managers?|base|common|misc|stuff)(?:_|$)")
VAGUE_CLASS = re.compile(r"(?:Utils?|Helpers?|Manager|Base)(?=[A-Z]|$)")

UNFINISHED = re.compile("TO[D]O|FIX[M]E|X[X]X|HA[C]K")

TEXT = {".cfg", ".conf", ".json", ".lua", ".md", ".py", ".toml", ".yaml", ""}
"""Endings of the files that people write."""


FOLDERS = (".ci", "config", "core", "docs", "plugins", "scripts", "tests")


def files() -> list[Path]:
    """Return what people wrote; the licence is somebody else's."""
    inside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    found = [path for path in [*ROOT.glob("*"), *inside] if path.suffix in TEXT and path.is_file()]
    return [path for path in found if path.name != "LICENSE" and not path.name.startswith(".")]


# --- modules -------------------------------------------------------------------------------------------


def test_modules_and_classes_are_named_for_what_they_hold():
    faults = [source.at() for source in everything() if any(map(VAGUE.search, source.module.split(".")))]
    faults += [
        f"{source.at(node.lineno)}: class {node.name}"
        for source in [*core(), *(source for folder in plugin_folders() for source in plugin(folder))]
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef) and VAGUE_CLASS.search(node.name)
    ]
    assert not faults, at(
        faults, "utils, helpers, manager and base hold anything; name what is in there, or put it where it is used:"
    )


def test_files_are_short_enough_to_be_read():
    sizes = ((source, source.text.count("\n")) for source in everything())
    faults = [f"{source.at()}: {lines} lines" for source, lines in sizes if lines > LONGEST]
    assert not faults, at(faults, f"more than {LONGEST} lines usually hold two kinds of knowledge; split them:")


def test_every_module_opens_by_saying_what_lives_there():
    faults = [
        source.at()
        for source in [*core(), *(source for folder in plugin_folders() for source in plugin(folder))]
        if source.text.strip() and not ast.get_docstring(source.tree)
    ]
    assert not faults, at(faults, "open with a docstring: what lives here, and what must not:")


def test_what_a_module_gives_away_is_listed():
    faults = [
        source.at()
        for source in core()
        if source.text.count("\n") > 20
        and source.part not in {"limits", "version"}
        and not any(
            isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" for node in source.tree.body
        )
    ]
    assert not faults, at(faults, "say in __all__ which names other modules may use:")


def test_unfinished_work_is_finished_or_in_the_readme():
    faults = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert not faults, at(faults, "finish it, or say in README.md that it does not work yet:")


# --- limits --------------------------------------------------------------------------------------------

KEY = re.compile(r"`([a-z][a-z0-9_.]+)`(?:\.|:)")
"""How the docstring of a limit that a user may set begins: with the key."""


def limits() -> Iterator[tuple[int, str, str]]:
    """Yield line, name and docstring of every constant in gw.limits."""
    body = ast.parse((CORE / "limits.py").read_text(encoding="utf-8")).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            yield node.lineno, ast.unparse(node.target), str(after.value.value) if is_text else ""


def test_every_limit_says_what_it_bounds_and_who_else_has_it():
    faults = [
        f"core/gw/limits.py:{line}: {name}: {text or 'nothing'}"
        for line, name, text in limits()
        if len(re.findall(r"[.;)](?:\s|$)", text)) < 2
    ]
    assert not faults, at(
        faults,
        "under each limit: one sentence for what it bounds, one for its precedent, such as what nginx or Envoy chose:",
    )


def test_every_limit_is_there_once():
    faults = [name for name, times in Counter(name for _, name, _ in limits()).items() if times > 1]
    assert not faults, at(faults, "defined twice in core/gw/limits.py, and the last one wins; keep one:")


def test_every_limit_limits_something_or_is_the_default_of_a_setting():
    used = {
        node.id if isinstance(node, ast.Name) else node.attr
        for source in core()
        if source.module != "gw.limits"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Name | ast.Attribute)
    }
    faults = []
    for line, name, text in limits():
        if (key := KEY.match(text)) is not None:
            default = GatewayConfig()
            for part in key[1].split("."):
                default = getattr(default, part)
            if default != getattr(gw.limits, name):
                faults.append(f"core/gw/limits.py:{line}: {name} is {getattr(gw.limits, name)}, {key[1]} is {default}")
        elif name not in used:
            faults.append(f"core/gw/limits.py:{line}: {name} is used nowhere")
    assert not faults, at(faults, "use these limits or remove them; one that names a key is the default of that key:")


# --- tests ---------------------------------------------------------------------------------------------

SUBSTANCE = 60
"""Lines from which a module has tests of its own."""

TESTED_ELSEWHERE = {
    "bodies": "test_chain, whose parts they are",
    "cli.serve": "tests/integration starts it",
    "cli.top": "test_status calls it without a gateway, tests/integration with one",
    "config.values": "test_model, each through a key that has it",
    "hookspecs": "declarations; test_plugins calls them, tests/docs holds their signatures",
    "http.h1": "the interface; test_readers holds both engines to it",
    "http.write": "unit/downstream and unit/upstream see its bytes",
    "ops.alone": "tests/integration/test_operations, as are the next three: processes are tested as processes",
    "ops.process": "as ops.alone",
    "ops.supervisor": "as ops.alone",
    "ops.worker": "as ops.alone",
    "net.on_anyio": "unit/net/test_stream holds every driver to one semantics, through net.network",
    "net.on_asyncio": "as net.on_anyio",
    "keys": "values without behaviour",
    "limits": "numbers; the tests above",
    "peers": "interfaces; test_chain plays them, in memory",
    "pools": "unit/ops and unit/test_generation reload, and see what stays",
}
"""Module to the reason why no test module is about it alone."""


def unit_tests() -> dict[str, Source]:
    """Return the test modules of tests/unit by what they would be called in gw: ``net.test_stream``."""
    found = {test.module.removeprefix("tests.unit."): test for test in files_of_tests()}
    return {
        name: test
        for name, test in found.items()
        if re.match(r"(?:\w+\.)*test_\w+$", name) and "unit" in test.path.parts
    }


def test_every_module_of_substance_has_its_tests():
    there = unit_tests()
    packages = Counter(source.part for source in core() if source.path.name != "__init__.py")
    faults = []
    for source in core():
        name = source.module.removeprefix("gw.")
        if source.text.count("\n") < SUBSTANCE or name in TESTED_ELSEWHERE or source.path.name == "__init__.py":
            continue
        above, _, last = name.rpartition(".")
        beside = [test for each, test in there.items() if above and each.startswith(f"{above}.")]
        mirrored = any(each.startswith(f"{above}.test_{last}" if above else f"test_{last}") for each in there)
        named = any(within(each.module, source.module) for test in beside for each in test.imports)
        of_one = bool(beside) and packages[source.part] == 1
        if not (mirrored or named or of_one or f"test_{above}" in there):
            faults.append(
                f"{source.at()}: no module in tests/unit/{above.replace('.', '/')} is named for it or imports it"
            )
    assert not faults, at(faults, "tests mirror the tree; write them, or say in TESTED_ELSEWHERE where they are:")


def test_every_unit_test_stands_where_what_it_tests_stands():
    parts = {source.part for source in core()}
    faults = []
    for name, test in unit_tests().items():
        folder, _, last = name.rpartition(".")
        subject = last.removeprefix("test_")
        mirrors = folder in parts if folder else any(subject.startswith(part) for part in parts if part)
        if not mirrors:
            faults.append(test.at())
    assert not faults, at(
        faults, "tests/unit has a folder for each package of gw and a module for each module beside them:"
    )


WAITS_FOR_PROCESSES = ("tests/bench/", "tests/integration/")
"""Where real processes run, which tell nobody when they are done: a bounded poll is allowed outside of tests proper."""


def _sleeps(source: Source) -> Iterator[ast.Call]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and re.fullmatch(r"(?:\w+\.)?sleep", ast.unparse(node.func)):
            yields = node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            if not yields:
                yield node


def test_no_test_sleeps():
    faults = [
        source.at(node.lineno)
        for source in files_of_tests()
        if source.path.name.startswith("test_") or not source.at().startswith(WAITS_FOR_PROCESSES)
        for node in _sleeps(source)
    ]
    assert not faults, at(
        faults,
        "a test that sleeps is slow when it passes and flaky when it fails. Wait for an event, "
        "for anyio.wait_all_tasks_blocked(), or move gw.testing's clock with advance():",
    )


def test_test_names_are_sentences():
    names = [
        (source, node)
        for source in files_of_tests()
        if source.path.name.startswith("test_")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    faults = [f"{source.at(node.lineno)}: {node.name}" for source, node in names if node.name.count("_") < 2]
    assert not faults, at(faults, "a test's name says what holds: test_a_reply_is_shown_only_to_the_filters_it_passed:")
