"""The filter, one exchange at a time: every way in, what it leaves behind, and the promises of filters."""

from __future__ import annotations

import base64
import logging
from hashlib import sha256

import anyio
import bcrypt
import pytest
from scripted import LOG, URL, ScriptedCaller, Ticking, claims, introspected, jwt_issuer, make

from gw import IDENTITY, Answer, CallFailed, Figures, Headers
from gw.testing import check_filter, drive
from gw_auth import settings
from gw_auth.asking import Asking, lasts
from gw_auth.counts import Rows, Totals
from gw_auth.filter import Authentication
from gw_auth.forward import Forwarding, spellings
from gw_auth.passwords import Passwords, read_htpasswd
from gw_auth.policies import Rule, Table
from gw_auth.ways import All, Any, Bearer, Keyed

KEY = "k-123456"
KEYS = settings.ApiKeys.model_validate(
    {
        "keys": [
            {"name": "billing", "sha256": sha256(KEY.encode()).hexdigest(), "scopes": ["api.read"]},
            {"name": "old", "sha256": sha256(b"old").hexdigest(), "expires": "2020-01-01T00:00:00Z"},
        ]
    },
    strict=False,
)
HASH = bcrypt.hashpw(b"open sesame", bcrypt.gensalt(4)).decode()
USERS = settings.Basic.model_validate({"users": f"# people\nali:{HASH}\n\n", "scopes": ["api.read"]}, strict=False)


def filter_of(way, *, forward=None, public=False, totals=None, **policy):
    made = settings.RoutePolicy.model_validate({"name": "p", "public": True, **policy}, strict=False)
    rule = Rule.of(made, "p", way, "gw.yaml:41:3", Rows())
    rule.public = public
    forwarding = Forwarding(settings.Forward.model_validate(forward or {}), LOG)
    return Authentication(rule, Table([]), forwarding, totals or Totals(Figures()), LOG)


