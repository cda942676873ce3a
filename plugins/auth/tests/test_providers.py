"""Keys and discovery: fetched ahead, once, and not more often than the rules allow; used while they may be."""

from __future__ import annotations

import json

import anyio
import pytest
from scripted import (
    LOG,
    URL,
    ScriptedCaller,
    Ticking,
    checking,
    claims,
    discovery,
    jwk,
    jwt_issuer,
    kept,
    key_set,
    make,
    settings,
)

from gw import Answer, CallFailed, Headers
from gw_auth.keys import KeySet, read_key_set
from gw_auth.limits import MAX_KEYS
from gw_auth.providers import Endpoints, Provider, read_discovery
from gw_auth.tokens import Malformed, parse
from gw_auth.verdicts import Denied, Recognised, Undetermined

WELL_KNOWN = f"{URL}/.well-known/openid-configuration"
KEYS = f"{URL}/keys"


def provider(pages, ticking=None, keeping=None, **changed):
    ticking = ticking or Ticking()
    caller = ScriptedCaller(pages)
    made = Provider("main", settings(**changed), keeping or kept(), caller, ticking.clock, LOG)
    return made, caller, ticking


def asked(caller, url=KEYS):
    return [each[1] for each in caller.calls].count(url)


async def use(issuer, token):
    return await issuer.recognise(checking(), token, token.encode(), parse(token))


# --- discovery ----------------------------------------------------------------------------------------


async def test_endpoints_are_discovered_and_then_discovered_again():
    made, caller, ticking = provider({WELL_KNOWN: discovery(), KEYS: key_set("rsa1")}, discovery=True, jwks_uri="")
    delay = await made.turn()
    assert made.ready
    assert made.keeping.endpoints == Endpoints(KEYS, f"{URL}/introspect")
    assert delay == pytest.approx(240)
    assert caller.calls[0][2] == {"accept": "application/json", "user-agent": "gw"}
    caller.pages[WELL_KNOWN] = discovery(jwks_uri=f"{URL}/moved")
    caller.pages[f"{URL}/moved"] = key_set("rsa2")
    ticking.now += 3600
    await made.turn()
    assert made.keeping.endpoints.jwks_uri == f"{URL}/moved"
    assert [key.kid for key in made.keys().keys] == ["rsa2"]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"hello", "not JSON"),
        (b"[]", "not a JSON object"),
        (discovery(issuer=URL + "/"), f"it is about issuer '{URL}/', not '{URL}'"),
        (discovery(issuer=None), f"it is about issuer 'None', not '{URL}'"),
        (discovery(issuer=5), f"it is about issuer '5', not '{URL}'"),
        (discovery(jwks_uri=None), "it has no jwks_uri with https"),
        (discovery(jwks_uri="http://idp.test/keys"), "it has no jwks_uri with https"),
        (discovery(jwks_uri="https://user:pw@idp.test/keys"), "it has no jwks_uri with https"),
        (discovery(jwks_uri="file:///etc/passwd"), "it has no jwks_uri with https"),
        (discovery(jwks_uri="https://idp.test:99999/"), "it has no jwks_uri with https"),
        (discovery(jwks_uri=["https://idp.test/keys"]), "it has no jwks_uri with https"),
        (b'{"issuer":"https://a","issuer":"https://idp.test"}', "a member of a JSON object is there twice"),
        (Answer(302, Headers.of([("location", "https://idp.test/other")]), b""), "status 302"),
        (Answer(500, Headers(), b"{}"), "status 500"),
        (CallFailed("timeout", "no answer within 10 s"), "no answer within 10 s"),
    ],
    ids=str,
)
async def test_a_discovery_document_that_is_not_right_is_not_used(document, why, caplog):
    made, caller, ticking = provider({WELL_KNOWN: document, KEYS: key_set("rsa1")}, discovery=True, jwks_uri="")
    assert await made.turn() == 30
    assert not made.ready
    assert f"issuer main: discovery from {WELL_KNOWN} failed: {why}" in caplog.text
    caller.pages[WELL_KNOWN] = discovery()
    ticking.now += 30
    await made.turn()
    assert made.ready


async def test_a_discovery_that_fails_later_changes_nothing():
    made, caller, ticking = provider({WELL_KNOWN: discovery(), KEYS: key_set("rsa1")}, discovery=True, jwks_uri="")
    await made.turn()
    caller.pages[WELL_KNOWN] = discovery(issuer="https://attacker.test")
    ticking.now += 3600
    await made.turn()
    assert made.ready
    assert made.keeping.endpoints.jwks_uri == KEYS


def test_introspection_needs_its_own_endpoint():
    body = json.dumps(discovery(introspection_endpoint=None, jwks_uri=None)).encode()
    with pytest.raises(Malformed, match="no introspection_endpoint with https"):
        read_discovery(body, URL, wants_introspection=True, wants_keys=False)


# --- keys --------------------------------------------------------------------------------------------------


