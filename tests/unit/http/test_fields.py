"""Field values, most of them hostile."""

import re
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, strategies as st

from gw import Headers
from gw.http.fields import (
    BadField,
    ForwardedHop,
    client_address,
    forwarded_element,
    forwarded_for,
    forwarded_hops,
    is_trusted,
    parse_accept,
    parse_address,
    quality_of,
    quality_values,
    tokens,
)
from gw.limits import MAX_FORWARDED_HOPS, MAX_LIST_ELEMENTS

# --- lists -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        ("close", ["close"]),
        ("Close, TE", ["close", "te"]),
        (" a ,\t,, b\t", ["a", "b"]),
        ("x-!#$%&'*+.^_`|~0", ["x-!#$%&'*+.^_`|~0"]),
    ],
)
def test_tokens_are_lower_case_and_empty_elements_are_none(value, expected):
    assert tokens(value) == expected


@pytest.mark.parametrize("element", ["a b", "a=b", '"a"', "a;q=1", "\xe9", "a\x00"])
def test_what_is_no_token_is_refused(element):
    message = f"{element!r} is not a token (RFC 9110 section 5.6.2)"
    with pytest.raises(BadField, match=f"^{re.escape(message)}$"):
        tokens(f"close, {element}")


def test_a_list_has_a_longest_length():
    assert len(tokens(",".join(["a"] * MAX_LIST_ELEMENTS))) == MAX_LIST_ELEMENTS
    with pytest.raises(BadField, match=r"^a list of more than 64 elements$"):
        tokens(",".join(["a"] * (MAX_LIST_ELEMENTS + 1)))


# --- preferences -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("gzip", [("gzip", 1.0)]),
        ("gzip;q=0.5, BR ; Q=1.000,identity;q=0", [("gzip", 0.5), ("br", 1.0), ("identity", 0.0)]),
        ("*;q=0.", [("*", 0.0)]),
        ("a;q=1.001, b;q=-1, c;q=0.0001, d;q=, e;q=nan, f;q=1e0, g;q=0,5", [("g", 0.0), ("5", 1.0)]),
        (", ;q=1, x", [("x", 1.0)]),
    ],
)
def test_quality_values_are_read_and_malformed_ones_left_out(value, expected):
    assert quality_values(value) == expected


def test_only_so_many_preferences_are_read():
    assert len(quality_values("a," * 5000)) == MAX_LIST_ELEMENTS


@pytest.mark.parametrize(
    ("accept", "media_type", "quality"),
    [
        # the example of RFC 9110 section 12.5.1
        ("text/*;q=0.3, text/plain;q=0.7, text/plain;format=flowed, */*;q=0.5", "text/plain;format=flowed", 1.0),
        ("text/*;q=0.3, text/plain;q=0.7, text/plain;format=flowed, */*;q=0.5", "text/plain", 0.7),
        ("text/*;q=0.3, text/plain;q=0.7, text/plain;format=flowed, */*;q=0.5", "text/html", 0.3),
        ("text/*;q=0.3, text/plain;q=0.7, text/plain;format=flowed, */*;q=0.5", "image/jpeg", 0.5),
        ("text/html", "text/plain", 0.0),
        ("*/*, text/plain;q=0", "text/plain", 0.0),
        ("*/*;q=0.1, text/*;q=0.2", "Text/Plain; charset=utf-8", 0.2),
        ('text/plain;charset="UTF-8"', "text/plain; charset=utf-8", 1.0),
        ("text/plain;q=0.4;extension=1", "text/plain", 0.4),
        ("*/plain, text, /plain, text/, */*/*", "text/plain", 0.0),
        ("t*/plain, textual/*", "text/plain", 0.0),
        ("", "text/plain", 0.0),
    ],
)
def test_the_range_that_names_a_type_most_closely_decides(accept, media_type, quality):
    assert quality_of(parse_accept(accept), media_type) == quality


# --- addresses -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:65535", "192.0.2.1"),
        ("192.0.2.1:_port", "192.0.2.1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]", "fe80::1"),
        ("[fe80::1%eth0]:80", "fe80::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("[::FFFF:10.0.0.1]:80", "10.0.0.1"),
        ("::", "::"),
        ("", None),
        ("unknown", None),
        ("_hidden", None),
        ("localhost", None),
        ("192.0.2", None),
        ("192.0.2.256", None),
        ("192.0.2.010", None),
        ("192.0.2.1:", None),
        ("192.0.2.1:123456", None),
        ("192.0.2.1 ", None),
        ("192.0.2.1\n", None),
        ("192.0.2.1%eth0", None),
        ("[192.0.2.1%eth0]", None),
        ("3232235777", None),
        ("0x7f.0.0.1", None),
        ("[192.0.2.1]", None),
        ("[2001:db8::1", None),
        ("2001:db8::1]:80", None),
        ("[2001:db8::1]80", None),
        (":::1", None),
        ("[]", None),
        ("\u0661.2.3.4", None),
        ("fe80::1%" + "z" * 100, None),
        ("1" * 10_000, None),
    ],
)
def test_an_address_is_read_or_it_is_not(text, expected):
    assert parse_address(text) == (None if expected is None else ip_address(expected))


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_address_is_read_with_and_without_a_port(address, port):
    mapped = getattr(address, "ipv4_mapped", None) or address
    bracketed = f"[{address}]" if address.version == 6 else str(address)
    for text in (str(address), bracketed, f"{bracketed}:{port}"):
        assert parse_address(text) == mapped


