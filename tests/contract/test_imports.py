"""Who may import whom: the dependencies of docs/architecture.md, held."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest
from sources import ROOT, Import, Source, at, core, plugin, plugin_folders, sample, within

import gw
import gw.testing

MAY_IMPORT = {
    # what an exchange is
    "version": "",
    "limits": "",
    "figures": "limits",
    "filters": "",
    "keys": "filters",
    "failures": "",
    "hookspecs": "",
    # protocols, and the only I/O
    "http": "filters limits",
    "net": "limits",
    # what a configuration becomes
    "patterns": "http limits",
    "routing": "filters http patterns",
    "around": "filters keys",
    "peers": "failures filters",
    "silence": "net",
    "tunnel": "filters http limits net silence",
    "websocket": "filters http limits net silence tunnel",
    "upgrade": "failures filters hookspecs http tunnel websocket",
    "bodies": "failures filters peers",
    "handlers": "bodies filters hookspecs limits peers",
    "chain": "around bodies failures filters handlers hookspecs http limits peers upgrade",
    "plugins": "hookspecs version",
    "config": "hookspecs http keys limits plugins",
    # the two sides of an exchange, which do not know one another
    "downstream": "failures filters http keys limits net",
    "upstream": "failures filters http keys limits net",
    # what holds it together
    "logs": "filters keys limits",
    "services": "config figures http keys limits net upstream",
    "terms": "config downstream http limits tunnel",
    "applications": "failures filters http limits websocket",
    "context": "config figures keys limits services tunnel upstream",
    "pools": "config context figures http net services upstream",
    "compiler": "applications around chain config context filters hookspecs keys patterns routing services terms tunnel upstream",
    "described": "around compiler config context filters hookspecs routing terms",
    "generation": "applications chain compiler config context filters hookspecs http keys limits net pools routing services terms tunnel upstream",
    "request_ids": "filters limits",
    "status": "figures filters hookspecs version",
    "listening": "config keys net",
    "gateway": "applications chain compiler config context downstream figures filters generation hookspecs http keys limits listening logs net request_ids status terms websocket",
    "served": "config downstream gateway keys",
    "ops": "config described figures filters gateway hookspecs http limits logs net status version",
    # what people start
    "echo": "filters http limits net",
    "testing": "around chain config failures filters gateway http keys limits net plugins tunnel",
    "cli": "config described hookspecs http limits ops plugins status version",
    "__main__": "cli",
    "": "figures filters hookspecs keys version",
}
"""Part of gw to the other parts it may import; types aside. The empty part is `gw/__init__.py`."""

INSIDE_FUNCTIONS: dict[tuple[str, str], str] = {}
"""(module, what it imports inside a function) to the reason why it cannot stand at the top."""

ONLY_IN = {
    "asyncio": (("gw.net.on_asyncio",), "use anyio; what only asyncio can do is gw.net.on_asyncio's business"),
    "hypothesis": ((), "gw.testing is shipped to users, and works with any test framework"),
    "pytest": ((), "gw.testing is shipped to users, and works with any test framework"),
    "trio": ((), "use anyio"),
    "uvloop": ((), "the loop is chosen in gw.ops.loops, by name"),
    "pluggy": (("gw.hookspecs", "gw.plugins"), "call plugins through gw.plugins.PluginSet"),
    "yaml": (("gw.config.document",), "configurations are read by gw.config.document"),
    "click": (("gw.cli", "gw.echo"), "only what is started from a terminal talks to it"),
    "pydantic": (
        ("gw.config", "gw.hookspecs"),
        "models are for loading; hot code reads slotted objects made from them",
    ),
    "h11": (
        ("gw.http.pure", "gw.testing"),
        "engines are reached through gw.http.engines; only tests read with another parser",
    ),
    "httptools": (("gw.http.llhttp",), "engines are reached through gw.http.engines"),
    "h2": (("gw.http.hyper",), "engines are reached through gw.http.engines"),
    "ngh2": (("gw.http.nghttp2",), "engines are reached through gw.http.engines"),
}
"""Library to the modules or packages of gw that may import it, and what others do instead."""

DOES_IO = frozenset({"anyio", "asyncio", "select", "selectors", "socket", "ssl", "subprocess", "threading", "trio"})


def imported(source: Source, each: Import) -> Iterator[str]:
    """Yield the modules that an import names: ``from gw import plugins`` is ``gw.plugins``."""
    modules = {other.module for other in core()}
    inner = [f"{each.module}.{name}" for name in each.names if f"{each.module}.{name}" in modules]
    if inner:
        yield from inner
    else:
        yield each.module


def test_every_part_imports_only_the_parts_below_it():
    faults = []
    for source in core():
        allowed = MAY_IMPORT.get(source.part)
        if allowed is None:
            faults.append(
                f"{source.at()}: {source.part} is new; give it a line in MAY_IMPORT, and in docs/architecture.md"
            )
            continue
        for each in source.imports:
            for module in imported(source, each):
                part = module.removeprefix("gw").removeprefix(".").partition(".")[0]
                if within(module, "gw") and not each.for_types and part not in {*allowed.split(), source.part}:
                    faults.append(f"{source.at(each.line)}: {source.part or 'gw'} imports {module}")
    assert not faults, at(
        faults,
        "dependencies point one way (MAY_IMPORT). Move what is needed down to a part that both may import, "
        "or hand it in as an argument; a new arrow needs a reason in docs/architecture.md:",
    )


def test_the_table_of_parts_has_no_circle_and_no_part_that_is_gone():
    parts = {source.part for source in core()}
    gone = [part for part in MAY_IMPORT if part not in parts and part != "echo"]
    assert not gone, at(gone, "parts in MAY_IMPORT that do not exist any more; remove their lines:")
    left = {part: set(allowed.split()) & set(MAY_IMPORT) for part, allowed in MAY_IMPORT.items()}
    while free := [part for part, needs in left.items() if not needs & set(left)]:
        for part in free:
            del left[part]
    assert not left, at(left, "these parts of MAY_IMPORT wait for one another; one arrow has to go:")


def test_no_module_is_in_a_circle_of_imports():
    needs = {
        source.module: {m for each in source.imports if not each.for_types for m in imported(source, each)}
        for source in core()
    }
    # A package's own module imports what is in it: that is how public names are gathered.
    left = {name: {other for other in found if other in needs and other != name} for name, found in needs.items()}
    while free := [name for name, found in left.items() if not found & set(left)]:
        for name in free:
            del left[name]
    assert not left, at(left, "these modules import one another in a circle; split off what both need:")


def test_imports_stand_at_the_top_of_a_module():
    faults = [
        f"{source.at(each.line)}: {each.module} in {each.inside}()"
        for source in [*core(), *(source for folder in plugin_folders() for source in plugin(folder))]
        for each in source.imports
        if each.inside and not each.late and (source.module, each.module) not in INSIDE_FUNCTIONS
    ]
    assert not faults, at(
        faults,
        "an import inside a function hides a dependency. Move it to the top; if it must be late, use "
        "importlib.import_module with a comment that says why, or add it to INSIDE_FUNCTIONS with the reason:",
    )


def test_a_library_is_imported_only_where_it_belongs():
    faults = []
    for source in core():
        for each in source.imports:
            library = each.module.partition(".")[0]
            places, instead = ONLY_IN.get(library, (("gw",), ""))
            if not each.for_types and not any(within(source.module, place) for place in places):
                faults.append(f"{source.at(each.line)}: imports {library}; {instead}")
    assert not faults, at(faults, "libraries have their places (ONLY_IN):")


def test_protocols_do_no_input_or_output():
    faults = [
        f"{source.at(each.line)}: imports {each.module}"
        for source in core()
        if source.part in {"http", "figures", "filters", "keys", "routing", "patterns", "around"}
        for each in source.imports
        if each.module.partition(".")[0] in DOES_IO
    ]
    assert not faults, at(
        faults, "gw.http and what it stands on do no I/O; take bytes, return bytes, and let gw.net move them:"
    )


def test_nothing_is_imported_relative_to_where_it_stands():
    faults = [
        f"{source.at(each.line)}: from {each.module}"
        for source in [*core(), *(source for folder in plugin_folders() for source in plugin(folder))]
        for each in source.imports
        if each.module.startswith(".")
    ]
    assert not faults, at(faults, "write the whole name, so that a search finds every user of a module:")


def test_the_core_knows_no_plugin():
    faults = [
        f"{source.at(each.line)}: imports {each.module}"
        for source in core()
        for each in source.imports
        if each.module.startswith("gw_")
    ]
    assert not faults, at(faults, "gw imports no gw_*: what a plugin finds out is shared through a Key in gw.keys:")


def test_a_plugin_imports_public_names_of_gw_and_no_other_plugin():
    public = {"gw": set(gw.__all__), "gw.testing": set(gw.testing.__all__)}
    faults = []
    for source in [*(source for folder in plugin_folders() for source in plugin(folder)), *sample()]:
        for each in source.imports:
            library = each.module.partition(".")[0]
            if library == "gw":
                names = set(each.names) - public.get(each.module, set())
                if each.module not in public or names or not each.names:
                    faults.append(f"{source.at(each.line)}: {', '.join(sorted(names)) or each.module} of {each.module}")
            elif library.startswith("gw_") and library != source.module.partition(".")[0]:
                faults.append(f"{source.at(each.line)}: {each.module} of another plugin")
    assert not faults, at(
        faults,
        "a plugin lives on gw.__all__ and gw.testing.__all__, as anyone's does. Use those names, share through a Key, "
        "or make the name public for everyone:",
    )


# --- what an import brings --------------------------------------------------------------------------

MODULES_OF = {
    "bcrypt": "bcrypt",
    "uvloop": "uvloop",
    "httptools": "httptools",
    "ngh2": "ngh2",
    "PyJWT": "jwt",
    "cryptography": "cryptography",
    "httpcore": "httpcore",
    "prometheus-client": "prometheus_client",
    "coredis": "coredis",
    "dnspython": "dns",
    "rich": "rich",
}
"""Distribution in an extra to the module that it brings."""


def extras() -> set[str]:
    """Return the names of the distributions that only an extra asks for."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        groups = tomllib.load(file)["project"]["optional-dependencies"]
    listed = [each for name, group in groups.items() if name not in {"all", "test"} for each in group]
    return {each.partition(">")[0] for each in listed}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_library_of_an_extra_is_known_here():
    unknown = extras() ^ MODULES_OF.keys()
    assert not unknown, at(unknown, "pyproject.toml's extras and MODULES_OF differ; write down which module it brings:")


