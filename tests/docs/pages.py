"""The project's Markdown pages: their code blocks, headings and links. Nothing here runs what it reads.

A block is fenced and says its language. A block whose first line is a comment with a file name, such as
``# gateway.yaml``, is that file for the blocks after it. Indented blocks are pictures of output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

LANGUAGES = frozenset({"python", "yaml", "console", "text"})
"""python is run, yaml is loaded as a configuration, console is run where that is cheap, text is only shown."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\s`]*)\s*$")
_FILE = re.compile(r"#\s*(?P<name>[\w./-]+\.(?:py|yaml|json))$")
_HEADING = re.compile(r"^#{1,6} +(?P<text>.+?)\s*$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    """Of its first line of content."""
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that it is, if it says so."""
        match = _FILE.match(self.text.partition("\n")[0])
        return match["name"] if match else None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Return every page that people read."""
    found = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    found += [*(ROOT / "plugins").glob("*/README.md"), *(ROOT / "tests").glob("*/README.md")]
    return sorted(path for path in found if path.is_file())


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    opened: tuple[int, str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence is not None:
                opened, lines = (number + 1, fence["language"], len(fence["indent"])), []
        elif fence is not None and not fence["language"]:
            found.append(Block(page, opened[0], opened[1], "\n".join(lines) + "\n"))
            opened = None
        else:
            lines.append(line[opened[2] :])
    assert opened is None, f"{page.relative_to(ROOT)}:{opened[0] - 1}: a block is never closed"  # type: ignore[index]
    return found


def prose(page: Path) -> list[tuple[int, str]]:
    """Return the numbered lines outside of blocks."""
    inside, found = False, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            found.append((number, line))
    return found


def anchors(page: Path) -> set[str]:
    """Return the names under which its headings can be linked to."""
    titles = (match["text"] for _, line in prose(page) if (match := _HEADING.match(line)))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[tuple[int, str]]:
    return [(number, match["target"]) for number, line in prose(page) for match in _LINK.finditer(line)]
