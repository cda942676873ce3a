"""How the process manages its memory: the collector of cycles, and what is given back to the kernel.

Set once, by `gw serve`, before the first connection. An embedding program keeps its own settings.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

from gw.limits import GC_THRESHOLD, HEAP_MAPPED, HEAP_PAD, HEAP_SLACK

__all__ = ["collect", "keep_heap", "settle"]

# <malloc.h> of glibc
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3


def settle() -> None:
    """Take what exists now for permanent, and look for garbage rarely.

    An exchange makes no reference cycles (a test holds that), so the collector need not look often, nor at what
    was there before the first one.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    keep_heap()


def collect() -> None:
    """Give up what a reload has replaced: models and chains refer to themselves, and are looked for rarely otherwise.

    Measured: without it 80 KiB stay of each reload, until somebody looks.
    """
    gc.collect()


def keep_heap() -> bool:
    """Keep a little free memory instead of giving it back; tell whether the C library could be told.

    glibc returns the top of the heap to the kernel as soon as 128 KiB of it are free, and asks for it back for the
    next body. Measured: a relayed body of 100 KiB so cost 60 us of page faults, a third of the exchange. Other
    allocators have no such habit, and no `mallopt`.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    settings = ((_M_TRIM_THRESHOLD, HEAP_SLACK), (_M_TOP_PAD, HEAP_PAD), (_M_MMAP_THRESHOLD, HEAP_MAPPED))
    return bool(min(mallopt(which, size) for which, size in settings))
