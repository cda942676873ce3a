"""A provider that the tests play themselves: its keys, its tokens, and what it answers, without a socket or with one.

Tokens are put together by hand, so that everything can be wrong with them; only signatures come from PyJWT.
"""

from __future__ import annotations

import json
import logging
import time
from base64 import urlsafe_b64encode
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache

import anyio
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from gw import TRACE, Answer, CallFailed, Client, Exchange, Figures, Headers, Request
from gw_auth.counts import IssuerCounts
from gw_auth.introspection import Answers, IntrospectedIssuer
from gw_auth.issuers import JwtIssuer, Memory
from gw_auth.keys import _ALGORITHMS
from gw_auth.providers import Clock, Keeping, Provider
from gw_auth.settings import Issuer
from gw_auth.spans import Check

URL = "https://idp.test"
LOG = logging.getLogger("gw.auth")
_CURVES = {"ec256": ec.SECP256R1, "ec384": ec.SECP384R1, "ec521": ec.SECP521R1}


@cache
def private(name):
    """Return the private key called *name*, made once: rsa*, weak, ec256, ec384, ec521 or ed*."""
    if name.startswith("rsa"):
        return rsa.generate_private_key(65537, 2048)
    if name == "weak":
        return rsa.generate_private_key(65537, 1024)
    if name in _CURVES:
        return ec.generate_private_key(_CURVES[name]())
    return ed25519.Ed25519PrivateKey.generate()


@cache
def _public(name):
    kind = RSAAlgorithm if name.startswith(("rsa", "weak")) else ECAlgorithm if name.startswith("ec") else OKPAlgorithm
    return kind.to_jwk(private(name).public_key(), as_dict=True)


def jwk(name, **members):
    """Return the public key called *name* as its provider publishes it."""
    found = {"kid": name, **_public(name), "use": "sig", **members}
    found.pop("key_ops", None) if "key_ops" not in members else None
    return {key: value for key, value in found.items() if value is not None}


def key_set(*keys):
    return json.dumps({"keys": [jwk(key) if isinstance(key, str) else key for key in keys]}).encode()


def b64(data):
    if not isinstance(data, bytes):
        data = json.dumps(data).encode()
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(now=None, **changed):
    """Return the claims of a good token; `None` takes one away."""
    now = time.time() if now is None else now
    found = {
        "iss": URL,
        "sub": "alice",
        "exp": int(now) + 300,
        "iat": int(now),
        "scope": "api.read api.write",
        **changed,
    }
    return {key: value for key, value in found.items() if value is not None}


def signature(signing_input, key, alg):
    return _ALGORITHMS[alg].sign(signing_input.encode(), private(key))


def make(payload=None, *, key="rsa1", alg="RS256", header=None, **changed):
    """Return a token. *payload* is claims or bytes, *header* more members of the header, `None` takes one away."""
    members = {"alg": alg, "typ": "JWT", "kid": key, **(header or {})}
    members = {name: value for name, value in members.items() if value is not None}
    signed = f"{b64(members)}.{b64(claims(**changed) if payload is None else payload)}"
    return f"{signed}.{b64(signature(signed, key, alg))}"


class Ticking:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 1_000_000_000.0

    @property
    def clock(self):
        return Clock(lambda: self.now, lambda: self.now)


class ScriptedCaller:
    """Answers calls from *pages*: URL to body, to `Answer`, to an exception, or to what makes one of these."""

    def __init__(self, pages=None):
        self.pages = dict(pages or {})
        self.calls = []

    async def call(self, method, url, *, headers=(), body=b"", timeout, most):  # noqa: ASYNC109  # as the real one
        self.calls.append((method, url, dict(headers), body))
        await anyio.lowlevel.checkpoint()
        page = self.pages.get(url, CallFailed("connect", "nobody is there"))
        if callable(page):
            page = page()
            if hasattr(page, "__await__"):
                page = await page
        if isinstance(page, Exception):
            raise page
        if isinstance(page, dict):
            page = json.dumps(page).encode()
        return page if isinstance(page, Answer) else Answer(200, Headers(), page)


