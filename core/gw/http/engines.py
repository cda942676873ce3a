"""Which HTTP/1.1 engine reads: chosen once, by the `engine` setting. Says nothing about HTTP/2."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Literal

from gw.http.framing import SplitHead
from gw.http.h1 import ReaderLimits
from gw.http.readers import RequestReader, ResponseReader
from gw.http.seen import SeenLines

__all__ = ["Engine", "EngineMissing", "choose"]


class EngineMissing(Exception):
    """The engine that was asked for is not installed."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A way to read HTTP/1.1. It remembers field lines, so one belongs to one event loop."""

    name: str
    """Of the library underneath: ``llhttp`` or ``h11``."""
    split_request: SplitHead
    split_response: SplitHead

    def request_reader(self, limits: ReaderLimits) -> RequestReader:
        return RequestReader(self.split_request, limits)

    def response_reader(self, limits: ReaderLimits) -> ResponseReader:
        return ResponseReader(self.split_response, limits)


def choose(engine: Literal["auto", "pure", "native"]) -> Engine:
    """Return the engine for a setting; ``auto`` takes the native one where it is installed.

    Raises `EngineMissing` when ``native`` is asked for and is not there.
    """
    native = engine != "pure" and find_spec("httptools") is not None
    if engine == "native" and not native:
        raise EngineMissing(
            "engine: native needs httptools, which is not installed; "
            "run pip install 'gw[fast]', or set engine to auto or pure"
        )
    module = import_module("gw.http.llhttp" if native else "gw.http.pure")
    return Engine("llhttp" if native else "h11", module.split_request, SeenLines(module.split_response))
