"""Rules of the section that concern what stands around it: upstreams, and the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, Final, TypeAlias

from gw import Problem
from gw_otel.destination import has_destination
from gw_otel.settings import Observability, Otlp

__all__ = ["problems"]

Where: TypeAlias = tuple[str | int, ...]

_HISTOGRAMS: Final = frozenset(
    {
        "gw.otel.export.duration",
        "gw.upstream.pool.checkout.wait.duration",
        "http.client.request.duration",
        "http.server.request.body.size",
        "http.server.request.duration",
        "http.server.response.body.size",
    }
)
"""Names of histograms whose buckets can be set."""


def problems(config: Any, environ: Mapping[str, str] = os.environ) -> Iterator[Problem]:
    """Yield what is wrong with the observability of *config*, the whole configuration."""
    asked: Observability | None = config.observability
    if asked is None:
        return
    upstreams = {upstream.name: upstream for upstream in config.upstreams}
    for signal, otlp, pushes in (
        ("traces", asked.traces.otlp, bool(asked.traces.exporter)),
        ("metrics", asked.metrics.otlp, "otlp_http" in (asked.metrics.exporter, *asked.metrics.exporter)),
        ("logs", asked.logs.otlp, bool(asked.logs.exporter)),
    ):
        yield from _destination(("observability", signal), otlp, pushes, upstreams, environ)
        if pushes and asked.enabled:
            yield from _library(("observability", signal, "exporter"), "httpcore", "httpcore")
    if asked.enabled and asked.metrics.is_scraped:
        yield from _library(("observability", "metrics", "exporter"), "prometheus_client", "prometheus-client")
    for name in asked.metrics.histogram_buckets:
        if name not in _HISTOGRAMS:
            place = ("observability", "metrics", "histogram_buckets", name)
            yield Problem(
                place, f"is no histogram with buckets to set; there are {', '.join(sorted(_HISTOGRAMS))}", "warning"
            )


def _library(at: Where, module: str, distribution: str) -> Iterator[Problem]:
    if find_spec(module) is None:
        yield Problem(at, f"needs {distribution}, which is not installed; run pip install 'gw[otel]'")


def _destination(
    at: Where, otlp: Otlp, pushes: bool, upstreams: Mapping[str, Any], environ: Mapping[str, str]
) -> Iterator[Problem]:
    upstream = upstreams.get(otlp.upstream)
    if upstream is not None and not upstream.addresses():
        what = "a service (srv)" if upstream.services() else "an application"
        message = f"{otlp.upstream!r} is {what}, and a collector is called at a host; name another upstream"
        yield Problem((*at, "otlp", "upstream"), message)
    if otlp.upstream and upstream is None:
        near = get_close_matches(otlp.upstream, upstreams, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        yield Problem((*at, "otlp", "upstream"), f"there is no upstream {otlp.upstream!r}{hint}")
    if otlp.upstream and otlp.endpoint:
        yield Problem((*at, "otlp", "endpoint"), "cannot stand beside upstream; remove one of them")
    if pushes and not has_destination(otlp, str(at[-1]), environ):
        message = "needs to know where to: set otlp.upstream, otlp.endpoint or OTEL_EXPORTER_OTLP_ENDPOINT"
        yield Problem((*at, "exporter"), message)
