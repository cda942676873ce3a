"""Asking a provider about tokens: what is sent, what answers mean, what is remembered, and what a failing provider costs."""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qs

import anyio
import pytest
from scripted import URL, ScriptedCaller, Ticking, b64, checking, claims, introspected, key_set, signature

from gw import Answer, CallFailed, Headers
from gw_auth.introspection import Answers
from gw_auth.limits import BREAKER_FAILURES, MAX_KEPT_ANSWER
from gw_auth.verdicts import Denied, Recognised, Undetermined

ENDPOINT = f"{URL}/introspect"


def active(**changed):
    return {"active": True, **claims(Ticking().now, **changed)}


async def use(issuer, text="opaque"):
    return await issuer.recognise(checking(), text, b"", None)


def made(page, **own):
    ticking, caller = Ticking(), ScriptedCaller({ENDPOINT: page})
    return introspected(caller, ticking, **own), caller, ticking


async def test_a_call_is_what_rfc_7662_says():
    issuer, caller, _ = made(active(), client_id="a:b ü", secret="p/w+1")
    await use(issuer, "to+k en")
    method, url, headers, body = caller.calls[0]
    assert (method, url) == ("POST", ENDPOINT)
    assert parse_qs(body.decode()) == {"token": ["to+k en"]}
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert headers["accept"] == "application/json"
    assert base64.b64decode(headers["authorization"].removeprefix("Basic ")) == b"a%3Ab+%C3%BC:p%2Fw%2B1"


async def test_the_client_may_authenticate_in_the_body():
    issuer, caller, _ = made(active(), auth_style="body")
    await use(issuer)
    assert parse_qs(caller.calls[0][3].decode()) == {
        "token": ["opaque"],
        "client_id": ["gw"],
        "client_secret": ["s3cret"],
    }
    assert "authorization" not in caller.calls[0][2]


async def test_an_active_token_is_somebody_and_remembered():
    issuer, caller, ticking = made(active())
    found = await use(issuer)
    assert isinstance(found, Recognised)
    assert (found.identity.subject, found.identity.method, found.cache) == ("alice", "introspection", "miss")
    assert issuer.at_hand(b"opaque") is found
    assert found.cache == "hit"
    assert issuer.at_hand(b"another") is None
    ticking.now += 60
    assert issuer.at_hand(b"opaque") is None
    await use(issuer)
    assert len(caller.calls) == 2


async def test_a_token_is_remembered_no_longer_than_it_lives():
    issuer, caller, ticking = made(active(exp=int(Ticking().now) + 10))
    await use(issuer)
    ticking.now += 11
    await use(issuer)
    assert len(caller.calls) == 2


async def test_without_an_issuer_it_is_called_by_its_name():
    issuer, _, _ = made(active(iss=None, exp=None, iat=None))
    assert (await use(issuer)).identity.issuer == "opaque"


@pytest.mark.parametrize(
    ("changed", "text", "reason"),
    [
        ({"iss": "https://other.test"}, "issuer not accepted", "iss_mismatch"),
        ({"exp": int(Ticking().now) - 100}, "token expired", "expired_token"),
        ({"nbf": int(Ticking().now) + 100}, "token not yet valid", "jwt_verify_failed"),
        ({"exp": "soon"}, "malformed exp claim", "malformed_token"),
        ({"sub": 5}, "malformed sub claim", "malformed_token"),
        ({"scope": 5}, "malformed scope claim", "malformed_token"),
    ],
)
async def test_an_answer_that_contradicts_itself_is_a_refusal(changed, text, reason):
    issuer, _, _ = made(active(**changed))
    verdict = await use(issuer)
    assert isinstance(verdict, Denied)
    assert (verdict.text, verdict.reason) == (text, reason)
    assert issuer.at_hand(b"opaque") is None


async def test_an_inactive_token_is_refused_and_remembered():
    issuer, caller, ticking = made({"active": False})
    first, second = await use(issuer), await use(issuer)
    assert (first.text, first.reason, first.cache, second.cache) == (
        "token is not active",
        "introspection_inactive",
        "miss",
        "negative",
    )
    ticking.now += 10
    await use(issuer)
    assert len(caller.calls) == 2


async def test_an_inactive_token_need_not_be_remembered():
    issuer, caller, _ = made({"active": False}, negative_cache_sec=0)
    await use(issuer)
    await use(issuer)
    assert (len(caller.calls), issuer.answers.kept) == (2, {})


