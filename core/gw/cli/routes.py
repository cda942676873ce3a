"""``gw routes``: the route table, and what each route does to a request. The facts come from `gw.described`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from gw.cli.configuration import configured, described, options
from gw.cli.table import table

if TYPE_CHECKING:
    from gw.described import RouteRow

__all__ = ["command"]

HEADINGS = ("FILTER", "PLUGIN", "HOOKS", "REQUEST BODY", "RESPONSE BODY", "MODE", "ON ERROR")


@click.command("routes")
@options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool, **chosen: Any) -> None:
    """Print the routes, and the filters of each in their order."""
    rows = described(configured(**chosen))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    elif rows:
        click.echo("\n\n".join(_shown(row) for row in rows))
    else:
        click.echo("There are no routes: every request is answered 404.")


def _shown(row: RouteRow) -> str:
    filters = [
        (each.name, each.plugin, " ".join(each.hooks), each.body, each.upstream_body, each.mode, each.on_error)
        for each in row.filters
    ]
    lines = [
        row.name,
        f"matches  {','.join(row.methods) or 'any method'}  {','.join(row.hosts) or 'any host'}  {row.path}",
        f"goes to  {row.target}",
        f"framing  {row.framing}",
        *(table(HEADINGS, filters) if filters else "no filters").splitlines(),
    ]
    return "\n  ".join(lines)
