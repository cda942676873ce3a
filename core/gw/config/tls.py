"""The settings of TLS, toward clients and toward upstreams, and of listeners (behaviour 4.2, 4.5)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from gw.config import hosts
from gw.config.settings import Settings
from gw.config.values import Host, HostPatterns, Name

__all__ = ["ListenerConfig", "TlsConfig", "UpstreamTlsConfig"]

MinVersion = Literal["1.2", "1.3"]


def _server_name(text: str) -> str:
    return hosts.host(text).removesuffix(".") if text else text


ServerName = Annotated[str, AfterValidator(_server_name)]
BindPort = Annotated[int, Field(ge=0, le=65535)]


class CertificateConfig(Settings):
    """A certificate for some of the names that clients ask for (SNI)."""

    cert_file: str
    """PEM: the certificate and the intermediate ones behind it."""
    key_file: str
    """PEM: its private key."""
    hosts: Annotated[HostPatterns, Field(min_length=1)]
    """The names it is for: a host, or `*.` and a domain."""


class ClientCertificatesConfig(Settings):
    """Certificates that clients show."""

    verify: Literal["none", "optional", "required"] = "none"
    """Whether clients are asked for one: a wrong one always ends the handshake, none at all where it is `required`."""
    ca_file: str = ""
    """PEM: the authorities that are trusted to have signed them."""

    @model_validator(mode="after")
    def _has_authorities(self) -> ClientCertificatesConfig:
        if self.verify != "none" and not self.ca_file:
            raise ValueError(f"verify: {self.verify} needs ca_file, the authorities to verify against")
        return self


class TlsConfig(Settings):
    """TLS with clients."""

    enabled: bool = False
    """Whether the listener speaks TLS; then it speaks nothing else."""
    cert_file: str = ""
    """PEM: the certificate, and the intermediate ones behind it. For clients that ask for no name, or for none of `certificates`."""
    key_file: str = ""
    """PEM: its private key."""
    certificates: tuple[CertificateConfig, ...] = ()
    """Further certificates, by the name that the client asks for."""
    min_version: MinVersion = "1.2"
    """The oldest version that is spoken."""
    ciphers: str = ""
    """Cipher suites of TLS 1.2, as OpenSSL writes them; empty means its own choice. Those of TLS 1.3 are not chosen."""
    client_certificates: ClientCertificatesConfig = ClientCertificatesConfig()
    """Certificates of clients."""

    @model_validator(mode="after")
    def _has_certificate(self) -> TlsConfig:
        if self.enabled and not (self.cert_file and self.key_file):
            raise ValueError("enabled: true needs cert_file and key_file")
        return self


class ListenerConfig(Settings):
    """One address to listen on."""

    name: Name
    """How logs call it."""
    bind_host: Host = "127.0.0.1"
    """An address, or a name that is resolved at start."""
    bind_port: BindPort
    """TCP port; 0 takes a free one and logs it."""
    tls: TlsConfig = TlsConfig()
    """TLS."""


class UpstreamTlsConfig(Settings):
    """TLS with an upstream."""

    enabled: bool = False
    """Whether it is spoken."""
    ca_file: str = ""
    """PEM: the authorities that its certificate is verified against; empty means those of the system."""
    verify_peer: bool = True
    """Whether its certificate is verified. Without it anybody can be the upstream."""
    sni_hostname: ServerName = ""
    """The name that is asked for and verified; empty means the endpoint's host."""
    min_version: MinVersion = "1.2"
    """The oldest version that is spoken."""
    cert_file: str = ""
    """PEM: our own certificate, for upstreams that want one."""
    key_file: str = ""
    """PEM: its private key."""

    @model_validator(mode="after")
    def _both_or_none(self) -> UpstreamTlsConfig:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("has one of cert_file and key_file; give both, or none")
        return self
