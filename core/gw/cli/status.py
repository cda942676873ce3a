"""``gw status``: whether a gateway is running, and how it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gw.cli.configuration import pid_file_option
from gw.cli.table import table
from gw.ops.control import ControlError, ask, beside
from gw.ops.pid_file import PidFileError, running

__all__ = ["command"]


@click.command("status")
@pid_file_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, pid_file: str, as_json: bool) -> None:
    """Say whether a gateway is running, and how it is. The exit code is 0 if it is, else 1."""
    path = Path(pid_file)
    try:
        pid = running(path)
    except PidFileError as error:
        click.echo(f"Error: {error}", err=True)
        ctx.exit(1)
    found: dict[str, Any] = {"running": pid is not None, "pid": pid, "pid_file": str(path)}
    if pid is not None:
        try:
            found |= ask(beside(path), {"do": "status"})
        except ControlError as error:
            found["error"] = str(error)
    click.echo(json.dumps(found, indent=2) if as_json else _shown(found))
    ctx.exit(0 if pid is not None else 1)


def _shown(found: dict[str, Any]) -> str:
    if not found["running"]:
        return f"gw is not running (pid file {found['pid_file']})."
    lines = [f"gw is running: pid {found['pid']}, pid file {found['pid_file']}"]
    if "error" in found:
        return "\n".join([*lines, found["error"]])
    ready = "ready" if found["ready"] else "not ready"
    lines.append(
        f"{found['state']}, {ready}, on {' and '.join(found['addresses'].values())}, for {_time(found['uptime_seconds'])}, "
        f"generation {found['generation']}"
    )
    if found["unconfirmed"]:
        lines.append("the last reload waits to be confirmed")
    last = found["last_reload"]
    if last is not None and not last["ok"]:
        lines.append(f"the last reload failed: {last['error']}")
    rows = [
        (str(each["number"]), str(each["pid"]), each["state"], _time(each["uptime_seconds"]), str(each["restarts"]))
        for each in found["workers"]
    ]
    return "\n".join([*lines, table(("WORKER", "PID", "STATE", "UPTIME", "RESTARTS"), rows)])


def _time(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}d {clock}" if days else clock
