import pytest
from hypothesis import given, strategies as st

from gw import IDENTITY, Client, Exchange, Identity, Request
from gw_rewrite.targets import (
    Unfit,
    as_host,
    as_location,
    as_path,
    check_path,
    into_host,
    into_location,
    into_path,
    into_query,
    moved,
    prefix_replaced,
    regex_replaced,
)
from gw_rewrite.templates import Template


def exchange(target="/", *, host="a.example", subject="", scheme="http", **params):
    request = Request("GET", target)
    request.host = host
    ex = Exchange(request, Client("192.0.2.9", "192.0.2.9", scheme=scheme))
    ex.params = params
    if subject:
        ex[IDENTITY] = Identity(subject)
    return ex


# --- paths -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ex", "path"),
    [
        ("/v2/${path.id}", exchange(id="7"), "/v2/7"),
        ("/v2/${path.id}", exchange(id="a%20b;c"), "/v2/a%20b;c"),
        ("/v2/${path.rest}", exchange(rest="a/b/"), "/v2/a/b/"),
        ("/v2/${path.rest}", exchange(rest=""), "/v2/"),
        ("/v2${path}", exchange("/a/b"), "/v2/a/b"),
        ("${path}.json", exchange("/a"), "/a.json"),
        ("/u/${identity.sub}/x", exchange(subject="auth0|7"), "/u/auth0%7C7/x"),
        ("/u/${identity.sub}", exchange(subject="a/b?c=1#d"), "/u/a%2Fb%3Fc%3D1%23d"),
        ("/u/${identity.sub}", exchange(subject="Jürgen"), "/u/J%C3%BCrgen"),
        ("/u/${identity.sub}", exchange(subject="a\r\nb: c"), "/u/a%0D%0Ab%3A%20c"),
        ("/u/${query.x}", exchange("/?x=a%2fb+c"), "/u/a%2Fb%20c"),
        ("/u/${host}", exchange(host="[::1]:80"), "/u/%5B%3A%3A1%5D%3A80"),
        ("/u/${query.x:-none/at/all}", exchange(), "/u/none/at/all"),
        ("/fixed", exchange(), "/fixed"),
    ],
)
def test_a_value_fills_its_place_in_a_path(text, ex, path):
    assert into_path(as_path(Template(text)))(ex) == path


@pytest.mark.parametrize(
    ("text", "ex"),
    [
        ("/u/${identity.sub}", exchange(subject="..")),
        ("/u/${identity.sub}/x", exchange(subject=".")),
        ("/u/.${identity.sub}", exchange(subject=".")),
        ("/u/${identity.sub};x", exchange(subject="..")),
        ("/u/${identity.sub}", exchange(subject="..;x")),
        ("/u/${identity.sub}", exchange(subject="a/../b")),
        ("/u/${identity.sub}", exchange(subject="../admin")),
        ("/u/${identity.sub}", exchange(subject="a\\b")),
        ("/u/${identity.sub}", exchange(subject="a\0b")),
        ("/u/${identity.sub}/x", exchange()),
        ("/u/${path.rest}/x", exchange(rest="")),
        ("${path}", exchange("*")),
    ],
)
def test_what_encoding_cannot_disarm_is_refused(text, ex):
    with pytest.raises(Unfit):
        into_path(as_path(Template(text)))(ex)


def test_what_the_policy_let_in_may_stay():
    path = into_path(Template("/v2${path}"))
    assert path(exchange("/a//b%5Cc%00")) == "/v2/a//b%5Cc%00"


