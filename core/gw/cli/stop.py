"""``gw stop``: end a running gateway."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from gw.cli.configuration import pid_file_option
from gw.cli.running import pid_of
from gw.limits import CLOSING_GRACE
from gw.ops.pid_file import running

__all__ = ["command"]

_PAUSE = 0.05


@click.command("stop")
@pid_file_option
@click.option("--wait", is_flag=True, help="Wait until it has ended.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="S", help="End it at once if it takes longer; implies --wait."
)
def command(pid_file: str, wait: bool, timeout: float | None) -> None:
    """Have a running gateway finish what is under way, and end."""
    pid = pid_of(Path(pid_file))
    os.kill(pid, signal.SIGTERM)
    if not wait and timeout is None:
        click.echo(f"gw (pid {pid}) was told to stop.")
        return
    path = Path(pid_file)
    if not _ended(path, timeout):
        click.echo(f"gw (pid {pid}) takes longer than {timeout:g} s: it is told to stop now.", err=True)
        os.kill(pid, signal.SIGTERM)
        if not _ended(path, CLOSING_GRACE * 5):
            os.kill(pid, signal.SIGKILL)
            _ended(path, None)
    click.echo(f"gw (pid {pid}) has ended.")


def _ended(pid_file: Path, within: float | None) -> bool:
    """Wait until nobody holds *pid_file*: the pid itself may stay, as long as its parent does not ask."""
    until = None if within is None else time.monotonic() + within
    while until is None or time.monotonic() < until:
        if running(pid_file) is None:
            return True
        time.sleep(_PAUSE)
    return False