async def bearer_filter(**rest):
    issuer = jwt_issuer()
    await issuer.provider.turn()
    issuer.provider.keeping.next_miss = float("inf")  # its task does not run: nobody would fetch
    return filter_of(Bearer([issuer]), **rest)


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def basic(user, password):
    return {"authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


TOKEN = make(claims(Ticking().now))


# --- the promises -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, bearer(TOKEN), bearer("x.y.z")])
async def test_it_keeps_the_promises_of_filters(headers):
    made = await bearer_filter()
    await check_filter(lambda: filter_of(made._rule.way), headers=headers)


async def test_nothing_of_a_token_is_in_a_log_or_an_explanation(caplog):
    caplog.set_level(logging.DEBUG)
    made = await bearer_filter(required_scopes=["admin"])
    tokens = [TOKEN, TOKEN[:-4] + "AAAA", make(claims(Ticking().now), key="rsa2"), "secret-opaque", make(claims(0))]
    for token in tokens:
        played = await drive(made, headers=bearer(token), explain=True)
        assert played.status in {401, 403, 503}
        for part in [*token.split("."), token]:
            assert part not in caplog.text
            assert part not in str(played.notes)


async def test_the_explanation_says_exactly_why():
    made = await bearer_filter(required_audience="b")
    token = make(claims(Ticking().now, aud=["a"]))
    (note, _) = (await drive(made, headers=bearer(token), explain=True)).notes
    why = "audience mismatch: token has [a], policy p wants [b] (gw.yaml:41:3)"
    assert (note.verdict, note.reason) == ("deny", f"policy p (gw.yaml:41:3): {why}")
    (note, _) = (await drive(await bearer_filter(), headers=bearer(TOKEN), explain=True)).notes
    assert (note.verdict, note.reason) == ("allow", "policy p (gw.yaml:41:3): 'alice' by jwt")


async def test_the_identity_is_there_for_others():
    played = await drive(await bearer_filter(), headers=bearer(TOKEN))
    found = played.exchange[IDENTITY]
    assert (found.subject, found.issuer, found.method) == ("alice", URL, "jwt")
    assert found.scopes == {"api.read", "api.write"}
    assert found.claims["scope"] == "api.read api.write"


async def test_a_public_route_has_no_identity_and_believes_no_header():
    played = await drive(filter_of(None, public=True), headers={**bearer(TOKEN), "x-auth-subject": "root"})
    assert played.status == 200
    assert played.exchange.get(IDENTITY, None) is None
    assert "x-auth-subject" not in played.upstream_headers


async def test_identity_headers_can_be_left_alone_where_no_verdict_is_given():
    forward = {"strip_inbound_identity_headers": False}
    sent = {"x-auth-subject": "root", "x-auth-undetermined": "true"}
    played = await drive(filter_of(None, public=True, forward=forward), headers=sent)
    assert played.upstream_headers.get("x-auth-subject") == "root"
    assert "x-auth-undetermined" not in played.upstream_headers
    played = await drive(await bearer_filter(forward=forward), headers=bearer(TOKEN) | sent)
    assert played.upstream_headers.get_all("x-auth-subject") == ["alice"]


def test_a_name_has_every_spelling_that_servers_mix_up():
    assert spellings("X-A-b") == {b"x-a-b", b"x_a-b", b"x-a_b", b"x_a_b"}
    assert spellings("user") == {b"user"}


async def test_verdicts_are_counted_as_clients_saw_them():
    totals = Totals(Figures())
    made = await bearer_filter(totals=totals)
    for headers in ({}, bearer(TOKEN), bearer(TOKEN), bearer("x"), bearer(make(claims(0)))):
        await drive(made, headers=headers)
    assert totals.requests() == {
        ("deny", "<unknown>", "missing_token"): 1,
        ("allow", "main", "ok"): 2,
        ("deny", "main", "malformed_token"): 1,
        ("deny", "main", "expired_token"): 1,
    }
    assert (totals.of("allow"), totals.of("deny"), totals.of("undetermined")) == (2, 3, 0)
    assert {name: row.as_dict() for name, row in made._rule.rows.items()} == {
        "": {"allowed": 0, "denied": 1, "undetermined": 0},
        "main": {"allowed": 2, "denied": 2, "undetermined": 0},
    }


# --- several issuers ------------------------------------------------------------------------------------------


async def test_an_opaque_token_goes_to_those_that_introspect_in_their_order():
    calls = []

    def says(name, answer):
        def page():
            calls.append(name)
            return answer

        return ScriptedCaller({f"{URL}/introspect": page})

    inactive, down = {"active": False}, CallFailed("connect", "refused")
    known = {"active": True, "sub": "bob"}
    for first, second, status, asked in (
        (inactive, known, 200, ["a", "b"]),
        (known, inactive, 200, ["a"]),
        (inactive, inactive, 401, ["a", "b"]),
        (down, known, 200, ["a", "b"]),
        (inactive, down, 503, ["a", "b"]),
    ):
        calls.clear()
        verifying = jwt_issuer()
        issuers = [verifying, introspected(says("a", first)), introspected(says("b", second))]
        assert (await drive(filter_of(Bearer(issuers)), headers=bearer("opaque"))).status == status
        assert calls == asked


async def test_a_token_goes_to_the_issuer_that_it_names():
    other = introspected(ScriptedCaller(), issuer_url="https://other.test")
    main = jwt_issuer()
    await main.provider.turn()
    made = filter_of(Bearer([other, main]))
    assert (await drive(made, headers=bearer(TOKEN))).status == 200
    assert (await drive(made, headers=bearer(make(claims(Ticking().now, iss="https://third.test"))))).status == 401
    assert (await drive(made, headers=bearer(make(claims(Ticking().now, iss="https://other.test"))))).status == 503


# --- keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"x-api-key": KEY}, 200),
        ({}, 401),
        ({"x-api-key": KEY + " "}, 401),
        ({"x-api-key": "old"}, 401),
        ({"x-api-key": "k" * 2000}, 401),
    ],
)
async def test_a_key_lets_its_client_in_until_it_ends(sent, status):
    played = await drive(filter_of(Keyed("partners", KEYS)), headers=sent)
    assert played.status == status
    if status == 200:
        assert played.exchange[IDENTITY].subject == "billing"
        assert played.exchange[IDENTITY].method == "api_key"
        assert "x-api-key" not in played.upstream_headers
        assert played.upstream_headers.get("x-auth-scopes") == "api.read"
    else:
        assert played.headers.get("www-authenticate") == 'ApiKey realm="api"'
        assert played.body == b"Unauthorized"


async def test_a_key_without_the_scope_is_403_without_a_bearer_challenge():
    played = await drive(filter_of(Keyed("partners", KEYS), required_scopes=["admin"]), headers={"x-api-key": KEY})
    assert (played.status, played.headers.get("www-authenticate")) == (403, None)