@given(st.text())
def test_no_subject_makes_another_segment(subject):
    try:
        path = into_path(Template("/u/${identity.sub}/x"))(exchange(subject=subject))
    except Unfit:
        return
    _, first, second, last = path.split("/")
    assert (first, last) == ("u", "x")
    assert second.isascii()
    assert second.isprintable()
    assert not set(second) & set("?#% ") - {"%"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v2/${path.id}", "must start with '/' or '${path}'"),
        ("${path.id}", "must start with '/' or '${path}'"),
        ("/a?b=${path.id}", "has '?', which a path cannot; write %3F; the query has settings of its own"),
        ("/a b", "has ' ', which a path cannot; write %20"),
        ("/größe", "has 'ö', which a path cannot; write %C3%B6"),
        ("/a/${path.id:-#}", "has '#', which a path cannot; write %23"),
        ("/a/../${path.id}", "has an empty or a dot segment; write the path that is meant"),
        ("/a/./b", "has an empty or a dot segment; write the path that is meant"),
        ("/a//${path.id}", "has an empty or a dot segment; write the path that is meant"),
    ],
)
def test_a_path_template_that_makes_no_path_is_refused(text, message):
    with pytest.raises(ValueError) as refused:
        as_path(Template(text))
    assert str(refused.value) == message


@pytest.mark.parametrize("escape", ["%", "%4", "%zz", "%2f", "%41", "%2E", "%7E", "%5F", "%39"])
def test_escapes_have_one_spelling(escape):
    with pytest.raises(ValueError, match="begins no escape"):
        check_path(f"/a{escape}/b")


@pytest.mark.parametrize(
    ("prefix", "by", "path", "then"),
    [
        ("/a", "/b", "/a", "/b"),
        ("/a", "/b", "/a/", "/b/"),
        ("/a", "/b", "/a/x/y", "/b/x/y"),
        ("/a", "/b", "/ab", "/ab"),
        ("/a", "/b", "/x/a", "/x/a"),
        ("/a", "/b", "*", "*"),
        ("/a", "/", "/a", "/"),
        ("/a", "/", "/a/x", "/x"),
        ("/a/b", "/c/d", "/a/b/x", "/c/d/x"),
        ("/", "/b", "/", "/b"),
        ("/", "/b", "/x", "/b/x"),
    ],
)
def test_a_prefix_ends_where_a_segment_ends(prefix, by, path, then):
    assert prefix_replaced(prefix, by)(exchange(path)) == then


@pytest.mark.parametrize(
    ("match", "replace", "path", "then"),
    [
        (r"^/v1/(\d+)$", r"/v2/item-\1", "/v1/7", "/v2/item-7"),
        (r"^/v1/(?P<id>\d+)", r"/v2/\g<id>", "/v1/7/x", "/v2/7/x"),
        ("o", "0", "/foo/boo", "/f00/b00"),
        ("^/v1", "/v2", "/x/v1", "/x/v1"),
    ],
)
def test_a_regex_replaces_all_it_matches(match, replace, path, then):
    assert regex_replaced(match, replace)(exchange(path)) == then


@pytest.mark.parametrize(
    ("match", "replace", "path"),
    [("^/a", "", "/a"), ("25", "", "/%252E%252E"), ("a", "", "/a./x"), ("b", "", "/a/b/c"), ("0", "", "/%20")],
)
def test_a_regex_that_leaves_no_path_is_refused(match, replace, path):
    with pytest.raises(Unfit):
        regex_replaced(match, replace)(exchange(path))


@pytest.mark.parametrize(
    ("match", "replace", "message"),
    [
        ("(", "/", "match is no regular expression: missing ), unterminated subpattern at position 0"),
        ("a", r"\1", "replace has a group that match does not have: invalid group reference 1 at position 1"),
        ("a", r"\g<x>", "replace has a group that match does not have: unknown group name 'x'"),
        ("a", r"\n", r"replace has a backslash that begins no group: write \1 or \g<name>"),
        ("a", "?x=1", "replace has '?', which a path cannot; write %3F; the query has settings of its own"),
    ],
)
def test_a_wrong_regex_is_refused_when_it_is_read(match, replace, message):
    with pytest.raises(ValueError) as refused:
        regex_replaced(match, replace)
    assert str(refused.value) == message


