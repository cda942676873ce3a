"""The access log: what a line says, and that no request can make it say anything else."""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from gw import (
    IDENTITY,
    TRACE,
    Attempt,
    Client,
    Endpoint,
    Exchange,
    Headers,
    Identity,
    Outcome,
    Request,
    Response,
    RouteInfo,
    Trace,
)
from gw.filters import Note
from gw.logs.access_log import FIELDS, AccessLog, BadTemplate, compile_line
from gw.logs.log_files import LineSink


def make_exchange(**request_headers: str) -> Exchange:
    request = Request("GET", "/v1/things/42?token=secret")
    request.headers = Headers.of([(name.replace("_", "-"), value) for name, value in request_headers.items()])
    request.host = "api.example.com"
    ex = Exchange(request, Client("192.0.2.7", "10.0.0.1", scheme="https"))
    ex.started = time.monotonic()
    ex.request_id = "r-1"
    return ex


def make_finished_exchange() -> Exchange:
    ex = make_exchange(user_agent="curl/8.5.0", referer="https://example.com/")
    ex.response = Response(201, Headers.of([("x-cache", "hit"), ("x-cache", "miss")]))
    ex.route = RouteInfo("things")
    ex.params = {"id": "42"}
    for number, host in ((1, "10.0.0.5"), (2, "2001:db8::5")):
        attempt = Attempt(number, "api", started=100.0)
        attempt.answered = 100.25
        attempt.endpoint = Endpoint(host, 8080)
        ex.attempts.append(attempt)
    ex.outcome = Outcome.UPSTREAM
    ex.reason = "auth.cached"
    ex.bytes_received, ex.bytes_sent = 10, 2345
    ex[TRACE] = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    ex[IDENTITY] = Identity("alice")
    return ex


def set_clocks(monkeypatch, ex: Exchange) -> None:
    """Make it 2026-07-29 10:20:30.5, 1.25 s after *ex* began."""
    monkeypatch.setattr(time, "time", lambda: 1_785_320_430.5)
    monkeypatch.setattr(time, "monotonic", lambda: ex.started + 1.25)


# --- JSON ----------------------------------------------------------------------


def test_a_json_line_says_how_the_exchange_went(monkeypatch):
    ex = make_finished_exchange()
    set_clocks(monkeypatch, ex)
    line = compile_line("json")(ex)
    assert line.endswith("}\n")
    assert json.loads(line) == {
        "time": "2026-07-29T10:20:29.250Z",
        "duration_ms": 1250.0,
        "client_ip": "192.0.2.7",
        "client_peer": "10.0.0.1",
        "method": "GET",
        "host": "api.example.com",
        "path": "/v1/things/42",
        "protocol": "HTTP/1.1",
        "status": 201,
        "bytes_received": 10,
        "bytes_sent": 2345,
        "route_name": "things",
        "upstream_name": "api",
        "endpoint": "[2001:db8::5]:8080",
        "attempts": 2,
        "upstream_ms": 250.0,
        "outcome": "upstream",
        "reason": "auth.cached",
        "request_id": "r-1",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "header_referer": "https://example.com/",
        "header_user_agent": "curl/8.5.0",
    }


def test_what_an_exchange_never_had_is_null():
    ex = make_exchange()
    ex.request.host = ""
    line = json.loads(compile_line("json")(ex))
    assert {name for name, value in line.items() if value is None} == {
        "host",
        "status",
        "route_name",
        "upstream_name",
        "endpoint",
        "upstream_ms",
        "outcome",
        "reason",
        "trace_id",
        "header_referer",
        "header_user_agent",
    }
    assert line["attempts"] == 0


def test_an_attempt_without_an_endpoint_has_none():
    ex = make_finished_exchange()
    ex.attempts[-1].endpoint = None
    assert json.loads(compile_line("json")(ex))["endpoint"] is None


def test_a_json_template_chooses_the_members():
    line = compile_line("json", "${status} ${query}, ${response_header.X-Cache}\n${path.id} ${path.none}")
    assert json.loads(line(make_finished_exchange())) == {
        "status": 201,
        "query": "token=secret",
        "response_header_X_Cache": "hit",
        "path_id": "42",
        "path_none": None,
    }


