import importlib.metadata
import re
import subprocess
import sys

import pytest

from gw.cli import main
from gw.version import __version__


def imported(*arguments):
    """What calling gw imports, of what is expensive."""
    code = (
        "import sys, runpy; before = set(sys.modules); sys.argv = ['gw', *sys.argv[1:]]\n"
        "try: runpy.run_module('gw', run_name='__main__')\n"
        "except SystemExit: print('\\n'.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True, timeout=60
    )
    return set(done.stdout.splitlines())


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",), ("-h",)])
def test_how_it_is_called_is_no_error(gw, arguments):
    result = gw(*arguments)
    assert result.exit_code == 0
    assert result.output.startswith("Usage: gw [OPTIONS] [COMMAND]")
    for command in main.COMMANDS:
        assert re.search(rf"^  {command}  +\w", result.output, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("frobnicate",), "Error: No such command 'frobnicate'."),
        (("version", "extra"), "Error: Got unexpected extra argument (extra)"),
        (("version", "-p", "1"), "Error: No such option"),
        (("help", "serve"), "Error: Got unexpected extra argument (serve)"),
        (("-v", "version"), "Error: --version stands alone, without a command; the command is 'gw version'"),
        (("--frobnicate",), "Error: No such option"),
    ],
)
def test_a_wrong_call_exits_with_2(gw, arguments, message):
    result = gw(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [("version",), ("-v",), ("--version",)])
def test_the_version_is_one_line(gw, arguments):
    result = gw(*arguments)
    assert (result.exit_code, result.output) == (0, f"gw {__version__}\n")


@pytest.mark.parametrize("arguments", [("version", "-V"), ("-V",), ("--version-verbose",)])
def test_the_long_version_says_what_is_in_use(gw, arguments):
    result = gw(*arguments)
    assert result.exit_code == 0
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in result.output.splitlines()[1:])
    assert facts["engine"] in {"llhttp", "h11"}
    assert facts["loop"] in {"uvloop", "asyncio"}
    assert facts["pydantic"] == importlib.metadata.version("pydantic")


def test_the_long_version_says_what_is_not_installed(gw, monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("gw.cli.version.version", version)
    monkeypatch.setattr("gw.cli.version.find_spec", lambda name: None)
    output = gw("version", "-V").output
    assert re.search(r"^loop +asyncio$", output, re.MULTILINE)
    assert re.search(r"^uvloop +not installed$", output, re.MULTILINE)


def test_start_is_serve(gw):
    assert gw("start", "--help").output == gw("serve", "--help").output.replace("gw serve", "gw start")


def test_a_short_command_imports_neither_the_configuration_nor_the_gateway():
    modules = imported("version")
    assert "gw.cli.version" in modules
    assert not modules & {"anyio", "yaml", "gw.config.model", "gw.gateway", "gw.cli.serve"}


def test_a_plugin_adds_its_commands(gw, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "gwt_greeter.py").write_text(
        "import click\nfrom gw import hookimpl\nGW_API = 1\n"
        "@hookimpl\ndef gw_commands(cli):\n"
        "    @cli.command('greet')\n    def greet():\n        click.echo('hello')\n"
    )
    (tmp_path / "gw.yaml").write_text("plugins: ['python:gwt_greeter']\n")
    monkeypatch.setattr(main.cli, "commands", {})
    result = gw("greet", environ={"GW_CONFIG": "gw.yaml"})
    assert (result.exit_code, result.output) == (0, "hello\n")
    sys.modules.pop("gwt_greeter")


def test_a_plugin_that_cannot_be_asked_for_a_command_is_named(gw, tmp_path):
    (tmp_path / "gw.yaml").write_text("plugins: [nope]\n")
    result = gw("greet", environ={"GW_CONFIG": "gw.yaml"})
    assert result.exit_code == 2
    assert "Error: No such command 'greet', and plugins could not be asked for it:\ngw.yaml:1:11: " in result.stderr
