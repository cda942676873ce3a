"""The plugin auth with a certified provider that knows nothing of us: npm's oidc-provider, as a process."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import ssl
import subprocess
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from certificates import Authority
from started import Started, start_echo, start_gateway, until

from gw.testing import PATIENCE

VERSION = "9"
SCRIPT = Path(__file__).with_name("oidc_provider.mjs")


@pytest.fixture(scope="session")
def packages(peer, tmp_path_factory):
    """Give a folder with oidc-provider in it, or skip; in CI fail."""
    npm, folder = peer("npm"), tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text("{}")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", f"oidc-provider@{VERSION}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    version = subprocess.run([peer("node"), "--version"], capture_output=True, text=True, check=True).stdout
    why = (
        done.stderr[-300:] if done.returncode else "" if int(version[1:].split(".")[0]) >= 20 else f"node is {version}"
    )
    if why:
        message = f"no real OpenID provider was tried: oidc-provider {VERSION} needs npm with its registry, and node 20: {why}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
    return folder


class Idp:
    """The provider, as its clients see it."""

    def __init__(self, started):
        self.started, self.url = started, f"http://127.0.0.1:{started.port}"

    def post(self, path, client="app", certificate=b"", **fields):
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE)
        pair = base64.b64encode(f"{client}:{client}-secret".encode()).decode()
        headers = {"authorization": f"Basic {pair}", "content-type": "application/x-www-form-urlencoded"}
        if certificate:
            headers["x-certificate"] = base64.b64encode(certificate).decode()
        connection.request("POST", path, urlencode(fields), headers)
        with contextlib.closing(connection):
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            return json.loads(body) if body else {}

    def token(self, resource, scope="api.read", **rest):
        fields = {"grant_type": "client_credentials", "scope": scope, "resource": resource}
        return self.post("/token", **fields, **rest)["access_token"]


@pytest.fixture(scope="session")
def idp(peer, packages):
    started = Started([peer("node"), str(SCRIPT), str(packages)])
    yield Idp(started)
    assert started.end() == 0, started.log


@pytest.fixture(scope="session")
def upstream():
    with contextlib.closing(start_echo()) as started:
        yield started


@pytest.fixture(scope="session", params=[("native", "uvloop"), ("pure", "trio")], ids="-".join)
def gateway(request, idp, upstream, tmp_path_factory):
    folder = tmp_path_factory.mktemp("auth")
    secret = folder / "secret"
    secret.write_text("gw-secret\n")
    introspection = {"client_id": "gw", "client_secret_file": str(secret), "cache_sec": 1, "negative_cache_sec": 0}
    issuer = {"issuer_url": idp.url, "algorithms": ["RS256", "ES256", "EdDSA"], "jwks_cooldown_sec": 1}
    config = {
        "bind_port": 0,
        "engine": request.param[0],
        "loop": request.param[1],
        "upstreams": [{"name": "up", "host": "127.0.0.1", "port": upstream.port, "proxy": {"route_prefix": "/"}}],
        "auth": {
            "enabled": True,
            "debug_response_headers": True,
            "issuers": {
                "jwt": {**issuer, "token_types": ["at+jwt"]},
                "opaque": {**issuer, "mode": "introspection", "introspection": introspection},
                "signed": {**issuer, "mode": "introspection", "introspection": {**introspection, "signed": True}},
            },
            "policies": [
                {
                    "name": "jwt",
                    "enabled": True,
                    "applies_to": ["/jwt"],
                    "issuers": ["jwt"],
                    "required_scopes": ["api.read"],
                },
                {
                    "name": "aud",
                    "enabled": True,
                    "applies_to": ["/aud"],
                    "issuers": ["jwt"],
                    "required_audience": "urn:jwt:RS256",
                },
                {"name": "opaque", "enabled": True, "applies_to": ["/opaque"], "issuers": ["opaque"]},
                {"name": "signed", "enabled": True, "applies_to": ["/signed"], "issuers": ["signed"]},
            ],
        },
    }
    with contextlib.closing(start_gateway(config, folder=folder)) as started:
        yield started


def get(gateway, path, token, tls=None):
    connection = (
        HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
        if tls is None
        else HTTPSConnection("127.0.0.1", gateway.port, timeout=PATIENCE, context=tls)
    )
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        answer.body = answer.read()
        return answer


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
def test_tokens_of_a_real_provider_are_verified(gateway, idp, alg):
    token = idp.token(f"urn:jwt:{alg}")
    for _ in range(2):
        answer = get(gateway, "/jwt", token)
        assert (answer.status, answer.headers["x-auth-issuer"]) == (200, "jwt")
    assert re.search(rb"x-auth-subject\W+app\b", answer.body), answer.body
    assert get(gateway, "/jwt", idp.token(f"urn:jwt:{alg}", scope="api.write")).status == 403
    assert get(gateway, "/aud", token).status == (200 if alg == "RS256" else 401)
    head, body, sign = token.split(".")
    assert get(gateway, "/jwt", f"{head}.{body}.{sign[:-8]}AAAAAAAA").status == 401


@pytest.mark.parametrize("path", ["/opaque", "/signed"])
def test_a_real_provider_is_asked_and_knows_what_was_revoked(gateway, idp, path):
    token = idp.token("urn:opaque")
    assert get(gateway, path, token).status == 200
    again = get(gateway, path, token)
    assert (again.status, again.headers["x-auth-cache"]) == (200, "hit")
    idp.post("/token/revocation", token=token)
    until(lambda: get(gateway, path, token).status != 200, "cache_sec is over, and the provider is asked again")
    assert get(gateway, path, token).status == 401
    assert get(gateway, path, "nobody-knows-this-one").status == 401


def test_a_real_provider_may_turn_its_keys(gateway, idp):
    old = idp.token("urn:jwt:RS256")
    assert get(gateway, "/jwt", old).status == 200
    idp.post("/rotate")
    new = idp.token("urn:jwt:RS256")
    assert get(gateway, "/jwt", new).status == 200
    assert get(gateway, "/jwt", old).status in {401, 503}
    assert get(gateway, "/jwt", new).status == 200


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=[("native", "uvloop"), ("pure", "trio")], ids="-".join)
def secure(request, idp, upstream, authority, tmp_path_factory):
    """A gateway that knows clients by their certificates, and takes tokens that are bound to one."""
    folder = tmp_path_factory.mktemp("secure")
    secret = folder / "secret"
    secret.write_text("gw-secret\n")
    introspection = {"client_id": "gw", "client_secret_file": str(secret)}
    ways = {"/jwt": "jwt", "/opaque": "opaque"}
    config = {
        "bind_port": 0,
        "engine": request.param[0],
        "loop": request.param[1],
        "tls": {
            "enabled": True,
            **authority.issue("127.0.0.1", to=f"gw-{request.param[0]}"),
            "client_certificates": {"verify": "optional", "ca_file": authority.ca_file},
        },
        "upstreams": [{"name": "up", "host": "127.0.0.1", "port": upstream.port, "proxy": {"route_prefix": "/"}}],
        "auth": {
            "enabled": True,
            "issuers": {
                "jwt": {"issuer_url": idp.url},
                "opaque": {"issuer_url": idp.url, "mode": "introspection", "introspection": introspection},
            },
            "certificates": {"mesh": {"others": "DNS", "clients": [{"name": "ops", "san": "DNS:ops.test"}]}},
            "policies": [
                {"name": "mesh", "enabled": True, "applies_to": ["/mesh"], "any": [{"certificates": "mesh"}]},
                *(
                    {"name": name, "enabled": True, "applies_to": [path], "issuers": [name]}
                    for path, name in ways.items()
                ),
            ],
        },
    }
    with contextlib.closing(start_gateway(config, folder=folder)) as started:
        yield started


def showing(authority, name):
    """Return a client's context that shows a certificate of *name*, and that certificate."""
    files, context = authority.issue(name), authority.trusting()
    context.load_cert_chain(files["cert_file"], files["key_file"])
    first, end, _ = Path(files["cert_file"]).read_text().partition(ssl.PEM_FOOTER)
    return context, (first + end).encode()


@pytest.mark.parametrize(("name", "subject"), [("ops.test", b"ops"), ("shop.test", b"shop.test")])
def test_a_certificate_is_a_way_in(secure, authority, name, subject):
    context, _ = showing(authority, name)
    answer = get(secure, "/mesh", "", context)
    assert answer.status == 200
    assert re.search(rb"x-auth-subject\W+" + re.escape(subject) + rb"\b", answer.body), answer.body
    assert get(secure, "/mesh", "", authority.trusting()).status == 403


@pytest.mark.parametrize("path", ["/jwt", "/opaque"])
def test_tokens_that_a_real_provider_binds_count_with_their_certificate_only(secure, idp, authority, path):
    holder, certificate = showing(authority, "holder.test")
    thief, _ = showing(authority, "thief.test")
    resource = "urn:jwt:RS256" if path == "/jwt" else "urn:opaque"
    token = idp.token(resource, client="bound", certificate=certificate)
    for context, status in ((thief, 401), (holder, 200), (thief, 401), (authority.trusting(), 401), (holder, 200)):
        assert get(secure, path, token, context).status == status
