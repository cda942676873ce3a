"""Tokens that must not pass: by the hundred, each for its own reason. None passes, none raises, none asks too much."""

from __future__ import annotations

import hmac
import json
from hashlib import sha256, sha512

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings as trying, strategies as st
from scripted import (
    URL,
    ScriptedCaller,
    Ticking,
    asking,
    b64,
    claims,
    jwk,
    jwt_issuer,
    key_set,
    make,
    private,
    signature,
)

from gw_auth.tokens import Malformed, parse
from gw_auth.verdicts import Denied, Recognised, Undetermined
from gw_auth.ways import Bearer

NOW = Ticking().now
ALL = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
KEYS = {"RS": "rsa1", "PS": "rsa1", "ES256": "ec256", "ES384": "ec384", "ES512": "ec521", "Ed": "ed"}


def key_for(alg):
    return KEYS.get(alg) or KEYS[alg[:2]]


def good(**changed):
    return {"now": NOW, **changed}


class Lenient:
    """A policy that asks for nothing: what is refused is refused for the token's sake."""

    def unfit(self, ex, found):
        return None

    def lacks_scope(self, found):
        return None


async def judged(token, keys=("rsa1", "ec256", "ec384", "ec521", "ed"), **changed):
    """Return the verdict on *token* of an issuer that accepts every algorithm and publishes *keys*."""
    caller = ScriptedCaller({f"{URL}/keys": key_set(*keys)})
    issuer = jwt_issuer(caller, algorithms=ALL, jwks_refresh_timeout_sec=1, **changed)
    await issuer.provider.turn()
    issuer.provider.keeping.next_miss = float("inf")  # nobody fetches for an unknown key here
    return await Bearer([issuer]).recognise(asking({"authorization": f"Bearer {token}"}), Lenient())


@pytest.mark.parametrize("alg", ALL)
async def test_a_good_token_of_each_algorithm_passes(alg):
    found = await judged(make(claims(NOW), key=key_for(alg), alg=alg))
    assert isinstance(found, Recognised)
    assert (found.identity.subject, found.identity.issuer, found.identity.method) == ("alice", URL, "jwt")


# --- algorithm confusion and key injection --------------------------------------------------------


def unsigned(header, payload=None, sign=b""):
    return f"{b64(header)}.{b64(claims(NOW) if payload is None else payload)}.{b64(sign)}"


def symmetric(alg, secret):
    digest = {"HS256": sha256, "HS512": sha512}[alg]
    signed = f"{b64({'alg': alg, 'kid': 'rsa1', 'typ': 'JWT'})}.{b64(claims(NOW))}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), digest))}"


def pem():
    return private("rsa1").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def der():
    return private("rsa1").public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def algorithm_confusion():
    for alg in (
        "none",
        "None",
        "NONE",
        "nOnE",
        "",
        " none",
        "none ",
        "HS256",
        "RS256 ",
        "rs256",
        "RS128",
        "RSA",
        "ES256K",
    ):
        yield f"alg {alg!r}, no signature", unsigned({"alg": alg, "kid": "rsa1"})
    for alg in ("HS256", "HS512"):
        for name, secret in (
            ("pem", pem()),
            ("pem stripped", pem().strip()),
            ("der", der()),
            ("empty", b""),
            ("n", b"secret"),
        ):
            yield f"{alg} keyed with {name}", symmetric(alg, secret)
        yield f"{alg} keyed with the jwk", symmetric(alg, json.dumps(jwk("rsa1")).encode())
    for alg in (None, 5, True, [], {}, ["RS256"], 1.5):
        yield f"alg {alg!r}", unsigned({"alg": alg, "kid": "rsa1"})
    yield "no alg", unsigned({"kid": "rsa1"})
    for claimed in ALL:
        for alg in ALL:
            if claimed[:2] != alg[:2] or (claimed != alg):
                signed = f"{b64({'alg': claimed, 'kid': key_for(claimed), 'typ': 'JWT'})}.{b64(claims(NOW))}"
                yield f"says {claimed}, signed {alg}", f"{signed}.{b64(signature(signed, key_for(alg), alg))}"


