"""What the filter does to a request, and what it says at its end: span trees, each whole, and metrics."""

from __future__ import annotations

import time

import pytest

from gw import TRACE, Body, Client, Filter, Message, Outcome, Reply, Retry, RouteInfo
from gw.figures import Figures
from gw.testing import check_filter, drive
from gw_otel.filter import INBOUND, MessageTelemetry, Telemetry, Tracing, log_of
from gw_otel.instruments import Instruments
from gw_otel.propagation import Propagation
from gw_otel.sampling import Ids, compile_overrides
from gw_otel.settings import Sampler
from gw_otel.spans import Tracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ROUTE = RouteInfo("users", path="/users/:id")
CLIENT = Client("198.51.100.7", "203.0.113.9", 4711, "https")


class Bench:
    """A filter on a bench: what it sends and counts is kept here."""

    def __init__(self, sampler="always_on", *, make=Telemetry, sends=True, traces=True, logs=False, **more):
        self.spans, self.logs, self.figures = [], [], Figures()
        instruments = Instruments(self.figures, {})
        propagation = Propagation(more.pop("propagators", ("w3c",)), lambda *what: instruments.invalid.at(*what).add())
        tracer = Tracer(Ids(), propagation.inject, instruments.dropped_unended, idp_spans=more.pop("idp_spans", True))
        overrides = compile_overrides(Sampler(type=sampler), ())
        tracing = Tracing(tracer, propagation, overrides, self.spans.append if sends else None, **more)

        def ended(*what):
            self.logs.append(log_of(*what))

        self.filter = make(ROUTE, instruments, tracing if traces else None, ended if logs else None)

    async def drive(self, *others, **how):
        """Run one exchange, with *others* after the filter."""
        how = {"target": "/users/7?secret=1", "client": CLIENT, "route": ROUTE, **how}
        return await drive([Started(), self.filter, *others], **how)

    def tree(self):
        """Return the spans, the outermost first, as (name, kind, parent's name, failed, attributes that vary)."""
        names = {span.span_id: span.name for span in self.spans}
        assert len(names) == len(self.spans), "two spans have one identifier"
        assert len({span.trace_id for span in self.spans}) == 1
        assert all(span.start <= span.end for span in self.spans)
        return [
            (span.name, span.kind, names.get(span.parent_id, span.parent_id), span.failed, dict(span.attributes))
            for span in reversed(self.spans)
        ]

    def values(self, name):
        family = next(each for each in self.figures if each.name == name)
        return {
            labels: sum(series.counts) if family.kind == "histogram" else series.value
            for labels, series in family.rows().items()
        }


class Started(Filter):
    """Sets what the connection would have set."""

    name = "started"

    async def on_request_headers(self, ex):
        ex.started = time.monotonic()
        ex.asked_host = "example.test"


SERVED = {
    "http.request.method": "GET",
    "http.route": "/users/:id",
    "url.scheme": "https",
    "url.path": "/users/7",
    "network.protocol.version": "1.1",
    "client.address": "198.51.100.7",
    "network.peer.address": "203.0.113.9",
    "network.peer.port": 4711,
    "server.address": "example.test",
    "server.port": 443,
    "gw.route": "users",
    "gw.request_id": "request-1",
    "http.response.status_code": 200,
    "http.server.response.body.size": 0,
}
ASKED = {
    "http.request.method": "GET",
    "network.protocol.version": "1.1",
    "http.request.resend_count": 0,
    "http.response.status_code": 200,
    "gw.upstream.service": "upstream",
    "gw.connection.reused": False,
    "server.address": "192.0.2.1",
    "server.port": 80,
}


# --- trees -----------------------------------------------------------------------


async def test_a_request_is_two_spans_below_its_parent():
    bench = Bench()
    played = await bench.drive(headers={"traceparent": PARENT, "user-agent": "curl/8"})
    assert bench.tree() == [
        ("GET /users/:id", 2, "b7ad6b7169203331", False, SERVED | {"user_agent.original": "curl/8"}),
        ("HTTP GET", 3, "GET /users/:id", False, ASKED),
    ]
    server, client = bench.spans[1], bench.spans[0]
    assert {span.trace_id for span in bench.spans} == {"0af7651916cd43dd8448eb211c80319c"}
    assert (server.scope, client.scope) == (("gw.http.server", ""), ("gw.gateway.http", "1.0.0"))
    assert server.start <= client.start <= client.end <= server.end
    assert abs(time.time_ns() - server.end) < 5_000_000_000
    sent = played.upstream_headers.get_all("traceparent")
    assert sent == [f"00-{server.trace_id}-{client.span_id}-01"]
    assert (played.exchange[TRACE].trace_id, played.exchange[TRACE].span_id) == (server.trace_id, server.span_id)


