"""Where a configuration says to listen, and with which certificates; and what those of clients say."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from gw.config.model import GatewayConfig
from gw.config.tls import TlsConfig
from gw.keys import Certificate
from gw.net.tls import KeyPair, ServerTls, ServerTlsSettings

__all__ = ["Place", "certificate_of", "places"]


@dataclass(frozen=True, slots=True)
class Place:
    """One listener, before it listens; *tls* is `None` for cleartext."""

    name: str
    host: str
    port: int
    tls: ServerTls | None

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def scheme(self) -> str:
        return "http" if self.tls is None else "https"


def places(config: GatewayConfig) -> list[Place]:
    """Return every listener of *config*, its certificates loaded; raises `gw.net.tls.TlsError`."""
    return [
        Place(
            each.name,
            each.bind_host,
            each.bind_port,
            ServerTls(each.name, _settings(each.tls, config)) if each.tls.enabled else None,
        )
        for each in config.all_listeners()
    ]


def _settings(tls: TlsConfig, config: GatewayConfig) -> ServerTlsSettings:
    first = KeyPair(tls.cert_file, tls.key_file)
    return ServerTlsSettings(
        pairs=(first, *(KeyPair(each.cert_file, each.key_file, each.hosts) for each in tls.certificates)),
        alpn=("h2", "http/1.1") if config.http2.enabled else ("http/1.1",),
        min_version=tls.min_version,
        ciphers=tls.ciphers,
        verify=tls.client_certificates.verify,
        ca_file=tls.client_certificates.ca_file,
        handshake_timeout=config.request_timeout_sec,
    )


def certificate_of(connection: ssl.SSLObject | None) -> Certificate | None:
    """Return the certificate that the peer showed and that was verified; `None` for none."""
    found: Any = None if connection is None else connection.getpeercert()
    if connection is None or not found:
        return None
    whole = connection.getpeercert(binary_form=True) or b""
    subject = ",".join(
        "+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in part)
        for part in reversed(found.get("subject", ()))
    )
    names = tuple(_printable(f"{kind}:{value}") for kind, value in found.get("subjectAltName", ()))
    return Certificate(_printable(subject), names, found.get("serialNumber", ""), sha256(whole).hexdigest())


def _printable(text: str) -> str:
    """Keep out what could end a header or a line of a log: an authority may sign anything."""
    return text if text.isprintable() else "".join(each if each.isprintable() else "?" for each in text)


_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}
"""Short names of attribute types (RFC 4514 section 3)."""


def _escaped(value: str) -> str:
    """Write an attribute's value as RFC 4514 section 2.4 says."""
    out = "".join(f"\\{each}" if each in '\\,+"<>;=' else each for each in value).replace("\0", "\\00")
    if out[:1] in {" ", "#"}:
        out = "\\" + out
    return out[:-1] + "\\ " if len(out) > 1 and out.endswith(" ") else out
