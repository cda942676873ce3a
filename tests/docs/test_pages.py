"""What the documentation must say, compared with the code: hooks, settings, commands, dependencies. And that its links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib

import pytest
from pages import ROOT, anchors, blocks, links, pages, prose
from tables import GatewayConfig, models, named, table, updated

from gw import filters, hookspecs
from gw.around import HOOKS
from gw.cli.main import cli
from gw.config.load import VARIABLES

DOCS = ROOT / "docs"


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def signatures(module, of: str | None = None) -> dict[str, str]:
    """Return the functions of *module*, or the methods of its class *of*, as they are written, without decorators or bodies."""
    body = ast.parse(inspect.getsource(module)).body
    if of is not None:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == of).body
    found = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body, node.decorator_list = [ast.Pass()], []
            found[node.name] = ast.unparse(node).removesuffix("\n    pass").removesuffix(":")
    return found


# --- plugins ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
def test_every_filter_hook_is_shown_with_its_signature(hook):
    signature = signatures(filters, "Filter")[hook]
    assert signature in text_of("writing-a-plugin.md"), f"docs/writing-a-plugin.md must say: {signature}"


def test_the_hooks_that_are_compiled_are_those_of_a_filter():
    assert {name for name in vars(filters.Filter) if name.startswith("on_")} == set(HOOKS)


PLUGIN_HOOKS = {name: signature for name, signature in signatures(hookspecs).items() if name.startswith("gw_")}


@pytest.mark.parametrize("hook", PLUGIN_HOOKS)
def test_every_plugin_hook_is_shown_with_its_signature(hook):
    signature = PLUGIN_HOOKS[hook]
    assert signature in text_of("writing-a-plugin.md"), f"docs/writing-a-plugin.md must say: {signature}"


def test_no_hook_is_shown_that_does_not_exist():
    known = {*HOOKS, *PLUGIN_HOOKS}
    shown = set(re.findall(r"\bdef ((?:on|gw)_\w+)\(", text_of("writing-a-plugin.md")))
    assert shown <= known, f"docs/writing-a-plugin.md shows hooks that gw does not call: {shown - known}"


def test_every_public_name_is_explained():
    missing = [name for name in sorted(filters.__all__) if f"`{name}" not in text_of("writing-a-plugin.md")]
    assert not missing, f"docs/writing-a-plugin.md does not mention these names of gw.filters: {missing}"


# --- settings ------------------------------------------------------------------------------------------------


def test_the_tables_of_settings_are_those_of_the_models():
    page = text_of("configuration.md")
    assert updated(page) == page, "docs/configuration.md is old; run python tests/docs/tables.py"


def test_every_setting_has_a_row():
    missing = {model.__name__ for model in models(GatewayConfig)} - named(text_of("configuration.md"))
    assert not missing, (
        f"add '<!-- settings: NAME -->' and '<!-- end of settings -->' to docs/configuration.md for {missing}"
    )


@pytest.mark.parametrize("model", list(models(GatewayConfig)), ids=lambda model: model.__name__)
def test_every_setting_is_described(model):
    missing = [name for name, field in model.model_fields.items() if not field.description]
    assert not missing, f"put a docstring under these keys of {model.__name__}: {missing}"


def test_a_table_says_what_is_allowed():
    model = next(model for model in models(GatewayConfig) if model.__name__ == "EndpointConfig")
    assert table(model).splitlines()[2:] == [
        "| `host` | text | none | Address or host name. |",
        "| `port` | integer, 1 to 65535 | `80` | TCP port. |",
        "| `weight` | integer, 1 to 65535 | `1` | Its share of the requests, among the upstream's endpoints. |",
        "| `priority` | integer, 0 to 127 | `0` | Its tier: those of a higher number get requests while too few of the lower ones are healthy. |",
        "| `srv` | text | none | Instead of an address, a service such as `_http._tcp.example.com`: each target that the DNS names is an endpoint, with its port, weight and priority (RFC 2782). |",
        "| `asgi` | text | none | Instead of an address, an ASGI application in this process, such as `package.module:app`: the only endpoint. |",
    ]


@pytest.mark.parametrize("variable", sorted(VARIABLES))
def test_every_environment_variable_has_a_row(variable):
    row = f"| `GW_{variable}` | `{'.'.join(map(str, VARIABLES[variable]))}` |"
    assert row in text_of("configuration.md"), f"docs/configuration.md must have a row that begins {row}"


@pytest.mark.parametrize("command", cli.list_commands(None))
def test_every_command_is_explained(command):
    assert f"| `gw {command}` |" in text_of("configuration.md"), f"docs/configuration.md has no row for gw {command}"


# --- dependencies ------------------------------------------------------------------------------------------------


def dependencies() -> set[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    listed = [
        *project["dependencies"],
        *(each for group in project["optional-dependencies"].values() for each in group),
    ]
    return {re.split(r"[<>=;\[ ]", each)[0] for each in listed} - {"gw"}


def test_every_dependency_has_its_reason():
    rows = set(re.findall(r"^\| `([\w-]+)` \|", text_of("dependencies.md"), re.MULTILINE))
    assert rows == dependencies(), f"docs/dependencies.md and pyproject.toml differ in {rows ^ dependencies()}"


# --- the pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    faults = []
    for line, target in links(page):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists():
            faults.append(f"{page.name}:{line}: there is no {path}")
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            faults.append(f"{page.name}:{line}: {there.name} has no heading {anchor}")
    assert not faults, faults


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_linked_from_the_readme(page):
    targets = {target for _, target in links(ROOT / "README.md")}
    assert f"docs/{page.name}" in targets, f"README.md does not lead to docs/{page.name}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_one_sentence_stands_on_one_line(page):
    # A capital after a full stop; not in tables and lists, whose items are lines, nor after what is no end.
    faults = [
        f"{page.name}:{line}: {text}"
        for line, text in prose(page)
        if re.search(r"[a-z)`]\. [A-Z]", text) and not re.match(r"\s*(?:[|>*-]|\d+\.| {4})", text)
    ]
    assert not faults, f"one sentence a line, so that a change is a line: {faults}"


def test_tests_named_in_the_pages_exist():
    faults = [
        f"{page.relative_to(ROOT)}:{line}: {path}"
        for page in pages()
        for line, text in prose(page)
        for path in re.findall(r"`((?:tests|core|config|scripts|docs)/[\w./-]+|plugins/[a-z][\w./-]*)`", text)
        if not (ROOT / path.rstrip("/")).exists()
    ]
    assert not faults, f"the pages name files that are not there: {faults}"


def test_tests_that_the_pages_refer_to_exist():
    known = set()
    for path in [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("plugins/*/tests/test_*.py")]:
        known |= {
            path.stem,
            *re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE),
        }
    faults = [
        f"{page.relative_to(ROOT)}:{line}: {name}"
        for page in pages()
        for line, text in prose(page)
        for name in re.findall(r"`(test_\w+)`", text)
        if name not in known
    ]
    assert not faults, f"the pages refer to tests that are not there; name the ones that show it now: {faults}"


def test_a_page_without_blocks_is_no_mistake_of_the_reader():
    assert any(blocks(DOCS / "routing.md")), "the reader of pages finds no blocks where there are some"