# --- hosts -------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a.example", "a.example:8080", "[::1]:80", "10.0.0.1"])
def test_a_fixed_host_is_a_host(text):
    assert into_host(as_host(Template(text)))(exchange()) == text


@pytest.mark.parametrize("text", ["a b", "a/b", "a..b", "a:99999", "a:", "[::1", "user@a", "a" * 262])
def test_what_is_no_host_is_refused(text):
    with pytest.raises(ValueError, match=r"must be a host, perhaps with a port, not '"):
        as_host(Template(text))


def test_a_host_template_with_a_slash_is_refused():
    with pytest.raises(ValueError, match="has '/x', which a host cannot"):
        as_host(Template("${path.tenant}/x"))


def test_a_host_is_made_of_values():
    assert into_host(as_host(Template("${path.tenant}.a.example")))(exchange(tenant="acme")) == "acme.a.example"


@pytest.mark.parametrize("tenant", ["", "evil.example/", "evil.example%2F", "a b", "x@evil.example", "a\r\nb", "é"])
def test_a_value_that_makes_no_host_is_refused(tenant):
    with pytest.raises(Unfit):
        into_host(Template("${path.tenant}.a.example"))(exchange(tenant=tenant))


# --- queries -----------------------------------------------------------------


def query(now, *, remove=(), replace=None, add=None, **values):
    def templates(given):
        return {name: Template(text) for name, text in (given or {}).items()}

    ex = exchange("/" if now is None else f"/?{now}", **values)
    return into_query(remove, templates(replace), templates(add))(ex)


@pytest.mark.parametrize(
    ("now", "edits", "then"),
    [
        ("a=1&b=2", {"remove": ["a"]}, "b=2"),
        ("a=1", {"remove": ["a"]}, None),
        (None, {"remove": ["a"]}, None),
        ("", {"remove": ["a"]}, ""),
        ("a=%7E&&b|=[x]&a", {"remove": ["c"]}, "a=%7E&&b|=[x]&a"),
        ("%61+b=1&a+b=2&a%20b&c", {"remove": ["a b"]}, "c"),
        ("x&a=1&b=2&a=3", {"replace": {"a": "9"}}, "x&a=9&b=2"),
        ("b=2", {"replace": {"a": "9"}}, "b=2&a=9"),
        (None, {"replace": {"a": "9"}}, "a=9"),
        ("a=1", {"add": {"a": "2"}}, "a=1&a=2"),
        ("a=1", {"remove": ["a"], "replace": {"b": "1"}, "add": {"c": "2"}}, "b=1&c=2"),
        ("a=1&b=2", {"replace": {"a": "${path.none}"}}, "b=2"),
        ("a=1", {"add": {"b": "${path.none}"}}, "a=1"),
        (None, {"replace": {"größe": "50 % & mehr"}}, "gr%C3%B6%C3%9Fe=50%20%25%20%26%20mehr"),
        (None, {"replace": {"a": "${identity.sub}"}, "subject": "x&b=1#é\n"}, "a=x%26b%3D1%23%C3%A9%0A"),
        (None, {"replace": {"next": "${path}"}}, "next=%2F"),
    ],
)
def test_a_query_is_edited_and_the_rest_stays(now, edits, then):
    assert query(now, **edits) == then


# --- locations ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ex", "location"),
    [
        ("https://b.example/new", exchange("/a?x=1"), "https://b.example/new?x=1"),
        ("https://b.example", exchange("/a"), "https://b.example/"),
        ("https://b.example${path}", exchange("/a/b"), "https://b.example/a/b"),
        ("https://${host}${path}", exchange("/a/b", host="c.example:81"), "https://c.example:81/a/b"),
        ("${client.scheme}://www.${host}/", exchange(scheme="https"), "https://www.a.example/"),
        ("/new${path}", exchange("/a?x=1&y"), "/new/a?x=1&y"),
        ("/new?via=${path}", exchange("/a?x=1"), "/new?via=%2Fa&x=1"),
        ("/new#part-${query.n}", exchange("/a?n=1#2"), "/new?n=1#2#part-1%232"),
        ("/#/app", exchange("/a?x=1"), "/?x=1#/app"),
        ("/u/${identity.sub}", exchange(subject="a/b\r\nset-cookie: x"), "/u/a%2Fb%0D%0Aset-cookie%3A%20x"),
        ("https://${path.tenant:-www}.b.example/", exchange(), "https://www.b.example/"),
    ],
)
def test_a_location_is_made_of_values_each_in_its_place(text, ex, location):
    assert into_location(as_location(Template(text)), keep_query=True)(ex) == location


