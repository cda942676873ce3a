import importlib
import sys
from types import ModuleType

import pytest

from gw import Section, Sections, hookimpl, plugins
from gw.plugins import Available, PluginError, PluginSet, available, load, standard


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution with one plugin on the path, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, module, source="GW_API = 1\n", *, distribution="sample", version="1.2", metadata=""):
        information = tmp_path / f"{distribution}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{metadata}"
        )
        (information / "entry_points.txt").write_text(f"[gw.plugins]\n{name} = {module}\n")
        if source is not None:
            (tmp_path / f"{module}.py").write_text(source)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, module, raising=False)

    yield install
    for module in [name for name in sys.modules if name.startswith("gwt_")]:
        del sys.modules[module]


def module(**contents):
    made = ModuleType("sample")
    made.GW_API = 1
    for name, value in contents.items():
        setattr(made, name, value)
    return made


def section_hook(sections):
    def gw_sections():
        return sections

    return hookimpl(gw_sections)


def refusal(name, made=None, *, after=None):
    found = PluginSet() if after is None else after
    with pytest.raises(PluginError) as caught:
        found.add(name, made)
    return str(caught.value)


# --- finding ---------------------------------------------------------------------------------


def test_listing_tells_the_distribution_and_imports_nothing(install):
    install("one", "gwt_one", "raise AssertionError('imported')")
    assert Available("one", "gwt_one", "sample", "1.2") in available()
    assert "gwt_one" not in sys.modules


def test_only_what_is_named_is_imported(install):
    install("one", "gwt_one", distribution="first")
    install("two", "gwt_two", "raise AssertionError('imported')", distribution="second")
    assert load(["one"]).names == ("one",)
    assert "gwt_two" not in sys.modules


def test_our_own_plugins_come_in_their_standard_order(monkeypatch):
    names = ["rewrite", "auth", "zeta", "otel", "alpha"]
    installed = [Available(name, name, "gw", "1") for name in names] + [Available("other", "other", "third-party", "1")]
    monkeypatch.setattr(plugins, "available", lambda: tuple(installed))
    assert standard() == ("otel", "auth", "rewrite", "alpha", "zeta")


def test_our_own_plugins_are_installed_with_gw():
    assert "rewrite" in standard()


def test_what_is_installed_while_the_process_runs_is_found(install):
    install("one", "gwt_one", distribution="first")
    names = {each.name for each in available()}
    install("two", "gwt_two", distribution="second")
    assert {each.name for each in available()} == {*names, "two"}


def test_distributions_are_looked_at_once(monkeypatch):
    available()
    monkeypatch.setattr(plugins, "entry_points", None)
    assert "rewrite" in standard()


def test_a_module_needs_no_distribution(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "gwt_package").mkdir()
    (tmp_path / "gwt_package" / "inner.py").write_text("GW_API = 1\n")
    loaded = load(["python:gwt_package.inner"])
    assert loaded["python:gwt_package.inner"].module is sys.modules["gwt_package.inner"]


# --- refusing --------------------------------------------------------------------------------


def test_a_name_that_is_not_installed_is_refused_with_the_one_that_was_meant(install):
    install("limiter", "gwt_limiter")
    assert refusal("limitr") == "no plugin 'limitr' is installed; did you mean 'limiter'?"


def test_a_name_like_no_other_is_refused_with_what_is_installed(monkeypatch):
    monkeypatch.setattr(plugins, "_installed", dict)
    assert refusal("xyz") == (
        "no plugin 'xyz' is installed; installed: none; a module of no distribution is named 'python:package.module'"
    )


def test_two_distributions_with_one_name_are_refused_by_name_only(install):
    install("one", "gwt_one", distribution="first")
    install("one", "gwt_other", distribution="second")
    install("two", "gwt_two", distribution="third")
    assert refusal("one") == (
        "two installed distributions call a plugin 'one': gwt_one of first 1.2 and gwt_other of second 1.2; uninstall one"
    )
    assert load(["two"]).names == ("two",)


def test_a_missing_library_is_named_with_the_extra_that_has_it(install):
    source = "GW_API = 1\nimport gwt_jwt\n"
    install("tokens", "gwt_tokens", source, metadata="Provides-Extra: other\nProvides-Extra: tokens\n")
    assert (
        refusal("tokens")
        == "plugin 'tokens' needs the module 'gwt_jwt', which is not installed; pip install 'sample[tokens]'"
    )


def test_a_missing_library_without_an_extra_is_named(install):
    install("tokens", "gwt_tokens", "GW_API = 1\nimport gwt_jwt\n")
    assert refusal("tokens") == (
        "plugin 'tokens' needs the module 'gwt_jwt', which is not installed; install the distribution that has it"
    )