def test_the_query_is_there_only_for_who_asks():
    ex = make_finished_exchange()
    assert "secret" not in compile_line("json")(ex)
    assert "secret" not in compile_line("text")(ex)
    assert compile_line("text", "${path}?${query}")(ex) == "/v1/things/42?token=secret\n"


def test_the_path_is_the_one_that_was_matched_though_a_filter_rewrote_it():
    ex = make_exchange()
    ex.request.path = "/internal"
    assert compile_line("text", "${path} ${upstream_path}")(ex) == "/v1/things/42 /internal\n"


def test_an_explained_exchange_carries_its_notes():
    ex = make_finished_exchange()
    ex.notes = [Note("on_request_headers", "auth", "pass", "cached \N{SNOWMAN}", "gateway.yaml:3:1")]
    assert json.loads(compile_line("json", "${status}")(ex)) == {
        "status": 201,
        "notes": [
            {
                "stage": "on_request_headers",
                "plugin": "auth",
                "verdict": "pass",
                "reason": "cached \N{SNOWMAN}",
                "position": "gateway.yaml:3:1",
            }
        ],
    }
    ex.notes.append(Note("on_body", "waf", "reply"))
    assert compile_line("text", "${status}")(ex) == (
        '201 notes="on_request_headers auth pass cached \\u2603 gateway.yaml:3:1; on_body waf reply"\n'
    )


def test_times_are_cut_not_rounded_and_the_second_goes_with_the_milliseconds(monkeypatch):
    ex = make_exchange()
    monkeypatch.setattr(time, "monotonic", lambda: ex.started)
    now = iter([1_785_320_429.9999, 1_785_320_430.0])
    monkeypatch.setattr(time, "time", lambda: next(now))
    line = compile_line("text", "${time}")
    assert [line(ex), line(ex)] == ["2026-07-29T10:20:29.999Z\n", "2026-07-29T10:20:30.000Z\n"]


# --- text ----------------------------------------------------------------------


def test_the_built_in_text_line_is_the_combined_one_and_more(monkeypatch):
    ex = make_finished_exchange()
    set_clocks(monkeypatch, ex)
    assert compile_line("text")(ex) == (
        '192.0.2.7 [2026-07-29T10:20:29.250Z] "GET /v1/things/42 HTTP/1.1" 201 2345 "https://example.com/" '
        '"curl/8.5.0" 1250.000 things [2001:db8::5]:8080 2 upstream auth.cached r-1\n'
    )


def test_what_is_not_there_is_a_hyphen_in_text():
    assert compile_line("text", "${status}|${header.x}|${endpoint}|${reason}")(make_exchange()) == "-|-|-|-\n"


def test_literals_are_taken_as_they_are():
    line = compile_line("text", """100% {ex} %s \\n ' \"\"\" ${method} $$ {request.method} """)
    assert line(make_exchange()) == """100% {ex} %s \\n ' \"\"\" GET $$ {request.method} \n"""


def test_a_header_that_came_twice_shows_its_first_line():
    assert compile_line("text", "${response_header.x-cache}")(make_finished_exchange()) == "hit\n"


def test_a_variable_may_be_named_twice():
    assert compile_line("text", "${header.referer} ${header.referer}")(make_exchange(referer="a")) == "a a\n"


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("form", ["json", "text"])
def test_every_field_can_be_printed_for_any_exchange(form, name):
    line = compile_line(form, f"${{{name}}}")
    for ex in (make_exchange(), make_finished_exchange()):
        assert line(ex).strip()


# --- what a template may not say -------------------------------------------------


@pytest.mark.parametrize(
    ("form", "template", "message"),
    [
        ("xml", "", "log.access.format: there is no 'xml'; there are json and text"),
        ("text", "${status", "log.access.template: a '${' is not closed; write ${name}"),
        ("text", "${status}\n${path}", "log.access.template: a line has no line breaks; write it as one line"),
        (
            "json",
            "${status} of ${path}",
            "log.access.template: in JSON it is a list such as ${time} ${status}, without 'of'",
        ),
    ],
)
def test_a_template_that_cannot_be_is_refused(form, template, message):
    with pytest.raises(BadTemplate, match=f"^{re.escape(message)}$"):
        compile_line(form, template)


