"""What a trace shows of auth, and what figures count of it."""

from __future__ import annotations

import anyio
import pytest
from scripted import URL, ScriptedCaller, Ticking, asking, claims, introspected, jwt_issuer, key_set, make

from gw import Answer, CallFailed, Figures, Headers, Trace
from gw_auth.asking import Asking
from gw_auth.counts import IssuerCounts, Rows, Totals
from gw_auth.policies import Rule
from gw_auth.settings import ForwardAuth, RoutePolicy
from gw_auth.verdicts import Recognised, Undetermined
from gw_auth.ways import Bearer

CONTEXT = (("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"),)


class Recording(Trace):
    """Remembers what was begun below it, as ``(name, attributes, error)``, and whether it has ended."""

    def __init__(self):
        super().__init__("a" * 32, "b" * 16, sampled=True)
        self.begun, self.ended = [], []

    def child(self, name, attributes=None):
        below = Recording()
        below.attributes = dict(attributes or {})
        self.begun.append((name, below))
        return below

    def set(self, key, value):
        self.attributes[key] = value

    def end(self, error=""):
        self.ended.append(error)

    def headers(self):
        return CONTEXT

    def seen(self):
        return [(name, span.attributes, *span.ended) for name, span in self.begun]


def judge(**policy):
    made = RoutePolicy.model_validate({"name": "p", "public": True, **policy}, strict=False)
    return Rule.of(made, "p", None, "gw.yaml:41:3", Rows())


def span(outcome, cache, error="", issuer="opaque"):
    return ("auth.idp_check", {"auth.issuer": issuer, "auth.outcome": outcome, "auth.cache_outcome": cache}, error)


@pytest.mark.parametrize(
    ("answer", "policy", "seen"),
    [
        ({"active": True, "sub": "a", "scope": "x"}, {}, span("allow", "miss")),
        ({"active": True, "sub": "a"}, {"required_scopes": ["x"]}, span("deny_403", "miss")),
        ({"active": True, "sub": "a"}, {"required_audience": "x"}, span("deny_401", "miss")),
        ({"active": False}, {}, span("deny_401", "miss")),
        (CallFailed("timeout", "no answer"), {}, span("undetermined", "uncached", "introspection_error")),
    ],
)
async def test_asking_about_a_token_is_a_span_and_carries_the_trace_on(answer, policy, seen):
    caller, trace = ScriptedCaller({f"{URL}/introspect": answer}), Recording()
    issuer = introspected(caller)
    for _ in range(2):
        await Bearer([issuer]).recognise(asking({"authorization": "Bearer opaque"}, trace), judge(**policy))
    failed = isinstance(answer, Exception)  # which is not remembered, so it is asked again
    assert trace.seen() == [seen] * (1 + failed)
    assert [headers["traceparent"] for _, _, headers, _ in caller.calls] == [CONTEXT[0][1]] * (1 + failed)


async def test_a_stale_answer_says_that_it_is_one():
    ticking, trace = Ticking(), Recording()
    caller = ScriptedCaller({f"{URL}/introspect": {"active": True, "sub": "a"}})
    issuer = introspected(caller, ticking)
    ask = asking({"authorization": "Bearer opaque"}, trace)
    await Bearer([issuer]).recognise(ask, judge())
    caller.pages.clear()
    ticking.now += 61
    assert isinstance(await Bearer([issuer]).recognise(ask, judge()), Recognised)
    assert trace.seen() == [span("allow", "miss"), span("allow", "stale")]


async def test_waiting_for_keys_is_a_span_and_having_them_is_none():
    issuer, trace = jwt_issuer(), Recording()
    ask = asking({"authorization": f"Bearer {make(claims(Ticking().now))}"}, trace)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(issuer.provider.run)
        for _ in range(3):
            assert isinstance(await Bearer([issuer]).recognise(ask, judge()), Recognised)
        other = asking({"authorization": f"Bearer {make(claims(Ticking().now), key='rsa2')}"}, trace)
        for _ in range(3):  # the first one asks, the others come within the cool-down
            await Bearer([issuer]).recognise(other, judge())
        tasks.cancel_scope.cancel()
    assert trace.seen() == [span("allow", "none", issuer="main"), span("deny_401", "none", issuer="main")]


