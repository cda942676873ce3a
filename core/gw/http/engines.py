"""Which engines read HTTP/1.1 and HTTP/2: chosen once, by the `engine` setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Literal

from gw.http.framing import SplitHead
from gw.http.h1 import ReaderLimits
from gw.http.h2 import Session, SessionSettings
from gw.http.readers import RequestReader, ResponseReader
from gw.http.seen import SeenLines

__all__ = ["Engine", "EngineMissing", "choose"]


class EngineMissing(Exception):
    """The engine that was asked for is not installed."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A way to read HTTP. It remembers field lines, so one belongs to one event loop."""

    name: str
    """Of the library under HTTP/1.1: ``llhttp`` or ``h11``."""
    split_request: SplitHead
    split_response: SplitHead
    name_h2: str
    """Of the library under HTTP/2: ``nghttp2`` or ``h2``."""
    session: Callable[..., Session]

    def request_reader(self, limits: ReaderLimits) -> RequestReader:
        return RequestReader(self.split_request, limits)

    def response_reader(self, limits: ReaderLimits) -> ResponseReader:
        return ResponseReader(self.split_response, limits)

    def server_session(self, settings: SessionSettings, *, start: bool = True) -> Session:
        """*start* is false where `Session.upgraded` will begin it."""
        return self.session(settings, client=False, start=start)

    def client_session(self, settings: SessionSettings) -> Session:
        return self.session(settings, client=True)


def choose(engine: Literal["auto", "pure", "native"]) -> Engine:
    """Return the engine for a setting; ``auto`` takes the native ones where they are installed.

    Raises `EngineMissing` when ``native`` is asked for and one is not there.
    """
    native, native_h2 = (engine != "pure" and find_spec(library) is not None for library in ("httptools", "ngh2"))
    if engine == "native" and not (native and native_h2):
        raise EngineMissing(
            f"engine: native needs {'ngh2' if native else 'httptools'}, which is not installed; "
            "run pip install 'gw[fast]', or set engine to auto or pure"
        )
    module = import_module("gw.http.llhttp" if native else "gw.http.pure")
    sessions = import_module("gw.http.nghttp2" if native_h2 else "gw.http.hyper")
    return Engine(
        "llhttp" if native else "h11",
        module.split_request,
        SeenLines(module.split_response),
        "nghttp2" if native_h2 else "h2",
        sessions.Nghttp2Session if native_h2 else sessions.HyperSession,
    )
