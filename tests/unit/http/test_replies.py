"""Default answers: what a client is told, in which form, and when it is."""

import json
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import unquote

import pytest

from gw import Headers, Reply, Request
from gw.http.replies import PHRASES, http_date, phrase, render, response_to

TEXT = b"text/plain; charset=utf-8"
PROBLEM = b"application/problem+json"


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "",
        "*/*",
        "text/plain",
        "text/plain, application/problem+json",
        "text/*;q=0.5, application/json;q=0.4",
        "application/json;q=0, */*",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
        "image/png",
        "application/json;q=high",
        "garbage",
    ],
)
def test_plain_text_is_what_most_get(accept):
    assert render(Reply(502), accept, "r-1") == (b"Bad Gateway", TEXT)


@pytest.mark.parametrize(
    "accept",
    [
        "application/problem+json",
        "application/json",
        "Application/JSON; charset=utf-8, application/json",
        "application/*",
        "application/json, text/plain;q=0.9",
        "text/plain;q=0.1, */*;q=0.2",
        "application/problem+json;q=0.001, text/plain;q=0",
    ],
)
def test_json_is_for_who_prefers_it(accept):
    body, content_type = render(Reply(502), accept, "r-1")
    assert content_type == PROBLEM
    assert json.loads(body) == {"type": "about:blank", "title": "Bad Gateway", "status": 502, "request_id": "r-1"}


def test_a_request_without_an_id_has_none_in_its_problem():
    assert "request_id" not in json.loads(render(Reply(404), "application/json", "")[0])


def test_a_request_id_cannot_break_out_of_its_problem():
    body, _ = render(Reply(404), "application/json", 'x","status":200,"y":"\x7f\n')
    assert json.loads(body)["status"] == 404


@pytest.mark.parametrize("accept", [None, "application/json"])
def test_the_reason_is_never_shown(accept):
    body, _ = render(Reply(403, reason="waf.rule_42"), accept, "r-1")
    assert b"waf" not in body
    assert b"rule" not in body


@pytest.mark.parametrize("status", [204, 205, 304, 103])
def test_a_status_without_content_has_no_body(status):
    assert render(Reply(status), "application/json", "r-1")[0] == b""


@pytest.mark.parametrize(
    ("status", "said"), [(404, b"Not Found"), (299, b"Success"), (499, b"Client Error"), (599, b"Server Error")]
)
def test_a_status_nobody_registered_is_named_by_its_class(status, said):
    assert phrase(status) == said
    assert render(Reply(status), None, "")[0] == said


def test_every_status_the_standard_library_knows_has_a_phrase():
    renamed = {413, 414, 416, 418, 422}  # between versions of Python, or never registered
    theirs = {s.value: s.phrase.encode() for s in HTTPStatus if s.value not in renamed}
    assert {status: PHRASES.get(status) for status in theirs} == theirs


# --- responses -----------------------------------------------------------------


def request_with(*fields):
    return Request("POST", "/a", Headers.of(fields))


def test_a_default_body_says_what_it_depends_on():
    response, body = response_to(request_with(("accept", "text/html"), ("accept", "application/json")), Reply(404), "r")
    assert list(response.headers) == [
        ("content-type", "application/problem+json"),
        ("vary", "accept"),
        ("content-length", str(len(body))),
    ]
    assert json.loads(body)["status"] == 404


def test_a_body_of_ones_own_is_sent_as_it_is():
    response, body = response_to(request_with(), Reply(403, b"no", (("content-type", "text/html"),)), "r")
    assert list(response.headers) == [("content-type", "text/html"), ("content-length", "2")]
    assert (response.content_length, body) == (2, b"no")


@pytest.mark.parametrize(("status", "fields"), [(204, []), (304, []), (205, [("content-length", "0")])])
@pytest.mark.parametrize("given", [None, b"ignored"])
def test_a_status_without_content_carries_no_field_about_it(status, fields, given):
    response, body = response_to(request_with(), Reply(status, given), "r")
    assert (list(response.headers), body) == (fields, b"")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (200, "0"),
        (400, "13"),
        (401, "16"),
        (403, "7"),
        (404, "12"),
        (408, "4"),
        (413, "8"),
        (429, "14"),
        (502, "14"),
        (503, "14"),
        (504, "4"),
        (500, "2"),
    ],
)
def test_a_grpc_client_gets_a_grpc_status(status, code):
    reply = Reply(status, headers=(("retry-after", "1"),), reason="secret.cause")
    response, body = response_to(request_with(("content-type", "application/grpc+proto")), reply, "r")
    assert (response.status, response.has_body, body) == (200, False, b"")
    assert list(response.headers) == [
        ("retry-after", "1"),
        ("content-type", "application/grpc+proto"),
        ("grpc-status", code),
        ("grpc-message", phrase(status).decode()),
    ]


@pytest.mark.parametrize("content_type", ["application/grpc-web", "application/grpcx", "text/plain"])
def test_others_are_not_taken_for_grpc(content_type):
    response, _ = response_to(request_with(("content-type", content_type)), Reply(404), "r")
    assert response.status == 404


def test_a_message_for_a_grpc_client_is_encoded_and_bounded():
    reply = Reply(403, "100 % schön\n".encode() + b"x" * 5000, (("content-type", "text/plain"),))
    response, _ = response_to(request_with(("content-type", "application/grpc")), reply, "r")
    message = response.headers.get("grpc-message", "")
    assert message.startswith("100 %25 sch%C3%B6n%0Ax")
    assert unquote(message).encode() == reply.body[:1024]
    assert response.headers.get_all("content-type") == ["application/grpc"]


def test_a_plugin_may_speak_grpc_itself():
    reply = Reply(200, b"", (("content-type", "application/grpc"), ("grpc-status", "7")))
    response, _ = response_to(request_with(("content-type", "application/grpc")), reply, "r")
    assert response.headers.get_all("grpc-status") == ["7"]


# --- dates ---------------------------------------------------------------------


def test_the_date_is_that_of_rfc_9110():
    assert http_date(784_111_777.9) == b"Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize("at", [0, 951_782_400, 1_709_164_800, 1_785_320_430, 4_102_444_799])
def test_a_date_can_be_read_back(at):
    assert parsedate_to_datetime(http_date(at).decode()).timestamp() == at


def test_the_date_is_made_once_a_second(monkeypatch):
    made = []
    convert = time.gmtime
    monkeypatch.setattr(time, "gmtime", lambda second: made.append(second) or convert(second))
    for now in (1000.0, 1000.4, 1000.9, 1001.0, 1001.5):
        http_date(now)
    assert made == [1000, 1001]
