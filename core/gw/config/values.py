"""Types of single values that several keys have: hosts, networks, methods, names of headers.

Each refuses with a sentence, and stands for the normal form of what was written. Groups of keys are in `gw.config.model`.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, PlainSerializer, PlainValidator, Tag, WithJsonSchema

from gw.config import hosts

__all__ = [
    "Address",
    "AppName",
    "FieldName",
    "FieldValue",
    "Host",
    "HostPatterns",
    "LogFile",
    "LogLevel",
    "Methods",
    "Milliseconds",
    "Name",
    "Natural",
    "Network",
    "Origins",
    "Path",
    "PathPrefix",
    "PluginNames",
    "Port",
    "Positive",
    "ReferenceMethods",
    "Regex",
    "ResponseTimeout",
    "RoutePrefix",
    "ServiceName",
    "StreamDuration",
    "StreamIdle",
    "Weight",
]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+|null", re.ASCII | re.IGNORECASE)


def _network(value: object) -> IPv4Network | IPv6Network:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError("must be an address or a network, such as '10.0.0.0/8'")  # noqa: TRY004 (pydantic wants ValueError)
    try:
        return ip_network(value)
    except ValueError:
        raise ValueError(f"{value!r} is not an address or a network without host bits, such as '10.0.0.0/8'") from None


def _distinct(items: tuple[str, ...]) -> tuple[str, ...]:
    for index, item in enumerate(items):
        if item in items[:index]:
            raise ValueError(f"lists {item!r} twice")
    return items


def _not_blank(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be a name: printable, and not only spaces")
    return text


def _app_name(text: str) -> str:
    module, _, attribute = text.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise ValueError(f"must be a module and an attribute, such as package.module:app, not {text!r}")
    return text


def _slash(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"must start with '/', not {text!r}")
    return text


def _path(text: str) -> str:
    return text if text == "*" else _slash(text)


def _route_prefix(text: str) -> str:
    return _slash(text) if text else text


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return text


def _method(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{text!r} is not a method")
    if text != text.upper():
        raise ValueError(f"{text!r}: methods are case-sensitive; did you mean {text.upper()!r}?")
    if text == "CONNECT":
        raise ValueError("CONNECT is always refused")
    return text


def _field_name(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{text!r} is not a header name")
    return text.lower()


def _field_value(text: str) -> str:
    if text and not (text.isascii() and text.isprintable() and text == text.strip()):
        raise ValueError("must be printable ASCII without spaces around it")
    return text


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise ValueError(f"{text!r} is not an origin, such as 'https://app.example.com' or 'http://localhost:3000'")
    return text.lower()


def _log_file(text: str) -> str:
    if text and text.rsplit("/", 1)[-1] in {"", ".", ".."}:
        raise ValueError(f"{text!r} is not the name of a file")
    return text


def _zero_or_second(value: int | None) -> int | None:
    if value is not None and value != 0 and value < 1000:
        raise ValueError(f"must be 0 or at least 1000, not {value}")
    return value


def _address(text: str) -> str:
    hosts.address(text)
    return text


def _text_or_list(value: object) -> str:
    return "list" if isinstance(value, list | tuple) else "text"


Address = Annotated[str, AfterValidator(_address)]
AppName = Annotated[str, AfterValidator(_app_name)]
Host = Annotated[str, AfterValidator(hosts.host)]
ServiceName = Annotated[str, AfterValidator(hosts.service)]
HostPattern = Annotated[str, AfterValidator(hosts.host_pattern)]
Network = Annotated[
    IPv4Network | IPv6Network,
    PlainValidator(_network),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "examples": ["10.0.0.0/8", "::1"]}),
]
Name = Annotated[str, AfterValidator(_not_blank)]
PluginNames = Annotated[tuple[Name, ...], AfterValidator(_distinct)]
LogLevel = Literal["trace", "debug", "info", "warn", "error", "critical"]
LogFile = Annotated[str, AfterValidator(_log_file)]

Path = Annotated[str, AfterValidator(_path)]
PathPrefix = Annotated[str, AfterValidator(_slash)]
RoutePrefix = Annotated[str, AfterValidator(_route_prefix)]
Regex = Annotated[str, AfterValidator(_regex)]
Methods = Annotated[tuple[Annotated[str, AfterValidator(_method)], ...], AfterValidator(_distinct)]
ReferenceMethods = Annotated[
    tuple[Literal["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"], ...], AfterValidator(_distinct)
]
FieldName = Annotated[str, AfterValidator(_field_name)]
FieldValue = Annotated[str, AfterValidator(_field_value)]

Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], AfterValidator(_distinct)]

Natural = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[int, Field(ge=0, le=86_400_000)]
Positive = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Weight = Annotated[int, Field(ge=1, le=65535)]
ResponseTimeout = Annotated[int, Field(ge=0), AfterValidator(_zero_or_second)]
StreamIdle = Annotated[int, Field(ge=0, le=3600)]
StreamDuration = Annotated[int, Field(ge=0, le=86400)]

if TYPE_CHECKING:
    HostPatterns = tuple[str, ...]
else:  # text or a list is accepted; a tuple is what comes out
    HostPatterns = Annotated[
        Annotated[tuple[HostPattern, ...], Tag("list")] | Annotated[HostPattern, Tag("text")],
        Discriminator(_text_or_list),
        AfterValidator(lambda value: (value,) if isinstance(value, str) else value),
    ]
