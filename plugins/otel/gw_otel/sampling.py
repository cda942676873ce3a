"""Identifiers of traces and spans, and which traces are recorded (behaviour 17.3)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from gw_otel.settings import Override, Sampler

__all__ = ["Ids", "Overrides", "compile_overrides", "sampler"]

Decide: TypeAlias = Callable[[str, bool | None], bool]
"""Tell from the trace's identifier and the parent's word, `None` where there is none, whether to record it."""

_POOL: Final = 4096


class Ids:
    """Random identifiers, from the system's generator, some hundred at a time."""

    __slots__ = ("_at", "_hex")

    def __init__(self) -> None:
        self._hex, self._at = "", 0

    def trace(self) -> str:
        """Return 32 hexadecimal digits."""
        at = self._at
        if at + 32 > len(self._hex):
            at = self._fill()
        self._at = at + 32
        return self._hex[at : at + 32]

    def root(self) -> tuple[str, str]:
        """Return what `trace` and `span` do."""
        at = self._at
        if at + 48 > len(self._hex):
            at = self._fill()
        self._at = at + 48
        return self._hex[at : at + 32], self._hex[at + 32 : at + 48]

    def span(self) -> str:
        """Return 16 hexadecimal digits."""
        at = self._at
        if at + 16 > len(self._hex):
            at = self._fill()
        self._at = at + 16
        return self._hex[at : at + 16]

    def _fill(self) -> int:
        self._hex = os.urandom(_POOL).hex()
        return 0


# --- samplers ----------------------------------------------------------------


def _always(_: str, __: bool | None) -> bool:
    return True


def _never(_: str, __: bool | None) -> bool:
    return False


def _ratio(ratio: float) -> Decide:
    if ratio >= 1:
        return _always
    bound = f"{int(ratio * 2**64):016x}"  # as text: both have sixteen digits, so their order is that of the numbers

    def by_ratio(trace_id: str, _: bool | None) -> bool:
        return trace_id[:16] < bound

    return by_ratio


def _parent_based(ratio: float) -> Decide:
    root = _ratio(ratio)

    def by_parent(trace_id: str, parent: bool | None) -> bool:
        return root(trace_id, None) if parent is None else parent

    return by_parent


def _consistent(ratio: float) -> Decide:
    """OpenTelemetry's consistent probability sampling: by the last 56 bits, which W3C level 2 asks to be random."""
    bound = _bound(ratio)

    def consistent(trace_id: str, parent: bool | None) -> bool:
        return (len(bound) == 14 and trace_id[18:] >= bound) if parent is None else parent

    return consistent


def _bound(ratio: float) -> str:
    """Return what the last 56 bits must reach, in hexadecimal: 14 digits, or more where nothing does."""
    return f"{2**56 - round(ratio * 2**56):014x}"


def _member(asked: Sampler | Override) -> str:
    """Return the member of ``tracestate`` that tells how likely a trace was to be sampled, where the sampler has one."""
    kind = asked.type if isinstance(asked, Sampler) else asked.sampler
    return f"ot=th:{_bound(asked.ratio).rstrip('0') or '0'}" if kind == "consistent" else ""


def sampler(asked: Sampler | Override) -> Decide:
    """Return the function that *asked* names."""
    kind = asked.type if isinstance(asked, Sampler) else asked.sampler
    match kind:
        case "always_on":
            return _always
        case "always_off":
            return _never
        case "trace_id_ratio":
            return _ratio(asked.ratio)
        case "consistent":
            return _consistent(asked.ratio)
        case _:
            return _parent_based(asked.ratio)


class Overrides:
    """Samplers by path: the first entry that is the path or above it; without one, the sampler for all."""

    __slots__ = ("_default", "_rows", "decide", "prefixes")

    def __init__(self, default: tuple[Decide, str], rows: Iterable[tuple[str, Decide, str]]) -> None:
        self._default = default
        self.decide = default[0]
        """What counts where no entry does: the path does not begin with one of `prefixes`."""
        self._rows = tuple(
            (path, path if path.endswith("/") else f"{path}/", (decide, at)) for path, decide, at in rows
        )
        self.prefixes = tuple(path for path, _, _ in self._rows)

    def __call__(self, path: str, trace_id: str, parent: bool | None) -> bool:
        """Tell whether the trace of a request for *path* is recorded."""
        return self._of(path)[0](trace_id, parent)

    def state(self, path: str) -> str:
        """Return the ``tracestate`` of a trace that begins with a request for *path* and is recorded."""
        return self._of(path)[1]

    def _of(self, path: str) -> tuple[Decide, str]:
        for exact, under, found in self._rows:
            if path == exact or path.startswith(under):
                return found
        return self._default


def compile_overrides(asked: Sampler, quiet: Sequence[str]) -> Overrides:
    """Make what *asked* says into a function; paths in *quiet* are not sampled unless the operator lists them."""
    listed = {each.path for each in asked.routes}
    rows = [(each.path, sampler(each), _member(each)) for each in asked.routes]
    rows += [(path, _never, "") for path in quiet if path not in listed]
    return Overrides((sampler(asked), _member(asked)), rows)
