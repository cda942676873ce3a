"""What loads, what does not, and what is said about it; the reference's section loads as it is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gw.config.errors import ConfigError
from gw.config.load import load, schema
from gw.plugins import load as load_named
from gw_auth.settings import CertificateHolder

ISSUERS = {"main": {"issuer_url": "https://idp.test"}}
UP = {"name": "api", "host": "192.0.2.1"}


def loaded(auth=None, upstreams=(UP,), routes=()):
    config = {"upstreams": list(upstreams), "routes": list(routes)}
    if auth is not None:
        config["auth"] = auth
    return load(config, environ={})


def problems(*args, **rest):
    with pytest.raises(ConfigError) as refused:
        loaded(*args, **rest)
    return [line.removeprefix("configuration: ") for line in str(refused.value).splitlines()]


def policy(**changed):
    return {"name": "p", "enabled": True, "applies_to": ["/"], "issuers": ["main"], **changed}


def auth(**changed):
    return {"enabled": True, "issuers": ISSUERS, **changed}


REFERENCE = {
    "enabled": True,
    "debug_response_headers": False,
    "hmac_cache_key_env": "AUTH_HMAC_KEY",
    "issuers": {
        "google": {
            "issuer_url": "https://accounts.google.com",
            "mode": "jwt",
            "discovery": True,
            "jwks_uri": "",
            "upstream": "idp",
            "audiences": ["my-client"],
            "algorithms": ["RS256", "ES256"],
            "leeway_sec": 30,
            "jwks_cache_sec": 300,
            "jwks_refresh_timeout_sec": 5,
            "discovery_retry_sec": 30,
            "required_claims": ["email"],
        },
        "ours": {
            "issuer_url": "https://login.internal",
            "mode": "introspection",
            "discovery": False,
            "upstream": "idp",
            "introspection": {
                "endpoint": "https://login.internal/introspect",
                "client_id": "gateway",
                "client_secret_env": "SECRET",
                "auth_style": "basic",
                "timeout_sec": 3,
                "cache_sec": 60,
                "negative_cache_sec": 10,
                "stale_grace_sec": 30,
                "max_entries": 100000,
                "shards": 16,
            },
        },
    },
    "policies": [
        {
            "name": "admin",
            "enabled": True,
            "applies_to": ["/admin/", "/ops"],
            "issuers": ["google", "ours"],
            "required_scopes": ["admin"],
            "required_audience": "admin-api",
            "on_undetermined": "deny",
            "realm": "admin",
        },
        {"name": "off"},
    ],
    "forward": {
        "subject_header": "X-Auth-Subject",
        "issuer_header": "X-Auth-Issuer",
        "scopes_header": "X-Auth-Scopes",
        "raw_jwt_header": "",
        "claims_to_headers": {"email": "X-Auth-Email"},
        "strip_inbound_identity_headers": True,
        "preserve_authorization": True,
    },
}


def test_the_section_of_the_reference_loads_as_it_is(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    inline = {"enabled": True, "issuers": ["google"], "required_scopes": [], "on_undetermined": "allow", "realm": "api"}
    users = {"name": "users", "host": "192.0.2.2", "proxy": {"route_prefix": "/users", "auth": inline}}
    found = loaded(REFERENCE, upstreams=[users, {"name": "idp", "host": "127.0.0.1", "port": 9443}])
    section = found.config.auth
    assert section.policies[0].applies_to == ("/admin", "/ops")
    assert found.config.upstreams[0].proxy.auth.on_undetermined == "allow"
    assert [str(each.problem.message) for each in found.warnings] == [
        "'idp' has no tls, so tokens and the client's secret travel in the clear"
    ]


def test_defaults_are_those_of_the_reference():
    issuer = loaded(auth()).config.auth.issuers["main"]
    assert (issuer.algorithms, issuer.leeway_sec, issuer.jwks_cache_sec) == (("RS256",), 30, 300)
    assert loaded({}).config.auth.enabled is False


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"enabled": True}, "auth: is enabled, and has no issuers; nobody could be recognised"),
        (auth(issuers={"main": {}}), "auth.issuers.main.issuer_url: is required"),
        (
            auth(issuers={"main": {"issuer_url": "http://idp.test"}}),
            "auth.issuers.main.issuer_url: must begin with https:// (http:// only for this machine itself), not 'http://idp.test'",
        ),
        (auth(issuers={"main": {"issuer_url": "https://u:p@idp.test"}}), "auth.issuers.main.issuer_url: must not have user or password in it"),
        (auth(issuers={"main": {"issuer_url": "https://idp.test?a"}}), "auth.issuers.main.issuer_url: must have no query (OpenID Connect Discovery section 3)"),
        (auth(issuers={"main": {"issuer_url": "https://idp.test", "discovery": False}}), "auth.issuers.main: has no jwks_uri, which it needs without discovery"),
        (auth(issuers={"main": {"issuer_url": "https://idp.test", "algorithms": []}}), "auth.issuers.main: has no algorithms; name at least one"),
        (auth(issuers={"main": {"issuer_url": "https://idp.test", "mode": "introspection"}}), "auth.issuers.main: has mode introspection, and no introspection"),
        (auth(issuers={"main": {"issuer_url": "https://idp.test", "upstream": "apo"}}), "auth.issuers.main.upstream: there is no upstream 'apo' (did you mean 'api'?)"),
        (
            auth(issuers={"main": {"issuer_url": "https://idp.test", "algorithms": ["HS256"]}}),
            "auth.issuers.main.algorithms[0]: must be one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA, not 'HS256' (did you mean 'RS256'?)",
        ),
        (auth(policies=[policy(issuers=[])]), "auth.policies[0]: is enabled, and has no issuers; name some, or others under any or all, or make it public"),
        (auth(policies=[policy(applies_to=[])]), "auth.policies[0]: is enabled, and has no applies_to; write [''] for every path"),
        (auth(policies=[policy(issuers=["mian"])]), "auth.policies[0].issuers[0]: there is no issuer 'mian' (did you mean 'main'?)"),
        (auth(policies=[policy(public=True)]), "auth.policies[0]: is public, and says who may pass; keep one"),
        (auth(policies=[policy(any=[{"basic": "x"}])]), "auth.policies[0]: must have one of issuers, any and all"),
        (auth(policies=[policy(), policy(applies_to=["/b"])]), "auth.policies[1].name: 'p' is the name of auth.policies[0] already"),
        (auth(policies=[policy(), policy(name="q")]), "auth.policies[1].applies_to[0]: covers '/', which policy 'p' covers already"),
        (auth(policies=[policy(applies_to=["/a", "/a/"])]), "auth.policies[0].applies_to: lists '/a' twice"),
        (auth(policies=[policy(applies_to=["a"])]), "auth.policies[0].applies_to[0]: must be empty or start with '/', not 'a'"),
        (auth(policies=[policy(hosts=["a:80"])]), "auth.policies[0].hosts[0]: 'a:80' is neither a host without port nor '*.' and a domain"),
        (auth(policies=[policy(required_scopes=["a b"])]), "auth.policies[0].required_scopes[0]: 'a b' is not a scope: printable ASCII without spaces, quotes and backslashes"),
        (auth(forward={"subject_header": "Host"}), "auth.forward.subject_header: Host has a meaning of its own; choose another header"),
        (auth(forward={"subject_header": "a b"}), "auth.forward.subject_header: 'a b' is not a header name"),
        (auth(forward={"claims_to_headers": {"a": "x-auth-ISSUER"}}), "auth.forward: has 'x-auth-ISSUER' for two things; the case of letters does not count"),
        (auth(forward={"subject_header": "-".join("abcdefghij")}), "auth.forward.subject_header: a-b-c-d-e-f-g-h-i-j has more than 8 dashes; choose a shorter name"),
        (auth(api_keys={"k": {"keys": [{"name": "a", "sha256": "AB"}]}}), "auth.api_keys.k.keys[0].sha256: must be the SHA-256 of a key, as 64 hexadecimal digits in lower case"),
        (auth(basic={"b": {"users": "a:plain"}}), "auth.basic.b.users: line 1 is not a user and a bcrypt hash; write it with htpasswd -B"),
        (auth(policies=[policy(issuers=[], any=[{"api_keys": "none"}])]), "auth.policies[0].any[0].api_keys: there is no entry of auth.api_keys 'none'"),
        (auth(forward_auth={"f": {"url": "https://a", "request_headers": ["X-Forwarded-Uri"]}}), "auth.forward_auth.f.request_headers[0]: x-forwarded-uri is not a header of the request to show: the gateway writes it itself, or it is about one connection"),
        (auth(policies=[policy(issuers=[], any=[{}])]), "auth.policies[0].any[0]: must have exactly one of issuers, api_keys, basic, certificates, forward_auth, all"),
        (auth(certificates={"m": {}}), "auth.certificates.m: lets nobody in; name some clients, or what names others"),
        (auth(certificates={"m": {"clients": [{"name": "a"}]}}), "auth.certificates.m.clients[0]: must have exactly one of san, subject and sha256"),
        (auth(certificates={"m": {"clients": [{"name": "a", "san": "spiffe://x"}]}}), "auth.certificates.m.clients[0].san: must be DNS:, URI: or email: and a name, not 'spiffe://x'"),
        (auth(certificates={"m": {"clients": [{"name": "a", "sha256": "AB"}]}}), "auth.certificates.m.clients[0].sha256: must be the SHA-256 of a certificate, as 64 hexadecimal digits with or without colons"),
        (auth(certificates={"m": {"clients": [{"name": "a", "san": "DNS:A.test"}, {"name": "b", "san": "DNS:a.test"}]}}), "auth.certificates.m: has the certificate of clients[0] ('a') twice"),
        (auth(policies=[policy(issuers=[], any=[{"certificates": "mesh"}])]), "auth.policies[0].any[0].certificates: there is no entry of auth.certificates 'mesh'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(section, told):
    assert problems(section) == [told]


@pytest.mark.parametrize(
    "prefix", ["/a//b", "/a/../b", "/a/./b", "/a%2fb", "/%61", "/a%", "/a%4", "/ä", "/a b", "/a?b", "/a#b", "/."]
)
def test_a_prefix_is_spelled_as_the_gateway_spells_paths(prefix):
    (told,) = problems(auth(policies=[policy(applies_to=[prefix])]))
    assert "is not spelled as the gateway spells paths" in told


@pytest.mark.parametrize("prefix", ["", "/", "/a", "/a/", "/a%2Fb", "/a.b/~c", "/a;b", "/%C3%A4"])
def test_other_prefixes_will_do(prefix):
    loaded(auth(policies=[policy(applies_to=[prefix])]))


def introspecting(**changed):
    own = {"endpoint": "https://idp.test/i", "client_id": "gw", "client_secret_env": "SECRET", **changed}
    own = {key: value for key, value in own.items() if value is not None}
    return auth(
        issuers={
            "main": {"issuer_url": "https://idp.test", "mode": "introspection", "upstream": "idp", "introspection": own}
        }
    )


def test_a_secret_has_no_place_in_the_configuration(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    upstreams = [{"name": "idp", "host": "127.0.0.1"}]
    (told,) = problems(introspecting(client_secret="x"), upstreams)
    assert told.startswith("auth.issuers.main.introspection.client_secret: is not a known key")
    (told,) = problems(introspecting(client_secret_env=None), upstreams)
    assert told.endswith("must have exactly one of client_secret_env and client_secret_file")
    (told,) = problems(introspecting(shards=3), upstreams)
    assert told.endswith("shards: must be a power of two, not 3")


def test_a_missing_secret_is_warned_of(monkeypatch, tmp_path):
    monkeypatch.delenv("SECRET", raising=False)
    upstreams = [{"name": "idp", "host": "127.0.0.1"}]
    told = [each.problem.message for each in loaded(introspecting(), upstreams).warnings]
    assert "environment variable SECRET is not set, so this issuer can never be asked" in told
    secret = tmp_path / "secret"
    secret.write_text("s\n")
    found = loaded(introspecting(client_secret_env=None, client_secret_file=str(secret)), upstreams)
    assert len(found.warnings) == 1


@pytest.mark.parametrize(
    ("host", "level"), [("192.0.2.1", None), ("127.0.0.2", "warning"), ("::1", "warning"), ("localhost", "warning")]
)
def test_an_introspecting_issuer_needs_tls_to_its_upstream(monkeypatch, host, level):
    monkeypatch.setenv("SECRET", "x")
    upstreams = [{"name": "idp", "host": host}]
    if level is None:
        (told,) = problems(introspecting(), upstreams)
        assert (
            told
            == "auth.issuers.main.upstream: 'idp' has no tls, so tokens and the client's secret travel in the clear"
        )
    else:
        assert [each.problem.level for each in loaded(introspecting(), upstreams).warnings] == [level]


def inline(prefix="/api", **changed):
    return {**UP, "proxy": {"route_prefix": prefix, "auth": {"enabled": True, "issuers": ["main"], **changed}}}


@pytest.mark.parametrize(
    ("upstream", "told"),
    [
        (inline(issuers=[]), "upstreams[0].proxy.auth: is enabled, and has no issuers; name some, or others under any or all, or make it public"),
        (inline(""), "upstreams[0].proxy.auth: needs a route_prefix, or a route that sends to this upstream"),
        (inline("/a/:id"), "upstreams[0].proxy.auth: needs a literal route_prefix, not '/a/:id'; use auth in routes for a pattern"),
        (inline("/a/*rest"), "upstreams[0].proxy.auth: needs a literal route_prefix, not '/a/*rest'; use auth in routes for a pattern"),
        (inline(issuers=["x"]), "upstreams[0].proxy.auth.issuers[0]: there is no issuer 'x'"),
        (inline("/p"), "upstreams[0].proxy.auth: covers '/p', which policy 'p' covers already"),
    ],
)  # fmt: skip
def test_an_inline_policy_has_its_rules(upstream, told):
    assert problems(auth(policies=[policy(applies_to=["/p"])]), [upstream]) == [told]


def test_an_inline_policy_has_no_paths_of_its_own():
    (told,) = problems(auth(), [inline(applies_to=["/x"])])
    assert told.startswith("upstreams[0].proxy.auth.applies_to: is not a known key")


def test_an_inline_policy_is_not_lost_on_a_route_with_several_upstreams():
    route = {"match": {"prefix": "/w"}, "upstreams": [{"name": "api"}, {"name": "other"}]}
    upstreams = [inline(), {"name": "other", "host": "192.0.2.2"}]
    assert problems(auth(), upstreams, [route]) == [
        "routes[0]: sends to several upstreams, of which 'api' has a policy; give this route its own auth"
    ]
    loaded(auth(), upstreams, [{**route, "auth": {"issuers": ["main"]}}])


def test_a_policy_without_effect_is_not_silent():
    route = {"match": {"prefix": "/w"}, "upstream": "api", "auth": {"issuers": ["main"]}}
    told = "routes[0].auth: has no effect while auth.enabled is false"
    assert problems({"issuers": ISSUERS}, routes=[route]) == [told]
    (warning,) = loaded({"enabled": False, "issuers": ISSUERS}, routes=[route]).warnings
    assert str(warning) == f"configuration: warning: {told}"
    (warning,) = loaded({"issuers": ISSUERS}, [inline()]).warnings
    assert "has no effect" in str(warning)


def test_what_switches_protection_off_is_warned_of():
    route = {"match": {"prefix": "/w"}, "upstream": "api", "plugins": ["rewrite"]}
    (warning,) = loaded(auth(), routes=[route]).warnings
    assert str(warning) == (
        "configuration: warning: routes[0].plugins: leaves out auth, so no policy protects this route; "
        "add it, with auth: {public: true} if everybody may pass"
    )
    (warning,) = loaded(auth(on_error="allow")).warnings
    assert str(warning).startswith("configuration: warning: auth.on_error: is allow: where this plugin fails")


def test_certificates_that_no_listener_asks_for_are_warned_of():
    (warning,) = loaded(auth(certificates={"mesh": {"others": "URI"}})).warnings
    assert str(warning) == (
        "configuration: warning: auth.certificates: is of no use: no listener asks clients for certificates; "
        "set tls.client_certificates"
    )


def test_a_fingerprint_may_be_written_as_openssl_prints_it():
    holder = CertificateHolder(name="a", sha256=":".join(["AB"] * 32))
    assert holder.sha256 == "ab" * 32


def test_the_same_prefix_may_be_covered_for_other_hosts_and_methods():
    loaded(
        auth(
            policies=[
                policy(hosts=["a"]),
                policy(name="q", hosts=["b"]),
                policy(name="r"),
                policy(name="s", methods=["GET"]),
            ]
        )
    )


def test_hashes_are_not_shown():
    section = auth(api_keys={"k": {"keys": [{"name": "a", "sha256": "ab" * 32}]}})
    assert "ab" * 32 not in json.dumps(loaded(section).effective())


def test_the_schema_has_the_section_where_it_may_stand():
    found = schema(load_named(["auth"]))
    assert "auth" in found["properties"]
    assert "auth" in found["$defs"]["ProxyConfig"]["properties"]
    assert "auth" in found["$defs"]["RouteConfig"]["properties"]
    assert "auth" not in found["$defs"]["UpstreamConfig"]["properties"]


def test_a_plugin_that_is_off_brings_no_library_of_its_extra():
    code = "import gw.config.load as load, sys; load.load({'plugins': ['auth'], 'upstreams': []}, environ={}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jwt", "cryptography", "httpcore", "bcrypt"} & set(done.stdout.split())


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("gw_auth.checks.find_spec", lambda name: None)
    assert problems(auth()) == [
        "auth.enabled: needs 'jwt' and 'cryptography' and 'httpcore', which is not installed; run pip install 'gw[auth]'"
    ]
    loaded({})


def test_an_issuer_is_no_service_of_the_dns():
    idp = {"name": "idp", "endpoints": [{"srv": "_http._tcp.idp.example"}], "proxy": {"route_prefix": "/idp"}}
    issuers = {"main": {"issuer_url": "https://idp.test", "upstream": "idp"}}
    config = {"dns": {"resolver": "dnspython"}, "auth": auth(issuers=issuers), "upstreams": [UP, idp]}
    with pytest.raises(ConfigError) as refused:
        load(config, environ={})
    assert [each.problem.message for each in refused.value.problems] == [
        "'idp' is a service (srv), and issuers are called at a host; name another upstream"
    ]