async def test_a_request_without_a_parent_begins_a_trace():
    bench = Bench()
    await bench.drive(target="/users/7")
    assert [parent for _, _, parent, _, _ in bench.tree()] == ["", "GET /users/:id"]


class Retrying(Filter):
    name = "retrying"

    async def on_upstream_error(self, ex, attempt, error):
        return Retry(reason="retrying.error")

    async def on_upstream_response(self, ex, attempt):
        return Retry(reason="retrying.status") if ex.response.status >= 500 else None


async def test_each_attempt_is_a_span_with_a_context_of_its_own():
    bench = Bench()
    played = await bench.drive(Retrying(), refuse=2)
    refused = {
        **{key: value for key, value in ASKED.items() if key != "http.response.status_code"},
        "network.protocol.version": "unknown",
        "error.type": "connect_failure",
    }
    assert bench.tree() == [
        ("GET /users/:id", 2, "", False, SERVED),
        ("HTTP GET", 3, "GET /users/:id", False, ASKED | {"http.request.resend_count": 2}),
        ("HTTP GET", 3, "GET /users/:id", True, refused | {"http.request.resend_count": 1}),
        ("HTTP GET", 3, "GET /users/:id", True, refused),
    ]
    assert played.upstream_headers.get_all("traceparent") == [
        f"00-{bench.spans[2].trace_id}-{bench.spans[2].span_id}-01"
    ]
    assert bench.values("gw.upstream.retries") == {("upstream", "connect_failure"): 2}
    assert bench.values("gw.upstream.pool.checkout.wait.duration") == {
        ("upstream", "connect_failure"): 2,
        ("upstream", "success"): 1,
    }


async def test_an_upstream_that_always_fails_is_an_error_of_each_attempt_and_of_the_request():
    bench = Bench()
    played = await bench.drive(Retrying(), status=503)
    failed = {"http.response.status_code": 503, "error.type": "503"}
    number = len(played.exchange.attempts)
    assert number > 1
    assert bench.tree() == [
        ("GET /users/:id", 2, "", True, SERVED | failed),
        *(
            ("HTTP GET", 3, "GET /users/:id", True, ASKED | failed | {"http.request.resend_count": n})
            for n in reversed(range(number))
        ),
    ]
    assert bench.values("gw.upstream.retries") == {("upstream", "response_5xx"): number - 1}


async def test_a_status_of_the_clients_making_is_an_error_of_the_attempt_only():
    bench = Bench()
    await bench.drive(status=404)
    assert bench.tree() == [
        ("GET /users/:id", 2, "", False, SERVED | {"http.response.status_code": 404}),
        (
            "HTTP GET",
            3,
            "GET /users/:id",
            True,
            ASKED | {"http.response.status_code": 404, "error.type": "404"},
        ),
    ]


async def test_an_upstream_that_refuses_is_an_error_of_both():
    bench = Bench()
    await bench.drive(refuse=True)
    (server, client) = bench.tree()
    assert server[3:] == (
        True,
        SERVED | {"http.response.status_code": 502, "error.type": "connect_failure", "gw.reason": "gw.connect_failure"},
    )
    assert client[4]["error.type"] == "connect_failure"


class Refusing(Filter):
    name = "refusing"

    def __init__(self, status, at="head"):
        self.status, self.at = status, at

    async def on_request_headers(self, ex):
        return Reply(self.status, reason="refusing.no") if self.at == "head" else None

    async def on_upstream_request(self, ex, attempt):
        return Reply(self.status, reason="refusing.open") if self.at == "attempt" else None


async def test_a_request_that_a_filter_refuses_has_no_attempt():
    bench = Bench()
    await bench.drive(Refusing(403))
    said = {"http.response.status_code": 403, "error.type": "rejected_by_middleware", "gw.reason": "refusing.no"}
    assert bench.tree() == [("GET /users/:id", 2, "", False, SERVED | said)]


