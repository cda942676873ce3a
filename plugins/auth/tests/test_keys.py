"""Signatures of others: the examples of RFC 7515 and RFC 8037, and of an implementation that is not PyJWT."""

from __future__ import annotations

import pytest
from scripted import jwk

from gw_auth.keys import Key, UnusableKey
from gw_auth.tokens import _unbase64

CLAIMS = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
VECTORS = {
    "RFC 7515 A.2": (
        "RS256",
        {
            "kty": "RSA",
            "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
            "e": "AQAB",
        },
        f"eyJhbGciOiJSUzI1NiJ9.{CLAIMS}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
    ),
    "RFC 7515 A.3": (
        "ES256",
        {
            "kty": "EC",
            "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        },
        f"eyJhbGciOiJFUzI1NiJ9.{CLAIMS}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    ),
    "RFC 8037 A.4": (
        "EdDSA",
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_the_examples_of_the_standards_are_verified(name):
    algorithm, members, text = VECTORS[name]
    signed, _, signature = text.rpartition(".")
    key = Key(members)
    assert key.verify(algorithm, signed.encode(), _unbase64(signature))
    assert not key.verify(algorithm, signed.encode() + b"x", _unbase64(signature))
    for other in ("RS256", "ES256", "EdDSA", "RS512", "none", "HS256"):
        assert other == algorithm or not key.verify(other, signed.encode(), _unbase64(signature))


@pytest.mark.parametrize("name", VECTORS)
def test_every_changed_bit_of_a_signature_is_seen(name):
    algorithm, members, text = VECTORS[name]
    signed, _, signature = text.rpartition(".")
    key, right = Key(members), _unbase64(signature)
    for bit in range(0, len(right) * 8, 7):
        wrong = bytearray(right)
        wrong[bit // 8] ^= 1 << bit % 8
        assert not key.verify(algorithm, signed.encode(), bytes(wrong))


@pytest.mark.parametrize(
    ("members", "why"),
    [
        (jwk("ec256", x="AAAA"), "it is malformed"),
        (jwk("ec256", y=None), "it is malformed"),
        (jwk("ec256", x=jwk("ec256")["y"]), "it is malformed"),
        (jwk("ec256", crv="P-384"), "it is malformed"),
        (jwk("ec256", crv=5), "its curve is none of P-256, P-384 and P-521"),
        (jwk("ec256", crv="secp256k1"), "its curve is none of P-256, P-384 and P-521"),
        (jwk("ed", crv="X25519"), "it is malformed"),
        (jwk("ed", x="AAAA"), "it is malformed"),
        (jwk("rsa1", e="AQ"), "it is malformed"),
        (jwk("rsa1", n="!!"), "it is malformed"),
        (jwk("weak"), "it has not between 2048 and 8192 bits"),
        ({"kty": "oct"}, "its type is none of RSA, EC and OKP"),
        ({"kty": ["RSA"]}, "its type is none of RSA, EC and OKP"),
        ({}, "its type is none of RSA, EC and OKP"),
        (jwk("rsa1", kid=5), "its kid is no text"),
    ],
)
def test_a_key_that_is_of_no_use_says_why(members, why):
    with pytest.raises(UnusableKey, match=f"^{why}$"):
        Key(members)