async def test_a_service_that_is_asked_is_a_span_and_gets_our_context_only():
    url, trace = "https://quota.test/check", Recording()
    caller = ScriptedCaller({url: Answer(200, Headers.of([("cache-control", "max-age=60")]), b"")})
    own = ForwardAuth.model_validate({"url": url, "request_headers": ["traceparent", "cookie"]}, strict=False)
    way = Asking("quota", own, caller, Ticking().clock)
    for _ in range(2):
        await way.recognise(asking({"traceparent": "theirs", "cookie": "a"}, trace), judge())
    assert trace.seen() == [span("allow", "none", issuer="quota")]
    ((_, _, headers, _),) = caller.calls
    assert (headers["traceparent"], headers["cookie"]) == (CONTEXT[0][1], "a")
    refusing = Asking("quota", own, ScriptedCaller({url: Answer(403, Headers(), b"")}), Ticking().clock)
    down = Asking("quota", own, ScriptedCaller(), Ticking().clock)
    for asked in (refusing, down):
        await asked.recognise(asking(trace=trace), judge())
    assert trace.seen()[1:] == [
        span("deny_403", "none", issuer="quota"),
        span("undetermined", "none", "other", issuer="quota"),
    ]


async def test_without_a_trace_nothing_is_begun_or_sent():
    caller = ScriptedCaller()
    verdict = await Bearer([introspected(caller)]).recognise(asking({"authorization": "Bearer opaque"}), judge())
    assert isinstance(verdict, Undetermined)
    assert "traceparent" not in caller.calls[0][2]


# --- figures --------------------------------------------------------------------------------------------------


def rows(figures, name):
    (family,) = [each for each in figures if each.name == name]
    return {labels: count.value for labels, count in family.rows().items() if count.value}


def test_verdicts_are_a_figure_in_the_words_of_the_reference():
    figures = Figures()
    totals = Totals(figures)
    for _ in range(2):
        totals.allowed["main"].value += 1
    totals.refuse("deny", "", "missing_token")
    totals.refuse("undetermined", "main", "introspection_error")
    assert rows(figures, "gw.auth.requests") == {
        ("allow", "main", "ok"): 2,
        ("deny", "<unknown>", "missing_token"): 1,
        ("undetermined", "main", "introspection_error"): 1,
    }


async def test_look_ups_and_refreshes_are_figures_that_go_on_after_a_reload():
    figures = Figures()
    pages = {f"{URL}/introspect": {"active": True, "sub": "a"}}
    for _ in range(2):
        ticking, caller = Ticking(), ScriptedCaller(dict(pages))
        issuer = introspected(caller, ticking, negative_cache_sec=5)
        issuer.provider.keeping.counts = issuer._counts = IssuerCounts(figures, "opaque")
        ask = asking({"authorization": "Bearer opaque"})
        for page in (pages[f"{URL}/introspect"], None, {"active": False}):
            caller.pages[f"{URL}/introspect"] = page or CallFailed("timeout", "no answer")
            for _ in range(2):
                await Bearer([issuer]).recognise(ask, judge())
            ticking.now += 61
    assert rows(figures, "gw.auth.cache.lookups") == {
        ("hit", "opaque"): 2,
        ("miss", "opaque"): 8,
        ("negative_hit", "opaque"): 2,
        ("stale_serve", "opaque"): 4,
        ("refresh_fail", "opaque"): 4,
    }
    jwt = jwt_issuer(caller := ScriptedCaller({f"{URL}/keys": b"no keys"}), ticking := Ticking())
    jwt.provider.keeping.counts = IssuerCounts(figures, "main")
    for page in (b"no keys", CallFailed("connect", "nobody is there"), key_set("rsa1")):
        caller.pages[f"{URL}/keys"] = page
        ticking.now += 1000
        await jwt.provider.turn()
    assert rows(figures, "gw.auth.jwks.refreshes") == {
        ("main", "parse_error"): 1,
        ("main", "network_error"): 1,
        ("main", "success"): 1,
    }
