import pytest

from gw import IDENTITY, Client, Filter, Identity, Outcome, Reply
from gw.testing import check_filter, drive
from gw_rewrite.filter import filters
from gw_rewrite.settings import Rewrite


def made(**section):
    return filters(Rewrite.model_validate(section, strict=False))


async def sent(headers=None, *, target="/", params=None, **section):
    """Return the request as the upstream got it."""
    played = await drive(made(**section), target=target, headers=headers, params=params)
    assert played.outcome is Outcome.UPSTREAM
    return played.upstream_request


# --- the chain ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ({}, []),
        ({"request": {"headers": {}}, "query": {}}, []),
        ({"response": {"headers": {"remove": ["server"]}}}, ["rewrite.response"]),
        ({"request": {"headers": {"remove": ["cookie"]}}}, ["rewrite.request"]),
        ({"path": {"template": "/a"}}, ["rewrite.request"]),
        ({"host": "a.example"}, ["rewrite.request"]),
        ({"query": {"remove": ["a"]}}, ["rewrite.request"]),
        ({"respond": {}, "response": {"headers": {"set": {"a": "b"}}}}, ["rewrite.response", "rewrite.respond"]),
        ({"redirect": {"scheme": "https"}, "host": "a.example"}, ["rewrite.redirect", "rewrite.request"]),
    ],
)
def test_a_chain_has_only_what_a_section_asks_for(section, names):
    assert [each.name for each in made(**section)] == names


@pytest.mark.parametrize(
    "section",
    [
        {"request": {"headers": {"set": {"x-body": "${header.x-one}"}}}, "path": {"template": "/x${path}"}},
        {"response": {"headers": {"set": {"x-status": "${status}"}}}},
        {"redirect": {"to": "https://b.example${path}"}},
        {"respond": {"status": 503, "body": "later"}},
    ],
)
async def test_the_filters_keep_the_rules_of_filters(section):
    await check_filter(lambda: made(**section)[0], headers={"x-one": "1"})


# --- header lines ------------------------------------------------------------


async def test_header_lines_are_removed_then_set_then_appended_then_added():
    request = await sent(
        {"x-gone": "1", "x-set": "theirs", "x-list": "a", "x-again": "1", "x-other": "kept"},
        request={
            "headers": {
                "add": {"x-again": "2", "x-gone": "new"},
                "append": {"x-list": "b", "x-set": "more", "x-new": "first"},
                "set": {"x-set": "ours"},
                "remove": ["X-Gone"],
            }
        },
    )
    assert list(request.headers) == [
        ("x-set", "ours, more"),
        ("x-list", "a, b"),
        ("x-again", "1"),
        ("x-other", "kept"),
        ("x-new", "first"),
        ("x-again", "2"),
        ("x-gone", "new"),
    ]


async def test_templates_are_filled_in_before_anything_changes():
    request = await sent(
        {"x-a": "1", "x-b": "2"},
        target="/old?a=1",
        path={"template": "/new${path}"},
        query={"set": {"from": "${path}"}},
        request={
            "headers": {"remove": ["x-a"], "set": {"x-b": "${header.x-a}", "x-c": "${header.x-b}", "x-d": "${path}"}}
        },
    )
    assert (request.path, request.query) == ("/new/old", "a=1&from=%2Fold")
    assert list(request.headers) == [("x-b", "1"), ("x-c", "2"), ("x-d", "/old")]


async def test_an_empty_value_leaves_no_line():
    request = await sent(
        {"x-user": "root", "x-list": "a"},
        request={
            "headers": {
                "set": {"x-user": "${identity.sub}"},
                "append": {"x-list": "${query.none}"},
                "add": {"x-list": "${query.none}"},
            }
        },
    )
    assert list(request.headers) == [("x-list", "a")]


async def test_several_lines_are_joined_before_a_value_is_appended():
    request = await sent({"x-list": ""}, request={"headers": {"append": {"x-list": "b"}}})
    assert request.headers.get_all("x-list") == ["b"]
    played = await drive(
        [
            *made(response={"headers": {"add": {"vary": "accept"}}}),
            *made(response={"headers": {"append": {"vary": "x"}}}),
        ],
        upstream_headers={"vary": "origin"},
    )
    assert played.headers.get_all("vary") == ["origin, x", "accept"]


async def test_who_the_gateway_recognised_can_be_told_to_the_upstream():
    class Recognise(Filter):
        async def on_request_headers(self, ex):
            ex[IDENTITY] = Identity("user-7", claims={"tenant": "acme\r\nx-evil: 1"})

    section = {"request": {"headers": {"set": {"x-user": "${identity.sub}", "x-tenant": "${identity.claim.tenant}"}}}}
    played = await drive([Recognise(), *made(**section)], headers={"x-user": "root"})
    assert list(played.upstream_headers) == [("x-user", "user-7"), ("x-tenant", "acme%0D%0Ax-evil: 1")]


async def test_values_have_no_blanks_around_them():
    request = await sent(target="/?a=%20%09x%20", request={"headers": {"set": {"x-a": "${query.a}"}}})
    assert request.headers.get("x-a") == "x"


async def test_responses_are_rewritten_with_what_the_upstream_said():
    played = await drive(
        made(
            response={
                "headers": {
                    "remove": ["server"],
                    "set": {"x-was": "${status} ${response_header.etag}", "x-route": "${route.name}"},
                    "append": {"cache-control": "no-transform"},
                    "add": {"set-cookie": "seen=${request.id}"},
                }
            }
        ),
        status=203,
        upstream_headers={"server": "old", "etag": '"1"', "cache-control": "private", "set-cookie": "a=b"},
    )
    assert list(played.headers) == [
        ("etag", '"1"'),
        ("cache-control", "private, no-transform"),
        ("set-cookie", "a=b"),
        ("content-length", "2"),
        ("x-was", '203 "1"'),
        ("x-route", "test"),
        ("set-cookie", "seen=request-1"),
    ]


