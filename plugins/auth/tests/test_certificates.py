"""Client certificates as a way in, and tokens that are bound to one."""

from __future__ import annotations

from base64 import urlsafe_b64encode

import pytest
from scripted import LOG, URL, Answers, ScriptedCaller, Ticking, claims, introspected, jwt_issuer, make

from gw import IDENTITY, Certificate, Client, Figures
from gw.testing import check_filter, drive
from gw_auth import certificates, settings
from gw_auth.certificates import Certified
from gw_auth.counts import Rows, Totals
from gw_auth.filter import Authentication
from gw_auth.forward import Forwarding
from gw_auth.policies import Rule, Table
from gw_auth.ways import All, Any, Bearer

BILLING = Certificate("", ("DNS:Billing.Test", "URI:spiffe://example/billing"), "0A", "aa" * 32)
OPS = Certificate("CN=ops,O=Example", (), "0B", "bb" * 32)
OLD = Certificate("CN=old", ("email:a@x.test", "email:b@x.test"), "0C", "cc" * 32)
BY_NAME = {"name": "billing", "san": "DNS:BILLING.test", "scopes": ["pay"]}
BY_SUBJECT = {"name": "ops", "subject": "CN=ops,O=Example"}
BY_SHA256 = {"name": "old", "sha256": "CC:" * 31 + "CC"}


def certified(*clients, **more):
    return Certified("mesh", settings.Certificates.model_validate({"clients": clients, **more}, strict=False))


def filter_of(way, **policy):
    made = settings.RoutePolicy.model_validate({"name": "p", "public": True, **policy}, strict=False)
    rule = Rule.of(made, "p", way, "gw.yaml:41:3", Rows())
    rule.public = False
    return Authentication(rule, Table([]), Forwarding(settings.Forward(), LOG), Totals(Figures()), LOG)


def client(certificate):
    return Client("192.0.2.9", "192.0.2.9", scheme="https", certificate=certificate)


async def whom(way, certificate):
    """Return whom *way* recognises by *certificate*, else the reason that it gives operators."""
    played = await drive(filter_of(way), client=client(certificate), explain=True)
    found = played.exchange.get(IDENTITY, None)
    return played.notes[0].reason.partition("): ")[2] if found is None else found.subject


@pytest.mark.parametrize(
    ("clients", "others", "certificate", "subject"),
    [
        ([BY_NAME], "", BILLING, "billing"),
        ([BY_SUBJECT, BY_NAME], "", OPS, "ops"),
        ([BY_SHA256], "", OLD, "old"),
        ([BY_NAME], "URI", BILLING, "billing"),
        ([BY_SUBJECT], "URI", BILLING, "spiffe://example/billing"),
        ([], "DNS", BILLING, "Billing.Test"),
        ([], "subject", OPS, "CN=ops,O=Example"),
    ],
)
async def test_a_certificate_says_who_it_is(clients, others, certificate, subject):
    way = certified(*clients, others=others)
    assert [await whom(way, certificate) for _ in range(2)] == [subject, subject]


@pytest.mark.parametrize(
    ("clients", "others", "certificate", "why"),
    [
        ([BY_NAME], "", None, "no certificate was shown"),
        ([BY_NAME, BY_SUBJECT, BY_SHA256], "", Certificate("CN=x", (), "", "dd" * 32), f"the certificate of 'CN=x', sha256 {'dd' * 32}, is none of certificates.mesh"),
        ([BY_NAME], "", Certificate("DNS:billing.test", ("URI:billing.test", "DNS:x.billing.test"), "", ""), "the certificate of 'DNS:billing.test', sha256 , is none of certificates.mesh"),
        ([], "email", OLD, f"the certificate of 'CN=old', sha256 {'cc' * 32}, has 2 names of kind email, not one"),
        ([], "URI", OPS, f"the certificate of 'CN=ops,O=Example', sha256 {'bb' * 32}, has 0 names of kind URI, not one"),
        ([], "subject", BILLING, f"the certificate of '', sha256 {'aa' * 32}, has no subject"),
    ],
)  # fmt: skip
async def test_nothing_of_a_certificate_is_guessed(clients, others, certificate, why):
    assert await whom(certified(*clients, others=others), certificate) == why


async def test_its_identity_has_scopes_and_goes_to_the_upstream():
    made = filter_of(certified(BY_NAME, scopes=["mesh"]), required_scopes=["mesh", "pay"])
    played = await drive(made, client=client(BILLING), headers={"x-auth-subject": "root"})
    found = played.exchange[IDENTITY]
    assert (found.subject, found.issuer, found.method, found.scopes) == (
        "billing",
        "mesh",
        "certificate",
        {"mesh", "pay"},
    )
    assert played.upstream_headers.get_all("x-auth-subject") == ["billing"]
    assert played.upstream_headers.get("x-auth-scopes") == "mesh pay"