async def test_a_rejection_when_an_attempt_was_about_to_begin_is_no_attempt():
    bench = Bench()
    await bench.drive(Refusing(503, "attempt"))
    said = {"http.response.status_code": 503, "error.type": "rejected_by_middleware", "gw.reason": "refusing.open"}
    assert bench.tree() == [("GET /users/:id", 2, "", True, SERVED | said)]
    assert bench.values("http.client.request.duration") == {}
    assert bench.values("http.client.active_requests") == {("upstream",): 0}


class Raising(Filter):
    name = "raising"

    async def on_request_headers(self, ex):
        raise ZeroDivisionError


async def test_a_filter_that_raises_is_named_as_what_it_is(caplog):
    bench = Bench()
    await bench.drive(Raising())
    assert bench.tree()[0][4]["error.type"] == "handler_threw"


class Vetting(Filter):
    """Calls somebody while the request waits, as a check of a token does."""

    name = "vetting"

    def __init__(self, outcome="allow", *, ends=True):
        self.outcome, self.ends, self.sent = outcome, ends, ()

    async def on_request_headers(self, ex):
        span = ex[TRACE].child("auth.idp_check", {"auth.issuer": "main"})
        self.sent = dict(span.headers())
        span.set("auth.cache_outcome", "miss")
        span.set("authorization", "Bearer secret")
        inner = span.child("dns.lookup")
        inner.event("cached", {"http.request.header.Cookie": "secret"})
        inner.end()
        span.set("auth.outcome", self.outcome)
        if self.ends:
            span.end("timeout" if self.outcome == "undetermined" else "")
            span.end("only the first counts")


async def test_what_plugins_do_is_seen_below_the_request():
    bench, vetting = Bench(), Vetting("undetermined")
    await bench.drive(vetting, headers={"traceparent": PARENT, "tracestate": "a=1"})
    attributes = {
        "auth.issuer": "main",
        "auth.cache_outcome": "miss",
        "authorization": "[REDACTED]",
        "auth.outcome": "undetermined",
        "error.type": "timeout",
    }
    assert bench.tree() == [
        ("GET /users/:id", 2, "b7ad6b7169203331", False, SERVED),
        ("HTTP GET", 3, "GET /users/:id", False, ASKED),
        ("dns.lookup", 1, "auth.idp_check", False, {}),
        ("auth.idp_check", 1, "GET /users/:id", True, attributes),
    ]
    check = bench.spans[0]
    assert check.scope == ("gw.gateway.auth", "1.0.0")
    assert vetting.sent == {"traceparent": f"00-{check.trace_id}-{check.span_id}-01", "tracestate": "a=1"}
    assert [(name, attributes) for _, name, attributes in bench.spans[1].events] == [
        ("cached", [("http.request.header.Cookie", "[REDACTED]")])
    ]


async def test_a_check_of_an_identity_can_be_two_events_instead():
    bench, vetting = Bench(idp_spans=False), Vetting()
    await bench.drive(vetting)
    assert [span.name for span in bench.spans] == ["dns.lookup", "HTTP GET", "GET /users/:id"]
    server = bench.spans[-1]
    assert [(name, attributes) for _, name, attributes in server.events] == [
        ("auth.pending_start", [("auth.issuer", "main")]),
        ("auth.pending_end", [("auth.outcome", "allow")]),
    ]
    assert bench.spans[0].parent_id == server.span_id
    assert vetting.sent["traceparent"].split("-")[2] == server.span_id


async def test_a_span_that_nobody_ended_ends_with_its_request():
    bench = Bench()
    await bench.drive(Vetting(ends=False))
    assert bench.spans[0].name == "auth.idp_check"
    assert bench.spans[0].end == bench.spans[-1].end


async def test_a_span_begun_when_all_is_over_is_counted_and_dropped():
    bench = Bench()
    played = await bench.drive()
    sent = len(bench.spans)
    played.exchange[TRACE].child("late").end()
    assert len(bench.spans) == sent
    assert bench.values("gw.otel.spans.dropped_unended") == {(): 1}


class Chatty(Filter):
    name = "chatty"

    async def on_request_headers(self, ex):
        trace = ex[TRACE]
        for number in range(300):
            trace.child("x")
            trace.event("said", dict.fromkeys(map(str, range(200)), 1))
            trace.set(f"k{number}", "v" * 10_000)