async def test_answers_from_behind_have_the_response_headers_too():
    class Refuse(Filter):
        async def on_request_headers(self, ex):
            return Reply(403)

    headers = {"response": {"headers": {"set": {"x-status": "${status}"}}}}
    played = await drive([*made(**headers), Refuse()])
    assert (played.status, played.headers.get("x-status")) == (403, "403")
    played = await drive(made(respond={"status": 410}, **headers))
    assert (played.status, played.headers.get("x-status")) == (410, "410")


# --- targets -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "then"),
    [
        ({"prefix": {"from": "/api", "to": "/"}}, "/users/7"),
        ({"template": "/v2/${path.id}/${method}"}, "/v2/7/GET"),
        ({"regex": {"match": r"^/api/(\w+)/", "replace": r"/\1/id-"}}, "/users/id-7"),
    ],
)
async def test_a_path_is_rewritten_in_one_of_three_ways(path, then):
    request = await sent(target="/api/users/7?q", params={"id": "7"}, path=path)
    assert (request.path, request.query) == (then, "q")


async def test_host_and_query_are_rewritten():
    request = await sent(
        target="/?a=1&b=2",
        params={"tenant": "acme"},
        host="${path.tenant}.example.com",
        query={"remove": ["a"], "set": {"tenant": "${path.tenant}"}},
    )
    assert (request.host, request.query) == ("acme.example.com", "b=2&tenant=acme")


async def test_what_is_not_asked_for_stays():
    request = await sent(
        {"host": "A.example:80", "x-a": "1"}, target="/a?b", request={"headers": {"add": {"x-b": "2"}}}
    )
    assert (request.host, request.path, request.query) == ("A.example:80", "/a", "b")


@pytest.mark.parametrize(
    "section", [{"path": {"template": "/u/${query.u}"}}, {"host": "${query.u}"}, {"redirect": {"to": "/u/${query.u}"}}]
)
async def test_a_value_that_fits_nowhere_is_answered_400(section):
    played = await drive(made(**section), target="/?u=..%5C", explain=True)
    assert (played.status, played.reason, played.upstream_request) == (400, "rewrite.unfit", None)
    assert [note.verdict for note in played.notes] == ["unfit", "reply"]


async def test_a_refused_request_was_not_touched():
    played = await drive(
        made(path={"template": "/ok"}, host="${query.none}", request={"headers": {"set": {"x-a": "1"}}}), target="/a"
    )
    assert (played.status, played.exchange.request.path) == (400, "/a")
    assert "x-a" not in played.exchange.request.headers


@pytest.mark.parametrize("section", [{"path": {"template": "/x"}}, {"redirect": {"scheme": "https"}}])
async def test_a_request_that_asks_about_no_path_keeps_that(section):
    played = await drive(made(**section), method="OPTIONS", target="*")
    assert (played.status, played.upstream_request.path) == (200, "*")


async def test_a_rewritten_target_is_explained():
    played = await drive(made(path={"template": "/new"}), target="/old?a", explain=True)
    assert [(note.verdict, note.reason) for note in played.notes] == [("rewritten", "example.test/new?a"), ("pass", "")]


async def test_a_target_that_stays_is_not_explained():
    played = await drive(made(path={"prefix": {"from": "/a", "to": "/b"}}), target="/old", explain=True)
    assert [note.verdict for note in played.notes] == ["pass"]


# --- answers -----------------------------------------------------------------


async def test_a_redirect_says_where():
    played = await drive(made(redirect={"to": "https://b.example/new", "status": 301}), target="/a?x=1")
    assert (played.status, played.headers.get("location")) == (301, "https://b.example/new?x=1")
    assert (played.outcome, played.reason) == (Outcome.REPLY, "rewrite.redirect")


async def test_a_redirect_is_permanent_unless_it_says_otherwise():
    played = await drive(made(redirect={"scheme": "https"}), target="/a", headers={"host": "a.example"})
    assert (played.status, played.headers.get("location")) == (308, "https://a.example/a")


async def test_who_came_the_right_way_is_let_through_and_rewritten():
    played = await drive(
        made(redirect={"scheme": "https"}, path={"template": "/x"}),
        client=Client("192.0.2.1", "192.0.2.1", scheme="https"),
    )
    assert (played.outcome, played.upstream_request.path) == (Outcome.UPSTREAM, "/x")


async def test_a_fixed_answer_is_always_the_same():
    chain = made(
        respond={"status": 503, "body": "größe ${path}", "content_type": "text/html", "headers": {"Retry-After": "60"}}
    )
    for target in ("/a", "/b"):
        played = await drive(chain, target=target)
        assert (played.status, played.body.decode(), played.reason) == (503, "größe ${path}", "rewrite.respond")
        assert list(played.headers) == [("content-type", "text/html"), ("retry-after", "60"), ("content-length", "15")]


async def test_a_fixed_answer_without_a_body_has_the_gateways_words():
    played = await drive(made(respond={"status": 404}))
    assert (played.status, played.body) == (404, b"Not Found")


@pytest.mark.parametrize(("respond", "body"), [({"body": ""}, b""), ({"status": 204}, b"")])
async def test_a_fixed_answer_may_be_empty(respond, body):
    played = await drive(made(respond=respond))
    assert (played.status, played.body) == (respond.get("status", 200), body)
