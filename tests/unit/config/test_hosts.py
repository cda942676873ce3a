import pytest

from gw.config import hosts


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
        ("localhost", "localhost"),
        ("api.example.com", "api.example.com"),
        ("api.example.com.", "api.example.com."),
        ("1.example", "1.example"),
        ("1-2", "1-2"),
        ("a" * 63 + ".b", "a" * 63 + ".b"),
    ],
)
def test_addresses_and_names_are_hosts(text, host):
    assert hosts.host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "1",
        "1.2.3",
        "1.2.3.4.5",
        "0127.0.0.1",
        "127.0.0.256",
        "[127.0.0.1]",
        "[::1",
        "::1]",
        "[]",
        ":::",
        "fe80::1%eth0",
        "[fe80::1%eth0]",
        "a..b",
        "a.b..",
        "-a.b",
        "a-.b",
        "a_b",
        "a b",
        "a:80",
        "exämple",
        "\u0661.\u0662.\u0663.\u0664",
        "a" * 64,
        ".".join(["a" * 49] * 6),
        "a\n",
    ],
)
def test_what_a_resolver_might_read_otherwise_is_not_a_host(text):
    with pytest.raises(ValueError, match="is not a host"):
        hosts.host(text)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("API.example.com", "api.example.com"),
        ("*.Example.com", "*.example.com"),
        ("[::1]", "::1"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_a_host_pattern_is_a_host_or_a_wildcard_in_lower_case(text, pattern):
    assert hosts.host_pattern(text) == pattern


@pytest.mark.parametrize("text", ["*", "*.", "a.*", "*.*.com", "a*.com", "*.10.0.0.1", "*.[::1]", ""])
def test_a_wildcard_stands_only_before_a_name(text):
    with pytest.raises(ValueError, match=r"wildcard stands|must be a host name|is not a host"):
        hosts.host_pattern(text)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://127.0.0.1:9000", "127.0.0.1", 9000),
        ("http://api.internal", "api.internal", 80),
        ("http://api.internal/", "api.internal", 80),
        ("http://[::1]:8080", "::1", 8080),
        ("http://[::1]", "::1", 80),
        ("HTTP://a:1", "a", 1),
    ],
)
def test_an_origin_is_a_host_and_a_port(url, host, port):
    assert hosts.origin(url) == (host, port)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://a", "'https://a': TLS to an upstream is not supported by this version; use http://"),
        ("127.0.0.1:9000", "'127.0.0.1:9000' is not a URL of an upstream, such as http://127.0.0.1:9000"),
        ("ftp://a", "'ftp://a' is not a URL of an upstream, such as http://127.0.0.1:9000"),
        ("http://", "'http://' is not a URL of an upstream, such as http://127.0.0.1:9000"),
        ("http://a/b", "'http://a/b': only http://host:port, without user, path or query"),
        ("http://a?b", "'http://a?b': only http://host:port, without user, path or query"),
        ("http://u:p@a", "'http://u:p@a': only http://host:port, without user, path or query"),
        ("http://a:0", "'http://a:0': only http://host:port, without user, path or query"),
        ("http://a:70000", "'http://a:70000' is not a URL: Port out of range 0-65535"),
        ("http://1.2.3", "'1.2.3' is not a host (an IPv4 or IPv6 address without zone, or a host name)"),
    ],
)
def test_what_is_no_origin_is_refused_with_the_reason(url, message):
    with pytest.raises(ValueError) as caught:
        hosts.origin(url)
    assert str(caught.value) == message