async def test_spans_attributes_and_events_are_bounded():
    bench = Bench()
    await bench.drive(Chatty())
    server = bench.spans[-1]
    assert len(bench.spans) == 256 + 2
    assert (len(server.attributes), len(server.events)) == (128, 128)
    assert server.dropped_attributes == 300 - (128 - len(SERVED))
    assert server.dropped_events == 300 - 128
    assert {len(attributes) for _, _, attributes in server.events} == {128}
    assert max(len(value) for _, value in server.attributes if isinstance(value, str)) == 4096


@pytest.mark.parametrize("stop_at", [1, 2, 3])
async def test_a_client_that_leaves_ends_every_span_once(stop_at):
    bench = Bench()
    played = await bench.drive(stop_at=stop_at)
    assert played.outcome is Outcome.CANCELLED
    server, client = bench.tree()
    assert (server[3], server[4]["error.type"]) == (True, "client_disconnect")
    assert client[2] == "GET /users/:id"
    assert bench.values("http.server.active_requests") == {("GET", "/users/:id"): 0}
    assert bench.values("http.client.active_requests") == {("upstream",): 0}


class Cut(Filter):
    name = "cut"
    upstream_body = Body.OBSERVE

    async def on_upstream_request(self, ex, attempt):
        ex.reason = "gw.shutdown"  # as the connection says when the time to drain is over


async def test_what_a_shutdown_cuts_off_says_so():
    bench = Bench()
    await bench.drive(Cut(), stop_at=1)
    assert bench.tree()[0][4]["error.type"] == "shutdown"


async def test_messages_of_a_websocket_are_spans_when_asked():
    bench = Bench(make=MessageTelemetry)

    class Talking(Filter):
        name = "talking"

        async def on_request_headers(self, ex):
            for data, from_client in (("hé", True), (b"abc", False)):
                assert await bench.filter.on_message(ex, Message(data), from_client) == Message(data)

    await bench.drive(Talking())
    assert bench.tree()[2:] == [
        ("ws.send", 1, "GET /users/:id", False, {"ws.opcode": 2, "ws.payload_size": 3}),
        ("ws.recv", 1, "GET /users/:id", False, {"ws.opcode": 1, "ws.payload_size": 3}),
    ]
    assert bench.spans[0].scope == ("gw.gateway.ws", "1.0.0")


async def test_a_call_of_grpc_says_what_was_called_and_what_came_of_it():
    bench = Bench()
    await bench.drive(
        target="/shop.Cart/Add",
        method="POST",
        headers={"content-type": "application/grpc+proto"},
        upstream_headers={"grpc-status": "5"},
    )
    attributes = bench.tree()[0][4]
    assert {key: value for key, value in attributes.items() if key.startswith("rpc.")} == {
        "rpc.system": "grpc",
        "rpc.service": "shop.Cart",
        "rpc.method": "Add",
        "rpc.grpc.status_code": 5,
    }


async def test_a_method_that_nobody_knows_makes_no_label():
    bench = Bench()
    await bench.drive(method="BREW")
    name, _, _, _, attributes = bench.tree()[0]
    assert name == "HTTP /users/:id"
    assert (attributes["http.request.method"], attributes["http.request.method_original"]) == ("_OTHER", "BREW")
    assert list(bench.values("http.server.active_requests")) == [("_OTHER", "/users/:id")]


async def test_wanted_members_of_baggage_become_attributes_and_all_of_it_goes_on():
    bench = Bench(baggage=("tenant", "missing"))
    baggage = "tenant=caf%C3%A9;ttl=5, other=1, broken"
    played = await bench.drive(headers={"baggage": baggage})
    found = {key: value for key, value in bench.tree()[0][4].items() if key.startswith("baggage.")}
    assert found == {"baggage.tenant": "café"}
    assert played.upstream_headers.get("baggage") == baggage


