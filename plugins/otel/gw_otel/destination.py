"""Where telemetry is sent and as whose: settings, and what OpenTelemetry's environment variables add to them.

What is written in the configuration wins over the environment; the variable of a signal wins over the one for all.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from gw import Caller
from gw_otel import settings
from gw_otel.limits import MAX_ATTRIBUTE_LENGTH, MAX_ATTRIBUTES
from gw_otel.protobuf import Protobuf
from gw_otel.protojson import Json
from gw_otel.records import Resource
from gw_otel.rpc import METHODS

__all__ = ["Destination", "destination", "has_destination", "resource_of"]

_SIGNALS: Final = {"traces": "TRACES", "metrics": "METRICS", "logs": "LOGS"}
_URL: Final = re.compile(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?")
_FIELD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Destination:
    """One signal's way out."""

    caller: Caller
    url: str
    """Of an upstream, the path."""
    name: str
    """For logs."""
    headers: tuple[tuple[str, str], ...]
    """Without those about the content."""
    timeout: float
    """Seconds."""
    encoder: Json | Protobuf
    gzip: bool
    grpc: bool = False


def resource_of(asked: settings.Resource, environ: Mapping[str, str], log: logging.Logger) -> Resource:
    """Return who we are, in the order of their keys."""
    found = dict(_pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""), "OTEL_RESOURCE_ATTRIBUTES", log))
    if environ.get("OTEL_SERVICE_NAME"):
        found["service.name"] = environ["OTEL_SERVICE_NAME"]
    if "service_name" in asked.model_fields_set or "service.name" not in found:
        found["service.name"] = asked.service_name
    if asked.service_version:
        found["service.version"] = asked.service_version
    if asked.service_instance_id:
        found["service.instance.id"] = asked.service_instance_id
    found.update(asked.attributes)
    return [(key, found[key][:MAX_ATTRIBUTE_LENGTH]) for key in sorted(found)[:MAX_ATTRIBUTES]]


def has_destination(asked: settings.Otlp, signal: str, environ: Mapping[str, str]) -> bool:
    """Tell whether anything says where *signal* is to be sent."""
    return bool(asked.upstream or asked.endpoint or _variable(environ, signal, "ENDPOINT")[1])


def destination(
    asked: settings.Otlp,
    signal: str,
    environ: Mapping[str, str],
    caller: Callable[[str, bool], Caller],
    encoders: dict[str, Json | Protobuf],
    log: logging.Logger,
) -> Destination:
    """Make a way out for *signal*. *caller* returns that of an upstream, for gRPC or not; *encoders* are shared by name."""

    def chosen(key: str, name: str, known: tuple[str, ...]) -> str:
        own: str = getattr(asked, key)
        variable, value = _variable(environ, signal, name)
        if key in asked.model_fields_set or not value:
            return own
        if value not in known:
            log.warning("%s is %r, which gw does not speak; it speaks %s", variable, value, " and ".join(known))
            return own
        return value

    protocol = chosen("protocol", "PROTOCOL", ("http/json", "http/protobuf", "grpc"))
    encoding = "json" if protocol == "http/json" else "protobuf"
    if encoding not in encoders:
        encoders[encoding] = Json() if encoding == "json" else Protobuf()
    headers: dict[str, str] = {}
    variable, value = _variable(environ, signal, "HEADERS")
    for name, each in _pairs(value, variable, log):
        if _FIELD.fullmatch(name) and each.isascii() and each.isprintable():
            headers[name.lower()] = each
        else:
            log.warning("%s: %s is not a header field; it is left out", variable, name)
    headers.update({name.lower(): secret.get_secret_value() for name, secret in asked.headers.items()})
    timeout = asked.timeout_ms
    variable, value = _variable(environ, signal, "TIMEOUT")
    if value and "timeout_ms" not in asked.model_fields_set:
        if value.isdecimal() and 0 < int(value) <= 86_400_000:
            timeout = int(value)
        else:
            log.warning("%s is %r, which is no number of milliseconds; %d are used", variable, value, timeout)
    url = _service(asked, signal, environ, log) if protocol == "grpc" else _url(asked, signal, environ, log)
    return Destination(
        caller(asked.upstream, protocol == "grpc"),
        url,
        f"upstream {asked.upstream!r}" if asked.upstream else url,
        tuple(headers.items()),
        timeout / 1000,
        encoders[encoding],
        chosen("compression", "COMPRESSION", ("none", "gzip")) == "gzip",
        protocol == "grpc",
    )


def _url(asked: settings.Otlp, signal: str, environ: Mapping[str, str], log: logging.Logger) -> str:
    if asked.upstream:
        return f"/v1/{signal}"
    if asked.endpoint:
        return f"{asked.endpoint.rstrip('/')}/v1/{signal}"
    variable, value = _variable(environ, signal, "ENDPOINT")
    if not _URL.fullmatch(value):
        log.warning("%s is %r, which is no URL such as http://collector:4318", variable, value)
        return f"http://127.0.0.1:4318/v1/{signal}"
    # Only the one for all signals is completed; that of a signal is taken as it is.
    return value if variable.endswith(f"{_SIGNALS[signal]}_ENDPOINT") else f"{value.rstrip('/')}/v1/{signal}"


def _service(asked: settings.Otlp, signal: str, environ: Mapping[str, str], log: logging.Logger) -> str:
    """Return the URL of a method of gRPC: of an endpoint only host and port count (OTLP specification)."""
    if asked.upstream:
        return METHODS[signal]
    variable, value = _variable(environ, signal, "ENDPOINT")
    where = asked.endpoint or value
    if not _URL.fullmatch(where):
        log.warning("%s is %r, which is no URL such as http://collector:4317", variable, value)
        where = "http://127.0.0.1:4317"
    parts = urlsplit(where)
    return f"{parts.scheme}://{parts.netloc}{METHODS[signal]}"


def _variable(environ: Mapping[str, str], signal: str, name: str) -> tuple[str, str]:
    """Return the variable that counts for *signal*, and its value: empty where none is set."""
    own = f"OTEL_EXPORTER_OTLP_{_SIGNALS[signal]}_{name}"
    variable = own if environ.get(own) else f"OTEL_EXPORTER_OTLP_{name}"
    return variable, environ.get(variable, "").strip()


def _pairs(text: str, variable: str, log: logging.Logger) -> list[tuple[str, str]]:
    """Return the ``key=value`` pairs of a list with commas, percent-decoded; what is no pair is left out, with a warning."""
    found = []
    for pair in filter(None, map(str.strip, text.split(","))):
        key, equals, value = pair.partition("=")
        if equals and key.strip():
            found.append((unquote(key.strip()), unquote(value.strip())))
        else:
            log.warning("%s has an item that is not key=value; it is left out", variable)
    return found