def key_injection():
    attacker = jwk("rsa-attacker")
    for member, value in (
        ("jwk", attacker),
        ("jku", "https://attacker.test/keys"),
        ("x5u", "https://attacker.test/cert"),
        ("x5c", ["MIIB"]),
    ):
        yield f"{member}, with our kid", make(claims(NOW), key="rsa-attacker", header={"kid": "rsa1", member: value})
        yield f"{member}, with its kid", make(claims(NOW), key="rsa-attacker", header={member: value})
    for kid in ("../../dev/null", "' OR 1=1", "rsa1\0", "RSA1", " rsa1", "", "rsa1 ", "a" * 4000, "\ud800", "*"):
        yield f"kid {kid[:20]!r}", make(claims(NOW), header={"kid": kid})
    for kid in (5, True, ["rsa1"], {"kid": "rsa1"}, 1e300):
        yield f"kid {kid!r}", make(claims(NOW), header={"kid": kid})
    yield "no kid among several keys", make(claims(NOW), header={"kid": None})
    for crit in (["exp"], ["b64"], [], "exp", None, 5, ["x-unknown"]):
        signed = f"{b64({'alg': 'RS256', 'kid': 'rsa1', 'crit': crit})}.{b64(claims(NOW))}"
        yield f"crit {crit!r}", f"{signed}.{b64(signature(signed, 'rsa1', 'RS256'))}"
    yield "b64", make(claims(NOW), header={"b64": False})


# --- mangled text ---------------------------------------------------------------------------------


def mangled():
    token = make(claims(NOW))
    head, body, sign = token.split(".")
    yield "empty signature", f"{head}.{body}."
    yield "empty body", f"{head}..{sign}"
    yield "empty head", f".{body}.{sign}"
    yield "two parts", f"{head}.{body}"
    yield "four parts", f"{token}.{sign}"
    yield "five parts", f"{head}.{body}.{sign}.{head}.{body}"
    for name, change in (
        ("padding", lambda part: part + "="),
        ("more padding", lambda part: part + "=="),
        ("plus", lambda part: part[:3] + "+" + part[4:]),
        ("slash", lambda part: part[:3] + "/" + part[4:]),
        ("dollar", lambda part: part[:3] + "$" + part[4:]),
        ("cut", lambda part: part[:-1]),
        ("cut more", lambda part: part[:-2]),
        ("longer", lambda part: part + "A"),
        ("longer still", lambda part: part + "AAAA"),
        ("percent", lambda part: part[:3] + "%41" + part[4:]),
        ("blank", lambda part: part[:3] + " " + part[3:]),
        ("nul", lambda part: part[:3] + "\0" + part[3:]),
        ("latin-1", lambda part: part[:3] + "\xe9" + part[3:]),
        ("doubled", lambda part: part + part),
        ("reversed", lambda part: part[::-1]),
    ):
        yield f"head {name}", f"{change(head)}.{body}.{sign}"
        yield f"body {name}", f"{head}.{change(body)}.{sign}"
        yield f"signature {name}", f"{head}.{body}.{change(sign)}"
    for index in range(0, len(sign), 12):
        other = "A" if sign[index] != "A" else "B"
        yield f"signature changed at {index}", f"{head}.{body}.{sign[:index]}{other}{sign[index + 1 :]}"
    # The last character holds bits that are not part of the signature: another spelling of the same bytes.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for other in alphabet:
        if other != sign[-1] and alphabet.index(other) >> 4 == alphabet.index(sign[-1]) >> 4:
            yield f"signature ends in {other}", f"{head}.{body}.{sign[:-1]}{other}"
    yield "zeros", f"{head}.{body}.{b64(bytes(256))}"
    yield "ones", f"{head}.{body}.{b64(bytes([255]) * 256)}"
    for size in (0, 1, 63, 64, 65, 96, 128, 132, 255, 257, 512):
        for alg in ("RS256", "PS256", "ES256", "ES512", "EdDSA"):
            yield f"{alg} signature of {size}", f"{b64({'alg': alg, 'kid': key_for(alg)})}.{body}.{b64(bytes(size))}"