LIES = [
    b"hello",
    b"",
    b"[]",
    b"null",
    b"{}",
    b'{"active":"true"}',
    b'{"active":1}',
    b'{"active":null}',
    b'{"active":false,"active":true}',
    b'{"active":true,"exp":NaN}',
    b'{"active":true' + b"[" * 9000,
    Answer(401, Headers(), b'{"active":true}'),
    Answer(302, Headers.of([("location", ENDPOINT)]), b'{"active":true}'),
    Answer(500, Headers(), b'{"active":true}'),
    Answer(201, Headers(), b'{"active":true}'),
    CallFailed("timeout", "no answer within 3 s"),
    CallFailed("connect", "refused"),
    CallFailed("protocol", "closed"),
    CallFailed("too_large", "the answer has more than 65536 bytes"),
]


@pytest.mark.parametrize("page", LIES, ids=lambda page: str(page)[:40])
async def test_an_answer_that_says_nothing_is_undetermined(page):
    issuer, _, _ = made(page)
    verdict = await use(issuer)
    assert isinstance(verdict, Undetermined)
    assert (verdict.retry_after, verdict.reason, verdict.firm) == (3, "introspection_error", False)
    assert not issuer.answers.kept
    assert issuer.provider.keeping.counts.fail.value == 1


async def test_a_provider_that_went_silent_is_believed_a_little_longer():
    issuer, caller, ticking = made(active())
    await use(issuer)
    caller.pages[ENDPOINT] = CallFailed("connect", "refused")
    ticking.now += 89
    stale = await use(issuer)
    assert (type(stale), stale.cache) == (Recognised, "stale")
    ticking.now += 1
    assert isinstance(await use(issuer), Undetermined)


async def test_an_inactive_token_is_never_stale():
    issuer, caller, ticking = made({"active": False})
    await use(issuer)
    caller.pages[ENDPOINT] = CallFailed("connect", "refused")
    ticking.now += 11
    assert isinstance(await use(issuer), Undetermined)


async def test_a_revoked_token_is_not_stale_afterwards():
    issuer, caller, ticking = made(active(), negative_cache_sec=0)
    await use(issuer)
    caller.pages[ENDPOINT] = {"active": False}
    ticking.now += 61
    assert isinstance(await use(issuer), Denied)
    caller.pages[ENDPOINT] = CallFailed("connect", "refused")
    assert isinstance(await use(issuer), Undetermined)


async def test_memory_is_bounded_and_keeps_what_is_used():
    issuer, _, _ = made(active(), max_entries=5)
    for number in range(5):
        await use(issuer, f"t{number}")
    assert issuer.at_hand(b"t0") is not None
    for number in range(5, 9):
        await use(issuer, f"t{number}")
    assert len(issuer.answers.kept) == 5
    assert issuer.at_hand(b"t0") is not None
    assert issuer.at_hand(b"t1") is None


async def test_a_large_answer_is_used_and_not_kept():
    issuer, caller, _ = made(active(blob="x" * MAX_KEPT_ANSWER))
    found = await use(issuer)
    assert (type(found), found.cache) == (Recognised, "uncached")
    await use(issuer)
    assert len(caller.calls) == 2


async def test_tokens_are_nowhere_in_memory():
    issuer, _, _ = made(active())
    await use(issuer, "very-secret-token")
    assert "very-secret-token" not in repr(issuer.answers)


# --- many at once ---------------------------------------------------------------------------------------


async def test_one_call_answers_for_all_that_bring_one_token():
    hold = anyio.Event()

    async def slow():
        await hold.wait()
        return active()

    issuer, caller, _ = made(slow)
    found = []

    async def request(text):
        found.append(await use(issuer, text))

    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(request, f"token-{number % 3}")
        await anyio.wait_all_tasks_blocked()
        hold.set()
    assert len(caller.calls) == 3
    assert [type(each) for each in found] == [Recognised] * 30


async def test_when_the_first_goes_away_the_next_one_asks():
    hold = anyio.Event()

    async def slow():
        await hold.wait()
        return active()

    issuer, caller, _ = made(slow)
    found = []

    async def request():
        found.append(await use(issuer))

    first = anyio.CancelScope()

    async def leaving():
        with first:
            await request()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leaving)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(request)
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        hold.set()
    assert [type(each) for each in found] == [Recognised]
    assert len(caller.calls) == 2
    assert not len(issuer._flights)