def test_a_module_that_is_not_there_is_named(install):
    install("gone", "gwt_gone", None)
    assert refusal("gone") == "plugin 'gone': there is no module 'gwt_gone' to import"
    assert refusal("python:gwt_nowhere.at_all") == (
        "plugin 'python:gwt_nowhere.at_all': there is no module 'gwt_nowhere.at_all' to import"
    )


def test_a_module_that_fails_is_refused_with_its_error(install):
    install("broken", "gwt_broken", "GW_API = 1\n1 / 0\n")
    assert refusal("broken") == "plugin 'broken': importing gwt_broken raised ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("GW_API = 2", "plugin 'one' (gwt_one of sample 1.2) is made for plugin API 2; this gateway speaks 1"),
        (
            "",
            "plugin 'one' (gwt_one of sample 1.2) does not say which plugin API it is made for; add GW_API = 1 to its module",
        ),
    ],
)
def test_a_plugin_for_another_api_is_refused(install, source, message):
    install("one", "gwt_one", source)
    assert refusal("one") == message


def test_a_hook_that_does_not_exist_is_refused():
    def gw_filtres(route, ctx):
        return ()

    def gw_xyz():
        return ()

    assert refusal("one", module(gw_filtres=hookimpl(gw_filtres))) == (
        "plugin 'one' implements gw_filtres, which is no hook; did you mean gw_filters?"
    )
    assert refusal("one", module(gw_xyz=hookimpl(gw_xyz))).startswith(
        "plugin 'one' implements gw_xyz, which is no hook; the hooks are gw_sections, gw_filters, "
    )


def test_a_hook_with_arguments_that_do_not_exist_is_refused():
    def gw_filters(route, context):
        return ()

    told = refusal("one", module(gw_filters=hookimpl(gw_filters)))
    assert told.startswith("plugin 'one': ")
    assert "context" in told


def test_a_hook_that_would_never_be_called_is_refused():
    assert refusal("one", module(gw_filters=lambda route, ctx: ())) == (
        "plugin 'one': gw_filters would never be called; put @gw.hookimpl above it"
    )


def test_one_section_has_one_owner():
    found = PluginSet()
    found.add("one", module(gw_sections=section_hook(Sections("limits"))))
    assert refusal("two", module(gw_sections=section_hook(Sections("limits"))), after=found) == (
        "plugin 'two' owns the section 'limits', which plugin 'one' owns already"
    )
    assert found.owner("limits") is found["one"]
    assert found.owner("other") is None


def test_sections_must_be_what_they_are_said_to_be():
    assert refusal("one", module(gw_sections=section_hook({"name": Section}))) == (
        "plugin 'one': gw_sections must return gw.Sections, not dict"
    )
    assert refusal("one", module(gw_sections=section_hook(Sections("one", route=dict)))) == (
        "plugin 'one': its settings must be classes made from gw.Section, not <class 'dict'>"
    )


def test_sections_that_fail_are_refused_with_the_error():
    def gw_sections():
        raise LookupError("no")

    assert (
        refusal("one", module(gw_sections=hookimpl(gw_sections))) == "plugin 'one': gw_sections raised LookupError: no"
    )


def test_a_plugin_is_loaded_once():
    found = PluginSet()
    made = module()
    found.add("one", made)
    assert refusal("one", made, after=found) == "plugin 'one' is named twice"
    assert refusal("two", made, after=found) == "plugin 'two' is the same module as plugin 'one'"


def test_a_refused_plugin_leaves_nothing_behind():
    def gw_stats(ctx):
        return {"from": "one"}

    def gw_nothing():
        return None

    found = PluginSet()
    broken = module(gw_stats=hookimpl(gw_stats), gw_nothing=hookimpl(gw_nothing))
    refusal("one", broken, after=found)
    assert (found.names, len(found), "one" in found) == ((), 0, False)
    del broken.gw_nothing
    found.add("one", broken)
    assert found.call("one", "gw_stats", ctx=None) == {"from": "one"}


# --- calling ---------------------------------------------------------------------------------


def stats(name):
    def gw_stats():
        return {"from": name}

    return hookimpl(gw_stats)


def test_a_call_reaches_one_plugin_alone():
    found = PluginSet()
    found.add("one", module(gw_stats=stats("one")))
    assert found.call("one", "gw_stats", ctx=None) == {"from": "one"}
    found.add("two", module(gw_stats=stats("two")))
    found.add("silent", module())
    assert [found.call(name, "gw_stats", ctx=None) for name in found.names] == [{"from": "one"}, {"from": "two"}, None]


def test_the_order_is_that_of_the_names():
    found = PluginSet()
    for name in ("b", "a", "c"):
        found.add(name, module())
    assert [plugin.name for plugin in found] == ["b", "a", "c"]
    assert repr(found) == "<PluginSet b, a, c>"
    assert repr(PluginSet()) == "<PluginSet empty>"
