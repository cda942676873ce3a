"""Certificates for tests, made with trustme: an authority, what it signed, and the files they are in."""

from __future__ import annotations

import ssl
from hashlib import sha256
from pathlib import Path

import trustme


class Authority:
    """An authority whose certificates are signed through an intermediate one, as real ones are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = trustme.CA()
        self.intermediate = self.root.create_child_ca()
        self.ca_file = str(folder / "ca.pem")
        self.root.cert_pem.write_to_path(self.ca_file)

    def issue(self, *names: str, to: str = "", common_name: str | None = None) -> dict[str, str]:
        """Make a certificate for *names*; return its files as settings."""
        made = self.intermediate.issue_cert(*names, common_name=common_name)
        stem = self.folder / (to or names[0].replace("*", "any").replace("/", "_").replace(":", "_"))
        files = {"cert_file": f"{stem}.pem", "key_file": f"{stem}.key"}
        write_chain(made, files)
        return files

    def trusting(self, *, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
        """Return a client's context that trusts the root, and nothing else."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


def write_chain(made: trustme.LeafCert, files: dict[str, str]) -> None:
    Path(files["cert_file"]).write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    made.private_key_pem.write_to_path(files["key_file"])


def fingerprint_of(files: dict[str, str]) -> str:
    """Return the SHA-256 of the first certificate in a ``cert_file``, in hexadecimal."""
    first, end, _ = Path(files["cert_file"]).read_text().partition(ssl.PEM_FOOTER)
    return sha256(ssl.PEM_cert_to_DER_cert(first + end)).hexdigest()
