"""What a host, a port and a `--to` URL may look like in a configuration (behaviour 3): syntax only.

Nothing here resolves a name, and nothing imports pydantic: the command line checks its options with it.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

__all__ = ["address", "host", "host_pattern", "is_address", "origin", "service"]

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
MAX_NAME = 253
"""Characters of a host name without its trailing dot (RFC 1035 section 2.3.4)."""


def is_address(text: str) -> bool:
    """Whether *text* is an IPv4 dotted quad or an IPv6 literal without brackets."""
    try:
        (IPv6Address if ":" in text else IPv4Address)(text)
    except ValueError:
        return False
    return "%" not in text


def host(text: str) -> str:
    """Return *text* as a host: an address, IPv6 without its brackets, or an RFC 1123 name.

    Raises `ValueError`. Old numeric forms such as ``1.2.3`` or ``0127.0.0.1`` are not names:
    a resolver would read them as other addresses.
    """
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1]
        if ":" in inner and is_address(inner):
            return inner
    elif is_address(text) or _is_name(text):
        return text
    raise ValueError(f"{text!r} is not a host (an IPv4 or IPv6 address without zone, or a host name)")


def service(text: str) -> str:
    """Return *text* as the name of a service, such as ``_http._tcp.example.com`` (RFC 2782). Raises `ValueError`."""
    kind, _, rest = text.partition(".")
    protocol, _, name = rest.partition(".")
    if (
        all(each.startswith("_") and _LABEL.fullmatch(each[1:]) for each in (kind, protocol))
        and _is_name(name)
        and len(text.removesuffix(".")) <= MAX_NAME
    ):
        return text
    raise ValueError(f"{text!r} is not a service (_service._protocol.name, such as _http._tcp.example.com)")


def host_pattern(text: str) -> str:
    """Return *text* in lower case as a host that a route matches: a host, or ``*.`` and a name. Raises `ValueError`."""
    name = text.removeprefix("*.")
    if "*" in name:
        raise ValueError(f"{text!r}: a wildcard stands for the first labels only, as in '*.example.com'")
    if name != text and not _is_name(name):
        raise ValueError(f"{text!r}: after '*.' there must be a host name")
    return text.lower() if name != text else host(text).lower()


def address(text: str) -> tuple[str, int]:
    """Split ``host:port``, IPv6 in brackets, into host and port. Raises `ValueError`."""
    name, colon, digits = text.rpartition(":")
    if not (colon and digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) <= 65535):
        raise ValueError(f"{text!r} is not host:port, such as 127.0.0.1:9901")
    return host(name), int(digits)


def origin(url: str) -> tuple[str, int]:
    """Split ``http://host[:port]`` into host and port. Raises `ValueError`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from None
    if parts.scheme == "https":
        raise ValueError(f"{url!r}: TLS to an upstream is not supported by this version; use http://")
    if parts.scheme != "http" or not parts.netloc:
        raise ValueError(f"{url!r} is not a URL of an upstream, such as http://127.0.0.1:9000")
    if "@" in parts.netloc or parts.path not in {"", "/"} or parts.query or parts.fragment or port == 0:
        raise ValueError(f"{url!r}: only http://host:port, without user, path or query")
    name = parts.netloc if port is None else parts.netloc.rpartition(":")[0]
    return host(name.removesuffix(":")), 80 if port is None else port


def _is_name(text: str) -> bool:
    name = text.removesuffix(".")
    return (
        0 < len(name) <= MAX_NAME
        and all(_LABEL.fullmatch(label) for label in name.split("."))
        and not name.replace(".", "").isdigit()
    )
