"""``gw plan``: what a reload would change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gw.cli.configuration import pid_file_option
from gw.cli.reload import PATIENCE
from gw.cli.running import answer_of

__all__ = ["command"]


@click.command("plan")
@pid_file_option
@click.option(
    "-c", "--config", "file", type=click.Path(path_type=Path), help="Compare with this file, not with its own."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(pid_file: str, file: Path | None, as_json: bool) -> None:
    """Print what a reload would change in a running gateway, by meaning. Changes nothing."""
    question: dict[str, Any] = {"do": "plan"}
    if file is not None:
        question["file"] = str(file.absolute())
    answer = answer_of(Path(pid_file), question, patience=PATIENCE)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    for line in answer["changes"]:
        click.echo(f"  {line}")
    if not answer["changes"]:
        click.echo("Nothing would change.")
    elif answer["exchanges"]:
        count = answer["exchanges"]
        click.echo(
            f"{count} exchange{'s' if count > 1 else ''} under way would stay on generation {answer['generation']}."
        )
