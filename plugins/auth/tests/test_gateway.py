"""The plugin in a whole gateway: what clients get, byte for byte, and what upstreams see."""

import json
import ssl

import anyio
import pytest
from scripted import certificate, claims, discovery, key_set, make, serving

from gw.config.load import load
from gw.context import PluginContext, Shared
from gw.generation import build
from gw.http.engines import choose
from gw.testing.gateway import Upstream, in_memory
from gw.testing.memory import MemoryNetwork

NO_STORE = [("cache-control", "no-store"), ("pragma", "no-cache")]


def config(url, *, issuer=None, forward=None, policies=None, **more):
    return {
        "auth": {
            "enabled": True,
            "issuers": {"main": {"issuer_url": url, **(issuer or {})}},
            "policies": policies or [{"name": "api", "enabled": True, "applies_to": ["/"], "issuers": ["main"]}],
            "forward": forward or {},
            **more,
        },
        "upstreams": [{"name": "up", "host": "192.0.2.1", "port": 80, "proxy": {"route_prefix": "/"}}],
    }


def provider(**pages):
    """Return the pages of a provider that publishes `rsa1`; its URL is put in when it is known."""
    return {"/keys": key_set("rsa1"), **pages}


class Idp:
    def __init__(self, url, pages, asked):
        self.url, self.pages, self.asked = url, pages, asked

    def token(self, **changed):
        return make(claims(iss=self.url, **changed))


@pytest.fixture
async def idp():
    pages = {"/keys": key_set("rsa1")}
    async with serving(pages) as (url, asked):
        pages["/.well-known/openid-configuration"] = json.dumps(discovery(url)).encode()
        yield Idp(url, pages, asked)


def bearer(token, **more):
    return {"authorization": f"Bearer {token}", **more}


def answer(found):
    """Return all of an answer but what every answer has."""
    return (
        found.status,
        [line for line in found.headers if line[0] not in {"content-length", "date", "via"}],
        found.body,
    )


async def test_a_good_token_lets_the_request_pass_with_its_identity(idp):
    upstream = Upstream()
    async with in_memory(config(idp.url), upstream) as gateway:
        found = await gateway.get("/a", bearer(idp.token(), **{"X-Auth-Subject": "forged", "x_auth_scopes": "admin"}))
    assert found.status == 200
    headers = upstream.asked[0].head.headers
    assert headers.get_all("x-auth-subject") == ["alice"]
    assert headers.get("x-auth-issuer") == idp.url
    assert headers.get("x-auth-scopes") == "api.read api.write"
    assert "x_auth_scopes" not in headers
    assert headers.get("authorization").startswith("Bearer ")


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, 'Bearer realm="api"'),
        ({"authorization": "Bearer"}, 'Bearer realm="api"'),
        ({"authorization": "Bearer   "}, 'Bearer realm="api"'),
        ({"authorization": "Basic YTpi"}, 'Bearer realm="api"'),
        (bearer("a.b"), 'Bearer realm="api", error="invalid_request", error_description="malformed token"'),
        (bearer("a b"), 'Bearer realm="api", error="invalid_request", error_description="malformed token"'),
        (bearer("x" * 8000 + "é"), 'Bearer realm="api", error="invalid_request", error_description="malformed token"'),
    ],
)
async def test_a_missing_token_is_challenged_without_a_code_and_a_bad_one_with_it(idp, headers, challenge):
    async with in_memory(config(idp.url) | {"max_header_size": 0}) as gateway:
        found = await gateway.get("/a", headers)
    plain = ("content-type", "text/plain")
    assert answer(found) == (401, [plain, ("www-authenticate", challenge), *NO_STORE], b"Unauthorized")


async def test_a_token_that_is_too_large_is_refused(idp):
    async with in_memory(config(idp.url) | {"max_header_size": 0}) as gateway:
        found = await gateway.get("/a", bearer("x" * 8193))
    assert 'error="invalid_request", error_description="token too large"' in found.headers.get("www-authenticate")


async def test_a_missing_scope_is_403_and_says_which(idp):
    policies = [
        {
            "name": "api",
            "enabled": True,
            "applies_to": ["/"],
            "issuers": ["main"],
            "required_scopes": ["api.read", "api.admin"],
            "realm": 'my "own"\\realm\n',
        }
    ]
    async with in_memory(config(idp.url, policies=policies)) as gateway:
        found = await gateway.get("/a", bearer(idp.token()))
    challenge = (
        'Bearer realm="my \\"own\\"\\\\realm", error="insufficient_scope", '
        'error_description="missing required scope", scope="api.read api.admin"'
    )
    plain = ("content-type", "text/plain")
    assert answer(found) == (403, [plain, ("www-authenticate", challenge), *NO_STORE], b"Forbidden")


