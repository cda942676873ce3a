"""``gw reload``: have a running gateway read its configuration again, and say how it went."""

from __future__ import annotations

import re
from pathlib import Path

import click

from gw.cli.configuration import pid_file_option
from gw.cli.running import answer_of

__all__ = ["command"]

PATIENCE = 180.0
"""Seconds: a configuration of 100,000 routes takes some ten to load, in each worker."""


def _seconds(ctx: click.Context, parameter: click.Parameter, text: str | None) -> float:
    if text is None:
        return 0.0
    match = re.fullmatch(r"([0-9]{1,6})(s|m|h)?", text)
    if match is None or not int(match[1]):
        raise click.BadParameter(f"{text!r} is not a time, such as 60s or 5m", ctx, parameter)
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2] or "s"]


@click.command("reload")
@pid_file_option
@click.option(
    "--confirm-within", metavar="TIME", callback=_seconds, help="Undo it after so long, unless confirmed: 60s, 5m."
)
@click.option("--confirm", is_flag=True, help="Keep what the last reload brought.")
def command(pid_file: str, confirm_within: float, confirm: bool) -> None:
    """Have a running gateway read its configuration again; print what changed, or why nothing did."""
    if confirm and confirm_within:
        raise click.UsageError("--confirm confirms the last reload, and --confirm-within makes another one; use one")
    if confirm:
        generation = answer_of(Path(pid_file), {"do": "confirm"})["generation"]
        click.echo(f"Generation {generation} is confirmed.")
        return
    answer = answer_of(Path(pid_file), {"do": "reload", "confirm_within": confirm_within}, patience=PATIENCE)
    for warning in answer["warnings"]:
        click.echo(warning, err=True)
    for line in answer["changes"]:
        click.echo(f"  {line}")
    click.echo(f"Reloaded: generation {answer['generation']}, {len(answer['changes'])} changes.")
    if confirm_within:
        click.echo(f"It is undone in {confirm_within:g} s, unless 'gw reload --confirm' is run before.")