def test_importing_gw_brings_no_library_at_all():
    loaded = json.loads(run("import gw, sys, json; print(json.dumps(sorted(sys.modules)))"))
    slow = sorted({"anyio", "click", "h11", "pluggy", "pydantic", "yaml", *MODULES_OF.values()} & set(loaded))
    assert not slow, at(slow, "import gw must be quick; fetch these in gw.__getattr__ when somebody asks for them:")


def test_no_part_of_gw_brings_a_library_of_an_extra():
    chosen = {"gw.cli.live", "gw.http.llhttp", "gw.http.nghttp2", "gw.net.stub", "gw.__main__"}
    modules = [source.module for source in core() if source.module not in chosen]
    code = f"import {', '.join(modules)}, sys, json; print(json.dumps(sorted(sys.modules)))"
    found = sorted(set(MODULES_OF.values()) & set(json.loads(run(code))))
    assert not found, at(found, "these belong to extras and are not always there; import them where they were chosen:")


def test_gw_serves_without_any_extra():
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in MODULES_OF.values())
    code = f"import sys\n{blocked}from gw.http.engines import choose\nfrom gw.gateway import Gateway\n"
    # find_spec of a blocked module raises; what counts is that the pure engine needs none of them.
    assert run(f"{code}print(choose('pure').name)").strip() == "h11"


def test_a_name_that_gw_does_not_have_is_refused_with_where_to_look():
    with pytest.raises(AttributeError, match=r"module 'gw' has no attribute 'Filtre'; its names are in gw.__all__"):
        _ = gw.Filtre


def test_the_public_names_are_there_and_typed():
    missing = [name for name in gw.__all__ if not hasattr(gw, name)]
    assert not missing, at(missing, "names of gw.__all__ that gw does not have:")
    tree = ast.parse((ROOT / "core" / "gw" / "__init__.py").read_text(encoding="utf-8"))
    said = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    untyped = sorted(set(gw.__all__) - said)
    assert not untyped, at(untyped, "names that no import statement in gw/__init__.py shows to type checkers:")