async def test_a_provider_that_is_down_makes_it_undetermined(idp):
    idp.pages.clear()
    async with in_memory(config(idp.url)) as gateway:
        found = await gateway.get("/a", bearer(idp.token()))
    plain = ("content-type", "text/plain")
    assert answer(found) == (503, [plain, ("retry-after", "1"), *NO_STORE], b"Service Unavailable")


async def test_undetermined_may_be_allowed_and_is_then_nobody(idp):
    idp.pages.clear()
    upstream = Upstream()
    policies = [
        {"name": "a", "enabled": True, "applies_to": [""], "issuers": ["main"], "on_undetermined": "allow"},
    ]
    async with in_memory(config(idp.url, policies=policies), upstream) as gateway:
        sent = bearer(
            idp.token(), **{"x-auth-subject": "forged", "x-auth-undetermined": "false", "X_Auth_Issuer": "me"}
        )
        found = await gateway.get("/a", sent)
    assert found.status == 200
    lines = [line for line in upstream.asked[0].head.headers if line[0].startswith(("x-auth", "x_auth"))]
    assert lines == [("x-auth-undetermined", "true")]


async def test_an_unknown_key_is_never_allowed_as_undetermined(idp):
    policies = [
        {"name": "a", "enabled": True, "applies_to": [""], "issuers": ["main"], "on_undetermined": "allow"},
    ]
    upstream = Upstream()
    async with in_memory(config(idp.url, policies=policies), upstream) as gateway:
        statuses = []
        for number in range(20):
            token = make(claims(iss=idp.url), key="rsa2", header={"kid": f"forged-{number}"})
            statuses.append((await gateway.get("/a", bearer(token))).status)
    assert statuses == [401] + [503] * 19
    assert not upstream.asked
    assert [path for path, _, _ in idp.asked].count("/keys") == 2


async def test_rotation_loses_no_request(idp):
    async with in_memory(config(idp.url)) as gateway:
        assert (await gateway.get("/a", bearer(idp.token()))).status == 200
        idp.pages["/keys"] = key_set("rsa2")
        rotated = make(claims(iss=idp.url), key="rsa2")
        assert (await gateway.get("/a", bearer(rotated))).status == 200
        # and what the old key signed is worth nothing any more
        assert (await gateway.get("/a", bearer(idp.token()))).status == 503


async def test_a_remembered_token_is_judged_again(idp):
    policies = [
        {"name": "a", "enabled": True, "applies_to": ["/a"], "issuers": ["main"]},
        {"name": "b", "enabled": True, "applies_to": ["/b"], "issuers": ["main"], "required_scopes": ["more"]},
        {"name": "c", "enabled": True, "applies_to": ["/c"], "issuers": ["main"], "required_audience": "c"},
        {"name": "d", "enabled": True, "applies_to": ["/a/open"], "public": True},
    ]
    async with in_memory(config(idp.url, policies=policies)) as gateway:
        sent = bearer(idp.token(aud=["a"]))
        found = [(await gateway.get(path, sent)).status for path in ("/a", "/b", "/c", "/else", "/a")]
        bare = [
            (await gateway.get(path)).status for path in ("/a", "/a/open", "/a/open/x", "/a/opened", "/else", "/abc")
        ]
    assert found == [200, 403, 401, 200, 200]
    assert bare == [401, 200, 200, 401, 200, 200]


async def test_debug_headers_tell_the_client_what_was_decided(idp):
    async with in_memory(config(idp.url, debug_response_headers=True)) as gateway:
        good = await gateway.get("/a", bearer(idp.token()))
        none = await gateway.get("/a")
    assert [line for line in good.headers if line[0].startswith("x-auth")] == [
        ("x-auth-decision", "allow"),
        ("x-auth-issuer", "main"),
    ]
    assert [line for line in none.headers if line[0].startswith("x-auth")] == [("x-auth-decision", "deny")]