async def test_alone_it_is_refused_with_403_and_no_challenge():
    made = filter_of(certified(BY_NAME), required_scopes=["admin"])
    for certificate in (None, OPS, BILLING):  # none, one of somebody else, one without the scope
        played = await drive(made, client=client(certificate))
        assert (played.status, played.body) == (403, b"Forbidden")
        assert "www-authenticate" not in played.headers


async def test_beside_tokens_those_are_asked_for():
    way = Any([certified(BY_NAME), Bearer([jwt_issuer()])], final=True)
    for certificate in (None, OPS):
        played = await drive(filter_of(way), client=client(certificate))
        assert (played.status, played.headers.get("www-authenticate")) == (401, 'Bearer realm="api"')
    assert (await drive(filter_of(way), client=client(BILLING))).status == 200


async def test_with_tokens_both_are_needed():
    issuer = jwt_issuer()
    await issuer.provider.turn()
    made = filter_of(All([certified(BY_NAME), Bearer([issuer])]))
    headers = {"authorization": f"Bearer {make(claims(Ticking().now))}"}
    played = await drive(made, client=client(BILLING), headers=headers)
    found = played.exchange[IDENTITY]
    assert (found.subject, found.method) == ("billing", "certificate+jwt")
    assert (await drive(made, client=client(OPS), headers=headers)).status == 401
    assert (await drive(made, client=client(BILLING))).status == 401


async def test_what_is_remembered_of_certificates_is_bounded(monkeypatch):
    monkeypatch.setattr(certificates, "MAX_CERTIFICATES", 3)
    way = certified(others="subject")
    for number in range(10):
        assert await whom(way, Certificate(f"CN={number}", (), "", f"{number:064x}")) == f"CN={number}"
    assert len(way._known) == 3


async def test_it_keeps_the_promises_of_filters():
    await check_filter(lambda: filter_of(certified(BY_NAME)))


# --- tokens that are bound to one (RFC 8705) ------------------------------------------------------------


def bound(digest):
    return {"x5t#S256": urlsafe_b64encode(bytes.fromhex(digest)).rstrip(b"=").decode()}


async def verified(cnf, **changed):
    issuer = jwt_issuer(**changed)
    await issuer.provider.turn()
    issuer.provider.keeping.next_miss = float("inf")
    return issuer, {"authorization": f"Bearer {make(claims(Ticking().now, cnf=cnf))}"}


async def test_a_bound_token_counts_with_its_certificate_only_remembered_or_not():
    issuer, headers = await verified(bound("aa" * 32))
    for _ in range(2):
        for certificate, status in ((OPS, 401), (BILLING, 200), (None, 401)):
            made = filter_of(Bearer([issuer]))
            played = await drive(made, client=client(certificate), headers=headers, explain=True)
            assert played.status == status
            if status == 401:
                shows = "none" if certificate is None else "bb" * 32
                why = f"it wants sha256 {'aa' * 32}, the client shows {shows}"
                assert played.notes[0].reason.endswith(f"token is bound to another certificate: {why}")
                challenge = played.headers.get("www-authenticate")
                assert 'error="invalid_token", error_description="token is bound to another certificate"' in challenge


async def test_the_answer_of_an_introspection_may_bind_a_token_too():
    caller = ScriptedCaller({f"{URL}/introspect": {"active": True, "sub": "a", "cnf": bound("aa" * 32)}})
    issuer = introspected(caller, answers=Answers())
    headers = {"authorization": "Bearer opaque"}
    seen = [
        (await drive(filter_of(Bearer([issuer])), client=client(certificate), headers=headers)).status
        for certificate in (BILLING, OPS, BILLING, None)
    ]
    assert seen == [200, 401, 200, 401]
    assert len(caller.calls) == 1


async def test_an_issuer_may_be_told_not_to_look():
    issuer, headers = await verified(bound("aa" * 32), certificate_binding=False)
    assert (await drive(filter_of(Bearer([issuer])), headers=headers)).status == 200


@pytest.mark.parametrize(
    "cnf", ["", None, 1, [], "x", {"x5t#S256": 1}, {"x5t#S256": ""}, {"x5t#S256": "AAAA"}, {"x5t#S256": "é"}, {"x5t#S256": "A" * 43}, {"x5t#S256": "!" * 43}]
)  # fmt: skip
async def test_a_binding_that_cannot_be_read_refuses_the_token(cnf):
    issuer = jwt_issuer()
    await issuer.provider.turn()
    payload = {**claims(Ticking().now), "cnf": cnf}
    played = await drive(filter_of(Bearer([issuer])), headers={"authorization": f"Bearer {make(payload)}"})
    if cnf == {"x5t#S256": "A" * 43}:  # a digest, though nobody's
        assert 'error_description="token is bound to another certificate"' in played.headers.get("www-authenticate")
    else:
        assert 'error_description="malformed cnf claim"' in played.headers.get("www-authenticate")


async def test_another_kind_of_binding_is_not_ours_to_check():
    issuer, headers = await verified({"jkt": "x"})
    assert (await drive(filter_of(Bearer([issuer])), headers=headers)).status == 200
