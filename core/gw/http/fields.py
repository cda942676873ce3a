"""Field values that more than one part of the gateway reads: lists, quality values, who a request came for.

What frames a message, or belongs to a connection, is read in `gw.http.framing`.
Everything here comes from the network: each parser has a bound in `gw.limits`.

Addresses are handed on as text, IPv6 without brackets or zone. An IPv4 address
written as IPv6 (``::ffff:10.0.0.1``, as a dual-stack socket shows it) is the
IPv4 address, so that a network such as 10.0.0.0/8 contains it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, zip_longest
from typing import Final, TypeAlias

from gw.filters import Headers
from gw.limits import MAX_ADDRESS_SIZE, MAX_FORWARDED_HOPS, MAX_LIST_ELEMENTS, MAX_PARSED_ADDRESSES

__all__ = [
    "Address",
    "BadField",
    "ForwardedHop",
    "MediaRange",
    "Network",
    "client_address",
    "cookie",
    "forwarded_element",
    "forwarded_for",
    "forwarded_hops",
    "is_trusted",
    "parse_accept",
    "parse_address",
    "quality_of",
    "quality_values",
    "tokens",
]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class BadField(ValueError):
    """A field value that its grammar does not allow. The message is for the log."""


_WORD: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_token: Final = re.compile(_WORD).fullmatch


# --- lists (RFC 9110 section 5.6.1) --------------------------------------------


def tokens(value: str) -> list[str]:
    """Return the tokens of a comma-separated list, in lower case. Empty elements are none.

    Raises `BadField` for anything else, and for more than MAX_LIST_ELEMENTS of them.
    """
    parts = value.split(",", MAX_LIST_ELEMENTS)
    if len(parts) > MAX_LIST_ELEMENTS:
        raise BadField(f"a list of more than {MAX_LIST_ELEMENTS} elements")
    found = []
    for part in parts:
        if element := part.strip(" \t"):
            if _token(element) is None:
                raise BadField(f"{element[:40]!r} is not a token (RFC 9110 section 5.6.2)")
            found.append(element.lower())
    return found


# --- preferences (RFC 9110 section 12) -------------------------------------------

_quality: Final = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?").fullmatch
_media_range: Final = re.compile(rf"\*/\*|{_WORD}/{_WORD}").fullmatch


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One element of ``Accept``, in lower case, such as ``text/*``."""

    type: str
    parameters: frozenset[tuple[str, str]]
    quality: float

    def rank(self, media_type: str, parameters: frozenset[tuple[str, str]]) -> int:
        """Return how closely this names a type: 0 not at all, 1 as ``*/*``, 2 by its family, 3 or more by name."""
        if not self.parameters <= parameters:
            return 0
        if self.type == media_type:
            return 3 + len(self.parameters)
        if self.type == "*/*":
            return 1
        return 2 if self.type.endswith("/*") and media_type.startswith(self.type[:-1]) else 0


def quality_values(value: str) -> list[tuple[str, float]]:
    """Return the elements of a list such as ``Accept-Encoding`` with their qualities, lower-case, in order.

    An element with a malformed quality is left out, as is all beyond
    MAX_LIST_ELEMENTS: a preference that cannot be read is no preference.
    """
    return [(element, quality) for element, _, quality in _weighted(value)]


def cookie(headers: Headers, name: str) -> str | None:
    """Return the value of the first cookie called *name* (RFC 6265 section 4.2), quotes left on; `None` without one."""
    wanted = name.encode("latin-1") + b"="
    for field, value in headers.raw:
        if field == b"cookie" and wanted in value:
            for pair in value.split(b";"):
                if (pair := pair.strip(b" \t")).startswith(wanted):
                    return pair[len(wanted) :].decode("latin-1")
    return None


def parse_accept(value: str) -> list[MediaRange]:
    """Return the media ranges of an ``Accept`` field; those that cannot be read are left out."""
    return [
        MediaRange(element, frozenset(parameters), quality)
        for element, parameters, quality in _weighted(value)
        if _media_range(element) is not None
    ]


