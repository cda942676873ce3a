"""``gw version``: which gw this is, and what it runs on."""

from __future__ import annotations

import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import click

from gw.version import API, __version__

__all__ = ["command"]

LIBRARIES = ("anyio", "click", "h11", "httptools", "ngh2", "pluggy", "pydantic", "PyYAML", "trio", "uvloop")


@click.command("version")
@click.option("-V", "--verbose", is_flag=True, help="Also the engine, the event loop and the libraries.")
def command(verbose: bool) -> None:
    """Print the version."""
    click.echo(f"gw {__version__}")
    if not verbose:
        return
    facts = [
        ("plugin API", str(API)),
        ("engine", import_module("gw.http.engines").choose("auto").name),
        ("loop", "uvloop" if find_spec("uvloop") else "asyncio"),
        ("Python", f"{platform.python_version()} ({platform.python_implementation()}, {platform.platform()})"),
        *((library, _installed(library)) for library in LIBRARIES),
    ]
    width = max(len(name) for name, _ in facts)
    for name, fact in facts:
        click.echo(f"{name.ljust(width)}  {fact}")


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