def discovery(url=URL, **changed):
    found = {"issuer": url, "jwks_uri": f"{url}/keys", "introspection_endpoint": f"{url}/introspect", **changed}
    return {key: value for key, value in found.items() if value is not None}


def settings(**changed):
    found = {"issuer_url": URL, "discovery": False, "jwks_uri": f"{URL}/keys", **changed}
    return Issuer.model_validate_json(json.dumps(found))


def asking(headers=None, trace=None):
    """Return an exchange with a request as clients send them, which *trace* traces."""
    ex = Exchange(Request("GET", "/", Headers.of((headers or {}).items())), Client("192.0.2.9", "192.0.2.9"))
    if trace is not None:
        ex[TRACE] = trace
    return ex


def checking(trace=None):
    return Check(asking(trace=trace), "main")


def kept():
    """Return what is known of a provider of which nothing is known yet."""
    return Keeping(IssuerCounts(Figures(), "main"))


def jwt_issuer(caller=None, ticking=None, keeping=None, **changed):
    """Return an issuer whose key set is `rsa1`, unless *caller* says otherwise. Its task does not run."""
    ticking = ticking or Ticking()
    caller = caller or ScriptedCaller({f"{URL}/keys": key_set("rsa1")})
    own = settings(**changed)
    provider = Provider("main", own, keeping or kept(), caller, ticking.clock, LOG)
    return JwtIssuer(provider, Memory(), ticking.clock)


def introspected(caller, ticking=None, answers=None, secret="s3cret", **own):
    """Return an issuer that asks *caller* at ``/introspect``."""
    ticking = ticking or Ticking()
    group = {"endpoint": f"{URL}/introspect", "client_id": "gw", "client_secret_env": "SECRET", **own}
    more = {key: group.pop(key) for key in list(group) if key in Issuer.model_fields}
    found = settings(mode="introspection", introspection=group, **more)
    provider = Provider("opaque", found, kept(), caller, ticking.clock, LOG)
    return IntrospectedIssuer(provider, caller, answers or Answers(), secret, b"k" * 32, ticking.clock, LOG)


def certificate():
    """Return an authority and, as PEM files would have them, a certificate of localhost that it signed, and its key."""
    now, key, own = datetime.now(UTC), private("ec256"), private("ec384")
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("authority", "localhost")]

    def signed(subject, public, extension):
        made = x509.CertificateBuilder(names[0], subject, public, x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        made = made.add_extension(extension, critical=True).add_extension(identifier, critical=False)
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        return made.sign(key, SHA256()).public_bytes(Encoding.PEM)

    authority = signed(names[0], key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
    server = signed(names[1], own.public_key(), x509.SubjectAlternativeName([x509.DNSName("localhost")]))
    return authority, server + own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Refusing(TLSListener):
    """Does not mind clients that do not trust it."""

    @staticmethod
    async def handle_handshake_error(exc, stream):
        await anyio.aclose_forcefully(stream)


@asynccontextmanager
async def serving(answers, tls=None):
    """Serve *answers*, path to bytes or to a function of the request, on a real socket; yields its URL and the requests."""
    asked = []

    async def handle(stream):
        async with stream:
            try:
                while True:
                    request = b""
                    while b"\r\n\r\n" not in request:
                        request += await stream.receive()
                    head, _, body = request.partition(b"\r\n\r\n")
                    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                    while length and len(body) < int(length[0][15:]):
                        body += await stream.receive()
                    path = head.split(b" ")[1].decode()
                    asked.append((path, head.decode(), body.decode()))
                    answer = answers.get(path, b"")
                    answer = answer(head.decode(), body.decode()) if callable(answer) else answer
                    status = 200 if path in answers else 404
                    if isinstance(answer, tuple):
                        status, lines, answer = answer
                        head = "".join(f"{name}: {value}\r\n" for name, value in lines)
                    else:
                        head = ""
                    await stream.send(
                        f"HTTP/1.1 {status} X\r\n{head}content-length: {len(answer)}\r\n\r\n".encode() + answer
                    )
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    url = f"http://127.0.0.1:{port}" if tls is None else f"https://localhost:{port}"
    if tls is not None:
        listener = Refusing(listener, tls, standard_compatible=False)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield url, asked
        tasks.cancel_scope.cancel()