def odd_json():
    texts = {
        "not JSON": b"hello",
        "a list": b"[]",
        "null": b"null",
        "a number": b"5",
        "text": b'"x"',
        "empty": b"",
        "cut": b'{"a":',
        "trailing": json.dumps(claims(NOW)).encode() + b"}",
        "two objects": json.dumps(claims(NOW)).encode() * 2,
        "NaN": b'{"exp":NaN}',
        "Infinity": b'{"exp":Infinity}',
        "huge exponent": b'{"exp":1e999}',
        "huge integer": b'{"exp":' + b"9" * 4000 + b"}",
        "deep": b'{"a":' * 900 + b"1" + b"}" * 900,
        "deep list": b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}",
        "utf-16": json.dumps(claims(NOW)).encode("utf-16"),
        "bom": b"\xef\xbb\xbf" + json.dumps(claims(NOW)).encode(),
        "bad utf-8": b'{"iss":"\xff"}',
        "single quotes": str(claims(NOW)).encode(),
        "comment": b"/* */" + json.dumps(claims(NOW)).encode(),
        "exp twice": f'{{"exp":1,"iss":"{URL}","exp":{int(NOW) + 99}}}'.encode(),
        "iss twice": f'{{"iss":"https://other.test","iss":"{URL}","exp":{int(NOW) + 99}}}'.encode(),
        "nested twice": f'{{"iss":"{URL}","exp":{int(NOW) + 99},"a":{{"b":1,"b":2}}}}'.encode(),
        "a nested token": make(claims(NOW)).encode(),
    }
    for name, text in texts.items():
        yield f"claims: {name}", make(text)
        if name in {"huge integer", "deep"}:
            continue  # a member of the header that nobody has heard of is not looked at (RFC 7515 section 4)
        head = text if b"alg" in text else text.replace(b"{", b'{"alg":"RS256","kid":"rsa1",', 1)
        signed = f"{b64(head)}.{b64(claims(NOW))}"
        if name not in {"exp twice", "iss twice", "nested twice"} or b'"b":2' in text:
            yield f"header: {name}", f"{signed}.{b64(signature(signed, 'rsa1', 'RS256'))}"
    for twice in ('"alg":"RS256"', '"alg":"none"', '"kid":"rsa1"'):
        head = f'{{"alg":"RS256","kid":"rsa1",{twice}}}'
        signed = f"{b64(head.encode())}.{b64(claims(NOW))}"
        yield f"header has {twice} twice", f"{signed}.{b64(signature(signed, 'rsa1', 'RS256'))}"
    yield "cty JWT", make(make(claims(NOW)).encode(), header={"cty": "JWT"})


# --- claims -----------------------------------------------------------------------------------------

ODD = (5, 1.5, True, [], {}, None, [5], {"a": 1}, [None], 2**53, -(2**60), 10**300, 1e300)


def odd_claims():
    for name in ("iss", "sub", "jti"):
        for value in ODD:
            yield f"{name} {value!r}", make({**claims(NOW), name: value})
    for name in ("exp", "nbf", "iat"):
        for value in (
            "5",
            str(int(NOW) + 99),
            True,
            [],
            {},
            None,
            [int(NOW) + 99],
            2**53,
            10**300,
            1e300,
            "",
            "2030-01-01",
        ):
            yield f"{name} {value!r}", make({**claims(NOW), name: value})
    for name in ("aud", "scope", "scp", "scopes"):
        for value in (5, 1.5, True, {}, None, [5], {"a": 1}, [None], [["a"]], [{}], -1):
            yield f"{name} {value!r}", make({**claims(NOW), name: value})
    for iss in (
        URL + "/",
        URL.upper(),
        URL + "\0",
        " " + URL,
        "https://idp.test.attacker.test",
        "http://idp.test",
        "",
        "https://idp.test#",
        "https://idp.test:443",
        URL + "?",
    ):
        yield f"iss {iss!r}", make(claims(NOW, iss=iss))
    yield "no iss", make(claims(NOW, iss=None))
    yield "no exp", make(claims(NOW, exp=None))
    for name, changed in {
        "expired": {"exp": int(NOW) - 31},
        "expired long ago": {"exp": 0},
        "expired before the epoch": {"exp": -1},
        "just expired": {"exp": NOW - 30},
        "not yet valid": {"nbf": int(NOW) + 31},
        "issued in the future": {"iat": int(NOW) + 31},
    }.items():
        yield name, make(claims(NOW, **changed))


CASES = [*algorithm_confusion(), *key_injection(), *mangled(), *odd_json(), *odd_claims()]


def test_there_are_hundreds_of_them():
    assert len(CASES) > 480
    assert len({name for name, _ in CASES}) == len(CASES)


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
async def test_no_bad_token_passes_and_none_raises(anyio_backend):
    passed = []
    for name, token in CASES:
        verdict = await judged(token)
        if isinstance(verdict, Recognised):
            passed.append(name)
        elif isinstance(verdict, Undetermined):
            assert verdict.firm, f"{name}: {verdict}"
        else:
            assert verdict.status == 401
            assert "\0" not in verdict.detail, name
    assert not passed