async def test_calls_in_the_air_are_bounded(monkeypatch):
    monkeypatch.setattr("gw_auth.introspection.MAX_INTROSPECTIONS", 2)
    hold = anyio.Event()

    async def slow():
        await hold.wait()
        return active()

    issuer, caller, _ = made(slow)
    found = []

    async def request(text):
        found.append(await use(issuer, text))

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(request, f"t{number}")
        await anyio.wait_all_tasks_blocked()
        assert [type(each) for each in found] == [Undetermined] * 3
        hold.set()
    assert len(caller.calls) == 2


async def test_a_provider_that_fails_again_and_again_is_left_alone():
    issuer, caller, ticking = made(CallFailed("connect", "refused"))
    for number in range(100):
        await use(issuer, f"t{number}")
    assert len(caller.calls) == BREAKER_FAILURES
    ticking.now += 1
    for number in range(100):
        await use(issuer, f"t{number}")
    assert len(caller.calls) == BREAKER_FAILURES + 1
    ticking.now += 1
    await use(issuer)
    assert len(caller.calls) == BREAKER_FAILURES + 1, "twice as long the second time"
    ticking.now += 1
    caller.pages[ENDPOINT] = active()
    assert isinstance(await use(issuer), Recognised)
    assert isinstance(await use(issuer, "another"), Recognised)


async def test_a_flapping_provider_is_asked_by_one_request_at_a_time():
    hold = anyio.Event()
    issuer, caller, ticking = made(CallFailed("connect", "refused"))
    for number in range(BREAKER_FAILURES):
        await use(issuer, f"t{number}")
    ticking.now += 2

    async def slow():
        await hold.wait()
        return active()

    caller.pages[ENDPOINT] = slow
    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(use, issuer, f"u{number}")
        await anyio.wait_all_tasks_blocked()
        assert len(caller.calls) == BREAKER_FAILURES + 1
        hold.set()


async def test_without_a_secret_nobody_is_asked():
    ticking, caller = Ticking(), ScriptedCaller({ENDPOINT: active()})
    issuer = introspected(caller, ticking, secret=None)
    verdict = await use(issuer)
    assert isinstance(verdict, Undetermined)
    assert verdict.retry_after == 30
    assert not caller.calls


async def test_what_was_answered_outlives_a_reload():
    answers, ticking, caller = Answers(), Ticking(), ScriptedCaller({ENDPOINT: active()})
    await use(introspected(caller, ticking, answers))
    after = introspected(caller, ticking, answers, audiences=["new"])
    found = after.at_hand(b"opaque")
    assert found.source is after, "and is judged by the new rules"


# --- signed answers (RFC 9701) -----------------------------------------------------------------------------


def signed(*, typ="token-introspection+jwt", alg="RS256", key="rsa1", **changed):
    body = {
        "iss": URL,
        "aud": "gw",
        "iat": int(Ticking().now),
        "token_introspection": {"active": True, "sub": "alice", "scope": "a"},
        **changed,
    }
    text = f"{b64({'typ': typ, 'alg': alg, 'kid': key})}.{b64({k: v for k, v in body.items() if v is not None})}"
    data = f"{text}.{b64(signature(text, key, alg))}".encode()
    return Answer(200, Headers.of([("content-type", "application/token-introspection+jwt; charset=utf-8")]), data)


async def asked_signed(page):
    issuer, caller, _ = made(page, signed=True)
    caller.pages[f"{URL}/keys"] = key_set("rsa1")
    await issuer.provider.turn()
    issuer.provider.keeping.next_miss = float("inf")
    return await use(issuer), caller


async def test_a_signed_answer_is_taken():
    found, caller = await asked_signed(signed())
    assert isinstance(found, Recognised)
    assert found.identity.subject == "alice"
    assert caller.calls[-1][2]["accept"] == "application/token-introspection+jwt"


@pytest.mark.parametrize(
    "page",
    [
        json.dumps(active()).encode(),
        signed(typ="JWT"),
        signed(typ="at+jwt"),
        signed(iss="https://other.test"),
        signed(iss=None),
        signed(aud="another"),
        signed(aud=None),
        signed(key="rsa2"),
        signed(alg="RS512"),
        signed(token_introspection=None),
        signed(token_introspection={"active": "yes"}),
        signed(iat=int(Ticking().now) + 999),
        Answer(200, Headers.of([("content-type", "application/token-introspection+jwt")]), b"a.b.c"),
    ],
)
async def test_an_answer_that_is_not_signed_as_it_must_be_says_nothing(page):
    found, _ = await asked_signed(page)
    assert isinstance(found, Undetermined)