def test_networks_of_both_families_contain_their_own():
    networks = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    assert is_trusted(ip_address("10.1.2.3"), networks)
    assert is_trusted(ip_address("fd00::1"), networks)
    assert not is_trusted(ip_address("192.0.2.1"), networks)
    assert not is_trusted(ip_address("2001:db8::1"), networks)
    assert not is_trusted(ip_address("10.1.2.3"), [])


# --- Forwarded ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "hops"),
    [
        (["for=192.0.2.1"], [ForwardedHop("192.0.2.1")]),
        (
            ['For="[2001:db8::1]:80" ; Proto=https; by=203.0.113.1;host="a:1"'],
            [ForwardedHop("[2001:db8::1]:80", "203.0.113.1", "a:1", "https")],
        ),
        (["for=a, for=b", "for=c"], [ForwardedHop("c"), ForwardedHop("b"), ForwardedHop("a")]),
        (['for=a;x="1,2;3", , for=b,'], [ForwardedHop("b"), ForwardedHop("a")]),
        (["proto=https;secret=x"], [ForwardedHop(proto="https")]),
        (["for=a;"], [ForwardedHop("a")]),
        ([], []),
        ([""], []),
        # malformed: what is nearer than the fault still counts
        (["nonsense, for=b"], [ForwardedHop("b")]),
        (["for=a, nonsense, for=c"], [ForwardedHop("c")]),
        (["for=a;for=b"], []),
        (["for = a"], []),
        (["for=[2001:db8::1]"], []),
        (['for="a\\"b"'], []),
        (['for="a'], []),
        # an open quote of the client's does not swallow what a proxy appended
        (['for="evil, for=192.0.2.1;host="a,b"'], [ForwardedHop("192.0.2.1", host="a,b")]),
        (['for="evil', 'for="[2001:db8::1]"'], [ForwardedHop("[2001:db8::1]")]),
    ],
)
def test_forwarded_is_read_from_the_nearest_proxy_on(lines, hops):
    assert list(forwarded_hops(lines)) == hops


def test_only_so_many_hops_are_read():
    assert len(list(forwarded_hops(["for=a," * 5000]))) <= MAX_FORWARDED_HOPS
    assert len(list(forwarded_for(["a," * 5000]))) <= MAX_FORWARDED_HOPS
    assert list(forwarded_for(["far"] + ["near"] * MAX_FORWARDED_HOPS)) == ["near"] * MAX_FORWARDED_HOPS


@pytest.mark.parametrize(
    ("arguments", "element"),
    [
        (("192.0.2.1", "https", "api.example.com"), b"for=192.0.2.1;host=api.example.com;proto=https"),
        (("2001:db8::1", "http", "a:8080"), b'for="[2001:db8::1]";host="a:8080";proto=http'),
        (("", "", ""), b"for=unknown"),
        (("192.0.2.1", "", "", "fd00::1"), b'for=192.0.2.1;by="[fd00::1]"'),
    ],
)
def test_an_element_is_written_with_quotes_where_it_needs_them(arguments, element):
    assert forwarded_element(*arguments) == element


@pytest.mark.parametrize("host", ['a"b', "a\\b", "a\r\nx: y", "\xe9"])
def test_a_host_that_could_not_be_read_back_is_not_written(host):
    message = f"{host!r} cannot stand in Forwarded: visible ASCII without quote or backslash can"
    with pytest.raises(BadField, match=f"^{re.escape(message)}$"):
        forwarded_element("192.0.2.1", "http", host)


@given(
    st.ip_addresses().map(str),
    st.sampled_from(["http", "https"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126, blacklist_characters='"\\'), min_size=1),
    st.text(st.characters(max_codepoint=255)),
)
def test_an_element_reads_back_whatever_a_client_put_before_it(address, proto, host, before):
    own = forwarded_element(address, proto, host).decode()
    node = f"[{address}]" if ":" in address else address
    for lines in ([f"{before}, {own}"], [before, own]):
        assert next(forwarded_hops(lines)) == ForwardedHop(node, host=host, proto=proto)