@pytest.mark.parametrize("name", ["", "statsu", "header.", "header", "cookie.x", "header.\u00e9", "ex.request"])
@pytest.mark.parametrize("form", ["json", "text"])
def test_an_unknown_variable_is_refused_with_what_there_is(form, name):
    known = ", ".join([*FIELDS, "header.NAME", "response_header.NAME", "path.NAME"])
    with pytest.raises(BadTemplate) as caught:
        compile_line(form, f"${{{name}}}")
    assert str(caught.value) == f"log.access.template: there is no ${{{name}}}; there are {known}"


def test_names_in_a_template_never_become_code():
    ex = make_exchange()
    for name in ("path.'+quit()+'", 'path."""', "path.\\", "header.x']"):
        assert compile_line("text", f"${{{name}}}")(ex) == "-\n"


# --- what a client may not do ------------------------------------------------------

_anything = st.text(st.characters(max_codepoint=255), min_size=1)


@given(_anything)
def test_no_header_breaks_out_of_a_json_string(value):
    ex = make_exchange(user_agent=value)
    line = compile_line("json")(ex)
    assert json.loads(line)["header_user_agent"] == value
    assert line.isascii()
    assert line[:-1].isprintable()


@given(_anything, st.text(min_size=1))
def test_no_request_breaks_out_of_its_quotes_in_text(value, path):
    ex = make_exchange(user_agent=value)
    ex.matched_path = path
    line = compile_line("text", '"${path}" "${header.user-agent}"')(ex)
    assert line.isascii()
    assert line[:-1].isprintable()
    assert [json.loads(string) for string in re.findall(r'"(?:[^"\\]|\\.)*"', line)] == [path, value]


# --- batches ---------------------------------------------------------------------


def test_lines_are_written_when_the_batch_is_flushed(tmp_path):
    log = AccessLog("text", "${status}", LineSink(str(tmp_path / "access.log")))
    log(make_finished_exchange())
    log(make_exchange())
    assert log._sink.wait_written(10)
    assert (tmp_path / "access.log").read_text() == ""
    log.flush()
    assert log._sink.wait_written(10)
    assert (tmp_path / "access.log").read_text() == "201\n-\n"
    assert log.close()


def test_a_large_batch_does_not_wait_for_the_ticker(tmp_path):
    log = AccessLog("text", "${header.x}", LineSink(str(tmp_path / "access.log")))
    for _ in range(2):
        log(make_exchange(x="y" * 40_000))
    assert log._sink.wait_written(10)
    assert (tmp_path / "access.log").stat().st_size == 80_002
    assert log.close()


def test_reopening_leaves_the_lines_before_it_in_the_file_that_was_moved(tmp_path):
    path = tmp_path / "access.log"
    log = AccessLog("text", "${status}", LineSink(str(path)))
    log(make_finished_exchange())
    log.flush()
    assert log._sink.wait_written(10)
    path.rename(tmp_path / "access.log.1")
    log.reopen()
    log(make_exchange())
    assert log.close()
    assert (tmp_path / "access.log.1").read_text() == "201\n"
    assert path.read_text() == "-\n"


def test_flushing_after_close_does_nothing(tmp_path):
    log = AccessLog("json", "", LineSink(str(tmp_path / "access.log")))
    log(make_exchange())
    assert log.close()
    log.flush()
    assert log.close()
    assert log.lost == 0
    assert len((tmp_path / "access.log").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("json", b'{"time":"2026-07-29T10:20:30.500Z","lost_lines":7}\n'),
        (
            "text",
            b"[2026-07-29T10:20:30.500Z] 7 access log lines were lost: they came faster than they could be written\n",
        ),
    ],
)
def test_lost_lines_are_told_of_in_the_format_of_the_others(monkeypatch, tmp_path, form, expected):
    monkeypatch.setattr(time, "time", lambda: 1_785_320_430.5)
    sink = LineSink(str(tmp_path / "access.log"))
    log = AccessLog(form, "", sink)
    assert sink.notice(7) == expected
    assert log.close()


def test_every_field_has_a_row_in_the_documentation():
    page = (Path(__file__).parents[3] / "docs" / "logging.md").read_text(encoding="utf-8")
    rows = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("|"))
    assert [name for name in FIELDS if f"`{name}`" not in rows] == []
