"""What is scraped: Prometheus' own parsers read it, in both formats, and it is negotiated as the RFC says."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import anyio
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.process_collector import ProcessCollector

from gw import Client, Exchange, Headers, Request
from gw.figures import Figures
from gw_otel.exposition import OPENMETRICS, TEXT, _process, accepts_openmetrics, endpoint, rendered, sanitised
from gw_otel.process import CLASSIC, OwnProcess

RESOURCE = [("service.name", "gw"), ("k8s.pod-name", 'a"b\\c\nd')]
LOG = logging.getLogger("gw.otel")


def some_figures():
    figures = Figures()
    figures.counter("gw.rate_limit.decisions", "{requests}", "Decisions\nof \\zones", ("zone",)).at('a"\\\nb').add(3)
    figures.level("gw.open", "{connections}", "Open").at().value = -2
    took = figures.histogram("http.took", "s", "Time", ("code",), bounds=(0.1, 1.0)).at("200")
    took.record(0.05)
    took.record(0.5, ("a" * 32, "b" * 16, 0.5, 1_700_000_000_500_000_000))
    took.record(7)
    figures.histogram("http.body.size", "By", "Size", bounds=(1.0,)).at().record(5)
    figures.counter("gw.never", "{x}", "Nothing yet", ("a",))
    return figures


def alone(figures):
    async def gather():
        return figures

    return gather


def counted_alone():
    figures = some_figures()
    return figures, alone(figures)


async def text_of(figures, *, as_openmetrics=False, resource=None, collectors=()):
    pieces = [piece async for piece in rendered(figures, resource, list(collectors), as_openmetrics=as_openmetrics)]
    return b"".join(pieces).decode()


def samples(families):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("as_openmetrics", [False, True])
async def test_prometheus_own_parser_reads_what_was_counted(as_openmetrics):
    text = await text_of(some_figures(), as_openmetrics=as_openmetrics, resource=RESOURCE)
    found = samples((parse_openmetrics if as_openmetrics else parse_text)(text))
    assert found == {
        ("target_info", (("k8s_pod_name", 'a"b\\c\nd'), ("service_name", "gw"))): 1,
        ("gw_rate_limit_decisions_total", (("zone", 'a"\\\nb'),)): 3,
        ("gw_open", ()): -2,
        ("http_took_seconds_bucket", (("code", "200"), ("le", "0.1"))): 1,
        ("http_took_seconds_bucket", (("code", "200"), ("le", "1.0"))): 2,
        ("http_took_seconds_bucket", (("code", "200"), ("le", "+Inf"))): 3,
        ("http_took_seconds_count", (("code", "200"),)): 3,
        ("http_took_seconds_sum", (("code", "200"),)): 7.55,
        ("http_body_size_bytes_bucket", (("le", "1.0"),)): 0,
        ("http_body_size_bytes_bucket", (("le", "+Inf"),)): 1,
        ("http_body_size_bytes_count", ()): 1,
        ("http_body_size_bytes_sum", ()): 5,
    }
    assert text.endswith("# EOF\n") is as_openmetrics
    assert "gw_never" not in text


async def test_types_and_helps_bear_the_names_of_their_format():
    text = await text_of(some_figures())
    assert "# HELP gw_rate_limit_decisions_total Decisions\\nof \\\\zones\n" in text
    assert "# TYPE gw_rate_limit_decisions_total counter\n" in text
    assert "# TYPE gw_open gauge\n" in text
    openmetrics = await text_of(some_figures(), as_openmetrics=True)
    assert "# TYPE gw_rate_limit_decisions counter\n" in openmetrics
    assert "# UNIT http_took_seconds seconds\n" in openmetrics


async def test_an_exemplar_leads_from_a_bucket_to_a_trace():
    text = await text_of(some_figures(), as_openmetrics=True)
    found = [
        (sample.labels["le"], sample.exemplar)
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.exemplar
    ]
    ((bound, exemplar),) = found
    assert (bound, exemplar.labels, exemplar.value) == (
        "1.0",
        {"trace_id": "a" * 32, "span_id": "b" * 16},
        0.5,
    )
    assert float(exemplar.timestamp) == 1_700_000_000.5
    assert "trace_id" not in await text_of(some_figures())


async def test_a_large_figure_comes_in_pieces_and_says_once_what_it_is():
    figures = Figures()
    took = figures.histogram("gw.took", "s", "Time", ("one", "two"), bounds=(1.0, 2.0))
    for one in range(100):
        for two in range(50):
            took.at(str(one), str(two)).record(1.5)
    for as_openmetrics in (False, True):
        pieces = [piece async for piece in rendered(figures, None, [], as_openmetrics=as_openmetrics)]
        assert max(piece.count(b"\n") for piece in pieces) <= 12 * 5 + 3
        text = b"".join(pieces).decode()
        assert text.count("# TYPE gw_took_seconds histogram\n") == 1
        found = samples((parse_openmetrics if as_openmetrics else parse_text)(text))
        assert len(found) == 5000 * 5


async def test_others_have_their_turn_while_it_is_written():
    figures = Figures()
    asked = figures.counter("gw.asked", "{requests}", "Requests", ("one",))
    for one in range(200):
        asked.at(str(one)).add()
    turns = []

    async def other():
        for _ in range(5):
            turns.append("other")
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        async for _ in rendered(figures, None, [], as_openmetrics=False):
            turns.append("piece")  # noqa: PERF401  # that they are between the others is the point
    assert "other" in turns[turns.index("piece") :]


async def test_of_two_figures_with_one_name_the_first_is_shown_and_one_warning_given(caplog):
    figures = Figures()
    figures.counter("gw.a.b", "{x}", "First").at().add(1)
    figures.counter("gw.a_b", "{x}", "Second").at().add(2)
    scrape = endpoint("/metrics", figures, alone(figures), None, LOG, is_on=True, process=False).handler
    for _ in range(2):
        reply = await scrape(request())
    assert b"gw_a_b_total 1.0" in reply.body
    assert b"2.0" not in reply.body
    assert [record.getMessage() for record in caplog.records] == [
        "metric gw.a_b is not shown: for Prometheus it has the name of gw.a.b"
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [("http.server-x", "http_server_x"), ("1st", "_1st"), ("a:b", "a_b"), ("naïve", "na_ve"), ("", "")],
)
def test_names_are_made_of_what_prometheus_allows(name, found):
    assert sanitised(name) == found


# --- negotiation ---------------------------------------------------------------

BOTH = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (BOTH, True),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; q=0.001", True),
        ("application/openmetrics-text;q=0.5, text/plain;q=0.5", True),
        ("text/plain;q=0.2, Application/OpenMetrics-Text;Q=0.3", True),
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0, */*", False),
        ("application/openmetrics-text;q=0.5, text/plain", False),
        ("application/openmetrics-text;q=0.5, */*;q=0.6", False),
        ("application/openmetrics-text;q=0.5, application/*", False),
        ("application/openmetrics-text;q=0.5, text/*;q=0.7", False),
        ("application/openmetrics-text;q=nan", False),
        ("application/openmetrics-text;q=2", False),
        ("application/json, application/openmetrics-text;q=0.1", True),
    ],
)
def test_openmetrics_is_what_accept_asks_for(accept, wanted):
    assert accepts_openmetrics(accept) is wanted


def request(accept=""):
    return Exchange(Request("GET", "/metrics", Headers.of([("accept", accept)])), Client("192.0.2.1", "192.0.2.1"))


@pytest.mark.parametrize(("accept", "content_type"), [(BOTH, OPENMETRICS), ("", TEXT)])
async def test_the_endpoint_says_which_format_it_is(accept, content_type):
    figures, gather = counted_alone()
    own = OwnProcess(figures)
    scrape = endpoint("/metrics", figures, gather, RESOURCE, LOG, is_on=True, process=True).handler
    reply = await scrape(request(accept))
    assert (reply.status, dict(reply.headers)["content-type"]) == (200, content_type)
    text = reply.body.decode()
    families = {each.name for each in (parse_openmetrics if accept else parse_text)(text)}
    assert {"process_start_time_seconds", "process_max_fds", "python_gc_collections"} <= families
    assert {*CLASSIC.values()} <= families
    del own


async def test_the_process_is_left_out_when_asked():
    text = await text_of(Figures(), collectors=())
    assert "process_" not in text
    assert "process_" in await text_of(Figures(), collectors=_process())


def test_the_figures_of_a_process_are_what_the_client_library_says_and_add_up():
    figures = Figures()
    own = OwnProcess(figures)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(Path(os.devnull).open())
        rows = {each.name: each.rows()[()].value for each in figures if each.name in CLASSIC}
        theirs = {each.name: each.samples[0].value for each in ProcessCollector(registry=CollectorRegistry()).collect()}
    for name, classic in CLASSIC.items():
        assert rows[name] == pytest.approx(theirs[classic], rel=0.2), name
    both = Figures()
    packed = [family.packed() for family in figures]
    both.add(packed)
    both.add(packed)
    memory = next(each for each in both if each.name == "process.memory.usage")
    assert memory.rows()[()].value == pytest.approx(2 * rows["process.memory.usage"], rel=0.2)
    del own
    assert not any(each.rows() for each in figures), "nobody holds it any more"


async def test_an_endpoint_that_is_switched_off_is_not_there():
    scrape = endpoint("/metrics", *counted_alone(), None, LOG, is_on=False, process=False).handler
    assert (await scrape(request())).status == 404
