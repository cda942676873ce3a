"""``gw top``: the figures of a running gateway, again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from gw.cli.configuration import pid_file_option
from gw.cli.page import Look, as_text, page
from gw.cli.running import answer_of, asked

__all__ = ["command"]


@click.command("top")
@pid_file_option
@click.option("--every", type=click.FloatRange(min=0.2), default=1.0, show_default=True, metavar="S", help="Seconds.")
@click.option("--once", is_flag=True, help="Print the figures of one interval, and end.")
def command(pid_file: str, every: float, once: bool) -> None:
    """Show what a running gateway is doing, until Ctrl-C; once where the output is no terminal.

    In a terminal it needs rich: pip install 'gw[top]'.
    """
    path = Path(pid_file)
    before = _look(path, answer_of)
    if once or not sys.stdout.isatty():
        time.sleep(every)
        click.echo(as_text(page(before, _look(path, answer_of))))
        return
    try:
        live = import_module("gw.cli.live")
    except ModuleNotFoundError as error:
        if error.name != "rich":
            raise
        raise click.ClickException("in a terminal it needs rich: pip install 'gw[top]'; --once does not") from error
    live.show(lambda: _look(path, asked), before, every)


def _look(path: Path, ask: Callable[[Path, Mapping[str, Any]], dict[str, Any]]) -> Look:
    return Look(ask(path, {"do": "stats"}), ask(path, {"do": "status"}), time.monotonic())