# --- passwords ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (basic("ali", "open sesame"), 200),
        (basic("ali", "wrong"), 401),
        (basic("bob", "open sesame"), 401),
        (basic("ali", ""), 401),
        (basic("", "open sesame"), 401),
        (basic("ali", "x" * 73), 401),
        (basic("ali", "open sesame\0"), 401),
        ({"authorization": "Basic !!!"}, 401),
        ({"authorization": "Basic " + base64.b64encode(b"nocolon").decode()}, 401),
        ({"authorization": "Basic " + base64.b64encode(b"\xff:x").decode()}, 401),
        ({}, 401),
    ],
)
async def test_a_password_lets_its_user_in(headers, status):
    played = await drive(filter_of(Passwords("staff", USERS, Ticking().clock)), headers=headers)
    assert played.status == status
    if status == 200:
        assert (played.exchange[IDENTITY].subject, played.exchange[IDENTITY].method) == ("ali", "basic")
    else:
        assert played.headers.get("www-authenticate") == 'Basic realm="api"'


async def test_a_password_that_was_right_is_not_checked_again_for_a_while(monkeypatch):
    ticking, checks = Ticking(), []
    real = bcrypt.checkpw
    monkeypatch.setattr("gw_auth.passwords.bcrypt.checkpw", lambda *pair: checks.append(1) or real(*pair))
    made = filter_of(Passwords("staff", USERS, ticking.clock))
    for _ in range(3):
        assert (await drive(made, headers=basic("ali", "open sesame"))).status == 200
    assert len(checks) == 1
    ticking.now += 300
    await drive(made, headers=basic("ali", "open sesame"))
    assert len(checks) == 2
    for _ in range(2):
        await drive(made, headers=basic("nobody", "guess"))
    assert len(checks) == 4, "a user who does not exist costs a check as well"


async def test_passwords_that_wait_are_bounded(monkeypatch):
    monkeypatch.setattr("gw_auth.passwords.MAX_PASSWORDS_WAITING", 0)
    made = filter_of(Passwords("staff", USERS, Ticking().clock))
    assert (await drive(made, headers=basic("ali", "open sesame"))).status == 503


async def test_remembered_passwords_are_bounded(monkeypatch):
    monkeypatch.setattr("gw_auth.passwords.MAX_REMEMBERED_PASSWORDS", 1)
    two = settings.Basic.model_validate({"users": f"ali:{HASH}\nbob:{HASH}\n"}, strict=False)
    way = Passwords("staff", two, Ticking().clock)
    for user in ("ali", "bob"):
        assert (await drive(filter_of(way), headers=basic(user, "open sesame"))).status == 200
    assert len(way._right) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a:{SHA}x", "line 1 is not a user and a bcrypt hash; write it with htpasswd -B"),
        (f"a:{HASH}\na:{HASH}", "line 2 has a user who is there already"),
        ("a:" + HASH.replace("$04$", "$31$"), "line 1 has a bcrypt cost that is not between 4 and 14"),
    ],
    ids=["hash", "twice", "cost"],
)
def test_a_file_of_passwords_that_will_not_do_says_where(text, told):
    with pytest.raises(ValueError, match=told.replace("$", r"\$")) as refused:
        read_htpasswd(text)
    assert HASH not in str(refused.value)


# --- another service --------------------------------------------------------------------------------------------------

ASK = "https://authz.test/check"


def answered(status=200, body=b"", **lines):
    return Answer(status, Headers.of((name.replace("_", "-"), value) for name, value in lines.items()), body)


def asking(page, ticking=None, **own):
    caller = ScriptedCaller({ASK: page})
    service = settings.ForwardAuth.model_validate({"url": ASK, **own}, strict=False)
    return Asking("authz", service, caller, (ticking or Ticking()).clock), caller


async def test_the_service_sees_the_head_and_says_who_it_is():
    way, caller = asking(
        answered(x_auth_subject="carol", x_auth_scopes="a b", x_tenant="t"), response_headers=["x-tenant"]
    )
    made = filter_of(way)
    played = await drive(
        made, target="/a?b=c", headers={"authorization": "Custom 5", "accept": "x", "x-auth-subject": "root"}
    )
    assert played.status == 200
    assert (played.exchange[IDENTITY].subject, played.exchange[IDENTITY].scopes) == ("carol", {"a", "b"})
    assert played.upstream_headers.get_all("x-auth-subject") == ["carol"]
    assert played.upstream_headers.get("x-tenant") == "t"
    headers = caller.calls[0][2]
    assert headers["authorization"] == "Custom 5"
    assert (headers["x-forwarded-method"], headers["x-forwarded-uri"]) == ("GET", "/a?b=c")
    assert "accept" not in headers


async def test_its_refusal_is_the_client_s_answer():
    way, _ = asking(answered(302, b"go", location="https://login.test", server="secret"))
    played = await drive(filter_of(way))
    assert (played.status, played.body, played.headers.get("location")) == (302, b"go", "https://login.test")
    assert "server" not in played.headers


