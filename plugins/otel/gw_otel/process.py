"""What a process of the gateway takes of its machine, as figures: so those of several workers add up.

The names are OpenTelemetry's semantic conventions; `CLASSIC` has those that Prometheus' own clients use for the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from weakref import ref

from gw import Figures

__all__ = ["CLASSIC", "OwnProcess"]

CLASSIC: Final = {
    "process.cpu.time": "process_cpu_seconds",
    "process.memory.usage": "process_resident_memory_bytes",
    "process.memory.virtual": "process_virtual_memory_bytes",
    "process.unix.file_descriptor.count": "process_open_fds",
}

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MEMORY: Final = Path("/proc/self/statm")
_DESCRIPTORS: Final = Path("/proc/self/fd")


class OwnProcess:
    """As long as it is held, the figures of this process are among *figures*. Memory and descriptors only where there is /proc."""

    def __init__(self, figures: Figures) -> None:
        held = ref(self)

        def shown(read: Callable[[], float]) -> Callable[[], Iterable[tuple[tuple[str, ...], float]]]:
            def reader() -> Iterable[tuple[tuple[str, ...], float]]:
                try:
                    return () if held() is None else (((), read()),)
                except OSError:
                    return ()

            return reader

        figures.counter("process.cpu.time", "s", "CPU time, in user and system mode").watch(shown(time.process_time))
        for name, unit, description, read in (
            ("process.memory.usage", "By", "Memory that is resident", lambda: _pages(1)),
            ("process.memory.virtual", "By", "Memory that is reserved", lambda: _pages(0)),
            ("process.unix.file_descriptor.count", "{file_descriptor}", "Descriptors that are open", _descriptors),
        ):
            figures.level(name, unit, description).watch(shown(read))


def _pages(place: int) -> int:
    return int(_MEMORY.read_bytes().split()[place]) * _PAGE


def _descriptors() -> int:
    # Linux says how many there are, since 6.2; before, they have to be counted.
    return _DESCRIPTORS.stat().st_size or sum(1 for _ in _DESCRIPTORS.iterdir()) - 1