async def test_verdicts_of_filters_are_spans_when_asked():
    bench = Bench(filters=True)
    await bench.drive(Refusing(403))
    tree = [(name, parent, attributes) for name, _, parent, _, attributes in bench.tree()[1:]]
    assert tree == [
        (
            "refusing.on_request_headers",
            "GET /users/:id",
            {
                "gw.plugin": "refusing",
                "gw.hook": "on_request_headers",
                "gw.verdict": "reply",
                "gw.reason": "refusing.no",
            },
        ),
        (
            "otel.on_request_headers",
            "GET /users/:id",
            {"gw.plugin": "otel", "gw.hook": "on_request_headers", "gw.verdict": "pass"},
        ),
        (
            "started.on_request_headers",
            "GET /users/:id",
            {"gw.plugin": "started", "gw.hook": "on_request_headers", "gw.verdict": "pass"},
        ),
    ]
    assert {span.scope[0] for span in bench.spans} == {"gw.filters", "gw.http.server"}


# --- headers -----------------------------------------------------------------------


async def test_contexts_that_are_not_ours_go_no_further_and_others_state_is_kept():
    headers = {"traceparent": PARENT, "tracestate": "a=1 , b=2", "uber-trace-id": "stale"}
    played = await Bench().drive(headers=headers)
    sent = played.upstream_headers
    assert "uber-trace-id" not in sent
    assert sent.get_all("tracestate") == ["a=1,b=2"]
    assert len(sent.get_all("traceparent")) == 1


async def test_an_invalid_context_is_replaced_and_its_state_goes_with_it():
    bench = Bench()
    played = await bench.drive(headers={"traceparent": PARENT[:-1], "tracestate": "a=1"})
    assert "tracestate" not in played.upstream_headers
    assert played.upstream_headers.get("traceparent").split("-")[1] != PARENT.split("-")[1]
    assert bench.values("gw.otel.propagation.invalid") == {("w3c", "malformed"): 1}


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True)])
async def test_a_child_is_sampled_as_its_parent_was(flags, sampled):
    bench = Bench("parent_based")
    played = await bench.drive(headers={"traceparent": PARENT[:-2] + flags})
    assert bool(bench.spans) is sampled
    assert played.upstream_headers.get("traceparent").endswith(f"-{flags}")
    assert bench.values("gw.otel.spans.created") == {(): 2}
    assert bench.values("gw.otel.spans.dropped_unsampled") == {(): 0 if sampled else 2}


async def test_a_consistent_sampler_tells_those_behind_how_likely_it_was():
    bench = Bench("consistent")
    played = await bench.drive()
    assert played.upstream_headers.get("tracestate") == "ot=th:0"
    played = await bench.drive(headers={"traceparent": PARENT, "tracestate": "ot=th:8;rv:1"})
    assert played.upstream_headers.get("tracestate") == "ot=th:8;rv:1"


async def test_without_an_exporter_traces_are_carried_on_only():
    bench = Bench(sends=False)
    played = await bench.drive(headers={"traceparent": PARENT})
    assert bench.spans == []
    assert played.upstream_headers.get("traceparent").startswith("00-0af7651916cd43dd8448eb211c80319c-")


async def test_without_traces_headers_pass_untouched_and_metrics_go_on():
    bench = Bench(traces=False)
    headers = {"traceparent": PARENT, "uber-trace-id": "x", "tracestate": "a=1"}
    played = await bench.drive(headers=headers)
    assert {name: played.upstream_headers.get(name) for name in headers} == headers
    assert TRACE not in (played.exchange._state or {})
    assert bench.values("http.client.active_requests") == {("upstream",): 0}
    assert sum(bench.values("http.server.request.duration").values()) == 1


# --- what is kept although it was not sampled ------------------------------------------


@pytest.mark.parametrize(
    ("rules", "how", "kept"),
    [
        ({"errors": True}, {"status": 503}, 2),
        ({"errors": True}, {"refuse": True}, 2),
        ({"errors": True}, {"stop_at": 1}, 2),
        ({"errors": True}, {"status": 404}, 0),
        ({"errors": True}, {}, 0),
        ({"slow": 1e-9}, {}, 2),
        ({"slow": 100.0}, {"status": 503}, 0),
    ],
)
async def test_errors_and_slow_requests_are_kept_when_asked(rules, how, kept):
    bench = Bench("always_off", **rules)
    await bench.drive(**how)
    assert len(bench.spans) == kept
    assert {span.sampled for span in bench.spans} <= {False}


async def test_what_plugins_did_is_kept_with_it():
    bench = Bench("always_off", errors=True)
    await bench.drive(Vetting(), status=500)
    assert [span.name for span in bench.spans] == ["auth.idp_check", "dns.lookup", "HTTP GET", "GET /users/:id"]