def quality_of(ranges: Iterable[MediaRange], media_type: str) -> float:
    """Return the quality that *ranges* give to *media_type*, by the range that names it most closely; 0.0 is refusal.

    *media_type* may have parameters, such as ``text/plain; charset=utf-8``.
    """
    name, parameters = _with_parameters(media_type.lower())
    best, quality = 0, 0.0
    for each in ranges:
        if (rank := each.rank(name, frozenset(parameters))) > best:
            best, quality = rank, each.quality
    return quality


def _weighted(value: str) -> Iterator[tuple[str, list[tuple[str, str]], float]]:
    """Yield (element, parameters before q, quality). A comma always parts elements: nobody quotes one in these lists."""
    for part in islice(value.lower().split(",", MAX_LIST_ELEMENTS), MAX_LIST_ELEMENTS):
        element, parameters = _with_parameters(part)
        if not element:
            continue
        weight = next((i for i, (name, _) in enumerate(parameters) if name == "q"), None)
        if weight is None:
            yield element, parameters, 1.0
        elif _quality(parameters[weight][1]) is not None:
            yield element, parameters[:weight], float(parameters[weight][1])


def _with_parameters(text: str) -> tuple[str, list[tuple[str, str]]]:
    element, *rest = text.split(";", MAX_LIST_ELEMENTS)
    parameters = []
    for each in rest:
        name, _, value = each.strip(" \t").partition("=")
        parameters.append((name, value.strip('"')))
    return element.strip(" \t"), parameters


# --- addresses -----------------------------------------------------------------

_V6: Final = r"[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*"
_ZONE: Final = r"(?:%[0-9A-Za-z._~-]+)?"
_node: Final = re.compile(
    rf"(?:([0-9.]+)|\[({_V6}){_ZONE}\])(?::(?:[0-9]{{1,5}}|_[0-9A-Za-z._-]+))?|({_V6}){_ZONE}"
).fullmatch


def parse_address(text: str) -> Address | None:
    """Return the address in a node of X-Forwarded-For or Forwarded, or `None` where there is none to believe.

    Ports and zones are dropped: ``192.0.2.1:80``, ``[2001:db8::1]:80`` and
    ``fe80::1%eth0`` are all written. ``unknown`` and ``_hidden`` (RFC 7239
    section 6) have no address.
    """
    return None if len(text) > MAX_ADDRESS_SIZE else _parsed(text)


@lru_cache(maxsize=MAX_PARSED_ADDRESSES)
def _parsed(text: str) -> Address | None:
    if (match := _node(text)) is None:
        return None
    try:
        address = ipaddress.ip_address(match[1] or match[2] or match[3])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_trusted(address: Address, trusted: Iterable[Network]) -> bool:
    """Tell whether one of the networks *trusted* contains *address*."""
    return any(address in network for network in trusted)


# --- Forwarded (RFC 7239) --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForwardedHop:
    """What one proxy wrote into ``Forwarded``; empty where it said nothing. Quotes are taken off, nothing is checked."""

    node: str = ""
    """``for``: who sent it the request."""
    by: str = ""
    host: str = ""
    proto: str = ""


# Back to front: what our own proxy wrote stands last and is well-formed, and nothing that a client put before it,
# such as an open quote, may change how it reads. Escapes, which only read forwards, are not accepted.
_last_element: Final = re.compile(r'((?:"[^"\\]*+"|[^",])*+)(?:,|\Z)').match
_pair: Final = re.compile(rf'[ \t]*({_WORD})=(?:({_WORD})|"([^"\\]*)")[ \t]*(?:;|\Z)').match


def forwarded_hops(lines: Iterable[str]) -> Iterator[ForwardedHop]:
    """Yield what proxies wrote into the ``Forwarded`` lines of a request, the nearest proxy first.

    Ends at the first element that is malformed, and after MAX_FORWARDED_HOPS.
    """
    backwards, at = ",".join(lines)[::-1], 0
    for _ in range(MAX_FORWARDED_HOPS):
        if (match := _last_element(backwards, at)) is None:
            return
        if element := match[1][::-1].strip(" \t"):
            if (hop := _forwarded_hop(element)) is None:
                return
            yield hop
        at = match.end()
        if at == len(backwards):
            return