async def test_claims_and_the_token_can_be_forwarded_and_authorization_kept_back(idp):
    upstream = Upstream()
    forward = {
        "claims_to_headers": {
            "tenant": "X-Tenant",
            "age": "x-age",
            "admin": "x-admin",
            "list": "x-list",
            "bad": "x-bad",
        },
        "raw_jwt_header": "x-jwt",
        "subject_header": "x-user",
        "preserve_authorization": False,
    }
    async with in_memory(config(idp.url, forward=forward), upstream) as gateway:
        token = idp.token(tenant="größe", age=5, admin=True, list=["a"], bad="a\r\nb")
        assert (await gateway.get("/a", bearer(token))).status == 200
    headers = upstream.asked[0].head.headers
    assert headers.get("x-tenant").encode("latin-1").decode() == "größe"
    assert (headers.get("x-age"), headers.get("x-admin"), headers.get("x-user")) == ("5", "true", "alice")
    assert headers.get("x-jwt") == token
    assert not {"x-list", "x-bad", "authorization"} & {name for name, _ in headers}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/admin", 401),
        ("/admin/x", 401),
        ("/%61dmin", 401),
        ("//admin", 401),
        ("/x/../admin", 401),
        ("/admin?x", 401),
        ("/administrator", 200),
        ("/admin%2Fx", 400),
        ("/admin;v=1/x", 400),
        ("/other%2Fx", 200),
    ],
)
async def test_no_spelling_of_a_path_evades_its_policy(idp, path, status):
    policies = [{"name": "admin", "enabled": True, "applies_to": ["/admin"], "issuers": ["main"]}]
    async with in_memory(config(idp.url, policies=policies)) as gateway:
        assert (await gateway.get(path)).status == status


async def test_the_nearest_policy_counts():
    async with serving({"/keys": key_set("rsa1")}) as (url, _):
        found = config(url, issuer={"discovery": False, "jwks_uri": f"{url}/keys"})
        found["upstreams"].append(
            {
                "name": "own",
                "host": "192.0.2.1",
                "port": 80,
                "proxy": {
                    "route_prefix": "/own",
                    "auth": {"enabled": True, "issuers": ["main"], "required_scopes": ["own"]},
                },
            }
        )
        found["routes"] = [
            {"match": {"prefix": "/public"}, "upstream": "up", "auth": {"public": True}},
            {
                "match": {"prefix": "/strict"},
                "upstream": "up",
                "auth": {"issuers": ["main"], "required_scopes": ["no"]},
            },
            {"match": {"prefix": "/off"}, "upstream": "up", "auth": {"enabled": False}},
            {"match": {"prefix": "/also-own"}, "upstream": "own"},
        ]
        async with in_memory(found) as gateway:
            sent = bearer(make(claims(iss=url)))
            paths = ("/", "/own", "/own/x", "/public", "/strict", "/off", "/also-own")
            assert [(await gateway.get(path, sent)).status for path in paths] == [200, 403, 403, 200, 403, 200, 403]
            assert [(await gateway.get(path)).status for path in paths] == [401, 401, 401, 200, 401, 401, 401]


async def test_a_trailer_cannot_say_who_is_asking_either(idp):
    upstream = Upstream()
    async with in_memory(config(idp.url), upstream) as gateway:
        head = f"POST /a HTTP/1.1\r\nhost: example.test\r\nauthorization: Bearer {idp.token()}\r\n"
        body = "transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Auth-Subject: root\r\nx_auth_scopes: all\r\nx-sum: 5\r\n\r\n"
        assert (await gateway.request((head + body).encode(), method="POST")).status == 200
    assert list(upstream.asked[0].trailers) == [("x-sum", "5")]
    assert upstream.asked[0].body == b"hi"


@pytest.mark.parametrize(
    ("tls", "status"),
    [({"ca_file": "ca.pem"}, 200), ({}, 503), ({"verify": False}, 200)],
    ids=["trusted", "unknown", "any"],
)
async def test_a_provider_s_certificate_is_verified_as_configured(tmp_path, monkeypatch, tls, status):
    monkeypatch.chdir(tmp_path)
    authority, server = certificate()
    (tmp_path / "ca.pem").write_bytes(authority)
    (tmp_path / "server.pem").write_bytes(server)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem")
    pages = {"/keys": key_set("rsa1")}
    async with serving(pages, context) as (url, _):
        pages["/.well-known/openid-configuration"] = json.dumps(discovery(url)).encode()
        async with in_memory(config(url, issuer={"tls": tls})) as gateway:
            assert (await gateway.get("/a", bearer(make(claims(iss=url))))).status == status


