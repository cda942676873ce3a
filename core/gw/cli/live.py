"""``gw top`` in a terminal. The only part of the command line that needs `rich`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gw.cli.page import Look, Page, page
from gw.cli.running import NoAnswer

__all__ = ["rendered", "show"]

_COLOURS: Final = {
    "ready": "green",
    "healthy": "green",
    "closed": "green",
    "starting": "yellow",
    "draining": "yellow",
    "half_open": "yellow",
    "unhealthy": "red",
    "ejected": "red",
    "open": "red",
}
"""Of words that say how something is."""


def show(look: Callable[[], Look], before: Look, every: float) -> None:
    """Show a page each *every* seconds, until Ctrl-C; while *look* raises `NoAnswer`, why, and the last one."""
    console = Console()
    with Live(Text("one moment"), console=console, screen=True, auto_refresh=False) as live:
        try:
            live.refresh()
            while True:
                time.sleep(every)
                away = ""
                try:
                    now = look()
                except NoAnswer as error:
                    away, now = f"{error} Waiting for it.", before
                if now.status["pid"] != before.status["pid"]:
                    before = now  # another one, which counts from 0
                shown = rendered(page(before, now), console.height)
                live.update(Group(Text(away, "bold red"), shown) if away else shown, refresh=True)
                before = now
        except KeyboardInterrupt:
            return


def rendered(shown: Page, height: int) -> RenderableType:
    """Return the page in colour; of a table that is longer than *height* lines, as many."""
    first, *rest = shown.head
    parts: list[RenderableType] = [Text(first, "bold"), *map(Text, rest)]
    for headings, rows in shown.tables:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold cyan")
        for number, heading in enumerate(headings):
            justify: Literal["left", "right"] = "right" if number else "left"
            table.add_column(heading, no_wrap=True, overflow="ellipsis", justify=justify)
        for row in rows[:height]:
            table.add_row(*(Text(word, _COLOURS.get(word, "")) for word in row))
        parts += [Text(""), table]
        if len(rows) > height:
            parts.append(Text(f"and {len(rows) - height} more", "dim"))
    return Group(*parts)