async def test_keys_are_fetched_again_before_they_run_out():
    made, caller, ticking = provider({KEYS: key_set("rsa1")})
    assert await made.turn() == pytest.approx(240)
    first = made.keys()
    ticking.now += 240
    await made.turn()
    assert asked(caller) == 2
    assert made.keys() is first, "the same keys are the same set: remembered tokens stay good"


async def test_old_keys_are_used_as_long_as_they_may_be(caplog):
    made, caller, ticking = provider({KEYS: key_set("rsa1")}, jwks_max_stale_sec=600)
    await made.turn()
    caller.pages[KEYS] = CallFailed("connect", "down")
    while ticking.now < Ticking().now + 300 + 600:
        ticking.now += await made.turn() or 1
        if ticking.now <= Ticking().now + 900:
            assert made.keys() is not None
    ticking.now += 1
    assert made.keys() is None
    assert not made.ready
    assert made.keeping.counts.stale_keys.value > 0
    assert caplog.text.count("fetching keys") <= 4, "not more than once in jwks_cache_sec"


@pytest.mark.parametrize(
    "page",
    [
        b"hello",
        b"{}",
        b'{"keys":5}',
        b'{"keys":[]}',
        b'{"keys":[5,{}]}',
        key_set({"kty": "oct", "k": "AQAB", "kid": "x"}),
    ],
)
async def test_a_key_set_without_a_usable_key_is_none(page):
    made, _, _ = provider({KEYS: page})
    await made.turn()
    assert made.keys() is None
    assert made.keeping.counts.parse_error.value == 1


def test_of_a_large_key_set_the_first_are_taken():
    found = read_key_set(key_set(*(jwk("ec256", kid=str(number)) for number in range(MAX_KEYS + 5))))
    assert len(found) == MAX_KEYS
    assert found.skipped == (f"there are more than {MAX_KEYS} keys; the others are not used",)


def test_broken_keys_are_skipped_and_say_why():
    found = read_key_set(key_set("rsa1", jwk("rsa2", use="enc"), jwk("ec256", crv="P-192"), jwk("ed", crv="X25519")))
    assert [key.kid for key in found.keys] == ["rsa1"]
    assert found.skipped[:2] == ("keys[1]: its use is not sig", "keys[2]: its curve is none of P-256, P-384 and P-521")


def test_two_keys_may_share_a_name_if_they_differ_in_kind():
    found = read_key_set(key_set(jwk("rsa1", kid="a"), jwk("ec256", kid="a")))
    assert [min(key.algorithms) for key in found.named("a")] == ["PS256", "ES256"]


# --- requests that wait ----------------------------------------------------------------------------------------


async def test_the_first_requests_wait_for_the_keys():
    caller, verdicts = ScriptedCaller({KEYS: key_set("rsa1")}), []
    issuer = jwt_issuer(caller)
    token = make(claims(Ticking().now))

    async def request():
        verdicts.append(await use(issuer, token))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(request)
        await anyio.wait_all_tasks_blocked()
        assert not verdicts
        tasks.start_soon(issuer.provider.run)
        while len(verdicts) < 10:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert all(isinstance(verdict, Recognised) for verdict in verdicts)
    assert asked(caller) == 1


async def test_after_a_failed_attempt_nobody_waits():
    issuer = jwt_issuer(ScriptedCaller())
    await issuer.provider.turn()
    verdict = await use(issuer, make(claims(Ticking().now)))
    assert isinstance(verdict, Undetermined)
    assert (verdict.retry_after, verdict.reason, verdict.firm) == (1.0, "cache_miss_no_issuer", False)


