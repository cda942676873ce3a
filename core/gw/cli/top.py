"""``gw top``: the figures of a running gateway, again and again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from gw.cli.configuration import pid_file_option
from gw.cli.running import answer_of
from gw.cli.table import table

__all__ = ["command"]


@click.command("top")
@pid_file_option
@click.option("--every", type=click.FloatRange(min=0.2), default=1.0, show_default=True, metavar="S", help="Seconds.")
@click.option("--once", is_flag=True, help="Print the figures of one interval, and end.")
def command(pid_file: str, every: float, once: bool) -> None:
    """Show what a running gateway is doing, until Ctrl-C."""
    path = Path(pid_file)
    before, at = answer_of(path, {"do": "stats"}), time.monotonic()
    while True:
        time.sleep(every)
        now, seen = answer_of(path, {"do": "stats"}), time.monotonic()
        status = answer_of(path, {"do": "status"})
        if not once:
            click.clear()
        click.echo(_shown(before, now, status, seen - at))
        if once:
            return
        before, at = now, seen


def _shown(before: dict[str, Any], now: dict[str, Any], status: dict[str, Any], seconds: float) -> str:
    rate = (now["requests"]["total"] - before["requests"]["total"]) / seconds
    connections = now["connections"]
    accepted = (connections["total_accepted"] - before["connections"]["total_accepted"]) / seconds
    lines = [
        f"gw {status['version']}  pid {status['pid']}  {status['state']}  generation {status['generation']}",
        f"{rate:.0f} requests/s, {now['requests']['active']} under way",
        f"{connections['active']} connections, {accepted:.0f} new/s, {connections['total_rejected']} turned away",
        "",
    ]
    spread = now.get("workers", {}).get("connections", {})
    workers = [
        (
            str(each["number"]),
            str(each["pid"]),
            each["state"],
            str(spread.get(str(each["number"]), "")),
            str(each["restarts"]),
        )
        for each in status["workers"]
    ]
    lines += [table(("WORKER", "PID", "STATE", "CONNECTIONS", "RESTARTS"), workers), ""]
    upstreams = [
        (name, *(str(each["pool"][key]) for key in ("open", "idle", "waiting")))
        for name, each in now["upstream"].items()
    ]
    return "\n".join([*lines, table(("UPSTREAM", "OPEN", "IDLE", "WAITING"), upstreams)])