async def test_calls_may_go_to_an_upstream_whatever_the_url_says(idp):
    found = config("https://idp.example", issuer={"upstream": "idp"})
    port = int(idp.url.rpartition(":")[2])
    found["upstreams"].append({"name": "idp", "host": "127.0.0.1", "port": port})
    idp.pages["/.well-known/openid-configuration"] = json.dumps(discovery("https://idp.example")).encode()
    async with in_memory(found) as gateway:
        assert (await gateway.get("/a", bearer(make(claims(iss="https://idp.example"))))).status == 200
    assert "host: idp.example\r\n" in idp.asked[0][1].lower()


async def test_an_opaque_token_is_asked_about_and_waits_for_its_answer(idp, tmp_path):
    upstream = Upstream()
    (tmp_path / "secret").write_text("s3cret")
    idp.pages["/introspect"] = lambda head, body: json.dumps({"active": "token=good" in body, "sub": "bob"}).encode()
    own = {"client_id": "gw", "client_secret_file": str(tmp_path / "secret")}
    async with in_memory(
        config(idp.url, issuer={"mode": "introspection", "introspection": own}, debug_response_headers=True), upstream
    ) as gateway:
        found = [await gateway.get("/a", bearer(token)) for token in ("good", "good", "bad", "bad")]
    assert [(each.status, each.headers.get("x-auth-cache")) for each in found] == [
        (200, "miss"),
        (200, "hit"),
        (401, "miss"),
        (401, "negative"),
    ]
    challenge = 'Bearer realm="api", error="invalid_token", error_description="token is not active"'
    assert found[2].headers.get("www-authenticate") == challenge
    assert upstream.asked[0].head.headers.get("x-auth-issuer") == "main"
    assert [path for path, _, _ in idp.asked].count("/introspect") == 2


async def test_statistics_have_the_words_of_the_reference(idp):
    loaded = load(config(idp.url), environ={})
    async with in_memory(config(idp.url)) as gateway:
        for headers in ({}, bearer(idp.token()), bearer("x")):
            await gateway.get("/a", headers)
        made = gateway.gateway._current.now.routes[0].chain.placed[0].filter
        stats = made._totals.requests()
    assert stats == {
        ("deny", "<unknown>", "missing_token"): 1,
        ("allow", "main", "ok"): 1,
        ("deny", "main", "malformed_token"): 1,
    }
    async with anyio.create_task_group() as tasks:
        shared = Shared()
        generation = await build(1, loaded, MemoryNetwork(tasks, {}), choose("auto"), shared)
        context = PluginContext("auth", loaded, shared, generation._stack)
        found = loaded.plugins.call("auth", "gw_stats", ctx=context)
        assert set(found) >= {
            "enabled",
            "debug_response_headers",
            "total_allowed",
            "total_denied",
            "total_undetermined",
            "policy_count",
        }
        assert set(found["introspection"]) == {
            "ok",
            "fail",
            "cache_hit",
            "cache_miss",
            "cache_negative_hit",
            "stale_served",
        }
        assert found["issuers"]["main"]["mode"] == "jwt"
        assert set(found["issuers"]["main"]["jwks"]) >= {"key_count", "refresh_ok", "refresh_fail", "stale_served"}
        json.dumps(found)
        await generation.aclose()
        tasks.cancel_scope.cancel()


async def test_what_is_known_outlives_a_reload_that_changes_something_else(idp):
    first = load(config(idp.url, debug_response_headers=True), environ={})
    second = load(config(idp.url, debug_response_headers=False, policies=[]), environ={})
    other = load(config(idp.url, issuer={"leeway_sec": 5}), environ={})
    shared = Shared()
    async with anyio.create_task_group() as tasks:
        net = MemoryNetwork(tasks, {})
        generations = []
        for number, loaded in enumerate((first, second, other)):
            generations.append(await build(number, loaded, net, choose("auto"), shared))
        issuers = [
            next(each.filter for each in g.routes[0].chain.placed if each.filter.name == "auth") for g in generations
        ]
        guards = [each._forwarding for each in issuers]
        assert len(set(map(id, guards))) == 3
        kept = {key[1][0]: held[1] for key, held in shared._held.items() if isinstance(key[1], tuple)}
        assert set(kept) == {"provider", "memory", "policy"}
        assert sum(key[1][0] == "provider" for key in shared._held if isinstance(key[1], tuple)) == 1
        assert sum(key[1][0] == "memory" for key in shared._held if isinstance(key[1], tuple)) == 2
        for generation in generations:
            await generation.aclose()
        assert len(shared) == 0
        tasks.cancel_scope.cancel()


async def test_everything_is_idle_afterwards(idp):
    async with in_memory(config(idp.url)) as gateway:
        await gateway.get("/a", bearer(idp.token()))
        assert await gateway.leftovers() == []