# --- metrics -----------------------------------------------------------------------


async def test_a_request_is_measured_whether_it_is_sampled_or_not():
    bench = Bench("always_off")
    await bench.drive(method="POST", body=b"12345", upstream=b"x" * 300, status=201)
    labels = ("POST", "201", "/users/:id", "1.1", "")
    assert bench.values("http.server.request.duration") == {labels: 1}
    assert bench.values("http.server.request.body.size") == {("POST", "/users/:id"): 1}
    assert bench.values("http.server.response.body.size") == {("POST", "/users/:id", "201"): 1}
    assert bench.values("http.client.request.duration") == {("POST", "192.0.2.1", "80", "201", "", "upstream"): 1}
    assert bench.values("http.server.active_requests") == {("POST", "/users/:id"): 0}


async def test_the_wait_for_a_connection_is_all_of_an_attempt_that_had_none():
    bench = Bench()

    class Slowly(Filter):
        name = "slowly"

        async def on_upstream_request(self, ex, attempt):
            attempt.started -= 7.0

    await bench.drive(Slowly(), refuse=True)
    await bench.drive(Slowly())
    family = next(each for each in bench.figures if each.name == "gw.upstream.pool.checkout.wait.duration")
    waits = {outcome: series.sum for (_, outcome), series in family.rows().items()}
    assert set(waits) == {"connect_failure", "success"}
    assert all(7.0 < wait < 8.0 for wait in waits.values())


async def test_active_requests_are_counted_while_they_are():
    bench, seen = Bench(), []

    class Looking(Filter):
        name = "looking"

        async def on_upstream_response(self, ex, attempt):
            seen.append((bench.values("http.server.active_requests"), bench.values("http.client.active_requests")))

    await bench.drive(Looking())
    assert seen == [({("GET", "/users/:id"): 1}, {("upstream",): 1})]


async def test_a_sampled_request_is_an_example_of_its_bucket():
    bench = Bench()
    await bench.drive()
    family = next(each for each in bench.figures if each.name == "http.server.request.duration")
    (series,) = family.rows().values()
    (example,) = filter(None, series.exemplars)
    assert example[:2] == (bench.spans[-1].trace_id, bench.spans[-1].span_id)


async def test_methods_and_reasons_that_are_made_up_are_forgotten_again():
    bench = Bench("always_off")
    for number in range(1200):
        await bench.drive(Refusing(400 + number % 100), method=f"M{number}")
    assert len(bench.filter._rows) <= 1000
    assert len(bench.filter._active) <= 1000


# --- log records -------------------------------------------------------------------


async def test_every_request_is_a_log_record_with_its_trace():
    bench = Bench("always_off", logs=True)
    for how in ({}, {"status": 404}, {"refuse": True}, {"stop_at": 1}):
        await bench.drive(**how)
    assert [(log.severity, log.body) for log in bench.logs] == [
        (9, "GET /users/7 200"),
        (13, "GET /users/7 404"),
        (17, "GET /users/7 502"),
        (17, "GET /users/7 -"),
    ]
    log = bench.logs[2]
    attributes = dict(log.attributes)
    assert attributes.pop("http.server.request.duration") >= 0
    assert attributes == {
        "http.request.method": "GET",
        "url.path": "/users/7",
        "client.address": "198.51.100.7",
        "network.protocol.version": "1.1",
        "http.server.response.body.size": 0,
        "gw.request_id": "request-1",
        "gw.outcome": "reply",
        "gw.route": "users",
        "http.response.status_code": 502,
        "error.type": "connect_failure",
        "gw.reason": "gw.connect_failure",
        "gw.upstream.service": "upstream",
    }
    assert (len(log.trace_id), len(log.span_id), log.sampled) == (32, 16, False)


async def test_the_filter_keeps_the_promises_of_filters():
    await check_filter(lambda: Bench().filter)
    await check_filter(lambda: Bench(traces=False).filter)


async def test_nothing_happens_for_an_exchange_that_never_reached_it():
    bench = Bench()
    played = await drive([Refusing(403), bench.filter], route=ROUTE)
    assert played.exchange.get(INBOUND, None) is None
    assert bench.spans == []