# --- who the client is ---------------------------------------------------------------

TRUSTED = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "lines", "expected"),
    [
        # nobody to believe
        ("198.51.100.9", [("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "https")], ("198.51.100.9", None)),
        ("10.0.0.1", [], ("10.0.0.1", None)),
        # one proxy, two, and what the client made up before them
        ("10.0.0.1", [("x-forwarded-for", "192.0.2.1")], ("192.0.2.1", None)),
        ("10.0.0.1", [("x-forwarded-for", "192.0.2.1, 10.0.0.2")], ("192.0.2.1", None)),
        ("10.0.0.1", [("x-forwarded-for", "6.6.6.6, 192.0.2.1, 10.0.0.2")], ("192.0.2.1", None)),
        ("10.0.0.1", [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "192.0.2.1")], ("192.0.2.1", None)),
        ("10.0.0.1", [("x-forwarded-for", "10.6.6.6, 192.0.2.1")], ("192.0.2.1", None)),
        # everybody is trusted: the farthest is the client
        ("10.0.0.1", [("x-forwarded-for", "10.0.0.3, 10.0.0.2")], ("10.0.0.3", None)),
        # what is no address ends the walk
        ("10.0.0.1", [("x-forwarded-for", "192.0.2.1, unknown")], ("10.0.0.1", None)),
        ("10.0.0.1", [("x-forwarded-for", "192.0.2.1, garbage, 10.0.0.2")], ("10.0.0.2", None)),
        ("10.0.0.1", [("x-forwarded-for", "garbage, 192.0.2.1")], ("192.0.2.1", None)),
        # IPv6, ports, an IPv4 address in a dual-stack socket
        ("fd00::1", [("x-forwarded-for", "[2001:DB8::1]:443")], ("2001:db8::1", None)),
        ("::ffff:10.0.0.1", [("x-forwarded-for", "192.0.2.1:5555")], ("192.0.2.1", None)),
        ("::ffff:198.51.100.9", [], ("198.51.100.9", None)),
        # the scheme is what the farthest trusted proxy said
        ("10.0.0.1", [("x-forwarded-proto", "HTTPS")], ("10.0.0.1", "https")),
        ("10.0.0.1", [("x-forwarded-proto", "gopher")], ("10.0.0.1", None)),
        ("10.0.0.1", [("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "http, https")], ("192.0.2.1", "https")),
        (
            "10.0.0.1",
            [("x-forwarded-for", "192.0.2.1, 10.0.0.2"), ("x-forwarded-proto", "https, http")],
            ("192.0.2.1", "https"),
        ),
        (
            "10.0.0.1",
            [("x-forwarded-for", "192.0.2.1, 10.0.0.2"), ("x-forwarded-proto", "https")],
            ("192.0.2.1", "https"),
        ),
        # Forwarded, where X-Forwarded-For is absent
        ("10.0.0.1", [("forwarded", "for=192.0.2.1;proto=https")], ("192.0.2.1", "https")),
        (
            "10.0.0.1",
            [("forwarded", 'for=6.6.6.6;proto=http, for="[2001:db8::1]";proto=https')],
            ("2001:db8::1", "https"),
        ),
        ("10.0.0.1", [("forwarded", "for=_hidden;proto=https")], ("10.0.0.1", "https")),
        ("10.0.0.1", [("forwarded", 'for="')], ("10.0.0.1", None)),
        ("10.0.0.1", [("forwarded", "for=6.6.6.6;proto=https"), ("x-forwarded-for", "192.0.2.1")], ("192.0.2.1", None)),
        # no address at all, as on a Unix socket
        ("", [("x-forwarded-for", "192.0.2.1")], ("", None)),
    ],
)
def test_the_client_is_who_the_trusted_proxies_say_it_is(peer, lines, expected):
    assert client_address(peer, Headers.of(lines), TRUSTED) == expected


@pytest.mark.parametrize(("peer", "expected"), [("198.51.100.9", "198.51.100.9"), ("::ffff:192.0.2.1", "192.0.2.1")])
def test_without_trusted_proxies_the_peer_is_the_client(peer, expected):
    assert client_address(peer, Headers.of([("x-forwarded-for", "6.6.6.6")]), ()) == (expected, None)


@given(
    st.text(st.characters(max_codepoint=255), max_size=200),
    st.text(st.characters(max_codepoint=255), max_size=200),
    st.sampled_from(["x-forwarded-for", "forwarded"]),
)
def test_nothing_a_client_writes_is_believed_through_an_honest_proxy(for_, proto, name):
    own = "192.0.2.1" if name == "x-forwarded-for" else "for=192.0.2.1"
    headers = Headers.of([(name, f"{for_}, {own}")])
    assert client_address("10.0.0.1", headers, TRUSTED) == ("192.0.2.1", None)