async def test_ten_thousand_forged_keys_are_one_call_in_each_cooldown():
    ticking, caller = Ticking(), ScriptedCaller({KEYS: key_set("rsa1")})
    issuer = jwt_issuer(caller, ticking, jwks_cooldown_sec=5)
    kinds = []
    good = make(claims(ticking.now, exp=int(ticking.now) + 10_000))
    forged = [make(claims(ticking.now), key="rsa2", header={"kid": f"forged-{number}"}) for number in range(100)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(issuer.provider.run)
        await use(issuer, good)
        for number in range(10_000):
            ticking.now += 0.01
            token = forged[number % 100].replace(".", ".", 1)
            verdict = await issuer.recognise(checking(), token, b"", parse(token))
            kinds.append(type(verdict))
            assert not isinstance(verdict, Recognised)
        assert isinstance(await use(issuer, good), Recognised)
        tasks.cancel_scope.cancel()
    assert asked(caller) <= 1 + 100 / 5 + 1
    assert kinds.count(Denied) <= 21
    assert len(issuer.memory) == 1


async def test_a_new_key_is_found_by_the_request_that_needs_it():
    ticking, caller = Ticking(), ScriptedCaller({KEYS: key_set("rsa1")})
    issuer = jwt_issuer(caller, ticking)
    verdicts = []

    async def request(token):
        verdicts.append(await use(issuer, token))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(issuer.provider.run)
        await use(issuer, make(claims(ticking.now)))
        caller.pages[KEYS] = key_set("rsa1", "rsa2")
        async with anyio.create_task_group() as requests:
            for number in range(20):
                requests.start_soon(request, make(claims(ticking.now, jti=str(number)), key="rsa2"))
        tasks.cancel_scope.cancel()
    assert all(isinstance(verdict, Recognised) for verdict in verdicts)
    assert asked(caller) == 2


async def test_an_unknown_key_of_a_provider_that_is_down_is_undetermined():
    ticking, caller = Ticking(), ScriptedCaller({KEYS: key_set("rsa1")})
    issuer = jwt_issuer(caller, ticking)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(issuer.provider.run)
        await use(issuer, make(claims(ticking.now)))
        caller.pages.clear()
        verdict = await use(issuer, make(claims(ticking.now), key="rsa2"))
        tasks.cancel_scope.cancel()
    assert isinstance(verdict, Undetermined)
    assert verdict.detail == "issuer main: key 'rsa2' is unknown, and keys cannot be fetched"


async def test_a_request_that_goes_away_interrupts_no_fetch():
    hold = anyio.Event()

    async def slow():
        await hold.wait()
        return key_set("rsa1")

    caller = ScriptedCaller({KEYS: slow})
    issuer = jwt_issuer(caller)
    token = make(claims(Ticking().now))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(issuer.provider.run)
        with anyio.move_on_after(0.01) as scope:
            await use(issuer, token)
        assert scope.cancelled_caught
        hold.set()
        while not issuer.provider.ready:
            await anyio.lowlevel.checkpoint()
        assert isinstance(await use(issuer, token), Recognised)
        tasks.cancel_scope.cancel()
    assert asked(caller) == 1
    assert issuer.provider._waiting == 0


async def test_a_fault_of_ours_does_not_end_the_task(caplog):
    ticking, caller = Ticking(), ScriptedCaller({KEYS: ZeroDivisionError("ours")})
    issuer = jwt_issuer(caller, ticking, discovery_retry_sec=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(issuer.provider.run)
        verdict = await use(issuer, make(claims(ticking.now)))
        assert isinstance(verdict, Undetermined)
        caller.pages[KEYS] = key_set("rsa1")
        ticking.now += 1
        issuer.provider._wanted.set()
        assert isinstance(await use(issuer, make(claims(ticking.now))), Recognised)
        tasks.cancel_scope.cancel()
    assert "issuer main: keys and endpoints could not be looked after; trying again" in caplog.text


async def test_not_everybody_may_wait(monkeypatch):
    monkeypatch.setattr("gw_auth.providers.MAX_WAITING", 2)
    issuer = jwt_issuer()
    token, verdicts = make(claims(Ticking().now)), []

    async def request():
        verdicts.append(await use(issuer, token))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(request)
        await anyio.wait_all_tasks_blocked()
        assert [type(verdict) for verdict in verdicts] == [Undetermined]
        await issuer.provider.turn()
    assert [type(verdict) for verdict in verdicts[1:]] == [Recognised, Recognised]


# --- tokens that were seen ------------------------------------------------------------------------------------------


async def test_a_token_is_remembered_until_it_ends():
    ticking = Ticking()
    issuer = jwt_issuer(ticking=ticking)
    await issuer.provider.turn()
    token = make(claims(ticking.now, exp=int(ticking.now) + 100))
    found = await use(issuer, token)
    assert issuer.remembered(token.encode()) is found
    ticking.now += 129
    assert issuer.remembered(token.encode()) is found
    ticking.now += 1
    assert issuer.remembered(token.encode()) is None
    assert not issuer.memory


async def test_a_token_is_forgotten_when_the_keys_change():
    ticking, caller = Ticking(), ScriptedCaller({KEYS: key_set("rsa1")})
    issuer = jwt_issuer(caller, ticking)
    await issuer.provider.turn()
    token = make(claims(ticking.now, exp=int(ticking.now) + 9999))
    await use(issuer, token)
    ticking.now += 250
    await issuer.provider.turn()
    assert issuer.remembered(token.encode()) is not None
    caller.pages[KEYS] = key_set("rsa2")
    ticking.now += 250
    await issuer.provider.turn()
    assert issuer.remembered(token.encode()) is None


async def test_memory_is_bounded():
    ticking = Ticking()
    issuer = jwt_issuer(ticking=ticking, remembered_tokens=10)
    await issuer.provider.turn()
    for number in range(25):
        await use(issuer, make(claims(ticking.now, jti=str(number))))
    assert len(issuer.memory) == 10
    none = jwt_issuer(ticking=ticking, remembered_tokens=0)
    await none.provider.turn()
    await use(none, make(claims(ticking.now)))
    assert not none.memory


async def test_only_a_set_that_was_read_is_a_set():
    assert isinstance(read_key_set(key_set("ed")), KeySet)
    assert repr(read_key_set(key_set("ed"))) == "<KeySet of 1>"