def test_the_query_of_the_request_can_be_left_behind():
    assert into_location(Template("/new?a=1"), keep_query=False)(exchange("/a?x=1")) == "/new?a=1"


@pytest.mark.parametrize(
    ("text", "ex"),
    [
        ("${path}", exchange("//evil.example")),
        ("/${path.rest}", exchange("/a//evil.example", rest="/evil.example")),
        ("https://${path.rest}.b.example/", exchange(rest="evil.example/")),
        ("https://${host}/", exchange(host="")),
        ("/a/${identity.sub}/", exchange(subject="..")),
    ],
)
def test_no_value_sends_to_another_host_or_up(text, ex):
    with pytest.raises(Unfit):
        into_location(as_location(Template(text)), keep_query=True)(ex)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (text, "must start with 'http://', 'https://', '${client.scheme}://', '/' or '${path}'")
            for text in (
                "new",
                "ftp://a.example/",
                "javascript:alert(1)",
                "${header.referer}",
                "?a=1",
                "#a",
                "${host}/",
            )
        ),
        ("//b.example/", "has an empty or a dot segment; write the path that is meant"),
        ("https:///a", "must be a host, perhaps with a port, not ''"),
        ("https://b example/", "must be a host, perhaps with a port, not 'b example'"),
        ("https://u@${host}/", "has 'u@', which a host cannot"),
        ("/a/../b", "has an empty or a dot segment; write the path that is meant"),
        ("/a?b c", "has 'b c', which a URL cannot; percent-encode it"),
        ("/a#b#c", "has 'b#c', which a URL cannot; percent-encode it"),
        ("/a\r\nx: y", "has '\\r', which a path cannot; write %0D"),
    ],
)
def test_a_location_that_is_no_url_is_refused(text, message):
    with pytest.raises(ValueError) as refused:
        as_location(Template(text))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("scheme", "host", "ex", "location"),
    [
        ("https", None, exchange("/a?x=1"), "https://a.example/a?x=1"),
        ("https", None, exchange("/a", scheme="https"), None),
        ("https", None, exchange("/a", host="A.example:8080"), "https://a.example/a"),
        ("https", None, exchange("/a", host="[::1]:8080"), "https://[::1]/a"),
        (None, "b.example", exchange("/a"), "http://b.example/a"),
        (None, "b.example", exchange("/a", host="B.example:8080"), None),
        (None, "b.example:81", exchange("/a", host="b.example:80"), "http://b.example:81/a"),
        (None, "b.example:81", exchange("/a", host="b.example:81"), None),
        ("https", "b.example", exchange("/a", host="b.example"), "https://b.example/a"),
        ("https", "b.example", exchange("/a", scheme="https"), "https://b.example/a"),
        ("https", "b.example", exchange("/a", host="b.example", scheme="https"), None),
    ],
)
def test_who_is_there_already_is_not_sent_there(scheme, host, ex, location):
    assert moved(scheme, host, keep_query=True)(ex) == location


def test_without_a_host_there_is_no_place_to_be_sent_to():
    with pytest.raises(Unfit):
        moved("https", None, keep_query=True)(exchange(host=""))


def test_a_move_can_leave_the_query_behind():
    assert moved("https", None, keep_query=False)(exchange("/a?x=1")) == "https://a.example/a"
