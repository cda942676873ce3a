"""Runs the documentation: Python is executed, YAML is loaded and its chains compiled, `gw` commands are compared with their output."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from types import ModuleType

import anyio
import click
import pytest
from click.testing import CliRunner
from pages import LANGUAGES, ROOT, Block, blocks, pages

from gw.cli.main import cli
from gw.config.load import load
from gw.described import describe
from gw.plugins import PluginSet

ENVIRONMENT = {"API_HOST": "api.internal", "PORT": "8080"}
"""What the pages may refer to as ``${NAME}``."""

FILES = {
    "api.key": "secret\n",
    "client.secret": "secret\n",
    "htpasswd": "ali:$2b$04$v64JumaVzrIgX4W5O7.x8OnBvuHexUTecEqGhtDSI0cQfJOuEb.Va\n",
} | dict.fromkeys(
    ("gw.pem", "gw.key", "wild.pem", "wild.key", "ca.pem", "own.pem", "own.key"),
    "a file of TLS, which is not looked into",
)
"""What the pages may refer to as ``{file: NAME}``."""

PLUGIN_OF = {ROOT / "tests" / "sample_plugin" / "README.md": ("sunset", "gw_sample")}
"""Pages about a plugin that is not installed here: its name and its module."""


PAGES = [page for page in pages() if blocks(page)]


class Reader:
    """Follows one page from its first block to its last, in a folder of its own."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.module = ModuleType(f"page_{page.stem.replace('-', '_')}")
        sys.modules[self.module.__name__] = self.module
        for block in blocks(page):  # all of them: the files of a package need one another
            if block.file is not None:
                path = folder / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")

    def read(self, block: Block) -> None:
        if block.language == "python":
            self.run(block)
        elif block.language == "yaml":
            self.configure(block)
        elif block.language == "console":
            self.type(block)

    def run(self, block: Block) -> None:
        if block.file is not None:
            importlib.invalidate_caches()
            name = block.file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            names = vars(importlib.import_module(name))
        else:
            names = vars(self.module)
            before = dict(names)
            # The lines before it are empty, so that a traceback shows the line of the page.
            exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)
            names = {name: value for name, value in names.items() if before.get(name) is not value}
        for name, value in names.items():
            if name.startswith("test_") and inspect.isfunction(value):
                if inspect.iscoroutinefunction(value):
                    anyio.run(value)
                else:
                    value()

    def configure(self, block: Block) -> None:
        path = self.folder / (block.file or "block.yaml")
        if block.file is None:
            path.write_text(block.text, encoding="utf-8")
        plugins = None
        if self.page in PLUGIN_OF:
            name, module = PLUGIN_OF[self.page]
            plugins = PluginSet()
            plugins.add(name, importlib.import_module(module))
        loaded = load(path, environ=ENVIRONMENT, plugins=plugins)
        assert not loaded.warnings, f"{block.place}: {loaded.warnings[0]}"
        describe(loaded)

    def type(self, block: Block) -> None:
        lines = iter(block.text.splitlines())
        for command, expected in conversations(lines):
            words = shlex.split(command)
            if words[0].startswith("scripts/"):
                assert (ROOT / words[0]).is_file(), f"{block.place}: there is no {words[0]}"
            if words[0] != "gw" or has_a_gateway(words[1:], block):
                continue
            result = CliRunner().invoke(cli, words[1:], prog_name="gw", env=ENVIRONMENT)
            assert result.exception is None or isinstance(result.exception, SystemExit), (
                f"{block.place}: {result.exception!r}"
            )
            if expected:
                shown = result.output.rstrip("\n")
                pattern = "\n".join("*" if line == "..." else re.sub(r"([*?[])", r"[\1]", line) for line in expected)
                assert fnmatchcase(shown, pattern), (
                    f"{block.place}: $ {command}\nprints\n{shown}\nnot\n{chr(10).join(expected)}"
                )
            else:
                assert result.exit_code == 0, f"{block.place}: $ {command}\n{result.output}"


def has_a_gateway(words: list[str], block: Block) -> bool:
    """Tell whether a command runs a gateway, or asks one that runs: here it is only seen to exist, and to take these words."""
    command, name, context = cli, "gw", click.Context(cli, info_name="gw")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"{block.place}: there is no command {name!r}"
        command, context = found, click.Context(found, context, info_name=name)
    if name == "validate" or not any(each.name == "pid_file" for each in command.params):
        return False
    command.make_context(name, [*words], parent=context.parent)
    return True


def conversations(lines: Iterator[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each command after ``$``, and the lines that it prints."""
    rest = list(lines)
    while rest:
        command = rest.pop(0)
        assert command.startswith("$ "), f"a console block has commands after '$ ', not {command!r}"
        printed = list(takewhile(lambda line: not line.startswith("$ "), rest))
        del rest[: len(printed)]
        yield command.removeprefix("$ "), printed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)) or name.startswith("page_"):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_works(page, folder, monkeypatch):
    if page in PLUGIN_OF:
        monkeypatch.syspath_prepend(page.parent)
    reader = Reader(page, folder)
    for block in blocks(page):
        reader.read(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page):
    faults = [f"{block.place}: {block.language!r}" for block in blocks(page) if block.language not in LANGUAGES]
    assert not faults, f"say python, yaml, console or text after the backticks, so that it can be run: {faults}"
