import pytest

from gw import IDENTITY, Client, Exchange, Headers, Identity, Request, Response, RouteInfo
from gw_rewrite.templates import Kind, Template, as_field, compiled, for_requests, into_field


def exchange(target="/users/7/a%20b?q=caf%C3%A9+au+lait&q=2&empty=", **headers):
    lines = [(name.replace("_", "-"), value) for name, value in headers.items()]
    request = Request("GET", target, Headers.of(lines))
    request.host = "api.example.com:8443"
    ex = Exchange(request, Client("192.0.2.9", "10.0.0.1", 4711, "https"))
    ex.request_id = "0123abcd"
    ex.route = RouteInfo("größe")
    ex.params = {"id": "7", "rest": "a%20b"}
    return ex


def filled(text, ex):
    made = into_field(Template(text))
    return made if isinstance(made, str) else made(ex)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${client.ip}", "192.0.2.9"),
        ("${client.peer}", "10.0.0.1"),
        ("${client.scheme}", "https"),
        ("${host}", "api.example.com:8443"),
        ("${method}", "GET"),
        ("${path}", "/users/7/a%20b"),
        ("${path.id}", "7"),
        ("${path.other}", ""),
        ("${query.q}", "caf\xc3\xa9 au lait"),
        ("${query.empty}", ""),
        ("${query.other}", ""),
        ("${request.id}", "0123abcd"),
        ("${route.name}", "gr\xc3\xb6\xc3\x9fe"),
        ("${header.x-one}", "1"),
        ("${header.X-One}", "1"),
        ("${header.x-two}", ""),
        ("${identity.sub}", ""),
        ("${identity.claim.tenant}", ""),
        ("${status}", ""),
        ("${response_header.etag}", ""),
    ],
)
def test_a_variable_is_what_its_name_says_and_empty_where_that_is_missing(text, value):
    assert filled(text, exchange(x_one="1")) == value


def test_header_lines_of_one_name_are_read_as_one_list():
    ex = exchange(accept="text/html")
    ex.request.headers.add("accept", "text/plain")
    assert filled("${header.accept}", ex) == "text/html, text/plain"


def test_a_response_has_variables_of_its_own():
    ex = exchange()
    ex.response = Response(404, Headers.of([("etag", '"1"'), ("etag", '"2"')]))
    assert filled("${status} ${response_header.ETag}", ex) == '404 "1", "2"'


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("acme", "acme"),
        ("Jürgen", "J\xc3\xbcrgen"),
        (7, "7"),
        (True, "true"),
        (None, ""),
        (["a", "b"], '["a", "b"]'),
    ],
)
def test_a_claim_is_its_text_or_else_json(claim, value):
    ex = exchange()
    ex[IDENTITY] = Identity("user|7", claims={"https://example.com/tenant": claim})
    assert filled("${identity.claim.https://example.com/tenant}", ex) == value
    assert filled("${identity.sub}", ex) == "user|7"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a ${path.id} b ${method}", "a 7 b GET"),
        ("${path.other:-none}", "none"),
        ("${path.id:-none}", "7"),
        ("${query.empty:-none}", "none"),
        ("${path.other:-}", ""),
        ("${path.other:-a:-b}", "a:-b"),
        ("$${path.id} costs $$5", "${path.id} costs $5"),
        ("$$${path.id}", "$7"),
        ("$$$$", "$$"),
    ],
)
def test_defaults_and_escapes(text, value):
    assert filled(text, exchange()) == value


@pytest.mark.parametrize("text", ["plain", "1 $$ or $${more}"])
def test_text_without_variables_is_no_function(text):
    assert into_field(Template(text)) == text.replace("$$", "$")


def test_control_characters_in_a_value_do_not_reach_a_field():
    ex = exchange("/?q=a%0D%0Ax-evil:%201%00%7F%09tab")
    assert filled("<${query.q}>", ex) == "<a%0D%0Ax-evil: 1%00%7F\ttab>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${clinet.ip}", "has '${clinet.ip}', which is no variable (did you mean '${client.ip}'?)"),
        ("${headers.x-user}", "has '${headers.x-user}', which is no variable (did you mean '${header.x-user}'?)"),
        (
            "${identity.claims.role}",
            "has '${identity.claims.role}', which is no variable (did you mean '${identity.claim.role}'?)",
        ),
        (
            "${upstream}",
            (
                "has '${upstream}', which is no variable; the variables are client.ip, client.peer, client.scheme,"
                " header.NAME, host, identity.claim.NAME, identity.sub, method, path, path.NAME, query.NAME, request.id,"
                " response_header.NAME, route.name, status"
            ),
        ),
        ("${header.x user}", "has '${header.x user}', but 'x user' cannot be a name there"),
        ("${path.a-b}", "has '${path.a-b}', but 'a-b' cannot be a name there"),
        ("${query.}", "has '${query.}', but '' cannot be a name there"),
        *(
            (text, "has a '$' that begins no ${variable} or ${variable:-default}; write $$ for the character")
            for text in ("$5", "5$", "${path", "$path", "${query.a:-${query.b}}", "$$$")
        ),
    ],
)
def test_what_is_no_variable_is_refused(text, message):
    with pytest.raises(ValueError) as refused:
        Template(text)
    assert str(refused.value) == message


@pytest.mark.parametrize("name", ["status", "response_header.etag"])
def test_a_request_cannot_know_its_response(name):
    with pytest.raises(ValueError, match="which only response headers can have"):
        for_requests(Template(f"${{{name}}}"))


@pytest.mark.parametrize("text", ["a\nb", "a\tb", "\x7f", "größe", "${path.id:-\r}"])
def test_a_field_says_printable_ascii(text):
    with pytest.raises(ValueError, match="must be printable ASCII"):
        as_field(Template(text))


def test_a_field_has_no_spaces_around_it():
    with pytest.raises(ValueError, match="must not have spaces around it"):
        as_field(Template(" ${path.id}"))


def test_encoders_are_chosen_by_what_a_value_is_made_of():
    encoders = {Kind.TEXT: str.upper, Kind.HOST: lambda value: f"<{value}>"}
    made = compiled(Template("${route.name:-x} ${path.rest} ${host} é").parts, encoders, str.swapcase)
    ex = exchange()
    ex.route = None
    assert made(ex) == "X a%20b <api.example.com:8443> É"


def test_templates_written_alike_are_equal():
    assert {Template("${path}"), Template("${path}"), Template("/${path}")} == {
        Template("${path}"),
        Template("/${path}"),
    }
    assert str(Template("$$ ${path}")) == "$$ ${path}"
    assert repr(Template("${path}")) == "<Template '${path}'>"