def _forwarded_hop(element: str) -> ForwardedHop | None:
    pairs: dict[str, str] = {}
    at = 0
    while at < len(element):
        if (match := _pair(element, at)) is None or match[1].lower() in pairs:
            return None
        pairs[match[1].lower()] = match[2] or match[3] or ""
        at = match.end()
    return ForwardedHop(pairs.get("for", ""), pairs.get("by", ""), pairs.get("host", ""), pairs.get("proto", ""))


def forwarded_element(address: str, proto: str, host: str, by: str = "") -> bytes:
    """Return the element for one hop: addresses without brackets, *host* as the client sent it; empty is left out.

    Raises `BadField` for a value that could not be read back.
    """
    out = f"for={_forwarded_value(_bracketed(address)) if address else 'unknown'}"
    if by:
        out += f";by={_forwarded_value(_bracketed(by))}"
    if host:
        out += f";host={_forwarded_value(host)}"
    if proto:
        out += f";proto={_forwarded_value(proto)}"
    return out.encode("ascii")


_quotable: Final = re.compile(r"[ !#-\[\]-~]+").fullmatch


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _forwarded_value(value: str) -> str:
    if _token(value) is not None:
        return value
    if _quotable(value) is None:
        raise BadField(f"{value[:40]!r} cannot stand in Forwarded: visible ASCII without quote or backslash can")
    return f'"{value}"'


# --- X-Forwarded-For and -Proto -----------------------------------------------------


def forwarded_for(lines: Iterable[str]) -> Iterator[str]:
    """Yield the elements of the ``X-Forwarded-For`` lines of a request, the nearest proxy's first, unchecked.

    Ends after MAX_FORWARDED_HOPS; empty elements are none.
    """
    nearest_last = ",".join(lines).rsplit(",", MAX_FORWARDED_HOPS)[-MAX_FORWARDED_HOPS:]
    for element in reversed(nearest_last):
        if node := element.strip(" \t"):
            yield node


def client_address(peer_ip: str, headers: Headers, trusted: Sequence[Network]) -> tuple[str, str | None]:
    """Return who the request came from and the scheme it was sent with, as far as *trusted* proxies say so.

    Walks from the socket's peer towards the client while the hop in hand is
    trusted, so what a client wrote itself is never reached through an honest
    proxy. Stops before a hop that is no address: the last trusted one is then
    the client. The scheme, ``http`` or ``https``, is what the farthest trusted
    proxy said; `None` where none said a thing.

    Only one of the two fields is walked: X-Forwarded-For if it is there, else
    Forwarded. A trusted proxy must therefore set, or remove, both of them.
    """
    if not trusted and ":" not in peer_ip:
        return peer_ip, None
    if (client := parse_address(peer_ip)) is None or not is_trusted(client, trusted):
        return (peer_ip if client is None else str(client)), None
    fields: dict[bytes, list[str]] = {}
    for name, value in headers.raw:
        if name in _FORWARDED_FIELDS:
            fields.setdefault(name, []).append(value.decode("latin-1"))
    hops: Iterable[tuple[str, str]]
    if b"x-forwarded-for" not in fields and b"forwarded" in fields:
        hops = ((hop.node, hop.proto) for hop in forwarded_hops(fields[b"forwarded"]))
    else:
        # Most proxies replace X-Forwarded-Proto, some append to it: its first element counts for the hops it lacks.
        protos = list(forwarded_for(fields.get(b"x-forwarded-proto", ())))
        nodes = list(forwarded_for(fields.get(b"x-forwarded-for", ()))) or [""]
        protos += protos[-1:] * (len(nodes) - len(protos))
        hops = zip_longest(nodes, protos[: len(nodes)], fillvalue="")
    scheme: str | None = None
    for node, proto in hops:
        said = proto.lower()
        scheme = said if said in {"http", "https"} else scheme
        if (before := parse_address(node)) is None:
            break
        client = before
        if not is_trusted(client, trusted):
            break
    return str(client), scheme


_FORWARDED_FIELDS: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"forwarded"})
