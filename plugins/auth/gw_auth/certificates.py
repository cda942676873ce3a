"""Clients' certificates: who is at the other end of the connection, by what an authority signed.

The handshake has verified the certificate before any request comes; here it is only asked whose it is. That is found
out once for each certificate.
"""

from __future__ import annotations

from gw import Certificate, Exchange, Identity
from gw_auth.limits import MAX_CERTIFICATES
from gw_auth.settings import CertificateHolder, Certificates
from gw_auth.tokens import shown
from gw_auth.verdicts import Denied, Judge, Recognised, Verdict

__all__ = ["Certified"]


class Certified:
    """A certificate that the client showed in the handshake."""

    schemes: tuple[str, ...] = ()

    def __init__(self, name: str, settings: Certificates) -> None:
        self._name, self._settings = name, settings
        self._nothing = self._denied("missing_token", "no certificate was shown")
        self._known: dict[str, Recognised | Denied] = {}
        """By fingerprint, the oldest first."""

    async def recognise(self, ex: Exchange, judge: Judge) -> Verdict:
        certificate = ex.client.certificate
        if certificate is None:
            return self._nothing
        found = self._known.get(certificate.sha256)
        if found is None:
            found = self._look(certificate)
            while len(self._known) >= MAX_CERTIFICATES:
                del self._known[next(iter(self._known))]
            self._known[certificate.sha256] = found
        return found

    def _look(self, certificate: Certificate) -> Recognised | Denied:
        own = self._settings
        names = frozenset(map(_comparable, certificate.names))
        for client in own.clients:
            if _fits(client, certificate, names):
                return self._recognised(client.name, (*own.scopes, *client.scopes))
        whose = f"the certificate of {shown(certificate.subject)!r}, sha256 {certificate.sha256},"
        if not own.others:
            return self._denied("policy_denied", f"{whose} is none of certificates.{self._name}")
        if own.others == "subject":
            candidates = [certificate.subject] if certificate.subject else []
        else:
            kind = f"{own.others}:"
            candidates = [each.removeprefix(kind) for each in certificate.names if each.startswith(kind)]
        if len(candidates) != 1:
            what = "no subject" if own.others == "subject" else f"{len(candidates)} names of kind {own.others}, not one"
            return self._denied("policy_denied", f"{whose} has {what}")
        return self._recognised(candidates[0], own.scopes)

    def _recognised(self, subject: str, scopes: tuple[str, ...]) -> Recognised:
        distinct = tuple(dict.fromkeys(scopes))
        return Recognised(Identity(subject, self._name, frozenset(distinct), {"sub": subject}, "certificate"), distinct)

    def _denied(self, reason: str, detail: str) -> Denied:
        """Return a refusal that leaves room for other ways in: the certificate came with the connection, not with the request."""
        return Denied(reason, detail, scheme="", missing=True)


def _fits(client: CertificateHolder, certificate: Certificate, names: frozenset[str]) -> bool:
    if client.san:
        return client.san in names
    if client.subject:
        return client.subject == certificate.subject
    return client.sha256 == certificate.sha256


def _comparable(name: str) -> str:
    """Return an alternative name as settings have it: hosts in lower case."""
    return f"DNS:{name[4:].lower()}" if name.startswith("DNS:") else name