@pytest.mark.parametrize("page", [answered(500), answered(404), CallFailed("timeout", "too slow")], ids=str)
async def test_a_service_that_fails_makes_it_undetermined(page):
    way, _ = asking(page)
    assert (await drive(filter_of(way))).status == 503
    played = await drive(filter_of(way, on_undetermined="allow"))
    assert (played.status, played.upstream_headers.get("x-auth-undetermined")) == (200, "true")


async def test_a_verdict_is_kept_as_long_as_the_service_says():
    ticking = Ticking()
    way, caller = asking(answered(cache_control="private, max-age=10"), ticking)
    made = filter_of(way)
    for _ in range(3):
        await drive(made, headers={"cookie": "a"})
    assert len(caller.calls) == 1
    await drive(made, headers={"cookie": "b"})
    await drive(made, target="/other", headers={"cookie": "a"})
    assert len(caller.calls) == 3
    ticking.now += 10
    await drive(made, headers={"cookie": "a"})
    assert len(caller.calls) == 4


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0),
        ("max-age=5", 5),
        ("MAX-AGE=5, private", 5),
        ("no-store, max-age=5", 0),
        ("no-cache", 0),
        ("max-age=99999", 3600),
        ("max-age=-1", 0),
        ("max-age=5, max-age=3", 3),
    ],
)
def test_how_long_that_is(value, seconds):
    assert lasts(value) == seconds


async def test_kept_verdicts_are_bounded(monkeypatch):
    monkeypatch.setattr("gw_auth.asking.MAX_VERDICTS", 2)
    way, _ = asking(answered(cache_control="max-age=10"))
    for number in range(5):
        await drive(filter_of(way), target=f"/{number}")
    assert len(way._kept) == 2


# --- together -----------------------------------------------------------------------------------------------------------


async def test_any_of_several_ways_lets_in():
    issuer = jwt_issuer()
    await issuer.provider.turn()
    ways = [Bearer([issuer]), Keyed("partners", KEYS), Passwords("staff", USERS, Ticking().clock)]
    made = filter_of(Any(ways, final=True))
    for headers in (
        bearer(TOKEN),
        {"x-api-key": KEY},
        basic("ali", "open sesame"),
        {**bearer("bad"), "x-api-key": KEY},
    ):
        assert (await drive(made, headers=headers)).status == 200
    played = await drive(made)
    assert played.headers.get_all("www-authenticate") == [
        'Bearer realm="api"',
        'ApiKey realm="api"',
        'Basic realm="api"',
    ]
    played = await drive(made, headers=bearer(TOKEN[:-4] + "AAAA"))
    assert 'error_description="signature invalid"' in played.headers.get("www-authenticate")


async def test_of_several_ways_the_one_with_the_scopes_counts():
    issuer = jwt_issuer()
    await issuer.provider.turn()
    made = filter_of(Any([Keyed("partners", KEYS), Bearer([issuer])], final=True), required_scopes=["api.write"])
    played = await drive(made, headers={"x-api-key": KEY, **bearer(TOKEN)})
    assert (played.status, played.exchange[IDENTITY].method) == (200, "jwt")
    assert (await drive(made, headers={"x-api-key": KEY})).status == 403


async def test_any_is_undetermined_where_somebody_might_have_known():
    down = introspected(ScriptedCaller())
    made = filter_of(Any([Keyed("partners", KEYS), Bearer([down])], final=True))
    assert (await drive(made, headers={"x-api-key": "bad", **bearer("opaque")})).status == 503


async def test_all_of_several_ways_are_needed():
    issuer = jwt_issuer()
    await issuer.provider.turn()
    made = filter_of(All([Bearer([issuer]), Keyed("partners", KEYS)]), required_scopes=["api.read", "api.write"])
    played = await drive(made, headers={**bearer(TOKEN), "x-api-key": KEY})
    assert played.status == 200
    assert (played.exchange[IDENTITY].subject, played.exchange[IDENTITY].method) == ("alice", "jwt+api_key")
    assert (await drive(made, headers=bearer(TOKEN))).status == 401
    assert (await drive(made, headers={"x-api-key": KEY})).status == 401


async def test_many_exchanges_do_not_mix_identities():
    issuer = jwt_issuer()
    await issuer.provider.turn()
    made, seen = filter_of(Bearer([issuer])), []

    async def one(name):
        for _ in range(5):
            played = await drive(made, headers=bearer(make(claims(Ticking().now, sub=name))))
            seen.append((name, played.upstream_headers.get("x-auth-subject")))

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(one, f"user-{number}")
    assert len(seen) == 50
    assert all(name == subject for name, subject in seen)