@pytest.mark.parametrize(
    ("token", "error", "text", "reason"),
    [
        (make(claims(NOW, exp=None)), "invalid_token", "missing exp claim", "jwt_verify_failed"),
        (unsigned({"kid": "rsa1"}), "invalid_token", "missing alg header", "jwt_verify_failed"),
        (unsigned({"alg": "none"}), "invalid_token", "alg:none is not allowed", "jwt_verify_failed"),
        (unsigned({"alg": "HS256"}), "invalid_token", "algorithm not allowed", "jwt_verify_failed"),
        (make(claims(NOW), header={"kid": None}), "invalid_token", "missing kid header", "jwt_verify_failed"),
        (
            make(claims(NOW), key="rsa2", header={"kid": "rsa1"}),
            "invalid_token",
            "signature invalid",
            "signature_invalid",
        ),
        (make(claims(NOW, exp=int(NOW) - 100)), "invalid_token", "token expired", "expired_token"),
        (make(claims(NOW, iss="https://x")), "invalid_token", "issuer not accepted", "iss_mismatch"),
        (make(claims(NOW, iss=None)), "invalid_token", "issuer not accepted", "iss_mismatch"),
        ("not.a.token", "invalid_request", "malformed token", "malformed_token"),
        ("opaque", "invalid_request", "malformed token", "malformed_token"),
    ],
)
async def test_what_the_client_is_told(token, error, text, reason):
    verdict = await judged(token)
    assert isinstance(verdict, Denied)
    assert (verdict.error, verdict.text, verdict.reason) == (error, text, reason)


async def test_leeway_and_nothing_more():
    for changed in ({"exp": NOW - 29}, {"nbf": NOW + 30}, {"iat": NOW + 30}):
        assert isinstance(await judged(make(claims(NOW, **changed))), Recognised)


@pytest.mark.parametrize(
    ("typ", "passes"), [("at+jwt", True), ("application/AT+JWT", True), ("JWT", False), (None, False), (5, False)]
)
async def test_the_type_is_checked_where_that_is_configured(typ, passes):
    verdict = await judged(make(claims(NOW), header={"typ": typ}), token_types=["at+jwt"])
    assert isinstance(verdict, Recognised) is passes


KEY_RULES = [
    ({"use": "enc"}, False),
    ({"use": None}, True),
    ({"key_ops": ["verify"]}, True),
    ({"key_ops": ["sign"]}, False),
    ({"key_ops": "verify"}, False),
    ({"alg": "RS256"}, True),
    ({"alg": "RS512"}, False),
    ({"alg": "PS256"}, False),
    ({"alg": "ES256"}, False),
    ({"alg": "RSA-OAEP"}, False),
    ({"alg": 5}, False),
    ({"kty": "EC"}, False),
    ({"kty": None}, False),
    ({"n": "AQAB"}, False),
    ({"n": None}, False),
    ({"e": "Ag"}, False),
    ({"d": "AQAB"}, False),
    ({"k": "AQAB"}, False),
]


@pytest.mark.parametrize(("members", "passes"), KEY_RULES)
async def test_a_key_is_used_for_what_it_is_meant_for(members, passes):
    verdict = await judged(make(claims(NOW)), keys=(jwk("rsa1", **members), "ec256"))
    assert isinstance(verdict, Recognised) is passes


async def test_a_weak_key_is_not_used():
    verdict = await judged(make(claims(NOW), key="weak"), keys=("weak", "ec256"))
    assert not isinstance(verdict, Recognised)


@trying(max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_whatever_is_sent_is_taken_apart_or_malformed(text):
    try:
        token = parse(text)
    except Malformed:
        return
    assert isinstance(token.claims, dict)


@trying(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    ),
    st.sampled_from(["exp", "nbf", "iat", "aud", "iss", "sub", "scope", "scp", "scopes", "jti"]),
)
def test_a_claim_of_any_shape_never_raises_anything_else(value, name):
    from gw_auth.tokens import BadClaims, audiences_of, check_claims, check_issuer, check_times, scopes_of

    found = {**claims(NOW), name: value}
    try:
        check_claims(found)
        check_issuer(found.get("iss"), URL)
        check_times(found, NOW, 30)
    except BadClaims:
        return
    assert all(isinstance(scope, str) for scope in scopes_of(found))
    assert all(isinstance(audience, str) for audience in audiences_of(found))


async def test_pyjwt_agrees_with_what_passes():
    token = make(claims(NOW))
    key = private("rsa1").public_key()
    options = {"verify_exp": False, "verify_iat": False}
    assert jwt.decode(token, key, algorithms=["RS256"], options=options)["sub"] == "alice"
    assert isinstance(await judged(token), Recognised)
